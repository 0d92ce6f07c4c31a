"""The port to the feature store. Adapters: `feast.store.FeastFeatureStore` and `memory.MemoryFeatureStore`.

Both pass `tradeloop.common.testing.check_feature_store`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.errors import Unavailable


class FeatureStoreUnavailable(Unavailable):
    """The store cannot be reached. Trying again is safe: writing a row twice changes nothing."""


class FeatureSetUnknown(LookupError):
    """The feature set was never defined."""


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """Features of a universe as of bar closes.

    `time_us` is (T,) int64, strictly increasing: each row's bar close. `values` is (T, A, F) float64, NaN where
    an indicator is still warming up. Raises ValueError where shapes disagree or times do not increase.
    """

    instruments: tuple[str, ...]
    names: tuple[str, ...]
    time_us: NDArray[np.int64]
    values: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = (len(self.time_us), len(self.instruments), len(self.names))
        if self.values.shape != shape:
            raise ValueError(f"feature values have the shape {self.values.shape}: {shape} would fit the other fields")
        if (np.diff(self.time_us) <= 0).any():
            raise ValueError("times of feature rows must strictly increase: sort them, and keep one row for each")


class FeatureStore(Protocol):
    """Feature values by feature set, universe, instrument and time.

    Every method raises `FeatureStoreUnavailable`; every one but `define` raises `FeatureSetUnknown`; a write raises
    ValueError when its rows do not carry exactly the features of the set, in their order.
    """

    def define(self, feature_set: str, names: Sequence[str]) -> None:
        """Make a feature set known, to other processes too. Defining it again is harmless.

        Raises ValueError when it is known with other features: a changed set needs an id of its own.
        """
        ...

    def write_offline(self, feature_set: str, universe: str, rows: FeatureRows) -> None:
        """Store history for training. A row written again replaces the older one. All or nothing."""
        ...

    def read_offline(
        self, feature_set: str, universe: str, instruments: Sequence[str], time_us: NDArray[np.int64]
    ) -> FeatureRows:
        """Point-in-time join: for each asked time and instrument the newest row at or before it, else NaN.

        `time_us` is (T,) int64, strictly increasing.
        """
        ...

    def write_online(self, feature_set: str, universe: str, rows: FeatureRows) -> None:
        """Publish current values for serving: the last row. An instrument that has a newer one keeps it."""
        ...

    def read_online(self, feature_set: str, universe: str, instruments: Sequence[str]) -> FeatureRows:
        """The newest values, one row: its time is that of the oldest instrument, so that its age can be judged.

        When any instrument has no values yet there are zero rows: part of an observation is none.
        """
        ...

    def check(self) -> None:
        """Return when current values can be read and written, as far as one question tells."""
        ...

    def close(self) -> None:
        """Release connections."""
        ...


def check_names(feature_set: str, names: Sequence[str], rows: FeatureRows) -> None:
    """Raise ValueError unless rows carry exactly these features of a set, in this order."""
    if rows.names != tuple(names):
        raise ValueError(f"feature set {feature_set} has the features {', '.join(names)}; got {', '.join(rows.names)}")


def latest_row(
    instruments: Sequence[str], names: Sequence[str], found: Sequence[tuple[int, Sequence[float]] | None]
) -> FeatureRows:
    """The answer of `FeatureStore.read_online`, from each instrument's close and values, None where it has none."""
    rows = [row for row in found if row is not None]
    if not rows or len(rows) < len(instruments):
        nothing = np.empty((0, len(instruments), len(names)))
        return FeatureRows(tuple(instruments), tuple(names), np.empty(0, dtype=np.int64), nothing)
    oldest_us = min(close_us for close_us, _ in rows)
    values = np.array([[values for _, values in rows]], dtype=np.float64)
    return FeatureRows(tuple(instruments), tuple(names), np.array([oldest_us], dtype=np.int64), values)
