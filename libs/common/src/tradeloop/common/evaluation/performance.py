"""Figures of an equity curve: one formula for each, for training, the gate and the report alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tradeloop.common.arrays import Floats
from tradeloop.common.market import BarArrays

_YEAR_US = 365.25 * 86_400e6


@dataclass(frozen=True)
class Performance:
    """Figures of an equity curve. None where one is not defined: of a curve that never moved, or that went broke."""

    final: float
    total_return: float
    max_drawdown: float
    """The largest fall from a peak, as a share of the peak: Magdon-Ismail and Atiya, Maximum Drawdown (2004), eq. 1."""
    volatility: float | None
    """Standard deviation of the bars' returns, with n - 1 in its denominator, annualised."""
    sharpe: float | None
    """Mean over standard deviation of the bars' returns, annualised by the square root of the bars in a year: Sharpe,
    The Sharpe Ratio (1994), eqs. 3 to 6, with cash at no interest as its benchmark."""
    sharpe_error: float | None
    """One standard error of `sharpe` for independent returns: Lo, The Statistics of Sharpe Ratios (2002), eq. 9."""


@dataclass(frozen=True)
class Regression:
    """A curve's returns explained by those of a benchmark, `return = alpha + beta * benchmark + error`: Jensen, The
    Performance of Mutual Funds in the Period 1945-1964 (1968), eq. 8, with cash at no interest. Ordinary least squares
    over bars; one standard error each, for independent errors of one size: Greene, Econometric Analysis, 7th edition
    (2012), eq. 4-20."""

    alpha: float
    """Return that the benchmark does not explain, annualised by the bars in a year, without compounding."""
    alpha_error: float
    beta: float
    """Return for each unit of the benchmark's."""
    beta_error: float


def bars_per_year(bars: BarArrays) -> float:
    """Bars seen over the time that they took, so that a market that closes counts its own bars."""
    return len(bars) * _YEAR_US / float(bars.close_us[-1] - bars.open_us[0])


def drawdown(equity: Floats) -> Floats:
    """The fall from the peak so far, as a share of it, of an equity curve (T,)."""
    return 1.0 - equity / np.maximum.accumulate(equity)


def performance(equity: Floats, per_year: float) -> Performance:
    """Figures of an equity curve (T,), one value a bar, of which `per_year` make a year."""
    volatility = sharpe = error = None
    if len(equity) > 2 and (equity > 0.0).all():
        returns = equity[1:] / equity[:-1] - 1.0
        deviation = float(returns.std(ddof=1))
        if deviation > 0.0:
            each = float(returns.mean()) / deviation
            volatility = deviation * math.sqrt(per_year)
            sharpe = each * math.sqrt(per_year)
            error = math.sqrt((1.0 + 0.5 * each * each) / len(returns) * per_year)
    first, last = float(equity[0]), float(equity[-1])
    return Performance(last, last / first - 1.0, float(drawdown(equity).max()), volatility, sharpe, error)


def regression(equity: Floats, benchmark: Floats, per_year: float) -> Regression | None:
    """The returns of an equity curve (T,) against a benchmark's; None where one went broke, or the benchmark rests."""
    if len(equity) < 4 or not ((equity > 0.0) & (benchmark > 0.0)).all():
        return None
    y, x = equity[1:] / equity[:-1] - 1.0, benchmark[1:] / benchmark[:-1] - 1.0
    mean, spread = x.mean(), float(((x - x.mean()) ** 2).sum())
    if spread == 0.0:
        return None
    beta = float(((x - mean) * (y - y.mean())).sum()) / spread
    alpha = float(y.mean() - beta * mean)
    variance = float(((y - alpha - beta * x) ** 2).sum()) / (len(y) - 2)
    return Regression(
        alpha=alpha * per_year,
        alpha_error=math.sqrt(variance * (1.0 / len(y) + mean * mean / spread)) * per_year,
        beta=beta,
        beta_error=math.sqrt(variance / spread),
    )
