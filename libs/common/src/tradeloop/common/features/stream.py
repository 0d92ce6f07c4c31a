"""A feature set carried forward one frame at a time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.arrays import Floats
from tradeloop.common.features.feature import ANCHOR_BARS, FIELDS, BarValues, Feature, Row, placed
from tradeloop.common.features.feature_set import FeatureSet, check_volume, infinite_value, no_volume, own_bars
from tradeloop.common.market import BarArrays, Timeframe

_FIELDS = len(FIELDS)

Values = tuple[tuple[float, ...], ...]
"""Features by instrument, then by place in the set; NaN while one is warming up."""


class FeatureStream:
    """The values of `FeatureSet.compute`, bit for bit, one closed frame after the other.

    After an error the stream is in no defined state: open it again.
    """

    def __init__(self, feature_set: FeatureSet, base: Timeframe, instruments: Sequence[str]) -> None:
        feature_set.check_base(base)
        feature_set.check_instruments(instruments)
        self._feature_set = feature_set
        self._base, self._instruments = base, tuple(instruments)
        self._values = [[math.nan] * len(feature_set.features) for _ in instruments]
        self._series = {
            timeframe: [
                _Series(instrument, timeframe, feature_set.of(timeframe), feature_set.layout, values)
                for instrument, values in zip(instruments, self._values, strict=True)
            ]
            for timeframe in (base, *feature_set.timeframes)
        }
        self._last_open_us: dict[Timeframe, int | None] = dict.fromkeys(self._series)
        self._visible_from_us = 0

    def last_open_us(self, timeframe: Timeframe) -> int | None:
        """When the newest frame of a timeframe opened; None before the first."""
        return self._last_open_us[timeframe]

    def open(self, bars: Mapping[Timeframe, BarArrays]) -> None:
        """Begin anew from what precedes the next base frame, of every timeframe; zero frames where there are none.

        For values equal to those of a stream that saw everything, give each instrument `FeatureSet.history` of its
        own bars of every timeframe, or all that there are: base bars that opened before the next base frame, and
        higher bars that closed no later than that frame closes. Raises `FeatureError`.
        """
        self._visible_from_us = 0
        for timeframe, series in self._series.items():
            source = bars[timeframe]
            if source.instruments != self._instruments:
                raise ValueError(f"bars of {source.instruments} for a stream of {self._instruments}")
            for a, one in enumerate(series):
                open_us, columns, _ = own_bars(source, a, self._feature_set.extras)
                one.open(open_us, columns)
            self._last_open_us[timeframe] = int(source.open_us[-1]) if len(source) else None
            if timeframe is not self._base and len(source):
                self._visible_from_us = max(self._visible_from_us, int(source.close_us[-1]))

    def update(
        self, open_us: int, close_us: int, rows: Sequence[BarValues | None], outside: Collection[str] | None = None
    ) -> Values:
        """Take the next base frame, one row per instrument, None where it has no bar; the values as of its close.

        `outside` are the instruments that do not belong to the universe then; None where all always do.

        Raises `FeatureError`, and ValueError for a frame out of order.
        """
        if close_us < self._visible_from_us:
            raise ValueError(f"a higher frame that closes at {self._visible_from_us} came before its end, {close_us}")
        self._take(self._base, open_us, rows)
        if not self._feature_set.cross_sections and not outside:
            return tuple(map(tuple, self._values))
        combined = np.array([self._values])
        away = frozenset(outside or ())
        inside = None if outside is None else np.array([[one not in away for one in self._instruments]])
        self._feature_set.combine(combined, self._instruments, inside)
        return tuple(map(tuple, combined[0].tolist()))

    def update_higher(
        self, timeframe: Timeframe, open_us: int, close_us: int, rows: Sequence[BarValues | None]
    ) -> None:
        """Take the next frame of a higher timeframe, before the first base frame that closes with it or later.

        Raises `FeatureError`, and ValueError for a frame out of order.
        """
        self._take(timeframe, open_us, rows)
        self._visible_from_us = max(self._visible_from_us, close_us)

    def _take(self, timeframe: Timeframe, open_us: int, rows: Sequence[BarValues | None]) -> None:
        last = self._last_open_us[timeframe]
        if last is not None and open_us <= last:
            raise ValueError(f"a {timeframe} frame that opened at {open_us} came after one that opened at {last}")
        self._last_open_us[timeframe] = open_us
        for series, row in zip(self._series[timeframe], rows, strict=True):
            if row is not None:
                series.update(open_us, row)


class _Series:
    """The features of one instrument on one timeframe. Writes their values into their places of `values`."""

    def __init__(
        self,
        instrument: str,
        timeframe: Timeframe,
        features: Sequence[tuple[int, Feature]],
        layout: Sequence[str],
        values: list[float],
    ) -> None:
        self._instrument, self._features, self._values = instrument, features, values
        self._states = [(place, feature, placed(feature, layout)) for place, feature in features]
        self._updates = [(place, feature, state.update) for place, feature, state in self._states]
        self._width = len(layout)
        self._volume_reader = next((f for _, f in features if "volume" in f.inputs), None)
        self._timeframe_us, self._block_us = timeframe.us, ANCHOR_BARS * timeframe.us
        self._block: int | None = None
        self._longest = max((feature.history for _, feature in features), default=0)
        self._history: deque[Row] = deque(maxlen=self._longest)

    def open(self, open_us: NDArray[np.int64], columns: Floats) -> None:
        """Begin anew after these bars: at the last anchor before the newest of them."""
        check_volume(self._features, self._instrument, open_us, columns)
        blocks = open_us // self._block_us
        self._block = int(blocks[-1]) if len(blocks) else None
        anchor = int(np.searchsorted(blocks, blocks[-1])) if len(blocks) else 0
        for place, feature, state in self._states:
            value = self._values[place] = state.open(columns[:, max(0, anchor - feature.history) :])
            if math.isinf(value):
                raise infinite_value(feature, self._instrument, int(open_us[-1]))
        self._history.clear()
        self._history.extend(zip(*columns[:, max(0, columns.shape[1] - self._longest) :].tolist(), strict=True))

    def update(self, open_us: int, bar: BarValues) -> None:
        if self._volume_reader is not None and math.isnan(bar[4]):
            raise no_volume(self._volume_reader, self._instrument, open_us)
        close_s = (open_us + self._timeframe_us) / 1e6
        row: Row = (*bar, close_s) if len(bar) == _FIELDS else (*bar[:_FIELDS], close_s, *bar[_FIELDS:])
        block = open_us // self._block_us
        if block != self._block:
            self._block = block
            columns = np.array(self._history).reshape(-1, self._width).T.copy()
            for _, feature, state in self._states:
                state.open(columns[:, max(0, columns.shape[1] - feature.history) :])
        values, infinite = self._values, math.isinf
        for place, feature, take in self._updates:
            value = values[place] = take(row)
            if infinite(value):
                raise infinite_value(feature, self._instrument, open_us)
        self._history.append(row)
