"""The observation: a window of features, oldest first, then the state of the account.

    [ features(t - window + 1), ..., features(t) ]  each A x F, unscaled
    [ weight, unrealised return, holding time ]     each A
    [ drawdown ]

float32. Scaling is the policy's own first layer, so that live code cannot forget it. Holding time is
`bars / (bars + HOLDING_SCALE)`, in [0, 1): a division is exact to the last bit wherever it is computed,
a logarithm is not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ACCOUNT_PER_INSTRUMENT = 3
HOLDING_SCALE = 32.0
"""Bars of holding that read as one half."""


def observation_size(window: int, instruments: int, features: int) -> int:
    """Length of an observation."""
    return window * instruments * features + account_size(instruments)


def account_size(instruments: int) -> int:
    """Length of the account part of an observation."""
    return ACCOUNT_PER_INSTRUMENT * instruments + 1


class ObservationBuilder:
    """Builds one book's observations bar by bar, without copying the window.

    Rows are written into a buffer of twice the window; when it is full, the newest window moves to its start.
    So the window is always one contiguous slice.
    """

    def __init__(self, window: int, instruments: int, features: int) -> None:
        self._window, self._row = window, instruments * features
        self._instruments = instruments
        self._buffer = np.zeros(2 * window * self._row, dtype=np.float32)
        self._end = 0
        self._rows = 0
        self.observation = np.zeros((1, observation_size(window, instruments, features)), dtype=np.float32)
        self._flat = self.observation[0]

    @property
    def ready(self) -> bool:
        """Whether a whole window of features has been seen."""
        return self._rows >= self._window

    @property
    def rows(self) -> NDArray[np.float32]:
        """The features of the last bars, a window of them at most, (T, A * F), oldest first: a copy."""
        count = min(self._rows, self._window)
        return self._buffer[self._end - count * self._row : self._end].reshape(count, self._row).copy()

    def append(self, features: NDArray[np.float64]) -> None:
        """Add the features of the next bar, A x F in any shape."""
        if self._end == len(self._buffer):
            keep = (self._window - 1) * self._row
            self._buffer[:keep] = self._buffer[self._end - keep : self._end]
            self._end = keep
        self._buffer[self._end : self._end + self._row] = features.reshape(-1)
        self._end += self._row
        self._rows += 1

    def clear(self) -> None:
        """Forget the window: a bar is missing from it, or its values are not known."""
        self._end = self._rows = 0

    def build(self, account: NDArray[np.float64]) -> NDArray[np.float32]:
        """The observation (1, n) of the last appended bar. Reused: the next call overwrites it."""
        size = self._window * self._row
        self._flat[:size] = self._buffer[self._end - size : self._end]
        self._flat[size:] = account
        return self.observation
