"""`MemoryLedger`: forgets with its process. For tests, and as the yardstick of the contract."""

from __future__ import annotations

from collections.abc import Sequence

from tradeloop.common.messages import Message, OrderFilled, OrderUpdated
from tradeloop.execution.domain import BookRecord
from tradeloop.execution.ports import Effects


class MemoryLedger:
    """A ledger in dictionaries. `orders` and `fills` are by their ids."""

    def __init__(self) -> None:
        self.orders: dict[str, OrderUpdated] = {}
        self.fills: dict[str, OrderFilled] = {}
        self._books: dict[str, BookRecord] = {}
        self._outputs: dict[tuple[str, str], Sequence[Message]] = {}

    def load(self, portfolio: str) -> BookRecord:
        return self._books.get(portfolio, BookRecord())

    def record(self, portfolio: str, input_id: str, effects: Effects) -> None:
        self._books[portfolio] = effects.record
        self.orders.update((order.order_id, order) for order in effects.orders)
        self.fills.update((fill.fill_id, fill) for fill in effects.fills)
        self._outputs[portfolio, input_id] = tuple(effects.outputs)

    def outputs(self, portfolio: str, input_id: str) -> Sequence[Message]:
        return self._outputs.get((portfolio, input_id), ())

    def published(self, inputs: Sequence[tuple[str, str]]) -> None:
        for one in inputs:
            self._outputs.pop(one, None)

    def close(self) -> None:
        """Nothing is held open."""
