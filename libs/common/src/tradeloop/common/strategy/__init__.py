"""The plug-in interface: all that a strategy package imports.

A strategy is an installed package with an entry point in the group `tradeloop.strategies` that names a
`Strategy`. It says what the policy sees (features, window), how it acts and what it is rewarded for.
"""

from __future__ import annotations

from tradeloop.common.features import (
    Feature,
    book_imbalance,
    buy_pressure,
    cross_mean,
    cross_rank,
    day_of_week,
    log_return,
    microprice_deviation,
    news_count,
    news_mean,
    of,
    on,
    order_flow_imbalance,
    realised_volatility,
    relative,
    spread,
    talib,
    time_of_day,
    trade_intensity,
    windowed,
)
from tradeloop.common.strategy.actions import ActionScheme, Discrete, PortfolioWeights, TargetPosition
from tradeloop.common.strategy.algorithms import Linear
from tradeloop.common.strategy.definition import Strategy, StrategyError
from tradeloop.common.strategy.installed import load
from tradeloop.common.strategy.rewards import Reward, RewardContext, reward, scalar_reward

__all__ = [
    "ActionScheme",
    "Discrete",
    "Feature",
    "Linear",
    "PortfolioWeights",
    "Reward",
    "RewardContext",
    "Strategy",
    "StrategyError",
    "TargetPosition",
    "book_imbalance",
    "buy_pressure",
    "cross_mean",
    "cross_rank",
    "day_of_week",
    "load",
    "log_return",
    "microprice_deviation",
    "news_count",
    "news_mean",
    "of",
    "on",
    "order_flow_imbalance",
    "realised_volatility",
    "relative",
    "reward",
    "scalar_reward",
    "spread",
    "talib",
    "time_of_day",
    "trade_intensity",
    "windowed",
]
