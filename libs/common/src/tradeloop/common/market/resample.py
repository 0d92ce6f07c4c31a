"""Bars of a longer timeframe out of bars of a shorter one.

A base bar belongs to the bucket in which it closes, wherever it opens: so a longer bar holds nothing that was not known
at its own close, also where base bars open at half past or at 22:00. On a grid of whole multiples that is the bucket in
which it opens, too. Buckets are aligned to the epoch, those of a day and of a week to the days of the market (`days`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.market.bars import BAR_PRICES, BarArrays, Series, align
from tradeloop.common.market.columns import aggregated
from tradeloop.common.market.days import UTC_DAYS, Days, Times
from tradeloop.common.market.instruments import Timeframe


def bucket_us(open_us: Times, base: Timeframe, target: Timeframe, days: Days = UTC_DAYS) -> Times:
    """Where the target's bucket begins that holds the base bars which opened then."""
    return days.bucket_us(open_us + base.us, target.us)


def begins_us(open_us: int, base: Timeframe, timeframes: Iterable[Timeframe], days: Days) -> int:
    """Where the first of the buckets begins that hold this base bar, or are open when it closes.

    The base bars that close later make all of them whole.
    """
    return min((days.open_us(open_us + base.us, one.us) for one in timeframes), default=open_us)


def whole_us(time_us: int, length_us: int) -> int:
    """The last time up to this one at which a bucket of that length begins, where days begin in UTC."""
    return UTC_DAYS.bucket_us(time_us + 1, length_us)


def cycle_us(timeframes: Iterable[Timeframe]) -> int:
    """The length of the shortest bucket that whole buckets of all these timeframes fill: of 3m and 5m, 15 minutes.

    Where days do not begin in UTC, none begins where those of a day do.
    """
    return math.lcm(*(timeframe.us for timeframe in timeframes))


def resample(
    bars: BarArrays, base: Timeframe, target: Timeframe, closed_us: int | None = None, days: Days = UTC_DAYS
) -> BarArrays:
    """Aggregate bars to a longer timeframe.

    A bucket holds the bars that closed in it; gaps make a bucket shorter, never wrong. The last bucket is left
    out unless it is closed: no bar that opens before `closed_us` is still to come. By default that is the last
    bar's close. Sums run in the order of time, so that a running sum has the same bits; further columns follow the
    rules of `columns`. Raises `ValueError` when `target` is no multiple of `base`.
    """
    if target.us % base.us:
        raise ValueError(f"{target} is no multiple of {base}")
    bucket = bucket_us(bars.open_us, base, target, days)
    if len(bars):
        closed = bucket + target.us <= (bars.close_us[-1] if closed_us is None else closed_us)
        bars, bucket = bars.slice(0, int(closed.sum())), bucket[closed]
    return align(bars.instruments, target, [_buckets(bars, bucket, a) for a in range(len(bars.instruments))])


def _buckets(bars: BarArrays, bucket: NDArray[np.int64], a: int) -> Series:
    """One instrument's bars, aggregated by the bucket of each frame."""
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
