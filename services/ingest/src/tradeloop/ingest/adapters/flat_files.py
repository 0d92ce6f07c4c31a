"""`FlatFilesSource`: the history of US stocks from massive's flat files: a gzipped CSV a day, of all tickers.

https://massive.com/docs/flat-files/stocks/overview. A day's file is published on the next one; there is none of a day
without trading.
"""

from __future__ import annotations

import csv
import gzip
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import IO
from zoneinfo import ZoneInfo

import numpy as np

from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.common.market import BAR_PRICES, Instrument, Series, Timeframe, from_us, to_us
from tradeloop.ingest.adapters.http import Throttle
from tradeloop.ingest.adapters.s3 import Bucket
from tradeloop.ingest.adapters.sections import FlatFilesSection
from tradeloop.ingest.adapters.symbols import symbol_of, unknown
from tradeloop.ingest.ports import Channel, MarketStream, Page, SourceUnavailable

_URL = "https://files.massive.com"
_NEW_YORK = ZoneInfo("America/New_York")
_KINDS = {Timeframe.M1: "minute_aggs_v1", Timeframe.D1: "day_aggs_v1"}
_COLUMNS = (*BAR_PRICES, "volume")
_NEEDED = {"ticker", "window_start", *_COLUMNS}
_LOOKBACK_MONTHS = 2
_BROKEN = (EOFError, zlib.error, gzip.BadGzipFile)


class FlatFilesSource:
    """The bars of US stocks as they were traded, adjusted for nothing, before and after trading hours too."""

    def __init__(self, venue: str, section: FlatFilesSection, clock: Clock) -> None:
        """Asks nothing yet. Raises `UserError` for missing secrets."""
        self.venue = venue
        self._section = section
        self._bucket = Bucket(
            venue,
            section.url or _URL,
            section.bucket,
            section.key.read(f"{venue}: its key").get_secret_value(),
            section.secret.read(f"{venue}: its secret"),
            clock,
            section.timeout_s,
            Throttle(section.requests_per_s, clock).take,
        )
        self._clock = clock
        self._tickers: frozenset[str] | None = None

    def instruments(self, symbols: Sequence[str]) -> Sequence[Instrument]:
        for symbol in symbols:
            self._check(symbol)
        return [Instrument(id=f"{self.venue}:{symbol}", tick_size=0.01, calendar="sessions") for symbol in symbols]

    def history(self, instrument: Instrument, timeframe: Timeframe, start_us: int, end_us: int) -> Iterator[Page]:
        symbol = symbol_of(self.venue, instrument)
        if timeframe not in _KINDS:
            raise UserError(f"{self.venue} has no bars of {timeframe}: it has 1m and 1d")
        self._check(symbol)
        return self._pages(symbol, timeframe, start_us, end_us)

    def stream(
        self, instruments: Sequence[Instrument], timeframe: Timeframe, channels: frozenset[Channel]
    ) -> MarketStream:
        raise UserError(f"{self.venue} has files and no live data: stream from massive")

    def time_us(self) -> int:
        return to_us(self._days(_KINDS[Timeframe.D1], self._clock.now().date())[1])

    def close(self) -> None:
        """Nothing is held open."""

    def _pages(self, symbol: str, timeframe: Timeframe, start_us: int, end_us: int) -> Iterator[Page]:
        """A page for each day, empty without trading, up to the newest one whose file is there."""
        if start_us >= end_us:
            return
        newest = self._newest(timeframe)
        day, at_us = from_us(start_us).astimezone(_NEW_YORK).date(), start_us
        there: frozenset[date] = frozenset()
        month = (0, 0)
        while at_us < end_us and day <= newest:
            if month != (day.year, day.month):
                month = day.year, day.month
                there = self._days(_KINDS[timeframe], day)[0]
            until_us = min(to_us(_midnight(day + timedelta(days=1))), end_us)
            rows = self._rows(symbol, timeframe, day) if day in there else []
            yield Page(_series([row for row in rows if at_us <= row[0] < until_us]), until_us)
            at_us, day = until_us, day + timedelta(days=1)

    def _newest(self, timeframe: Timeframe) -> date:
        """The newest day that has a file. A day before it that has none had no trading."""
        month = from_us(self.time_us()).astimezone(_NEW_YORK).date()
        for _ in range(_LOOKBACK_MONTHS):
            days, _now = self._days(_KINDS[timeframe], month)
            if days:
                return max(days)
            month = month.replace(day=1) - timedelta(days=1)
        raise UserError(
            f"{self.venue} has no files of the last {_LOOKBACK_MONTHS} months under {self._section.prefix}/"
            f"{_KINDS[timeframe]}: see its bucket and prefix, and the plan of its key"
        )

    def _days(self, kind: str, month: date) -> tuple[frozenset[date], datetime]:
        """The days of a month that have a file, and the time of the server."""
        folder = f"{self._section.prefix}/{kind}/{month:%Y/%m}/"
        keys, now = self._bucket.keys(folder)
        days = set()
        for key in keys:
            name = key.removeprefix(folder).removesuffix(".csv.gz")
            try:
                days.add(date.fromisoformat(name))
            except ValueError:
                continue  # whatever else is in the folder
        return frozenset(days), now

    def _rows(self, symbol: str, timeframe: Timeframe, day: date) -> list[tuple[float, ...]]:
        """The bars of one ticker in the file of a day, in order."""
        with self._file(_KINDS[timeframe], day) as lines:
            where = self._columns(lines, day)
            mine = f"{symbol},".encode() if where["ticker"] == 0 else None
            found = []
            for line in lines:
                if mine is not None and not line.startswith(mine):
                    continue
                row = next(csv.reader([line.decode()]), [])
                if not row or row[where["ticker"]] != symbol:
                    continue
                try:
                    values = (float(row[where[name]]) for name in _COLUMNS)
                    found.append((int(row[where["window_start"]]) // 1000, *values))
                except (ValueError, IndexError):
                    raise UserError(
                        f"{self.venue}: its file of {day} has a line that is no bar: {line[:80]!r}"
                    ) from None
        return sorted(found)

    def _columns(self, lines: Iterator[bytes], day: date) -> dict[str, int]:
        names = next(csv.reader([next(lines, b"").decode(errors="replace")]), [])
        if missing := _NEEDED - set(names):
            raise UserError(f"{self.venue}: its file of {day} has no column {min(missing)}")
        return {name: place for place, name in enumerate(names)}

    @contextmanager
    def _file(self, kind: str, day: date) -> Iterator[Iterator[bytes]]:
        """The lines of a day's file: from the folder where files are kept, or as they come."""
        key = f"{self._section.prefix}/{kind}/{day:%Y/%m/%Y-%m-%d}.csv.gz"
        try:
            if self._section.folder is None:
                with self._object(key, day) as source, gzip.GzipFile(fileobj=source) as lines:
                    yield iter(lines)
                return
            if not (kept := self._section.folder / key).exists():
                with self._object(key, day) as source:
                    _keep(source, kept)
        except _BROKEN as error:
            raise SourceUnavailable(f"{self.venue}: its file of {day} breaks off: {error}") from None
        try:
            with gzip.open(kept, "rb") as lines:
                yield iter(lines)
        except _BROKEN as error:
            raise UserError(f"{kept} breaks off: {error}: delete it, and it is fetched again") from None

    @contextmanager
    def _object(self, key: str, day: date) -> Iterator[IO[bytes]]:
        with self._bucket.object(key) as source:
            if source is None:
                raise SourceUnavailable(f"{self.venue}: its file of {day} is listed, and is not there")
            yield source

    def _check(self, symbol: str) -> None:
        """Raise `UserError` for a ticker that is not in the newest file of days."""
        if not self._section.check_symbols:
            return
        if self._tickers is None:
            newest = self._newest(Timeframe.D1)
            with self._file(_KINDS[Timeframe.D1], newest) as lines:
                place = self._columns(lines, newest)["ticker"]
                self._tickers = frozenset(row[place] for row in csv.reader(line.decode() for line in lines))
        if symbol not in self._tickers:
            error = unknown(self.venue, symbol, self._tickers)
            raise UserError(f"{error}; one that was delisted is fetched with check_symbols: false")


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), tzinfo=_NEW_YORK).astimezone(UTC)


def _keep(source: IO[bytes], path: Path) -> None:
    """Write a file that is whole, or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        with gzip.open(part, "rb") as whole:
            while whole.read(1 << 20):
                pass
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _series(rows: Sequence[tuple[float, ...]]) -> Series:
    columns = {name: np.array([row[place] for row in rows], dtype=np.float64) for place, name in enumerate(_COLUMNS, 1)}
    return {"open_us": np.array([row[0] for row in rows], dtype=np.int64), **columns}
