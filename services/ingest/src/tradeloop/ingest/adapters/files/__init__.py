"""Bars from files as people have them: delimited text, JSON, Parquet and Arrow, packed or not, through polars."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.errors import UserError
from tradeloop.common.market import EVER_US, BarArrays, Instrument, Series, Timeframe, from_us
from tradeloop.common.market.calendars import gaps
from tradeloop.common.messages.ingest import Reading
from tradeloop.ingest.adapters.files.archives import chosen
from tradeloop.ingest.adapters.files.blocks import BLOCK_BYTES, UNPACKED_BYTES, Limits
from tradeloop.ingest.adapters.files.columns import SeveralInstruments as _Several
from tradeloop.ingest.adapters.files.order import FILE_BITS, Rows, merged, together
from tradeloop.ingest.adapters.files.series import BarFile
from tradeloop.ingest.domain import Gate, Refused
from tradeloop.ingest.domain.gate import filled_opens
from tradeloop.ingest.ports import FileReport, whole

__all__ = ["SeveralInstruments", "read_bars", "read_blocks"]

_JUMPS_SAID = 3


class SeveralInstruments(UserError):
    """A file holds several instruments, and it was not said which one is meant."""

    def __init__(self, text: str, column: str, symbols: tuple[str, ...]) -> None:
        super().__init__(text)
        self.column, self.symbols = column, symbols


def read_bars(
    path: str,
    instrument: Instrument,
    timeframe: Timeframe | None = None,
    *,
    reading: Reading | None = None,
    min_rows: int = 10,
) -> tuple[BarArrays, FileReport]:
    """All bars of a file at once, as `read_blocks` gives them."""
    return whole(read_blocks(path, instrument, timeframe, reading=reading, min_rows=min_rows), instrument)


def read_blocks(
    path: str,
    instrument: Instrument,
    timeframe: Timeframe | None = None,
    *,
    reading: Reading | None = None,
    until_us: int = EVER_US,
    min_rows: int = 10,
    gate: Gate | None = None,
    root: Path | None = None,
    block_bytes: int = BLOCK_BYTES,
    unpacked_bytes: int = UNPACKED_BYTES,
) -> Generator[Series, None, FileReport]:
    """The bars of a file, one row a bar, stamped with its open time; with those of `reading.more`, which join it.

    Columns, times, numbers and their order are understood by what is there, said in the report, and overridden by
    `reading`. Of a file that holds several instruments, `FILE#SYMBOL` is one; of an archive, `FILE#MEMBER`. Where a
    `root` is given, files lie under it, links followed. A timeframe that is not given is that of the first block.
    No bar opens after `until_us`; a `gate` that is given checks otherwise.

    Raises `UserError`, one line that names the file, the first offending row (in text its line, from 1) and the
    remedy; `SeveralInstruments` where the path does not say which one of the file.
    """
    reading = reading or Reading()
    files = _Files(path, reading, root, Limits(block_bytes, unpacked_bytes))
    try:
        check = _Check(instrument, gate or Gate(timeframe or reading.timeframe, min_rows, until_us), reading)
        for rows in files.rows():
            if (bars := check.take(rows)) is not None:
                yield bars
        return files.report(check)
    except _Several as error:
        raise SeveralInstruments(f"{path}: {error}: {error.remedy}", error.column, error.symbols) from None
    except Refused as refused:
        raise UserError(files.said(refused)) from refused


class _Files:
    """The files of one instrument."""

    def __init__(self, path: str, reading: Reading, root: Path | None, limits: Limits) -> None:
        self._path, self._reading, self._root, self._limits = path, reading, root, limits
        self.parts: list[BarFile] = []
        self._now = path
        """The path that is being opened."""
        self._overlap = 0

    def rows(self) -> Iterator[Rows]:
        for path in (self._path, *self._reading.more):
            self._now = path
            file, symbols = _split(path)
            if self._root is not None and not Path(file).resolve().is_relative_to(self._root.resolve()):
                raise Refused(f"lies outside of {self._root}", "put it there, or name its folder by INGEST_FILE_ROOT")
            for member, symbol in chosen(Path(file), symbols):
                self.parts.append(BarFile(Path(file), member, symbol, len(self.parts), self._reading, self._limits))
        self._now = self._path
        if len(self.parts) == 1:
            yield from self.parts[0].rows()
        else:
            yield from merged([part.rows() for part in self.parts], self._place, self._on_overlap)

    def _on_overlap(self, rows: int) -> None:
        self._overlap += rows

    def _place(self, place: int) -> str:
        part = self.parts[place >> FILE_BITS]
        return f"{part.table.unit} {place & ((1 << FILE_BITS) - 1)} of {Path(part.table.name).name}"

    def report(self, check: _Check) -> FileReport:
        """The findings in the whole of the files. Raises `Refused` for what is wrong with them as a whole."""
        if not any(part.read for part in self.parts):
            raise Refused("has no rows", "give a longer file")
        for part in self.parts:
            part.check_symbol()
        timeframe = check.end()
        columns: dict[str, str] = {}
        for part in self.parts:
            for field, name in part.columns.items():
                known = columns.get(field, name).split(" or ")
                columns[field] = " or ".join(dict.fromkeys([*known, name]))
        remarks = list(dict.fromkeys(remark for part in self.parts for remark in part.remarks))
        if len(self.parts) > 1:
            names = ", ".join(Path(part.table.name).name for part in self.parts[:3])
            more = f" and {len(self.parts) - 3} more" if len(self.parts) > 3 else ""
            shared = f"{self._overlap:,} bars are in two of them, and agree" if self._overlap else "no bar is in two"
            remarks.append(f"{len(self.parts)} files are joined: {names}{more}; {shared}")
        remarks += check.remarks(self._place)
        times = list(dict.fromkeys(part.times for part in self.parts))
        return FileReport(
            path=self._path,
            columns=columns,
            ignored=tuple(dict.fromkeys(name for part in self.parts for name in part.ignored)),
            time_format=" and ".join(dict.fromkeys(name for name, _ in times)),
            zone=" and ".join(dict.fromkeys(zone for _, zone in times)),
            timeframe=timeframe,
            rows=check.rows,
            gaps=check.gaps,
            first=from_us(check.first_us),
            last=from_us(check.last_us),
            first_open=check.first_open,
            last_close=check.last_close,
            volume=check.volume,
            remarks=tuple(remarks),
        )

    def said(self, refused: Refused) -> str:
        """A verdict in one line."""
        place = what = ""
        path = self._path if len(self.parts) < 2 else ", ".join((self._path, *self._reading.more))
        if len(self.parts) == 0:
            path = self._now
        if refused.row is not None:
            part = self.parts[refused.row >> FILE_BITS]
            place = f", {part.table.unit} {refused.row & ((1 << FILE_BITS) - 1)}"
            if len(self.parts) > 1:
                path = part.table.name
            so_far = " so far" if part.goes_on() else ""
            what = f" ({refused.rows} such rows{so_far})" if refused.rows > 1 else ""
        return f"{path}{place}: {refused.what}{what}: {refused.remedy}"


def _split(path: str) -> tuple[str, Sequence[str]]:
    """A file, and what was named of it."""
    if os.path.exists(path):
        return path, ()
    file, mark, symbol = path.rpartition("#")
    if not mark:
        return path, ()
    inner, more = _split(file)
    return (inner, (*more, symbol)) if os.path.exists(inner) or not more else (path, ())


class _Check:
    """Rows on their way through the gate, and what was seen of them."""

    def __init__(self, instrument: Instrument, gate: Gate, reading: Reading) -> None:
        self._instrument, self._gate, self._reading = instrument, gate, reading
        self.rows = self.gaps = self.first_us = self.last_us = 0
        self.first_open = self.last_close = float("nan")
        self.volume: float | None = None
        self._held: list[Rows] = []
        """Rows that the gate has not seen: too few to know their timeframe."""
        self._filled, self._filled_at = 0, -1
        self._jumps: list[tuple[str, int]] = []

    def take(self, rows: Rows) -> Series | None:
        """The bars of a block, checked; None where there are too few so far. Raises `Refused`."""
        if not len(rows):
            return None
        self._held.append(rows)
        if self.rows + sum(map(len, self._held)) < self._gate.min_rows:
            return None
        every = together(self._held)
        self._held.clear()
        bars = every.bars
        if "zero-opens" in self._reading.repair:
            first = np.flatnonzero(bars["open"] == 0)
            bars, count = filled_opens(bars, self.last_close)
            self._filled_at = int(every.places[first[0]]) if count and not self._filled else self._filled_at
            self._filled += count
        try:
            bars = self._gate.take(bars)
        except Refused as refused:
            raise refused.among(every.places) from refused
        assert self._gate.timeframe is not None
        open_us = bars["open_us"].astype(np.int64)
        before = [self.last_us] if self.rows else []
        joined_us: NDArray[np.int64] = np.append(np.array(before, np.int64), open_us)
        self.gaps += len(gaps(joined_us, self._gate.timeframe, self._instrument.calendar))
        if not self.rows:
            self.first_us, self.first_open = int(open_us[0]), float(bars["open"][0])
        if "volume" in bars:
            self.volume = (self.volume or 0.0) + float(bars["volume"].sum())
        self.rows, self.last_us, self.last_close = self.rows + len(open_us), int(open_us[-1]), float(bars["close"][-1])
        self._jumps += [(said, int(every.places[row])) for said, row in self._gate.jumps]
        return bars

    def end(self) -> Timeframe:
        if self._held:
            found = self.rows + sum(map(len, self._held))
            raise Refused(f"{found} rows of bars, fewer than {self._gate.min_rows}", "give a longer file")
        return self._gate.end()

    def remarks(self, place: Callable[[int], str]) -> list[str]:
        said = []
        if self._filled:
            said.append(
                f"{self._filled:,} opens of 0 were replaced by the close before, the first in {place(self._filled_at)}"
            )
        if self._gate.rounded:
            said.append(f"{self._gate.rounded:,} bars: low or high was moved by rounding, to hold open and close")
        said += [f"{place(row)}: {jump}" for jump, row in self._jumps[:_JUMPS_SAID]]
        if len(self._jumps) > _JUMPS_SAID:
            said.append(f"{len(self._jumps) - _JUMPS_SAID:,} more such jumps follow")
        return said
