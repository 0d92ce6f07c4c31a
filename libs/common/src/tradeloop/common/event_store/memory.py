"""`MemoryEventStore`: trades, order books and news in this process, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from tradeloop.common.event_store.port import EventCounts, MarketItem
from tradeloop.common.market import to_us
from tradeloop.common.messages import MarketBook, MarketNewsItem, MarketTrade

Item = TypeVar("Item", MarketTrade, MarketBook, MarketNewsItem)


class MemoryEventStore:
    """Events in dictionaries."""

    def __init__(self) -> None:
        self._trades: dict[tuple[str, int, str], MarketTrade] = {}
        self._books: dict[tuple[str, int, str], MarketBook] = {}
        self._news: dict[tuple[str, int, str], MarketNewsItem] = {}

    def write(self, items: Sequence[MarketItem]) -> None:
        for item in items:
            time_us = to_us(item.time)
            if isinstance(item, MarketTrade):
                self._trades.setdefault((item.instrument, time_us, item.id), item)
            elif isinstance(item, MarketBook):
                self._books.setdefault((item.instrument, time_us, item.model_dump_json()), item)
            else:
                for instrument in item.instruments:
                    one = item.model_copy(update={"instruments": (instrument,)})
                    self._news.setdefault((instrument, time_us, f"{item.source}|{item.id}"), one)

    def trades(self, instrument: str, start_us: int, end_us: int) -> Sequence[MarketTrade]:
        return _found(self._trades, instrument, start_us, end_us)

    def books(self, instrument: str, start_us: int, end_us: int) -> Sequence[MarketBook]:
        return _found(self._books, instrument, start_us, end_us)

    def news(self, instrument: str, start_us: int, end_us: int) -> Sequence[MarketNewsItem]:
        return _found(self._news, instrument, start_us, end_us)

    def prune(self, before_us: int) -> EventCounts:
        return EventCounts(
            _pruned(self._trades, before_us), _pruned(self._books, before_us), _pruned(self._news, before_us)
        )

    def check(self) -> None:
        """It is always there."""

    def close(self) -> None:
        """Nothing is held open; whoever opens the same object again finds all."""


def _pruned(stored: dict[tuple[str, int, str], Item], before_us: int) -> int:
    old = [key for key in stored if key[1] < before_us]
    for key in old:
        del stored[key]
    return len(old)


def _found(stored: dict[tuple[str, int, str], Item], instrument: str, start_us: int, end_us: int) -> list[Item]:
    keys = sorted(key for key in stored if key[0] == instrument and start_us <= key[1] < end_us)
    return [stored[key] for key in keys]
