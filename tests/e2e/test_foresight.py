"""Perfect foresight through every path: each bar's volume tells where its price goes next, and a policy follows it.

Whatever the path, the book may be on the wrong side for no longer than the bar in which it flips, however much it has
won, with leverage and with many instruments; and every path ends with the same equity, to the last bit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.e2e.test_parity import BASE, HISTORY, START_US, Loop, Market, live, policy
from tradeloop.common.arrays import Floats
from tradeloop.common.evaluation.backtest import BacktestResult, backtest
from tradeloop.common.market import Instrument, Universe, align
from tradeloop.common.model_store.port import Policy
from tradeloop.common.portfolio import Costs, Portfolio, RiskLimits
from tradeloop.common.strategy import RewardContext, Strategy, TargetPosition, reward, windowed
from tradeloop.training.adapters.environment import TradingEnv, TradingVecEnv

TRADED, PERIOD, SWING, BOOKS = 130, 24, 0.08, 3
UP, DOWN = 2.0, 1.0


def ahead(volume: Floats) -> float:
    """What the bar's volume says of the next one."""
    return float(volume[-1])


@reward(version="1")
class Wealth:
    def __call__(self, c: RewardContext) -> dict[str, Floats]:
        return {"equity": c.equity}


class Sines(Market):
    """Sines out of step with each other; a bar opens where the one before it closed."""

    def __init__(self, instruments: int, leverage: float) -> None:
        length = HISTORY + TRADED
        phases = np.arange(length + 2)[:, None] / PERIOD + np.arange(instruments) / instruments
        price = 100.0 * (1.0 + SWING * np.sin(2.0 * math.pi * phases))
        self.ids = tuple(f"x:{a}" for a in range(instruments))
        series = [
            {
                "open_us": START_US + BASE.us * np.arange(length),
                "open": price[:-2, a],
                "high": np.maximum(price[:-2, a], price[1:-1, a]),
                "low": np.minimum(price[:-2, a], price[1:-1, a]),
                "close": price[1:-1, a],
                "volume": np.where(price[2:, a] > price[1:-1, a], UP, DOWN),
            }
            for a in range(instruments)
        ]
        self.bars = align(self.ids, BASE, series)
        self.universe = Universe(
            name="sines", instruments=tuple(Instrument(id=one, taker_bps=2.0) for one in self.ids), timeframe=BASE
        )
        self.portfolio = Portfolio(
            name="book",
            universe=self.universe,
            strategy="seer",
            costs=Costs(slippage_bps=1.0),
            limits=RiskLimits(max_position=1.05 * leverage, max_leverage=1.05 * leverage),
        )

    @property
    def features(self) -> Floats:
        return self.bars.volume[:, :, None]

    @property
    def wanted(self) -> Floats:
        """The side (T, A) on which to be through the bar after each."""
        return side(self.traded.volume)


class Seer:
    """A policy that reads its observation, and needs no graph."""

    def __init__(self, policy: Policy) -> None:
        self._count = policy.manifest.instruments

    def act(self, observation: NDArray[np.float32]) -> Floats:
        return side(observation[:, : self._count])


def side(volume: NDArray[Any]) -> Floats:
    sides: Floats = np.where(volume == UP, 1.0, -1.0)
    return sides


def seer(leverage: float) -> Strategy:
    actions = TargetPosition(leverage=leverage, no_trade_band=0.0)
    return Strategy("seer", [windowed("ahead", ahead, 1, ("volume",))], Wealth(), window=1, actions=actions)


def through_the_services(market: Sines, strategy: Strategy) -> tuple[Floats, Floats]:
    loop = Loop(market, strategy, Seer).run()
    assert loop.failures == 0
    assert not any(loop.records()["execution.risk.v1"]), "nothing was denied"
    arrays = live(loop)
    return arrays["position"], arrays["equity"]


def through_the_vectorised_environment(market: Sines, strategy: Strategy) -> tuple[Floats, Floats]:
    env = TradingVecEnv(
        market.portfolio,
        strategy,
        market.traded,
        market.features[HISTORY:],
        books=BOOKS,
        episode_bars=TRADED - 1,
        generator=np.random.default_rng(0),
    )
    observations = env.reset()
    # Books are let go of when their episode ends; what the last reward saw is still there.
    position, equity = [np.zeros(len(market.ids))], [market.portfolio.capital]
    for t in range(TRADED - 1):
        observations, _, dones, _ = env.step(side(observations[:, : len(market.ids)]))
        assert dones.all() == dones.any() == (t == TRADED - 2), "no book was halted"
        seen = env.episodes.engine.components["equity"]
        assert (seen == seen[0]).all()
        equity.append(float(seen[0]))
        if not dones.any():
            held = env.episodes.simulator.books.position
            assert (held == held[0]).all()
            position.append(held[0].copy())
    return np.array(position), np.array(equity)


def through_the_single_environment(market: Sines, strategy: Strategy) -> tuple[Floats, Floats]:
    env = TradingEnv(market.portfolio, strategy, market.traded, market.features[HISTORY:], episode_bars=TRADED - 1)
    observation, _ = env.reset(seed=0)
    position, equity = [np.zeros(len(market.ids))], [market.portfolio.capital]
    for t in range(TRADED - 1):
        observation, _, terminated, truncated, _ = env.step(side(observation[: len(market.ids)]))
        assert (terminated, truncated) == (False, t == TRADED - 2)
        books = env.episodes.simulator.books
        position.append(books.position[0].copy())
        equity.append(float(books.equity[0]))
    return np.array(position), np.array(equity)


PATHS: dict[str, Any] = {
    "services": through_the_services,
    "vectorised environment": through_the_vectorised_environment,
    "single environment": through_the_single_environment,
}


@pytest.mark.parametrize("leverage", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("instruments", [1, 2, 3, 8])
def test_foresight_is_never_held_on_the_wrong_side_by_any_path(instruments: int, leverage: float) -> None:
    market, strategy = Sines(instruments, leverage), seer(leverage)
    expected: BacktestResult = backtest(
        market.portfolio,
        strategy,
        market.traded,
        market.features[HISTORY:],
        Seer(policy(market.portfolio, 0.0, strategy)),
    )
    assert expected.denials == {}
    assert expected.final_equity > 2.5 * market.portfolio.capital, "more than a limit on the capital would bear"
    for name, path in PATHS.items():
        position, equity = path(market, strategy)
        assert (np.sign(position[1:]) == market.wanted[: len(position) - 1]).all(), name
        np.testing.assert_array_equal(position, expected.position[: len(position)], err_msg=name)
        np.testing.assert_array_equal(equity, expected.equity, err_msg=name)
