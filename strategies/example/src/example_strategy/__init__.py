"""A strategy for one or more liquid instruments: trades seldom, and pays for losing what it had."""

from __future__ import annotations

import numpy as np

from tradeloop.common.strategy import RewardContext, Strategy, TargetPosition, log_return, on, relative, reward, talib


@reward(version="1")
class DrawdownAverse:
    """Log return of equity in percent, less a charge for drawdown and for turnover."""

    drawdown_weight: float = 0.1
    turnover_weight: float = 0.1

    def __call__(self, c: RewardContext) -> dict[str, np.ndarray]:
        return {
            "pnl": 100.0 * np.log(c.equity / c.equity_prev),
            "drawdown": -self.drawdown_weight * c.drawdown,
            "turnover": -self.turnover_weight * c.turnover,
        }


strategy = Strategy(
    name="example",
    features=[
        log_return(15),
        log_return(60),
        log_return(240),
        talib("RSI", timeperiod=60),
        talib("NATR", timeperiod=60),
        relative(talib("EMA", timeperiod=60)),
        relative(talib("EMA", timeperiod=240)),
        on("4h", relative(talib("EMA", timeperiod=5))),
    ],
    window=32,
    actions=TargetPosition(no_trade_band=0.5),  # half of equity at once or not at all: fees eat small changes
    reward=DrawdownAverse(),
    algorithm="PPO",
    parameters={"learning_rate": 1e-3, "batch_size": 2048, "gamma": 0.95},
)
