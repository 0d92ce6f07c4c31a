"""Features by an author's own function of many windows at once.

NumPy may order a sum differently over arrays of other shapes, and then its last bits differ. So the function always
gets blocks of one shape: in batch each of the `BLOCK` columns is another window, in the stream all of them are the same
one. That an answer depends on its own column alone is tried by `check_strategy`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tradeloop.common.arrays import Floats
from tradeloop.common.features.authored import Authored
from tradeloop.common.features.feature import Feature, FeatureError, FeatureState, Span
from tradeloop.common.features.windowed import WindowState, whole_windows

BLOCK = 128
"""Windows in a call: a whole number of vector registers on every processor. More makes the batch faster, and the stream
of long windows slower."""


def vectorised(
    name: str,
    fn: Callable[..., Any],
    window: int,
    inputs: Sequence[str] = ("close",),
    **parameters: object,
) -> Feature:
    """The author's own function of many windows at once, for series that a call a bar would take too long for.

    As `windowed`, but `fn` gets each input as a read-only (window, 128) float64 array, a window a column, oldest first,
    and returns the (128,) values: what reduces does so over `axis=0`, as `close[-1] / close.mean(axis=0) - 1.0`. The
    value of a column must depend on that column alone. Raises `FeatureError`.
    """
    return _Vectorised.of(name, fn, window, inputs, parameters)


@dataclass(frozen=True, kw_only=True)
class _Vectorised(Authored):
    kind: ClassVar = "vectorised"

    def batch(self, columns: Floats, spans: Sequence[Span]) -> Floats:
        values = np.full(columns.shape[1], np.nan)
        series = columns[self.places]
        count = columns.shape[1] - self.window + 1
        windows = np.lib.stride_tricks.sliding_window_view(series, self.window, axis=1) if count > 0 else series
        for first in range(0, count, BLOCK):
            some = windows[:, first : first + BLOCK]
            found = some.shape[1]
            if found < BLOCK:  # the last one again and again
                some = some.take(np.minimum(np.arange(BLOCK), found - 1), axis=1)
            at = first + self.window - 1
            values[at : at + found] = self.call(some.transpose(0, 2, 1).copy())[:found]
        values[~whole_windows(columns[self.further], self.window)] = np.nan
        return values

    def state(self) -> FeatureState:
        return WindowState(self, self.one, self.window)

    def one(self, series: Floats) -> float:
        """The function of one window (inputs, window), as its first column among copies."""
        return float(self.call(np.repeat(series[:, :, None], BLOCK, axis=2))[0])

    def call(self, block: Floats) -> Floats:
        """The function of a block, (inputs, window, BLOCK)."""
        block.flags.writeable = False
        values = self.ask(block)
        if not isinstance(values, np.ndarray) or values.shape != (BLOCK,):
            what = f"an array of shape {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
            raise FeatureError(
                f"feature {self.name}: its function returned {what} for {BLOCK} windows, and not one value for each: "
                f"its inputs are ({self.window}, {BLOCK}), a window a column, so let it reduce over axis=0"
            )
        return values.astype(np.float64, copy=False)
