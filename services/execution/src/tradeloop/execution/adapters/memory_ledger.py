"""`MemoryLedger`: forgets with its process. For tests, and as the yardstick of the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tradeloop.common.bus.port import Partition
from tradeloop.common.messages import Message, OrderFilled, OrderUpdated
from tradeloop.execution.domain import BookRecord
from tradeloop.execution.ports import Effects, LedgerConflict


class MemoryLedger:
    """A ledger in dictionaries. `orders` and `fills` are by their ids."""

    def __init__(self) -> None:
        self.orders: dict[str, OrderUpdated] = {}
        self.fills: dict[str, OrderFilled] = {}
        self._books: dict[str, BookRecord] = {}
        self._outputs: dict[tuple[str, str], Sequence[Message]] = {}
        self._offsets: dict[Partition, int] = {}

    def load(self, portfolio: str) -> BookRecord:
        return self._books.get(portfolio, BookRecord())

    def record(self, portfolio: str, before: BookRecord, after: BookRecord, effects: Mapping[str, Effects]) -> None:
        if not self.load(portfolio).stands_at(before):
            raise LedgerConflict(f"portfolio {portfolio}: another process has gone on with its book")
        self._books[portfolio] = after
        for input_id, each in effects.items():
            self.orders.update((order.order_id, order) for order in each.orders)
            self.fills.update((fill.fill_id, fill) for fill in each.fills)
            self._outputs[portfolio, input_id] = tuple(each.outputs)

    def outputs(self, portfolio: str, input_id: str) -> Sequence[Message]:
        return self._outputs.get((portfolio, input_id), ())

    def acknowledge(self, inputs: Sequence[tuple[str, str]], offsets: Mapping[Partition, int]) -> None:
        for one in inputs:
            self._outputs.pop(one, None)
        for partition, offset in offsets.items():
            self._offsets[partition] = max(offset, self._offsets.get(partition, 0))

    def offsets(self) -> Mapping[Partition, int]:
        return dict(self._offsets)

    def close(self) -> None:
        """Nothing is held open."""
