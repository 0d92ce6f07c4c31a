"""The columns of a table that say when a bar opens: one, a date and a clock, or several that agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tradeloop.common.market import from_us
from tradeloop.common.messages.ingest import Reading
from tradeloop.ingest.adapters.files import names, wide
from tradeloop.ingest.adapters.files.blocks import Columns
from tradeloop.ingest.adapters.files.names import among, plain
from tradeloop.ingest.adapters.files.times import (
    CLOCK_ALONE,
    NO_ZONE,
    AmbiguousDates,
    Form,
    Times,
    form_of,
    localized,
    parse,
)
from tradeloop.ingest.domain import Refused

_DAY_US = 86_400_000_000
_QUARTER_US = 900_000_000
_UTC_NAMES = ("gmt", "utc")


@dataclass(frozen=True)
class TimeColumns:
    """The columns of the time, and how it is written."""

    indices: tuple[int, ...]
    """One, or that of the date and that of the clock."""
    form: Form
    utc: bool
    """Whether the column's name says that times without a zone are in UTC."""

    def parse(self, columns: Sequence[pl.Series], reading: Reading) -> Times:
        """The instants of some rows, and their zone in words. Raises `Refused`."""
        times = parse(_column(columns, self.indices), self.form, reading)
        if reading.zone is not None:
            if times.zone is not None:
                raise Refused(f"its times name their zone, {times.zone}", "leave --tz out")
            return Times(localized(times.us, reading.zone), reading.zone, times.dates)
        if times.zone is None:
            return Times(times.us, "UTC" if self.utc else NO_ZONE, times.dates)
        return times


def time_columns(
    sample: Columns, reading: Reading, given: dict[str, int], taken: set[int]
) -> tuple[TimeColumns, list[str]]:
    """Find them by name and by what they hold. `given` are those that the user named. Raises `Refused`."""
    columns = [column for _, column in sample]
    spelt = [wide.time_name(name) for name, _ in sample]
    if given:
        indices = tuple(given[name] for name in ("time", "clock") if name in given)
        return _found(columns, spelt, indices, reading), []
    likely = [index for index, name in enumerate(spelt) if plain(name) in names.TIMES and index not in taken]
    likely.sort(key=lambda index: names.TIMES.index(plain(spelt[index])))
    clocks = [index for index in likely if _is_clock(columns[index])]
    readable, first_fault = _readable(columns, [index for index in likely if index not in clocks], reading)
    if not readable and isinstance(first_fault, AmbiguousDates):
        raise first_fault
    said = []
    if not readable:
        others = [index for index in range(len(columns)) if index not in taken and index not in clocks]
        by_content = [] if likely and first_fault else _readable(columns, others, reading)[0]
        by_content = [index for index in by_content if _looks_like_times(columns[index], reading)]
        if len(by_content) == 1:
            readable = by_content
            said.append(f"times are in the column {spelt[by_content[0]] or 'without a name'}, by what it holds")
        elif first_fault is not None:
            raise first_fault
        elif clocks:
            form_of(columns[clocks[0]], reading)  # a time of day alone, which is no time
            raise Refused(
                f"{spelt[clocks[0]]} has times of day without a date", "say by --columns time=NAME where it is"
            )
        else:
            shown = ", ".join(repr(name) for name in spelt[:12])
            raise Refused(
                f"no column for time among {shown:.300}", "name it in the header line, or by --columns time=NAME"
            )
    if clocks:
        dates = [index for index in readable if parse(columns[index], form_of(columns[index], reading), reading).dates]
        if dates and len(dates) == len(readable):
            return _found(columns, spelt, (dates[0], clocks[0]), reading), said
    one = _agreed(columns, spelt, readable, reading, said)
    return _found(columns, spelt, (one,), reading), said


def _column(columns: Sequence[pl.Series], indices: Sequence[int]) -> pl.Series:
    """The column of times; a date and a clock are joined."""
    if len(indices) == 1:
        return columns[indices[0]]
    date, clock = (columns[index].cast(pl.String, strict=False).str.strip_chars() for index in indices)
    date = date.str.replace(r"[ T]00:00(:00)?(\.0+)?$", "")
    digits = clock.str.contains(r"^\d+$").fill_null(False)
    if digits.any():
        length = 6 if bool((clock.str.len_chars() > 4).any()) else 4
        padded = clock.str.zfill(length)
        spelt = padded.str.slice(0, 2) + ":" + padded.str.slice(2, 2)
        if length == 6:
            spelt = spelt + ":" + padded.str.slice(4, 2)
        clock = spelt.zip_with(digits, clock)
    return date + " " + clock


def _found(
    columns: Sequence[pl.Series], spelt: Sequence[str], indices: tuple[int, ...], reading: Reading
) -> TimeColumns:
    utc = any(word in plain(spelt[index]).split("_") for index in indices for word in _UTC_NAMES)
    return TimeColumns(indices, form_of(_column(columns, indices), reading), utc)


def _is_clock(column: pl.Series) -> bool:
    if column.dtype == pl.Time:
        return True
    if not (column.dtype == pl.String or column.dtype.is_integer()):
        return False
    cells = [str(cell).strip() for cell in column.drop_nulls().to_list()]
    return bool(cells) and all(CLOCK_ALONE.match(cell) for cell in cells)


def _readable(
    columns: Sequence[pl.Series], indices: Sequence[int], reading: Reading
) -> tuple[list[int], Refused | None]:
    """Which columns hold times, and what is wrong with the first one that does not."""
    found, first_fault = [], None
    for index in indices:
        try:
            form_of(columns[index], reading)
        except Refused as refused:
            first_fault = first_fault or refused
        else:
            found.append(index)
    return found, first_fault


def _looks_like_times(column: pl.Series, reading: Reading) -> bool:
    """Whether a column whose name says nothing holds times: no two are the same, and they have one direction."""
    try:
        us = parse(column, form_of(column, reading), reading).us
    except Refused:
        return False
    steps = np.diff(us)
    return bool((steps > 0).all() or (steps < 0).all())


def _agreed(
    columns: Sequence[pl.Series], spelt: Sequence[str], readable: Sequence[int], reading: Reading, said: list[str]
) -> int:
    """The column that says most, of several that say the same. Raises `Refused` where they do not."""
    if len(readable) == 1:
        return readable[0]
    parsed = []
    for index in readable:
        try:
            parsed.append((index, parse(columns[index], form_of(columns[index], reading), reading)))
        except Refused as refused:
            said.append(f"{spelt[index]} is not taken for the time: {refused.what}")
    if not parsed:
        return readable[0]  # its fault is named by its row when it is read
    parsed.sort(key=lambda one: (one[1].zone is None, one[1].dates))
    best, times = parsed[0]
    for index, other in parsed[1:]:
        if (row := _disagreement(times, other)) is not None:
            raise Refused(
                f"columns {among(spelt, (best, index))} could each be the time, and say {from_us(times.us[row])} and "
                f"{from_us(other.us[row])}", "say which by --columns time=NAME", row, 1
            )  # fmt: skip
        offset_us = int(other.us[0] - times.us[0])
        if offset_us and not other.dates:
            hours = offset_us / 3_600_000_000
            said.append(f"{spelt[index]} is {hours:+g} hours from {spelt[best]}, which is taken for the time")
    if others := [index for index, _ in parsed[1:]]:
        said.append(f"columns {among(spelt, (best, *others))} say the same times: {spelt[best]} is used")
    return best


def _disagreement(times: Times, other: Times) -> int | None:
    """The first row at which two columns of times cannot both be right."""
    apart: NDArray[np.int64] = other.us - times.us
    if other.dates and not times.dates:
        wrong = np.abs(apart) > _DAY_US + _DAY_US // 2
    elif other.zone is None and times.zone is not None:
        # A local time without its zone may be off by hours, and by one more in summer.
        wrong = (apart % _QUARTER_US != 0) | (np.abs(apart) > 14 * 4 * _QUARTER_US)
        wrong |= np.abs(apart - apart[0]) > 4 * _QUARTER_US
    else:
        wrong = apart != 0
    rows = np.flatnonzero(wrong)
    return int(rows[0]) if len(rows) else None
