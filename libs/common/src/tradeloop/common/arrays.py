"""The array types of the vocabulary, by what they hold; shapes are said where they are used."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
"""Money, prices, weights, features: every decision is computed in these."""
Float32s = NDArray[np.float32]
"""Observations, as a policy takes them."""
Ints = NDArray[np.int64]
"""Rows, and times in microseconds since the epoch."""
Bools = NDArray[np.bool_]
Codes = NDArray[np.int8]
"""Verdicts and halts of `tradeloop.common.risk`."""


def shortest(values: Floats) -> tuple[float, ...]:
    """Values rounded to float32, each as the shortest decimal that stands for it: half the text, and the same float32.

    Raises OverflowError for what float32 cannot hold.
    """
    narrow = values.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise OverflowError("a value is not finite as float32")
    return tuple(map(float, map(str, narrow)))
