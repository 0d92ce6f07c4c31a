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
from tradeloop.execution.domain.inputs import VenueFill
from tradeloop.execution.record import BookRecord


class LedgerUnavailable(Unavailable):
    """The ledger cannot be reached. Nothing was written; trying again is safe."""


class LedgerConflict(Unavailable):
    """Another process has gone on with some books. Nothing was written; load these books and look again."""

    def __init__(self, *portfolios: str) -> None:
        super().__init__(f"portfolio {', '.join(portfolios)}: another process has gone on with its book")
        self.portfolios = portfolios
        """The portfolios whose books do not stand where they were said to."""


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
        """Let these orders work, and no others: whatever else works of this portfolio is cancelled.

        Their `order_id` is the client order id: sending one again changes nothing.
        """
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


@dataclass(frozen=True, slots=True)
class Change:
    """The change of one book from a record to the next, and the effects of the inputs that led to it."""

    portfolio: str
    before: BookRecord
    after: BookRecord
    """Its `revision` is one above that of `before`."""
    effects: Mapping[str, Effects]
    """Effects by the ids of the inputs, in the order in which these were handled."""


def check_revision(change: Change) -> None:
    """Raises `AssertionError` for a change that is not to the next record."""
    if change.after.revision != change.before.revision + 1:
        raise AssertionError(f"portfolio {change.portfolio}: a record must be one above the one that it follows")


class Ledger(Protocol):
    """Books, orders and fills, the outputs that may have to be published again, and how far all that goes.

    Each call may raise `LedgerUnavailable`. Every adapter passes `contracts.check_ledger`.
    """

    def load(self, portfolios: Sequence[str]) -> Mapping[str, BookRecord]:
        """The books as they were recorded last, in one round trip; a new one where there is none. Stores nothing."""
        ...

    def portfolios(self) -> Sequence[str]:
        """The names of all books, whether or not there is a portfolio of that name any more."""
        ...

    def record(self, changes: Sequence[Change], acknowledged: Sequence[tuple[str, str]] = ()) -> None:
        """Store what inputs did to books, one change each, durably, all in one transaction.

        `acknowledged` is what `acknowledge` would be given, done in the same transaction.

        Raises `LedgerConflict` when a book does not stand at the change's `before`: two processes that both believe
        to own it cannot both write. Then nothing is written, of any of the books.
        """
        ...

    def unsent(self, portfolios: Sequence[str]) -> Mapping[str, Sequence[tuple[str, Sequence[Message]]]]:
        """The inputs of each portfolio whose outputs may not have left, with these, in the order of their records.

        A portfolio without any is left out.
        """
        ...

    def acknowledge(self, inputs: Sequence[tuple[str, str]], offsets: Mapping[Partition, int]) -> None:
        """The outputs of these inputs, (portfolio, input id) each, have left for certain and need not be kept.

        All messages before `offsets` have their effects in the ledger. Offsets never go back.
        """
        ...

    def offsets(self) -> Mapping[Partition, int]:
        """The highest offsets that were given to `acknowledge`."""
        ...

    def check(self) -> None:
        """Raise `LedgerUnavailable` unless a record could be written now."""
        ...

    def close(self) -> None:
        """Release connections."""
        ...
