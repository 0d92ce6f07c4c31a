"""Bars from CSV, gzipped CSV and Parquet files, through polars."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tradeloop.common.errors import UserError
from tradeloop.common.market import BAR_PRICES, EVER_US, BarArrays, Instrument, Series, Timeframe, from_us, joined
from tradeloop.common.market.calendars import gaps
from tradeloop.ingest.adapters.tables import BLOCK_BYTES, UNPACKED_BYTES, Columns, blocks, goes_on
from tradeloop.ingest.domain import Gate, Refused
from tradeloop.ingest.ports import FileReport, whole

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


_NO_ZONE = "none, read as UTC"
_CALENDAR_DATES = frozenset({"ISO 8601", "DD.MM.YYYY", "date"})
"""Formats that may take turns: a file may write its midnights without a time."""
_LIKE_A_NAME = re.compile(r"[\w .:/%()\[\]<>-]{0,40}")


def read_bars(
    path: str, instrument: Instrument, timeframe: Timeframe | None = None, *, min_rows: int = 10
) -> tuple[BarArrays, FileReport]:
    """All bars of a file at once, as `read_blocks` gives them."""
    return whole(read_blocks(path, instrument, timeframe, min_rows=min_rows), instrument)


def read_blocks(
    path: str,
    instrument: Instrument,
    timeframe: Timeframe | None = None,
    *,
    until_us: int = EVER_US,
    min_rows: int = 10,
    root: Path | None = None,
    block_bytes: int = BLOCK_BYTES,
    unpacked_bytes: int = UNPACKED_BYTES,
) -> Generator[Series, None, FileReport]:
    """The bars of a file that ends in `.csv`, `.csv.gz` or `.parquet`, one row a bar, stamped with its open time.

    Columns are found by name, in any case: `timestamp`, `time`, `date`, `datetime`, `open_time` or `ts`; `open`,
    `high`, `low`, `close` or their first letters; `volume`, `vol` or `v`; `funding_rate`, where an empty cell is 0.
    Times are ISO 8601, with a zone or in UTC, or seconds, milli-, micro- or nanoseconds since the epoch, `until_us` at
    the latest. Of a file that holds several instruments, `FILE#SYMBOL` is one. Where a `root` is given, files lie
    under it, links followed. A timeframe that is not given is that of the first block.

    Raises `UserError`, one line that names the file, the first offending row (in CSV its line, the header being
    line 1) and the remedy; `SeveralInstruments` where the path does not say which one of the file.
    """
    file, mark, symbol = path.rpartition("#")
    if not mark or os.path.exists(path):
        file, symbol = path, ""
    tables: Iterator[Columns] = iter(())
    reading = _Reading(symbol, instrument, Gate(timeframe, min_rows, until_us))
    try:
        if root is not None and not Path(file).resolve().is_relative_to(root.resolve()):
            raise Refused(f"lies outside of {root}", "put it there, or name its folder by INGEST_FILE_ROOT")
        tables = blocks(Path(file), block_bytes, unpacked_bytes)
        for columns in tables:
            bars = reading.take(columns, tables)
            if bars is not None:
                yield bars
        return reading.report(path)
    except SeveralInstruments as error:
        raise SeveralInstruments(f"{path}: {error}", error.column, error.symbols) from None
    except Refused as refused:
        place = what = ""
        if refused.row is not None:
            parquet = file.lower().endswith(".parquet")
            place = f", row {refused.row + 1}" if parquet else f", line {refused.row + 2}"
            so_far = " so far" if goes_on(tables) else ""
            what = f" ({refused.rows} such rows{so_far})" if refused.rows > 1 else ""
        raise UserError(f"{path}{place}: {refused.what}{what}: {refused.remedy}") from refused


class _Reading:
    """A file that is being read: what its first block settled, and what of it was seen."""

    def __init__(self, symbol: str, instrument: Instrument, gate: Gate) -> None:
        self._symbol, self._instrument, self._gate = symbol, instrument, gate
        self._names: list[str] = []
        self._chosen: dict[str, int] = {}
        self._symbols: dict[int, dict[str, None]] = {}
        """The symbols that were seen in each column that may say which instrument a row is of."""
        self._symbol_column: int | None = None
        self._rows_read = self._rows = self._gaps = 0
        self._held: list[tuple[Series, NDArray[np.intp]]] = []
        """Bars that the gate has not seen, with their rows in the file: too few to know their timeframe."""
        self._format: tuple[str, str] | None = None
        self._first_us = self._last_us = 0

    def take(self, columns: Columns, rest: Iterator[Columns]) -> Series | None:
        """The bars of a block, checked; None where there are too few so far. Raises `Refused`."""
        if not self._names:
            self._names, self._chosen = [name for name, _ in columns], _choose(columns)
            self._symbols = {
                index: {}
                for index, name in enumerate(self._names)
                if self._is_spare(index) and _plain(name) in _SYMBOLS
            }
        count = len(columns[0][1])
        rows = self._mine(columns, rest)
        numbers = rows + self._rows_read
        self._rows_read += count
        if not len(rows):
            return None
        try:
            bars = self._parsed([column if len(rows) == count else column.gather(rows) for _, column in columns])
        except Refused as refused:
            raise refused.among(numbers) from refused
        self._held.append((bars, numbers))
        if self._rows + sum(len(held) for _, held in self._held) < self._gate.min_rows:
            return None
        return self._checked()

    def report(self, path: str) -> FileReport:
        """The findings in the whole file. Raises `Refused` for what is wrong with it as a whole."""
        if not self._rows_read:
            raise Refused("has no rows", "give a longer file")
        if self._symbol and self._symbol_column is None:
            if not self._symbols:
                raise Refused(
                    f"has no column of instruments, such as symbol, with a {self._symbol}", "leave #SYMBOL out"
                )
            index, symbols = next(iter(self._symbols.items()))
            raise Refused(_named(self._names[index], symbols), f"{self._symbol} is none of them")
        if self._held:
            found = self._rows + sum(len(held) for _, held in self._held)
            raise Refused(f"{found} rows of bars, fewer than {self._gate.min_rows}", "give a longer file")
        time_format, zone = self._format or ("", "")
        return FileReport(
            path=path,
            columns={field: self._names[index] for field, index in self._chosen.items()},
            ignored=tuple(
                name for index, name in enumerate(self._names) if self._is_spare(index) and index != self._symbol_column
            ),
            time_format=time_format,
            zone=zone,
            timeframe=self._gate.end(),
            rows=self._rows,
            gaps=self._gaps,
            first=from_us(self._first_us),
            last=from_us(self._last_us),
        )

    def _is_spare(self, index: int) -> bool:
        return index not in self._chosen.values()

    def _mine(self, columns: Columns, rest: Iterator[Columns]) -> NDArray[np.intp]:
        """The rows of the wanted instrument. Several are never one series, whatever order their rows have."""
        texts = {index: columns[index][1].cast(pl.String, strict=False).str.strip_chars() for index in self._symbols}
        for index, text in texts.items():
            self._symbols[index].update(dict.fromkeys(text.drop_nulls().unique(maintain_order=True).to_list()))
        if self._symbol:
            for index, text in texts.items():
                if self._symbol_column in (None, index) and self._symbol in self._symbols[index]:
                    self._symbol_column = index
                    return np.flatnonzero((text == self._symbol).fill_null(False).to_numpy())
            return np.empty(0, np.intp)
        for index, symbols in self._symbols.items():
            if len(symbols) > 1:
                for more in rest:
                    text = more[index][1].cast(pl.String, strict=False).str.strip_chars()
                    symbols.update(dict.fromkeys(text.drop_nulls().unique(maintain_order=True).to_list()))
                what = _named(self._names[index], symbols)
                raise SeveralInstruments(
                    f"{what}: name one by FILE#SYMBOL, or give a file for each of them",
                    self._names[index],
                    tuple(symbols),
                )
        return np.arange(len(columns[0][1]))

    def _parsed(self, columns: list[pl.Series]) -> Series:
        open_us, time_format, zone = _times(columns[self._chosen["time"]])
        before, self._format = self._format, (time_format, zone)
        if before is not None and before != self._format:
            if before[1] != zone or not {before[0], time_format} <= _CALENDAR_DATES:
                what = f"the times change from {' in '.join(before)} to {time_format} in {zone}"
                raise Refused(what, "give all times in one format and zone", 0)
            self._format = max(before, self._format, key=lambda one: one[0] != "date")
        return {"open_us": open_us} | {
            field: _numbers(field, columns[index]) for field, index in self._chosen.items() if field != "time"
        }

    def _checked(self) -> Series:
        """The bars that were held back, after the gate."""
        numbers = np.concatenate([numbers for _, numbers in self._held])
        bars = joined([bars for bars, _ in self._held])
        self._held.clear()
        try:
            timeframe = self._gate.take(bars)
        except Refused as refused:
            raise refused.among(numbers) from refused
        open_us = bars["open_us"].astype(np.int64)
        before = [self._last_us] if self._rows else []
        times_us = np.append(np.array(before, np.int64), open_us)
        self._gaps += len(gaps(times_us, timeframe, self._instrument.calendar))
        if not self._rows:
            self._first_us = int(open_us[0])
        self._rows, self._last_us = self._rows + len(open_us), int(open_us[-1])
        return bars


def _named(column: str, symbols: Mapping[str, None]) -> str:
    shown = ", ".join([*symbols][:5]) + (", ..." if len(symbols) > 5 else "")
    return f"column {column} names {len(symbols)} instruments ({shown:.200})"


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_")


def _choose(columns: Columns) -> dict[str, int]:
    """The index of the column for each field that is there."""
    plain = [_plain(name) for name, _ in columns]
    chosen = {}
    for field, synonyms in _SYNONYMS.items():
        found = [index for index, name in enumerate(plain) if name in synonyms]
        if len(found) > 1:
            names = " and ".join(columns[index][0] for index in found)
            raise Refused(f"columns {names} could each be the {field}", "keep one of them")
        if found:
            chosen[field] = found[0]
    if missing := [field for field in _REQUIRED if field not in chosen]:
        # What does not look like a header may be anything, which is nobody's business but the file's owner's.
        if not chosen or not all(_LIKE_A_NAME.fullmatch(name) for name, _ in columns):
            raise Refused("its first line is no header", f"name {', '.join(missing)} in it")
        shown = ", ".join(repr(name) for name, _ in columns[:12])
        raise Refused(f"no column for {', '.join(missing)} among {shown:.300}", "name them in the header line")
    return chosen


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
