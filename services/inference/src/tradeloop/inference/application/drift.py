"""How far the features of late are from those that a policy has learnt from."""

from __future__ import annotations

import numpy as np

from tradeloop.common.arrays import Floats
from tradeloop.common.model_store.port import PolicyManifest

SPAN, LEAST = 500, 100
"""The bars over which the mean of late is taken, about; and how many there must be before it says anything."""


class Drift:
    """The mean of each feature of late, all instruments together: older bars fade from it."""

    def __init__(self, features: int) -> None:
        self._mean, self._bars = np.zeros(features), 0

    def see(self, values: Floats) -> None:
        """Take the features (A, F) of a bar in, all of them known."""
        self._bars += 1
        self._mean += (values.mean(axis=0) - self._mean) / min(self._bars, SPAN)

    def sigmas(self, manifest: PolicyManifest) -> Floats | None:
        """How far each mean (F,) is from that of the bars that a policy has learnt from, in deviations of these.

        None where too few bars were seen, or the manifest does not say what was usual.
        """
        usual, deviation = np.array(manifest.feature_means), np.array(manifest.feature_deviations)
        if self._bars < LEAST or usual.shape != self._mean.shape or deviation.shape != usual.shape:
            return None
        return np.asarray(np.abs(self._mean - usual) / np.where(deviation > 0.0, deviation, 1.0))
