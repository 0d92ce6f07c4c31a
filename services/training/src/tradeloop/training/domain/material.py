"""The material of a training: markets, the rows of them that are kept apart, and where episodes may start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.arrays import Bools, Floats, Ints
from tradeloop.common.errors import UserError
from tradeloop.common.market import BAR_COLUMNS, BarArrays, Universe


class Segment(NamedTuple):
    """Rows of one market: `start` to `split` are learnt from, `split` to `stop` are kept apart for validation."""

    start: int
    split: int
    stop: int


Segments = Sequence[Segment]


def whole(length: int) -> Segments:
    """All rows, with none kept apart."""
    return (Segment(0, length, length),)


LEAST_VALIDATION = 30
"""Fewer bars than this say nothing about a policy, and are better learnt from."""


def segment(features: Floats, share: float) -> Segment:
    """Keep the last `share` of a market's rows apart, counted from the first at which its features (T, A, F) are known.

    None are kept apart where they would be fewer than `LEAST_VALIDATION`.
    """
    known = np.flatnonzero(rows_known(features))
    length = len(features)
    kept = int(share * (length - known[0])) if len(known) else 0
    return Segment(0, length - (kept if kept >= LEAST_VALIDATION else 0), length)


DEFAULT_EPISODE_BARS = 256


def default_episode_bars(features: Floats, segments: Segments) -> int:
    """The steps of an episode where the strategy says nothing: fewer for a short history, so that ages differ.

    Of several markets the shortest can begin one on half of its rows, or nearly: else nothing would be learnt from it.
    """
    known = rows_known(features)
    lengths = [int(known[start:split].sum()) for start, split, _ in segments]
    return max(1, min(DEFAULT_EPISODE_BARS, max(lengths) // 4, min(lengths) // 2))


@dataclass(frozen=True, slots=True)
class Market:
    """The bars of a universe, and their features (T, A, F) as of their closes, NaN where unknown."""

    bars: BarArrays
    features: Floats
    hidden: Bools | None = None
    """The instruments that `features` do not show, (T, A), where the members of the universe change."""


@dataclass(frozen=True, slots=True)
class Material:
    """Markets one after the other, as if they were one; `segments` say where each lies."""

    bars: BarArrays
    features: Floats
    segments: Segments
    hidden: Bools | None = None


def join(markets: Sequence[Market], share: float) -> Material:
    """Join markets, and keep the last `share` of the first apart for validation, and of the others the same time.

    Markets move together: who learns from one what another did in the time kept apart has seen it. Times of the whole
    need not increase, since each market keeps its own. Raises `UserError` where the numbers of instruments differ.
    """
    first = markets[0].bars
    segments = [segment(markets[0].features, share)]
    _, split, stop = segments[0]
    apart_us = first.close_us[split - 1] if split < stop else np.iinfo(np.int64).max
    for market in markets[1:]:
        if len(market.bars.instruments) != len(first.instruments):
            raise UserError(
                f"{', '.join(market.bars.instruments)}: a policy of {len(first.instruments)} instruments cannot learn "
                f"from a market of {len(market.bars.instruments)}"
            )
        start = segments[-1].stop
        learnt = int(np.searchsorted(market.bars.close_us, apart_us, side="right"))
        segments.append(Segment(start, start + learnt, start + len(market.bars)))
    if len(markets) == 1:
        return Material(first, markets[0].features, segments, markets[0].hidden)
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(market.bars, name) for market in markets])
        for name in ("open_us", "close_us", *BAR_COLUMNS, "present")
    }
    features = np.concatenate([market.features for market in markets])
    # What reads further columns has read them: only features do.
    return Material(replace(first, **arrays, extra={}), features, segments)


def rows_known(features: Floats) -> NDArray[np.bool_]:
    """The rows (T,) at which every feature (T, A, F) is known."""
    return np.asarray(np.isfinite(features).all(axis=(1, 2)))


def episode_starts(
    bars: BarArrays,
    features: Floats,
    window: int,
    episode_bars: int,
    segments: Segments,
    universe: Universe | None = None,
) -> Ints:
    """Rows at which an episode of `episode_bars` steps may start, increasing.

    From `window - 1` bars before such a row to its last step every feature (T, A, F) is known and all rows are of one
    segment's first part, and at the row itself every instrument has a price, or does not belong to the universe.
    Raises `UserError` for a segment without one: nothing would be learnt from it.
    """
    known, needed = rows_known(features), window + episode_bars
    starts = [
        start + np.flatnonzero(_in_a_row(known[start:split], needed)) + window - 1 for start, split, _ in segments
    ]
    priced = np.isfinite(bars.close)
    if universe is not None:
        priced |= ~universe.roster.inside(bars.close_us)
    starts = [rows[priced[rows].all(axis=1)] for rows in starts]
    for number, (rows, (start, split, stop)) in enumerate(zip(starts, segments, strict=True), 1):
        if len(rows):
            continue
        which = f"market {number} of {len(segments)}" if len(segments) > 1 else "the range"
        kept = f", {stop - split} of them kept apart for validation" if split < stop else ""
        raise UserError(
            f"a window of {window} and episodes of {episode_bars} bars need {needed} bars in a row whose features are "
            f"known; {which} has {stop - start} bars{kept}, {int(known[start:stop].sum())} with features: "
            f"{'leave it out, ' * (len(segments) > 1)}take a longer range, preprocess all of it, or shorten the "
            "episodes (parameter episode_bars)"
        )
    return np.concatenate(starts)


def _in_a_row(known: NDArray[np.bool_], needed: int) -> NDArray[np.bool_]:
    """Which rows begin `needed` known ones; (T - needed + 1,), empty where T is too short."""
    counted = np.concatenate(([0], np.cumsum(known)))
    return np.asarray(counted[needed:] - counted[:-needed] == needed)
