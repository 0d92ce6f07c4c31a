"""Bars of a longer timeframe out of bars of a shorter one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.market.bars import BAR_PRICES, BarArrays, Series, align
from tradeloop.common.market.columns import aggregated
from tradeloop.common.market.instruments import Timeframe


def resample(bars: BarArrays, base: Timeframe, target: Timeframe, closed_us: int | None = None) -> BarArrays:
    """Aggregate bars to a longer timeframe, by buckets aligned to the epoch.

    A bucket holds the bars that opened in it; gaps make a bucket shorter, never wrong. The last bucket is left
    out unless it is closed: no bar that opens before `closed_us` is still to come. By default that is the last
    bar's close. Sums run in the order of time, so that a running sum has the same bits; further columns follow the
    rules of `columns`. Raises `ValueError` when `target` is no multiple of `base`.
    """
    if target.us % base.us:
        raise ValueError(f"{target} is no multiple of {base}")
    bucket = bars.open_us // target.us * target.us
    if len(bars):
        closed = bucket + target.us <= (bars.close_us[-1] if closed_us is None else closed_us)
        bars, bucket = bars.slice(0, int(closed.sum())), bucket[closed]
    return align(bars.instruments, target, [_buckets(bars, bucket, a) for a in range(len(bars.instruments))])


def _buckets(bars: BarArrays, bucket: NDArray[np.int64], a: int) -> Series:
    """One instrument's bars, aggregated by the bucket that each frame opened in."""
    rows = np.flatnonzero(bars.present[:, a])
    opens, first, group = np.unique(bucket[rows], return_index=True, return_inverse=True)
    if not len(rows):
        return {"open_us": opens, **{name: np.empty(0) for name in BAR_PRICES}}
    last = np.r_[first[1:], len(rows)] - 1
    volume = bars.volume[rows, a]
    extra = {name: aggregated(name, one[rows, a], volume, group, len(opens)) for name, one in bars.extra.items()}
    return {
        "open_us": opens,
        "open": bars.open[rows[first], a],
        "high": np.maximum.reduceat(bars.high[rows, a], first),
        "low": np.minimum.reduceat(bars.low[rows, a], first),
        "close": bars.close[rows[last], a],
        # bincount adds one by one, unlike reduceat, whose pairwise sums differ in the last bits.
        "volume": np.bincount(group, volume),
        "funding_rate": np.bincount(group, bars.funding_rate[rows, a]),
        **extra,
    }
