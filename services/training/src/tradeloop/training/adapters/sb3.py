"""`Sb3Trainer`: policies by the on-policy algorithms of Stable-Baselines3, on the CPU or a GPU."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
import structlog
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.training.adapters.environment import TradingVecEnv
from tradeloop.training.adapters.onnx_graph import Layer, policy_graph
from tradeloop.training.adapters.validation import Validation
from tradeloop.training.domain.material import default_episode_bars
from tradeloop.training.domain.scaler import SCALED_LIMIT, Scaler, fit_scaler, usual_return
from tradeloop.training.ports import Point, Progress, Task, Trained, TrainingStopped

log = structlog.get_logger(__name__)

ALGORITHMS: Mapping[str, type[OnPolicyAlgorithm]] = {"PPO": PPO, "A2C": A2C}

OURS = frozenset({"books", "episode_bars", "net_arch", "activation", "log_std_init", "validation", "patience"})
"""Hyper-parameters that are no arguments of SB3's algorithms."""

ACTIVATIONS: Mapping[str, type[torch.nn.Module]] = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}
_NODES: Mapping[type[torch.nn.Module], Literal["Tanh", "Relu"]] = {torch.nn.Tanh: "Tanh", torch.nn.ReLU: "Relu"}

CLIP_REWARD = 10.0
"""Where a normalised reward is clipped, in deviations of the discounted return."""
MAX_ABS_DIFF = 1e-5
"""How far an exported graph is from its policy without a word of it: float32 rounds differently in the two."""
SAMPLES, STEPS_TO_SAMPLE = 512, 4
"""How many observations the two are compared on, and random steps that lead to them."""
PROGRESS_SHARE = 0.01
"""Progress is told after every rollout, or this share of the run where that is longer."""


class Sb3Trainer:
    """Learns with Stable-Baselines3, with `threads` threads of PyTorch on `device`: cpu, cuda, or auto.

    The number of threads belongs to what makes a run repeatable: sums are split by it. A GPU does not repeat itself.
    """

    def __init__(self, clock: Clock, threads: int, device: str = "cpu") -> None:
        self._clock, self._threads, self._device = clock, threads, device

    def train(self, task: Task, progress: Progress, stop: threading.Event) -> Trained:
        strategy = task.strategy
        if strategy.algorithm not in ALGORITHMS:
            raise UserError(
                f"strategy {strategy.name}: Stable-Baselines3 learns with {', '.join(ALGORITHMS)} here, and not with "
                f"{strategy.algorithm}"
            )
        if self._device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "there is no GPU that PyTorch can use: TRAINING_DEVICE=cpu or auto, or an image with CUDA on a node "
                "with a GPU"
            )
        chosen = parameters_of(task)
        with _deterministic(self._threads, self._device):
            env = TradingVecEnv(
                task.portfolio,
                strategy,
                task.bars,
                task.features,
                books=chosen["books"],
                episode_bars=chosen["episode_bars"],
                generator=np.random.default_rng(task.seed),
                segments=task.segments,
                staggered=True,
                hidden=task.hidden,
            )
            usual = usual_return(task.bars, task.segments)
            scaler = fit_scaler(strategy.observed(task.features), strategy.window, usual, task.segments)
            model = make_model(strategy.algorithm, env, scaler, chosen, task.seed, self._device)
            kept_apart = any(split < end for _, split, end in task.segments)
            validation = Validation(task) if kept_apart else None
            learner = _Learner(env, validation, task.steps, chosen["patience"], progress, stop, self._clock)
            # Its own log is never written, so that the newest values can be read from it.
            model.learn(task.steps, callback=learner, log_interval=None)  # type: ignore[arg-type]
            if stop.is_set():
                raise TrainingStopped(f"strategy {strategy.name}: stopped after {model.num_timesteps} steps")
            learner.finish()
            onnx = export(model, scaler)
            difference = largest_difference(model, onnx, _sample(env, task.seed))
        if difference > MAX_ABS_DIFF:
            log.warning(
                "the exported graph differs from its policy; weights that grew large do that, lower the learning rate",
                strategy=strategy.name,
                onnx_max_abs_diff=difference,
                usual=MAX_ABS_DIFF,
            )
        return Trained(
            onnx=onnx,
            onnx_max_abs_diff=difference,
            steps=model.num_timesteps,
            best_step=learner.best_step,
            parameters={key: str(value) for key, value in chosen.items()} | {"device": model.device.type},
            curve=learner.curve,
        )


def parameters_of(task: Task) -> dict[str, Any]:
    """All hyper-parameters of a task; those that depend on its bars have a value now."""
    chosen = dict(task.strategy.hyper_parameters)
    if chosen["episode_bars"] is None:
        chosen["episode_bars"] = default_episode_bars(task.features, task.segments)
    if "batch_size" in chosen:
        chosen["batch_size"] = min(chosen["batch_size"], chosen["n_steps"] * chosen["books"])
    return chosen


def make_model(
    algorithm: str, env: VecEnv, scaler: Scaler, chosen: Mapping[str, Any], seed: int, device: str = "cpu"
) -> OnPolicyAlgorithm:
    """A learner at its start. Its rewards are divided by the running deviation of their discounted sum.

    Whatever the unit of a strategy's reward, the value function then has targets of about 1. The environment and all
    that is recorded keep the rewards as they are.
    """
    normalised = VecNormalize(env, norm_obs=False, clip_reward=CLIP_REWARD, gamma=chosen["gamma"])
    policy: dict[str, Any] = {
        "net_arch": list(chosen["net_arch"]),
        "activation_fn": ACTIVATIONS[chosen["activation"]],
        "features_extractor_class": ScaledObservation,
        "features_extractor_kwargs": {"scaler": scaler},
    }
    if isinstance(env.action_space, spaces.Box):
        policy["log_std_init"] = chosen["log_std_init"]
    own = {key: value for key, value in chosen.items() if key not in OURS}
    model = ALGORITHMS[algorithm]("MlpPolicy", normalised, seed=seed, device=device, policy_kwargs=policy, **own)
    model.set_logger(Logger(folder=None, output_formats=[]))  # or else SB3 makes a folder for each run
    return model


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


class _Learner(BaseCallback):
    """Follows a run: measures each checkpoint, keeps the best, tells of it, and ends it when told or when it is time.

    SB3 learns from a rollout after its end, so that a checkpoint is measured when the next rollout begins.
    """

    def __init__(
        self,
        env: TradingVecEnv,
        validation: Validation | None,
        total: int,
        patience: int,
        progress: Progress,
        stop: threading.Event,
        clock: Clock,
    ) -> None:
        super().__init__()
        self.curve: list[Point] = []
        self.best_step = 0
        self._env, self._validation, self._total, self._patience = env, validation, total, patience
        self._progress, self._stop, self._clock = progress, stop, clock
        self._started, self._told = clock.monotonic(), 0
        self._best, self._best_weights, self._stale = -np.inf, dict[str, torch.Tensor](), 0
        self._sums: dict[str, float] = {}
        self._batches = 0
        self._rollout: dict[str, float] | None = None
        """The metrics of the rollout that is being learnt from."""

    def _on_step(self) -> bool:
        sums, components = self._sums, self._env.episodes.engine.components
        sums["reward"] = sums.get("reward", 0.0) + float(np.add.reduce(self._env.rewards))
        for name, part in components.items():
            key = f"reward_{name}"
            sums[key] = sums.get(key, 0.0) + float(np.add.reduce(part))
        self._batches += 1
        return not (self._stop.is_set() or self._is_enough)

    @property
    def _is_enough(self) -> bool:
        return 0 < self._patience <= self._stale

    def _on_rollout_start(self) -> None:
        self._checkpoint()

    def _on_rollout_end(self) -> None:
        count = self._batches * self._env.num_envs
        self._rollout = {key: value / count for key, value in self._sums.items()}
        self._sums, self._batches = {}, 0

    def finish(self) -> None:
        """Measure what the last rollout taught, and put the best checkpoint back into the model."""
        self._checkpoint()
        if self._validation is None:
            self.best_step = self.num_timesteps
        else:
            self.model.policy.load_state_dict(self._best_weights)
        last = self.curve[-1]
        self._progress(self.num_timesteps, self.num_timesteps, last.metrics)

    def _checkpoint(self) -> None:
        """Measure the policy as the last rollout made it."""
        if self._rollout is None:
            return
        step = self.num_timesteps
        elapsed_s = self._clock.monotonic() - self._started
        measured = self._rollout | {
            key.replace("/", "_"): float(value) for key, value in self.logger.name_to_value.items()
        }
        self._rollout = None
        if elapsed_s > 0.0:
            measured["fps"] = step / elapsed_s
        if self._validation is not None:
            of_checkpoint = self._validation.measure(self._act)
            measured |= {f"valid_{key}": value for key, value in of_checkpoint.items()}
            self._stale += 1
            if of_checkpoint["reward_mean"] > self._best:
                self._best, self._stale, self.best_step = of_checkpoint["reward_mean"], 0, step
                self._best_weights = {key: value.clone() for key, value in self.model.policy.state_dict().items()}
        self.curve.append(Point(step, {key: value for key, value in measured.items() if np.isfinite(value)}))
        if step - self._told >= PROGRESS_SHARE * self._total and step < self._total and not self._is_enough:
            self._told = step
            self._progress(step, self._total, self.curve[-1].metrics)

    def _act(self, observations: NDArray[np.float32]) -> NDArray[Any]:
        return self.model.predict(observations, deterministic=True)[0]


@contextmanager
def _deterministic(threads: int, device: str) -> Iterator[None]:
    """PyTorch with a fixed number of threads and repeatable algorithms; what was set before comes back."""
    if device != "cpu":
        # Without it CUDA's matrix products refuse to be repeatable.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
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
            weight=module.weight.detach().cpu().numpy(),
            bias=module.bias.detach().cpu().numpy(),
            activation=_NODES.get(type(after)),
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
    """Observations (K, n) that random actions lead to, as far as the rows that are learnt from go."""
    env.seed(seed)
    env.action_space.seed(seed)
    seen: list[NDArray[np.float32]] = []
    while len(seen) * env.num_envs < SAMPLES:
        env.reset()
        for _ in range(STEPS_TO_SAMPLE):
            observations = env.step(np.array([env.action_space.sample() for _ in range(env.num_envs)]))[0]
        seen.append(np.array(observations))
    return np.concatenate(seen)[:SAMPLES]
