"""A strategy that trades often and uses all that one may: what the proofs over real servers trade."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.strategy import RewardContext, Strategy, TargetPosition, log_return, on, relative, reward, talib


@reward(version="1")
class Careful:
    """Has a memory, looks at features, and minds what trading cost."""

    initial_state = {"seen": 0.0}  # noqa: RUF012  a mapping of defaults, never written

    def __call__(self, c: RewardContext) -> dict[str, NDArray[np.float64]]:
        c.state["seen"][:] += 1.0
        return {
            "pnl": np.log(c.equity / c.equity_prev),
            "turnover": -0.01 * c.turnover,
            "patience": 1e-6 * c.state["seen"],
            "momentum": 0.1 * c.features["log_return_1"].mean(axis=1),
        }


strategy = Strategy(
    "probe",
    [log_return(1), talib("RSI", timeperiod=5), on("4h", relative(talib("EMA", timeperiod=3)))],
    Careful(),
    window=8,
    actions=TargetPosition(no_trade_band=0.02),
)

live = Strategy(
    "probe_live",
    [log_return(1), talib("RSI", timeperiod=5)],
    Careful(),
    window=4,
    actions=TargetPosition(no_trade_band=0.02),
)
"""The same with features that a minute of seconds is enough for."""
