"""The N instruments that were traded most before each of some dates: a universe in time, out of bars alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Literal

import numpy as np

from tradeloop.common.errors import UserError
from tradeloop.common.market.bars import Series
from tradeloop.common.market.instants import from_us, to_us
from tradeloop.common.market.instruments import Timeframe
from tradeloop.common.market.members import Membership
from tradeloop.common.market.resample import whole_us

Measure = Literal["volume", "dollar_volume"]
Every = tuple[int, Literal["d", "w", "mo"]]
"""How many days, weeks from Monday, or months: a number of months divides a year."""


def change_dates(first_us: int, last_us: int, every: Every) -> Iterator[int]:
    """The times from `first_us` to `last_us` at which members change: midnights in UTC, the first ones of a period."""
    number, unit = every
    if unit != "mo":
        length_us = number * (Timeframe.D1 if unit == "d" else Timeframe.W1).us
        at_us = whole_us(first_us - 1, length_us) + length_us
        yield from range(at_us, last_us + 1, length_us)
        return
    first = from_us(first_us)
    months = first.year * 12 + (first.month - 1) // number * number
    while (at_us := to_us(datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC))) <= last_us:
        if at_us >= first_us:
            yield at_us
        months += number


def largest(
    series: Mapping[str, Series], timeframe: Timeframe, top: int, measure: Measure, every: Every, window_us: int
) -> dict[str, tuple[Membership, ...]]:
    """The memberships of the `top` instruments by their `measure`, from one change of members to the next.

    It is summed over the bars that lie in the window before a change: nothing is known of later ones. The first change
    is the first that has a whole window of bars before it; the last membership is open. Of equal ones those come first
    that the mapping has first; who traded nothing in the window is no member. Raises `UserError`.
    """
    firsts = [int(one["open_us"][0]) for one in series.values() if len(one["open_us"])]
    lasts = [int(one["open_us"][-1]) + timeframe.us for one in series.values() if len(one["open_us"])]
    dates = list(change_dates(min(firsts) + window_us, max(lasts), every)) if firsts else []
    if not dates:
        raise UserError(
            "no change of members has a whole window of bars before it: give more bars, or a shorter --window, --every"
        )
    sums = np.zeros((len(dates), len(series)))
    for a, (name, one) in enumerate(series.items()):
        if "volume" not in one or np.isnan(one["volume"]).any():
            raise UserError(f"{name}: not all of its bars have a volume, which the largest are found by: leave it out")
        traded = one["volume"] * one["close"] if measure == "dollar_volume" else one["volume"]
        opens = one["open_us"]
        for t, at_us in enumerate(dates):
            start, stop = np.searchsorted(opens, [at_us - window_us, at_us - timeframe.us + 1])
            sums[t, a] = traded[start:stop].sum()
    ranked = np.argsort(-sums, axis=1, kind="stable")[:, :top]
    chosen = np.zeros(sums.shape, dtype=np.bool_)
    np.put_along_axis(chosen, ranked, values=True, axis=1)
    chosen &= sums > 0.0
    return {name: tuple(_stays(chosen[:, a].tolist(), dates)) for a, name in enumerate(series)}


def _stays(chosen: list[bool], dates: list[int]) -> Iterator[Membership]:
    since_us: int | None = None
    for at_us, is_member in zip(dates, chosen, strict=True):
        if is_member and since_us is None:
            since_us = at_us
        elif not is_member and since_us is not None:
            yield Membership(start=from_us(since_us), end=from_us(at_us))
            since_us = None
    if since_us is not None:
        yield Membership(start=from_us(since_us))
