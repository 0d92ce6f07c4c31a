"""Further columns of bars: what a source knows of a bar beyond prices, volume and funding rate.

A column has a name, and a number or nothing at each bar. Its name says how it goes into a bar of a longer timeframe:

- `count`, `trades`, `volume`, `sum`, `variance`, `flow_imbalance`: the sum; nothing where one bar has nothing.
- `mean`, `intensity`: the mean of what is there.
- `max`, `min`: the greatest, the least.
- `vwap`: the mean of what is there, each bar weighted by its volume.
- All others: the last that is there.

The ending is a whole word: `buy_volume` and `volume_sum` are sums, `discount` is not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

MOST_EXTRA = 64
"""How many further columns a bar may have."""

RESERVED = frozenset(
    (
        *("open", "high", "low", "close", "volume", "funding_rate", "extra"),
        *("instrument", "instruments", "present", "time", "open_us", "close_us", "open_time", "close_time"),
    )
)
"""Names that are taken."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}")


class Rule(StrEnum):
    """How the values of the bars in a bucket become the one of the longer bar."""

    SUM = "sum"
    MEAN = "mean"
    MAX = "max"
    MIN = "min"
    VWAP = "vwap"
    LAST = "last"


_ENDINGS: Mapping[str, Rule] = {
    **dict.fromkeys(("count", "trades", "volume", "sum", "variance", "flow_imbalance"), Rule.SUM),
    **dict.fromkeys(("mean", "intensity"), Rule.MEAN),
    "max": Rule.MAX,
    "min": Rule.MIN,
    "vwap": Rule.VWAP,
}


def rule_of(column: str) -> Rule:
    """The rule of a further column, by its name."""
    words = column.split("_")
    return _ENDINGS.get(words[-1], _ENDINGS.get("_".join(words[-2:]), Rule.LAST))


def is_extra(name: str) -> bool:
    """Whether a further column may have this name: lower-case letters, digits and `_`, 48 at most, and not taken."""
    return _NAME.fullmatch(name) is not None and name not in RESERVED


def checked(names: Iterable[str]) -> None:
    """Raise ValueError for a name that no further column may have, and for more than `MOST_EXTRA`."""
    count = 0
    for name in names:
        count += 1
        if not is_extra(name):
            taken = "is taken" if name in RESERVED else "is none"
            raise ValueError(
                f"{name[:64]!r} {taken}: a further column has a name of lower-case letters, digits and _, a letter "
                "first, at most 48 of them"
            )
    if count > MOST_EXTRA:
        raise ValueError(f"{count} further columns: a bar has {MOST_EXTRA} at most")


def aggregated(
    column: str, values: NDArray[np.float64], volume: NDArray[np.float64], group: NDArray[np.intp], groups: int
) -> NDArray[np.float64]:
    """The values (n,) of bars as those of longer bars (groups,), NaN for nothing; `group` (n,) increases.

    What `Bucket` gives for the same bars one by one, to the bit: sums run in the order of time.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # nothing known of a bucket: 0 / 0
        result = _aggregated(rule_of(column), values, volume, group, groups)
    return np.where(np.isfinite(result), result, np.nan)


def _aggregated(
    rule: Rule, values: NDArray[np.float64], volume: NDArray[np.float64], group: NDArray[np.intp], groups: int
) -> NDArray[np.float64]:
    if rule is Rule.SUM:
        return np.asarray(np.bincount(group, values, groups), np.float64)  # adds one by one; NaN stays NaN
    there = np.isfinite(values)
    if rule is Rule.VWAP:
        there &= volume > 0.0
    known, at = values[there], group[there]
    if rule in (Rule.MEAN, Rule.VWAP):
        weight = volume[there] if rule is Rule.VWAP else np.ones(len(known))
        mean: NDArray[np.float64] = np.bincount(at, known * weight, groups) / np.bincount(at, weight, groups)
        return mean
    result = np.full(groups, np.nan)
    if len(known):
        filled, first = np.unique(at, return_index=True)
        if rule is Rule.LAST:
            result[filled] = known[np.r_[first[1:], len(known)] - 1]
        else:
            result[filled] = (np.maximum if rule is Rule.MAX else np.minimum).reduceat(known, first)
    return result


class Bucket:
    """The further columns of a longer bar in the making."""

    def __init__(self, *, is_whole: bool) -> None:
        """`is_whole` says that no bar of the bucket came before, without any such column."""
        self._is_whole, self._bars = is_whole, 0
        self._held: dict[str, tuple[Rule, list[float]]] = {}
        """A sum and the number of its bars; for a mean, the weighted sum and the weights."""

    def add(self, extra: Mapping[str, float], volume: float) -> None:
        """Take the next bar; its volume is NaN where it is not known."""
        self._bars += 1
        for column, value in extra.items():
            held = self._held.get(column)
            rule = rule_of(column) if held is None else held[0]
            weight = volume if rule is Rule.VWAP else 1.0
            if rule is Rule.VWAP and not volume > 0.0:
                continue
            if held is None:
                held = self._held[column] = rule, [value, 0.0] if rule in _PICKS else [0.0, 0.0]
            state = held[1]
            if rule in _PICKS:
                state[0] = _PICKS[rule](state[0], value)
            else:
                state[0] += value if rule is Rule.SUM else value * weight
                state[1] += weight

    def values(self) -> dict[str, float]:
        """The values that are known at the end."""
        found = {}
        for column in sorted(self._held):
            rule, (value, weight) = self._held[column]
            if rule in (Rule.MEAN, Rule.VWAP):
                value = value / weight
            if (rule is not Rule.SUM or (self._is_whole and weight == self._bars)) and math.isfinite(value):
                found[column] = value
        return found


def _last(before: float, value: float) -> float:
    return value


_PICKS: Mapping[Rule, Callable[[float, float], float]] = {Rule.MAX: max, Rule.MIN: min, Rule.LAST: _last}
