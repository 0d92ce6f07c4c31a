"""The data gate: what is wrong with bars is refused by its row, what is doubtful about them is said by its row."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.market import BAR_PRICES, EVER_US, Series, Timeframe, from_us
from tradeloop.common.market.columns import is_extra

ROUNDING = 1e-9
"""A share of the price: what an open or close lies outside of its bar by so little is rounding of adjusted prices."""
_HOUR_US, _MINUTE_US, _QUARTER_US = 3_600_000_000, 60_000_000, 900_000_000
_SOME_STEPS = 16
"""Rows whose distances are looked at together: in a market of holes, some of so many follow each other closely."""
_JUMP = 1.4
_UNUSUAL = 12.0
"""How many times a usual move a jump is at least."""
_RATIOS = (1.5, 2, 3, 4, 5, 6, 7, 8, 10, 15, 20, 25, 30, 50, 100, 1000)
_POSITIVE = (
    "positive prices alone can be traded here, since returns and sizes are shares of a price; correct it at its "
    "source, or give another series, such as a back-adjusted one, or one that does not go there"
)
_ZERO_OPEN = (
    "get the opens from its source, or let --repair zero-opens take the close before for the open, which counts as a "
    "price that nobody has seen"
)


class Refused(Exception):
    """The data gate's verdict: what is wrong, what to do, and in which rows (0-based; None: in the whole)."""

    def __init__(self, what: str, remedy: str, row: int | None = None, rows: int = 0) -> None:
        super().__init__(what)
        self.what, self.remedy, self.row, self.rows = what, remedy, row, rows

    def among(self, rows: NDArray[np.int64] | NDArray[np.intp]) -> Refused:
        """The same of bars that are these rows of a greater whole."""
        return Refused(self.what, self.remedy, None if self.row is None else int(rows[self.row]), self.rows)


class Gate:
    """The data gate, for bars that come in blocks."""

    def __init__(self, timeframe: Timeframe | None, min_rows: int, until_us: int = EVER_US) -> None:
        """The timeframe is inferred from the first block, where none is given; `min_rows`, at least 2, are in that
        block; no bar opens after `until_us`."""
        self.min_rows = min_rows
        self.timeframe = timeframe
        self.rounded = 0
        """Bars whose low or high was moved by rounding to hold their open and close."""
        self.jumps: list[tuple[str, int]] = []
        """Words for each jump of the last block that looks like another unit or an unadjusted split, and its row."""
        self._until_us = until_us
        self._last_us: int | None = None
        self._last_close = np.nan
        self._adjacent = False
        """Whether any two rows are one timeframe apart."""

    def take(self, bars: Series) -> Series:
        """Check the next block, and give it with rounding undone: a low and a high hold their open and close.

        `bars` has `open_us`, the four prices, and maybe `volume`, `funding_rate` and further columns, which may lack
        numbers, as they stand in the source.
        Raises `Refused` with the first rule that is broken, and the first row of the block that breaks it.
        """
        open_us = bars["open_us"].astype(np.int64)
        before_us = open_us[:1] - 1 if self._last_us is None else np.array([self._last_us])
        steps = np.diff(open_us, prepend=before_us)
        bars = self._rounded(bars)
        for rule in _rules(bars, steps):
            _enforce(bars, *rule)
        timeframe = self.timeframe or infer_timeframe(open_us)
        known = steps[1:] if self._last_us is None else steps
        _check_distances(known, timeframe, len(steps) - len(known))
        for rule in _times(open_us, known, len(steps) - len(known), timeframe, self._until_us):
            _enforce(bars, *rule)
        self.jumps = _jumps(bars, self._last_close)
        self.timeframe, self._last_us = timeframe, int(open_us[-1])
        self._last_close = float(bars["close"][-1])
        self._adjacent = self._adjacent or bool(_follows(known, timeframe).any())
        return bars

    def end(self) -> Timeframe:
        """Check what only the whole shows; returns the timeframe. Raises `Refused`."""
        if self.timeframe is None or not self._adjacent:
            raise Refused(f"no two rows are {self.timeframe} apart", "give the right timeframe")
        return self.timeframe

    def _rounded(self, bars: Series) -> Series:
        low = np.minimum(np.minimum(bars["open"], bars["close"]), bars["low"])
        high = np.maximum(np.maximum(bars["open"], bars["close"]), bars["high"])
        moved = (low != bars["low"]) | (high != bars["high"])
        if not moved.any():
            return bars
        moved &= np.logical_and.reduce([np.isfinite(bars[name]) & (bars[name] > 0) for name in BAR_PRICES])
        moved &= (bars["low"] <= bars["high"]) & (high <= bars["high"] * (1 + ROUNDING))
        moved &= low * (1 + ROUNDING) >= bars["low"]
        if not moved.any():
            return bars
        self.rounded += int(moved.sum())
        return {**bars, "low": np.where(moved, low, bars["low"]), "high": np.where(moved, high, bars["high"])}


class OpenGate(Gate):
    """A gate that lets all bars pass, for whoever looks for the faults in them."""

    def take(self, bars: Series) -> Series:
        """The bars as they are. Raises `Refused` where no timeframe is given, and no rows tell it."""
        self.timeframe = self.timeframe or infer_timeframe(bars["open_us"].astype(np.int64))
        return bars

    def end(self) -> Timeframe:
        """The timeframe. Raises `Refused` where there were no bars."""
        if self.timeframe is None:
            raise Refused("has no bars", "give a longer file")
        return self.timeframe


_Rule = tuple[NDArray[np.bool_], str, str]
"""The rows that break the rule, words for it with the row's values, and the remedy."""


def _rules(bars: Series, steps: NDArray[np.int64]) -> Iterator[_Rule]:
    """`steps` is how long after the row before it each row comes."""
    for name in bars:
        broken = np.isinf(bars[name]) if is_extra(name) else ~np.isfinite(bars[name])
        yield broken, f"{name} is {{{name}}}", "give a finite number"
    valid = np.logical_and.reduce([bars[name] > 0 for name in ("high", "low", "close")])
    yield (bars["open"] == 0) & valid, "open {open} is not positive", _ZERO_OPEN
    for name in BAR_PRICES:
        yield bars[name] <= 0, f"{name} {{{name}}} is not positive", _POSITIVE
    high, low = bars["high"], bars["low"]
    yield high < low, "high {high} is below low {low}", "see that --columns names the right ones, or correct it"
    for name in ("open", "close"):
        outside = (bars[name] < low) | (bars[name] > high)
        say = f"{name} {{{name}}} lies outside [low {{low}}, high {{high}}]"
        yield outside, say, "take all four prices from one source, all raw or all adjusted"
    if "volume" in bars:
        yield bars["volume"] < 0, "volume {volume} is negative", "correct it at its source"
    yield steps == 0, "{time} comes twice", "keep the row that is right, or name the column that tells the two apart"
    yield steps < 0, "{time} comes after a later time", "sort the rows by time"


def _times(
    open_us: NDArray[np.int64], steps: NDArray[np.int64], first: int, timeframe: Timeframe, until_us: int
) -> Iterator[_Rule]:
    """`steps` are the distances before the rows from `first` on."""
    crooked = open_us % Timeframe.S1.us != 0  # as the last millisecond of a bar is
    if timeframe.us >= _MINUTE_US:
        crooked |= open_us % _MINUTE_US == _MINUTE_US - Timeframe.S1.us
    apart = np.zeros(len(open_us), np.bool_)
    apart[first:] = ~(_follows(steps, timeframe) | _after_a_pause(steps, timeframe))
    say = f"{{time}} is no open time of a {timeframe} bar"
    closes = "give open times and their timeframe; where they are closing times, name the column of the opens"
    yield crooked, say, closes
    yield apart, f"{say} here: it is {{step}} after the row before", "give the right --timeframe, or correct the time"
    ahead = open_us > until_us
    yield ahead, "{time} has not come yet", "correct its year, its unit or its zone, or give a file that ends before"


def _follows(steps: NDArray[np.int64], timeframe: Timeframe) -> NDArray[np.bool_]:
    """Rows at which one bar follows the other without a gap, the clock put on or back by an hour included."""
    follows = np.asarray(steps == timeframe.us)
    if timeframe.us >= 4 * _HOUR_US:
        follows |= np.abs(steps - timeframe.us) == _HOUR_US
    return np.asarray(follows)


def _after_a_pause(steps: NDArray[np.int64], timeframe: Timeframe) -> NDArray[np.bool_]:
    """Rows at which a bar comes later: by whole bars, or by quarters of an hour, as sessions begin when they please."""
    later = np.asarray((steps > timeframe.us) & (steps % timeframe.us == 0))
    if timeframe.us >= 2 * _QUARTER_US:
        later |= (steps > timeframe.us) & (steps % _QUARTER_US == 0)
    return np.asarray(later)


def _check_distances(steps: NDArray[np.int64], timeframe: Timeframe, first: int) -> None:
    """Raise `Refused` where the distance of rows changes for good, as where a file joins days and hours.

    `steps` are the distances before the rows from `first` on.
    """
    follows = _follows(steps, timeframe)
    others: list[tuple[int, int, int]] = []
    for start in range(0, len(steps), _SOME_STEPS):
        some = steps[start : start + _SOME_STEPS]
        if len(some) < _SOME_STEPS // 2 or follows[start : start + _SOME_STEPS].any():
            continue
        distances, counts = np.unique(some, return_counts=True)
        if counts.max() >= 0.6 * len(some):
            others.append((start, start + len(some), int(distances[counts.argmax()])))
    near = np.flatnonzero(follows)
    if not others or not len(near):
        return
    start, stop, distance_us = others[0]
    earlier = near[near < start]
    if len(earlier):
        row, was, now = int(earlier[-1]) + 1, timeframe.us, distance_us
    else:
        row, was, now = int(near[near >= stop][0]), distance_us, timeframe.us
    raise Refused(
        f"the distance of rows changes from {length(was)} to {length(now)}",
        "give the bars of each length in a file of their own",
        max(row + first - 1, 0),  # the bar from which the new distance is measured
    )


def infer_timeframe(open_us: NDArray[np.int64]) -> Timeframe:
    """The most common distance of rows, or where most rows are missing the longest timeframe that divides all."""
    steps = np.diff(open_us)
    distances, counts = np.unique(steps, return_counts=True)
    common_us = int(distances[counts.argmax()])
    known = {timeframe.us: timeframe for timeframe in Timeframe}
    for us in (common_us - _HOUR_US, common_us + _HOUR_US):
        if common_us not in known and us in known and us >= 4 * _HOUR_US and (steps == us).any():
            common_us = us
    common = known.get(common_us)
    if common is not None:
        apart = ~(_follows(steps, common) | _after_a_pause(steps, common))
        shorter = (steps < common_us - _HOUR_US * (common_us >= 4 * _HOUR_US)).mean()
        if counts.max() > 0.4 * len(steps) or (apart.sum() <= 0.2 * len(steps) and shorter <= 0.02):
            return common
    # The few distances of a change of the clock, or of a fault, are no multiple of anything.
    for timeframe in sorted(known.values(), key=lambda one: -one.us):
        found = timeframe.us < common_us and bool((steps == timeframe.us).any())
        if found and (steps % timeframe.us == 0).mean() > 0.95:
            return timeframe
    raise Refused(
        f"most rows are {timedelta(microseconds=common_us)} apart",
        f"give bars of {', '.join(Timeframe)}; where most bars are missing, say theirs by --timeframe",
    )


def length(us: int) -> str:
    """A distance as a timeframe is written, or as hours and minutes."""
    known = {timeframe.us: str(timeframe) for timeframe in Timeframe}
    return known.get(us, str(timedelta(microseconds=us)))


def _jumps(bars: Series, last_close: float) -> list[tuple[str, int]]:
    """Rows at which a price leaves its neighbourhood within a bar, in words, with their numbers."""
    before = np.concatenate([[last_close], bars["close"][:-1]])
    ratios = bars["open"] / before
    moves = np.abs(np.log(ratios))
    within = np.abs(np.log(bars["close"] / bars["open"]))
    usual = float(np.nanmedian(np.abs(np.log(bars["close"] / before)))) if len(before) > 1 else 0.0
    found = []
    for row in np.flatnonzero(np.maximum(moves, within) > np.log(_JUMP)):
        gap = moves[row] >= within[row]
        was, now = (before[row], bars["open"][row]) if gap else (bars["open"][row], bars["close"][row])
        if max(moves[row], within[row]) < _UNUSUAL * usual:
            continue
        ratio = now / was
        size = max(ratio, 1 / ratio)
        like = min(_RATIOS, key=lambda one: abs(size / one - 1))
        looks = ""
        if abs(size / like - 1) < 0.06:
            looks = f", about {'x' if ratio > 1 else '1/'}{like:g}: an unadjusted split, or another unit?"
        found.append((f"the price goes from {was:.6g} to {now:.6g} within a bar ({ratio - 1:+.0%}){looks}", int(row)))
    return found


def filled_opens(bars: Series, last_close: float) -> tuple[Series, int]:
    """The bars, the close before taken for each open of zero and brought into its bar, and how many these are."""
    zero = bars["open"] == 0
    if not zero.any():
        return bars, 0
    before = np.concatenate([[last_close], bars["close"][:-1]])
    before = np.where(np.isfinite(before), before, bars["close"])
    return {**bars, "open": np.where(zero, np.clip(before, bars["low"], bars["high"]), bars["open"])}, int(zero.sum())


def _enforce(bars: Series, broken: NDArray[np.bool_], say: str, remedy: str) -> None:
    rows = np.flatnonzero(broken)
    if len(rows):
        row = int(rows[0])
        values = {name: column[row] for name, column in bars.items()}
        time = from_us(int(bars["open_us"][row])).isoformat()
        step = timedelta(microseconds=int(bars["open_us"][row] - bars["open_us"][row - 1])) if row else "too soon"
        raise Refused(say.format(time=time, step=step, **values), remedy, row, len(rows))
