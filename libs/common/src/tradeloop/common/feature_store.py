"""The port to the feature store. Adapter: `feast_store.FeastFeatureStore`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tradeloop.common.errors import Unavailable


class FeatureStoreUnavailable(Unavailable):
    """The store cannot be reached. Trying again is safe: writing a row twice changes nothing."""


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """Features of a universe as of bar closes.

    `time_us` is (T,) int64, strictly increasing: each row's bar close. `values` is (T, A, F) float64, NaN where
    an indicator is still warming up.
    """

    instruments: tuple[str, ...]
    names: tuple[str, ...]
    time_us: NDArray[np.int64]
    values: NDArray[np.float64]


class FeatureStore(Protocol):
    """Feature values by feature set, universe, instrument and time."""

    def define(self, feature_set: str, names: Sequence[str]) -> None:
        """Make a feature set known; defining it again is harmless. Raises `FeatureStoreUnavailable`."""
        ...

    def write_offline(self, feature_set: str, universe: str, rows: FeatureRows) -> None:
        """Store history for training. A row written again replaces the older one. All or nothing."""
        ...

    def read_offline(
        self, feature_set: str, universe: str, instruments: Sequence[str], time_us: NDArray[np.int64]
    ) -> FeatureRows:
        """Point-in-time join: for each asked time and instrument the newest row at or before it, else NaN."""
        ...

    def write_online(self, feature_set: str, universe: str, rows: FeatureRows) -> None:
        """Publish current values for serving. A row older than what is there is ignored."""
        ...

    def read_online(self, feature_set: str, universe: str, instruments: Sequence[str]) -> FeatureRows:
        """The newest values, one row: its time is that of the oldest instrument. No values gives zero rows."""
        ...

    def close(self) -> None:
        """Release connections."""
        ...
