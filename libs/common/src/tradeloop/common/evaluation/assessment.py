"""A policy beside everything that it has to beat, over the same bars."""

from __future__ import annotations

from dataclasses import dataclass

from tradeloop.common.arrays import Floats
from tradeloop.common.evaluation.backtest import BacktestResult
from tradeloop.common.evaluation.baselines import baselines
from tradeloop.common.evaluation.significance import Significance, significance
from tradeloop.common.market import BarArrays
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.strategy import Strategy


@dataclass(frozen=True, slots=True)
class Assessment:
    """The results that a policy is held against."""

    baselines: dict[str, BacktestResult]
    """The rules of `baselines`, and as `random` the policy's own decisions at other times: the draw in the middle."""
    significance: Significance | None
    """None for a policy that decided nothing; `random` is then left out."""


def assess(
    portfolio: Portfolio, strategy: Strategy, bars: BarArrays, features: Floats, policy: BacktestResult, seed: int
) -> Assessment:
    """Hold a policy's backtest against baselines and chance; `seed` is that of the draws."""
    rules = baselines(portfolio, strategy, bars, features)
    found = significance(portfolio, strategy, bars, policy.weights, seed)
    if found is not None:
        rules["random"] = found.median
    return Assessment(rules, found)
