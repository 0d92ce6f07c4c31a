"""The vectorised backtest: the same simulator, observation, policy and reward as live, over arrays.

Decisions start when the window is full, as they do live after a cold start; until then positions are held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.arrays import Bools, Floats
from tradeloop.common.evaluation.performance import Performance, bars_per_year, performance
from tradeloop.common.features import shown
from tradeloop.common.market import BarArrays, Universe
from tradeloop.common.model_store.port import Actor
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.risk import APART, DENIED, Verdict, wire_code
from tradeloop.common.simulation import Books, Simulator, market_of
from tradeloop.common.strategy import Strategy
from tradeloop.common.strategy.observations import ObservationBuilder
from tradeloop.common.strategy.rewards import RewardEngine


@dataclass(frozen=True, slots=True)
class BacktestResult:
    """T bars of one book. Arrays are (T,) or (T, A), row t at the close of bar t unless said otherwise."""

    time_us: NDArray[np.int64]
    cash: Floats
    equity: Floats
    weights: Floats
    """Targets decided at each close; NaN for hold."""
    position: Floats
    fill_quantity: Floats
    """Signed, filled at the open of bar t."""
    fill_price: Floats
    fill_fee: Floats
    rewards: Floats
    """Rewards of the decisions at t - 1; 0 at the first bar."""
    components: dict[str, Floats]
    bars_per_year: float
    denials: dict[str, int]
    """How many orders the risk gate denied, by code; a denied flip that closed the position counts."""
    denied: int
    """Decisions of which at least one order was denied to an instrument that belongs to the universe and is traded."""
    halted_at: int | None = None
    """The bar at whose close the book was halted for good."""
    unsized: int = 0
    """Targets of a flat book that were too small for an order: less than a lot, or than the venue's smallest order."""

    @property
    def final_equity(self) -> float:
        return float(self.equity[-1])

    @property
    def decisions(self) -> int:
        """On how many bars a target was given; on the others every position was held."""
        return int((~np.isnan(self.weights).all(axis=1)).sum())

    @property
    def performance(self) -> Performance:
        """Figures of the equity curve."""
        return performance(self.equity, self.bars_per_year)


Watch = Callable[[int, Books], None]
"""Looks at the book at the end of bar t, when its decision is sized; the arrays are the simulator's own."""


def backtest(
    portfolio: Portfolio,
    strategy: Strategy,
    bars: BarArrays,
    features: Floats,
    actor: Actor,
    watch: Watch | None = None,
    hidden: Bools | None = None,
) -> BacktestResult:
    """Run a policy over T bars; `features` is (T, A, F), NaN while an indicator warms up.

    `hidden` (T, A) are the instruments that `features` do not show, where they are as `shown` gives them already.
    """
    if hidden is None:
        features, hidden = shown(features, portfolio.universe)
    left = None if hidden is None else hidden & portfolio.universe.roster.inside(bars.close_us)
    builder = ObservationBuilder(strategy.window, len(bars.instruments), len(strategy.features))
    hold = np.full((1, len(bars.instruments)), np.nan)
    actions: list[Floats] = []

    def decide(t: int, account: Floats) -> Floats:
        if np.isnan(features[t]).any():
            builder.clear()
        else:
            builder.append(strategy.observed(features[t]))
        if not builder.ready:
            actions.append(np.zeros((1, strategy.actions.size(len(bars.instruments)))))
            return hold
        actions.append(actor.act(builder.build(account)))
        weights = strategy.actions.weights(actions[-1])
        if not np.isfinite(weights).all():  # to hold is what NaN means to the simulator, and none of a policy's answers
            raise ValueError(
                f"strategy {strategy.name}: a policy's action became weights that are not finite: {weights}"
            )
        return weights if left is None else np.where(left[t], np.nan, weights)

    return run(portfolio, strategy, bars, features, decide, actions, watch)


def run(
    portfolio: Portfolio,
    strategy: Strategy,
    bars: BarArrays,
    features: Floats,
    decide: Callable[[int, Floats], Floats],
    actions: list[Floats] | None = None,
    watch: Watch | None = None,
) -> BacktestResult:
    """Run any rule: `decide(t, account)` gives target weights (1, A) at the close of bar t, NaN for hold.

    `actions` collects what the rule answered before its action scheme, for the reward; the weights where None.
    """
    length, count = bars.open.shape
    simulator = Simulator(
        1,
        portfolio.universe.instruments,
        capital=portfolio.capital,
        costs=portfolio.costs,
        limits=portfolio.limits,
        no_trade_band=strategy.actions.band(count),
    )
    engine = RewardEngine(strategy.reward, 1)
    names = strategy.feature_set.names
    books = simulator.books
    rewards = np.zeros(length)
    components: dict[str, Floats] = {}
    ts = bars.close_us
    action = np.zeros((1, count))
    records = _Records(simulator, bars, portfolio.universe)
    halted = np.zeros(1, dtype=np.bool_)
    target = np.full((1, count), np.nan)
    for t in range(length):
        if t > 0:
            halted = books.halt.astype(np.bool_)
        records.mark(t)
        if not np.isnan(target).all():  # to hold is no decision, and earns no reward
            context = simulator.context(
                action,
                ts[t - 1 : t],
                ts[t : t + 1],
                books.halt.astype(np.bool_) & ~halted,
                np.zeros(1, dtype=np.bool_),
                {name: features[t - 1, :, f][None] for f, name in enumerate(names)},
            )
            rewards[t] = engine(context)[0]
            for name, part in engine.components.items():
                components.setdefault(name, np.zeros(length))[t] = part[0]
        target = decide(t, books.account[0])
        action = target if actions is None else actions[-1]
        records.decide(t, target)
        if watch is not None:
            watch(t, books)
    return records.result(0, rewards, components)


def follow(
    simulator: Simulator, bars: BarArrays, decide: Callable[[int], Floats], universe: Universe | None = None
) -> list[BacktestResult]:
    """Run N rules side by side, one in each book of the simulator; no reward looks at them.

    `decide(t)` gives target weights (N, A) at the close of bar t, NaN for hold.
    """
    records = _Records(simulator, bars, universe)
    for t in range(len(bars)):
        records.mark(t)
        records.decide(t, decide(t))
    nothing = np.zeros(len(bars))
    return [records.result(n, nothing, {}) for n in range(len(simulator.books.cash))]


class _Records:
    """Steps N books along bars, and keeps what happens to each."""

    def __init__(self, simulator: Simulator, bars: BarArrays, universe: Universe | None) -> None:
        self._simulator, self._books, self._bars = simulator, simulator.books, bars
        self._market = market_of(bars, universe)
        length, count = bars.open.shape
        shape = (len(self._books.cash), length)
        self._rows = np.zeros(shape[0], dtype=np.int64)
        self._cash, self._equity = np.zeros(shape), np.zeros(shape)
        self._weights, self._position, self._quantity, self._price, self._fee = (
            np.zeros((*shape, count)) for _ in range(5)
        )
        self._halt, self._verdict = np.zeros(shape, dtype=np.int8), np.zeros((*shape, count), dtype=np.int8)

    def mark(self, t: int) -> None:
        """Fill at the open of bar t and mark at its close."""
        books = self._books
        self._rows[:] = t
        if t == 0:
            self._simulator.reset(self._market, self._rows)
        else:
            self._simulator.fill_and_mark(self._market, self._rows)
        self._cash[:, t], self._equity[:, t], self._position[:, t] = books.cash, books.equity, books.position
        self._halt[:, t] = books.halt
        filled = books.fill_quantity
        self._quantity[:, t] = filled
        self._price[:, t] = np.where(filled != 0.0, books.fill_price, 0.0)
        self._fee[:, t] = np.where(filled != 0.0, books.fill_fee, 0.0)

    def decide(self, t: int, weights: Floats) -> None:
        """Size the books towards target weights (N, A) at the close of bar t."""
        self._weights[:, t] = weights
        self._simulator.decide(weights)
        self._verdict[:, t] = self._books.verdict

    def result(self, n: int, rewards: Floats, components: dict[str, Floats]) -> BacktestResult:
        """The result of one book."""
        weights, position, verdict = self._weights[n], self._position[n], self._verdict[n]
        denied = np.isin(verdict, [int(code) for code in DENIED])
        halted = np.flatnonzero(self._halt[n])
        known = np.maximum.accumulate(self._bars.present, axis=0)
        # A flat book that may trade and wants more than the band gets an order, or one that rounds to nothing.
        wanted = (np.abs(weights) >= self._simulator.terms.band) & (weights != 0.0)
        unsized = (verdict == Verdict.UNCHANGED) & (position == 0.0) & wanted & known
        return BacktestResult(
            time_us=self._bars.close_us,
            cash=self._cash[n],
            equity=self._equity[n],
            weights=weights,
            position=position,
            fill_quantity=self._quantity[n],
            fill_price=self._price[n],
            fill_fee=self._fee[n],
            rewards=rewards,
            components=components,
            bars_per_year=bars_per_year(self._bars),
            denials={wire_code(code): int(times) for code in Verdict if (times := (verdict == code)[denied].sum())},
            denied=int((denied & ~np.isin(verdict, [int(code) for code in APART])).any(axis=1).sum()),
            halted_at=int(halted[0]) if len(halted) else None,
            unsized=int(unsized.sum()),
        )
