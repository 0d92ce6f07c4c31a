"""A feature: arithmetic in two forms, batch and state, with an identity.

Bars come as columns, (6, n) float64 with contiguous rows in the order of `INPUTS`, or one at a time as `Row`. They are
the bars an instrument really has: a bar that is missing does not stand in them.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tradeloop.common.arrays import Floats
from tradeloop.common.errors import UserError
from tradeloop.common.market import BAR_PRICES, Timeframe

BarValues = tuple[float, float, float, float, float]
"""One bar of one instrument: open, high, low, close, volume. Volume is NaN where the source gives none."""

FIELDS = (*BAR_PRICES, "volume")
"""The numbers in a bar."""

Row = tuple[float, float, float, float, float, float]
"""A bar as a feature takes it: `BarValues`, then its time."""

INPUTS = (*FIELDS, "time")
"""The inputs of a feature. `time` is the close of the bar, in seconds since 1970, UTC: known as soon as the bar is."""

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
        """Begin anew with these bars, (6, n), n >= 0; the value at the last, NaN when there are too few."""
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
    """Which `INPUTS` it reads."""
    timeframe: Timeframe | None = None
    """The higher timeframe it is computed on; None for the base."""
    anchored: bool = True
    """Whether a value depends on where its series began, as one of a recursive indicator does. One that does not is a
    function of the `history` bars before it and of its own, and is computed over all bars at once."""

    @abstractmethod
    def batch(self, columns: Floats, blocks: Sequence[int]) -> Floats:
        """Values (n,) for all bars. `blocks` are the indices of the first bars after each anchor, then n."""

    @abstractmethod
    def state(self) -> FeatureState:
        """The same feature bar by bar, not opened yet."""


def require_count(owner: str, what: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise FeatureError(f"{owner}: {what} is {value!r}; it must be a whole number of bars, at least 1")


def fields_of(owner: str, defaults: tuple[str, ...], inputs: Sequence[str] | None) -> tuple[str, ...]:
    """The `INPUTS` that a feature reads, checked."""
    fields = defaults if inputs is None else tuple(inputs)
    if inputs is not None and len(fields) != len(defaults):
        raise FeatureError(f"{owner} takes {len(defaults)} inputs ({', '.join(defaults)}), not {len(fields)}")
    for field in fields:
        if field not in INPUTS:
            raise FeatureError(f"{owner} wants {field!r}, which bars do not have: they have {', '.join(INPUTS)}")
    return fields


def canonical(**definition: object) -> str:
    return json.dumps(definition, sort_keys=True)
