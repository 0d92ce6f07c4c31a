"""Frames per second of PPO's `learn()`, against an environment that does nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from benchmarks import scenario
from benchmarks.measure import Row, in_turns, report
from tradeloop.common.strategy import Strategy
from tradeloop.training.adapters.environment import TradingVecEnv
from tradeloop.training.adapters.sb3 import make_model
from tradeloop.training.config import Settings
from tradeloop.training.domain.material import DEFAULT_EPISODE_BARS, whole
from tradeloop.training.domain.scaler import Scaler, fit_scaler

BARS, ROLLOUTS, ROUNDS = 20_000, 2, 9
THREADS: int = Settings.model_fields["threads"].default
"""Threads of PyTorch: as many as the training service takes."""


class NullVecEnv(VecEnv):
    """Answers every step with the same arrays, in the shapes of another environment. Its episodes never end."""

    def __init__(self, like: VecEnv) -> None:
        self.render_mode: str | None = None
        super().__init__(like.num_envs, like.observation_space, like.action_space)
        generator = np.random.default_rng(0)
        size = (like.num_envs, *(like.observation_space.shape or ()))
        self._observations = generator.normal(size=size).astype(np.float32)
        self._rewards = generator.normal(size=like.num_envs).astype(np.float32)
        self._dones = np.zeros(like.num_envs, dtype=np.bool_)
        self._infos: list[dict[str, Any]] = [{} for _ in range(like.num_envs)]

    def reset(self) -> NDArray[np.float32]:
        return self._observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Nothing to do."""

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        return self._observations, self._rewards, self._dones, self._infos

    def close(self) -> None:
        """Nothing is held open."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        return [False for _ in self._get_indices(indices)]


def trading(parameters: dict[str, Any], values: NDArray[np.float64]) -> TradingVecEnv:
    """The environment that the training service would learn in."""
    traded = scenario.universe()
    return TradingVecEnv(
        scenario.portfolio(traded),
        scenario.example(),
        scenario.bars(traded, len(values), seed=0),
        values,
        books=parameters["books"],
        episode_bars=parameters["episode_bars"],
        generator=np.random.default_rng(1),
    )


def ppo(env: VecEnv, parameters: dict[str, Any], values: NDArray[np.float64]) -> OnPolicyAlgorithm:
    """A learner as the training service makes it."""
    return make_model("PPO", env, scaler(values), parameters, seed=0)


def scaler(values: NDArray[np.float64]) -> Scaler:
    """The scaler of the example's observations."""
    return fit_scaler(values, scenario.example().window, np.ones(values.shape[1]), whole(len(values)))


def parameters_of(strategy: Strategy) -> dict[str, Any]:
    """The hyper-parameters of a strategy on a long history."""
    return {**dict(strategy.hyper_parameters), "episode_bars": DEFAULT_EPISODE_BARS}


def measure() -> None:
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    parameters, values = parameters_of(scenario.example()), scenario.features(BARS, seed=0)
    env = trading(parameters, values)
    steps = ROLLOUTS * parameters["n_steps"] * env.num_envs

    def learning(model: OnPolicyAlgorithm) -> Callable[[], object]:
        return lambda: model.learn(steps, log_interval=None)  # type: ignore[arg-type]

    compared = in_turns(
        {
            "trading": (learning(ppo(env, parameters, values)), steps),
            "null": (learning(ppo(NullVecEnv(env), parameters, values)), steps),
        },
        ROUNDS,
    )
    ratio = compared.ratio("trading", "null")
    settings = ", ".join(f"{key} {value}" for key, value in parameters.items())
    report(
        [
            Row(
                "PPO learn() on the vectorised environment",
                compared.rates["trading"],
                "steps/s",
                0.85,
                "at least",
                "null environment",
                compared.rates["null"],
                ratio,
            )
        ],
        [
            f"Stable-Baselines3's PPO as the training service sets it up ({settings}), "
            f"torch.set_num_threads({THREADS}); {steps:,} steps a block, median of {ROUNDS} rounds in turns, "
            "ratio within a round.",
            "The null environment has the same shapes, gives the same arrays each step and never ends an episode, "
            "so that the ends of episodes (the value of each last observation, one by one, in SB3) count against ours.",
        ],
    )


if __name__ == "__main__":
    measure()
