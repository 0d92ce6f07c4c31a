"""`MemoryLedger`: forgets with its process. For tests, and as the yardstick of the contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tradeloop.common.bus.port import Partition
from tradeloop.common.messages import Message, OrderFilled, OrderUpdated
from tradeloop.execution.adapters.logs import is_same_log, nameless, offsets_that_count
from tradeloop.execution.ports import Change, LedgerConflict, check_revision
from tradeloop.execution.record import BookRecord


class MemoryLedger:
    """A ledger in dictionaries. `orders` and `fills` are by their ids.

    `identity` says which log a topic is, as `Bus.identity` does.
    """

    def __init__(self, identity: Callable[[str], str] = nameless) -> None:
        self.identity = identity
        self.orders: dict[str, OrderUpdated] = {}
        self.fills: dict[str, OrderFilled] = {}
        self._books: dict[str, BookRecord] = {}
        self._outputs: dict[tuple[str, str], Sequence[Message]] = {}
        self._offsets: dict[Partition, tuple[str, int]] = {}
        """How far each partition was read, and the log that this is about."""

    def load(self, portfolios: Sequence[str]) -> Mapping[str, BookRecord]:
        return {portfolio: self._books.get(portfolio, BookRecord()) for portfolio in portfolios}

    def portfolios(self) -> Sequence[str]:
        return sorted(self._books)

    def record(self, changes: Sequence[Change], acknowledged: Sequence[tuple[str, str]] = ()) -> None:
        for change in changes:
            check_revision(change)
        found = self.load([change.portfolio for change in changes])
        if moved := [change.portfolio for change in changes if not found[change.portfolio].stands_at(change.before)]:
            raise LedgerConflict(*moved)
        for change in changes:
            self._books[change.portfolio] = change.after
            for input_id, each in change.effects.items():
                self.orders.update((order.order_id, order) for order in each.orders)
                self.fills.update((fill.fill_id, fill) for fill in each.fills)
                if each.outputs:
                    self._outputs[change.portfolio, input_id] = tuple(each.outputs)
        self.acknowledge(acknowledged, {})

    def unsent(self, portfolios: Sequence[str]) -> Mapping[str, Sequence[tuple[str, Sequence[Message]]]]:
        found: dict[str, list[tuple[str, Sequence[Message]]]] = {}
        for (portfolio, input_id), outputs in self._outputs.items():
            if portfolio in portfolios:
                found.setdefault(portfolio, []).append((input_id, outputs))
        return found

    def acknowledge(self, inputs: Sequence[tuple[str, str]], offsets: Mapping[Partition, int]) -> None:
        for one in inputs:
            self._outputs.pop(one, None)
        for partition, offset in offsets.items():
            log = self.identity(partition.topic)
            stored, before = self._offsets.get(partition, ("", 0))
            self._offsets[partition] = log or stored, max(offset, before) if is_same_log(stored, log) else offset

    def offsets(self) -> Mapping[Partition, int]:
        found = ((partition, log, offset) for partition, (log, offset) in self._offsets.items())
        return offsets_that_count(found, self.identity)

    def check(self) -> None:
        """It is always there."""

    def close(self) -> None:
        """Nothing is held open."""
