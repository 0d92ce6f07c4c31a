"""Features that look at other instruments of the universe: one of them, or all of them at once.

Each is another feature first, computed for every instrument; then `combine` sees its values at one close side by side.
Where a universe has members in time, those that do not belong at a close, and those whose value is not known yet, are
left out.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tradeloop.common.arrays import Bools, Floats
from tradeloop.common.features.feature import FLAT, Feature, FeatureError, FeatureState, Span, canonical

_INSTRUMENT = r"([a-z0-9_\-]{1,32}:)?[A-Za-z0-9_./\-]{1,64}"
"""An id, or the symbol in it."""


def of(instrument: str | int, feature: Feature) -> Feature:
    """The feature of one instrument, for all of them: `of("BTC", log_return(1))`.

    `instrument` is its id, its symbol (the id behind the venue), or its place in the universe, from 0. Raises
    `FeatureError`; so does whoever computes it for a universe without that instrument.
    """
    named = isinstance(instrument, str) and re.fullmatch(_INSTRUMENT, instrument)
    counted = isinstance(instrument, int) and not isinstance(instrument, bool) and instrument >= 0
    if not named and not counted:
        raise FeatureError(f"of({instrument!r}, ...): name an instrument by its id, its symbol, or its place from 0 on")
    common = _around(f"of({instrument!r}, ...)", f"of_{_word(instrument)}", feature, of=instrument)
    return _Of(**common, instrument=instrument)


def cross_mean(feature: Feature) -> Feature:
    """The mean of the feature over the instruments, for all of them; NaN until each has a value."""
    return _Mean(**_around("cross_mean(...)", "cross_mean", feature, cross="mean"))


def cross_rank(feature: Feature) -> Feature:
    """The rank of an instrument by the feature, from -1 for the lowest to 1 for the highest.

    NaN until each instrument has a value. Instruments with the same value share the middle of their ranks; in a
    universe of one it is 0.
    """
    return _Rank(**_around("cross_rank(...)", "cross_rank", feature, cross="rank"))


def cross_demean(feature: Feature) -> Feature:
    """The feature less its mean over the instruments; NaN until each has a value."""
    return _Demeaned(**_around("cross_demean(...)", "cross_demean", feature, cross="demean"))


def cross_zscore(feature: Feature) -> Feature:
    """The feature less its mean over the instruments, over their deviation (of the population).

    NaN until each instrument has a value; 0 where all of them are equal, as in a universe of one.
    """
    return _Scored(**_around("cross_zscore(...)", "cross_zscore", feature, cross="zscore"))


@dataclass(frozen=True, kw_only=True)
class CrossSection(Feature):
    """A feature whose value for an instrument depends on the values of `inner` for all of them."""

    inner: Feature
    instrument: str | int | None = None
    """The one that it is of; None where it is of all."""

    def batch(self, columns: Floats, spans: Sequence[Span]) -> Floats:
        return self.inner.batch(columns, spans)

    def state(self) -> FeatureState:
        return self.inner.state()

    @abstractmethod
    def combine(self, values: Floats, instruments: Sequence[str], inside: Bools | None = None) -> Floats:
        """Values (T, A) of this feature from those of `inner`. A row depends on itself alone, bit for bit.

        `inside` says which instruments belong to the universe; None where all always do.
        """

    def check_instruments(self, instruments: Sequence[str]) -> None:
        """Raise `FeatureError` when an instrument that it names is not among these."""


def not_of_others(owner: str, feature: Feature, inside: str) -> None:
    """Raise `FeatureError` when a feature looks at other instruments already; `inside` is what to write in it."""
    if isinstance(feature, CrossSection):
        raise FeatureError(f"{owner}: {feature.name} looks at other instruments already; write {inside} inside of that")


def _around(owner: str, prefix: str, feature: Feature, **what: object) -> dict[str, Any]:
    """The fields of a feature that looks at another one across instruments."""
    if not isinstance(feature, Feature):
        raise FeatureError(f"{owner}: {feature!r} is no feature; write e.g. log_return(1)")
    if isinstance(feature, CrossSection):
        raise FeatureError(f"{owner}: {feature.name} looks at other instruments already, and cannot do so twice")
    return {
        "name": f"{prefix}_{feature.name}",
        "definition": canonical(**what, feature=feature.definition),
        "history": feature.history,
        "inputs": feature.inputs,
        "timeframe": feature.timeframe,
        "anchored": feature.anchored,
        "inner": feature,
    }


class _Of(CrossSection):
    def combine(self, values: Floats, instruments: Sequence[str], inside: Bools | None = None) -> Floats:
        place = self._place(instruments)
        return np.repeat(values[:, place : place + 1], values.shape[1], axis=1)

    def check_instruments(self, instruments: Sequence[str]) -> None:
        self._place(instruments)

    def _place(self, instruments: Sequence[str]) -> int:
        named, there = self.instrument, ", ".join(instruments)
        if isinstance(named, int):
            if named >= len(instruments):
                raise FeatureError(
                    f"feature {self.name} is of the instrument in place {named}, counted from 0, and the universe has "
                    f"{len(instruments)}: {there}"
                )
            return named
        places = [a for a, one in enumerate(instruments) if one == named]
        places = places or [a for a, one in enumerate(instruments) if one.partition(":")[2] == named]
        if len(places) != 1:
            why = "is the symbol of several instruments" if places else "is not among the instruments"
            raise FeatureError(f"feature {self.name}: {named} {why} of the universe; name one of {there}")
        return places[0]


class _Mean(CrossSection):
    def combine(self, values: Floats, instruments: Sequence[str], inside: Bools | None = None) -> Floats:
        return np.repeat(_means(*_counted(values, inside)), values.shape[1], axis=1)


class _Demeaned(CrossSection):
    def combine(self, values: Floats, instruments: Sequence[str], inside: Bools | None = None) -> Floats:
        values, counts = _counted(values, inside)
        apart: Floats = values - _means(values, counts)
        return apart


class _Scored(CrossSection):
    def combine(self, values: Floats, instruments: Sequence[str], inside: Bools | None = None) -> Floats:
        values, counts = _counted(values, inside)
        means = _means(values, counts)
        apart = values - means
        deviation = np.sqrt(_means(apart * apart, counts))
        flat = deviation <= FLAT * np.abs(means)
        scores: Floats = np.where(flat, 0.0, apart / np.where(flat, 1.0, deviation))
        scores[~counts] = np.nan
        return scores


class _Rank(CrossSection):
    def combine(self, values: Floats, instruments: Sequence[str], inside: Bools | None = None) -> Floats:
        values, counts = _counted(values, inside)
        others = np.maximum(counts.sum(axis=1) - 1, 0)
        ranks = np.zeros(values.shape)
        if values.shape[1] > 1:
            between = np.maximum(others, 1)
            for a in range(values.shape[1]):
                below, level = values < values[:, a : a + 1], values == values[:, a : a + 1]
                places = (2 * below.sum(axis=1) + level.sum(axis=1) - 1) / between - 1.0
                ranks[:, a] = np.where(others > 0, places, 0.0)
        ranks[~counts] = np.nan
        return ranks


def _counted(values: Floats, inside: Bools | None) -> tuple[Floats, Bools]:
    """The values (T, A) with NaN where one does not count, and where they count; of none unless all are known."""
    known: Bools = ~np.isnan(values)
    if inside is None:
        return values, known & np.all(known, axis=1, keepdims=True)
    known &= inside
    return np.where(known, values, np.nan), known


def _means(values: Floats, counts: Bools) -> Floats:
    """The mean over the instruments that count, (T, 1); NaN where none does."""
    chosen = np.where(counts, values, 0.0)
    total = chosen[:, 0].copy()
    for a in range(1, values.shape[1]):  # one after the other: a sum over an axis may order them by their number
        total += chosen[:, a]
    number = counts.sum(axis=1)
    means: Floats = (total / np.where(number > 0, number, np.nan))[:, None]
    return means


def _word(instrument: str | int) -> str:
    """An instrument inside a name."""
    return re.sub(r"[^a-z0-9]+", "_", str(instrument).lower()).strip("_")
