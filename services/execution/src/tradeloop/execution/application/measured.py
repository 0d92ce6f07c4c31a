"""The numbers of a portfolio's trading: a projection of its book, and counts of what was recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np

from tradeloop.common.messages import OrderFilled, OrderUpdated, RiskVerdict, Transition
from tradeloop.common.messages.execution import OrderStatus
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.risk import EXPLANATIONS, wire_code
from tradeloop.common.runtime.counters import Durations
from tradeloop.common.runtime.metrics import MOST_INSTRUMENTS, Figure, counted
from tradeloop.execution.domain.book import Book
from tradeloop.execution.domain.inputs import Outcome
from tradeloop.execution.ports import Effects


@dataclass(slots=True)
class Latencies:
    """How long it takes from the close of a live bar until its decision, and its orders, are recorded."""

    decision: Durations = field(default_factory=Durations)
    order: Durations = field(default_factory=Durations)


class Measured:
    """The numbers of one portfolio since this process began with it. They outlive its partitions: none goes back."""

    def __init__(self, portfolio: Portfolio, latencies: Latencies) -> None:
        """`latencies` are those of its universe."""
        self._labels = portfolio.universe.name, portfolio.name
        self._instruments = portfolio.universe.ids
        self._latencies = latencies
        # With zeros: what appears with its first event has no increase that Prometheus could see.
        self._decisions: Counter[str] = Counter(dict.fromkeys(get_args(Outcome), 0))
        self._orders: Counter[str] = Counter(dict.fromkeys(get_args(OrderStatus), 0))
        self._denials: Counter[str] = Counter(dict.fromkeys(map(wire_code, EXPLANATIONS), 0))
        self._transitions, self._traded, self._fees = 0, 0.0, 0.0
        self._reward: float | None = None
        self._shown: tuple[int, tuple[Figure, ...]] = (-1, ())
        """The figures of the book, and the record that they are of."""

    def count(self, effects: Collection[Effects], outcomes: Sequence[Outcome]) -> None:
        """Count what was recorded."""
        self._decisions.update(outcomes)
        for each in effects:
            for message in each.outputs:
                if isinstance(message, OrderUpdated):
                    self._orders[message.status] += 1
                elif isinstance(message, OrderFilled):
                    self._traded += message.quantity * message.price
                    self._fees += message.fee
                elif isinstance(message, RiskVerdict):
                    self._denials[message.code] += 1
                elif isinstance(message, Transition):
                    self._transitions += 1
                    self._reward = message.reward

    def took(self, seconds: float, ordered: bool) -> None:
        """Count how long the decision on a live bar took."""
        self._latencies.decision.took(seconds)
        if ordered:
            self._latencies.order.took(seconds)

    def counts(self) -> Iterator[Figure]:
        """The counts, and the last reward."""
        labels = self._labels
        for family, counts in (("decisions", self._decisions), ("orders", self._orders), ("denials", self._denials)):
            yield from counted(f"tradeloop_{family}_total", {(name,): count for name, count in counts.items()}, *labels)
        yield Figure("tradeloop_transitions_total", self._transitions, labels)
        yield Figure("tradeloop_traded_quote_total", self._traded, labels)
        yield Figure("tradeloop_fees_quote_total", self._fees, labels)
        if self._reward is not None:
            yield Figure("tradeloop_portfolio_reward", self._reward, labels)

    def of_book(self, book: Book, revision: int) -> tuple[Figure, ...]:
        """The figures of its book, as it was recorded; none of one that was never marked."""
        if self._shown[0] != revision:
            self._shown = revision, tuple(self._look(book)) if book.marked_us >= 0 else ()
        return self._shown[1]

    def _look(self, book: Book) -> Iterator[Figure]:
        labels, books = self._labels, book.books
        weights, held = books.account[0, : len(self._instruments)], books.position[0]
        for name, value in (
            ("equity_quote", books.equity[0]),
            ("peak_equity_quote", books.peak[0]),
            ("cash_quote", books.cash[0]),
            ("drawdown_ratio", books.drawdown[0]),
            ("halted", books.halt[0] != 0),
            ("gross_exposure_ratio", np.abs(weights).sum()),
            ("net_exposure_ratio", weights.sum()),
            ("positions", np.count_nonzero(held)),
            ("working_orders", len(book.working)),
        ):
            yield Figure(f"tradeloop_portfolio_{name}", float(value), labels)
        if len(self._instruments) <= MOST_INSTRUMENTS:
            for a, instrument in enumerate(self._instruments):
                yield Figure("tradeloop_position_quantity", float(held[a]), (*labels, instrument))
                yield Figure("tradeloop_position_weight_ratio", float(weights[a]), (*labels, instrument))
