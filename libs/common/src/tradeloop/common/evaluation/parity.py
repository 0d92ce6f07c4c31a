"""Parity: what a portfolio did live, bar by bar, against the vectorised backtest of the same model and bars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tradeloop.common.evaluation.backtest import BacktestResult
from tradeloop.common.market import BarArrays, from_us, to_us
from tradeloop.common.messages import OrderFilled, PortfolioMarked

TOLERANCE = 1e-9
"""Largest relative difference of equity that counts as none."""


class ParityBroken(Exception):
    """Two runs that must do the same did not: a defect of the platform, and never of its user's."""


def difference_from_backtest(
    marks: Sequence[PortfolioMarked], fills: Sequence[OrderFilled], bars: BarArrays, expected: BacktestResult
) -> float:
    """The largest relative difference of equity between live and backtest.

    Raises `ParityBroken` where it exceeds `TOLERANCE`, or where the fills differ; the message names the first bar.
    """
    quantity = np.zeros_like(expected.fill_quantity)
    for fill in fills:
        row = int(np.searchsorted(bars.open_us, to_us(fill.time)))
        column = bars.instruments.index(fill.instrument)
        quantity[row, column] += fill.quantity if fill.side == "buy" else -fill.quantity
    live = np.array([mark.equity for mark in marks])
    difference = np.abs(live - expected.equity) / np.abs(expected.equity)
    wrong = (difference > TOLERANCE) | (quantity != expected.fill_quantity).any(axis=1)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise ParityBroken(
            f"parity is broken: {int(wrong.sum())} of {len(wrong)} bars differ, the first closes at "
            f"{from_us(bars.close_us[first]).isoformat()}: live equity {live[first]!r} and fills "
            f"{quantity[first].tolist()}, backtest {expected.equity[first]!r} and "
            f"{expected.fill_quantity[first].tolist()}"
        )
    return float(difference.max())
