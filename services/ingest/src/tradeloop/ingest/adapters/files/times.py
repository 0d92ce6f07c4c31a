"""Times as people write them: what form a column has, and the instants or local times that it means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tradeloop.common.market import Timeframe
from tradeloop.common.messages.ingest import Reading
from tradeloop.ingest.adapters.files.numbers import refuse_nulls
from tradeloop.ingest.domain import Refused

NO_ZONE = "none, read as UTC"
_REMEDY = "give ISO 8601 or an epoch, the same in each row"
EPOCH_UNITS = ("s", "ms", "us", "ns")
_EPOCH_BOUNDS = np.array([1e8, 1e11, 1e14, 1e17])
"""Bounds from which on a number counts as seconds, milli-, micro-, nanoseconds: each holds 1973 to 5138."""

_ZONE = r"(?:\s*(?P<zone>Z|z|(?:GMT|UTC)?[+-]\d{2}(?::?\d{2})?|[A-Z]{2,5}|[A-Z][A-Za-z]+/[A-Za-z_/]+))?"
_CLOCK = (
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d{2}))?(?::(?P<second>\d{2}))?(?P<fraction>[.,]\d{1,9})?"
    r"(?:[ -]?(?P<half>[AaPp])\.?[Mm]\.?)?"
)
_DAYTIME = rf"(?:(?:[T_,]| - |\s)\s*{_CLOCK})?{_ZONE}$"
_DIGITS = r"(?:[T _-]?(?P<hour>\d{2}):?(?P<minute>\d{2})(?::?(?P<second>\d{2}))?(?P<fraction>[.,]\d{1,9})?)?"
_FORMS = (
    ("ISO 8601", rf"^(?P<year>\d{{4}})-(?P<month>\d{{1,2}})-(?P<day>\d{{1,2}}){_DAYTIME}"),
    ("YYYY/MM/DD", rf"^(?P<year>\d{{4}})/(?P<month>\d{{1,2}})/(?P<day>\d{{1,2}}){_DAYTIME}"),
    ("YYYY.MM.DD", rf"^(?P<year>\d{{4}})\.(?P<month>\d{{1,2}})\.(?P<day>\d{{1,2}}){_DAYTIME}"),
    ("DD.MM.YYYY", rf"^(?P<day>\d{{1,2}})\.(?P<month>\d{{1,2}})\.(?P<year>\d{{4}}|\d{{2}}){_DAYTIME}"),
    ("numeric", rf"^(?P<first>\d{{1,2}})(?:/|-)(?P<then>\d{{1,2}})(?:/|-)(?P<year>\d{{4}}|\d{{2}}){_DAYTIME}"),
    ("YYYYMMDD", rf"^(?P<year>\d{{4}})(?P<month>\d{{2}})(?P<day>\d{{2}}){_DIGITS}{_ZONE}$"),
    ("DD Mon YYYY", rf"^(?P<day>\d{{1,2}})[ -](?P<named>[A-Za-z]{{3,9}})\.?[ ,-]+(?P<year>\d{{4}}|\d{{2}}){_DAYTIME}"),
    ("Mon DD, YYYY", rf"^(?P<named>[A-Za-z]{{3,9}})\.? (?P<day>\d{{1,2}}),? (?P<year>\d{{4}}){_DAYTIME}"),
)
_NUMERIC = {"day-first": "DD/MM/YYYY", "month-first": "MM/DD/YYYY"}
_MONTHS = {name: f"{number:02}" for number, name in enumerate(
    ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), 1
)}  # fmt: skip
_ABBREVIATIONS = {"Z": 0, "z": 0, "UTC": 0, "GMT": 0, "EST": -300, "EDT": -240, "PST": -480, "PDT": -420, "CET": 60,
                  "CEST": 120, "JST": 540, "MSK": 180}  # fmt: skip
"""Minutes from UTC of zones whose name means one offset alone."""
CLOCK_ALONE = re.compile(r"^\d{1,2}:\d{2}(:\d{2})?([.,]\d+)?\s*([AaPp]\.?[Mm]\.?)?$|^\d{5,6}$|^\d{3,4}$|^0$")

Kind = Literal["text", "epoch", "temporal"]
Order = Literal["day-first", "month-first"]


class AmbiguousDates(Refused):
    """The dates seen so far may have the day or the month first."""


@dataclass(frozen=True)
class Form:
    """The form of a column of times."""

    kind: Kind
    name: str
    """`ISO 8601`, `date`, `DD.MM.YYYY`, `epoch ms`, `Parquet timestamp` and so on."""
    pattern: str = ""
    unit: int = 0
    order: Order | None = None


@dataclass(frozen=True)
class Times:
    """The times of some rows."""

    us: NDArray[np.int64]
    """Microseconds since the epoch, of the instant where a zone is known, else of the local time."""
    zone: str | None
    """The zone in words; None where the times name none."""
    dates: bool = False
    """Whether no row has a time of day."""


def form_of(column: pl.Series, reading: Reading) -> Form:
    """The form of these times, by all of them. Raises `Refused`."""
    if column.dtype.is_temporal() and column.dtype not in (pl.Time, pl.Duration):
        return Form("temporal", "date" if column.dtype == pl.Date else "Parquet timestamp")
    if not (column.dtype.is_numeric() or column.dtype == pl.String):
        raise Refused(f"time is a column of {column.dtype}", "give ISO 8601 or an epoch")
    text = column.cast(pl.String, strict=False).str.strip_chars()
    first = next((cell for cell in text if cell), None)
    if first is None:
        raise Refused("time is empty", "give one for each row", 0)
    if re.match(r"^-?\d+(\.\d*)?$", first):
        whole = text.str.replace(r"\.0*$", "")
        compact = whole.str.contains(r"^(19|20|21)\d{6}(\d{4}(\d{2})?)?$").fill_null(False)
        if compact.all() and reading.time_unit is None:
            pattern = dict(_FORMS)["YYYYMMDD"]
            if not _stamps(whole, pattern, None).has_nulls():
                return Form("text", "YYYYMMDD", pattern)
        return _epoch_form(column, text, reading)
    for name, pattern in _FORMS:
        if re.match(pattern, first):
            return _ordered(text, pattern, reading) if name == "numeric" else Form("text", name, pattern)
    raise Refused(
        f"time {first[:40]!r} cannot be parsed", f"{_REMEDY}, or name the column by --columns time=NAME", 0, 1
    )


def _ordered(text: pl.Series, pattern: str, reading: Reading) -> Form:
    if reading.dates is not None:
        return Form("text", _NUMERIC[reading.dates], pattern, order=reading.dates)
    parts = text.str.extract_groups(pattern).struct.unnest()
    first, then = (parts[name].cast(pl.Int32, strict=False).max() for name in ("first", "then"))
    for order, day in (("day-first", first), ("month-first", then)):
        if isinstance(day, int) and day > 12:
            return Form("text", _NUMERIC[order], pattern, order=order)  # type: ignore[arg-type]
    raise AmbiguousDates(
        f"dates such as {text[0]} may have the day or the month first", "say which by --dates day-first or month-first"
    )


def _epoch_form(column: pl.Series, text: pl.Series, reading: Reading) -> Form:
    if reading.time_unit is not None:
        unit = EPOCH_UNITS.index(reading.time_unit)
        return Form("epoch", f"epoch {reading.time_unit}", unit=unit)
    values = text.cast(pl.Float64, strict=False)
    known = values.drop_nulls()
    number = float(known[0])
    unit = int(np.searchsorted(_EPOCH_BOUNDS, abs(number), side="right")) - 1
    if unit < 0:
        small = np.flatnonzero(np.abs(values.fill_null(1e18).to_numpy()) < _EPOCH_BOUNDS[0])
        what = f"time {column[int(small[0])]} is too small for an epoch"
        raise Refused(what, "give ISO 8601, an epoch after 1973, or --time-unit", int(small[0]), len(small))
    return Form("epoch", f"epoch {EPOCH_UNITS[unit]}", unit=unit)


def parse(column: pl.Series, form: Form, reading: Reading) -> Times:
    """The times of a column in this form. Raises `Refused`."""
    if form.kind == "temporal":
        refuse_nulls("time", column, column, "give one for each row")
        zone = getattr(column.dtype, "time_zone", None)
        return Times(column.cast(pl.Datetime("us")).to_physical().to_numpy(), zone, column.dtype == pl.Date)
    if form.kind == "epoch":
        return Times(_epoch(column, form, reading), "UTC")
    text = column.cast(pl.String, strict=False).str.strip_chars()
    if column.dtype.is_numeric():
        text = text.str.replace(r"\.0*$", "")
    parts = text.str.extract_groups(form.pattern).struct.unnest()
    stamps = _stamps(text, form.pattern, form.order, parts)
    refuse_nulls("time", text, stamps, _REMEDY)
    hours = parts["hour"].null_count() < len(text) if "hour" in parts.columns else False
    local_us = stamps.to_physical().to_numpy()
    offsets_us, zone = _offsets_us(parts["zone"], local_us) if "zone" in parts.columns else (None, None)
    time_us = local_us if offsets_us is None else local_us - offsets_us
    return Times(np.asarray(time_us, np.int64), zone, not hours)


def _stamps(text: pl.Series, pattern: str, order: Order | None, parts: pl.DataFrame | None = None) -> pl.Series:
    """Local times as polars has them, null where there is none."""
    found = text.str.extract_groups(pattern).struct.unnest() if parts is None else parts
    has = set(found.columns)
    year = pl.col("year")
    if r"\d{4}|\d{2}" in pattern:
        two = pl.when(pl.col("year") < "70").then(pl.lit("20")).otherwise(pl.lit("19"))
        year = pl.when(year.str.len_chars() == 2).then(two + year).otherwise(year)
    if "named" in has:
        short = pl.col("named").str.slice(0, 3).str.to_lowercase()
        month, day = short.replace_strict(_MONTHS, default=None, return_dtype=pl.String), pl.col("day")
    elif "first" in has:
        month, day = (pl.col("then"), pl.col("first")) if order == "day-first" else (pl.col("first"), pl.col("then"))
    else:
        month, day = pl.col("month"), pl.col("day")
    hour, minute = pl.col("hour"), pl.col("minute").fill_null("00")
    if "half" in has:
        # An hour alone is no time of day, unless it says its half.
        alone = pl.col("minute").is_null() & pl.col("half").is_null() & hour.is_not_null()
        number = pl.col("hour").cast(pl.Int32, strict=False)
        later = number % 12 + pl.when(pl.col("half").str.to_lowercase() == "p").then(12).otherwise(0)
        halved = pl.when(number.is_between(1, 12)).then(later.cast(pl.String)).otherwise(pl.lit("99"))
        hour = pl.when(pl.col("half").is_null()).then(hour).otherwise(halved)
        hour = pl.when(alone).then(pl.lit("99")).otherwise(hour)
    return found.select(
        pl.concat_str(
            year,
            pl.lit("-"),
            month.str.zfill(2),
            pl.lit("-"),
            day.str.zfill(2),
            pl.lit(" "),
            hour.fill_null("00").str.zfill(2),
            pl.lit(":"),
            minute,
            pl.lit(":"),
            pl.col("second").fill_null("00"),
            pl.col("fraction").fill_null("").str.replace(",", ".", literal=True),
        ).str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
    ).to_series()


def _epoch(column: pl.Series, form: Form, reading: Reading) -> NDArray[np.int64]:
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    whole = column.cast(pl.Int64, strict=False)
    values = whole if not whole.has_nulls() and not column.dtype.is_float() else column.cast(pl.Float64, strict=False)
    refuse_nulls("time", column, values, _REMEDY)
    numbers = values.to_numpy()
    if reading.time_unit is None:
        units = np.searchsorted(_EPOCH_BOUNDS, np.abs(numbers), side="right") - 1
        other = np.flatnonzero(units != form.unit)
        if len(other):
            raise Refused(
                f"time {column[int(other[0])]} is in another unit than those before it",
                "give the same unit in each row, or say it by --time-unit",
                int(other[0]),
                len(other),
            )
    time_us = numbers // 1000 if form.unit == 3 else numbers * 1000 ** (2 - form.unit)
    return np.asarray(np.rint(time_us), np.int64)


def _offsets_us(zones: pl.Series, local_us: NDArray[np.int64]) -> tuple[NDArray[np.int64] | int | None, str | None]:
    """The offset of each row from UTC, and the zone in words; None where they name none."""
    names = zones.unique(maintain_order=True).to_list()
    if names == [None]:
        return None, None
    if None in names:
        other = int(zones.is_null().arg_true()[0] if zones[0] is not None else zones.is_not_null().arg_true()[0])
        was, now = ("none" if zone is None else repr(zone) for zone in (zones[0], zones[other]))
        count = int(zones.is_null().sum() if zones[0] is not None else zones.is_not_null().sum())
        raise Refused(f"the zone changes from {was} to {now}", "name the zone in all rows, or in none", other, count)
    known = {name: _zone_offset(name, zones) for name in names}
    if len(known) == 1 and isinstance(known[names[0]], ZoneInfo):
        zone = str(names[0])
        return local_us - localized(local_us, zone), zone
    minutes = {name: offset for name, offset in known.items() if isinstance(offset, int)}
    if len(minutes) < len(known):
        raise Refused("the zone changes from row to row", "give all times in UTC")
    words = list(dict.fromkeys(_zone_name(offset) for offset in minutes.values()))
    if len(words) == 1:
        return minutes[names[0]] * Timeframe.M1.us, words[0]
    rows = zones.replace_strict(minutes, return_dtype=pl.Int64).to_numpy() * Timeframe.M1.us
    return rows, f"{' and '.join(words[:3])}, as each row says"


def _zone_offset(name: str, zones: pl.Series) -> int | ZoneInfo:
    """Minutes from UTC, or a zone whose offset changes. Raises `Refused`."""
    if name in _ABBREVIATIONS:
        return _ABBREVIATIONS[name]
    if match := re.match(r"^(?:GMT|UTC)?([+-])(\d{2}):?(\d{2})?$", name):
        minutes = int(match[2]) * 60 + int(match[3] or 0)
        return -minutes if match[1] == "-" else minutes
    row = int((zones == name).arg_true()[0])
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        what = f"{name!r} is no zone that has one meaning"
        raise Refused(what, "give offsets such as -05:00, or a zone such as America/New_York", row) from None


def _zone_name(minutes: int) -> str:
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}" if minutes else "UTC"


def localized(local_us: NDArray[np.int64], zone: str) -> NDArray[np.int64]:
    """The instants of local times, in the order that they have. Raises `Refused` for one that does not exist.

    An hour that comes twice, when the clock is put back, is the earlier one unless it would not be after the row
    before it.
    """
    local = pl.Series(local_us).cast(pl.Datetime("us"))
    early, late = (
        local.dt.replace_time_zone(zone, ambiguous=which, non_existent="null") for which in ("earliest", "latest")
    )
    missing = early.is_null().arg_true()
    if len(missing):
        row = int(missing[0])
        raise Refused(f"{local[row]} does not exist in {zone}: the clock was put on", "see that --tz is right", row)
    found, later = early.to_physical().to_numpy().copy(), late.to_physical().to_numpy()
    twice = np.flatnonzero(found != later)
    ascending = len(found) < 2 or found[-1] >= found[0]
    for row in twice if ascending else twice[::-1]:
        before = row - 1 if ascending else row + 1
        if 0 <= before < len(found) and found[row] <= found[before]:
            found[row] = later[row]
    return found
