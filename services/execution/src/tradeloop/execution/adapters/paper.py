"""`PaperVenue`: fills orders by the platform's own simulator, at the next bar's open."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tradeloop.common.messages import OrderUpdated
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.simulation import Market, Simulator
from tradeloop.execution.domain.inputs import VenueFill


class PaperVenue:
    """A venue that is always there, with the costs that the portfolio is configured with."""

    outside = False

    def __init__(self, portfolio: Portfolio) -> None:
        instruments = portfolio.universe.instruments
        self._index = {instrument.id: a for a, instrument in enumerate(instruments)}
        self._simulator = Simulator(
            1,
            instruments,
            capital=portfolio.capital,
            costs=portfolio.costs,
            limits=portfolio.limits,
            no_trade_band=0.0,
        )
        self._orders: dict[int, OrderUpdated] = {}
        self._rows = np.zeros(1, dtype=np.int64)

    def submit(self, orders: Sequence[OrderUpdated]) -> None:
        """Replace what is pending: orders of an earlier bar are gone by the time of the next decision."""
        self._orders = {self._index[order.instrument]: order for order in orders}

    def fills(self, bar: Market) -> Sequence[VenueFill]:
        if not self._orders:
            return ()
        books = self._simulator.books
        books.pending[:] = 0.0
        for a, order in self._orders.items():
            books.pending[0, a] = order.quantity if order.side == "buy" else -order.quantity
        self._simulator.fill(bar, self._rows)
        orders, self._orders = self._orders, {}
        return [
            VenueFill(
                order_id=order.order_id,
                trade=1,
                instrument=a,
                quantity=float(books.fill_quantity[0, a]),
                price=float(books.fill_price[0, a]),
                fee=float(books.fill_fee[0, a]),
                slippage=float(books.fill_slippage[0, a]),
            )
            for a, order in orders.items()
            if books.fill_quantity[0, a] != 0.0
        ]
