"""Figures of a run's trading."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tradeloop.cli.report.files import Run
from tradeloop.common.arrays import Floats
from tradeloop.common.risk import DENIAL_CODES


@dataclass(frozen=True)
class Trading:
    """Figures of a run's trading. Amounts in quote currency."""

    decisions: int
    """Bars on which the policy gave targets; on the others it held."""
    orders: int
    filled: int
    """Orders that filled in whole."""
    denials: dict[str, int]
    """How many orders the risk gate denied, by code."""
    denied: int
    """Decisions of which at least one order was denied."""
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


@lru_cache(maxsize=1)
def weights(run: Run) -> Floats:
    """Position values as shares of equity at each close, (T, A)."""
    return np.array([[position.weight for position in mark.positions] for mark in run.marks])


@lru_cache(maxsize=1)
def equity(run: Run) -> Floats:
    """The equity at each close, (T,)."""
    return np.array([mark.equity for mark in run.marks])


@lru_cache(maxsize=1)
def trading(run: Run) -> Trading:
    """Figures of a run's orders and fills."""
    last = {order.order_id: order.status for order in run.orders}
    traded = sum(fill.quantity * fill.price for fill in run.fills)
    gross = np.abs(weights(run)).sum(axis=1)
    denials = [verdict for verdict in run.verdicts if verdict.code in DENIAL_CODES]
    return Trading(
        decisions=sum(not signal.hold for signal in run.signals),
        orders=len(last),
        filled=sum(status == "filled" for status in last.values()),
        denials=dict(Counter(verdict.code for verdict in denials)),
        denied=len({verdict.time for verdict in denials}),
        fills=len(run.fills),
        traded=traded,
        turnover=traded / float(np.mean(equity(run))),
        fees=sum(fill.fee for fill in run.fills),
        slippage=sum(fill.slippage for fill in run.fills),
        exposure=float(gross.mean()),
        in_market=float((gross > 0.0).mean()),
    )
