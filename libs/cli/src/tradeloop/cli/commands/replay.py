"""`tradeloop replay`: stored bars through a running stack as if they closed now, and what came of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import make_url

from tradeloop.cli.client.client import SILENCE_S, Client, given_up, running
from tradeloop.cli.client.settings import load_settings
from tradeloop.cli.progress import Stages, quiet_logs
from tradeloop.cli.span import Span, span_us
from tradeloop.common.bar_store.sql import SqlBarStore
from tradeloop.common.bus.port import BusUnavailable, Record
from tradeloop.common.clock import SystemClock
from tradeloop.common.errors import UserError
from tradeloop.common.market import EVER_US, BarArrays, TimeRange, Universe, from_us, to_us
from tradeloop.common.messages import (
    BackfillCompleted,
    BackfillRequested,
    BarFrame,
    FeaturesComputed,
    OrderFilled,
    OrderUpdated,
    PortfolioEvent,
    PortfolioMarked,
    ReplayRequested,
    RiskVerdict,
    SignalGenerated,
    Transition,
)
from tradeloop.common.messages.ingest import Reading
from tradeloop.common.messages.topics import derived_id, topic_of
from tradeloop.common.portfolio import Portfolio, PortfolioSettings, read_portfolio
from tradeloop.common.runtime.readback import Tail, of_kind

_FOLLOWED = (PortfolioMarked, SignalGenerated, OrderUpdated, OrderFilled, RiskVerdict, PortfolioEvent, Transition)


def run_replay(
    portfolio_file: Path | None,
    universe: str | None,
    folder: Path | None,
    file: Path | None,
    span: Span,
    speed: float | None,
    prefix: str | None,
    ledger: tuple[Path, str | None],
    again: bool,
    reading: Reading,
) -> None:
    """Replay and print; see `tradeloop replay --help`. Raises `UserError` for wrong input, and exits as said there."""
    quiet_logs()
    stages = Stages()
    start_us, end_us = span_us(span)
    if speed is not None and not speed > 0:
        raise UserError(f"--speed {speed:g}: give a positive number, such as 60 for an hour a minute")
    if prefix is not None and file is not None:
        raise UserError("--bars loads into the running stack, which a replay with --prefix leaves alone: do it before")
    portfolios = chosen(portfolio_file, universe, folder)
    with running(stages.say) as stack:
        if file is not None:
            with stages.stage("Loading bars"):
                _backfill(stack, portfolios[0].universe, file, reading)
        bars = stored_bars(portfolios[0].universe, start_us, end_us)
        if prefix is not None:
            from tradeloop.cli.replay.side_by_side import SideRun, replay_side_by_side, traded_live

            bars = traded_live(stack, portfolios, bars)
            request = request_for(portfolios[0].universe, bars, speed)
            same = replay_side_by_side(stack, stages, portfolios, bars, request, SideRun(prefix, *ledger, again))
        else:
            same = replay_live(stack, stages, portfolios, bars, speed)
    if not same:
        raise typer.Exit(1)


def chosen(file: Path | None, universe: str | None, folder: Path | None) -> tuple[Portfolio, ...]:
    """The portfolios to replay for, all of one universe."""
    if (file is None) == (universe is None):
        raise UserError("say what to replay: either --portfolio FILE.yaml, or --universe NAME with --portfolios FOLDER")
    if file is not None:
        return (read_portfolio(file),)
    if folder is None:
        raise UserError("say where the portfolios are: --portfolios FOLDER, or TRADELOOP_PORTFOLIO_FOLDER")
    known = PortfolioSettings(portfolio_folder=folder).read_portfolios()
    found = tuple(portfolio for portfolio in known if portfolio.universe.name == universe)
    if not found:
        names = ", ".join(sorted({portfolio.universe.name for portfolio in known})) or "none at all"
        raise UserError(f"no portfolio in {folder} trades a universe {universe}; there is {names}")
    return found


def _backfill(stack: Client, universe: Universe, file: Path, reading: Reading) -> None:
    if len(universe.instruments) > 1:
        raise UserError(
            f"universe {universe.name} has {len(universe.instruments)} instruments and {file.name} the bars of one: "
            "load them by other means, and leave --bars out"
        )
    path = str(file.absolute())
    identity = derived_id("backfill", universe.name, path)
    files = dict.fromkeys(universe.ids, path)
    readings = {} if reading == Reading() else dict.fromkeys(universe.ids, reading)
    request = BackfillRequested(request_id=identity, universe=universe, files=files, readings=readings)
    stack.ask(request, BackfillCompleted)


def stored_bars(universe: Universe, start_us: int, end_us: int) -> BarArrays:
    """The stored bars of a universe that open in a range. Raises `UserError` where there are none."""
    settings = load_settings()
    if "database_url" not in settings.model_fields_set:
        raise UserError(
            "say where the stack's bars are: set TRADELOOP_DATABASE_URL to what ingest has as INGEST_DATABASE_URL"
        )
    url = settings.database_url.get_secret_value()
    with closing(SqlBarStore(url, SystemClock())) as store:
        bars = store.read(universe.ids, universe.timeframe, start_us, end_us)
    if not len(bars):
        within = "" if (start_us, end_us) == (-EVER_US, EVER_US) else " in this range"
        raise UserError(
            f"no {universe.timeframe} bars of universe {universe.name} are stored{within} in "
            f"{make_url(url).render_as_string(hide_password=True)}: load them with --bars FILE"
        )
    return bars


def request_for(universe: Universe, bars: BarArrays, speed: float | None) -> ReplayRequested:
    """The request that replays exactly these bars."""
    span = TimeRange(start=from_us(int(bars.open_us[0])), end=from_us(int(bars.close_us[-1])))
    identity = derived_id("replay", universe.name, span.start, span.end, speed)
    return ReplayRequested(request_id=identity, universe=universe, range=span, speed=speed)


@dataclass
class Tally:
    """The messages about one portfolio, each counted once however often it came."""

    reasons: Counter[str] = field(default_factory=Counter)
    """Signals by what they were decided by."""
    orders: set[str] = field(default_factory=set)
    fills: set[str] = field(default_factory=set)
    verdicts: dict[str, str] = field(default_factory=dict)
    """The code of each verdict of the risk gate, denials and halts, by the verdict's identity."""
    events: dict[str, PortfolioEvent] = field(default_factory=dict)
    """Failures, missed decisions and effects of commands, each by its identity."""
    transitions: set[str] = field(default_factory=set)
    equity: float | None = None
    """The equity at the last mark."""
    marked_us: int = -1
    decided_us: int = -1
    marks: int = 0

    def take(self, records: Sequence[Record], portfolio: str) -> None:
        """Count what is about this portfolio."""
        for mark in of_kind(records, PortfolioMarked):
            if mark.portfolio == portfolio and (time_us := to_us(mark.time)) > self.marked_us:
                self.marked_us, self.equity = time_us, mark.equity
                self.marks += 1
        for signal in of_kind(records, SignalGenerated):
            if signal.portfolio == portfolio and (time_us := to_us(signal.time)) > self.decided_us:
                self.decided_us = time_us
                self.reasons[signal.reason] += 1
        self.orders.update(one.order_id for one in of_kind(records, OrderUpdated) if one.portfolio == portfolio)
        self.fills.update(one.fill_id for one in of_kind(records, OrderFilled) if one.portfolio == portfolio)
        found = (one for one in of_kind(records, RiskVerdict) if one.portfolio == portfolio)
        self.verdicts.update((one.identity, one.code) for one in found)
        for event in of_kind(records, PortfolioEvent):
            if event.portfolio == portfolio:
                self.events[event.identity] = event
                if event.kind == "decision_missed":
                    self.decided_us = max(self.decided_us, to_us(event.time))
        self.transitions.update(one.identity for one in of_kind(records, Transition) if one.portfolio == portfolio)


def replay_live(
    stack: Client, stages: Stages, portfolios: Sequence[Portfolio], bars: BarArrays, speed: float | None
) -> bool:
    """Trade bars on the stack's own topics. Returns whether nothing was given up on, missed or failed."""
    done_us = min(_marked_us(stack, portfolio) for portfolio in portfolios)
    traded = int(np.searchsorted(bars.close_us, done_us, side="right"))
    if traded:
        last = f"up to {from_us(done_us):%Y-%m-%d %H:%M} UTC"
        if traded == len(bars):
            stages.say(f"All {len(bars):,} bars were traded already, {last}: a new replay of them needs --prefix")
            return True
        stages.say(f"{traded:,} of {len(bars):,} bars were traded already, {last}; the others follow")
        bars = bars.slice(traded, len(bars))
    with (
        closing(_Follower(stack, portfolios, bars, speed)) as follower,
        stages.stage("Trading on the running stack", len(bars)) as report,
    ):
        began = time.monotonic()
        stack.send(follower.request)
        for decided in follower.follow():
            report(decided)
        rate = len(bars) / (time.monotonic() - began)
    _print(follower.tallies, bars, follower.dead, rate)
    return not follower.dead and not any(tally.events for tally in follower.tallies.values())


def _marked_us(stack: Client, portfolio: Portfolio) -> int:
    """The close of the last bar that a book has seen, as far as the topic says; -1 for none."""
    mark = stack.newest(PortfolioMarked, portfolio.universe.name, lambda mark: mark.portfolio == portfolio.name)
    return -1 if mark is None else to_us(mark.time)


class _Follower:
    """Follows a replay until its last bar is decided for every portfolio."""

    def __init__(self, stack: Client, portfolios: Sequence[Portfolio], bars: BarArrays, speed: float | None) -> None:
        self._stack, self._universe, self._bars = stack, portfolios[0].universe, bars
        self.request = request_for(self._universe, bars, speed)
        self.tallies = {portfolio.name: Tally() for portfolio in portfolios}
        self.dead: list[Record] = []
        """Messages of this universe that a service gave up on meanwhile."""
        self._tail = Tail(stack.bus, {topic_of(kind).name: self._universe.name for kind in _FOLLOWED})
        self._dead = stack.dead_letters(self._universe.name)
        self._silence_s = SILENCE_S + (self._universe.timeframe.seconds / speed if speed else 0.0)

    def follow(self) -> Iterator[int]:
        """How many bars are decided, now and then.

        Raises what made ingest refuse the request, or a service give up on a message without which nothing goes on.
        """
        last_us, clock = int(self._bars.close_us[-1]), self._stack.clock
        heard_s, was_silent = clock.monotonic(), False
        for records in self._stack.listen(self._tail, "the stack", self._awaited, self._silence_s):
            if records:
                heard_s, was_silent = clock.monotonic(), False
                for name, tally in self.tallies.items():
                    tally.take(records, name)
                yield int(np.searchsorted(self._bars.close_us, self._decided_us, side="right"))
                continue
            self._look_for_dead_letters()
            if self._decided_us >= last_us and was_silent:
                return  # two turns of silence later: the orders of the last decision are there, too
            was_silent = True
            if self.dead and clock.monotonic() - heard_s >= self._silence_s:
                raise _why(self.dead[0])

    def close(self) -> None:
        self._tail.close()
        self._dead.close()

    @property
    def _decided_us(self) -> int:
        return min(tally.decided_us for tally in self.tallies.values())

    def _look_for_dead_letters(self) -> None:
        try:
            found = self._dead.new()
        except BusUnavailable:
            return  # who listens says so
        for record in found:
            if record.value == self.request.encode():
                raise _why(record)
        self.dead += found

    def _awaited(self) -> str:
        """The service that must speak next, by the last bar that each spoke of."""
        name, base = self._universe.name, self._universe.timeframe
        frame = self._stack.newest(BarFrame, name, lambda frame: frame.timeframe is base and not frame.revision)
        features = self._stack.newest(FeaturesComputed, name)
        marked_us = min(tally.marked_us for tally in self.tallies.values())
        if frame is None or to_us(frame.close_time) <= self._decided_us:
            return "ingest"
        if marked_us <= self._decided_us:
            return "execution"
        return "preprocess" if features is None or to_us(features.time) < marked_us else "inference"


def _why(record: Record) -> Exception:
    return given_up(record.topic.rpartition(".")[2], record)


def _print(tallies: Mapping[str, Tally], bars: BarArrays, dead: Sequence[Record], rate: float) -> None:
    """The summary, a column for each portfolio."""
    table = Table("", *tallies, box=None, padding=(0, 2))
    for column in table.columns[1:]:
        column.justify = "right"
    columns = list(tallies.values())
    held = sorted({reason for tally in columns for reason in tally.reasons} - {"policy"})
    codes = sorted({code for tally in columns for code in tally.verdicts.values()})
    kinds = sorted({event.kind for tally in columns for event in tally.events.values()})
    happened = [Counter(event.kind for event in tally.events.values()) for tally in columns]
    rows: dict[str, Sequence[int]] = {
        "bars": [tally.marks for tally in columns],
        "signals": [tally.reasons.total() for tally in columns],
        **{f"  held, {reason.replace('_', ' ')}": [tally.reasons[reason] for tally in columns] for reason in held},
        "orders": [len(tally.orders) for tally in columns],
        "fills": [len(tally.fills) for tally in columns],
        **{f"  risk gate, {code}": [Counter(tally.verdicts.values())[code] for tally in columns] for code in codes},
        "transitions": [len(tally.transitions) for tally in columns],
        **{kind.replace("_", " "): [count[kind] for count in happened] for kind in kinds},
    }
    for name, counts in rows.items():
        table.add_row(name, *(f"{count:,}" for count in counts))
    table.add_row("final equity", *("" if tally.equity is None else f"{tally.equity:,.2f}" for tally in columns))
    console = Console()
    console.print(table)
    console.print(
        f"{len(bars):,} bars to {from_us(int(bars.close_us[-1])):%Y-%m-%d %H:%M} UTC, {rate:,.0f} bars/s, "
        f"dead letters: {len(dead)}",
        soft_wrap=True,
    )
    for name, tally in tallies.items():
        for event in list(tally.events.values())[:1]:
            console.print(
                f"{name}: {event.kind.replace('_', ' ')} at the bar of {event.time.isoformat()}: {event.reason}",
                soft_wrap=True,
                markup=False,
            )
    if dead:
        console.print(f"The first dead letter: {_why(dead[0])}", soft_wrap=True, markup=False)
