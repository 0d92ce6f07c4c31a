"""`tradeloop bars`: which bars are stored, what is wrong with bars, and stored ones as files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tradeloop.cli.commands.models import DEFAULT_HOME, Home
from tradeloop.cli.options import Events
from tradeloop.common.errors import UserError

if TYPE_CHECKING:
    from tradeloop.cli.stored import StoredBars
    from tradeloop.common.bar_store.port import StoredSeries
    from tradeloop.common.market import Series, Timeframe

app = typer.Typer(help="Look at bars, and for what is wrong with them.", no_args_is_help=True)

_SHOWN = 20
CALENDARS = "continuous, weekdays, sessions, fx, or an exchange by its code, such as XNYS."

BarsUrl = Annotated[
    str | None,
    typer.Option(
        "--bars-url",
        envvar="TRADELOOP_DATABASE_URL",
        help="The database of a running stack's bars, instead of a home: postgresql+psycopg://USER:PASSWORD@HOST/X.",
    ),
]
Start = Annotated[str | None, typer.Option("--from", help="Open time of the first bar, ISO 8601, UTC.")]
End = Annotated[str | None, typer.Option("--to", help="Bars that open at this time or later are left out.")]


@app.command("list")
def list_(
    home: Home = DEFAULT_HOME,
    bars_url: BarsUrl = None,
    calendar: Annotated[
        str | None,
        typer.Option(
            "--calendar",
            help=f"When bars of all are due: {CALENDARS} Without it: as the venue or the universe of each has it.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: one JSON object a line.")] = False,
) -> None:
    """List the bars that a home or a running stack has stored: how many, from when to when, and the gaps in them.

    All of them are read for that. `?` marks a calendar that is assumed, since nobody recorded the instrument's terms.
    """
    from tradeloop.cli.progress import quiet_logs
    from tradeloop.cli.stored import opened

    quiet_logs()
    given = None if calendar is None else calendar_of(calendar)
    with opened(home, bars_url) as stored:
        series = stored.store.series()
        if not series:
            raise UserError(f"{stored.place} holds no bars: fetch them with `tradeloop backfill`")
        found = [_facts(stored, one, given) for one in series]
        if as_json:
            for facts in found:
                typer.echo(json.dumps({"store": stored.place, **facts}))
            return
        typer.echo(f"Bars in {stored.place}")
    _print(found)


@app.command("check")
def check(
    files: Annotated[
        list[str] | None, typer.Argument(help="Files of bars; FILE#SYMBOL for one instrument of several.")
    ] = None,
    instruments: Annotated[
        list[str] | None,
        typer.Option("--instrument", help="Check stored bars of VENUE:SYMBOL, of each timeframe; again for more."),
    ] = None,
    home: Home = DEFAULT_HOME,
    bars_url: BarsUrl = None,
    start: Start = None,
    end: End = None,
    calendar: Annotated[
        str | None,
        typer.Option(
            "--calendar",
            help=f"When bars are due: {CALENDARS} Without it: as a venue or universe has a stored instrument; else "
            "continuous.",
        ),
    ] = None,
    timeframe: Annotated[
        str | None, typer.Option("--timeframe", help="Else that of most rows of a file, all that are stored.")
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="Faults of a kind that are shown for a file.")] = _SHOWN,
    events: Events = None,
) -> None:
    """Name every fault in files of bars, or in stored ones, one a line: exit 0 for none, 1 for some, 2 for no bars."""
    from tradeloop.cli.progress import quiet_logs
    from tradeloop.cli.stored import ASSUMED, opened

    quiet_logs()
    given, length = None if calendar is None else calendar_of(calendar), timeframe_of(timeframe)
    if not files and not instruments:
        raise UserError("say which bars to check: name files, or --instrument VENUE:SYMBOL for stored ones")
    if files and (start or end):
        raise UserError("--from and --to are a range of stored bars, and files are checked as a whole: leave them out")
    wrong, known = False, resting_of(events)
    for file in files or ():
        bars, found_timeframe = raw_bars(file, length)
        wrong |= _told(file, bars, found_timeframe, given or ASSUMED, most, known(file))
    if instruments:
        with opened(home, bars_url) as stored:
            for name, bars, found_timeframe in list(chosen_bars(stored, instruments, length, (start, end))):
                due = given or stored.calendar(name)
                said = f"{name}@{found_timeframe}"
                if due is None:
                    typer.echo(f"{said}: nobody recorded its calendar, so {ASSUMED} is assumed: give --calendar")
                wrong |= _told(said, bars, found_timeframe, due or ASSUMED, most, known(name))
    raise typer.Exit(1 if wrong else 0)


@app.command("export")
def export(
    instrument: Annotated[str, typer.Option("--instrument", help="VENUE:SYMBOL, as `tradeloop bars list` has it.")],
    timeframe: Annotated[str, typer.Option("--timeframe", help="The length of a bar, such as 1m.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write: FILE.csv or FILE.parquet.")],
    start: Start = None,
    end: End = None,
    home: Home = DEFAULT_HOME,
    bars_url: BarsUrl = None,
) -> None:
    """Write stored bars of one instrument into a file, each in its latest revision, with all their columns."""
    from tradeloop.cli.progress import quiet_logs
    from tradeloop.cli.span import span_us
    from tradeloop.cli.stored import new_file, opened, table_of, write_table

    quiet_logs()
    length, (start_us, end_us) = timeframe_of(timeframe), span_us((start, end))
    assert length is not None
    new_file(out)
    with opened(home, bars_url) as stored:
        table = table_of(stored.read(instrument, length, start_us, end_us))
        place = stored.place
    write_table(table, out)
    first, last = (f"{time:%Y-%m-%d %H:%M}" for time in (table["time"][0], table["time"][-1]))
    typer.echo(
        f"{out}: {len(table):,} {length} bars of {instrument} from {first} to {last} UTC, out of {place}; columns "
        f"{', '.join(table.columns)}"
    )


def _facts(stored: StoredBars, one: StoredSeries, calendar: str | None) -> dict[str, Any]:
    from tradeloop.cli.stored import ASSUMED
    from tradeloop.common.market import EVER_US, from_us
    from tradeloop.common.market.calendars import gaps

    due = calendar or stored.calendar(one.instrument)
    found = gaps(stored.read(one.instrument, one.timeframe, -EVER_US, EVER_US).open_us, one.timeframe, due or ASSUMED)
    return {
        "instrument": one.instrument,
        "timeframe": str(one.timeframe),
        "bars": one.bars,
        "corrections": one.rows - one.bars,
        "first_open_time": from_us(one.first_us).isoformat(),
        "last_open_time": from_us(one.last_us).isoformat(),
        "calendar": due or ASSUMED,
        "calendar_assumed": due is None,
        "gaps": len(found),
        "bars_missing": sum(gap.bars for gap in found),
    }


def _print(found: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from tradeloop.cli.outcome import print_whole

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("instrument", "timeframe", "bars", "corrected", "first", "last", "calendar", "gaps", "bars missing"):
        table.add_column(name, justify="right" if name in ("bars", "corrected", "gaps", "bars missing") else "left")
    for facts in found:
        first, last = (facts[name][:16].replace("T", " ") for name in ("first_open_time", "last_open_time"))
        table.add_row(
            facts["instrument"],
            facts["timeframe"],
            f"{facts['bars']:,}",
            f"{facts['corrections']:,}",
            first,
            last,
            facts["calendar"] + "?" * facts["calendar_assumed"],
            f"{facts['gaps']:,}",
            f"{facts['bars_missing']:,}",
        )
    print_whole(Console(), table)


def chosen_bars(
    stored: StoredBars, instruments: Sequence[str], timeframe: Timeframe | None, span: tuple[str | None, str | None]
) -> Iterator[tuple[str, Series, Timeframe]]:
    """The stored bars of some instruments. Raises `UserError` for one without."""
    import numpy as np

    from tradeloop.cli.span import span_us

    start_us, end_us = span_us(span)
    there = stored.store.series()
    for name in instruments:
        lengths = [timeframe] if timeframe else [one.timeframe for one in there if one.instrument == name]
        if not lengths:
            known = ", ".join(dict.fromkeys(one.instrument for one in there)) or "no bars at all"
            raise UserError(f"--instrument {name}: {stored.place} holds no bars of it, it holds {known}")
        for each in lengths:
            bars = stored.read(name, each, start_us, end_us).series(0)
            bars = {column: values for column, values in bars.items() if column in _CHECKED}
            if np.isnan(bars["volume"]).all():
                del bars["volume"]
            yield name, bars, each


_CHECKED = ("open_us", "open", "high", "low", "close", "volume")


def resting_of(events: Path | None) -> Callable[[str], Sequence[tuple[int, int]]]:
    """Says in which times trading in an instrument, or in that of a file, rests by a file of events."""
    from tradeloop.cli.adjusting import alike
    from tradeloop.cli.naming import symbol_of
    from tradeloop.common.market.event_file import read_events
    from tradeloop.common.market.events import resting

    file = None if events is None else read_events(events)

    def of(name: str) -> Sequence[tuple[int, int]]:
        if file is None:
            return ()
        path, _, symbol = name.partition("#")
        called = {alike(one) for one in (name, name.partition(":")[2], symbol, symbol_of(Path(path))) if one}
        for last, ones in file.events.items():
            if called & {alike(one) for one in file.names[last]}:
                return resting(ones)
        typer.echo(f"{name}: {file.path} has no events of it, which are of {', '.join(file.events)}")
        return ()

    return of


def _told(
    said: str,
    bars: Series,
    timeframe: Timeframe,
    calendar: str,
    most: int,
    resting: Sequence[tuple[int, int]] = (),
) -> bool:
    """Name the faults of some bars; whether there are any."""
    from tradeloop.common.market import from_us
    from tradeloop.common.market.faults import faults

    found = faults(bars, timeframe, calendar, resting)
    shown: dict[str, int] = {}
    for fault in found:
        shown[fault.kind] = shown.get(fault.kind, 0) + 1
        if shown[fault.kind] <= most:
            typer.echo(f"{said}, bar {fault.row + 1:,}, {from_us(fault.open_us):%Y-%m-%d %H:%M:%S}: {fault.what}")
    for kind, count in shown.items():
        if count > most:
            typer.echo(f"{said}: {count - most:,} more of this kind: {kind}")
    counted = ", ".join(f"{count:,} {kind}" for kind, count in sorted(shown.items())) or "no faults"
    count = len(bars["open_us"])
    typer.echo(f"{said}: {count:,} bars of {timeframe}, calendar {calendar}: {counted}")
    if calendar.isupper() and count and int(bars["open_us"].min()) < 0:
        typer.echo(f"{said}: before 1970 no holidays of {calendar} are known, so no gaps were looked for there")
    return bool(found)


def calendar_of(name: str) -> str:
    from tradeloop.common.market.instruments import known_calendar

    try:
        return known_calendar(name)
    except ValueError as error:
        raise UserError(f"--calendar: {error}") from None


def timeframe_of(name: str | None) -> Timeframe | None:
    from tradeloop.common.market import Timeframe

    if name is not None and name not in list(Timeframe):
        raise UserError(f"--timeframe {name}: give one of {', '.join(Timeframe)}")
    return None if name is None else Timeframe(name)


def raw_bars(file: str, timeframe: Timeframe | None) -> tuple[Series, Timeframe]:
    """All bars of a file as they stand in it."""
    from tradeloop.common.market import Instrument, joined
    from tradeloop.ingest.adapters.files import read_blocks
    from tradeloop.ingest.domain import OpenGate

    blocks = read_blocks(file, Instrument(id="file:bars"), gate=OpenGate(timeframe, 2))
    parts: list[Series] = []
    while True:
        try:
            parts.append(next(blocks))
        except StopIteration as end:
            return joined(parts), end.value.timeframe
