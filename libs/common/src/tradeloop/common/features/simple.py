"""Features that need no library: returns, closes relative to another feature, and longer timeframes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tradeloop.common.arrays import Floats
from tradeloop.common.features.cross_section import not_of_others
from tradeloop.common.features.feature import (
    CLOSE,
    Feature,
    FeatureError,
    FeatureState,
    Row,
    canonical,
    require_count,
)
from tradeloop.common.market import Timeframe


def log_return(n: int) -> Feature:
    """Natural logarithm of the close over the close `n` bars ago."""
    require_count("log_return", "n", n)
    return _LogReturn(name=f"log_return_{n}", definition=canonical(log_return=n), history=n, inputs=("close",), lag=n)


def relative(feature: Feature) -> Feature:
    """Close over the feature, less 1: turns a price level, such as a moving average, into a stationary number."""
    not_of_others(f"relative({feature.name})", feature, "relative(...)")
    if feature.timeframe is not None:
        raise FeatureError(
            f"relative({feature.name}): say on({feature.timeframe.value!r}, relative(...)), "
            "so that level and close are of one timeframe"
        )
    return _Relative(
        name=f"relative_{feature.name}",
        definition=canonical(relative=feature.definition),
        history=feature.history,
        inputs=tuple(dict.fromkeys((*feature.inputs, "close"))),
        level=feature,
    )


def on(timeframe: Timeframe | str, feature: Feature) -> Feature:
    """The feature on a higher timeframe, as of the last of its bars that closed at or before the base bar's close."""
    if timeframe not in set(Timeframe):
        raise FeatureError(f"on({timeframe!r}): the timeframes are {', '.join(Timeframe)}")
    not_of_others(f"on({timeframe!r}, {feature.name})", feature, f"on({timeframe!r}, ...)")
    if feature.timeframe is not None:
        raise FeatureError(f"on({timeframe!r}, {feature.name}): the feature is on {feature.timeframe} already")
    return replace(feature, name=f"{Timeframe(timeframe)}_{feature.name}", timeframe=Timeframe(timeframe))


@dataclass(frozen=True, kw_only=True)
class _LogReturn(Feature):
    lag: int

    def batch(self, columns: Floats, blocks: Sequence[int]) -> Floats:
        close = columns[CLOSE]
        values = np.full(len(close), np.nan)
        # math.log and not np.log, whose vector and scalar forms may differ in the last bit.
        ratios = (close[self.lag :] / close[: -self.lag]).tolist()
        values[self.lag :] = [math.log(ratio) for ratio in ratios]
        return values

    def state(self) -> FeatureState:
        return _LogReturnState(self.lag)


class _LogReturnState:
    def __init__(self, lag: int) -> None:
        self._lag = lag
        self._closes: deque[float] = deque(maxlen=lag + 1)

    def open(self, columns: Floats) -> float:
        self._closes.clear()
        self._closes.extend(columns[CLOSE, max(0, columns.shape[1] - self._lag - 1) :].tolist())
        return self._value()

    def update(self, row: Row) -> float:
        self._closes.append(row[CLOSE])
        return self._value()

    def _value(self) -> float:
        closes = self._closes
        return math.log(closes[-1] / closes[0]) if len(closes) > self._lag else math.nan


@dataclass(frozen=True, kw_only=True)
class _Relative(Feature):
    level: Feature

    def batch(self, columns: Floats, blocks: Sequence[int]) -> Floats:
        with np.errstate(divide="ignore"):  # infinite values are refused by whoever asked
            values: Floats = columns[CLOSE] / self.level.batch(columns, blocks) - 1.0
        return values

    def state(self) -> FeatureState:
        return _RelativeState(self.level.state())


class _RelativeState:
    def __init__(self, level: FeatureState) -> None:
        self._level = level

    def open(self, columns: Floats) -> float:
        level = self._level.open(columns)
        return self._value(columns[CLOSE, -1].item(), level) if columns.shape[1] else math.nan

    def update(self, row: Row) -> float:
        return self._value(row[CLOSE], self._level.update(row))

    @staticmethod
    def _value(close: float, level: float) -> float:
        return close / level - 1.0 if level else math.inf
