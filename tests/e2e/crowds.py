"""A crowd: portfolios on many universes, traded by the real services over a bus in memory, and all work counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.e2e.untrained import untrained
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import PARTITIONS, Partition, Record, partition_for
from tradeloop.common.clock import ManualClock
from tradeloop.common.market import Bar, Instrument, Timeframe, Universe
from tradeloop.common.messages import BarFrame, FeaturesComputed, Message, ModelActivated
from tradeloop.common.messages.topics import CATALOGUE, SERVICE_TOPICS, specs, topic_of
from tradeloop.common.model_store.port import Policy, RegisteredPolicy, model_name
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.strategy import RewardContext, Strategy, TargetPosition, log_return, reward
from tradeloop.execution.adapters.bus_history import BusHistory as ExecutionHistory
from tradeloop.execution.adapters.memory_ledger import MemoryLedger
from tradeloop.execution.adapters.paper import PaperVenue
from tradeloop.execution.application import Execution
from tradeloop.execution.ports import Ledger
from tradeloop.inference.adapters.bus_history import BusHistory
from tradeloop.inference.application import Inference

START = datetime(2026, 1, 1, tzinfo=UTC)
_GRAPH = b"sine"


@reward(version="1")
class Growth:
    """Return of equity."""

    def __call__(self, c: RewardContext) -> NDArray[np.float64]:
        return c.equity / c.equity_prev - 1.0


class Replica:
    """A process of inference and one of execution, and what they read outside of groups and load."""

    def __init__(self, bus: MemoryBus, load: Callable[[str, str], RegisteredPolicy]) -> None:
        self._bus, self._load = bus, load
        self.runners: list[Runner] = []
        self.reads: Counter[Partition] = Counter()
        """Records by their partitions."""
        self.loaded: Counter[str] = Counter()
        """How often each universe's model was asked for."""
        self.asked: Counter[str] = Counter()
        """How often the bus was asked for each other thing, which Kafka answers from elsewhere."""

    def __getattr__(self, name: str) -> Any:
        self.asked[name] += 1
        return getattr(self._bus, name)

    def read(self, partition: Partition, start: int, end: int) -> Sequence[Record]:
        """As `Bus.read`."""
        records = self._bus.read(partition, start, end)
        self.reads[partition] += len(records)
        return records

    def load(self, name: str, reference: str) -> RegisteredPolicy:
        """As `PolicySource.load`."""
        self.loaded[name.partition(".")[2]] += 1
        return self._load(name, reference)

    @property
    def mine(self) -> set[int]:
        """The numbers of the partitions that it has."""
        return {partition.number for runner in self.runners for partition in runner.assigned or ()}


class CountedLedger:
    """Counts the round trips to a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._ledger, name)

        def counted(*arguments: Any) -> Any:
            self.calls[name] += 1
            return call(*arguments)

        return counted


class Sine:
    """A policy whose answer depends on its last features, and is never the same twice."""

    def __init__(self, policy: Policy) -> None:
        self._count = policy.manifest.instruments

    def act(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
        answer: NDArray[np.float64] = np.sin(1e4 * observation[:, : self._count].astype(np.float64))
        return answer


class Crowd:
    """Portfolios on universes, their strategy, models and ledger; services come and go."""

    def __init__(
        self,
        universes: int,
        portfolios: int,
        *,
        instruments: int = 1,
        features: int = 1,
        window: int = 2,
        ledger: Ledger | None = None,
    ) -> None:
        """`portfolios` trade each of the universes."""
        listed = tuple(Instrument(id=f"x:{a}", lot_size=1e-4) for a in range(instruments))
        self.universes = [
            Universe(name=f"u{n:03}", instruments=listed, timeframe=Timeframe.M1) for n in range(universes)
        ]
        self.portfolios = [
            Portfolio(name=f"{universe.name}-{k}", universe=universe, strategy="test")
            for universe in self.universes
            for k in range(portfolios)
        ]
        returns = [log_return(k + 1) for k in range(features)]
        self.strategy = Strategy("test", returns, Growth(), window=window, actions=TargetPosition(no_trade_band=0.001))
        self.clock = ManualClock(START + timedelta(days=400))
        self.bus = MemoryBus()
        self.bus.create_topics(specs(SERVICE_TOPICS))
        self.ledger = CountedLedger(ledger or MemoryLedger(self.bus.identity))
        self.replicas: list[Replica] = []
        self._producer = self.bus.producer()
        self._random = np.random.default_rng(0)
        self._bars = 0

    def model(self, name: str, reference: str) -> RegisteredPolicy:
        """Every universe has a model, in as many versions as anybody asks for."""
        policy = untrained(self.strategy, name.partition(".")[2], len(self.universes[0].instruments), _GRAPH)
        return RegisteredPolicy(name, reference if reference.isdecimal() else "1", policy)

    def start(self, replicas: int = 1) -> None:
        """Start so many processes of inference and of execution; each gets its share of the partitions."""
        for _ in range(replicas):
            replica: Any = Replica(self.bus, self.model)
            inference = Inference(
                self.portfolios, lambda _: self.strategy, replica, Sine, BusHistory(replica), self.clock
            )
            execution = Execution(
                self.portfolios,
                lambda _: self.strategy,
                PaperVenue,
                self.ledger,
                ExecutionHistory(replica),
                self.clock,
            )
            replica.runners += [Runner(service, self.bus, self.clock) for service in (inference, execution)]
            self.replicas.append(replica)

    def stop(self, *replicas: Replica) -> None:
        """Commit and leave; all of them where none is named."""
        for replica in replicas or tuple(self.replicas):
            for runner in replica.runners:
                runner.close()
            self.replicas.remove(replica)

    @property
    def runners(self) -> list[Runner]:
        """The processes that run."""
        return [runner for replica in self.replicas for runner in replica.runners]

    def forget(self) -> None:
        """Count from here on."""
        self.ledger.calls.clear()
        for replica in self.replicas:
            replica.loaded.clear()
            replica.reads.clear()
            replica.asked.clear()

    @property
    def loaded(self) -> int:
        """How often a model was asked for."""
        return sum(replica.loaded.total() for replica in self.replicas)

    def read(self, kind: type[Message]) -> int:
        """The records of a topic that were read outside of groups."""
        topic = topic_of(kind).name
        reads = (one for replica in self.replicas for one in replica.reads.items())
        return sum(count for partition, count in reads if partition.topic == topic)

    def published(self, kind: type[Message]) -> int:
        """The records that a topic holds."""
        return sum(self.bus.end_offsets(topic_of(kind).name).values())

    def run(self, each: Callable[[], None] = lambda: None) -> None:
        """Step in turns until all is quiet; `each` is called after each step of a service."""
        while True:
            busy = 0
            for runner in self.runners:
                busy += runner.step()
                each()
            self.clock.advance(0.1)
            if not busy and not any(runner.waiting for runner in self.runners):
                return

    def bar(self) -> None:
        """Publish the next bar of every universe, and its features."""
        self._bars += 1
        time = START + timedelta(days=300, minutes=self._bars)
        for universe in self.universes:
            price = 100.0 * float(np.exp(self._random.normal(0.0, 1e-3)))
            bar: dict[str, Any] = {"open": price, "high": 1.01 * price, "low": 0.99 * price, "close": price}
            frame = BarFrame(
                universe=universe.name,
                timeframe=Timeframe.M1,
                open_time=time - timedelta(minutes=1),
                close_time=time,
                bars=tuple(Bar(instrument=one, **bar) for one in universe.ids),
            )
            names = self.strategy.feature_set.names
            values = self._random.normal(0.0, 1e-3, (len(universe.ids), len(names))).tolist()
            features = FeaturesComputed.of(universe, self.strategy.feature_set.id, names, time, values)
            self.publish([frame, features])

    def publish(self, messages: Iterable[Message]) -> None:
        """Publish what somebody else would have."""
        for message in messages:
            publish(self._producer, message, "test")
        self._producer.flush()

    def activate(self, days: int) -> None:
        """Publish that each portfolio got a new model on each of so many days."""
        for day in range(days):
            self.publish(
                ModelActivated(
                    universe=portfolio.universe.name,
                    portfolio=portfolio.name,
                    time=START + timedelta(days=day),
                    model=model_name("test", portfolio.universe.name),
                    version=str(day + 1),
                    model_id=sha256(_GRAPH).hexdigest(),
                    cause=f"{day:036}",
                )
                for portfolio in self.portfolios
            )

    def universes_of(self, replica: Replica) -> set[str]:
        """The universes that a replica has."""
        mine = replica.mine
        return {universe.name for universe in self.universes if partition_for(universe.name, PARTITIONS) in mine}

    def largest(self) -> dict[str, int]:
        """The size of the largest message of each topic that holds one, in bytes."""
        found: dict[str, int] = {}
        for topic in CATALOGUE:
            for partition, end in self.bus.end_offsets(topic).items():
                for record in self.bus.read(partition, 0, end):
                    found[topic] = max(found.get(topic, 0), len(record.value))
        return found
