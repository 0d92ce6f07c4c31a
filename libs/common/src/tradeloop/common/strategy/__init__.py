"""The plug-in interface: all that a strategy package imports.

A strategy is an installed package with an entry point in the group `tradeloop.strategies` that names a
`Strategy`. It says what the policy sees (features, window), how it acts and what it is rewarded for.
"""

from __future__ import annotations

from tradeloop.common.features import (
    Feature,
    change,
    change_of,
    clip,
    column,
    cross_demean,
    cross_mean,
    cross_rank,
    cross_zscore,
    day_of_week,
    difference,
    lag,
    log_return,
    month_of_year,
    named,
    of,
    on,
    product,
    quarter_of_year,
    ratio,
    relative,
    rolling,
    session,
    simple_return,
    talib,
    time_of_day,
    vectorised,
    volatility,
    windowed,
    zscore,
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
    "change",
    "change_of",
    "clip",
    "column",
    "cross_demean",
    "cross_mean",
    "cross_rank",
    "cross_zscore",
    "day_of_week",
    "difference",
    "lag",
    "load",
    "log_return",
    "month_of_year",
    "named",
    "of",
    "on",
    "product",
    "quarter_of_year",
    "ratio",
    "relative",
    "reward",
    "rolling",
    "scalar_reward",
    "session",
    "simple_return",
    "talib",
    "time_of_day",
    "vectorised",
    "volatility",
    "windowed",
    "zscore",
]
