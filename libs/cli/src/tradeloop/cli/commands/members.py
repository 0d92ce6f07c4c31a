"""`tradeloop bars members`: a file of memberships, of the instruments that were traded most."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from tradeloop.cli.commands.models import DEFAULT_HOME, Home
from tradeloop.common.errors import UserError

if TYPE_CHECKING:
    from tradeloop.common.market.largest import Every
    from tradeloop.common.messages.ingest import Reading


class By(StrEnum):
    """The measures by which instruments are compared."""

    volume = "volume"
    dollar_volume = "dollar_volume"


def members(
    reading: Reading,
    files: Annotated[list[str], typer.Argument(metavar="BARS...", help="As for --bars of `tradeloop demo`.")],
    top: Annotated[int, typer.Option("--top", min=1, help="How many belong at a time, at most.")],
    by: Annotated[
        By, typer.Option("--by", help="Volume, or volume times close: the volumes of all are in one unit then.")
    ] = By.dollar_volume,
    every: Annotated[
        str, typer.Option("--every", help="How often members change: 1d, 1w from Monday, 1mo, 3mo ...; at 00:00 UTC.")
    ] = "1mo",
    window: Annotated[str, typer.Option("--window", help="The days before a change that count: 30d.")] = "30d",
    home: Home = DEFAULT_HOME,
) -> None:
    """Print who belonged to the N that were traded most, as the CSV file that --members takes.

    Each change sees only bars that had closed by then. What bars there are decides who can be among them: give those
    that ended, too.
    """
    from tradeloop.cli.bar_files import read_files
    from tradeloop.cli.naming import listed, named_files
    from tradeloop.cli.stored import stored_bars
    from tradeloop.common.market import iso
    from tradeloop.common.market.largest import largest

    period, window_us = _every(every), _days(window) * 86_400_000_000
    named, _ = named_files(stored_bars(files, home).values, "BARS")
    found = read_files(named, None, reading)
    lengths = {one.report.timeframe for one in found}
    if len(lengths) > 1:
        raise UserError(f"there are bars of {listed(sorted(lengths))}: give bars of one timeframe")
    series = {}
    for one in found:
        called = one.file.name or one.file.symbol or one.file.called
        if called in series:
            raise UserError(f"two instruments are called {called}: name them by NAME=FILE")
        series[called] = one.bars.series(0)
    stays = largest(series, lengths.pop(), top, by.value, period, window_us)
    rows = [
        (one.start, name, f"{name},{iso(one.start)},{iso(one.end) if one.end else ''}")
        for name, each in stays.items()
        for one in each
    ]
    typer.echo("instrument,from,to")
    for *_, row in sorted(rows):
        typer.echo(row)
    ever = sum(bool(each) for each in stays.values())
    first = min(start for start, *_ in rows) if rows else None
    typer.echo(
        f"{ever:,} of {len(series):,} instruments were ever among the top {top:,} by {by.value}, "
        f"{'the first from ' + iso(first) + ' on' if first else 'since nothing was traded'}",
        err=True,
    )


def _every(text: str) -> Every:
    found = re.fullmatch(r"([1-9]\d{0,3})(d|w|mo)", text)
    if found is None or (found[2] == "mo" and 12 % int(found[1])):
        raise UserError(f"--every {text}: give days, weeks or months that divide a year, such as 1d, 1w, 1mo or 3mo")
    return int(found[1]), cast(Literal["d", "w", "mo"], found[2])


def _days(text: str) -> int:
    found = re.fullmatch(r"([1-9]\d{0,4})d", text)
    if found is None:
        raise UserError(f"--window {text}: give a number of days, such as 30d")
    return int(found[1])
