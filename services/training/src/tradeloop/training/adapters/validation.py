"""Checkpoints compared on bars that nothing was learnt from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.arrays import Float32s
from tradeloop.training.adapters.environment import Episodes
from tradeloop.training.domain.material import Segments
from tradeloop.training.ports import Task

STRETCH_BARS, MOST_BOOKS = 64, 256
"""The rows kept apart are cut into stretches of at least so many bars, at most so many of them: each is walked by a
book of its own, side by side, which costs a fraction of a walk in one go. Each begins with no position. The bars after
the last whole stretch have no part in the comparison; the gate judges the chosen checkpoint on all of them."""


class Validation:
    """The rows of a task that are kept apart."""

    def __init__(self, task: Task) -> None:
        lengths = [stop - split for _, split, stop in task.segments]
        total = sum(lengths)
        self.bars = min(max(STRETCH_BARS, total // MOST_BOOKS), max(lengths))
        self._rows = _starts(task.segments, self.bars, task.strategy.window)
        self._episodes = Episodes(
            task.portfolio,
            task.strategy,
            task.bars,
            task.features,
            starts=self._rows,
            books=len(self._rows),
            episode_bars=self.bars,
            buffers=1,
            hidden=task.hidden,
        )
        self._every = np.arange(len(self._rows))

    def measure(self, act: Callable[[Float32s], NDArray[Any]]) -> Mapping[str, float]:
        """Measure a policy: `reward_mean` is that of a bar, `growth` the log growth of equity over all bars."""
        episodes, books = self._episodes, self._episodes.simulator.books
        observations = episodes.start_at(self._every, self._rows)
        equity = books.equity.copy()
        reward, alive = 0.0, np.ones(len(self._rows), dtype=np.bool_)
        for _ in range(self.bars):
            unknown = np.asarray(~np.isfinite(observations).all(axis=1))
            action = act(np.where(unknown[:, None], np.float32(0.0), observations))
            observations, rewards, _ = episodes.step(action, hold=unknown)
            reward += float(rewards[alive & ~unknown].sum())
            alive &= ~episodes.cursors.terminated
        floor = np.finfo(np.float64).tiny
        growth = np.log(np.maximum(books.equity, floor) / equity).sum()
        return {"reward_mean": reward / (len(self._rows) * self.bars), "growth": float(growth)}


def _starts(segments: Segments, bars: int, window: int) -> NDArray[np.int64]:
    """The row at which each stretch begins: its decisions are those of this row and of the next `bars - 1`."""
    return np.concatenate(
        [
            split - 1 + bars * np.arange((stop - split) // bars)
            for start, split, stop in segments
            if stop - split >= bars and split - start >= window
        ]
    ).astype(np.int64)
