"""The run that faults are put into: all five services over one bus, and what it leaves behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.e2e.taps import Fault, Killed, Life, Names, Probe, Seen
from tests.e2e.untrained import untrained
from tradeloop.common.arrays import Floats
from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bus.memory import MemoryBus, MemoryConsumer
from tradeloop.common.bus.port import Partition, partition_for
from tradeloop.common.clock import ManualClock
from tradeloop.common.feature_store.memory import MemoryFeatureStore
from tradeloop.common.features import Feature
from tradeloop.common.market import (
    EVER_US,
    Instrument,
    Series,
    Timeframe,
    TimeRange,
    Universe,
    from_us,
    to_us,
)
from tradeloop.common.messages import (
    BackfillRequested,
    Message,
    PortfolioCommanded,
    PortfolioEvent,
    PortfolioMarked,
    PreprocessRequested,
    ReplayRequested,
    SignalGenerated,
    TrainingProgressed,
    TrainingRequested,
)
from tradeloop.common.messages.ingest import Reading
from tradeloop.common.messages.topics import CATALOGUE, SERVICE_TOPICS, dead_letter_topic, specs, topic_of
from tradeloop.common.model_store.memory import MemoryModelStore
from tradeloop.common.model_store.port import Policy, model_name
from tradeloop.common.portfolio import Portfolio, RiskLimits
from tradeloop.common.runtime.attempts import Patience
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.readback import all_messages, all_records
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.strategy import RewardContext, Strategy, TargetPosition, log_return, reward
from tradeloop.execution.adapters.bus_history import BusHistory as ExecutionHistory
from tradeloop.execution.adapters.memory_ledger import MemoryLedger
from tradeloop.execution.adapters.paper import PaperVenue
from tradeloop.execution.application import Execution
from tradeloop.inference.adapters.bus_history import BusHistory
from tradeloop.inference.application import Inference
from tradeloop.ingest.adapters.bus_frames import BusFrames
from tradeloop.ingest.application import Ingest
from tradeloop.ingest.ports import FileReport
from tradeloop.preprocess.adapters.bus_sent import BusSent
from tradeloop.preprocess.application import Preprocess
from tradeloop.training.application import Training
from tradeloop.training.main import publisher
from tradeloop.training.ports import Point as LearningPoint
from tradeloop.training.ports import Progress, Task, Trained

MINUTE = Timeframe.M1
START_US = 1_767_571_200_000_000  # 2026-01-05 00:00
HISTORY, TRADED = 6, 6
"""Bars that are stored only, and bars that are traded: half of them before the command and the new model."""
SPIKE = HISTORY + 1
"""The bar on which the policy of `wild` answers NaN."""
TURNS = 120
"""Turns of all services after which a phase of the script must have ended."""
VICTIM = "brave"

PAIR = Universe(
    name="pair",
    instruments=(Instrument(id="x:A", lot_size=1e-4), Instrument(id="x:B", lot_size=1e-4)),
    timeframe=MINUTE,
)
_BESIDE = next(f"apart{n}" for n in range(1000) if partition_for(f"apart{n}", 12) == partition_for("pair", 12))
APART = Universe(name=_BESIDE, instruments=(Instrument(id="y:A", lot_size=1e-4),), timeframe=MINUTE)
"""Another universe, in the same partition."""


def _portfolio(name: str, universe: Universe, strategy: str) -> Portfolio:
    return Portfolio(name=name, universe=universe, strategy=strategy, limits=RiskLimits(max_drawdown=1.0))


PORTFOLIOS = (
    _portfolio(VICTIM, PAIR, "bold"),
    _portfolio("calm", PAIR, "meek"),
    _portfolio("wild", PAIR, "rash"),
    _portfolio("remote", APART, "far"),
)
UNIVERSES = (PAIR, APART)
SPANS = {"bold": 1, "meek": 3, "rash": 2, "far": 4}
"""The feature of each strategy: the return over so many bars."""


@reward(version="1")
class Growth:
    """A reward with a memory."""

    initial_state = {"seen": 0.0}  # noqa: RUF012  a mapping of defaults, never written

    def __call__(self, c: RewardContext) -> Floats:
        c.state["seen"][:] += 1.0
        return np.log(c.equity / c.equity_prev) + 1e-9 * c.state["seen"]


class Follower:
    """A policy whose graph is a number: it follows the last return that many times. One with a ! breaks on a jump."""

    def __init__(self, policy: Policy) -> None:
        self._gain, self._breaks = float(policy.onnx.rstrip(b"!")), policy.onnx.endswith(b"!")
        self._count = policy.manifest.instruments

    def act(self, observation: NDArray[np.float32]) -> Floats:
        moves = observation[0, : self._count].astype(np.float64)
        action: Floats = np.tanh(self._gain * moves)[None]
        return action * np.nan if self._breaks and moves.max() > 0.1 else action


class Teacher:
    """A trainer that learns a number at once."""

    def train(self, task: Task, progress: Progress, stop: Event) -> Trained:
        progress(task.steps, task.steps, {"reward": 1.0})
        return Trained(b"90.0", 0.0, task.steps, task.steps, {}, [LearningPoint(task.steps, {"reward": 1.0})])


def strategy_of(name: str) -> Strategy:
    return Strategy(name, [log_return(SPANS[name])], Growth(), window=1, actions=TargetPosition(no_trade_band=0.0))


def policy_of(portfolio: Portfolio, strategy: Strategy, graph: bytes) -> Policy:
    universe = portfolio.universe
    return untrained(strategy, universe.name, len(universe.instruments), graph)


def read_bars(
    path: str,
    instrument: Instrument,
    timeframe: Timeframe | None = None,
    *,
    reading: Reading | None = None,
    until_us: int = EVER_US,
) -> Generator[Series, None, FileReport]:
    """One instrument's bars, as if from a file, in two blocks."""
    generator = np.random.default_rng([*instrument.id.encode()])
    count = HISTORY + TRADED
    moves = generator.normal(0.0, 0.01, count)
    moves[SPIKE] = 0.3
    close = 100.0 * np.exp(np.cumsum(moves))
    series: Series = {
        "open_us": START_US + MINUTE.us * np.arange(count),
        "open": np.r_[100.0, close[:-1]],
        "high": np.maximum(np.r_[100.0, close[:-1]], close) * 1.001,
        "low": np.minimum(np.r_[100.0, close[:-1]], close) * 0.999,
        "close": close,
        "volume": np.full(count, 1000.0),
    }
    for rows in (slice(0, 5), slice(5, None)):
        yield {name: column[rows] for name, column in series.items()}
    return FileReport(
        path, {}, (), "", "", MINUTE, count, 0, from_us(START_US), from_us(START_US + (count - 1) * MINUTE.us)
    )


def names(portfolios: Sequence[Portfolio], strategies: Callable[[str], Strategy], *, venues: bool = False) -> Names:
    """Whom each name is about; those of `venues`, too, where each has the instruments of one universe."""
    own: dict[str, str] = {}
    common: dict[str, set[str]] = {}
    for one in portfolios:
        model = model_name(one.strategy, one.universe.name)
        for name in (one.name, one.strategy, model, strategies(one.strategy).feature_set.id, f"train-{one.strategy}"):
            own[name] = one.name
        sources = {name.partition(":")[0] for name in one.universe.ids} if venues else ()
        for name in (one.universe.name, *one.universe.ids, *sources):
            common.setdefault(name, set()).add(one.name)
    return Names(own, common)


class _Connection:
    """The bus as one process has it: when that is killed, its consumers are gone without another word."""

    def __init__(self, bus: MemoryBus, life: Life) -> None:
        self._bus, self._life = bus, life
        self.consumers: list[MemoryConsumer] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def consumer(self, group: str, topics: Sequence[str], **callbacks: Any) -> MemoryConsumer:
        def unless_dead(callback: Callable[[Collection[Partition]], None]) -> Callable[[Collection[Partition]], None]:
            return lambda partitions: None if self._life.over else callback(partitions)

        guarded = {name: unless_dead(one) for name, one in callbacks.items()}
        self.consumers.append(self._bus.consumer(group, topics, **guarded))
        return self.consumers[-1]


class _Watched:
    """A service that says what it works on."""

    def __init__(self, service: Any, at_work: dict[str, set[str]]) -> None:
        self._service, self._at_work = service, at_work

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)

    def handle(self, message: Message, position: Any) -> Any:
        self._at_work.setdefault(self._service.name, set()).add(type(message).__name__)
        return self._service.handle(message, position)


@dataclass
class Left:
    """What a run leaves behind."""

    messages: dict[str, dict[tuple[str, str], bytes]]
    """The messages about each portfolio, by topic and id."""
    books: Mapping[str, object]
    """What the ledger has of each portfolio."""
    contradictions: list[str]
    """Ids of which there are two versions."""
    stuck: list[str]
    """What has not ended."""
    dead_letters: Counter[str]
    events: set[tuple[str, str, str]]
    """Portfolio, kind and time of what is on record about portfolios."""
    holds: set[tuple[str, str, str]]
    """Portfolio, time and reason of each decision to hold."""
    tallies: Counter[tuple[str, str]]
    dropped: int
    ended: Counter[str]
    """How often each service ended by itself, and was started again."""
    said: bool
    """Whether a service said that it was not ready, or a portfolio that it waited, while something was away."""
    marked: Mapping[str, int]
    """The last bar that each portfolio marked."""
    troubled: set[str]
    """The portfolios whose standing says what they wait for or suffer from."""
    given_up: set[str] = field(default_factory=set)
    """The portfolios whose live feed is given up, and says why."""
    wrong: list[str] = field(default_factory=list)
    """What is stored or went out otherwise than the venue has it."""


class House:
    """All five services over one bus; what is durable survives a kill."""

    services: Sequence[str] = tuple(SERVICE_TOPICS)
    portfolios: Sequence[Portfolio] = PORTFOLIOS
    names = names(PORTFOLIOS, strategy_of)
    last_us = START_US + (HISTORY + TRADED) * MINUTE.us
    """The close of the last bar, which every portfolio is to mark."""
    steady = frozenset(one.name for one in PORTFOLIOS)
    """The portfolios for which nothing at all changes when something is away or slow, or a process is killed."""
    market_goes_on = False
    """Whether time that a slow call takes is missed by all."""

    def __init__(self, fault: Fault | None = None, seen: Seen | None = None) -> None:
        self.clock = ManualClock(self.begins())
        self.probe = Probe(self.names, VICTIM, self.clock, fault)
        if seen is not None:
            self.probe.aim(seen)
        self.bus = MemoryBus()
        self.bus.create_topics(specs(SERVICE_TOPICS))
        self._bars, self.features, self.ledger = MemoryBarStore(self.clock), MemoryFeatureStore(), MemoryLedger()
        self.models = MemoryModelStore()
        for one in self.portfolios:
            name = model_name(one.strategy, one.universe.name)
            policy = policy_of(one, self.strategy(one.strategy), b"60.0!" if one.name == "wild" else b"60.0")
            registered = self.models.register(name, policy, metrics={}, parameters={})
            self.models.set_alias(name, "champion", registered.version)
        self._producer = self.bus.producer()
        self.runners: dict[str, Runner | None] = {}
        self._lives: dict[str, tuple[Life, _Connection]] = {}
        self.ended: Counter[str] = Counter()
        self.last_error: Exception | None = None
        self.stuck: list[str] = []
        self.said = False
        self._dropped = 0
        self._tallies: Counter[tuple[str, str]] = Counter()
        for service in _SERVICES:
            self._start(service)

    def begins(self) -> datetime:
        """The time at which the run begins."""
        return from_us(START_US) + timedelta(days=30)

    def strategy(self, name: str) -> Strategy:
        """A strategy by its name."""
        return strategy_of(name)

    def _start(self, name: str) -> None:
        life = Life(name)
        connection = _Connection(self.bus, life)
        self._lives[name] = life, connection
        self.runners[name] = None
        tap = self.probe.tap
        bus = tap(connection, life, "bus")
        self.probe.at_work[name] = {"start"}
        try:
            arguments = {key: tap(value, life, key) for key, value in self._arguments(name, life, bus).items()}
            service = tap(_Watched(_SERVICES[name](**arguments), self.probe.at_work), life, "service")
            policy = RunPolicy(max_records=5, commit_interval_s=2.0, check_interval_s=3.0)
            self.runners[name] = Runner(service, bus, self.clock, policy)
        except Killed:
            self._bury(name)
        except Exception as error:  # noqa: BLE001  an orchestrator starts it again, whatever it was
            self._end(name, error)

    def _arguments(self, name: str, life: Life, bus: Any) -> dict[str, Any]:
        clock = self.clock
        if name == "ingest":
            return {
                "store": self._bars, "source": read_bars, "published": BusFrames(bus), "clock": clock,
                "chunk_frames": 2,
            }  # fmt: skip
        strategies = {one.strategy: self._tapped_strategy(one.strategy, life) for one in self.portfolios}.__getitem__
        if name == "preprocess":
            pairs = [(one.universe, one.strategy) for one in self.portfolios]
            return {
                "pairs": pairs, "strategies": strategies, "bars": self._bars, "features": self.features,
                "clock": clock, "sent": BusSent(bus, clock),
            }  # fmt: skip
        if name == "training":
            return {
                "strategies": strategies, "bars": self._bars, "features": self.features, "models": self.models,
                "trainer": Teacher(), "make_actor": Follower, "publish": publisher(bus), "stop": Event(),
            }  # fmt: skip
        if name == "inference":
            return {
                "portfolios": self.portfolios, "strategies": strategies, "models": self.models, "make_actor": Follower,
                "history": BusHistory(bus), "clock": clock, "patience": Patience(),
            }  # fmt: skip
        return {
            "portfolios": self.portfolios, "strategies": strategies, "venues": PaperVenue, "ledger": self.ledger,
            "history": ExecutionHistory(bus), "clock": clock, "patience": Patience(), "grace_s": 50.0,
        }  # fmt: skip

    def _tapped_strategy(self, name: str, life: Life) -> Strategy:
        owners = self.names.of(name)
        strategy = self.strategy(name)
        features: list[Feature] = [
            self.probe.tap(_Plain(one), life, "strategy.feature", owners) for one in strategy.features
        ]
        tapped = Strategy(name, features, strategy.reward, window=1, actions=strategy.actions)
        object.__setattr__(tapped, "reward", self.probe.tap(_Plain(strategy.reward), life, "strategy.reward", owners))
        object.__setattr__(
            tapped, "actions", self.probe.tap(_Plain(strategy.actions), life, "strategy.actions", owners)
        )
        return tapped

    def _bury(self, name: str) -> None:
        """Throw a process away as it is."""
        life, connection = self._lives[name]
        life.over = True
        runner = self.runners[name]
        if runner is not None:
            self._dropped += runner.counters.dropped
            self._tallies.update(runner.tallies)
        self.runners[name] = None
        for consumer in connection.consumers:
            consumer.close()

    def send(self, *messages: Message) -> None:
        for message in messages:
            publish(self._producer, message, "test")

    def settle(self, phase: str) -> None:
        """Let all services work until all are quiet."""
        idle = 0
        for _ in range(TURNS):
            busy = 0
            for name in self.services:
                busy += self._turn(name)
            busy += self._note_outage()
            self.clock.advance(1.0)
            idle = 0 if busy else idle + 1
            if idle > 2:
                return
        self.stuck.append(phase)

    def _note_outage(self) -> bool:
        """Whether something is away; then see whether anybody says so."""
        if self.probe.is_out:
            self.said = self.said or any(
                runner is None or runner.not_ready() or any(one.trouble for one in runner.standings)
                for runner in self.runners.values()
            )
        return self.probe.is_out

    def _turn(self, name: str) -> int:
        runner = self.runners[name]
        if runner is None:
            self._start(name)
            return 1
        try:
            return runner.step() + runner.waiting
        except Killed:
            self._bury(name)
        except Exception as error:  # noqa: BLE001  an orchestrator starts it again, whatever it was
            self._end(name, error)
        return 1

    def _end(self, name: str, error: Exception) -> None:
        """A process ends by itself."""
        self.ended[name] += 1
        self.last_error = error
        self._bury(name)

    def run(self) -> Left:
        files = {PAIR.name: dict.fromkeys(PAIR.ids, "memory"), APART.name: dict.fromkeys(APART.ids, "memory")}
        self.settle("start")
        self.send(*(BackfillRequested(request_id=f"b-{u.name}", universe=u, files=files[u.name]) for u in UNIVERSES))
        self.settle("backfill")
        whole = _span(0, HISTORY + TRADED)
        self.send(
            *(
                PreprocessRequested(
                    request_id=f"p-{one.name}", universe=one.universe, strategy=one.strategy, range=whole
                )
                for one in PORTFOLIOS
            )
        )
        self.settle("preprocess")
        middle = HISTORY + TRADED // 2
        self._replay("first", _span(HISTORY, middle))
        since = next(
            (e.time for e in all_messages(self.bus, PortfolioEvent) if e.portfolio == "wild"), from_us(START_US)
        )
        self.send(
            PortfolioCommanded(
                universe=PAIR.name, portfolio="wild", request_id="release", command="release", time=since, reason="seen"
            ),
            *(
                TrainingRequested(
                    request_id=f"train-{one.strategy}", strategy=one.strategy, universe=one.universe, range=whole,
                    steps=8, promote=True, portfolio=one.model_dump_json(),
                )
                for one in PORTFOLIOS[:2]
            ),
        )  # fmt: skip
        self.settle("training and release")
        self._replay("second", _span(middle, HISTORY + TRADED))
        return self._left()

    def _replay(self, name: str, span: TimeRange) -> None:
        self.send(*(ReplayRequested(request_id=f"{name}-{u.name}", universe=u, range=span) for u in UNIVERSES))
        self.settle(f"{name} replay")

    def _left(self) -> Left:
        messages: dict[str, dict[tuple[str, str], bytes]] = {one.name: {} for one in self.portfolios}
        contradictions, dead = [], Counter[str]()
        for topic in CATALOGUE.keys() - {topic_of(TrainingProgressed).name}:  # nothing depends on it
            for record in all_records(self.bus, topic):
                identity = record.headers["ce_id"]
                value = self._lasting(topic, record.value)
                if value is None or b'"reason":"error"' in value:
                    continue  # nobody takes the latter: the portfolio is in quarantine
                for portfolio in self.names.of(record.key, value):
                    if messages[portfolio].setdefault((topic, identity), value) != value:
                        contradictions.append(f"{topic} of {portfolio}")
        for service, topics in SERVICE_TOPICS.items():
            for topic in topics:
                dead[service] += sum(self.bus.end_offsets(dead_letter_topic(topic, service)).values())
        marked = dict.fromkeys((one.name for one in self.portfolios), -1)
        for mark in all_messages(self.bus, PortfolioMarked):
            marked[mark.portfolio] = max(marked[mark.portfolio], to_us(mark.time))
        tallies, troubled = self._tallies, set[str]()
        for name, runner in self.runners.items():
            if runner is None:
                self.stuck.append(f"{name} is not running")
                continue
            self._dropped += runner.counters.dropped
            tallies.update(runner.service.tallies())
            troubled |= {one.portfolio for one in runner.service.standings() if one.trouble}
            with suppress(Exception):
                runner.commit()
            if runner.pending:
                self.stuck.append(f"{name} has {runner.pending} messages pending")
            for topic in SERVICE_TOPICS[name]:
                for partition, end in self.bus.end_offsets(topic).items():
                    if end and runner.committed.get(partition, 0) != end:
                        self.stuck.append(f"{name} did not finish {topic}")
        return Left(
            messages,
            self._books(),
            contradictions,
            self.stuck,
            +dead,
            {(e.portfolio, e.kind, e.time.isoformat()) for e in all_messages(self.bus, PortfolioEvent)},
            {(s.portfolio, s.time.isoformat(), s.reason) for s in all_messages(self.bus, SignalGenerated) if s.hold},
            tallies,
            self._dropped,
            self.ended,
            self.said,
            marked,
            troubled,
        )

    def _lasting(self, topic: str, value: bytes) -> bytes | None:
        """What of a message must be the same in every run; None for one that need not come."""
        return value

    def _books(self) -> Mapping[str, object]:
        records = self.ledger.load([one.name for one in self.portfolios])
        return {name: replace(record, revision=0) for name, record in records.items()}


class _Plain:
    """A dataclass that is code, not data: its methods are calls."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self.inner.__class__

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, *args: Any) -> Any:
        return self.inner(*args)


_SERVICES: Mapping[str, Callable[..., Any]] = {
    "ingest": Ingest,
    "preprocess": Preprocess,
    "training": Training,
    "inference": Inference,
    "execution": Execution,
}


def _span(first: int, end: int) -> TimeRange:
    return TimeRange(start=from_us(START_US + first * MINUTE.us), end=from_us(START_US + end * MINUTE.us))
