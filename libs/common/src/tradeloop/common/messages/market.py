"""Messages of what happens in a market between bars: trades, order books and news, as they came, in batches."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from hashlib import blake2b
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from tradeloop.common.messages.base import UniverseMessage

MOST_TRADES, MOST_BOOKS, MOST_NEWS = 500, 100, 50
"""How many a message holds at most."""
MOST_LEVELS = 20
LONGEST_HEADLINE = 500


class _Item(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class MarketTrade(_Item):
    """A trade of others."""

    instrument: str
    id: str
    """The venue's own; unique for the instrument."""
    time: AwareDatetime
    """The venue's clock."""
    price: float = Field(gt=0)
    size: float = Field(ge=0)
    side: Literal["buy", "sell"] | None = None
    """The side of whoever took liquidity; None where the venue does not say."""


class MarketBook(_Item):
    """The best levels of an order book: price and size of each, the best first."""

    instrument: str
    time: AwareDatetime
    """The venue's clock."""
    bids: tuple[tuple[float, float], ...] = Field(max_length=MOST_LEVELS)
    asks: tuple[tuple[float, float], ...] = Field(max_length=MOST_LEVELS)


class MarketNewsItem(_Item):
    """A piece of news."""

    instruments: tuple[str, ...]
    """The instruments of the universe that it names."""
    id: str
    time: AwareDatetime
    """The source's clock."""
    headline: str = Field(max_length=LONGEST_HEADLINE)
    source: str
    sentiment: float | None = Field(default=None, ge=-1, le=1)


class MarketTrades(UniverseMessage):
    """Trades of others, in the order in which they came."""

    trades: tuple[MarketTrade, ...] = Field(min_length=1, max_length=MOST_TRADES)

    @property
    def occurred(self) -> datetime:
        return self.trades[-1].time

    @property
    def identity(self) -> str:
        return _identity(self.universe, (f"{one.instrument}|{one.id}" for one in self.trades))


class MarketBooks(UniverseMessage):
    """States of order books, in the order in which they came."""

    books: tuple[MarketBook, ...] = Field(min_length=1, max_length=MOST_BOOKS)

    @property
    def occurred(self) -> datetime:
        return self.books[-1].time

    @property
    def identity(self) -> str:
        return _identity(self.universe, (one.model_dump_json() for one in self.books))


class MarketNews(UniverseMessage):
    """News, in the order in which they came."""

    news: tuple[MarketNewsItem, ...] = Field(min_length=1, max_length=MOST_NEWS)

    @property
    def occurred(self) -> datetime:
        return self.news[-1].time

    @property
    def identity(self) -> str:
        return _identity(self.universe, (f"{one.source}|{one.id}" for one in self.news))


def _identity(universe: str, parts: Iterable[str]) -> str:
    return f"{universe}|{blake2b(chr(10).join(parts).encode(), digest_size=16).hexdigest()}"
