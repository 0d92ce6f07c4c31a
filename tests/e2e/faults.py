"""The fault matrix: every call of every service, failing in every way, and what comes of it.

`python -m tests.e2e.faults --markdown` prints it as the page `docs/failures.md`.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray
from structlog.testing import capture_logs

from tests.e2e.taps import OUTAGE_S, Fault, Killed, Kind, Life, Names, Point, Probe, Seen
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
from tradeloop.execution.record import BookRecord
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


def policy_of(portfolio: Portfolio, graph: bytes) -> Policy:
    universe = portfolio.universe
    return untrained(strategy_of(portfolio.strategy), universe.name, len(universe.instruments), graph)


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


def names() -> Names:
    own: dict[str, str] = {}
    common: dict[str, set[str]] = {}
    for one in PORTFOLIOS:
        model = model_name(one.strategy, one.universe.name)
        for name in (one.name, one.strategy, model, strategy_of(one.strategy).feature_set.id, f"train-{one.strategy}"):
            own[name] = one.name
        for name in (one.universe.name, *one.universe.ids):
            common.setdefault(name, set()).add(one.name)
    return Names(own, common)


NAMES = names()


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
    books: Mapping[str, BookRecord]
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


class House:
    """All five services over one bus; what is durable survives a kill."""

    def __init__(self, fault: Fault | None = None, seen: Seen | None = None) -> None:
        self.clock = ManualClock(from_us(START_US) + timedelta(days=30))
        self.probe = Probe(NAMES, VICTIM, self.clock, fault)
        if seen is not None:
            self.probe.aim(seen)
        self.bus = MemoryBus()
        self.bus.create_topics(specs(SERVICE_TOPICS))
        self._bars, self.features, self.ledger = MemoryBarStore(self.clock), MemoryFeatureStore(), MemoryLedger()
        self.models = MemoryModelStore()
        for one in PORTFOLIOS:
            name = model_name(one.strategy, one.universe.name)
            registered = self.models.register(
                name, policy_of(one, b"60.0!" if one.name == "wild" else b"60.0"), metrics={}, parameters={}
            )
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
        strategies = {one: self._tapped_strategy(one, life) for one in SPANS}.__getitem__
        if name == "preprocess":
            pairs = [(one.universe, one.strategy) for one in PORTFOLIOS]
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
                "portfolios": PORTFOLIOS, "strategies": strategies, "models": self.models, "make_actor": Follower,
                "history": BusHistory(bus), "clock": clock, "patience": Patience(),
            }  # fmt: skip
        return {
            "portfolios": PORTFOLIOS, "strategies": strategies, "venues": PaperVenue, "ledger": self.ledger,
            "history": ExecutionHistory(bus), "clock": clock, "patience": Patience(), "grace_s": 50.0,
        }  # fmt: skip

    def _tapped_strategy(self, name: str, life: Life) -> Strategy:
        owners = NAMES.of(name)
        strategy = strategy_of(name)
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
            for name in _SERVICES:
                busy += self._turn(name)
            if self.probe.is_out:
                busy += 1
                self.said = self.said or any(
                    runner is None or runner.not_ready() or any(one.trouble for one in runner.standings)
                    for runner in self.runners.values()
                )
            self.clock.advance(1.0)
            idle = 0 if busy else idle + 1
            if idle > 2:
                return
        self.stuck.append(phase)

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
        messages: dict[str, dict[tuple[str, str], bytes]] = {one.name: {} for one in PORTFOLIOS}
        contradictions, dead = [], Counter[str]()
        for topic in CATALOGUE.keys() - {topic_of(TrainingProgressed).name}:  # nothing depends on it
            for record in all_records(self.bus, topic):
                identity = record.headers["ce_id"]
                if b'"reason":"error"' in record.value:
                    continue  # nobody takes them: the portfolio is in quarantine
                for portfolio in NAMES.of(record.key, record.value):
                    if messages[portfolio].setdefault((topic, identity), record.value) != record.value:
                        contradictions.append(f"{topic} of {portfolio}")
        for service, topics in SERVICE_TOPICS.items():
            for topic in topics:
                dead[service] += sum(self.bus.end_offsets(dead_letter_topic(topic, service)).values())
        marked = dict.fromkeys((one.name for one in PORTFOLIOS), -1)
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
            {name: replace(record, revision=0) for name, record in self.ledger.load(list(marked)).items()},
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
LAST_US = START_US + (HISTORY + TRADED) * MINUTE.us


def _span(first: int, end: int) -> TimeRange:
    return TimeRange(start=from_us(START_US + first * MINUTE.us), end=from_us(START_US + end * MINUTE.us))


USERS_CODE = ("strategy", "make_actor", "venues", "trainer")
"""Calls that answer with numbers of somebody else's making, which may be NaN."""
IN_MEMORY = {
    "service.standings",
    "service.tallies",
    "service.busy",
    "service.waiting",
    "service.pending",
    "service.answers",
}
"""Calls to a service that only look at what it has in memory."""


@dataclass
class Case:
    """A fault and what came of it."""

    fault: Fault
    outcome: list[str]
    """In words, for the table."""
    complaints: list[str]
    """What must not be."""


@dataclass
class Matrix:
    """Every case, and the undisturbed run."""

    seen: Mapping[Point, Seen]
    cases: list[Case]


def undisturbed() -> tuple[Left, dict[Point, Seen]]:
    with capture_logs():
        house = House()
        left = house.run()
    return left, house.probe.seen


def faults(seen: Mapping[Point, Seen]) -> Iterator[Fault]:
    """The faults to try at each point, in the middle of its calls."""
    for point, what in seen.items():
        if not what.count or point.call in IN_MEMORY or point.call.endswith("standings() next"):
            continue
        first = what.count // 3
        if re.fullmatch(r"bus\.(partitions|(begin|end)_offsets|read)( .*)?", point.call):
            yield Fault(point, "unavailable", "long", first=first)  # the rest fails in the calls of what reads there
            continue
        users = point.call.startswith(("strategy", "make_actor"))  # code that is called, and no port
        if ".publish " not in point.call:
            yield Fault(point, "exception", first=first)
        yield Fault(point, "killed", first=first)
        if not users and not point.call.startswith("service."):  # whose ports are, and not it
            yield Fault(point, "unavailable", "long", first=first)
        if not what.victims:
            continue
        if not point.call.startswith("bus"):
            yield Fault(point, "exception", "good", first=first)
        if not users:
            yield Fault(point, "unanswered", first=first)
            yield Fault(point, "killed after", first=first)
        if not point.call.startswith("bus"):
            yield Fault(point, "slow", first=first)
        if what.numbers and point.call.startswith(USERS_CODE):
            yield Fault(point, "nan", first=first)
            yield Fault(point, "nan", "good", first=first)
        if ".publish " in point.call:
            yield Fault(point, "too large", first=first)
            yield Fault(point, "too large", "good", first=first)


SURVIVED: tuple[Kind, ...] = ("unavailable", "unanswered", "killed", "killed after", "slow")
"""Faults that must change nothing at all."""


AT_START = ("strategies", "history.features_on", "strategy.feature.state", "strategy.feature.chosen")
"""Calls that a service makes when it starts, before it knows anybody's portfolio: it does not start without them."""
FOR_ALL = ("ledger.acknowledge",)
"""Calls that are about many portfolios at once, and whose failure is none of theirs."""


def judge(fault: Fault, seen: Seen, expected: Left) -> Case:
    """Run with a fault, and compare."""
    with capture_logs():
        house = House(fault, seen)
        left = house.run()
    probe = house.probe
    for_all = fault.lasts == "good" and fault.kind == "exception" and fault.point.call in AT_START + FOR_ALL
    hit = {one.name for one in PORTFOLIOS} if for_all or not probe.hit else probe.hit
    other = [one.name for one in PORTFOLIOS if not _same(one.name, left, expected)]
    outcome = _outcome(fault, left, expected, other)
    complaints = [f"two versions: {one}" for one in sorted(set(left.contradictions))]
    if not probe.fired:
        complaints.append("it never came to that")
    complaints += [f"{name} is another than undisturbed" for name in other if name not in hit]
    complaints += [f"{name} stands still" for name in left.marked if left.marked[name] != LAST_US and name not in hit]
    if fault.kind in SURVIVED:
        complaints += [f"{name} is another than undisturbed" for name in other if name in hit]
        if left.dead_letters:
            complaints.append("it is no message's fault, and was dead-lettered")
    if other and outcome == [NOTHING]:
        complaints.append(f"{', '.join(other)} differs, and nobody says so")
    behind = {name for name in hit if left.marked[name] != LAST_US}
    if behind and not (left.dead_letters or left.dropped or left.ended or behind <= left.troubled):
        complaints.append(f"{', '.join(sorted(behind))} stands still, and nobody says so")
    if fault.lasts != "good" and not behind and not left.dead_letters:
        complaints += left.stuck
    return Case(fault, outcome, complaints)


def _same(portfolio: str, left: Left, expected: Left) -> bool:
    return (
        left.messages[portfolio] == expected.messages[portfolio] and left.books[portfolio] == expected.books[portfolio]
    )


NOTHING = "nothing is said"
_EVENTS = {
    "quarantined": "quarantined",
    "decision_missed": "decision missed, recorded",
    "frame_failed": "bar left out, recorded",
    "transition_missing": "transition left out, recorded",
}
_TALLIES = {
    "features_failed": "features unknown, with the reason, counted",
    "online_refused": "not written online, counted",
    "late_frame": "bar left out, counted",
}


def _outcome(fault: Fault, left: Left, expected: Left, other: Sequence[str]) -> list[str]:
    words = []
    if left.ended:
        words.append("the process ends and is started again")
    if left.dead_letters:
        words.append("dead-lettered")
    kinds = {kind for _, kind, _ in left.events - expected.events}
    words += [text for kind, text in _EVENTS.items() if kind in kinds]
    tallied = {event for event, _ in left.tallies.keys() - expected.tallies.keys()}
    words += [text for event, text in _TALLIES.items() if event in tallied]
    if left.holds - expected.holds:
        words.append("decided to hold, with the reason")
    if left.dropped:
        words.append("dropped, counted")
    if any(left.marked[name] != LAST_US for name in left.troubled):
        words.append("stands still and says so")
    if other and not words and fault.kind == "nan" and fault.point.call.startswith("strategy.feature"):
        words.append("taken as not known yet, which is no error")
    if fault.lasts == "long" and left.said:
        words.append("waits and says so")
    if not other:
        words.append("nothing changes" if fault.kind in ("slow", "nan") else "tried again, nothing changes")
    return words or [NOTHING]


def matrix() -> Matrix:
    """Run every case. It takes a minute or two."""
    expected, seen = undisturbed()
    return Matrix(seen, [judge(fault, seen[fault.point], expected) for fault in faults(seen)])


_COLUMNS = (
    "raises, once",
    "raises, for good",
    "answers NaN",
    "is away",
    "is too large",
    "the process is killed",
    "is slow",
)
_HEAD = """# What fails, and what happens

This page is written by `python -m tests.e2e.faults --markdown`, and a test holds it equal to what it measures. Five
services trade four portfolios, three of one universe and one of another in the same partition, with a quarantine, its
release and new models on the way. Each call that a service makes to a port or to somebody's code, and each call that
is made to the service, fails in each of these ways, once, and for good where it is about one portfolio. Afterwards:

- Every portfolio that the failing calls are not about has the messages and the book of a run without faults.
- One that they are about has them too, or what happened to it is recorded, counted and shown.
- What is away or slow, and a process that is killed, changes nothing at all.

A row is a call, by the name of what the service was given and of its method; `bus` is the messaging port, `service`
the handlers themselves. "is away" is for %d seconds, or an answer that is lost; "is slow" is for an hour. An empty
cell is a way in which that call does not fail, or that another row shows. Some things are not in the table. A killed
process may let a new model that has decided nothing yet take over a bar later; the progress of a training is not told
again. No service starts without what it reads at its start, such as the code of every strategy that its portfolios
name: that stops all of them.
"""


def _column(fault: Fault) -> str:
    if fault.kind == "exception":
        return _COLUMNS[1 if fault.lasts == "good" else 0]
    columns = {"nan": 2, "unavailable": 3, "unanswered": 3, "too large": 4, "killed": 5, "killed after": 5, "slow": 6}
    return _COLUMNS[columns[fault.kind]]


def markdown(cases: Sequence[Case]) -> str:
    """The page `docs/failures.md`."""
    rows: dict[str, dict[str, dict[str, list[str]]]] = {}
    for case in cases:
        cells = rows.setdefault(case.fault.point.service, {}).setdefault(case.fault.point.call, {})
        found = cells.setdefault(_column(case.fault), [])
        found += [outcome for outcome in case.outcome if outcome not in found]
    text = [_HEAD % OUTAGE_S]
    for service in SERVICE_TOPICS:
        text += [
            f"## {service.capitalize()}",
            "",
            f"| call | {' | '.join(_COLUMNS)} |",
            "|---" * (len(_COLUMNS) + 1) + "|",
        ]
        alike: dict[tuple[str, ...], list[str]] = {}
        for call, cells in sorted(rows.get(service, {}).items()):
            alike.setdefault(tuple("; ".join(cells.get(column, ())) for column in _COLUMNS), []).append(call)
        for outcomes, calls in alike.items():
            text.append(f"| {', '.join(f'`{call}`' for call in calls)} | {' | '.join(outcomes)} |")
        text.append("")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.faults", description=__doc__)
    parser.add_argument("--markdown", action="store_true", help="print the page docs/failures.md")
    parser.add_argument("--only", default="", metavar="TEXT", help="try only the faults with this in their names")
    wanted = parser.parse_args()
    expected, seen = undisturbed()
    cases = []
    for fault in faults(seen):
        if wanted.only in str(fault):
            cases.append(judge(fault, seen[fault.point], expected))
            if not wanted.markdown:
                print(fault, "|", "; ".join(cases[-1].outcome), "|", "; ".join(cases[-1].complaints), flush=True)
    if wanted.markdown:
        print(markdown(cases), end="")


if __name__ == "__main__":
    main()
