"""`tradeloop bars repair`: what `tradeloop bars check` names is mended, as far as the command says how."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tradeloop.cli.commands.bars import CALENDARS, BarsUrl, End, Start, calendar_of, chosen_bars, raw_bars, timeframe_of
from tradeloop.cli.commands.fetch import Configuration, Url, open_venue
from tradeloop.cli.commands.models import DEFAULT_HOME, Home
from tradeloop.common.errors import UserError

if TYPE_CHECKING:
    from tradeloop.cli.client.client import Client
    from tradeloop.cli.progress import Stages
    from tradeloop.cli.stored import StoredBars
    from tradeloop.common.market import Calendar, Instrument, Series, Timeframe, TimeRange, Universe
    from tradeloop.common.market.faults import Fault
    from tradeloop.ingest.application.repair import Mended, Range
    from tradeloop.ingest.ports import MarketSource

_DROPPED = ("price", "range", "volume", "time", "outlier", "stale")
"""The kinds of faults whose bars may be dropped."""
_ASKED_AT_ONCE = 1_000
"""Ranges of one request to a running stack."""


def repair(
    file: Annotated[
        str | None, typer.Argument(help="A file of bars, FILE#SYMBOL for one instrument of several: needs --out.")
    ] = None,
    instruments: Annotated[
        list[str] | None,
        typer.Option("--instrument", help="Mend stored bars of VENUE:SYMBOL, of each timeframe; again for more."),
    ] = None,
    venue: Annotated[
        str | None,
        typer.Option("--source", help="Ask this venue, which is that of the instruments, for missing and odd bars."),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", help=f"Drop bars with faults of this kind: {', '.join(_DROPPED)}; again for more."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Of a file: the mended one to write, .csv or .parquet.")
    ] = None,
    home: Home = DEFAULT_HOME,
    bars_url: BarsUrl = None,
    start: Start = None,
    end: End = None,
    calendar: Annotated[
        str | None, typer.Option("--calendar", help=f"When bars are due: {CALENDARS} Without it: as for `check`.")
    ] = None,
    timeframe: Annotated[str | None, typer.Option("--timeframe", help="As for `check`.")] = None,
    url: Url = None,
    sources: Configuration = None,
    portfolio_file: Annotated[
        Path | None, typer.Option("--portfolio", help="Of a running stack: the universe of this portfolio.")
    ] = None,
    universe: Annotated[
        str | None,
        typer.Option("--universe", help="Of a running stack: ingest asks the venues of this universe's instruments."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--portfolios", envvar="TRADELOOP_PORTFOLIO_FOLDER", help="Folder of the stack's portfolios."),
    ] = None,
) -> None:
    """Mend what `check` names, by the means given here and no others: exit 0 where no fault is left, else 1.

    Missing and odd bars are asked of their venue anew, and taken where the bars beside them agree with those that are
    stored. Dropped bars are kept aside. No price is made up. It may be killed at any moment: the next run goes on.
    On a running stack name a universe: what went out otherwise goes out in its next revision.
    """
    from tradeloop.cli.commands.replay import chosen
    from tradeloop.cli.progress import Stages, quiet_logs
    from tradeloop.cli.stored import ASSUMED, opened

    quiet_logs()
    given, length = None if calendar is None else calendar_of(calendar), timeframe_of(timeframe)
    kinds = _kinds(drop or ())
    if portfolio_file is not None or universe is not None:
        if file or instruments or venue or kinds or out or url or sources or timeframe:
            raise UserError(
                "ingest of a running stack asks the venues of the universe from its own INGEST_SOURCES, and drops no "
                "bars: give --from, --to, --calendar, --dry-run and --bars-url alone"
            )
        if bars_url is None:
            raise UserError("say where the running stack has its bars: --bars-url, or TRADELOOP_DATABASE_URL")
        traded = chosen(portfolio_file, universe, folder)[0].universe
        with opened(home, bars_url) as stored:
            raise typer.Exit(_mend_on_stack(stored, traded, given, (start, end), dry_run))
    if (file is None) == (not instruments):
        raise UserError("say what to mend: a file, or --instrument VENUE:SYMBOL for stored bars")
    if not kinds and venue is None:
        raise UserError("say how to mend: --source VENUE for missing and odd bars, --drop KIND for those of a kind")
    if file is not None:
        if venue or start or end:
            raise UserError("a file is mended as a whole and by --drop alone: leave --source, --from and --to out")
        raise typer.Exit(_mend_file(file, out, length, given or ASSUMED, kinds, dry_run))
    if out is not None:
        raise UserError("--out is for a file: stored bars are mended where they are")
    assert instruments is not None
    for name in instruments:
        if venue is not None and name.partition(":")[0] != venue:
            raise UserError(f"--instrument {name}: its bars are not from {venue}, so {venue} cannot tell what is right")
    stages, left = Stages(), 0
    with opened(home, bars_url) as stored:
        if not stored.may_change:
            raise UserError(f"{stored.place} is of a running stack: name its --universe, and leave --bars-url out")
        for name, bars, found in list(chosen_bars(stored, instruments, length, (start, end))):
            work = _Work(stored, stages, name, found, given or stored.calendar(name) or ASSUMED, (start, end))
            if dry_run:
                left += work.would(bars, venue, kinds)
            elif venue is None:
                left += work.do(None, None, kinds)
            else:
                with open_venue(venue, sources, url) as source:
                    [terms] = source.instruments([name.partition(":")[2]])
                    left += work.do(source, terms, kinds)
    raise typer.Exit(1 if left else 0)


def _kinds(given: Sequence[str]) -> frozenset[str]:
    for kind in given:
        if kind not in _DROPPED:
            more = ": no bar is there to drop" if kind == "gap" else ": --actions adjusts for it" * (kind == "split")
            raise UserError(f"--drop {kind}{more}: give {', '.join(_DROPPED)}")
    return frozenset(given)


class _Work:
    """The repair of the stored bars of one instrument and timeframe."""

    def __init__(
        self,
        stored: StoredBars,
        stages: Stages,
        name: str,
        timeframe: Timeframe,
        calendar: Calendar,
        span: tuple[str | None, str | None],
    ) -> None:
        self._stored, self._stages, self.name, self._timeframe = stored, stages, name, timeframe
        self._calendar, self._span = calendar, span
        self._said = f"{name}@{timeframe}"

    @property
    def venue(self) -> str:
        return self.name.partition(":")[0]

    def ranges(self, bars: Series) -> list[Range]:
        """Where bars are missing or odd."""
        from tradeloop.ingest.application.repair import doubtful

        missing, odd = doubtful(bars, self._faults(bars), self._timeframe, self._calendar)
        return sorted([*missing, *odd])

    def would(self, bars: Series, venue: str | None, kinds: frozenset[str]) -> int:
        """Say what would be done; whether there are any faults."""
        from tradeloop.ingest.application.repair import doubtful

        found = self._faults(bars)
        if venue is not None:
            missing, odd = doubtful(bars, found, self._timeframe, self._calendar)
            for what, ranges in (("missing", missing), ("odd", odd)):
                for each in ranges:
                    typer.echo(f"{self._said}, {self._range(*each)}: {what}: would be asked of {venue}")
        for open_us, reason in _dropped(bars, found, kinds).items():
            typer.echo(f"{self._said}, {_time(open_us)}: would be dropped{' unless mended' * bool(venue)}: {reason}")
        typer.echo(f"{self._said}: {len(found):,} faults, nothing was changed")
        return len(found)

    def do(self, source: MarketSource | None, terms: Instrument | None, kinds: frozenset[str]) -> int:
        """Mend, and say what came of it; how many faults are left."""
        counts = dict.fromkeys(("added", "changed", "dropped"), 0)
        if source is not None and terms is not None:
            for mended in self._mended(source, terms):
                counts["added"] += mended.added
                counts["changed"] += len(mended.changed)
                for line in mended.lines(self._timeframe):
                    typer.echo(f"{self._said}, {line}")
        while dropped := _dropped(bars := self.read(), self._faults(bars), kinds):
            if len(dropped) == len(bars["open_us"]):
                raise UserError(f"{self._said}: every bar of the range would be dropped: see what `bars check` says")
            self._stored.store.set_aside(self.name, {self._timeframe: dropped})
            counts["dropped"] += len(dropped)
            for open_us, reason in dropped.items():
                typer.echo(f"{self._said}, {_time(open_us)}: dropped: {reason}")
        self._longer()
        return self.left(self.read(), ", ".join(f"{count:,} bars {what}" for what, count in counts.items()))

    def left(self, bars: Series, done: str = "done") -> int:
        """Say which faults are left; how many."""
        found = Counter(one.kind for one in self._faults(bars))
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(found.items()))
        typer.echo(f"{self._said}: {done}; {kinds or 'no faults'} left")
        return found.total()

    def _mended(self, source: MarketSource, terms: Instrument) -> Iterator[Mended]:
        from tradeloop.ingest.application.fetch import Progress
        from tradeloop.ingest.application.repair import mend

        store, ranges = self._stored.store, self.ranges(self.read())
        aside = store.aside(self.name, self._timeframe)
        with self._stages.stage(f"Asking {source.venue}", max(len(ranges), 1)) as report:
            for one in mend(source, store, terms, self._timeframe, ranges, aside, time.sleep):
                if isinstance(one, Progress):
                    self._stages.say(f"{one.reason}: trying again in {one.waits_s:.1f} s")
                    continue
                report(sum(start_us <= one.start_us for start_us, _ in ranges))
                yield one

    def _longer(self) -> None:
        """Make the longer bars anew that the home's universes made of these, also those that a killed run left."""
        from tradeloop.common.market import EVER_US, resample
        from tradeloop.ingest.application.stored import write
        from tradeloop.ingest.domain import corrections

        store = self._stored.store
        base = store.read([self.name], self._timeframe, -EVER_US, EVER_US)
        for longer, days in self._stored.longer(self.name, self._timeframe).items():
            made = resample(base, self._timeframe, longer, days=days)
            there = store.read([self.name], longer, -EVER_US, EVER_US)
            last_us = int(made.open_us[-1]) if len(made) else EVER_US
            gone = set(there.open_us[there.open_us <= last_us].tolist()) - set(made.open_us.tolist())
            if gone:
                store.set_aside(self.name, {longer: dict.fromkeys(gone, f"no {self._timeframe} bars of it are left")})
            changed = len(corrections(made, there))
            if changed:
                write(store, longer, made)
            if changed or gone:
                typer.echo(f"{self.name}@{longer}: {changed:,} bars changed and {len(gone):,} dropped with them")

    def read(self) -> Series:
        [(_, bars, _)] = chosen_bars(self._stored, [self.name], self._timeframe, self._span)
        return bars

    def _faults(self, bars: Series) -> list[Fault]:
        from tradeloop.common.market.faults import faults

        return faults(bars, self._timeframe, self._calendar)

    def _range(self, start_us: int, end_us: int) -> str:
        last_us = end_us - self._timeframe.us
        return _time(start_us) + (f" to {_time(last_us)}" if last_us > start_us else "")


def _dropped(bars: Series, found: Sequence[Fault], kinds: frozenset[str]) -> Mapping[int, str]:
    """The open times of the bars to drop, with the faults of each. Of bars that repeat each other the first stays."""
    reasons: dict[int, list[str]] = {}
    for fault in found:
        if fault.kind in kinds:
            for row in range(fault.row + (fault.kind == "stale"), fault.row + fault.bars):
                what = "it repeats the bar before" if fault.kind == "stale" else fault.what
                reasons.setdefault(int(bars["open_us"][row]), []).append(what)
    return {open_us: "; ".join(what) for open_us, what in sorted(reasons.items())}


def _mend_on_stack(
    stored: StoredBars, universe: Universe, given: Calendar | None, span: tuple[str | None, str | None], dry_run: bool
) -> int:
    """Let ingest ask for what is missing or odd of a universe; whether faults are left."""
    from tradeloop.cli.client.client import running
    from tradeloop.cli.progress import Stages
    from tradeloop.cli.stored import ASSUMED
    from tradeloop.common.market import TimeRange, from_us

    stages, base = Stages(), universe.timeframe
    works = []
    for one in universe.instruments:
        own = one.calendar if one.calendar != ASSUMED else None
        works.append(_Work(stored, stages, one.id, base, given or own or stored.calendar(one.id) or ASSUMED, span))
    if dry_run:
        return 1 if sum(work.would(work.read(), work.venue, frozenset()) for work in works) else 0
    anew = {work.name: ranges for work in works if (ranges := work.ranges(work.read()))}
    if asked := sum(map(len, anew.values())):
        if asked > _ASKED_AT_ONCE:
            stages.say(f"{asked:,} ranges are missing or odd: ingest is asked for the first of them, run this again")
            most = max(_ASKED_AT_ONCE // len(anew), 1)
            anew = {name: ranges[:most] for name, ranges in anew.items()}
        times = {
            name: tuple(TimeRange(start=from_us(start_us), end=from_us(end_us)) for start_us, end_us in ranges)
            for name, ranges in anew.items()
        }
        with running(stages.say) as client:
            mend_on_stack(client, stages, universe, times)
    return 1 if sum([work.left(work.read()) for work in works]) else 0


def mend_on_stack(
    client: Client, stages: Stages, universe: Universe, anew: Mapping[str, tuple[TimeRange, ...]]
) -> None:
    """Let ingest mend ranges, and say what came of them. Raises as `Client.ask`."""
    from tradeloop.common.market import TimeRange, iso
    from tradeloop.common.messages import BackfillCompleted, BackfillRequested
    from tradeloop.common.messages.topics import derived_id

    every = [one for ranges in anew.values() for one in ranges]
    whole = TimeRange(start=min(one.start for one in every), end=max(one.end for one in every))
    # Asked at another time it is another request: meanwhile the venue may know more.
    identity = derived_id("repair", universe.name, whole.start, whole.end, iso(client.clock.now()))
    with stages.stage(f"Ingest mends {', '.join(anew)}"):
        request = BackfillRequested(request_id=identity, universe=universe, range=whole, anew=dict(anew))
        done = client.ask(request, BackfillCompleted)
    for line in done.remarks:
        typer.echo(line)


def _mend_file(
    file: str, out: Path | None, length: Timeframe | None, calendar: Calendar, kinds: frozenset[str], dry_run: bool
) -> int:
    """Write a copy of a file without bars of some kinds; whether faults are left."""
    import numpy as np
    import polars as pl

    from tradeloop.cli.stored import new_file, write_table
    from tradeloop.common.market.faults import faults

    if out is None and not dry_run:
        raise UserError("a file is not changed: say where the mended one goes: --out FILE.csv or FILE.parquet")
    if out is not None:
        new_file(out)
    bars, timeframe = raw_bars(file, length)
    rows = np.arange(len(bars["open_us"]))
    while found := [one for one in faults(bars, timeframe, calendar) if one.kind in kinds]:
        gone = {
            row: fault for fault in found for row in range(fault.row + (fault.kind == "stale"), fault.row + fault.bars)
        }
        for row, fault in sorted(gone.items()):
            would = "would be dropped" if dry_run else "dropped"
            at = _time(int(bars["open_us"][row]))
            typer.echo(f"{file}, bar {rows[row] + 1:,}, {at}: {would}: {fault.what}")
        kept = np.setdiff1d(np.arange(len(rows)), list(gone))
        bars, rows = {name: column[kept] for name, column in bars.items()}, rows[kept]
    left = faults(bars, timeframe, calendar)
    if out is not None and not dry_run:
        table = pl.DataFrame({"time" if name == "open_us" else name: column for name, column in bars.items()})
        write_table(table.with_columns(pl.col("time").cast(pl.Datetime("us", "UTC"))), out)
        typer.echo(
            f"{out}: {len(rows):,} bars of {timeframe}, with the columns that a bar has; {len(left):,} faults left"
        )
    return 1 if left else 0


def _time(time_us: int) -> str:
    from tradeloop.common.market import from_us

    return f"{from_us(time_us):%Y-%m-%d %H:%M:%S}"
