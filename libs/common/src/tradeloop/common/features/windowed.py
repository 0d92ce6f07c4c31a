"""Features by an author's own function of the last bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tradeloop.common.arrays import Bools, Floats
from tradeloop.common.features.authored import Authored
from tradeloop.common.features.feature import (
    INPUTS,
    Feature,
    FeatureError,
    FeatureState,
    Row,
    Span,
)


def windowed(
    name: str,
    fn: Callable[..., Any],
    window: int,
    inputs: Sequence[str] = ("close",),
    **parameters: object,
) -> Feature:
    """The author's own function of the last `window` bars.

    `fn` gets each input by name, as a read-only (window,) float64 array, oldest first, and returns a number; NaN
    says that there is none. Inputs are the fields of a bar, its further columns by their names, and `time`: the close,
    in seconds since 1970, UTC. Where a bar of the window lacks a further column, `fn` is not asked: there is no value.
    `fn` gets the `parameters` by name, too: plain data, with lists made tuples.

    It must depend on nothing else. It is identified by its own source, its parameters, the defaults that are not given,
    and the plain constants of its module that it reads: when something that it calls changes, give the feature a new
    name. Raises `FeatureError`.
    """
    return _Windowed.of(name, fn, window, inputs, parameters)


@dataclass(frozen=True, kw_only=True)
class _Windowed(Authored):
    kind: ClassVar = "windowed"

    def batch(self, columns: Floats, spans: Sequence[Span]) -> Floats:
        # One call a bar, as in the stream: over two axes NumPy and BLAS may order their sums differently, and the
        # last bits of a value would depend on how many bars were asked for at once.
        values = np.full(columns.shape[1], np.nan)
        series = columns[self.places]
        series.flags.writeable = False
        known = whole_windows(columns[self.further], self.window)
        for stop in range(self.window, columns.shape[1] + 1):
            if known[stop - 1]:
                values[stop - 1] = self.call(series[:, stop - self.window : stop])
        return values

    def state(self) -> FeatureState:
        return WindowState(self, self.call, self.window)

    def call(self, series: Floats) -> float:
        """The function of one window, (inputs, window)."""
        value = self.ask(series)
        if np.ndim(value):
            raise FeatureError(
                f"feature {self.name}: its function returned an array of shape {np.shape(value)} for one window; "
                "let it return one number, e.g. by reducing over axis=-1"
            )
        return float(value)


def whole_windows(further: Floats, window: int) -> Bools:
    """Whether the window that ends at a bar, (n,), lacks no further column, of (E, n)."""
    lacks = np.isnan(further).sum(axis=0)
    within = np.convolve(lacks, np.ones(window, np.int64))[: len(lacks)] if lacks.any() else lacks
    known: Bools = within == 0
    return known


class WindowState:
    """A function of the last bars. They are written into a buffer of twice the window, so that they are one slice."""

    def __init__(self, feature: Feature, call: Callable[[Floats], float], window: int) -> None:
        self._call, self._columns, self._window = call, feature.places, window
        self._further = [i for i, name in enumerate(feature.inputs) if name not in INPUTS]
        self._buffer = np.empty((len(self._columns), 2 * window))
        self._series = self._buffer.view()
        self._series.flags.writeable = False
        self._end = 0

    def open(self, columns: Floats) -> float:
        tail = columns[self._columns, max(0, columns.shape[1] - self._window) :]
        self._end = tail.shape[1]
        self._buffer[:, : self._end] = tail
        return self._value()

    def update(self, row: Row) -> float:
        if self._end == self._buffer.shape[1]:
            self._buffer[:, : self._window - 1] = self._buffer[:, self._end - self._window + 1 :]
            self._end = self._window - 1
        for i, column in enumerate(self._columns):
            self._buffer[i, self._end] = row[column]
        self._end += 1
        return self._value()

    def _value(self) -> float:
        if self._end < self._window:
            return math.nan
        series = self._series[:, self._end - self._window : self._end]
        if self._further and np.isnan(series[self._further]).any():
            return math.nan
        return self._call(series)
