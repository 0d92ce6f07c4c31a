"""A replay beside the running stack: the same bars and models once more, held against what live did.

Four services are stepped in this process over topics, groups, bars and a ledger of their own. They share with live
only the model registry, which they read; which model decides from which bar on is what live recorded, and so are the
frames of bars and their corrections.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import make_url

from tradeloop.cli.client.client import SILENCE_S, Client, Say, given_up
from tradeloop.cli.client.settings import Settings, load_settings
from tradeloop.cli.progress import Stages
from tradeloop.cli.replay.bars import recording_of, write_bars_as_live_saw_them
from tradeloop.cli.replay.report import print_comparison
from tradeloop.common.bar_store.sql import SqlBarStore
from tradeloop.common.bus.kafka import KafkaBus
from tradeloop.common.bus.port import Bus, LogPosition, Partition
from tradeloop.common.clock import SystemClock
from tradeloop.common.errors import UserError
from tradeloop.common.evaluation.comparison import RunComparison
from tradeloop.common.feature_store.memory import MemoryFeatureStore
from tradeloop.common.features import FeatureSet
from tradeloop.common.market import BarArrays, Name, Universe, from_us, to_us
from tradeloop.common.messages import (
    FeaturesComputed,
    ModelActivated,
    PortfolioMarked,
    ReplayRequested,
    SignalGenerated,
)
from tradeloop.common.messages.topics import SERVICE_TOPICS, dead_letter_topic, specs, topic_of
from tradeloop.common.model_store.mlflow import MlflowModelStore
from tradeloop.common.model_store.onnx_policy import OnnxPolicy
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.held import ReadOn
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.readback import forwards, partition_of
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.runtime.service import Service
from tradeloop.common.strategy import load
from tradeloop.execution.adapters.bus_history import BusHistory as ExecutionHistory
from tradeloop.execution.adapters.paper import PaperVenue
from tradeloop.execution.adapters.sql_ledger import SqlLedger
from tradeloop.execution.application import Execution
from tradeloop.inference.adapters.bus_history import BusHistory
from tradeloop.inference.application import Inference
from tradeloop.ingest.adapters.bus_frames import BusFrames
from tradeloop.ingest.adapters.files import read_blocks
from tradeloop.ingest.application import Ingest
from tradeloop.preprocess.adapters.bus_sent import BusSent
from tradeloop.preprocess.application import Preprocess

_POLICY = RunPolicy(attempts=2, retry_delay_s=0.05, commit_interval_s=30.0)
"""It commits seldom: a replay that was cut short begins anew."""
_NAME: TypeAdapter[str] = TypeAdapter(Name)
_LOOK_S = 0.5
"""Between two looks at how far it is."""
_PAUSE_S = 0.0005
"""Between two steps when all services wait for Kafka."""


@dataclass(frozen=True)
class SideRun:
    """How a replay beside the stack is called, and where its ledger is."""

    name: str
    out: Path
    """Folder of its bars and, where no URL is given, of its ledger."""
    ledger_url: str | None
    again: bool
    """Whether topics and ledger file of this name may be deleted first."""

    def file(self, what: str) -> Path:
        """A SQLite file of this replay."""
        return self.out / f"{self.name}.{what}.db"

    def prefix(self, settings: Settings) -> str:
        """The prefix of its topics and groups. Raises `UserError` for a name that topics cannot have."""
        try:
            return f"{settings.kafka.prefix}{_NAME.validate_python(self.name)}."
        except ValidationError:
            raise UserError(
                f"--prefix {self.name}: give a name of lower-case letters, digits, - and _, such as check-1"
            ) from None


def replay_side_by_side(
    live: Client,
    stages: Stages,
    portfolios: Sequence[Portfolio],
    bars: BarArrays,
    request: ReplayRequested,
    run: SideRun,
) -> bool:
    """Trade bars again and print how that compares. Returns whether it is what live did.

    `request` replays exactly `bars`, which is what live traded. Raises `UserError` for a name that is taken.
    """
    settings = load_settings()
    if "mlflow_tracking_uri" not in settings.model_fields_set:
        raise UserError(
            "say where the models are: set TRADELOOP_MLFLOW_TRACKING_URI to what inference has as "
            "INFERENCE_MLFLOW_TRACKING_URI"
        )
    own = {"prefix": run.prefix(settings), "group_instance_id": None}
    with closing(KafkaBus(settings.kafka.model_copy(update=own))) as bus:
        ledger_url = _make_room(bus, settings, run, portfolios)
        with stages.stage(f"Trading beside it as {run.name}", len(bars)) as report:
            began = time.monotonic()
            bars_url, bars, revisions = _bars_as_traded(live, settings, portfolios, bars, run)
            with _services(live.bus, bus, settings, portfolios, (bars_url, ledger_url)) as runners:
                _send(bus, request)
                for decided in _pumped(runners, bus, stages.say, portfolios, bars, ledger_url, request.speed):
                    report(decided)
            rate = len(bars) / (time.monotonic() - began)
        with stages.stage("Comparing with live"):
            comparison = RunComparison(live.bus, bus, portfolios, int(bars.close_us[0]), int(bars.close_us[-1]))
    print_comparison(comparison)
    corrections = f"{revisions:,} correction{'s' * (revisions != 1)} of bars"
    print(f"{len(bars):,} bars, {corrections}, {rate:,.0f} bars/s; ledger {_shown(ledger_url)}")
    return comparison.holds


def traded_live(live: Client, portfolios: Sequence[Portfolio], bars: BarArrays) -> BarArrays:
    """The bars that live has traded. Says what is left out, and what live began with if that was before.

    Raises `UserError` when there are none.
    """
    began_us, decided_us = _span_us(live, portfolios)
    rows = np.flatnonzero((bars.close_us >= began_us) & (bars.close_us <= decided_us))
    between = f"live traded the bars that closed from {_minute(began_us)} to {_minute(decided_us)}"
    if not len(rows):
        raise UserError(f"{between}: none of them is in the range")
    if len(rows) < len(bars):
        live.say(f"{between}; {len(bars) - len(rows):,} others are left out")
    bars = bars.slice(int(rows[0]), int(rows[-1]) + 1)
    for portfolio in portfolios:
        _say_start(live, portfolio, int(bars.close_us[0]), began_us)
    return bars


def _span_us(live: Client, portfolios: Sequence[Portfolio]) -> tuple[int, int]:
    """The closes of the first bar that live marked and of the last one that it decided, as far as Kafka holds them."""
    spans = [_span_of(live, portfolio) for portfolio in portfolios]
    began, decided = zip(*spans, strict=True)
    if len(set(began)) > 1:
        names = ", ".join(portfolio.name for portfolio in portfolios)
        raise UserError(f"portfolios {names} began at different bars: replay each alone, with --portfolio")
    return min(began), min(decided)


def _span_of(live: Client, portfolio: Portfolio) -> tuple[int, int]:
    name, universe = portfolio.name, portfolio.universe
    marks = (mark for _, mark in forwards(live.bus, PortfolioMarked, universe.name) if mark.portfolio == name)
    first = next(marks, None)
    last = live.newest(SignalGenerated, universe.name, lambda signal: signal.portfolio == name)
    if first is None or last is None:
        raise UserError(f"portfolio {name} has not traded live, as far as Kafka still knows: nothing to compare with")
    if not BusHistory(live.bus).activations(universe, name):
        raise UserError(f"portfolio {name} has never had a model: there is nothing to compare")
    return to_us(first.time), to_us(last.time)


def _say_start(live: Client, portfolio: Portfolio, first_us: int, began_us: int) -> None:
    """Say so where live's book did not start with this bar, so that the two are bound to differ."""
    universe, name = portfolio.universe.name, portfolio.name
    if first_us > began_us:
        before = live.newest(
            PortfolioMarked, universe, lambda mark: mark.portfolio == name and to_us(mark.time) < first_us
        )
        if before is not None:
            held = sum(position.quantity != 0.0 for position in before.positions)
            live.say(
                f"{name}: live's book did not start in this range: before it, it had {held} positions and an equity "
                f"of {before.equity:,.2f}; the replay starts flat with {portfolio.capital:,.2f}, its window without "
                "features: expect differences"
            )
        return
    partition = partition_of(live.bus, topic_of(PortfolioMarked).name, universe)
    if live.bus.begin_offsets(partition.topic)[partition]:
        live.say(f"{name}: Kafka no longer holds what came before: whether live's book started here is not known")


def _bars_as_traded(
    live: Client, settings: Settings, portfolios: Sequence[Portfolio], bars: BarArrays, run: SideRun
) -> tuple[str, BarArrays, int]:
    """The URL of a bar store of the replay's own, with the bars that live had before; the bars that live decided on,
    and how many corrections of them went out meanwhile."""
    file, universe = run.file("bars").absolute(), portfolios[0].universe
    _remove(file)
    feature_sets = [load(portfolio.strategy).feature_set for portfolio in portfolios]
    recording = recording_of(live, universe, feature_sets, bars)
    with closing(SqlBarStore(settings.database_url.get_secret_value(), SystemClock())) as stored:
        bars = write_bars_as_live_saw_them(live, stored, universe, feature_sets, bars, recording, file)
    return f"sqlite:///{file}", bars, recording.revisions


def _remove(file: Path) -> None:
    """Remove a SQLite file, if it is there, with what belongs to it."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{file}{suffix}").unlink(missing_ok=True)


def _make_room(bus: KafkaBus, settings: Settings, run: SideRun, portfolios: Sequence[Portfolio]) -> str:
    """Create the topics of the replay; gives the URL of its ledger. Deletes what `--again` allows, else raises."""
    wanted = specs(SERVICE_TOPICS)
    left = [spec.name for spec in wanted if bus.partitions(spec.name)]
    file = run.file("ledger")
    run.out.mkdir(parents=True, exist_ok=True)
    there = [*(["topics"] if left else []), *([str(file)] if run.ledger_url is None and file.exists() else [])]
    if there and not run.again:
        raise UserError(
            f"a replay {run.name} left {' and '.join(there)}: take another --prefix, or --again, which deletes them"
        )
    if run.ledger_url is not None:
        _check_empty(run.ledger_url, settings, portfolios)
    else:
        _remove(file)
    bus.delete_topics(left)
    bus.create_topics([replace(spec, partitions=1) for spec in wanted])  # there is one key
    return run.ledger_url or f"sqlite:///{file.absolute()}"


def _check_empty(url: str, settings: Settings, portfolios: Sequence[Portfolio]) -> None:
    if url == settings.ledger_url.get_secret_value():
        raise UserError("--ledger-url is the ledger of the running stack: a replay needs one of its own")
    with closing(SqlLedger(url)) as ledger:
        for name, book in ledger.load([portfolio.name for portfolio in portfolios]).items():
            if book.marked_us >= 0:
                raise UserError(f"the ledger {_shown(url)} has a book of {name} already: give an empty one")


class HistoryAsRecorded:
    """The history of a replay: models as live activated them, all else as the replay itself published it."""

    def __init__(self, live: BusHistory, own: BusHistory) -> None:
        self._live, self._own = live, own

    def features_before(
        self, time_us: int, position: LogPosition | None, universe: Universe, feature_set: FeatureSet, rows: int
    ) -> Sequence[FeaturesComputed]:
        return self._own.features_before(time_us, position, universe, feature_set, rows)

    def features_on(self, universe: Universe, feature_set: FeatureSet) -> ReadOn[FeaturesComputed]:
        return self._own.features_on(universe, feature_set)

    def activations(self, universe: Universe, portfolio: str) -> Sequence[ModelActivated]:
        return self._live.activations(universe, portfolio)

    def decided(self, universe: Universe, portfolio: str) -> SignalGenerated | None:
        return self._own.decided(universe, portfolio)

    def marked(self, universe: Universe, portfolio: str) -> tuple[PortfolioMarked, LogPosition] | None:
        return self._own.marked(universe, portfolio)

    def forget(self) -> None:
        self._live.forget()
        self._own.forget()

    def close(self) -> None:
        self._own.close()
        self._live.close()


@contextmanager
def _services(
    live: Bus, bus: Bus, settings: Settings, portfolios: Sequence[Portfolio], urls: tuple[str, str]
) -> Iterator[Sequence[Runner]]:
    """Ingest, preprocess, inference and execution, to be stepped. `urls` are those of bars and ledger."""
    clock, (url, ledger_url) = SystemClock(), urls
    pairs = [(portfolio.universe, portfolio.strategy) for portfolio in portfolios]
    models = MlflowModelStore(settings.mlflow_tracking_uri.get_secret_value())
    ledger = SqlLedger(ledger_url, bus.identity)
    services: list[Service] = [
        Ingest(SqlBarStore(url, clock), read_blocks, BusFrames(bus), clock, record=BusFrames(live)),
        Preprocess(pairs, load, SqlBarStore(url, clock), MemoryFeatureStore(), clock, BusSent(bus, clock)),
        Inference(portfolios, load, models, OnnxPolicy, HistoryAsRecorded(BusHistory(live), BusHistory(bus)), clock),
        Execution(portfolios, load, PaperVenue, ledger, ExecutionHistory(bus, live), clock),
    ]
    with ExitStack() as started:
        runners = []
        for service in services:
            runners.append(Runner(service, bus, clock, _POLICY))
            started.callback(runners[-1].close)
        yield runners


def _send(bus: Bus, request: ReplayRequested) -> None:
    with closing(Client(bus, SystemClock(), lambda _: None)) as stack:
        stack.send(request)


def _pumped(
    runners: Sequence[Runner],
    bus: Bus,
    say: Say,
    portfolios: Sequence[Portfolio],
    bars: BarArrays,
    ledger_url: str,
    speed: float | None,
) -> Iterator[int]:
    """Step the services until the ledger has a decision on the last bar for each book; how many bars, now and then.

    Raises what a service gave up on.
    """
    last_us, universe = int(bars.close_us[-1]), portfolios[0].universe
    signals = Partition(topic_of(SignalGenerated).name, 0)
    silence_s = SILENCE_S + (universe.timeframe.seconds / speed if speed else 0.0)
    with closing(SqlLedger(ledger_url)) as ledger:
        look_s = moved_s = time.monotonic()
        said = False
        while True:
            moved, now_s = sum(runner.step() for runner in runners), time.monotonic()
            if moved:
                moved_s, said = now_s, False
            else:
                time.sleep(_PAUSE_S)
            if now_s < look_s:
                continue
            look_s = now_s + _LOOK_S
            _raise_given_up(runners, bus)
            decided = bus.end_offsets(signals.topic)[signals] // len(portfolios)
            yield min(decided, len(bars))
            if decided >= len(bars):
                books = ledger.load([portfolio.name for portfolio in portfolios])
                if all(book.decided_us >= last_us for book in books.values()):
                    return
            if not said and now_s - moved_s >= silence_s:
                why = "; ".join(f"{runner.service.name}: {one}" for runner in runners for one in runner.not_ready())
                say(f"nothing has moved for {silence_s:.0f} s: {why or 'no service says why'}")
                said = True


def _raise_given_up(runners: Sequence[Runner], bus: Bus) -> None:
    for runner in runners:
        if runner.counters.dead_letters:
            for kind in runner.service.consumes:
                partition = Partition(dead_letter_topic(topic_of(kind).name, runner.service.name), 0)
                for record in bus.read(partition, 0, 1):
                    raise given_up(runner.service.name, record)


def _minute(time_us: int) -> str:
    return f"{from_us(time_us):%Y-%m-%d %H:%M} UTC"


def _shown(url: str) -> str:
    return make_url(url).render_as_string(hide_password=True)
