"""The ports of execution: a venue to send orders to, and a ledger that remembers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tradeloop.common.bus.port import Partition
from tradeloop.common.errors import Unavailable
from tradeloop.common.market import Universe
from tradeloop.common.messages import BarFrame, Message, OrderFilled, OrderUpdated, PortfolioEvent
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.held import ReadOn
from tradeloop.common.simulation import Market
from tradeloop.execution.domain import BookRecord, VenueFill


class LedgerUnavailable(Unavailable):
    """The ledger cannot be reached. Nothing was written; trying again is safe."""


class LedgerConflict(Unavailable):
    """Another process has gone on with this book. Nothing was written; load the book and look again."""


class History(Protocol):
    """The messages on the bus that execution reads outside its group. Each call may raise `Unavailable`."""

    def events(self, portfolios: Sequence[Portfolio]) -> Mapping[str, Sequence[PortfolioEvent]]:
        """The events that are on record for portfolios, by their names, in the order in which they were recorded."""
        ...

    def frames(self, universe: Universe) -> ReadOn[BarFrame]:
        """Reads base frames of a universe from a position on."""
        ...


class Venue(Protocol):
    """Where the orders of one portfolio go."""

    @property
    def outside(self) -> bool:
        """Whether orders leave this process: they are then recorded before they are submitted."""
        ...

    def submit(self, orders: Sequence[OrderUpdated]) -> None:
        """Send orders. Their `order_id` is the client order id: sending one again changes nothing."""
        ...

    def fills(self, bar: Market) -> Sequence[VenueFill]:
        """The fills on a bar, (1, A), at its open. Orders that did not fill are cancelled: they live for one bar."""
        ...


@dataclass(frozen=True, slots=True)
class Effects:
    """The effects of one input, beside the new state of the book."""

    orders: Sequence[OrderUpdated] = ()
    """Orders that are new, or whose state changed."""
    fills: Sequence[OrderFilled] = ()
    outputs: Sequence[Message] = ()
    """Everything that is published because of the input, in order."""


class Ledger(Protocol):
    """Books, orders and fills, the outputs that may have to be published again, and how far all that goes.

    Each call may raise `LedgerUnavailable`. Every adapter passes `contracts.check_ledger`.
    """

    def load(self, portfolio: str) -> BookRecord:
        """The book as it was recorded last; a new one when there is none."""
        ...

    def record(self, portfolio: str, before: BookRecord, after: BookRecord, effects: Mapping[str, Effects]) -> None:
        """Store what inputs did to a book that stands at `before`, durably, in one transaction.

        `effects` are by the ids of the inputs, in the order in which these were handled; `after` is the book then.

        Raises `LedgerConflict` when the book does not stand there: two processes that both believe to own it
        cannot both write.
        """
        ...

    def outputs(self, portfolio: str, input_id: str) -> Sequence[Message]:
        """The messages that an input published; none when it is unknown, or was published for certain."""
        ...

    def acknowledge(self, inputs: Sequence[tuple[str, str]], offsets: Mapping[Partition, int]) -> None:
        """The outputs of these inputs, (portfolio, input id) each, have left for certain and need not be kept.

        All messages before `offsets` have their effects in the ledger. Offsets never go back.
        """
        ...

    def offsets(self) -> Mapping[Partition, int]:
        """The highest offsets that were given to `acknowledge`."""
        ...

    def close(self) -> None:
        """Release connections."""
        ...
