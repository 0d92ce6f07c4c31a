"""The ports of training."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.errors import Unavailable
from tradeloop.common.market import BarArrays
from tradeloop.common.messages import Message
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.strategy import Strategy
from tradeloop.training.domain.material import Segments

Publish = Callable[[Message], None]
"""Sends a message at once, while a request is still being handled. May raise `Unavailable`."""

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Hears of a run: steps done, steps in all, and metrics, every one finite."""


class TrainingStopped(Unavailable):
    """The process was told to stop before the policy was learnt. The same request trains it anew."""


@dataclass(frozen=True, slots=True)
class Task:
    """The material of a training. `features` is (T, A, F) as of the closes of the bars, NaN where unknown."""

    strategy: Strategy
    portfolio: Portfolio
    """Whose capital, costs and limits are assumed."""
    bars: BarArrays
    features: NDArray[np.float64]
    steps: int
    """Environment steps over all parallel books; rounded up to whole rollouts."""
    seed: int
    segments: Segments
    """Rows to learn from, and rows that are kept apart to compare checkpoints on."""
    hidden: NDArray[np.bool_] | None = None
    """The instruments that `features` do not show, (T, A), where the members of the universe change."""


@dataclass(frozen=True, slots=True)
class Point:
    """The metrics of a run after so many environment steps, all finite."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Trained:
    """A policy, exported."""

    onnx: bytes
    onnx_max_abs_diff: float
    """Largest difference between the graph and the policy it came from, over sampled observations."""
    steps: int
    """Environment steps really taken: fewer than asked for where nothing got better any more."""
    best_step: int
    """The step of the checkpoint that was kept: the one with the highest reward on the rows kept apart; the last step
    where none are."""
    parameters: Mapping[str, str]
    """Every hyper-parameter, the defaults included."""
    curve: Sequence[Point]
    """The metrics of each rollout; those on the rows kept apart begin with `valid_`."""


class Trainer(Protocol):
    """Learns policies. Every adapter passes `contracts.check_trainer`."""

    def train(self, task: Task, progress: Progress, stop: threading.Event) -> Trained:
        """Learn a policy. The same task gives the same bytes on the same machine and library versions.

        The task is left as it is; `progress` hears of the last step too.

        Raises `TrainingStopped` when `stop` is set; `UserError` for an algorithm that it does not have, and for too
        few bars; `RewardError` when the reward breaks its contract.
        """
        ...
