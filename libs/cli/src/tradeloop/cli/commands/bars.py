"""`tradeloop bars`: what is in bars, and what is wrong with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tradeloop.common.errors import UserError

if TYPE_CHECKING:
    from tradeloop.common.market import Series, Timeframe

app = typer.Typer(help="Look at bars, and for what is wrong with them.", no_args_is_help=True)

_SHOWN = 20


@app.command("check")
def check(
    files: Annotated[list[str], typer.Argument(help="Files of bars; FILE#SYMBOL for one instrument of several.")],
    calendar: Annotated[
        str,
        typer.Option(
            "--calendar",
            help="When bars are due: continuous, weekdays, sessions, fx, or an exchange by its code, such as XNYS.",
        ),
    ] = "continuous",
    timeframe: Annotated[str | None, typer.Option("--timeframe", help="Else it is that of most rows.")] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="Faults of a kind that are shown for a file.")] = _SHOWN,
) -> None:
    """Name every fault in files of bars, one a line: exit 0 where there is none, 1 where there are, 2 for no bars."""
    from tradeloop.common.market import from_us
    from tradeloop.common.market.faults import faults

    given, length = _calendar(calendar), _timeframe(timeframe)
    wrong = False
    for file in files:
        bars, found_timeframe = _raw(file, length)
        found = faults(bars, found_timeframe, given)
        shown: dict[str, int] = {}
        for fault in found:
            shown[fault.kind] = shown.get(fault.kind, 0) + 1
            if shown[fault.kind] <= most:
                typer.echo(f"{file}, bar {fault.row + 1:,}, {from_us(fault.open_us):%Y-%m-%d %H:%M:%S}: {fault.what}")
        for kind, count in shown.items():
            if count > most:
                typer.echo(f"{file}: {count - most:,} more of this kind: {kind}")
        counted = ", ".join(f"{count:,} {kind}" for kind, count in sorted(shown.items())) or "no faults"
        count = len(bars["open_us"])
        typer.echo(f"{file}: {count:,} bars of {found_timeframe}, calendar {calendar}: {counted}")
        if given.isupper() and count and int(bars["open_us"].min()) < 0:
            typer.echo(f"{file}: before 1970 no holidays of {given} are known, so no gaps were looked for there")
        wrong |= bool(found)
    raise typer.Exit(1 if wrong else 0)


def _calendar(name: str) -> str:
    from tradeloop.common.market.instruments import known_calendar

    try:
        return known_calendar(name)
    except ValueError as error:
        raise UserError(f"--calendar: {error}") from None


def _timeframe(name: str | None) -> Timeframe | None:
    from tradeloop.common.market import Timeframe

    if name is not None and name not in list(Timeframe):
        raise UserError(f"--timeframe {name}: give one of {', '.join(Timeframe)}")
    return None if name is None else Timeframe(name)


def _raw(file: str, timeframe: Timeframe | None) -> tuple[Series, Timeframe]:
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
