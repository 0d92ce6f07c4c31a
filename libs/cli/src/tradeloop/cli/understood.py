"""The findings in files, for people: a few lines before anything is done with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tradeloop.cli.naming import listed
from tradeloop.common.market import Instrument, from_us
from tradeloop.ingest.ports import FileReport

if TYPE_CHECKING:  # it loads the library of features, which files have no need of
    from tradeloop.cli.source import Source


def understood(source: Source) -> list[str]:
    """The findings in the files, and how much of them is used."""
    reports = [(one, source.reports[one.id]) for one in source.universe.instruments]
    lines = [*source.notes, *findings(reports)]
    bars = source.bars
    if len(bars) < len(source.history):
        lines.append(
            f"Of these {len(bars):,} bars are used, {from_us(bars.open_us[0]):%Y-%m-%d %H:%M} to "
            f"{from_us(bars.open_us[-1]):%Y-%m-%d %H:%M} UTC; earlier ones only warm the features up"
        )
    if source.universe.changes:
        lines.append(f"Universe {source.universe.name}: {spoken_members(source)}")
    elif len(source.universe.ids) > 1:
        whole = int(bars.present.all(axis=1).sum())
        lines.append(
            f"Universe {source.universe.name}: {len(source.universe.ids)} instruments; all of them have a bar at "
            f"{whole:,} of {len(bars):,} times"
        )
    return lines


def spoken_members(source: Source) -> str:
    """How many instruments there are, and how many of them belong at a time, in words."""
    from tradeloop.cli.report.text import count

    universe = source.universe
    inside = universe.roster.inside(source.bars.close_us).sum(axis=1)
    least, most = int(inside.min()), int(inside.max())
    if not universe.changes:
        return count(len(universe.ids), "instrument")
    between = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"{count(len(universe.ids), 'instrument')}, of which {between} at a time"


def findings(reports: Sequence[tuple[Instrument, FileReport]]) -> list[str]:
    """The findings in the file of each instrument."""
    lines = []
    columns: dict[str, list[str]] = {}
    remarks: dict[str, list[str]] = {}
    for instrument, report in reports:
        gaps = f"{report.gaps:,} gap{'s' * (report.gaps != 1)}" if report.gaps else "no gaps"
        file = _short(report)
        lines.append(
            f"{file} is {instrument.id}: {report.rows:,} bars of {report.timeframe}, {report.first:%Y-%m-%d %H:%M} to "
            f"{report.last:%Y-%m-%d %H:%M} UTC; times: {report.time_format}, zone {report.zone}; "
            f"calendar {instrument.calendar}, {gaps}"
        )
        used = [field if name.lower() == field else f"{name} as {field}" for field, name in report.columns.items()]
        ignored = [name.strip() or "one without a name" for name in report.ignored]
        without = [] if "volume" in report.columns else ["no volume"]
        said = ", ".join([*used, *without]) + (f"; ignored: {', '.join(ignored)}" if ignored else "")
        columns.setdefault(said, []).append(file)
        for remark in report.remarks:
            remarks.setdefault(remark, []).append(file)
    lines += [f"Columns of {listed(names, 3)}: {said}" for said, names in columns.items()]
    return lines + [f"Note on {listed(names, 3)}: {remark}" for remark, names in remarks.items()]


def _short(report: FileReport) -> str:
    """A file without its folder."""
    return report.path.removeprefix(f"{Path(report.path.partition('#')[0]).parent}/")
