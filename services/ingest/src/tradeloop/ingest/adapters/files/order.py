"""Rows in the order of time: a newest-first file turned round, several files of one instrument joined.

Neither holds more than a block of each file in memory: what must wait lies in a temporary file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.market import Series, from_us, joined
from tradeloop.ingest.domain import Refused

FILE_BITS = 40
"""A place is the number of its file, and in this many lower bits that of its row in it."""


@dataclass(frozen=True)
class Rows:
    """Some bars, and where each stands."""

    bars: Series
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def part(self, chosen: NDArray[np.bool_] | NDArray[np.intp] | slice) -> Rows:
        return Rows({name: column[chosen] for name, column in self.bars.items()}, self.places[chosen])


def together(parts: Sequence[Rows]) -> Rows:
    """Rows that follow each other, as one."""
    if len(parts) == 1:
        return parts[0]
    return Rows(joined([part.bars for part in parts]), np.concatenate([part.places for part in parts]))


def is_newest_first(open_us: NDArray[np.int64]) -> bool:
    """Whether most rows are of an earlier time than the row before."""
    steps = np.diff(open_us)
    return int((steps < 0).sum()) > int((steps > 0).sum())


def turned(rows: Iterator[Rows]) -> Iterator[Rows]:
    """The same rows, the last one first."""
    sizes: list[int] = []
    names: list[str] = []
    with tempfile.TemporaryFile() as spool:
        for some in rows:
            names = [*some.bars]
            for name in names:
                spool.write(np.ascontiguousarray(some.bars[name][::-1]).tobytes())
            spool.write(np.ascontiguousarray(some.places[::-1]).tobytes())
            sizes.append(len(some))
        end = spool.tell()
        for size in reversed(sizes):
            end -= 8 * size * (len(names) + 1)
            spool.seek(end)
            columns = [np.frombuffer(spool.read(8 * size), np.int64) for _ in range(len(names) + 1)]
            bars = {
                name: column if name == "open_us" else column.view(np.float64)
                for name, column in zip(names, columns[:-1], strict=True)
            }
            yield Rows(bars, columns[-1])


def merged(
    files: Sequence[Iterator[Rows]], place: Callable[[int], str], on_overlap: Callable[[int], None]
) -> Iterator[Rows]:
    """The rows of several files in the order of time; a bar that several have is given once, where they agree.

    `place` says where a row stands; `on_overlap` is told how many rows were left out so. Raises `Refused` where two
    files disagree, with what both say.
    """
    held = [next(file, None) for file in files]
    while any(rows is not None for rows in held):
        for at, rows in enumerate(held):
            if rows is not None and not len(rows):
                held[at] = next(files[at], None)
        known = [rows for rows in held if rows is not None]
        if not known or not all(map(len, known)):
            continue
        horizon_us = min(int(rows.bars["open_us"][-1]) for rows in known)
        ready = [rows.part(rows.bars["open_us"] <= horizon_us) for rows in known]
        held = [None if rows is None else rows.part(rows.bars["open_us"] > horizon_us) for rows in held]
        ready = [rows for rows in ready if len(rows)]
        if len({frozenset(rows.bars) for rows in ready}) > 1:
            raise _other_columns(ready, place)
        yield _in_order(together(ready), place, on_overlap) if len(ready) > 1 else ready[0]


def _in_order(rows: Rows, place: Callable[[int], str], on_overlap: Callable[[int], None]) -> Rows:
    order = np.argsort(rows.bars["open_us"], kind="stable")
    rows = rows.part(order)
    open_us = rows.bars["open_us"]
    file = rows.places >> FILE_BITS
    again = np.zeros(len(rows), np.bool_)
    again[1:] = (open_us[1:] == open_us[:-1]) & (file[1:] != file[:-1])
    if not again.any():
        return rows
    for name, column in rows.bars.items():
        differs = np.flatnonzero(
            again[1:] & (column[1:] != column[:-1]) & ~(np.isnan(column[1:]) & np.isnan(column[:-1]))
        )
        if len(differs):
            row = int(differs[0])
            one, other = (f"{column[at]} in {place(int(rows.places[at]))}" for at in (row, row + 1))
            raise Refused(
                f"{from_us(int(open_us[row])).isoformat()}: {name} is {one} and {other}",
                "give the file that is right, or a name to each of two instruments, NAME=FILE",
                None,
            )
    on_overlap(int(again.sum()))
    return rows.part(~again)


def _other_columns(ready: Sequence[Rows], place: Callable[[int], str]) -> Refused:
    every = set().union(*(rows.bars for rows in ready))
    lacks = next(rows for rows in ready if set(rows.bars) != every)
    missing = ", ".join(sorted(every - set(lacks.bars)))
    return Refused(f"{place(int(lacks.places[0]))} has no {missing}, and another file has", "give files of one kind")
