"""The figures of a policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from tradeloop.common.evaluation.backtest import BacktestResult
from tradeloop.common.evaluation.performance import performance


def summary(results: Sequence[BacktestResult]) -> dict[str, float]:
    """The figures of a policy on one market after the other, always finite: `sharpe` is 0 where it is not defined."""
    equity = results[0].equity
    for result in results[1:]:
        equity = np.concatenate((equity, equity[-1] * result.equity[1:] / result.equity[0]))
    achieved = performance(equity, results[0].bars_per_year)
    denials = sum((Counter(result.denials) for result in results), Counter[str]())
    return {
        "total_return": achieved.total_return,
        "sharpe": achieved.sharpe or 0.0,
        "max_drawdown": achieved.max_drawdown,
        "fills": float(sum(np.count_nonzero(result.fill_quantity) for result in results)),
        "fees": float(sum(result.fill_fee.sum() for result in results)),
        "reward": float(sum(result.rewards.sum() for result in results)),
        **{f"denied_{code}": float(count) for code, count in denials.items()},
    }
