"""Features that need no library: columns of a bar, returns, closes relative to a level, and longer timeframes."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import talib as library

from tradeloop.common.arrays import Floats
from tradeloop.common.features.cross_section import not_of_others
from tradeloop.common.features.feature import (
    CLOSE,
    INPUTS,
    NAME,
    Feature,
    FeatureError,
    FeatureState,
    Row,
    Span,
    canonical,
    fields_of,
    of_spans,
    require_count,
)
from tradeloop.common.market import Timeframe


def log_return(n: int) -> Feature:
    """Natural logarithm of the close over the close `n` bars ago."""
    require_count("log_return", "n", n)
    return replace(log_ratio("close", "close", n), name=f"log_return_{n}", definition=canonical(log_return=n))


def simple_return(n: int) -> Feature:
    """The close over the close `n` bars ago, less 1."""
    require_count("simple_return", "n", n)
    return _Return(
        name=f"return_{n}",
        definition=canonical(simple_return=n),
        history=n,
        inputs=("close",),
        anchored=False,
        top=CLOSE,
        bottom=CLOSE,
        lag=n,
        logarithm=False,
    )


def log_ratio(top: str, bottom: str, lag: int = 0) -> Feature:
    """Natural logarithm of a price over another one, `lag` bars ago."""
    fields = fields_of(f"log_ratio({top!r}, {bottom!r})", ("close", "open"), (top, bottom))
    return _Return(
        name=f"log_{top}_{bottom}" + (f"_{lag}" if lag else ""),
        definition=canonical(log_ratio=fields, lag=lag),
        history=lag,
        inputs=tuple(dict.fromkeys(fields)),
        anchored=False,
        top=INPUTS.index(top),
        bottom=INPUTS.index(bottom),
        lag=lag,
        logarithm=True,
    )


def logarithms(values: Floats) -> Floats:
    """Natural logarithms (n,) of values (n,), with the bits of `math.log`. Raises ValueError for one that has none."""
    if not (values > 0.0).all():
        return np.fromiter(map(math.log, values.tolist()), np.float64, len(values))
    # TA-Lib asks the C library for each, as math.log does; np.log has a vector form that differs in the last bit.
    found: Floats = library.LN(np.ascontiguousarray(values)) if len(values) else np.empty(0)
    return found


def column(name: str) -> Feature:
    """A number of the bar as it is, such as `column("volume")` or a further column: for others to be made of."""
    fields = fields_of(f"column({name!r})", ("close",), (name,))
    return _Column(name=name, definition=canonical(column=name), history=0, inputs=fields, anchored=False)


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
        anchored=feature.anchored,
        level=feature,
    )


def named(name: str, feature: Feature) -> Feature:
    """The feature under another name: for long ones, and where two would have the same."""
    if not re.fullmatch(NAME, name):
        raise FeatureError(f"named({name!r}, ...): a name is lower-case letters, digits and _")
    if not isinstance(feature, Feature):
        raise FeatureError(f"named({name!r}, ...): {feature!r} is no feature; write e.g. log_return(1)")
    return replace(feature, name=name, definition=canonical(named=name, feature=feature.definition))


def on(timeframe: Timeframe | str, feature: Feature) -> Feature:
    """The feature on a higher timeframe, as of the last of its bars that closed at or before the base bar's close."""
    if timeframe not in set(Timeframe):
        raise FeatureError(f"on({timeframe!r}): the timeframes are {', '.join(Timeframe)}")
    not_of_others(f"on({timeframe!r}, {feature.name})", feature, f"on({timeframe!r}, ...)")
    if feature.timeframe is not None:
        raise FeatureError(f"on({timeframe!r}, {feature.name}): the feature is on {feature.timeframe} already")
    return replace(feature, name=f"{Timeframe(timeframe)}_{feature.name}", timeframe=Timeframe(timeframe))


@dataclass(frozen=True, kw_only=True)
class _Return(Feature):
    """A price over an earlier one, as a logarithm or less 1."""

    top: int
    bottom: int
    lag: int
    logarithm: bool

    def batch(self, columns: Floats, spans: Sequence[Span]) -> Floats:
        values = np.full(columns.shape[1], np.nan)
        ratios = columns[self.top, self.lag :] / columns[self.bottom, : max(0, columns.shape[1] - self.lag)]
        values[self.lag :] = logarithms(ratios) if self.logarithm else ratios - 1.0
        return values

    def state(self) -> FeatureState:
        return _ReturnState(self)


class _ReturnState:
    def __init__(self, feature: _Return) -> None:
        self._top, self._bottom, self._lag = feature.top, feature.bottom, feature.lag
        self._logarithm = feature.logarithm
        self._bottoms: deque[float] = deque(maxlen=self._lag + 1)

    def open(self, columns: Floats) -> float:
        self._bottoms.clear()
        self._bottoms.extend(columns[self._bottom, max(0, columns.shape[1] - self._lag - 1) :].tolist())
        return self._value(columns[self._top, -1].item()) if columns.shape[1] else math.nan

    def update(self, row: Row) -> float:
        self._bottoms.append(row[self._bottom])
        return self._value(row[self._top])

    def _value(self, top: float) -> float:
        bottoms = self._bottoms
        if len(bottoms) <= self._lag:
            return math.nan
        return math.log(top / bottoms[0]) if self._logarithm else top / bottoms[0] - 1.0


@dataclass(frozen=True, kw_only=True)
class _Column(Feature):
    def batch(self, columns: Floats, spans: Sequence[Span]) -> Floats:
        values: Floats = columns[self.places[0]].copy()
        return values

    def state(self) -> FeatureState:
        return _ColumnState(self.places[0])


class _ColumnState:
    def __init__(self, place: int) -> None:
        self._place = place

    def open(self, columns: Floats) -> float:
        return columns[self._place, -1].item() if columns.shape[1] else math.nan

    def update(self, row: Row) -> float:
        return row[self._place]


@dataclass(frozen=True, kw_only=True)
class _Relative(Feature):
    level: Feature

    def batch(self, columns: Floats, spans: Sequence[Span]) -> Floats:
        with np.errstate(divide="ignore"):  # infinite values are refused by whoever asked
            values: Floats = of_spans(columns[CLOSE], spans) / self.level.batch(columns, spans) - 1.0
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
