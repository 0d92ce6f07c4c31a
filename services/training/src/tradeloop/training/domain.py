"""The rules of training, without the learning: where episodes may start, the scaler, and a policy's figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.arrays import Floats, Ints
from tradeloop.common.errors import UserError
from tradeloop.common.evaluation.backtest import BacktestResult
from tradeloop.common.market import BarArrays


def rows_known(features: Floats) -> NDArray[np.bool_]:
    """The rows (T,) at which every feature (T, A, F) is known."""
    return np.asarray(np.isfinite(features).all(axis=(1, 2)))


def episode_starts(bars: BarArrays, features: Floats, window: int, episode_bars: int) -> Ints:
    """Rows at which an episode of `episode_bars` steps may start, increasing.

    From `window - 1` bars before such a row to its last step every feature (T, A, F) is known, and at the row
    itself every instrument has a price. Raises `UserError` when there is no such row.
    """
    known = rows_known(features)
    needed = window + episode_bars
    counted = np.concatenate(([0], np.cumsum(known)))
    starts = np.flatnonzero(counted[needed:] - counted[:-needed] == needed) + window - 1
    starts = starts[np.isfinite(bars.close[starts]).all(axis=1)]
    if not len(starts):
        raise UserError(
            f"a window of {window} and episodes of {episode_bars} bars need {needed} bars in a row whose features are "
            f"known; the range has {len(known)} bars, {int(known.sum())} of them with features: "
            "take a longer range, preprocess all of it, or shorten the episodes (parameter episode_bars)"
        )
    return starts


SCALED_LIMIT = 10.0
"""Where a scaled observation is clipped."""


@dataclass(frozen=True, slots=True)
class Scaler:
    """How an observation is scaled: `(observation - mean) * scale`, (n,) float32. The account part stays as it is."""

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]


def fit_scaler(features: Floats, window: int, account: int) -> Scaler:
    """Mean and standard deviation of each feature of each instrument over the rows where all (T, A, F) are known.

    A feature that never changes is only centred. `account` is the size of the observation's account part.
    """
    known = features[rows_known(features)].reshape(-1, features.shape[1] * features.shape[2])
    mean, deviation = known.mean(axis=0), known.std(axis=0)
    # A constant's deviation is rarely 0 in floats.
    scale = 1.0 / np.where(deviation > 1e-9 * np.maximum(np.abs(mean), 1e-9), deviation, 1.0)
    return Scaler(
        np.concatenate((np.tile(mean, window), np.zeros(account))).astype(np.float32),
        np.concatenate((np.tile(scale, window), np.ones(account))).astype(np.float32),
    )


def summary(result: BacktestResult) -> dict[str, float]:
    """The figures of a policy, always finite: `sharpe` is 0 where it is not defined."""
    achieved = result.performance
    return {
        "total_return": achieved.total_return,
        "sharpe": achieved.sharpe or 0.0,
        "max_drawdown": achieved.max_drawdown,
        "fills": float(np.count_nonzero(result.fill_quantity)),
        "fees": float(result.fill_fee.sum()),
        "reward": float(result.rewards.sum()),
        **{f"denied_{code}": float(count) for code, count in result.denials.items()},
    }
