"""Stored bars of single instruments, and the arrays on a common grid that a store gives and takes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.arrays import Bools
from tradeloop.common.bar_store.port import StoredSeries
from tradeloop.common.market import BAR_COLUMNS, BarArrays, Series, Timeframe, align

STORED = ("open_us", *BAR_COLUMNS, "extra")
"""The columns of a stored bar. The last are its further columns by name, as the text of a JSON object; None where it
has none."""

StoredBar = tuple[int, float, float, float, float, float | None, float, str | None]
"""A row of `STORED`; a volume of None is not known."""


def rows_of(bars: BarArrays, a: int) -> list[StoredBar]:
    """The bars that instrument `a` has."""
    present = bars.present[:, a]
    columns = [getattr(bars, name)[present, a].tolist() for name in BAR_COLUMNS]
    columns[4] = [None if math.isnan(volume) else volume for volume in columns[4]]
    return list(zip(bars.open_us[present].tolist(), *columns, extra_of(bars, a, present), strict=True))


def extra_of(bars: BarArrays, a: int, which: Bools | NDArray[np.intp]) -> Iterable[str | None]:
    """The further columns of some bars of instrument `a`, as they are stored."""
    if not bars.extra:
        return repeat(None, len(bars.open_us[which]))
    return map(_text, _rows(sorted(bars.extra), [bars.extra[name][which, a].tolist() for name in sorted(bars.extra)]))


def _text(row: Mapping[str, float]) -> str | None:
    return json.dumps(row) if row else None


def _rows(names: Sequence[str], columns: Sequence[list[float]]) -> Iterator[Mapping[str, float]]:
    for values in zip(*columns, strict=True):
        yield {name: value for name, value in zip(names, values, strict=True) if not math.isnan(value)}


def columns_of(columns: Sequence[NDArray[np.generic] | Sequence[object]]) -> Series:
    """One instrument's bars from the columns `open_us` and `BAR_COLUMNS`; no columns are no bars."""
    open_us, *values = columns or [()] * (1 + len(BAR_COLUMNS))
    named = {name: np.array(column, dtype=np.float64) for name, column in zip(BAR_COLUMNS, values, strict=True)}
    return {"open_us": np.array(open_us, dtype=np.int64), **named}


def with_extra(bars: Series, extra: Sequence[Mapping[str, float] | None]) -> Series:
    """Bars of one instrument with their further columns; None for a bar without."""
    names = dict.fromkeys(name for row in extra if row for name in row)
    nothing: Mapping[str, float] = {}
    rows = [row or nothing for row in extra] if names else []
    return dict(bars) | {name: np.array([row.get(name, math.nan) for row in rows], np.float64) for name in names}


def parsed(extra: Sequence[object]) -> list[Mapping[str, float] | None]:
    """Further columns as they were before they became text."""
    return [json.loads(text) if isinstance(text, str) else None for text in extra]


def in_order(series: Iterable[StoredSeries]) -> list[StoredSeries]:
    """As `BarStore.series` lists them."""
    return sorted(series, key=lambda one: (one.instrument, one.timeframe.us))


def between(instruments: Sequence[str], timeframe: Timeframe, histories: Sequence[Series], start_us: int) -> BarArrays:
    """Frames from `start_us` on. Histories are in order of time, each bar once; what an instrument has before
    `start_us` says which close it carries into the first frames."""
    firsts = [int(np.searchsorted(history["open_us"], start_us)) for history in histories]
    series = [{name: c[i:] for name, c in history.items()} for i, history in zip(firsts, histories, strict=True)]
    closes = [float(h["close"][i - 1]) if i else math.nan for i, h in zip(firsts, histories, strict=True)]
    return align(instruments, timeframe, series, closes)


def before(
    instruments: Sequence[str], timeframe: Timeframe, histories: Sequence[Series], end_us: int, frames: int
) -> BarArrays:
    """The last frames before `end_us`, from at least the last `frames` bars of each instrument."""
    union = np.unique(np.concatenate([np.empty(0, np.int64), *(history["open_us"] for history in histories)]))
    last = union[max(len(union) - frames, 0) :]
    return between(instruments, timeframe, histories, int(last[0]) if len(last) else end_us)
