"""Splits and dividends: an adjusted view of bars, derived from the bars as they were traded, as known at a time.

A holder keeps one share and buys more of it with each dividend, at the close before the ex date less the dividend. A
split of `s` new shares for an old one leaves `s` times the shares, a dividend of `d` after a close of `p` leaves
`1 / (1 - d / p)` times. That is the inverse of the factor of a price before the ex date, `(1 - d / p) / s`, as in the
adjusted closes that vendors give; the split part is the CRSP's cumulative factor to adjust prices (CFACPR), volumes
are adjusted by that part alone (CFACSHR). See CRSP, Data Descriptions Guide: US Stock and US Index Databases.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.errors import UserError
from tradeloop.common.market.bars import BAR_PRICES, BarArrays
from tradeloop.common.market.instants import from_us
from tradeloop.common.market.instruments import Timeframe

_PLAIN = 1.4
"""A split by this much or more shows in the prices: a bar that opens without its jump is adjusted already."""


@dataclass(frozen=True, slots=True)
class CorporateAction:
    """A split or a dividend of one instrument."""

    instrument: str
    """The instrument's id."""
    ex_us: int
    """The first moment at which a share is traded without the right to it."""
    kind: Literal["split", "dividend"]
    value: float
    """New shares for each old one, above 0; or quote currency for each share that was held at the close before the ex
    date, 0 or more. A split of 1 and a dividend of 0 take an earlier version back."""
    known_us: int | None = None
    """When it became known; None counts as known ever since. Of several versions the one known last counts."""


@dataclass(frozen=True)
class Adjustments:
    """Factors from prices and volumes as they were traded to those of the one share that was held at the first bar."""

    price: NDArray[np.float64]
    """(T, A), the shares that one share has become: 1 before the first action."""
    volume: NDArray[np.float64]
    """(T, A), one over the shares that splits have made of one."""
    applied: tuple[CorporateAction, ...]
    outside: tuple[CorporateAction, ...]
    """Actions that are known, and before the second bar of their instrument, or after its last."""

    @property
    def late(self) -> tuple[CorporateAction, ...]:
        """The applied ones that became known after their ex date: who traded in between saw what the view lacks."""
        return tuple(one for one in self.applied if one.known_us is not None and one.known_us > one.ex_us)


def as_known(actions: Iterable[CorporateAction], as_known_us: int) -> list[CorporateAction]:
    """The newest known version of each action, by ex date, without those that were taken back."""
    newest: dict[tuple[str, int, str], CorporateAction] = {}
    for one in actions:
        known_us = -math.inf if one.known_us is None else one.known_us
        other = newest.get(key := (one.instrument, one.ex_us, one.kind))
        if known_us <= as_known_us and (other is None or other.known_us is None or known_us > other.known_us):
            newest[key] = one
    counts = [one for one in newest.values() if one.value != (1.0 if one.kind == "split" else 0.0)]
    # A dividend is per share before the split of the same day.
    return sorted(counts, key=lambda one: (one.instrument, one.ex_us, one.kind))


def adjustments(bars: BarArrays, actions: Iterable[CorporateAction], as_known_us: int) -> Adjustments:
    """The factors of bars as they were traded. They change at the first bar of which half is after the ex date began.

    So a day that is given as midnight in UTC and one that is given as midnight in New York are the same day. Each
    factor depends on actions up to its bar, and on closes before it, alone. Raises `UserError` for bars of more than
    a day, for a dividend that is not less than the close before it, and for a split that the prices do not show.
    """
    if len(bars) and bars.close_us[0] - bars.open_us[0] > Timeframe.D1.us:
        raise UserError("a bar of more than a day holds both sides of an ex date: give days, or shorter bars")
    middle_us = bars.open_us + (bars.close_us - bars.open_us) // 2
    price, volume = np.ones(bars.close.shape), np.ones(bars.close.shape)
    applied: list[CorporateAction] = []
    outside: list[CorporateAction] = []
    known = as_known(actions, as_known_us)
    for a, instrument in enumerate(bars.instruments):
        rows = np.flatnonzero(bars.present[:, a])
        by_row: dict[int, list[CorporateAction]] = {}
        for one in (one for one in known if one.instrument == instrument):
            place = int(np.searchsorted(middle_us[rows], one.ex_us))
            if 0 < place < len(rows):
                by_row.setdefault(place, []).append(one)
            else:
                outside.append(one)
        for place, here in by_row.items():
            before, row = float(bars.close[rows[place - 1], a]), int(rows[place])
            shares, of_splits = _step(here, before, float(bars.open[row, a]))
            price[row:, a] *= shares
            volume[row:, a] /= of_splits
            applied += here
    return Adjustments(price, volume, tuple(applied), tuple(outside))


def adjusted(
    bars: BarArrays,
    actions: Iterable[CorporateAction],
    as_known_us: int,
    anchor: Literal["first", "last"] = "last",
) -> BarArrays:
    """The bars with splits and dividends taken out of prices, and splits out of volumes, as known at a time.

    With the anchor `last`, prices are those of the last share, and the past is rescaled, as charts have it. With
    `first` they are those of the share that was held at the first bar: no later action changes an earlier bar, in not
    a single bit. The given bars stay as they are. Raises `UserError` as `adjustments` does, and for bars with further
    columns, whose units are not known.
    """
    if bars.extra:
        raise UserError(f"{', '.join(sorted(bars.extra))}: bars with further columns are not adjusted: leave them out")
    factors = adjustments(bars, actions, as_known_us)
    return scaled(bars, factors, anchor)


def scaled(bars: BarArrays, factors: Adjustments, anchor: Literal["first", "last"]) -> BarArrays:
    """The bars times their factors; see `adjusted`."""
    price, volume = factors.price, factors.volume
    if anchor == "last" and len(bars):
        price, volume = price / price[-1], volume / volume[-1]
    prices = {name: getattr(bars, name) * price for name in BAR_PRICES}
    return replace(bars, **prices, volume=bars.volume * volume)


def _step(actions: Sequence[CorporateAction], before: float, opened: float) -> tuple[float, float]:
    """How many shares one becomes by actions between two bars, and how many of them by splits."""
    shares = of_splits = 1.0
    worth = before  # of one share, after what was taken so far
    for one in actions:
        if one.kind == "dividend":
            if one.value >= worth:
                raise UserError(
                    f"{_called(one)} is not less than the price before it, {worth:g}: correct it, it is per share and "
                    "in the currency of the prices"
                )
            shares /= 1.0 - one.value / worth
            worth -= one.value
        else:
            shares *= one.value
            of_splits *= one.value
            worth /= one.value
    jump, meant = math.log(opened / (worth * of_splits)), -math.log(of_splits)
    if abs(meant) >= math.log(_PLAIN) and abs(jump) < abs(jump - meant):
        split = next(one for one in actions if one.kind == "split")
        raise UserError(
            f"{_called(split)} does not show in the bars, which go from a close of {before:g} to an open of "
            f"{opened:g}: give bars as they were traded, or correct its date; bars that are adjusted already would be "
            "adjusted twice"
        )
    return shares, of_splits


def _called(action: CorporateAction) -> str:
    return (
        f"the {action.kind} of {action.value:g} of {action.instrument}, ex {from_us(action.ex_us):%Y-%m-%d %H:%M} UTC"
    )
