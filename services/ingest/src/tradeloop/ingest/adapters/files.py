"""Bars from CSV, gzipped CSV and Parquet files, through polars."""

from __future__ import annotations

import csv
import gzip
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tradeloop.common.errors import UserError
from tradeloop.common.market import BAR_PRICES, BarArrays, Instrument, Series, Timeframe, align, from_us
from tradeloop.ingest.domain import Refused, check, count_gaps
from tradeloop.ingest.ports import FileReport

_SYNONYMS: Mapping[str, frozenset[str]] = {
    "time": frozenset({"timestamp", "time", "date", "datetime", "open_time", "ts"}),
    "open": frozenset({"open", "o"}),
    "high": frozenset({"high", "h"}),
    "low": frozenset({"low", "l"}),
    "close": frozenset({"close", "c"}),
    "volume": frozenset({"volume", "vol", "v"}),
    "funding_rate": frozenset({"funding_rate"}),
}
_SYMBOLS = frozenset(
    {
        "symbol",
        "sym",
        "ticker",
        "tic",
        "instrument",
        "instrument_id",
        "asset",
        "pair",
        "coin",
        "currency_pair",
        "market",
    }
    | {"product_id", "isin", "cusip", "sedol", "ric", "figi", "permno", "gvkey", "secid", "ts_code", "stock_code"}
    | {"security", "contract", "underlying", "market"}
)
"""Columns that say which instrument a row is of."""
_REQUIRED = ("time", *BAR_PRICES)

_EPOCH_UNITS = ("s", "ms", "us", "ns")
_EPOCH_BOUNDS = np.array([1e8, 1e11, 1e14, 1e17])
"""From here on a number counts as seconds, milli-, micro-, nanoseconds: each holds 1973 to 5138."""

_DOTTED = r"^(\d{2})\.(\d{2})\.(\d{4})"
"""Day, month, year, as some exporters of foreign exchange write them; the dots tell them from month-first dates."""
_ISO = (
    r"^(?P<date>\d{4}-\d{2}-\d{2})"
    r"(?:[T ](?P<minute>\d{2}:\d{2})(?P<second>:\d{2})?(?P<fraction>\.\d{1,9})?)?"
    r"\s*(?P<zone>[Zz]|UTC|[+-]\d{2}(?::?\d{2})?)?$"
)


class SeveralInstruments(UserError):
    """A file holds several instruments, and it was not said which one is meant."""

    def __init__(self, text: str, column: str, symbols: tuple[str, ...]) -> None:
        super().__init__(text)
        self.column, self.symbols = column, symbols


_Columns = list[tuple[str, pl.Series]]
"""Each with its name in the file; names may repeat."""
_NO_ZONE = "none, read as UTC"


def read_bars(
    path: str, instrument: Instrument, timeframe: Timeframe | None = None, *, min_rows: int = 10
) -> tuple[BarArrays, FileReport]:
    """All bars of a file that ends in `.csv`, `.csv.gz` or `.parquet`, one row a bar, stamped with its open time.

    Columns are found by name, in any case: `timestamp`, `time`, `date`, `datetime`, `open_time` or `ts`; `open`,
    `high`, `low`, `close` or their first letters; `volume`, `vol` or `v`; `funding_rate`, where an empty cell is 0.
    Times are ISO 8601, with a zone or in UTC, or seconds, milli-, micro- or nanoseconds since the epoch. Of a file
    that holds several instruments, `FILE#SYMBOL` is one.

    Raises `UserError`, one line that names the file, the first offending row (in CSV its line, the header being
    line 1) and the remedy; `SeveralInstruments` where the path does not say which one of the file.
    """
    lines: NDArray[np.int64] | None = None
    symbol_column: str | None = None
    file, mark, symbol = path.rpartition("#")
    try:
        columns = _load(Path(path if not mark or os.path.exists(path) else file))
        chosen = _choose(columns)
        if columns[0][1].is_empty():
            raise Refused("has no rows", "give a longer file")
        if (several := _several(columns, chosen)) is not None:
            symbol_column, column = several
            symbols = tuple(column.drop_nulls().unique(maintain_order=True).to_list())
            shown = ", ".join(symbols[:5]) + (", ..." if len(symbols) > 5 else "")
            what = f"column {symbol_column} names {len(symbols)} instruments ({shown:.200})"
            if not mark:
                raise SeveralInstruments(
                    f"{path}: {what}: name one by FILE#SYMBOL, or give a file for each of them", symbol_column, symbols
                )
            if symbol not in symbols:
                raise Refused(what, f"{symbol} is none of them")
            lines = np.flatnonzero((column == symbol).fill_null(False).to_numpy())
            columns = [(name, one.gather(lines)) for name, one in columns]
        elif mark and not os.path.exists(path):
            raise Refused(f"has no column of instruments, such as symbol, with a {symbol}", "leave #SYMBOL out")
        open_us, time_format, zone = _times(columns[chosen["time"]][1])
        bars: Series = {"open_us": open_us} | {
            field: _numbers(field, columns[index][1]) for field, index in chosen.items() if field != "time"
        }
        timeframe = check(bars, timeframe, min_rows)
    except Refused as refused:
        place = what = ""
        if refused.row is not None:
            row = refused.row if lines is None else int(lines[refused.row])
            parquet = path.lower().partition("#")[0].endswith(".parquet")
            place = f", row {row + 1}" if parquet else f", line {row + 2}"
            what = f" ({refused.rows} such rows)" if refused.rows > 1 else ""
        raise UserError(f"{path}{place}: {refused.what}{what}: {refused.remedy}") from refused
    report = FileReport(
        path=path,
        columns={field: columns[index][0] for field, index in chosen.items()},
        ignored=tuple(
            name for i, (name, _) in enumerate(columns) if i not in chosen.values() and name != symbol_column
        ),
        time_format=time_format,
        zone=zone,
        timeframe=timeframe,
        rows=len(open_us),
        gaps=count_gaps(open_us, timeframe, instrument),
        first=from_us(open_us[0]),
        last=from_us(open_us[-1]),
    )
    return align((instrument.id,), timeframe, [bars]), report


def _load(path: Path) -> _Columns:
    """The columns in their order."""
    name = path.name.lower()
    try:
        if path.is_dir():
            raise Refused("is a directory", "name one file")
        if name.endswith(".parquet"):
            return [(column.name, column) for column in pl.read_parquet(path.read_bytes())]
        if name.endswith(".csv.gz"):
            return _csv_columns(gzip.decompress(path.read_bytes()))
        if name.endswith(".csv"):
            return _csv_columns(path.read_bytes())
    except FileNotFoundError:
        raise Refused("there is no such file", "check the path") from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise Refused(f"is broken gzip ({error})", "fetch or compress it again") from error
    except OSError as error:
        raise Refused(f"cannot be read ({error.strerror})", "check its permissions") from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        # Polars panics at some damaged files, which is no `Exception` and would end the process.
        raise Refused("is not a Parquet file", "write it again, or give CSV") from error
    raise Refused("has an unknown ending", "give a .csv, .csv.gz or .parquet file")


def _csv_columns(content: bytes) -> _Columns:
    """Every cell as text, so that what cannot be parsed can be named with its row."""
    try:
        header, _, body = content.decode("utf-8-sig").rstrip().partition("\n")
        names = next(csv.reader([header], strict=True), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise Refused("is not text", "give comma-separated values with a header line") from error
    if "\0" in header:
        raise Refused("is not text", "give comma-separated values with a header line")
    if not names:
        raise Refused("is empty, or its first line is", "give comma-separated values with a header line")
    schema = {str(index): pl.String for index in range(len(names))}
    try:
        table = pl.read_csv(body.encode(), has_header=False, schema=schema)
    except pl.exceptions.PolarsError as error:
        widths = np.array([line.count(",") + 1 for line in body.split("\n")])
        wrong = np.flatnonzero(widths != len(names))
        if not len(wrong):
            raise Refused("is not CSV", "give comma-separated values with a header line") from error
        raise Refused(
            f"{widths[wrong[0]]} cells under a header of {len(names)}", "correct them", int(wrong[0]), len(wrong)
        ) from error
    return list(zip(names, table.get_columns(), strict=True))


def _choose(columns: _Columns) -> dict[str, int]:
    """The index of the column for each field that is there."""
    plain = [name.strip().lower().replace(" ", "_") for name, _ in columns]
    chosen = {}
    for field, synonyms in _SYNONYMS.items():
        found = [index for index, name in enumerate(plain) if name in synonyms]
        if len(found) > 1:
            names = " and ".join(columns[index][0] for index in found)
            raise Refused(f"columns {names} could each be the {field}", "keep one of them")
        if found:
            chosen[field] = found[0]
    if missing := [field for field in _REQUIRED if field not in chosen]:
        shown = ", ".join(repr(name) for name, _ in columns[:12])
        raise Refused(f"no column for {', '.join(missing)} among {shown:.300}", "name them in the header line")
    return chosen


def _several(columns: _Columns, chosen: Mapping[str, int]) -> tuple[str, pl.Series] | None:
    """The column that says which instrument a row is of, as text, where there are several.

    They are never one series, whatever order their rows have.
    """
    for index, (name, column) in enumerate(columns):
        if index not in chosen.values() and name.strip().lower().replace(" ", "_") in _SYMBOLS:
            symbols = column.cast(pl.String, strict=False).str.strip_chars()
            if symbols.drop_nulls().n_unique() > 1:
                return name, symbols
    return None


def _numbers(field: str, column: pl.Series) -> NDArray[np.float64]:
    if not (column.dtype == pl.String or column.dtype.is_numeric()):
        raise Refused(f"{field} is a column of {column.dtype}", "give numbers")
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    if field == "funding_rate":  # there is none at most bars
        column = column.replace("", None).fill_null("0") if column.dtype == pl.String else column.fill_null(0)
    values = column.cast(pl.Float64, strict=False)
    _refuse_nulls(field, column, values, "give a number")
    return values.to_numpy()


def _times(column: pl.Series) -> tuple[NDArray[np.int64], str, str]:
    """Microseconds since the epoch, the format, the zone."""
    if column.dtype.is_temporal() and column.dtype != pl.Time and column.dtype != pl.Duration:
        _refuse_nulls("time", column, column, "give one for each row")
        zone = getattr(column.dtype, "time_zone", None) or _NO_ZONE
        name = "date" if column.dtype == pl.Date else "Parquet timestamp"
        return column.cast(pl.Datetime("us")).to_physical().to_numpy(), name, zone
    if column.dtype.is_numeric():
        return _epoch(column)
    if column.dtype != pl.String:
        raise Refused(f"time is a column of {column.dtype}", "give ISO 8601 or an epoch")
    text = column.str.strip_chars()
    if text.str.contains(r"^-?\d+(\.\d*)?$")[0]:
        return _epoch(text)
    if text.str.contains(_DOTTED)[0]:
        turned = text.str.replace(_DOTTED, "${3}-${2}-${1}")
        stamps, name, zone = _iso(turned.set(~text.str.contains(_DOTTED), None), text)
        return stamps, name.replace("ISO 8601", "DD.MM.YYYY"), zone
    return _iso(text, text)


def _epoch(column: pl.Series) -> tuple[NDArray[np.int64], str, str]:
    whole = column.cast(pl.Int64, strict=False)
    values = whole if not whole.has_nulls() else column.cast(pl.Float64, strict=False)
    _refuse_nulls("time", column, values, "give ISO 8601 or an epoch, the same in each row")
    numbers = values.to_numpy()
    units = np.searchsorted(_EPOCH_BOUNDS, np.abs(numbers), side="right") - 1
    small = np.flatnonzero(units < 0)
    if len(small):
        what = f"time {column[int(small[0])]} is too small for an epoch"
        raise Refused(what, "give ISO 8601, or an epoch after 1973", int(small[0]), len(small))
    other = np.flatnonzero(units != units[0])
    if len(other):
        raise Refused(
            f"time {column[int(other[0])]} is in another unit than those before it",
            "give the same unit in each row",
            int(other[0]),
            len(other),
        )
    unit = int(units[0])
    time_us = numbers // 1000 if unit == 3 else numbers * 1000 ** (2 - unit)
    return np.rint(time_us).astype(np.int64), f"epoch {_EPOCH_UNITS[unit]}", "UTC"


def _iso(text: pl.Series, given: pl.Series) -> tuple[NDArray[np.int64], str, str]:
    """`given` is how the file itself spells `text`."""
    parts = text.str.extract_groups(_ISO).struct.unnest()
    stamps = parts.select(
        pl.concat_str(
            "date",
            pl.lit(" "),
            pl.col("minute").fill_null("00:00"),
            pl.col("second").fill_null(":00"),
            pl.col("fraction").fill_null(""),
        ).str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
    ).to_series()
    _refuse_nulls("time", given, stamps, "give ISO 8601 or an epoch, the same in each row")
    offset_us = _offset_us(parts["zone"])
    name = "ISO 8601" if parts["minute"].null_count() < len(text) else "date"
    zone = _NO_ZONE if offset_us is None else _zone_name(offset_us)
    return stamps.to_physical().to_numpy() - (offset_us or 0), name, zone


def _offset_us(zones: pl.Series) -> int | None:
    """The offset from UTC that all rows share; None where they say none."""
    known = {zone: _parse_zone(zone) for zone in zones.unique()}
    first = known[zones[0]]
    if len(set(known.values())) > 1:
        other = [i for i, zone in enumerate(zones) if known[zone] != first]
        was, now = ("none" if zone is None else repr(zone) for zone in (zones[0], zones[other[0]]))
        raise Refused(f"the zone changes from {was} to {now}", "give all times in UTC", other[0], len(other))
    return first


def _parse_zone(zone: str | None) -> int | None:
    if zone is None:
        return None
    if zone in ("Z", "z", "UTC"):
        return 0
    digits = zone[1:].replace(":", "").ljust(4, "0")
    minutes = int(digits[:2]) * 60 + int(digits[2:])
    return (-minutes if zone[0] == "-" else minutes) * Timeframe.M1.us


def _zone_name(offset_us: int) -> str:
    minutes = abs(offset_us) // Timeframe.M1.us
    return f"{'-' if offset_us < 0 else '+'}{minutes // 60:02}:{minutes % 60:02}" if minutes else "UTC"


def _refuse_nulls(field: str, given: pl.Series, parsed: pl.Series, remedy: str) -> None:
    """Name the first cell that could not be parsed."""
    rows = parsed.is_null().arg_true()
    if len(rows):
        cell = given[int(rows[0])]
        what = f"{field} is empty" if cell in (None, "") else f"{field} {str(cell)[:40]!r} cannot be parsed"
        raise Refused(what, remedy, int(rows[0]), len(rows))
