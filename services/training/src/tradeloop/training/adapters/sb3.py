"""`Sb3Trainer`: policies by the on-policy algorithms of Stable-Baselines3, on the CPU."""

from __future__ import annotations

import difflib
import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.common.strategy import Strategy
from tradeloop.common.strategy.observations import account_size
from tradeloop.training.adapters.environment import TradingVecEnv
from tradeloop.training.adapters.onnx_graph import Layer, policy_graph
from tradeloop.training.domain import SCALED_LIMIT, Scaler, fit_scaler
from tradeloop.training.ports import Progress, Task, Trained, TrainingStopped

ALGORITHMS: Mapping[str, type[OnPolicyAlgorithm]] = {"PPO": PPO, "A2C": A2C}

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    # Many books and large batches: at SB3's own batch of 64 the updates, not the environment, take all the time.
    "PPO": {"n_steps": 64, "batch_size": 4096, "n_epochs": 4},
    "A2C": {"n_steps": 16},
}
SHARED_DEFAULTS: Mapping[str, Any] = {"books": 256, "episode_bars": 512, "net_arch": (64, 64)}
"""Parameters that every algorithm has: parallel books, steps of an episode, hidden layers of tanh units."""

_FIXED = frozenset(
    {"self", "policy", "env", "seed", "device", "verbose", "tensorboard_log", "policy_kwargs", "stats_window_size"}
    | {"rollout_buffer_class", "rollout_buffer_kwargs", "use_sde", "sde_sample_freq", "_init_setup_model"}
)
"""Arguments of SB3's algorithms that are no hyper-parameters, or that the exported graph could not hold."""

MAX_ABS_DIFF = 1e-5
"""How far the exported graph may be from the policy."""
SAMPLES, STEPS_TO_SAMPLE = 512, 4
"""How many observations the two are compared on, and random steps that lead to them."""
PROGRESS_SHARE = 0.01
"""Progress is told after every rollout, or this share of the run where that is longer."""


class Sb3Trainer:
    """Learns with Stable-Baselines3, with `threads` threads of PyTorch.

    The number of threads belongs to what makes a run repeatable: sums are split by it.
    """

    def __init__(self, clock: Clock, threads: int) -> None:
        self._clock, self._threads = clock, threads

    def train(self, task: Task, progress: Progress, stop: threading.Event) -> Trained:
        strategy = task.strategy
        parameters = hyper_parameters(strategy)
        algorithm = {key: value for key, value in parameters.items() if key not in SHARED_DEFAULTS}
        account = account_size(len(task.bars.instruments))
        with _deterministic(self._threads):
            env = TradingVecEnv(
                task.portfolio,
                strategy,
                task.bars,
                task.features,
                books=parameters["books"],
                episode_bars=parameters["episode_bars"],
                generator=np.random.default_rng(task.seed),
            )
            scaler = fit_scaler(task.features, strategy.window, account)
            model = ALGORITHMS[strategy.algorithm](
                "MlpPolicy",
                env,
                seed=task.seed,
                device="cpu",
                policy_kwargs={
                    "net_arch": list(parameters["net_arch"]),
                    "features_extractor_class": ScaledObservation,
                    "features_extractor_kwargs": {"scaler": scaler},
                },
                **algorithm,
            )
            model.set_logger(Logger(folder=None, output_formats=[]))  # or else SB3 makes a folder for each run
            reporter = _Reporter(env, task.steps, progress, stop, self._clock)
            # Its own log is never written, so that the newest values can be read from it.
            model.learn(task.steps, callback=reporter, log_interval=None)  # type: ignore[arg-type]
            if stop.is_set():
                raise TrainingStopped(f"strategy {strategy.name}: stopped after {model.num_timesteps} steps")
            onnx = export(model, scaler)
            difference = largest_difference(model, onnx, _sample(env, task.seed))
        if difference > MAX_ABS_DIFF:
            raise ValueError(
                f"strategy {strategy.name}: the exported graph differs from its policy by {difference:g}, "
                f"{MAX_ABS_DIFF:g} is allowed; its weights may have grown too large, lower the learning rate"
            )
        return Trained(
            onnx=onnx,
            onnx_max_abs_diff=difference,
            steps=model.num_timesteps,
            parameters={key: str(value) for key, value in parameters.items()},
            metrics=reporter.metrics,
        )


def hyper_parameters(strategy: Strategy) -> dict[str, Any]:
    """The platform's defaults, overridden by the strategy's own. Raises `UserError` for what does not exist."""
    who = f"strategy {strategy.name}"
    if strategy.algorithm not in ALGORITHMS:
        raise UserError(f"{who}: there is no algorithm {strategy.algorithm}; take one of {', '.join(ALGORITHMS)}")
    accepted = inspect.signature(ALGORITHMS[strategy.algorithm].__init__).parameters.keys() - _FIXED
    known = sorted(accepted | SHARED_DEFAULTS.keys())
    for key in strategy.parameters:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise UserError(f"{who}: {strategy.algorithm} has no parameter {key}; {hint}")
    chosen = {**SHARED_DEFAULTS, **DEFAULTS[strategy.algorithm], **strategy.parameters}
    if "batch_size" in chosen and "batch_size" not in strategy.parameters:
        chosen["batch_size"] = min(chosen["batch_size"], chosen["n_steps"] * chosen["books"])
    return chosen


class ScaledObservation(BaseFeaturesExtractor):
    """The policy's first layer: scales the observation, and clips what is extreme."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, observation_space: spaces.Box, scaler: Scaler) -> None:
        super().__init__(observation_space, features_dim=len(scaler.mean))
        self.register_buffer("mean", torch.from_numpy(scaler.mean))
        self.register_buffer("scale", torch.from_numpy(scaler.scale))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        # In place from the second operation on: nothing below has a gradient.
        return (observations - self.mean).mul_(self.scale).clamp_(-SCALED_LIMIT, SCALED_LIMIT)


class _Reporter(BaseCallback):
    """Tells of a run as it goes, and ends it when told to stop."""

    def __init__(self, env: TradingVecEnv, total: int, progress: Progress, stop: threading.Event, clock: Clock) -> None:
        super().__init__()
        self.metrics: dict[str, float] = {}
        self._env, self._total, self._progress, self._stop, self._clock = env, total, progress, stop, clock
        self._started, self._reported = clock.monotonic(), 0
        self._reward, self._batches = 0.0, 0

    def _on_step(self) -> bool:
        self._reward += float(self.locals["rewards"].mean())
        self._batches += 1
        return not self._stop.is_set()

    def _on_rollout_end(self) -> None:
        done = self.num_timesteps
        if done - self._reported < PROGRESS_SHARE * self._total and done < self._total:
            return
        elapsed_s = self._clock.monotonic() - self._started
        components = self._env.episodes.engine.components
        measured = {
            "reward": self._reward / self._batches,
            **{f"reward_{name}": float(part.mean()) for name, part in components.items()},
            **{key.replace("/", "_"): float(value) for key, value in self.logger.name_to_value.items()},
        }
        if elapsed_s > 0.0:
            measured["fps"] = done / elapsed_s
        self.metrics = {key: value for key, value in measured.items() if np.isfinite(value)}
        self._reported, self._reward, self._batches = done, 0.0, 0
        self._progress(done, max(done, self._total), self.metrics)


@contextmanager
def _deterministic(threads: int) -> Iterator[None]:
    """PyTorch with a fixed number of threads and repeatable algorithms; what was set before comes back."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def export(model: OnPolicyAlgorithm, scaler: Scaler) -> bytes:
    """The model's deterministic policy as an ONNX graph."""
    policy: Any = model.policy
    modules = [*policy.mlp_extractor.policy_net, policy.action_net]
    layers = [
        Layer(
            weight=module.weight.detach().numpy(),
            bias=module.bias.detach().numpy(),
            activation="Tanh" if isinstance(after, torch.nn.Tanh) else None,
        )
        for module, after in zip(modules, [*modules[1:], None], strict=True)
        if isinstance(module, torch.nn.Linear)
    ]
    space = model.action_space
    if isinstance(space, spaces.Box):
        return policy_graph(scaler, layers, kind="box", choices=0, actions=space.shape[0])
    choices = [int(space.n)] if isinstance(space, spaces.Discrete) else space.nvec.tolist()  # type: ignore[attr-defined]
    return policy_graph(scaler, layers, kind="discrete", choices=choices[0], actions=len(choices))


def largest_difference(model: OnPolicyAlgorithm, onnx: bytes, observations: NDArray[np.float32]) -> float:
    """Between the graph and the policy's own deterministic answers to observations (K, n)."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    expected, _ = model.predict(observations, deterministic=True)
    answers = [session.run(None, {"observation": one[None]})[0][0] for one in observations]
    return float(np.abs(np.array(answers) - expected.reshape(len(observations), -1)).max())


def _sample(env: TradingVecEnv, seed: int) -> NDArray[np.float32]:
    """Observations (K, n) that random actions lead to."""
    env.seed(seed)
    env.action_space.seed(seed)
    seen: list[NDArray[np.float32]] = []
    while len(seen) * env.num_envs < SAMPLES:
        env.reset()
        for _ in range(STEPS_TO_SAMPLE):
            observations = env.step(np.array([env.action_space.sample() for _ in range(env.num_envs)]))[0]
        seen.append(np.array(observations))
    return np.concatenate(seen)[:SAMPLES]
