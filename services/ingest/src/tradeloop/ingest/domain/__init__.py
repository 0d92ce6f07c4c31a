"""The data gate, and frames of bars: pure rules over arrays and messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.market import (
    BAR_COLUMNS,
    Bar,
    BarArrays,
    Timeframe,
    Universe,
    align,
    from_us,
    to_us,
)
from tradeloop.common.market.columns import Bucket
from tradeloop.common.market.days import DAY_US
from tradeloop.common.messages import BarFrame
from tradeloop.ingest.domain.facts import NOTHING, Facts, Told
from tradeloop.ingest.domain.gate import Gate, OpenGate, Refused

__all__ = [
    "Facts",
    "Gate",
    "OpenGate",
    "Refused",
    "Resampler",
    "additions",
    "corrections",
    "frames",
    "runs",
    "together",
]


def together(timeframe: Timeframe, parts: Sequence[BarArrays]) -> BarArrays:
    """Bars of one instrument each, on their common grid."""
    return align([part.instruments[0] for part in parts], timeframe, [part.series(0) for part in parts])


def additions(bars: BarArrays, stored: BarArrays) -> BarArrays:
    """The bars that are not stored. `stored` has the same instruments."""
    return _picked(bars, bars.present & ~_as_stored(bars, stored)["present"].astype(np.bool_))


def corrections(bars: BarArrays, stored: BarArrays) -> BarArrays:
    """The bars that are stored with other values. `stored` has the same instruments.

    Where the new bars say nothing of a further column, what is stored of it is no error: it stands, and goes with them.
    """
    there = _as_stored(bars, stored)
    nothing = np.full(bars.present.shape, np.nan)
    differs = np.zeros_like(bars.present)
    for name in BAR_COLUMNS:
        new, old = getattr(bars, name), there[name]
        differs |= (new != old) & ~(np.isnan(new) & np.isnan(old))
    extra = {}
    for name in bars.extra.keys() | stored.extra.keys():
        new, old = bars.extra.get(name, nothing), there.get(name, nothing)
        differs |= (new != old) & ~np.isnan(new)
        extra[name] = np.where(np.isnan(new), old, new)
    picked = differs & bars.present & there["present"].astype(np.bool_)
    return _picked(replace(bars, extra=extra) if extra else bars, picked)


def _as_stored(bars: BarArrays, stored: BarArrays) -> dict[str, NDArray[np.float64]]:
    """The columns of the stored bars on the grid of others, zero where there are none."""
    rows = np.searchsorted(stored.open_us, bars.open_us)
    found = np.append(stored.open_us, -1)[rows] == bars.open_us
    columns = {}
    for name, column in {"present": stored.present, **stored.columns()}.items():
        columns[name] = np.zeros(bars.present.shape)
        columns[name][found] = column[rows[found]]
    return columns


def _picked(bars: BarArrays, present: NDArray[np.bool_]) -> BarArrays:
    """The bars of these places alone."""
    kept = np.flatnonzero(present.any(axis=1))
    return replace(bars.frames(kept), present=present[kept])


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


def frames(universe: str, timeframe: Timeframe, bars: BarArrays, facts: Facts | None = None) -> Iterator[BarFrame]:
    """Each frame as the message that carries it, with the `facts` of its universe."""
    of_each = zip(*(_bars(bars, a) for a in range(len(bars.instruments))), strict=True)
    length = timeframe.delta
    for open_us, row in zip(bars.open_us.tolist(), of_each, strict=True):
        open_time = from_us(open_us)
        lacking = (name for name, bar in zip(bars.instruments, row, strict=True) if bar is None)
        told = NOTHING if facts is None else facts.at(open_us, open_us + timeframe.us)
        yield BarFrame(
            universe=universe,
            timeframe=timeframe,
            open_time=open_time,
            close_time=open_time + length,
            bars=tuple(bar for bar in row if bar is not None),
            missing=tuple(name for name in lacking if name not in told.away),
            **told.fields,
        )


def _bars(bars: BarArrays, a: int) -> Iterator[Bar | None]:
    """The bars of one instrument, None where it has none."""
    # Plain lists: to take single numbers out of an array costs more than all else here.
    columns = [getattr(bars, name)[:, a].tolist() for name in BAR_COLUMNS]
    extras = _extras(bars, a) if bars.extra else repeat(_NOTHING, len(bars))
    for there, extra, *values in zip(bars.present[:, a].tolist(), extras, *columns, strict=True):
        yield _bar(bars.instruments[a], extra, *values) if there else None


_NOTHING: Mapping[str, float] = {}


def _extras(bars: BarArrays, a: int) -> Iterator[Mapping[str, float]]:
    """The further columns that are known of each of an instrument's bars."""
    names = sorted(bars.extra)
    for values in zip(*(bars.extra[name][:, a].tolist() for name in names), strict=True):
        yield {name: value for name, value in zip(names, values, strict=True) if not math.isnan(value)}


def _bar(
    instrument: str,
    extra: Mapping[str, float],
    open: float,
    high: float,
    low: float,
    close: float,
    volume: float,
    funding_rate: float,
) -> Bar:
    known: dict[str, Any] = {"extra": extra} if extra else {}
    return Bar(
        instrument=instrument,
        open=open,
        high=high,
        low=low,
        close=close,
        volume=None if math.isnan(volume) else volume,
        funding_rate=funding_rate,
        **known,
    )


class Resampler:
    """Higher timeframes of a universe from its base frames, one by one: what `market.resample` gives, to the bit.

    A bucket closes with the last base bar that it can hold, or when a later base frame shows that this will not
    come. After a restart, feed it the stored base frames from where a bucket of every timeframe begins; a frame that
    it has seen is not counted again.
    """

    def __init__(self, universe: Universe) -> None:
        self._universe, self._base_us, self._facts = universe, universe.timeframe.us, Facts(universe)
        # Lengths as plain numbers, and buckets by place: this runs for every bar, and enumerations hash slowly.
        timeframes = sorted(universe.higher_timeframes, key=lambda one: one.us)
        self._days = universe.days
        self._timeframes = [(one, one.us, one.us >= DAY_US and not self._days.is_utc) for one in timeframes]
        self._buckets: list[list[_Bucket]] = [[] for _ in timeframes]
        """The buckets of each that have not closed: two where a day of 23 hours is over before its name says so."""
        self._fed_us = -(2**63)

    def feed(self, frame: BarFrame) -> list[BarFrame]:
        """The frames that are closed now that this base frame is, in the order of their closes.

        A frame at or before the last one is ignored, whatever its revision: what was decided on is not re-made.
        """
        open_us = to_us(frame.open_time)
        if open_us <= self._fed_us:
            return []
        self._fed_us = open_us
        close_us = open_us + self._base_us
        rows = [_row(bar) for bar in frame.bars]
        closed = []
        for place, (timeframe, length_us, overlap) in enumerate(self._timeframes):
            buckets = self._buckets[place]
            while buckets and buckets[0].end_us < close_us:
                closed.append(buckets.pop(0).frame(self._universe, self._facts.at))
            if overlap or not buckets:
                start_us = self._days.bucket_us(close_us, length_us)
                if not buckets or buckets[-1].start_us != start_us:
                    buckets.append(_Bucket(timeframe, start_us, length_us))
            buckets[-1].add(rows)
            if buckets[0].end_us == close_us:
                closed.append(buckets.pop(0).frame(self._universe, self._facts.at))
        return sorted(closed, key=lambda frame: frame.close_time) if len(closed) > 1 else closed


_Row = tuple[str, Mapping[str, float], float, float, float, float, float, float]
"""An instrument, the further columns of its bar, and the numbers of it."""


def _row(bar: Bar) -> _Row:
    volume = math.nan if bar.volume is None else bar.volume
    return bar.instrument, bar.extra, bar.open, bar.high, bar.low, bar.close, volume, bar.funding_rate


class _Bucket:
    """A bar of a higher timeframe in the making, for each instrument."""

    def __init__(self, timeframe: Timeframe, start_us: int, length_us: int) -> None:
        self._timeframe, self.start_us = timeframe, start_us
        self.end_us = start_us + length_us
        self._bars: dict[str, list[float]] = {}
        self._extra: dict[str, Bucket] = {}
        """The further columns of each instrument that has any."""

    def add(self, rows: Sequence[_Row]) -> None:
        for instrument, extra, opened, high, low, close, volume, funding in rows:
            sums = self._bars.get(instrument)
            if extra or self._extra:
                if instrument not in self._extra:
                    self._extra[instrument] = Bucket(is_whole=sums is None)
                self._extra[instrument].add(extra, volume)
            if sums is None:
                self._bars[instrument] = [opened, high, low, close, volume, funding]
                continue
            if high > sums[1]:
                sums[1] = high
            if low < sums[2]:
                sums[2] = low
            sums[3] = close
            sums[4] += volume
            sums[5] += funding

    def frame(self, universe: Universe, facts: Callable[[int, int], Told]) -> BarFrame:
        told = facts(self.start_us, self.end_us)
        open_time = from_us(self.start_us)
        extra = {name: bucket.values() for name, bucket in self._extra.items()}
        return BarFrame(
            universe=universe.name,
            timeframe=self._timeframe,
            open_time=open_time,
            close_time=open_time + self._timeframe.delta,
            bars=tuple(
                _bar(name, extra.get(name, _NOTHING), *self._bars[name]) for name in universe.ids if name in self._bars
            ),
            missing=tuple(name for name in universe.ids if name not in self._bars and name not in told.away),
            **told.fields,
        )
