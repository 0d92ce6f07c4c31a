"""`tradeloop bars inspect`: what is understood of files, before anything is done with them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tradeloop.cli.bar_files import ReadFile
    from tradeloop.common.messages.ingest import Reading


def inspect(
    reading: Reading,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="As for --bars of `tradeloop demo`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is understood of files of bars: instruments, columns, times, gaps, and what could be meant otherwise."""
    from tradeloop.cli.bar_files import read_files
    from tradeloop.cli.naming import named_files
    from tradeloop.cli.understood import findings

    named, notes = named_files(files, "FILE")
    found = read_files(named, None, reading)
    if as_json:
        typer.echo(json.dumps(_facts(found, notes), indent=2))
        return
    for line in (*notes, *findings([(one.instrument, one.report) for one in found])):
        typer.echo(line)


def _facts(found: list[ReadFile], notes: list[str]) -> dict[str, Any]:
    used: dict[str, str] = {}
    ignored: dict[str, None] = {}
    warnings = dict.fromkeys(notes)
    for one in found:
        for field, name in one.report.columns.items():
            known = used[field].split(" or ") if field in used else []
            used[field] = " or ".join(dict.fromkeys([*known, name]))
        ignored.update(dict.fromkeys(one.report.ignored))
        prefix = f"{one.report.path}: " if len(found) > 1 else ""
        warnings.update(dict.fromkeys(f"{prefix}{remark}" for remark in one.report.remarks))
    return {
        "instruments": {one.instrument.id: _of_one(one) for one in found},
        "columns": {"used": used, "ignored": list(ignored)},
        "warnings": list(warnings),
    }


def _of_one(one: ReadFile) -> dict[str, Any]:
    report = one.report
    return {
        "timeframe": str(report.timeframe),
        "bars": report.rows,
        "first_open_time": report.first.isoformat(),
        "last_open_time": report.last.isoformat(),
        "first_open": report.first_open,
        "last_close": report.last_close,
        "volume": report.volume,
        "zone": report.zone,
        "gaps": report.gaps,
    }
