"""Is it more than luck? A policy's own decisions, made at other times.

A permutation test: the policy's targets are cut into a few long blocks, which are put together in another order, at
random. What comes of it trades as often, holds as long and has the same average exposure as the policy, through the
same simulator, costs, band and limits; only its timing is random. See Good, Permutation, Parametric and Bootstrap Tests
of Hypotheses (2005), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tradeloop.common.arrays import Bools, Floats
from tradeloop.common.evaluation.backtest import BacktestResult, follow
from tradeloop.common.market import BarArrays
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.simulation import Market, Simulator, market_of
from tradeloop.common.strategy import Strategy

DRAWS = 200
"""Random orders that a policy is held against."""
_MOST_BLOCKS = 50
_SEAM = 10
"""Trades of the policy to each seam between two blocks: a seam may be a trade more."""


@dataclass(frozen=True)
class Significance:
    """A policy against its own decisions at other times."""

    p_value: float
    """The share of `draws` and the policy itself that grew at least as much as the policy: (k + 1) / (n + 1), Davison
    and Hinkley, Bootstrap Methods and their Application (1997), eq. 4.11."""
    growth: float
    """The log growth of equity of the policy."""
    draws: Floats
    """The same of each draw, ascending; minus infinity where everything was lost."""
    halted: int
    """Draws that the portfolio's limits halted."""
    blocks: int
    """The blocks that a draw consists of; 1 where the policy traded so seldom that its decisions are only rotated."""
    median: BacktestResult
    """The draw in the middle."""


def significance(
    portfolio: Portfolio, strategy: Strategy, bars: BarArrays, weights: Floats, seed: int, draws: int = DRAWS
) -> Significance | None:
    """Hold a policy's decided `weights` (T, A), NaN for hold, against random orders of them; None without a decision.

    Bars on which it held every position stay bars on which nothing is decided.
    """
    decides: Bools = np.asarray(~np.isnan(weights).all(axis=1))
    decided = weights[decides]
    if not len(decided):
        return None
    band = strategy.actions.band(weights.shape[1])
    blocks = int(np.clip(_trades(decided, band) // _SEAM, 1, min(_MOST_BLOCKS, len(decided))))
    generator = np.random.default_rng(seed)
    orders = [_order(generator, len(decided), blocks) for _ in range(draws)]

    def simulator(books: int) -> Simulator:
        return Simulator(
            books,
            portfolio.universe.instruments,
            capital=portfolio.capital,
            costs=portfolio.costs,
            limits=portfolio.limits,
            no_trade_band=band,
        )

    many = simulator(draws + 1)
    _trade(many, market_of(bars, portfolio.universe), decides, decided, orders)
    with np.errstate(divide="ignore", invalid="ignore"):
        growth = np.log(np.maximum(many.books.equity, 0.0) / portfolio.capital)
    ours, others = float(growth[0]), growth[1:]
    ranked = np.argsort(others, kind="stable")
    middle = orders[int(ranked[len(ranked) // 2])]
    targets = np.full_like(weights, np.nan)
    targets[decides] = decided[np.concatenate([np.arange(start, stop) % len(decided) for start, stop in middle])]
    return Significance(
        p_value=(int((others >= ours).sum()) + 1) / (draws + 1),
        growth=ours,
        draws=others[ranked],
        halted=int((many.books.halt[1:] != 0).sum()),
        blocks=blocks,
        median=follow(simulator(1), bars, lambda t: targets[t][None], portfolio.universe)[0],
    )


def _trades(decided: Floats, band: float) -> int:
    """How often targets (D, A) leave the band around those that were traded last, as if prices stood still."""
    trades, held = 0, np.zeros(decided.shape[1])
    for target in decided:
        moved = (np.abs(target - held) >= band) & (target != held)
        if moved.any():
            trades += 1
            held = np.where(moved, target, held)
    return trades


_Order = list[tuple[int, int]]
"""Stretches [start, stop) of D decisions in the order of a draw; one may run on beyond D, into the first of them."""


def _order(generator: np.random.Generator, length: int, blocks: int) -> _Order:
    cuts = generator.choice(np.arange(1, max(length, 2)), size=blocks - 1, replace=False)
    edges = np.array([0, *np.sort(cuts).tolist(), length])
    # Never where the policy has it, unless there is no other place.
    begin = int(generator.integers(1, length)) if length > 1 else 0
    starts = (edges[:-1] + begin) % length
    lengths = np.diff(edges)
    return [(int(starts[b]), int(starts[b] + lengths[b])) for b in generator.permutation(blocks)]


def _trade(simulator: Simulator, market: Market, decides: Bools, decided: Floats, orders: list[_Order]) -> None:
    """Trade the decisions as they were in the first book, and in each other one in its own order, in one pass."""
    jumps: dict[int, list[tuple[int, int]]] = {}
    for book, order in enumerate(orders, start=1):
        at = 0
        for start, stop in order:
            jumps.setdefault(at, []).append((book, start))
            at += stop - start
    twice = np.concatenate((decided, decided))  # a stretch may run on beyond the end
    books = len(orders) + 1
    rows, hold = np.zeros(books, dtype=np.int64), np.full((books, decided.shape[1]), np.nan)
    simulator.reset(market, rows)
    at, where = 0, np.zeros(books, dtype=np.int64)
    for decision in decides[:-1]:  # what is decided on the last bar fills no more
        target = hold
        if decision:
            for book, start in jumps.get(at, ()):
                where[book] = start
            target = twice[where]
            where += 1
            at += 1
        simulator.step(market, rows, target)
