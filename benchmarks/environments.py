"""Steps per second of the environments, against gym-anytrading, gym-trading-env and a bare kernel."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
from gym_anytrading.envs import StocksEnv
from numpy.typing import NDArray

from benchmarks import kernel, scenario
from benchmarks.measure import Row, in_turns, report
from tradeloop.common.market import BAR_PRICES, BarArrays
from tradeloop.common.strategy import Discrete, Strategy
from tradeloop.training.adapters.environment import TradingEnv, TradingVecEnv
from tradeloop.training.domain.material import episode_starts, whole

with warnings.catch_warnings():  # its import turns every warning into an error
    from gym_trading_env.environments import TradingEnv as GymTradingEnv

BARS, BOOKS, EPISODE_BARS, ROUNDS = 20_000, 256, 512, 15
STEPS_BATCHED, STEPS_SINGLE, STEPS_SLOW = 1_000, 4_000, 2_000
"""Calls of `step` in a block: N = 256, N = 1, and gym-trading-env."""


class Vectorised:
    """`TradingVecEnv` under random actions, episodes started anew as they end."""

    def __init__(self, bars: BarArrays, features: NDArray[np.float64], actions: NDArray[np.float32]) -> None:
        portfolio, generator = scenario.portfolio(scenario.universe()), np.random.default_rng(1)
        self._env = TradingVecEnv(
            portfolio,
            scenario.example(),
            bars,
            features,
            books=BOOKS,
            episode_bars=EPISODE_BARS,
            generator=generator,
        )
        self._env.reset()
        self._actions = actions

    def __call__(self) -> None:
        step = self._env.step
        for action in self._actions:
            step(action)


class Bare:
    """The bare kernel over the same bars, features and actions, one call a step as the environment needs it."""

    def __init__(
        self, bars: BarArrays, features: NDArray[np.float64], actions: NDArray[np.float32], rows: NDArray[np.int64]
    ) -> None:
        """`rows` are where the books start."""
        strategy, portfolio = scenario.example(), scenario.portfolio(scenario.universe())
        instrument, limits, reward = portfolio.universe.instruments[0], portfolio.limits, strategy.reward
        starts = episode_starts(bars, features, strategy.window, EPISODE_BARS, whole(len(bars)))
        books = np.zeros((len(rows), 6))
        books[:, [kernel.CASH, kernel.EQUITY, kernel.PEAK]] = portfolio.capital
        terms = np.zeros(10)
        terms[kernel.FEE] = instrument.taker_bps / 1e4
        terms[kernel.SLIPPAGE] = portfolio.costs.slippage_bps / 1e4
        terms[kernel.BAND] = strategy.actions.band(1)
        terms[kernel.LOT] = instrument.lot_size
        terms[kernel.DRAWDOWN_WEIGHT] = getattr(reward, "drawdown_weight")  # noqa: B009  the example's own
        terms[kernel.TURNOVER_WEIGHT] = getattr(reward, "turnover_weight")  # noqa: B009
        terms[kernel.CAPITAL] = portfolio.capital
        terms[kernel.MAX_DRAWDOWN] = limits.max_drawdown
        terms[kernel.MAX_POSITION] = limits.max_position
        terms[kernel.MAX_ORDER] = limits.largest_order
        seen = np.ascontiguousarray(features.reshape(BARS, -1), dtype=np.float32)
        fresh, self._next = np.random.default_rng(1).choice(starts, 4096), 0
        self._before = books, rows, rows + EPISODE_BARS, fresh
        self._terms = terms, bars.open[:, 0].copy(), bars.close[:, 0].copy(), seen, strategy.window, EPISODE_BARS
        self._actions = actions
        self.rewards, self._done = np.zeros(len(rows), dtype=np.float32), np.zeros(len(rows), dtype=np.bool_)
        self.out = np.zeros((len(rows), strategy.observation_size(1)), dtype=np.float32)
        self._spare = np.zeros_like(self.out)

    def __call__(self) -> None:
        for action in self._actions:
            self.step(action)

    def step(self, action: NDArray[np.float32]) -> None:
        self.out, self._spare = self._spare, self.out
        self._next = kernel.step(*self._before, self._next, *self._terms, action, self.out, self.rewards, self._done)


class Single:
    """`TradingEnv` under random actions, started anew when an episode ends."""

    def __init__(
        self, bars: BarArrays, features: NDArray[np.float64], strategy: Strategy, actions: Iterable[object]
    ) -> None:
        portfolio = scenario.portfolio(scenario.universe())
        self._env = TradingEnv(portfolio, strategy, bars, features, episode_bars=EPISODE_BARS)
        self._env.reset(seed=1)
        self._actions = actions

    def __call__(self) -> None:
        env = self._env
        for action in self._actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()


class Peer:
    """A peer under random actions. It is given an episode as long as the block, so that no reset is timed."""

    def __init__(self, env: gym.Env[Any, Any], actions: list[int]) -> None:
        self._env, self._actions = env, actions

    def __call__(self) -> None:
        step = self._env.step
        for action in self._actions:
            step(action)

    def begin(self) -> None:
        self._env.reset(seed=1)


class FeatureStocks(StocksEnv):  # type: ignore[misc]
    """gym-anytrading with signal features of one's own, as its documentation has it."""

    def __init__(self, bars: BarArrays, features: NDArray[np.float64], window: int) -> None:
        self._features = features.reshape(len(features), -1).astype(np.float32)
        frame = pd.DataFrame({"Close": bars.close[:, 0]})
        super().__init__(frame, window_size=window, frame_bound=(window, len(frame)))

    def _process_data(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self.df["Close"].to_numpy().astype(np.float32), self._features


def gym_trading_env(bars: BarArrays, features: NDArray[np.float64], window: int) -> gym.Env[Any, Any]:
    """gym-trading-env with the same features, fees and positions from -1 to 1; it adds two features of its own."""
    frame = pd.DataFrame(
        {name: getattr(bars, name)[:, 0] for name in BAR_PRICES}
        | {f"feature_{i}": features[:, 0, i] for i in range(features.shape[2])},
        index=pd.to_datetime(bars.open_us, unit="us"),
    )
    env: gym.Env[Any, Any] = GymTradingEnv(
        frame, positions=[-1, -0.5, 0, 0.5, 1], windows=window, trading_fees=3e-4, initial_position=0, verbose=0
    )
    return env


def with_two_choices(strategy: Strategy) -> Strategy:
    """The same strategy, short or long: the two actions that gym-anytrading has."""
    return Strategy(strategy.name, strategy.features, strategy.reward, strategy.window, Discrete((-1.0, 1.0)))


def check_kernel(bars: BarArrays, features: NDArray[np.float64], actions: NDArray[np.float32]) -> None:
    """Raise unless the bare kernel answers as the environment does, over an episode but its end."""
    portfolio = scenario.portfolio(scenario.universe())
    env = TradingEnv(portfolio, scenario.example(), bars, features, episode_bars=EPISODE_BARS)
    start = int(env.episodes.starts[0])
    env.reset(options={"start": start})
    bare = Bare(bars, features, actions, np.array([start]))
    for action in actions[: EPISODE_BARS - 1]:
        observation, reward, *_ = env.step(action)
        bare.step(action[None])
        np.testing.assert_allclose(bare.rewards, [reward], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(bare.out, [observation], rtol=1e-6, atol=1e-9)


def measure() -> None:
    strategy = scenario.example()
    bars, features = scenario.bars(scenario.universe(), BARS, seed=0), scenario.features(BARS, seed=0)
    generator = np.random.default_rng(0)
    batch = generator.uniform(-1.0, 1.0, (STEPS_BATCHED, BOOKS, 1)).astype(np.float32)
    single = generator.uniform(-1.0, 1.0, (STEPS_SINGLE, 1)).astype(np.float32)
    check_kernel(bars, features, single)
    rows = episode_starts(bars, features, strategy.window, EPISODE_BARS, whole(len(bars)))[:: BARS // (BOOKS + 10)][
        :BOOKS
    ]
    choices = generator.integers(2, size=STEPS_SINGLE).tolist()
    anytrading = Peer(FeatureStocks(bars, features, strategy.window), choices)
    trading_env = Peer(
        gym_trading_env(bars, features, strategy.window), generator.integers(5, size=STEPS_SLOW).tolist()
    )
    compared = in_turns(
        {
            "vectorised": (Vectorised(bars, features, batch), STEPS_BATCHED * BOOKS),
            "kernel": (Bare(bars, features, batch, rows.copy()), STEPS_BATCHED * BOOKS),
            "single": (Single(bars, features, strategy, list(single)), STEPS_SINGLE),
            "discrete": (Single(bars, features, with_two_choices(strategy), choices), STEPS_SINGLE),
            "gym-anytrading": (anytrading, STEPS_SINGLE),
            "gym-trading-env": (trading_env, STEPS_SLOW),
        },
        ROUNDS,
        before={"gym-anytrading": anytrading.begin, "gym-trading-env": trading_env.begin},
    )

    def row(what: str, ours: str, other: str, wanted: float) -> Row:
        name = {"kernel": "bare numba kernel"}.get(other, other)
        rates, ratio = compared.rates, compared.ratio(ours, other)
        return Row(what, rates[ours], "steps/s", wanted, "at least", name, rates[other], ratio)

    report(
        [
            row(f"vectorised environment, N = {BOOKS}", "vectorised", "gym-anytrading", 10.0),
            row(f"vectorised environment, N = {BOOKS}", "vectorised", "gym-trading-env", 45.0),
            row(f"vectorised environment, N = {BOOKS}", "vectorised", "kernel", 0.4),
            row("Gymnasium environment, N = 1, target position", "single", "gym-anytrading", 1.0),
            row("Gymnasium environment, N = 1, short or long", "discrete", "gym-anytrading", 1.0),
        ],
        [
            f"Random actions on {BARS:,} synthetic minute bars: window {strategy.window}, 8 features, fee 2 bp, "
            f"slippage 1 bp, the example's reward; episodes of {EPISODE_BARS} bars, whose restarts are timed. "
            f"Median of {ROUNDS} rounds in turns, ratios within a round; one thread.",
            "gym-anytrading gets the same window and features; its step has no order sizes, no slippage, no drawdown, "
            "a reward only when a trade closes, its fee only in the profit it reports; its observation is a view, "
            "not a copy. gym-trading-env gets the same window and features (and adds two), fees, weights of "
            "-1 to 1 in halves, its log-return reward; it fills at the close decided on, and fills a history table. "
            "The peers run without a reset in the timed part.",
            "At N = 1 ours acts by the example's scheme, a number in a Box, and by gym-anytrading's two choices.",
            "The kernel is one fused numba function, called once a step and checked to answer as the environment does: "
            "the same sizing, fill, accounting, reward and observation for one instrument, with nothing pluggable, "
            "checked or recorded, and no VecEnv around it.",
        ],
    )


if __name__ == "__main__":
    measure()
