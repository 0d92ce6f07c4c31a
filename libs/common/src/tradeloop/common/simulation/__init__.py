"""The simulator: sizing, risk gate, fills, costs and accounting of N books x A instruments.

One set of kernels serves the training environments (N many), the backtest and the paper venue (N = 1), so
that the same decisions on the same bars give the same orders and the same equity to the last bit.

A bar's life, for one book:

    decide   at the close of bar t: target weights -> quantities, rounded, through the risk gate -> pending orders
    fill     on bar t + 1: pending orders fill at its open, the book is marked at its close

Orders are market orders that live for one bar: what the bar cannot fill is cancelled, since the next decision
sizes anew. A book whose drawdown or margin breaks its limit is halted: its positions are closed at the next
open, and nothing is opened any more.
"""

from __future__ import annotations

from tradeloop.common.simulation.simulator import (
    Books,
    EpisodeCursors,
    KernelParameters,
    Market,
    Simulator,
    TrainingBars,
    market_of,
    observe,
)

__all__ = [
    "Books",
    "EpisodeCursors",
    "KernelParameters",
    "Market",
    "Simulator",
    "TrainingBars",
    "market_of",
    "observe",
]
