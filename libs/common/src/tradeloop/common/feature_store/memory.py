"""`MemoryFeatureStore`: features in dictionaries, for tests and for runs that keep nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.feature_store.port import (
    Covered,
    FeatureRows,
    FeatureSetUnknown,
    check_age,
    check_names,
    latest_row,
    uncovered_by,
)


class MemoryFeatureStore:
    """Features in dictionaries. For tests, and for runs that keep nothing."""

    def __init__(self) -> None:
        self._names: dict[str, tuple[str, ...]] = {}
        self._history: dict[tuple[str, str, str], dict[int, NDArray[np.float64]]] = {}
        self._covered: dict[tuple[str, str], list[Covered]] = {}
        self._current: dict[tuple[str, str, str], tuple[int, list[float]]] = {}

    def define(self, feature_set: str, names: Sequence[str]) -> None:
        if self._names.setdefault(feature_set, tuple(names)) != tuple(names):
            raise ValueError(f"feature set {feature_set} has other features: give the changed set a new id")

    def write_offline(self, feature_set: str, universe: str, rows: FeatureRows, covers: Covered | None = None) -> None:
        check_names(feature_set, self._known(feature_set), rows)
        if covers is not None and len(rows.time_us):
            before = self._covered.get((feature_set, universe), ())
            self._covered[feature_set, universe] = sorted([*uncovered_by(covers, before), covers])
        for a, instrument in enumerate(rows.instruments):
            history = self._history.setdefault((feature_set, universe, instrument), {})
            history.update(zip(rows.time_us.tolist(), rows.values[:, a].copy(), strict=True))

    def covered(self, feature_set: str, universe: str) -> Sequence[Covered]:
        self._known(feature_set)
        return self._covered.get((feature_set, universe), ())

    def read_offline(
        self, feature_set: str, universe: str, instruments: Sequence[str], time_us: NDArray[np.int64]
    ) -> FeatureRows:
        names = self._known(feature_set)
        values = np.full((len(time_us), len(instruments), len(names)), np.nan)
        for a, instrument in enumerate(instruments):
            history = self._history.get((feature_set, universe, instrument), {})
            times = np.array(sorted(history), dtype=np.int64)
            rows = np.searchsorted(times, time_us, side="right") - 1
            for t in np.flatnonzero(rows >= 0):
                values[t, a] = history[int(times[rows[t]])]
        return FeatureRows(tuple(instruments), names, time_us, values)

    def write_online(self, feature_set: str, universe: str, rows: FeatureRows) -> None:
        check_names(feature_set, self._known(feature_set), rows)
        for a, instrument in enumerate(rows.instruments if len(rows.time_us) else ()):
            key, close_us = (feature_set, universe, instrument), int(rows.time_us[-1])
            if key not in self._current or self._current[key][0] <= close_us:
                self._current[key] = (close_us, rows.values[-1, a].tolist())

    def read_online(
        self, feature_set: str, universe: str, instruments: Sequence[str], since_us: int | None = None
    ) -> FeatureRows:
        names = self._known(feature_set)
        found = [self._current.get((feature_set, universe, instrument)) for instrument in instruments]
        return check_age(feature_set, universe, latest_row(instruments, names, found), since_us)

    def check(self) -> None:
        """It is always there."""

    def close(self) -> None:
        """Nothing is held open."""

    def _known(self, feature_set: str) -> tuple[str, ...]:
        try:
            return self._names[feature_set]
        except KeyError:
            raise FeatureSetUnknown(f"feature set {feature_set} is unknown: define it first") from None
