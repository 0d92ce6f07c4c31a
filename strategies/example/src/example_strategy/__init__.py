"""A strategy for one or more liquid instruments and bars of any length: it pays for losing what it had."""

from __future__ import annotations

import numpy as np

from tradeloop.common.strategy import RewardContext, Strategy, log_return, relative, reward, talib


@reward(version="2")
class DrawdownAverse:
    """Log return of equity in percent, less a charge for drawdown and for turnover."""

    drawdown_weight: float = 0.1
    turnover_weight: float = 0.05

    def __call__(self, c: RewardContext) -> dict[str, np.ndarray]:
        return {
            "pnl": 100.0 * np.log(c.equity / c.equity_prev),
            "drawdown": -self.drawdown_weight * c.drawdown,
            "turnover": -self.turnover_weight * c.turnover,
        }


strategy = Strategy(
    name="example",
    # Returns and ratios, counted in bars: they mean the same at any price, and for bars of any length.
    features=[
        log_return(1),
        log_return(5),
        log_return(20),
        talib("RSI", timeperiod=14),
        relative(talib("EMA", timeperiod=30)),
        relative(talib("EMA", timeperiod=120)),
    ],
    reward=DrawdownAverse(),
)
