"""The vectorised backtest: the same simulator, observation, policy and reward as live, over arrays.

Decisions start when the window is full, as they do live after a cold start; until then positions are held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.arrays import Floats
from tradeloop.common.evaluation.performance import Performance, bars_per_year, performance
from tradeloop.common.market import BarArrays
from tradeloop.common.model_store.port import Actor
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.risk import DENIED, Verdict, wire_code
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
    """Decisions of which at least one order was denied."""

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
) -> BacktestResult:
    """Run a policy over T bars; `features` is (T, A, F), NaN while an indicator warms up."""
    builder = ObservationBuilder(strategy.window, len(bars.instruments), features.shape[2])
    hold = np.full((1, len(bars.instruments)), np.nan)
    actions: list[Floats] = []

    def decide(t: int, account: Floats) -> Floats:
        if np.isnan(features[t]).any():
            builder.clear()
        else:
            builder.append(features[t])
        if not builder.ready:
            actions.append(np.zeros((1, strategy.actions.size(len(bars.instruments)))))
            return hold
        actions.append(actor.act(builder.build(account)))
        return strategy.actions.weights(actions[-1])

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
    market = market_of(bars)
    simulator = Simulator(
        1,
        portfolio.universe.instruments,
        capital=portfolio.capital,
        costs=portfolio.costs,
        limits=portfolio.limits,
        no_trade_band=strategy.actions.no_trade_band,
    )
    engine = RewardEngine(strategy.reward, 1)
    names = strategy.feature_set.names
    books = simulator.books
    cash, equity, rewards = np.zeros(length), np.zeros(length), np.zeros(length)
    weights, position, quantity, price, fee = (np.zeros((length, count)) for _ in range(5))
    components: dict[str, Floats] = {}
    rows, ts = np.zeros(1, dtype=np.int64), bars.close_us
    action = np.zeros((1, count))
    denials: Counter[str] = Counter()
    denied = 0
    for t in range(length):
        rows[0] = t
        if t == 0:
            simulator.reset(market, rows)
        else:
            halted = books.halt.astype(np.bool_)
            simulator.fill_and_mark(market, rows)
            if not np.isnan(weights[t - 1]).all():  # to hold is no decision, and earns no reward
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
        cash[t], equity[t], position[t] = books.cash[0], books.equity[0], books.position[0]
        filled = books.fill_quantity[0]
        quantity[t] = filled
        price[t] = np.where(filled != 0.0, books.fill_price[0], 0.0)
        fee[t] = np.where(filled != 0.0, books.fill_fee[0], 0.0)
        weights[t] = target = decide(t, books.account[0])[0]
        action = target[None] if actions is None else actions[-1]
        simulator.decide(target[None])
        codes = [wire_code(code) for code in map(Verdict, books.verdict[0].tolist()) if code in DENIED]
        denials.update(codes)
        denied += bool(codes)
        if watch is not None:
            watch(t, books)
    return BacktestResult(
        time_us=ts,
        cash=cash,
        equity=equity,
        weights=weights,
        position=position,
        fill_quantity=quantity,
        fill_price=price,
        fill_fee=fee,
        rewards=rewards,
        components=components,
        bars_per_year=bars_per_year(bars),
        denials=dict(denials),
        denied=denied,
    )
