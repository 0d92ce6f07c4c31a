"""Features made of other features: windows over their values, and several of them at one bar.

One class does all of it. Its arithmetic is written once, over arrays, and gives a window the same bits whether it is
one of a million or the only one: sums are taken one value after the other, and all else is element by element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tradeloop.common.arrays import Floats
from tradeloop.common.features.cross_section import not_of_others
from tradeloop.common.features.feature import (
    FLAT,
    Feature,
    FeatureError,
    FeatureState,
    Row,
    Span,
    canonical,
    of_spans,
    placed,
    require_count,
)

_CHUNK = 8192
"""Windows that are computed at once: their arrays stay in a core's cache."""

Arithmetic = Callable[..., Floats]
"""`(series (k, m + window - 1), window, *parameters) -> (m,)`: the values of m windows, the oldest first."""


def totals(values: Floats, window: int) -> Floats:
    """The sums (m,) of all windows of values (m + window - 1,), each added up from its oldest value on."""
    count = len(values) - window + 1
    if count == 1:
        return np.add.accumulate(values)[-1:]
    total = values[:count].copy()
    for j in range(1, window):
        total += values[j : j + count]
    return total


def squares(values: Floats, window: int) -> tuple[Floats, Floats]:
    """The means of all windows, and the sums of squared differences from them. Two passes, so that nothing cancels."""
    means = totals(values, window) / window
    count = len(means)
    if count == 1:
        apart = values - means
        apart *= apart
        return means, np.add.accumulate(apart)[-1:]
    total, apart = np.zeros(count), np.empty(count)
    for j in range(window):
        np.subtract(values[j : j + count], means, out=apart)
        apart *= apart
        total += apart
    return means, total


def composed(
    name: str, arithmetic: str, inner: Sequence[Feature], window: int = 1, parameters: Sequence[float] = ()
) -> Feature:
    """A feature of the last `window` values of others, by the name of its arithmetic in `ARITHMETIC`.

    Raises `FeatureError` for one that is on a higher timeframe or looks at other instruments already.
    """
    for one in inner:
        if not isinstance(one, Feature):
            raise FeatureError(f"{name}: {one!r} is no feature; write e.g. log_return(1)")
        not_of_others(name, one, f"{arithmetic}(...)")
        if one.timeframe is not None:
            raise FeatureError(
                f"{name}: {one.name} is on {one.timeframe} already; say on({one.timeframe.value!r}, ...) around all of "
                "it, so that its bars are of one timeframe"
            )
    for parameter in parameters:
        if isinstance(parameter, bool) or not isinstance(parameter, int | float) or not math.isfinite(parameter):
            raise FeatureError(f"{name}: {parameter!r} is no finite number")
    return Composed(
        name=name,
        definition=canonical(
            composed=arithmetic,
            window=window,
            parameters=list(map(float, parameters)),
            of=[one.definition for one in inner],
        ),
        history=max(one.history for one in inner) + window - 1,
        inputs=tuple(dict.fromkeys(field for one in inner for field in one.inputs)),
        anchored=any(one.anchored for one in inner),
        inner=tuple(inner),
        window=window,
        arithmetic=arithmetic,
        parameters=tuple(map(float, parameters)),
    )


def over(owner: str, feature: Feature, n: int, *, least: int = 1) -> None:
    """Raise `FeatureError` unless `n` is a number of values that `owner` can be taken over."""
    require_count(owner, "n", n)
    if n < least:
        raise FeatureError(f"{owner}: n is {n}; it must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class Composed(Feature):
    """See `composed`."""

    inner: tuple[Feature, ...]
    window: int
    arithmetic: str
    parameters: tuple[float, ...]

    def batch(self, columns: Floats, spans: Sequence[Span]) -> Floats:
        # What it is made of begins where it does itself, as in the stream, and is asked for the values before each span
        # that the first window reaches back to. All lie one after the other, for one call; what mixes two is dropped.
        before = self.window - 1
        wider = [(begin, max(begin, start - before), stop) for begin, start, stop in spans]
        values, found, end = self._windows(self._inner(columns, wider)), [], 0
        for (_, start, stop), (_, first, _) in zip(spans, wider, strict=True):
            own, end = values[end : end + stop - first], end + stop - first
            own[:before] = np.nan
            found.append(own[start - first :])
        return np.concatenate(found)

    def _inner(self, columns: Floats, spans: Sequence[Span]) -> Floats:
        """Values (k, m) of what it is made of at the bars of spans."""
        series = np.empty((len(self.inner), sum(stop - start for _, start, stop in spans)))
        for own, one in zip(series, self.inner, strict=True):
            bars = self.part(one, columns)
            if one.anchored:
                own[:] = one.batch(bars, spans)
            else:
                own[:] = of_spans(one.batch(bars, [(0, 0, columns.shape[1])]), spans)
        return series

    def _windows(self, series: Floats) -> Floats:
        """The values (n,) of the windows of (k, n); NaN where they would reach back before its begin."""
        length = series.shape[1]
        values = np.full(length, np.nan)
        for begin in range(0, length - self.window + 1, _CHUNK):
            end = min(begin + _CHUNK, length - self.window + 1) + self.window - 1
            values[begin + self.window - 1 : end] = self.values(series[:, begin:end])
        return values

    def part(self, one: Feature, columns: Floats) -> Floats:
        """The columns of a feature that it is made of."""
        chosen = one.chosen(self.layout)
        return columns if chosen is None else columns[list(chosen)]

    def values(self, series: Floats) -> Floats:
        """The values of all windows of (k, m + window - 1)."""
        with np.errstate(divide="ignore", invalid="ignore"):  # what is infinite is refused by whoever asked
            return ARITHMETIC[self.arithmetic](series, self.window, *self.parameters)

    def state(self) -> FeatureState:
        return _ComposedState(self)


class _ComposedState:
    """The last values of what it is made of, in a buffer of twice the window, so that they are one slice always."""

    def __init__(self, feature: Composed) -> None:
        self._feature, self._window = feature, feature.window
        self._inner = [placed(one, feature.layout) for one in feature.inner]
        self._buffer = np.full((len(self._inner), max(2 * feature.window, 64)), np.nan)
        self._end = 0

    def open(self, columns: Floats) -> float:
        length = columns.shape[1]
        self._end = min(length, self._window)
        for place, (one, state) in enumerate(zip(self._feature.inner, self._inner, strict=True)):
            state.open(columns)
            if length:
                own = one.batch(self._feature.part(one, columns), [(0, 0, length)])
                self._buffer[place, : self._end] = own[-self._window :]
        return self._value()

    def update(self, row: Row) -> float:
        if self._end == self._buffer.shape[1]:
            kept = self._window - 1
            self._buffer[:, :kept] = self._buffer[:, self._end - kept :]
            self._end = kept
        for place, state in enumerate(self._inner):
            self._buffer[place, self._end] = state.update(row)
        self._end += 1
        return self._value()

    def _value(self) -> float:
        if self._end < self._window:
            return math.nan
        return float(self._feature.values(self._buffer[:, self._end - self._window : self._end])[0])


def _mean(series: Floats, window: int) -> Floats:
    return totals(series[0], window) / window


def _total(series: Floats, window: int) -> Floats:
    return totals(series[0], window)


def _deviation(series: Floats, window: int) -> Floats:
    return np.sqrt(squares(series[0], window)[1] / window)


def _zscore(series: Floats, window: int) -> Floats:
    means, total = squares(series[0], window)
    deviation = np.sqrt(total / window)
    scores = (series[0, window - 1 :] - means) / deviation
    scores[deviation <= FLAT * np.abs(means)] = 0.0
    return scores


def _extreme(pick: Callable[..., Floats]) -> Arithmetic:
    def extreme(series: Floats, window: int) -> Floats:
        count = series.shape[1] - window + 1
        found = series[0, :count] + 0.0  # of the two zeros the positive one, whichever came first
        for j in range(1, window):
            pick(found, series[0, j : j + count] + 0.0, out=found)
        return found

    return extreme


def _rank(series: Floats, window: int) -> Floats:
    count = series.shape[1] - window + 1
    newest = series[0, window - 1 :]
    points = np.zeros(count)
    for j in range(window - 1):
        other = series[0, j : j + count]
        points += np.where(other < newest, 1.0, np.where(other > newest, -1.0, newest - newest + other - other))
    return points / (window - 1)


def _lag(series: Floats, window: int) -> Floats:
    return series[0, : series.shape[1] - window + 1].copy()


def _change(series: Floats, window: int) -> Floats:
    return series[0, window - 1 :] - series[0, : series.shape[1] - window + 1]


def _ratio(series: Floats, window: int, otherwise: float) -> Floats:
    ratios: Floats = series[0] / series[1]
    ratios[series[1] == 0.0] = otherwise
    ratios[np.isnan(series[0])] = np.nan
    return ratios


def _clip(series: Floats, window: int, low: float, high: float) -> Floats:
    # Of the two zeros the positive one: which of them a maximum gives depends on how it is computed.
    clipped: Floats = np.minimum(np.maximum(series[0] + 0.0, low + 0.0), high + 0.0)
    return clipped


def _close_to_close(series: Floats, window: int) -> Floats:
    deviation: Floats = np.sqrt(squares(series[0], window)[1] / (window - 1))
    return deviation


def _parkinson(series: Floats, window: int) -> Floats:
    return np.sqrt(totals(series[0] * series[0], window) / (4.0 * _LN2 * window))


def _garman_klass(series: Floats, window: int) -> Floats:
    high_low, close_open = series
    terms = 0.5 * (high_low * high_low) - (2.0 * _LN2 - 1.0) * (close_open * close_open)
    return np.sqrt(totals(terms, window) / window)


def _rogers_satchell(series: Floats, window: int) -> Floats:
    deviation: Floats = np.sqrt(_drift_free(series, window))
    return deviation


def _yang_zhang(series: Floats, window: int) -> Floats:
    k = 0.34 / (1.34 + (window + 1.0) / (window - 1.0))
    overnight = squares(series[4], window)[1] / (window - 1)
    within = squares(series[5], window)[1] / (window - 1)
    deviation: Floats = np.sqrt(overnight + k * within + (1.0 - k) * _drift_free(series, window))
    return deviation


def _drift_free(series: Floats, window: int) -> Floats:
    """Rogers and Satchell's variance, of the logarithms of high and low over close and open."""
    terms = series[0] * series[1] + series[2] * series[3]
    return np.maximum(totals(terms, window) / window, 0.0)


_LN2 = 0.6931471805599453

ARITHMETIC: dict[str, Arithmetic] = {
    "mean": _mean,
    "total": _total,
    "deviation": _deviation,
    "lowest": _extreme(np.minimum),
    "highest": _extreme(np.maximum),
    "rank": _rank,
    "zscore": _zscore,
    "lag": _lag,
    "change": _change,
    "difference": lambda series, window: series[0] - series[1],
    "product": lambda series, window: series[0] * series[1],
    "ratio": _ratio,
    "clip": _clip,
    "close": _close_to_close,
    "parkinson": _parkinson,
    "garman_klass": _garman_klass,
    "rogers_satchell": _rogers_satchell,
    "yang_zhang": _yang_zhang,
}
