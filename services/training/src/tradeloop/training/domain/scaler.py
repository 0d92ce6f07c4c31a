"""The scaler: observations on one scale, whatever the units of features and account are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.arrays import Floats
from tradeloop.common.market import BarArrays
from tradeloop.common.strategy.observations import HOLDING_SCALE
from tradeloop.training.domain.material import Segments, rows_known

SCALED_LIMIT = 10.0
"""Where a scaled observation is clipped."""


@dataclass(frozen=True, slots=True)
class Scaler:
    """How an observation is scaled: `(observation - mean) * scale`, (n,) float32."""

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]


def fit_scaler(features: Floats, window: int, usual: Floats, segments: Segments) -> Scaler:
    """Fit to the rows that are learnt from, where all features (T, A, F) are known; `usual` is `usual_return`.

    Features get mean 0 and deviation 1; one that never changes is only centred. The account part is scaled by what is
    usual in this market, and not centred: weights by an equal share, so that 1 is a full position; unrealised returns
    and the drawdown by the usual return. Both are about 1 where they matter, as
    features are: unscaled they would be hundreds of times smaller, and no policy would ever see them.
    """
    count = features.shape[1]
    known = _learnt_from(features, segments).reshape(-1, count * features.shape[2])
    mean, deviation = known.mean(axis=0), known.std(axis=0)
    # A constant's deviation is rarely 0 in floats.
    scale = 1.0 / np.where(deviation > 1e-9 * np.maximum(np.abs(mean), 1e-9), deviation, 1.0)
    account = np.concatenate((np.full(count, float(count)), 1.0 / usual, np.ones(count), [1.0 / usual.mean()]))
    return Scaler(
        np.concatenate((np.tile(mean, window), np.zeros(len(account)))).astype(np.float32),
        np.concatenate((np.tile(scale, window), account)).astype(np.float32),
    )


def usual_features(features: Floats, segments: Segments) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each feature (F,) on the rows that are learnt from, all instruments together; nothing where
    in no row all features are known."""
    known = _learnt_from(features, segments).reshape(-1, features.shape[2])
    if not len(known):
        return (), ()
    return tuple(known.mean(axis=0).tolist()), tuple(known.std(axis=0).tolist())


def _learnt_from(features: Floats, segments: Segments) -> Floats:
    """The rows (T, A, F) that are learnt from, where all features are known."""
    fitted = np.zeros(len(features), dtype=np.bool_)
    for start, split, _ in segments:
        fitted[start:split] = True
    return np.asarray(features[fitted & rows_known(features)])


def usual_return(bars: BarArrays, segments: Segments) -> Floats:
    """The standard deviation (A,) of returns over `HOLDING_SCALE` bars, as if they were independent."""
    moves = np.concatenate([np.diff(np.log(bars.close[start:split]), axis=0) for start, split, _ in segments])
    known = np.isfinite(moves)
    variance = np.square(np.where(known, moves, 0.0)).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    usual = np.sqrt(variance * HOLDING_SCALE)
    return np.asarray(np.where(usual > 1e-9, usual, 1.0))
