"""Features as a policy is shown them, where a universe has members in time."""

from __future__ import annotations

import numpy as np

from tradeloop.common.arrays import Bools, Floats
from tradeloop.common.market import Universe


def shown(values: Floats, universe: Universe) -> tuple[Floats, Bools | None]:
    """Features (..., A, F) as a policy sees them, and which instruments (..., A) it is not shown.

    Where all instruments always belong to the universe, that is the features as they are, and None: one value that is
    not known yet is waited for. Where members change, or one is delisted, instruments come and go: one that does not
    belong, or of which not every feature is known yet, has zeros in place of all of them, so that it holds up nobody.
    Only where none is known, features stay unknown.
    """
    if not universe.changes:
        return values, None
    lacks = np.isnan(values).any(axis=-1)
    hidden: Bools = np.logical_and(lacks, ~lacks.all(axis=-1, keepdims=True))
    return np.where(hidden[..., None], 0.0, values), hidden
