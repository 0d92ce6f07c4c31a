"""The port to the feature store. Adapters: `feast.store.FeastFeatureStore` and `memory.MemoryFeatureStore`.

Both pass `tradeloop.common.testing.check_feature_store`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.errors import Unavailable
from tradeloop.common.market import from_us


class FeatureStoreUnavailable(Unavailable):
    """The store cannot be reached. Trying again is safe: writing a row twice changes nothing."""


class FeatureSetUnknown(LookupError):
    """The feature set was never defined."""


class FeaturesTooOld(LookupError):
    """Current values are those of an earlier bar than was asked for; or there are none: `time_us` is None then."""

    def __init__(self, feature_set: str, universe: str, time_us: int | None, since_us: int) -> None:
        newest = "none" if time_us is None else f"of the bar that closed {from_us(time_us).isoformat()}"
        super().__init__(
            f"the current features of {universe} in feature set {feature_set} are {newest}, and not of "
            f"{from_us(since_us).isoformat()} or later"
        )
        self.time_us = time_us


class Covered(NamedTuple):
    """A stretch of base bars whose features are in the history, by the times at which the bars open."""

    start_us: int
    end_us: int
    basis: str
    """Digest of the bars that the values were computed from."""
    request: str
    """Id of the request that they were computed for."""


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
    mixed: bool = False
    """Whether some instruments of a current row have values of a later bar, as while one is being written."""

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

    def write_offline(self, feature_set: str, universe: str, rows: FeatureRows, covers: Covered | None = None) -> None:
        """Store history for training. A row written again replaces the older one. All or nothing.

        `covers` is the stretch that these rows are all of, remembered with them; nothing is where there are no rows.
        """
        ...

    def covered(self, feature_set: str, universe: str) -> Sequence[Covered]:
        """The stretches of history, in order of time. One that is overlapped by a later one is forgotten."""
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

    def read_online(
        self, feature_set: str, universe: str, instruments: Sequence[str], since_us: int | None = None
    ) -> FeatureRows:
        """The newest values, one row: its time is that of the oldest instrument, so that its age can be judged.

        When any instrument has no values yet there are zero rows: part of an observation is none. `since_us` is the
        earliest close that is wanted: raises `FeaturesTooOld` for values of an earlier bar, or for none.
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


def uncovered_by(one: Covered, others: Iterable[Covered]) -> list[Covered]:
    """The stretches that do not overlap with one."""
    return [other for other in others if other.end_us <= one.start_us or one.end_us <= other.start_us]


def check_age(feature_set: str, universe: str, found: FeatureRows, since_us: int | None) -> FeatureRows:
    """Give current values back. Raises `FeaturesTooOld` as `FeatureStore.read_online` does."""
    time_us = int(found.time_us[0]) if len(found.time_us) else None
    if since_us is not None and (time_us is None or time_us < since_us):
        raise FeaturesTooOld(feature_set, universe, time_us, since_us)
    return found


def latest_row(
    instruments: Sequence[str], names: Sequence[str], found: Sequence[tuple[int, Sequence[float]] | None]
) -> FeatureRows:
    """The answer of `FeatureStore.read_online`, from each instrument's close and values, None where it has none."""
    rows = [row for row in found if row is not None]
    if not rows or len(rows) < len(instruments):
        nothing = np.empty((0, len(instruments), len(names)))
        return FeatureRows(tuple(instruments), tuple(names), np.empty(0, dtype=np.int64), nothing)
    times_us = {close_us for close_us, _ in rows}
    values = np.array([[values for _, values in rows]], dtype=np.float64)
    oldest_us = np.array([min(times_us)], dtype=np.int64)
    return FeatureRows(tuple(instruments), tuple(names), oldest_us, values, mixed=len(times_us) > 1)
