"""`BarFile`: the bars of one instrument in one file, in the order of time, and what was understood of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tradeloop.common.market import BAR_PRICES
from tradeloop.common.messages.ingest import Reading
from tradeloop.ingest.adapters.files.blocks import Block, Columns, Limits
from tradeloop.ingest.adapters.files.columns import Layout, SeveralInstruments, check_names, layout, named
from tradeloop.ingest.adapters.files.numbers import NOTHING, parsed
from tradeloop.ingest.adapters.files.order import FILE_BITS, Rows, is_newest_first, turned
from tradeloop.ingest.adapters.files.tables import goes_on, open_table
from tradeloop.ingest.adapters.files.times import AmbiguousDates
from tradeloop.ingest.domain import Refused

_SAMPLE = 128
"""Rows by which columns are understood; the first block has some thousand."""
_T = TypeVar("_T")


class BarFile:
    """A file, or one in an archive, that is being read."""

    def __init__(
        self, path: Path, member: str | None, symbol: str, number: int, reading: Reading, limits: Limits
    ) -> None:
        """`symbol` is that of the wanted rows, empty where none is named; `number` counts the files."""
        self._path, self._member, self._symbol = path, member, symbol
        self._number, self._reading, self._limits = number, reading, limits
        self.table, self._blocks = open_table(path, member, reading, limits)
        self._layout: Layout | None = None
        self._symbol_column: int | None = None
        self._seen: dict[int, dict[str, None]] = {}
        """The symbols that were seen in each column that may say which instrument a row is of."""
        self._times: tuple[str, str, bool] | None = None
        self.read = 0
        """Rows of the file, of whichever instrument."""
        self.without_prices = 0
        self.newest_first = False

    @property
    def remarks(self) -> list[str]:
        """Lines for people about what could have been understood otherwise."""
        said = [*self.table.remarks, *(self._layout.remarks if self._layout else ())]
        if self.newest_first:
            said.append("the newest bar comes first: sorted by time")
        if self.without_prices and self._layout is not None and not self._layout.sparse:
            said.append(f"{self.without_prices:,} rows have no prices: taken for times without a bar")
        return said

    @property
    def columns(self) -> dict[str, str]:
        return self._layout.used if self._layout else {}

    @property
    def ignored(self) -> tuple[str, ...]:
        return self._layout.ignored(self._symbol_column) if self._layout else ()

    @property
    def times(self) -> tuple[str, str]:
        """The form of the times, and their zone in words."""
        if self._times is None or self._layout is None:
            return "", ""
        name = self._layout.time.form.name
        only_dates = self._times[2] and self._layout.time.form.kind == "text" and name == "ISO 8601"
        return "date" if only_dates else name, self._times[1]

    def goes_on(self) -> bool:
        return goes_on(self._blocks)

    def rows(self) -> Iterator[Rows]:
        """The bars, in the order of time where all rows have one order. Raises `Refused`, with the place of a row."""
        forwards = self._forwards()
        ahead: list[Rows] = []
        for some in forwards:
            if len(some):
                ahead.append(some)
            if sum(map(len, ahead)) > 1:
                break
        if ahead:
            self.newest_first = is_newest_first(np.concatenate([some.bars["open_us"] for some in ahead]))
        every = _chain(ahead, forwards)
        yield from turned(every) if self.newest_first else every

    def check_symbol(self) -> None:
        """Raise `Refused` where the wanted symbol was in no row."""
        if self._symbol and self._symbol_column is None and self._layout is not None and not self._layout.sparse:
            if not self._layout.symbols:
                raise Refused(
                    f"has no column of instruments, such as symbol, with a {self._symbol}", "leave #SYMBOL out"
                )
            index, symbols = next(iter(self._seen.items()))
            raise Refused(named(f"column {self._layout.names[index]}", [*symbols]), f"{self._symbol} is none of them")

    def _forwards(self) -> Iterator[Rows]:
        ahead: list[Block] = []
        for block in self._blocks:
            ahead.append(block)
            if sum(len(one.places) for one in ahead) >= _SAMPLE:
                break
        if not ahead or not sum(len(one.places) for one in ahead):
            if ahead and not self._reading.columns:
                check_names([name for name, _ in ahead[0].columns])
            return
        sample = _one_block(ahead)
        self._layout = self._understand(sample.columns, sample.places)
        self._seen = {index: {} for index in self._layout.symbols}
        for block in _chain(ahead, self._blocks):
            self.read += len(block.places)
            yield self._taken(block)

    def _understand(self, columns: Columns, places: NDArray[np.int64]) -> Layout:
        try:
            return layout(columns, self._reading, self._symbol, self.table.headless)
        except AmbiguousDates:
            return self._understand_by_all()
        except Refused as refused:
            raise self._placed(refused, places) from refused

    def _understand_by_all(self) -> Layout:
        """Look through the whole file for a date that has one reading alone."""
        table, blocks = open_table(self._path, self._member, self._reading, self._limits)
        for block in blocks:
            try:
                return layout(block.columns, self._reading, self._symbol, table.headless)
            except AmbiguousDates as error:
                last = error
        raise last

    def _placed(self, refused: Refused, places: NDArray[np.int64]) -> Refused:
        if isinstance(refused, SeveralInstruments):
            return refused
        return refused.among(self._marked(places))

    def _marked(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return places + (self._number << FILE_BITS)

    def _taken(self, block: Block) -> Rows:
        """The bars of a block."""
        assert self._layout is not None
        wanted = self._mine(block.columns)
        places = self._marked(block.places[wanted])
        columns = [column if len(places) == len(column) else column.gather(wanted) for _, column in block.columns]
        try:
            return self._parsed(columns, places)
        except Refused as refused:
            raise refused.among(places) from refused

    def _parsed(self, columns: list[pl.Series], places: NDArray[np.int64]) -> Rows:
        assert self._layout is not None
        chosen = self._layout.chosen
        if not len(places):
            return Rows({"open_us": np.empty(0, np.int64)} | {name: np.empty(0) for name in chosen}, places)
        times = self._layout.time.parse(columns, self._reading)
        if self._times is not None and self._times[1] != times.zone and "each row" not in self._times[1]:
            before, now = self._times[1], times.zone or ""
            one = {before, now}
            if "each row" not in now and not all(zone == "UTC" or zone[:1] in "+-" for zone in one):
                raise Refused(f"the times change from {before} to {now}", "name the zone in all rows, or in none", 0)
            times_zone = f"{before} and {now.removesuffix(', as each row says')}, as each row says"
        else:
            times_zone = self._times[1] if self._times is not None else times.zone or ""
        self._times = ("", times_zone, times.dates and (self._times is None or self._times[2]))
        empty = np.logical_and.reduce([_is_empty(columns[chosen[name]]) for name in BAR_PRICES])
        open_us = times.us
        if empty.any():
            self.without_prices += int(empty.sum())
            kept = np.flatnonzero(~empty)
            columns, places, open_us = [column.gather(kept) for column in columns], places[kept], open_us[kept]
        bars: dict[str, NDArray[np.float64] | NDArray[np.int64]] = {"open_us": open_us}
        try:
            for name, index in chosen.items():
                bars[name] = parsed(name, columns[index], self._layout.sign)
        except Refused as refused:
            if refused.row is None or not empty.any():
                raise
            raise refused.among(np.flatnonzero(~empty)) from refused
        return Rows(bars, places)

    def _mine(self, columns: Columns) -> NDArray[np.intp]:
        """The rows of the wanted instrument. Several are never one series, whatever order their rows have."""
        assert self._layout is not None
        every = np.arange(len(columns[0][1]))
        if self._layout.sparse:
            return every
        texts = {index: _words(columns[index][1]) for index in self._seen}
        for index, text in texts.items():
            self._seen[index].update(dict.fromkeys(text.drop_nulls().unique(maintain_order=True).to_list()))
        if self._symbol:
            for index, text in texts.items():
                if self._symbol_column in (None, index) and self._symbol in self._seen[index]:
                    self._symbol_column = index
                    return np.flatnonzero((text == self._symbol).fill_null(False).to_numpy())
            return np.empty(0, np.intp)
        for index, symbols in self._seen.items():
            if len(symbols) > 1:
                for more in self._blocks:
                    text = _words(more.columns[index][1])
                    symbols.update(dict.fromkeys(text.drop_nulls().unique(maintain_order=True).to_list()))
                raise SeveralInstruments(f"column {self._layout.names[index]}", [*symbols])
        return every


def _chain(first: list[_T], rest: Iterator[_T]) -> Iterator[_T]:
    yield from first
    yield from rest


def _words(column: pl.Series) -> pl.Series:
    return column.cast(pl.String, strict=False).str.strip_chars()


def _is_empty(column: pl.Series) -> NDArray[np.bool_]:
    if column.dtype.is_float():
        return (column.is_null() | column.is_nan()).to_numpy()
    if column.dtype == pl.String:
        text = column.str.strip_chars().str.to_lowercase()
        return (text.is_null() | text.is_in(NOTHING)).to_numpy()
    return column.is_null().to_numpy()


def _one_block(blocks: list[Block]) -> Block:
    columns = []
    for index, (name, first) in enumerate(blocks[0].columns):
        parts = [block.columns[index][1] for block in blocks]
        if any(part.dtype != first.dtype for part in parts):
            parts = [part.cast(pl.String) for part in parts]
        columns.append((name, pl.concat([part.alias("") for part in parts])))
    return Block(columns, np.concatenate([block.places for block in blocks]))
