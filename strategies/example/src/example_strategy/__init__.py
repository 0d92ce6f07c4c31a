"""A strategy for one or more liquid instruments: seldom trades, and is charged for losing what it had."""

from __future__ import annotations

import numpy as np

from tradeloop.common.strategy import (
    RewardContext,
    Strategy,
    TargetPosition,
    log_return,
    on,
    relative,
    reward,
    talib,
)


@reward(version="1")
class DrawdownAverse:
    """Log return of equity, less a charge for drawdown and for turnover."""

    drawdown_weight: float = 1e-3
    turnover_weight: float = 2e-4

    def __call__(self, c: RewardContext) -> dict[str, np.ndarray]:
        return {
            "pnl": np.log(c.equity / c.equity_prev),
            "drawdown": -self.drawdown_weight * c.drawdown,
            "turnover": -self.turnover_weight * c.turnover,
        }


strategy = Strategy(
    name="example",
    features=[
        log_return(1),
        log_return(15),
        log_return(60),
        talib("RSI", timeperiod=14),
        talib("NATR", timeperiod=14),
        relative(talib("EMA", timeperiod=20)),
        relative(talib("EMA", timeperiod=100)),
        on("4h", relative(talib("EMA", timeperiod=5))),
    ],
    window=32,
    actions=TargetPosition(no_trade_band=0.25),
    reward=DrawdownAverse(),
    algorithm="PPO",
)
