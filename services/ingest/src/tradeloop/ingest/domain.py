"""The data gate, and frames of bars: pure rules over arrays and messages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.market import (
    BAR_COLUMNS,
    BAR_PRICES,
    EVER_US,
    Bar,
    BarArrays,
    Series,
    Timeframe,
    Universe,
    align,
    bucket_us,
    from_us,
    overlaps,
    to_us,
)
from tradeloop.common.messages import BarFrame


class Refused(Exception):
    """The data gate's verdict: what is wrong, what to do, and in which rows (0-based; None: in the whole)."""

    def __init__(self, what: str, remedy: str, row: int | None = None, rows: int = 0) -> None:
        super().__init__(what)
        self.what, self.remedy, self.row, self.rows = what, remedy, row, rows

    def among(self, rows: NDArray[np.intp]) -> Refused:
        """The same of bars that are these rows of a greater whole."""
        return Refused(self.what, self.remedy, None if self.row is None else int(rows[self.row]), self.rows)


class Gate:
    """The data gate, for bars that come in blocks."""

    def __init__(self, timeframe: Timeframe | None, min_rows: int, until_us: int = EVER_US) -> None:
        """The timeframe is the most common distance between rows of the first block, where none is given; `min_rows`,
        at least 2, are in that block; no bar opens after `until_us`."""
        self.min_rows = min_rows
        self._timeframe, self._until_us = timeframe, until_us
        self._last_us: int | None = None
        self._adjacent = False
        """Whether any two rows are one timeframe apart."""

    def take(self, bars: Series) -> Timeframe:
        """Check the next block; returns the timeframe.

        `bars` has `open_us`, the four prices, and maybe `volume` and `funding_rate`, as they stand in the source.
        Raises `Refused` with the first rule that is broken, and the first row of the block that breaks it.
        """
        open_us = bars["open_us"].astype(np.int64)
        before_us = open_us[:1] - 1 if self._last_us is None else np.array([self._last_us])
        steps = np.diff(open_us, prepend=before_us)
        for rule in _rules(bars, steps):
            _enforce(bars, *rule)
        timeframe = self._timeframe or _infer_timeframe(open_us)
        crooked = open_us % Timeframe.S1.us != 0  # as the last millisecond of a bar is
        what = f"{{time}} is no open time of a {timeframe} bar"
        _enforce(bars, crooked, what, "give open times, in whole seconds, and their timeframe")
        early = overlaps(steps, timeframe) & (self._last_us is not None or np.arange(len(steps)) > 0)
        what = f"{{time}} comes before the {timeframe} bar before it has closed"
        _enforce(bars, early, what, "give open times and their timeframe")
        ahead = open_us > self._until_us
        _enforce(bars, ahead, "{time} has not come yet", "correct its year, its unit or its zone, or leave it out")
        self._timeframe, self._last_us = timeframe, int(open_us[-1])
        self._adjacent = self._adjacent or bool((steps == timeframe.us).any())
        return timeframe

    def end(self) -> Timeframe:
        """Check what only the whole shows; returns the timeframe. Raises `Refused`."""
        if self._timeframe is None or not self._adjacent:
            raise Refused(f"no two rows are {self._timeframe} apart", "give the right timeframe")
        return self._timeframe


_Rule = tuple[NDArray[np.bool_], str, str]
"""The rows that break the rule, words for it with the row's values, and the remedy."""


def _rules(bars: Series, steps: NDArray[np.int64]) -> Iterator[_Rule]:
    """`steps` is how long after the row before it each row comes."""
    for name in bars:
        yield ~np.isfinite(bars[name]), f"{name} is {{{name}}}", "give a finite number"
    for name in BAR_PRICES:
        yield bars[name] <= 0, f"{name} {{{name}}} is not positive", "correct or remove it"
    high, low = bars["high"], bars["low"]
    yield high < low, "high {high} is below low {low}", "correct or remove it"
    for name in ("open", "close"):
        outside = (bars[name] < low) | (bars[name] > high)
        say = f"{name} {{{name}}} lies outside [low {{low}}, high {{high}}]"
        yield outside, say, "take all four prices from one source, all raw or all adjusted"
    if "volume" in bars:
        yield bars["volume"] < 0, "volume {volume} is negative", "correct or remove it"
    yield steps == 0, "{time} comes twice", "remove the duplicate"
    yield steps < 0, "{time} comes after a later time", "sort the rows by time"


def _enforce(bars: Series, broken: NDArray[np.bool_], say: str, remedy: str) -> None:
    rows = np.flatnonzero(broken)
    if len(rows):
        row = int(rows[0])
        values = {name: column[row] for name, column in bars.items()}
        time = from_us(int(bars["open_us"][row])).isoformat()
        raise Refused(say.format(time=time, **values), remedy, row, len(rows))


def _infer_timeframe(open_us: NDArray[np.int64]) -> Timeframe:
    distances, counts = np.unique(np.diff(open_us), return_counts=True)
    common_us = int(distances[counts.argmax()])
    for timeframe in Timeframe:
        if timeframe.us == common_us:
            return timeframe
    raise Refused(f"most rows are {timedelta(microseconds=common_us)} apart", f"give bars of {', '.join(Timeframe)}")


def together(timeframe: Timeframe, parts: Sequence[BarArrays]) -> BarArrays:
    """Bars of one instrument each, on their common grid."""
    series = [{"open_us": part.open_us, **{name: getattr(part, name)[:, 0] for name in BAR_COLUMNS}} for part in parts]
    return align([part.instruments[0] for part in parts], timeframe, series)


def additions(bars: BarArrays, stored: BarArrays) -> BarArrays:
    """The bars that are not stored. `stored` has the same instruments."""
    return _picked(bars, bars.present & ~_as_stored(bars, stored)["present"].astype(np.bool_))


def corrections(bars: BarArrays, stored: BarArrays) -> BarArrays:
    """The bars that are stored with other values. `stored` has the same instruments."""
    there = _as_stored(bars, stored)
    differs = np.zeros_like(bars.present)
    for name in BAR_COLUMNS:
        new, old = getattr(bars, name), there[name]
        differs |= (new != old) & ~(np.isnan(new) & np.isnan(old))
    return _picked(bars, differs & bars.present & there["present"].astype(np.bool_))


def _as_stored(bars: BarArrays, stored: BarArrays) -> dict[str, NDArray[np.float64]]:
    """The columns of the stored bars on the grid of others, zero where there are none."""
    rows = np.searchsorted(stored.open_us, bars.open_us)
    found = np.append(stored.open_us, -1)[rows] == bars.open_us
    columns = {}
    for name in ("present", *BAR_COLUMNS):
        columns[name] = np.zeros(bars.present.shape)
        columns[name][found] = getattr(stored, name)[rows[found]]
    return columns


def _picked(bars: BarArrays, present: NDArray[np.bool_]) -> BarArrays:
    """The bars of these places alone."""
    kept = present.any(axis=1)
    columns = {f.name: getattr(bars, f.name)[kept] for f in fields(bars) if f.name != "instruments"}
    return replace(bars, **columns | {"present": present[kept]})


def runs(times_us: Iterable[int], timeframe: Timeframe, longest: int) -> Iterator[tuple[int, int]]:
    """The first and last of times that closely follow each other, within so many bars' time at most."""
    first_us = last_us = None
    for time_us in sorted(times_us):
        if first_us is None or last_us is None:
            first_us = time_us
        elif time_us - first_us >= longest * timeframe.us or time_us - last_us > 16 * timeframe.us:
            yield first_us, last_us
            first_us = time_us
        last_us = time_us
    if first_us is not None and last_us is not None:
        yield first_us, last_us


def frames(universe: str, timeframe: Timeframe, bars: BarArrays) -> Iterator[BarFrame]:
    """Each frame as the message that carries it."""
    of_each = zip(*(_bars(bars, a) for a in range(len(bars.instruments))), strict=True)
    length = timeframe.delta
    for open_us, row in zip(bars.open_us.tolist(), of_each, strict=True):
        open_time = from_us(open_us)
        yield BarFrame(
            universe=universe,
            timeframe=timeframe,
            open_time=open_time,
            close_time=open_time + length,
            bars=tuple(bar for bar in row if bar is not None),
            missing=tuple(name for name, bar in zip(bars.instruments, row, strict=True) if bar is None),
        )


def _bars(bars: BarArrays, a: int) -> Iterator[Bar | None]:
    """The bars of one instrument, None where it has none."""
    # Plain lists: to take single numbers out of an array costs more than all else here.
    columns = [getattr(bars, name)[:, a].tolist() for name in BAR_COLUMNS]
    for there, *values in zip(bars.present[:, a].tolist(), *columns, strict=True):
        yield _bar(bars.instruments[a], *values) if there else None


def _bar(
    instrument: str, open: float, high: float, low: float, close: float, volume: float, funding_rate: float
) -> Bar:
    return Bar(
        instrument=instrument,
        open=open,
        high=high,
        low=low,
        close=close,
        volume=None if math.isnan(volume) else volume,
        funding_rate=funding_rate,
    )


class Resampler:
    """Higher timeframes of a universe from its base frames, one by one: what `market.resample` gives, to the bit.

    A bucket closes with the last base bar that it can hold, or when a later base frame shows that this will not
    come. After a restart, feed it the stored base frames from where a bucket of every timeframe begins; a frame that
    it has seen is not counted again.
    """

    def __init__(self, universe: Universe) -> None:
        self._universe = universe
        self._timeframes = sorted(universe.higher_timeframes, key=lambda timeframe: timeframe.us)
        self._buckets: dict[Timeframe, _Bucket] = {}
        self._fed_us = -(2**63)

    def feed(self, frame: BarFrame) -> list[BarFrame]:
        """The frames that are closed now that this base frame is, in the order of their closes.

        A frame at or before the last one is ignored, whatever its revision: what was decided on is not re-made.
        """
        open_us = to_us(frame.open_time)
        if open_us <= self._fed_us:
            return []
        self._fed_us = open_us
        closed = []
        for timeframe in self._timeframes:
            start_us = bucket_us(open_us, self._universe.timeframe, timeframe)
            bucket = self._buckets.get(timeframe)
            if bucket is not None and bucket.start_us < start_us:
                closed.append(bucket.frame(self._universe))
                bucket = None
            if bucket is None:
                bucket = self._buckets[timeframe] = _Bucket(timeframe, start_us)
            bucket.add(frame)
            if bucket.end_us <= open_us + self._universe.timeframe.us:
                closed.append(bucket.frame(self._universe))
                del self._buckets[timeframe]
        return sorted(closed, key=lambda frame: frame.close_time)


class _Bucket:
    """A bar of a higher timeframe in the making, for each instrument."""

    def __init__(self, timeframe: Timeframe, start_us: int) -> None:
        self._timeframe, self.start_us = timeframe, start_us
        self.end_us = start_us + timeframe.us
        self._bars: dict[str, list[float]] = {}

    def add(self, frame: BarFrame) -> None:
        for bar in frame.bars:
            volume = math.nan if bar.volume is None else bar.volume
            sums = self._bars.get(bar.instrument)
            if sums is None:
                self._bars[bar.instrument] = [bar.open, bar.high, bar.low, bar.close, volume, bar.funding_rate]
                continue
            sums[1] = max(sums[1], bar.high)
            sums[2] = min(sums[2], bar.low)
            sums[3] = bar.close
            sums[4] += volume
            sums[5] += bar.funding_rate

    def frame(self, universe: Universe) -> BarFrame:
        open_time = from_us(self.start_us)
        return BarFrame(
            universe=universe.name,
            timeframe=self._timeframe,
            open_time=open_time,
            close_time=open_time + self._timeframe.delta,
            bars=tuple(_bar(name, *self._bars[name]) for name in universe.ids if name in self._bars),
            missing=tuple(name for name in universe.ids if name not in self._bars),
        )
