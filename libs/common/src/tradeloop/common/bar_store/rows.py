"""Stored bars of single instruments, and the arrays on a common grid that a store gives and takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.market import BAR_COLUMNS, BarArrays, Series, Timeframe, align

StoredBar = tuple[int, float, float, float, float, float | None, float]
"""`open_us`, then `BAR_COLUMNS`; a volume of None is not known."""


def rows_of(bars: BarArrays, a: int) -> list[StoredBar]:
    """The bars that instrument `a` has."""
    present = bars.present[:, a]
    columns = [getattr(bars, name)[present, a].tolist() for name in BAR_COLUMNS]
    columns[4] = [None if math.isnan(volume) else volume for volume in columns[4]]
    return list(zip(bars.open_us[present].tolist(), *columns, strict=True))


def columns_of(columns: Sequence[NDArray[np.generic] | Sequence[object]]) -> Series:
    """One instrument's bars from the columns `open_us` and `BAR_COLUMNS`; no columns are no bars."""
    open_us, *values = columns or [()] * (1 + len(BAR_COLUMNS))
    named = {name: np.array(column, dtype=np.float64) for name, column in zip(BAR_COLUMNS, values, strict=True)}
    return {"open_us": np.array(open_us, dtype=np.int64), **named}


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
