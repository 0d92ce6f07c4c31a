"""Figures of a run's trading."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tradeloop.cli.report.files import Run
from tradeloop.common.arrays import Bools, Floats
from tradeloop.common.evaluation.trades import RoundTrip, round_trips
from tradeloop.common.market import to_us
from tradeloop.common.risk import APART_CODES, DENIAL_CODES


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
    unsized: int
    """Targets of a flat book that were too small for an order: less than a lot, or than the venue's smallest order."""
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


@dataclass(frozen=True)
class Marks:
    """The book at each close, as arrays: (T,), or (T, A) for each instrument."""

    equity: Floats
    active: Bools
    """Not halted."""
    weight: Floats
    """Position values as shares of equity."""
    quantity: Floats
    priced: Bools
    """The instrument has had a price."""


@lru_cache(maxsize=1)
def marked(run: Run) -> Marks:
    """The marks of a run, read once: they are decoded in each pass."""
    length, count = len(run.bars), len(run.bars.instruments)
    equity, active = np.zeros(length), np.zeros(length, dtype=np.bool_)
    weight, quantity = np.zeros((length, count)), np.zeros((length, count))
    priced = np.zeros((length, count), dtype=np.bool_)
    for t, mark in enumerate(run.marks):
        equity[t], active[t] = mark.equity, mark.state == "active"
        for a, position in enumerate(mark.positions):
            weight[t, a], quantity[t, a], priced[t, a] = position.weight, position.quantity, position.mark_price > 0.0
    return Marks(equity, active, weight, quantity, priced)


@lru_cache(maxsize=1)
def trading(run: Run) -> Trading:
    """Figures of a run's orders and fills."""
    last = {order.order_id: order.status for order in run.orders}
    traded = sum(fill.quantity * fill.price for fill in run.fills)
    gross = np.abs(marked(run).weight).sum(axis=1)
    denials = [verdict for verdict in run.verdicts if verdict.code in DENIAL_CODES]
    return Trading(
        decisions=sum(not signal.hold for signal in run.signals),
        orders=len(last),
        filled=sum(status == "filled" for status in last.values()),
        denials=dict(Counter(verdict.code for verdict in denials)),
        denied=len({verdict.time for verdict in denials if verdict.code not in APART_CODES}),
        unsized=_unsized(run),
        fills=len(run.fills),
        traded=traded,
        turnover=traded / float(np.mean(marked(run).equity)),
        fees=sum(fill.fee for fill in run.fills),
        slippage=sum(fill.slippage for fill in run.fills),
        exposure=float(gross.mean()),
        in_market=float((gross > 0.0).mean()),
    )


def trips(run: Run) -> list[RoundTrip]:
    """The policy's round trips."""
    shape = run.bars.open.shape
    quantity, spent, fee = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for fill in run.fills:
        row = int(np.searchsorted(run.bars.open_us, to_us(fill.time), side="right")) - 1
        column = run.bars.instruments.index(fill.instrument)
        signed = fill.quantity if fill.side == "buy" else -fill.quantity
        quantity[row, column] += signed
        spent[row, column] += signed * fill.price
        fee[row, column] += fill.fee
    price = np.divide(spent, quantity, out=np.zeros(shape), where=quantity != 0.0)
    marks = marked(run)
    return round_trips(marks.quantity, quantity, price, fee, marks.equity, run.bars)


def _unsized(run: Run) -> int:
    """A flat book that may trade and wants more than the band has an order or a denial, or it was too small for one."""
    band = run.strategy.actions.band(len(run.bars.instruments))
    marks, instruments = marked(run), run.bars.instruments
    row_of = {int(time): row for row, time in enumerate(run.bars.close_us)}
    may_open = marks.active[:, None] & (marks.quantity == 0.0) & marks.priced
    answered = {(order.decision_time, order.instrument) for order in run.orders}
    answered |= {(verdict.time, verdict.instrument) for verdict in run.verdicts}
    count = 0
    for signal in run.signals:
        row = row_of.get(to_us(signal.time))
        if signal.hold or row is None:
            continue
        for a, target in enumerate(signal.targets):
            wanted = target != 0.0 and abs(target) >= band and bool(may_open[row, a])
            count += wanted and (signal.time, instruments[a]) not in answered
    return count
