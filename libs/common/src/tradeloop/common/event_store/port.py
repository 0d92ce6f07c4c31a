"""The port to stored trades, order books and news. Adapters: `sql.SqlEventStore` (PostgreSQL, SQLite) and
`memory.MemoryEventStore`.

All pass `tradeloop.common.testing.check_event_store`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tradeloop.common.errors import Unavailable
from tradeloop.common.messages import MarketBook, MarketNewsItem, MarketTrade

MarketItem = MarketTrade | MarketBook | MarketNewsItem


class EventStoreUnavailable(Unavailable):
    """The store cannot be reached. Trying again is safe: writing an event twice changes nothing."""


class EventCounts(NamedTuple):
    """How many events of each kind; a piece of news counts once for each instrument that it names."""

    trades: int = 0
    books: int = 0
    news: int = 0


class EventStore(Protocol):
    """The events of markets between bars, by instrument and time. Times are microseconds since the epoch.

    A trade is known by its instrument, time and id, a piece of news by its source, time and id, a state of an order
    book by its instrument, time and levels: what comes again is stored once.
    """

    def write(self, items: Sequence[MarketItem]) -> None:
        """Store events, all or none. Raises `EventStoreUnavailable`."""
        ...

    def trades(self, instrument: str, start_us: int, end_us: int) -> Sequence[MarketTrade]:
        """The trades with `start_us <= time < end_us`, in the order of time. Raises `EventStoreUnavailable`."""
        ...

    def books(self, instrument: str, start_us: int, end_us: int) -> Sequence[MarketBook]:
        """The states of the order book, as `trades`; those of one time in no order."""
        ...

    def news(self, instrument: str, start_us: int, end_us: int) -> Sequence[MarketNewsItem]:
        """The news that name an instrument, as `trades`; each names this instrument alone."""
        ...

    def prune(self, before_us: int) -> EventCounts:
        """Delete all that happened before a time, for good; gives how many. Raises `EventStoreUnavailable`.

        Interrupted, a part of it is deleted: doing it again deletes the rest.
        """
        ...

    def check(self) -> None:
        """Find out whether its tables are there. Raises `EventStoreUnavailable`."""
        ...

    def close(self) -> None:
        """Release connections."""
        ...
