"""Faults in the bars of one instrument: all that is wrong, or looks so, where a gate stops at the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.market.bars import BAR_PRICES, Series, overlaps
from tradeloop.common.market.calendars import gaps
from tradeloop.common.market.instruments import Calendar, Timeframe

_ROUNDING = 1e-5
"""How far an open or close may lie beyond the high or low, as adjusted prices do by rounding."""
_SPIKE = 0.5
"""A price is an outlier where it differs by more than this share from the closes before and after, which agree."""
_AGREE = 0.1
_STALE_BARS = 10
"""So many bars in a row that are equal in every number are a feed that repeats its last one."""
_SPLITS = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 15.0, 20.0, 25.0, 50.0, 100.0, 1.5, 1000.0)
_SPLIT_SLACK = 0.02


KINDS = ("price", "range", "volume", "time", "gap", "outlier", "stale", "split")
"""The kinds of faults: the first four are numbers and times that no bar can have."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong, or looks wrong."""

    row: int
    """The bar at which it shows, from 0."""
    open_us: int
    kind: str
    """One of `KINDS`."""
    what: str
    bars: int = 1
    """How many bars from that one on it is about; of a gap, how many are missing."""


def faults(
    bars: Series, timeframe: Timeframe, calendar: Calendar, resting: Sequence[tuple[int, int]] = ()
) -> list[Fault]:
    """All faults, in the order of rows. `bars` are as their source has them, in any order and with any numbers.

    In the times `resting`, such as a halt, no bar is missing.

    Gaps, outliers, repeats and jumps are looked for where the times are in order and the prices are positive.
    """
    open_us = bars["open_us"].astype(np.int64)
    found = [Fault(row, int(open_us[row]), kind, what) for row, kind, what in _broken(bars, open_us, timeframe)]
    bad = np.zeros(len(open_us), np.bool_)
    bad[[fault.row for fault in found]] = True
    rows = np.flatnonzero(~bad)
    sound = {name: column[rows] for name, column in bars.items()}
    found += [
        Fault(int(rows[at]), int(open_us[rows[at]]), kind, what) for at, kind, what in _strange(sound) if at < len(rows)
    ]
    found += [Fault(int(rows[at]), int(open_us[rows[at]]), "stale", what, count) for at, count, what in _stale(sound)]
    times_us = np.unique(open_us)
    for gap in gaps(times_us, timeframe, calendar, resting):
        row = int(np.flatnonzero(open_us == gap.end_us)[0])
        bars_missing = f"{gap.bars:,} bar{'s' * (gap.bars != 1)} missing before it"
        found.append(Fault(row, gap.end_us, "gap", bars_missing, gap.bars))
    return sorted(found, key=lambda fault: (fault.row, fault.kind))


_Found = Iterator[tuple[int, str, str]]
"""The row, the kind, and what is wrong."""


def _broken(bars: Series, open_us: NDArray[np.int64], timeframe: Timeframe) -> _Found:
    """Numbers that no bar can have."""
    for name in BAR_PRICES:
        for row in np.flatnonzero(~(bars[name] > 0) | np.isinf(bars[name])):
            yield int(row), "price", f"{name} is {bars[name][row]}"
    high, low = bars["high"], bars["low"]
    for row in np.flatnonzero(high < low):
        yield int(row), "range", f"high {high[row]} is below low {low[row]}"
    for name in ("open", "close"):
        outside = (bars[name] < low * (1 - _ROUNDING)) | (bars[name] > high * (1 + _ROUNDING))
        for row in np.flatnonzero(outside & (bars[name] > 0) & (high >= low)):
            yield int(row), "range", f"{name} {bars[name][row]} lies outside [low {low[row]}, high {high[row]}]"
    if "volume" in bars:
        for row in np.flatnonzero(bars["volume"] < 0):
            yield int(row), "volume", f"volume is {bars['volume'][row]}"
    steps = np.diff(open_us)
    for row in np.flatnonzero(overlaps(steps, timeframe)):
        step = int(steps[row])
        what = "comes twice" if step == 0 else "comes after a later time" if step < 0 else "opens inside the bar before"
        yield int(row) + 1, "time", what


def _strange(bars: Series) -> _Found:
    """Numbers that a market hardly makes."""
    close = bars["close"]
    if len(close) < 3:
        return
    before, after = close[:-2], close[2:]
    calm = np.abs(after / before - 1) < _AGREE
    for name in BAR_PRICES:
        far = np.abs(bars[name][1:-1] / before - 1) > _SPIKE
        for row in np.flatnonzero(far & calm) + 1:
            yield (
                int(row),
                "outlier",
                f"{name} {bars[name][row]} between closes of {close[row - 1]} and {close[row + 1]}",
            )
    ratio = bars["open"][1:] / close[:-1]
    for factor in _SPLITS:
        for each, words in ((1 / factor, f"{factor:g} for 1"), (factor, f"1 for {factor:g}")):
            for row in np.flatnonzero(np.abs(ratio / each - 1) < _SPLIT_SLACK) + 1:
                if row + 1 >= len(close) or abs(close[row + 1] / bars["open"][row] - 1) < _SPIKE / 2:
                    what = f"opens at {bars['open'][row]} after a close of {close[row - 1]}: a split of {words}?"
                    yield int(row), "split", what


def _stale(bars: Series) -> Iterator[tuple[int, int, str]]:
    """Runs of bars that repeat each other: the first row, how many bars, and words for them."""
    names = [name for name in bars if name != "open_us"]
    same = np.logical_and.reduce([bars[name][1:] == bars[name][:-1] for name in names])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if stop - start + 1 >= _STALE_BARS:
            yield start, stop - start + 1, f"{stop - start + 1:,} bars from here on are equal in every number"
