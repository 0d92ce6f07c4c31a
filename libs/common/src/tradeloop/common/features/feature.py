"""A feature: arithmetic in two forms, batch and state, with an identity.

Bars come as columns, (6 + E, n) float64 with contiguous rows in the order of `INPUTS`, then of the E further columns
that the feature reads (`Feature.layout`), or one at a time as `Row`. They are the bars an instrument really has: a bar
that is missing does not stand in them. A further column is NaN at a bar that lacks it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from operator import itemgetter
from typing import Protocol

import numpy as np

from tradeloop.common.arrays import Floats
from tradeloop.common.errors import UserError
from tradeloop.common.market import BAR_PRICES, Timeframe, is_extra

BarValues = tuple[float, ...]
"""One bar of one instrument: open, high, low, close, volume, then the further columns that a feature set reads, in the
order of `FeatureSet.extras`. Volume and further columns are NaN where the source gives none."""

FIELDS = (*BAR_PRICES, "volume")
"""The numbers in a bar."""

Span = tuple[int, int, int]
"""Some bars `start` to `stop` (exclusive) of a series that begins at a bar `begin`: `(begin, start, stop)`."""

Row = tuple[float, ...]
"""A bar as a feature takes it, in the order of `Feature.layout`; what follows is not its own."""

INPUTS = (*FIELDS, "time")
"""The inputs that every bar gives a feature, before its further columns. `time` is the close of the bar, in seconds
since 1970, UTC: known as soon as the bar is."""

CLOSE, TIME = INPUTS.index("close"), INPUTS.index("time")

ANCHOR_BARS = 512
"""Bars of event time between anchors. More makes the batch faster, fewer makes recovery read less."""

NAME = r"[a-z][a-z0-9_]*"
"""The names that an author may give to a feature, as a pattern."""
FLAT = 1e-9
"""A deviation below this share of the mean is none: it is what rounding leaves of equal numbers."""


class FeatureError(UserError):
    """A feature is defined wrongly, or the bars cannot give it."""


class FeatureState(Protocol):
    """A feature carried forward one bar at a time."""

    def open(self, columns: Floats) -> float:
        """Begin anew with these bars, (6 + E, n), n >= 0; the value at the last, NaN when there are too few."""
        ...

    def update(self, row: Row) -> float:
        """Take the next bar; the value at it, NaN while warming up."""
        ...


@dataclass(frozen=True, kw_only=True)
class Feature(ABC):
    """A named number for every bar, computed from an instrument's bars up to and including that one."""

    name: str
    definition: str
    """All that the values depend on, as canonical text."""
    history: int
    """Bars before an anchor from which the feature is restarted there."""
    inputs: tuple[str, ...]
    """Which `INPUTS` and which further columns of bars it reads."""
    timeframe: Timeframe | None = None
    """The higher timeframe it is computed on; None for the base."""
    anchored: bool = True
    """Whether a value depends on where its series began, as one of a recursive indicator does. One that does not is a
    function of the `history` bars before it and of its own, and is computed over all bars at once."""

    @cached_property
    def extras(self) -> tuple[str, ...]:
        """The further columns of bars that it reads."""
        return tuple(name for name in self.inputs if name not in INPUTS)

    @property
    def layout(self) -> tuple[str, ...]:
        """Names of what its columns and rows hold, by place; the same for a feature inside another one."""
        return INPUTS + self.extras

    @property
    def further(self) -> slice:
        """The places of its further columns."""
        return slice(len(INPUTS), len(INPUTS) + len(self.extras))

    def chosen(self, layout: Sequence[str]) -> tuple[int, ...] | None:
        """The places of its layout in a greater one; None where that begins as its own, so that it fits as it is."""
        own = self.layout
        return None if tuple(layout[: len(own)]) == own else tuple(layout.index(name) for name in own)

    @property
    def places(self) -> list[int]:
        """The places of its inputs."""
        return [self.layout.index(name) for name in self.inputs]

    @abstractmethod
    def batch(self, columns: Floats, spans: Sequence[Span]) -> Floats:
        """Values of the bars of spans, one span after the other.

        What is not anchored is asked for all bars that it gets, `[(0, 0, n)]`.
        """

    def spans(self, blocks: Sequence[int]) -> list[Span]:
        """Spans of the bars of blocks: the indices of the first bars after each anchor, then the number of bars."""
        if not self.anchored:
            return [(0, 0, blocks[-1])]
        return [(max(0, start - self.history), start, stop) for start, stop in pairwise(blocks)]

    @abstractmethod
    def state(self) -> FeatureState:
        """The same feature bar by bar, not opened yet."""


def of_spans(values: Floats, spans: Sequence[Span]) -> Floats:
    """The values of the bars of spans, one span after the other, of those of all bars."""
    return np.concatenate([values[start:stop] for _, start, stop in spans])


def require_count(owner: str, what: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise FeatureError(f"{owner}: {what} is {value!r}; it must be a whole number of bars, at least 1")


def fields_of(owner: str, defaults: tuple[str, ...], inputs: Sequence[str] | None) -> tuple[str, ...]:
    """The inputs that a feature reads, checked: whether bars have a further column shows when they are there."""
    fields = defaults if inputs is None else tuple(inputs)
    if inputs is not None and len(fields) != len(defaults):
        raise FeatureError(f"{owner} takes {len(defaults)} inputs ({', '.join(defaults)}), not {len(fields)}")
    for field in fields:
        if field not in INPUTS and (inputs is None or not is_extra(field)):
            raise FeatureError(
                f"{owner} wants {field!r}, which bars do not have: they have {', '.join(INPUTS)}; their further "
                "columns, given as inputs=, have names of lower-case letters, digits and _"
            )
    return fields


def canonical(**definition: object) -> str:
    return json.dumps(definition, sort_keys=True)


class _Chosen:
    """The state of a feature that reads further columns, where a feature set has others beside them."""

    def __init__(self, state: FeatureState, places: Sequence[int]) -> None:
        self._state, self._columns, self._pick = state, list(places), itemgetter(*places)

    def open(self, columns: Floats) -> float:
        return self._state.open(columns[self._columns])

    def update(self, row: Row) -> float:
        return self._state.update(self._pick(row))


def placed(feature: Feature, layout: Sequence[str]) -> FeatureState:
    """The state of a feature, for columns and rows of a layout."""
    places = feature.chosen(layout)
    return feature.state() if places is None else _Chosen(feature.state(), places)
