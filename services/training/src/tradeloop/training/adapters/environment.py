"""The simulator as environments to learn in: `TradingVecEnv` for Stable-Baselines3, `TradingEnv` for Gymnasium.

Both walk through stored bars in episodes that start at random rows, and share one core, `Episodes`: the simulator,
observation and reward of backtest and live trading. An episode terminates when a limit halts the book; it is
truncated after `episode_bars` steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from tradeloop.common.arrays import Bools, Float32s, Floats, Ints
from tradeloop.common.features import shown
from tradeloop.common.market import BarArrays
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.simulation import EpisodeCursors, Simulator, TrainingBars, kernels, market_of, observe
from tradeloop.common.strategy import Strategy
from tradeloop.common.strategy.actions import ActionScheme
from tradeloop.common.strategy.rewards import RewardEngine
from tradeloop.training.domain.material import Segments, episode_starts, whole

Stepped = tuple[Float32s, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]


def action_space(scheme: ActionScheme, instruments: int) -> spaces.Space[Any]:
    """The space of an action scheme: `Box` in [-1, 1], `Discrete` for one choice, `MultiDiscrete` for several."""
    size = scheme.size(instruments)
    if scheme.kind == "box":
        return spaces.Box(-1.0, 1.0, (size,), np.float32)
    if size == 1:
        return spaces.Discrete(scheme.choices)
    return spaces.MultiDiscrete([scheme.choices] * size)


class FeaturesAsOf(Mapping[str, Floats]):
    """Features (N, A) by name as of the decision that led to the present rows, gathered only when asked for."""

    def __init__(self, names: Sequence[str], values: Floats, rows: Ints) -> None:
        self._places = {name: place for place, name in enumerate(names)}
        self._values, self._rows = values, rows

    def __getitem__(self, name: str) -> Floats:
        gathered: Floats = self._values[self._rows - 1, :, self._places[name]]
        return gathered

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Episodes:
    """N books of one portfolio that walk through the same bars, each in an episode of its own.

    `features` is (T, A, F) float64 as of the closes of the bars, NaN where unknown, and without the instruments that
    are `hidden` (T, A), see `features.shown`; `starts` are the rows at which an episode may start. Observations are
    written into `buffers` by turns.
    """

    def __init__(
        self,
        portfolio: Portfolio,
        strategy: Strategy,
        bars: BarArrays,
        features: Floats,
        *,
        starts: Ints,
        books: int,
        episode_bars: int,
        buffers: int,
        hidden: Bools | None = None,
    ) -> None:
        instruments = len(bars.instruments)
        self.starts = starts
        self.observation_space = spaces.Box(-np.inf, np.inf, (strategy.observation_size(instruments),), np.float32)
        self.action_space = action_space(strategy.actions, instruments)
        self.simulator = Simulator(
            books,
            portfolio.universe.instruments,
            capital=portfolio.capital,
            costs=portfolio.costs,
            limits=portfolio.limits,
            no_trade_band=strategy.actions.band(instruments),
        )
        self.engine = RewardEngine(strategy.reward, books)
        ints, bools = np.zeros((4, books), dtype=np.int64), np.zeros((2, books), dtype=np.bool_)
        self.cursors = EpisodeCursors(ints[0], ints[1], ints[2], ints[3], bools[0], bools[1])
        seen = np.ascontiguousarray(strategy.observed(features).reshape(len(bars), -1), dtype=np.float32)
        market = market_of(bars, portfolio.universe)
        self._bars = TrainingBars(market, np.ascontiguousarray(bars.close_us), seen, strategy.window)
        self._left = None if hidden is None else hidden & (market.barred & kernels.OUTSIDE == 0)
        """Where a member is not shown, and is left as it is, (T, A)."""
        self._episode_bars, self._scheme = episode_bars, strategy.actions
        self.action = np.zeros((books, strategy.actions.size(instruments)))
        self._given = self.action.reshape(books, *(self.action_space.shape or ()))  # as the space has it
        self.weights = np.zeros((books, instruments))
        size = strategy.observation_size(instruments)
        self.buffers = [np.zeros((books, size), dtype=np.float32) for _ in range(buffers)]
        self._advances = [self.simulator.bind(self._bars, self.cursors, self.weights, out) for out in self.buffers]
        """Each moves on towards `weights` and observes into its buffer; says how many episodes ended."""
        self._turn = 0
        # Its arrays are all written in place, so that it is made once.
        self.context = self.simulator.context(
            self.action,
            self.cursors.ts_prev,
            self.cursors.ts,
            self.cursors.terminated,
            self.cursors.truncated,
            FeaturesAsOf(strategy.feature_set.names, features, self.cursors.rows),
        )

    def start(self, which: Ints, generator: np.random.Generator) -> Float32s:
        """Begin new episodes of the books `which` at random rows. Returns the observations of all books."""
        return self.start_at(which, self.starts[generator.integers(len(self.starts), size=len(which))])

    def start_at(self, which: Ints, rows: Ints) -> Float32s:
        """Begin new episodes of the books `which` at `rows`. Returns the observations of all books."""
        cursors, bars = self.cursors, self._bars
        cursors.rows[which] = rows
        cursors.ends[which] = rows + self._episode_bars
        cursors.ts[which] = bars.close_us[rows]
        self.simulator.reset(bars.market, cursors.rows, which)
        done = np.zeros(len(cursors.rows), dtype=np.bool_)
        done[which] = True
        self.engine.reset(done)
        return observe(bars.seen, bars.window, cursors.rows, self.simulator.books.account, self.buffers[self._turn])

    def stagger(self, generator: np.random.Generator) -> None:
        """Let the episodes that have just begun end at random, so that books of every age are seen at any time."""
        rows = self.cursors.rows
        self.cursors.ends[:] = rows + generator.integers(1, self._episode_bars + 1, size=len(rows))

    def step(self, action: NDArray[Any], hold: Bools | None = None) -> tuple[Float32s, Floats, int]:
        """Act, and move on by one bar. The books that `hold` marks leave their positions as they are.

        Returns observations (N, n), rewards (N,) and how many episodes ended; `cursors` say which. Raises `RewardError`
        when the reward breaks its contract.
        """
        self._given[...] = action
        self.weights[:] = self._scheme.weights(self.action)
        if self._left is not None:
            self.weights[self._left[self.cursors.rows]] = np.nan
        if hold is not None:
            self.weights[hold] = np.nan
        self._turn = turn = (self._turn + 1) % len(self.buffers)
        ended = self._advances[turn]()
        return self.buffers[turn], self.engine(self.context), ended


class TradingVecEnv(VecEnv):
    """N episodes side by side, stepped together without a loop over them.

    An observation that `reset` or `step` returned is overwritten by the second step after it. `seed`, as for
    any `VecEnv`, counts from the next reset on. Where `staggered`, the first episodes after a reset end at random
    steps: if all books started and ended together, a learner would see accounts of one age at a time.

    Episodes lie in the first parts of `segments`, all bars where left out. Raises `UserError` when none fits.
    """

    def __init__(
        self,
        portfolio: Portfolio,
        strategy: Strategy,
        bars: BarArrays,
        features: Floats,
        *,
        books: int,
        episode_bars: int,
        generator: np.random.Generator,
        segments: Segments | None = None,
        staggered: bool = False,
        hidden: Bools | None = None,
    ) -> None:
        self.render_mode: str | None = None
        if hidden is None:
            features, hidden = shown(features, portfolio.universe)
        starts = episode_starts(
            bars, features, strategy.window, episode_bars, segments or whole(len(bars)), portfolio.universe
        )
        # SB3 reads an observation until after the next step, and copies it then: two buffers, one would not do.
        self.episodes = Episodes(
            portfolio,
            strategy,
            bars,
            features,
            starts=starts,
            books=books,
            episode_bars=episode_bars,
            buffers=2,
            hidden=hidden,
        )
        super().__init__(books, self.episodes.observation_space, self.episodes.action_space)
        self._generator, self._staggered = generator, staggered
        self._every = np.arange(books)
        self._infos: list[dict[str, Any]] = [{} for _ in range(books)]
        self._actions: NDArray[Any] = np.zeros(books)
        self.rewards = np.zeros(books)
        """The last rewards (N,), as the strategy gave them."""

    def reset(self) -> Float32s:
        if self._seeds[0] is not None:
            self._generator = np.random.default_rng(self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        observations = self.episodes.start(self._every, self._generator)
        if self._staggered:
            self.episodes.stagger(self._generator)
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = actions

    def step(self, actions: NDArray[Any]) -> Stepped:
        self.step_async(actions)
        return self.step_wait()

    def step_wait(self) -> Stepped:
        cursors = self.episodes.cursors
        observations, rewards, ended = self.episodes.step(self._actions)
        self.rewards = rewards
        dones = cursors.terminated | cursors.truncated
        infos = self._infos.copy()
        if ended:
            which = np.flatnonzero(dones)
            for n, last in zip(which.tolist(), observations[which], strict=True):
                infos[n] = {"terminal_observation": last, "TimeLimit.truncated": bool(cursors.truncated[n])}
            self.episodes.start(which, self._generator)
        return observations, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Nothing is held open."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        raise AttributeError(
            f"{attr_name} cannot be set: the books of a TradingVecEnv are no environments of their own"
        )

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        raise AttributeError(f"{method_name}: the books of a TradingVecEnv are no environments of their own")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        return [False for _ in self._get_indices(indices)]


class TradingEnv(gym.Env[Float32s, Any]):
    """One episode at a time, for anything that speaks Gymnasium.

    `reset(options={"start": row})` starts at a row of `episodes.starts` instead of a random one.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  as Gymnasium declares it

    def __init__(
        self, portfolio: Portfolio, strategy: Strategy, bars: BarArrays, features: Floats, *, episode_bars: int
    ) -> None:
        features, hidden = shown(features, portfolio.universe)
        starts = episode_starts(bars, features, strategy.window, episode_bars, whole(len(bars)), portfolio.universe)
        self.episodes = Episodes(
            portfolio,
            strategy,
            bars,
            features,
            starts=starts,
            books=1,
            episode_bars=episode_bars,
            buffers=1,
            hidden=hidden,
        )
        self.observation_space, self.action_space = self.episodes.observation_space, self.episodes.action_space
        self._book = np.zeros(1, dtype=np.int64)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Float32s, dict[str, Any]]:
        super().reset(seed=seed)
        episodes = self.episodes
        row = (options or {}).get("start")
        if row is None:
            return episodes.start(self._book, self.np_random)[0].copy(), {}
        if row not in episodes.starts:
            raise ValueError(f"no episode may start at row {row}: the first that may is {episodes.starts[0]}")
        return episodes.start_at(self._book, np.array([row]))[0].copy(), {}

    def step(self, action: Any) -> tuple[Float32s, float, bool, bool, dict[str, Any]]:
        observations, rewards, _ = self.episodes.step(np.asarray(action))
        cursors = self.episodes.cursors
        return observations[0].copy(), float(rewards[0]), bool(cursors.terminated[0]), bool(cursors.truncated[0]), {}
