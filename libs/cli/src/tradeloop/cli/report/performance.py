"""The numbers of the report."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tradeloop.cli.report.files import Run
from tradeloop.common.market import BarArrays

Floats = NDArray[np.float64]

_YEAR_US = 365.25 * 86_400e6


@dataclass(frozen=True)
class Performance:
    """What an equity curve came to. None where it is not defined: of a curve that never moved, or that went broke."""

    final: float
    total_return: float
    max_drawdown: float
    """As a share of the peak before it."""
    volatility: float | None
    """Standard deviation of the bars' returns, annualised."""
    sharpe: float | None
    """Mean over standard deviation of the bars' returns, annualised; the risk-free rate is zero."""
    sharpe_error: float | None
    """One standard error of `sharpe` for independent returns: Lo, The Statistics of Sharpe Ratios (2002), eq. 9."""


@dataclass(frozen=True)
class Trading:
    """What a run's trading came to. Amounts in quote currency."""

    decisions: int
    """Bars on which the policy gave targets; on the others it held."""
    orders: int
    filled: int
    """Orders that filled in whole."""
    fills: int
    traded: float
    turnover: float
    """Traded value over average equity."""
    fees: float
    slippage: float
    exposure: float
    """Average gross position value as a share of equity."""
    in_market: float
    """Share of bars with a position."""


def bars_per_year(bars: BarArrays) -> float:
    """Bars seen over the time they took, so that a market that closes counts its own bars."""
    return len(bars) * _YEAR_US / float(bars.close_us[-1] - bars.open_us[0])


def drawdown(equity: Floats) -> Floats:
    """Fall from the peak so far, as a share of it."""
    return 1.0 - equity / np.maximum.accumulate(equity)


def performance(equity: Floats, per_year: float) -> Performance:
    """Figures of an equity curve (T,), one value a bar."""
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


def weights(run: Run) -> Floats:
    """Position values as shares of equity at each close, (T, A)."""
    return np.array([[position.weight for position in mark.positions] for mark in run.marks])


def trading(run: Run) -> Trading:
    """Figures of a run's orders and fills."""
    last = {order.order_id: order.status for order in run.orders}
    traded = sum(fill.quantity * fill.price for fill in run.fills)
    gross = np.abs(weights(run)).sum(axis=1)
    return Trading(
        decisions=sum(not signal.hold for signal in run.signals),
        orders=len(last),
        filled=sum(status == "filled" for status in last.values()),
        fills=len(run.fills),
        traded=traded,
        turnover=traded / float(np.mean([mark.equity for mark in run.marks])),
        fees=sum(fill.fee for fill in run.fills),
        slippage=sum(fill.slippage for fill in run.fills),
        exposure=float(gross.mean()),
        in_market=float((gross > 0.0).mean()),
    )
