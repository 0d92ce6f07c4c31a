"""Trades, order books and news of a universe as they come: into columns of its bars, and onto their topics."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from tradeloop.common.market import GRACE, Universe, from_us
from tradeloop.common.market.flow import Quoted, Traded, book_columns, news_columns, trade_columns
from tradeloop.common.messages import MarketBook, MarketBooks, MarketNews, MarketNewsItem, MarketTrade, MarketTrades
from tradeloop.common.messages.market import LONGEST_HEADLINE, MOST_BOOKS, MOST_LEVELS, MOST_NEWS, MOST_TRADES
from tradeloop.ingest.ports import (
    Channel,
    Connected,
    Disconnected,
    MarketEvent,
    StreamedBook,
    StreamedNews,
    StreamedTrade,
)

_MOST_HELD = 200_000
"""Events of an instrument that wait for the close of their bar; what comes beyond is dropped."""
_MOST_UNSENT = 50_000
"""Events of a universe that wait to be published."""
_SKEW_US = 2_000_000
"""How far the venue's clock may be from this machine's, which says when the connection was lost."""
_AHEAD_US = round(GRACE.total_seconds() * 1e6)


class Flow:
    """The events that one stream brings of a universe, between its bars.

    Whatever is left out is counted in `dropped`, by name.
    """

    def __init__(self, universe: Universe, channels: Collection[Channel]) -> None:
        """`channels` are those that the stream brings."""
        self._universe, self._channels = universe, frozenset(channels)
        self._held = {instrument: _Held() for instrument in universe.ids}
        self._lost: list[tuple[int, int]] = []
        """Spans of time in which the connection was away, the newest last."""
        self._away_since_us: int | None = -(2**63)
        self._unsent: tuple[list[MarketTrade], list[MarketBook], list[MarketNewsItem]] = [], [], []
        self.dropped: Counter[str] = Counter()
        """`late_trades`, `ahead_books`, `repeated_trades`, `crossed_books`, `unsent_news`, `incomplete_bars`, ..."""

    def take(self, event: MarketEvent) -> None:
        """Take what the stream brought; other events than those of the flow and its connection are none of it."""
        if isinstance(event, StreamedTrade):
            self._take_trade(event)
        elif isinstance(event, StreamedBook):
            self._take_book(event)
        elif isinstance(event, StreamedNews):
            self._take_news(event)
        elif isinstance(event, Connected):
            if self._away_since_us is not None:
                self._lost = [*self._lost[-999:], (self._away_since_us, event.time_us + _SKEW_US)]
                self._away_since_us = None
        elif isinstance(event, Disconnected) and self._away_since_us is None:
            self._away_since_us = event.time_us - _SKEW_US

    def columns(self, instrument: str, open_us: int, close_us: int) -> Mapping[str, float]:
        """The columns of a bar that closes now; what comes for it later is late.

        Nothing for a bar during which the connection was away: sums of a part would look like sums of the whole.
        """
        held = self._held[instrument]
        trades, books, news = held.until(close_us)
        trades = [one for one in trades if one.time_us >= open_us]
        early = [one for one in books if one.time_us < open_us]
        books = [one for one in books if one.time_us >= open_us]
        before = early[-1] if early else held.before
        if before is not None and self._was_away(before.time_us, open_us):
            before = None  # no state of a book leads over to the next connection
        held.before = books[-1] if books else before
        if self._was_away(open_us, close_us):
            self.dropped["incomplete_bars"] += 1
            return {}
        columns: dict[str, float] = {}
        if "trades" in self._channels:
            columns |= trade_columns(trades, open_us, close_us)
        if "books" in self._channels:
            columns |= book_columns(books, before, open_us, close_us)
        if "news" in self._channels:
            columns |= news_columns([sentiment for time_us, sentiment in news if time_us >= open_us])
        return columns

    def messages(self) -> Iterator[MarketTrades | MarketBooks | MarketNews]:
        """The events since the last call, in messages of bounded size."""
        trades, books, news = self._unsent
        self._unsent = [], [], []
        name = self._universe.name
        for at in range(0, len(trades), MOST_TRADES):
            yield MarketTrades(universe=name, trades=tuple(trades[at : at + MOST_TRADES]))
        for at in range(0, len(books), MOST_BOOKS):
            yield MarketBooks(universe=name, books=tuple(books[at : at + MOST_BOOKS]))
        for at in range(0, len(news), MOST_NEWS):
            yield MarketNews(universe=name, news=tuple(news[at : at + MOST_NEWS]))

    def _was_away(self, open_us: int, close_us: int) -> bool:
        if self._away_since_us is not None and self._away_since_us < close_us:
            return True
        return any(since < close_us and until > open_us for since, until in self._lost)

    def _take_trade(self, event: StreamedTrade) -> None:
        held = self._counted("trades", event.instrument, event.time_us, event.received_us)
        if held is None:
            return
        if not (event.price > 0.0 and event.size >= 0.0):
            self.dropped["unsound_trades"] += 1
        elif event.id in held.ids:
            self.dropped["repeated_trades"] += 1
        elif self._has_room("trades", len(held.trades)):
            held.ids[event.id] = event.time_us
            trade = Traded(event.time_us, event.price, event.size, event.side)
            bisect.insort(held.trades, trade, key=lambda one: one.time_us)
            self._publish(
                MarketTrade(
                    instrument=event.instrument,
                    id=event.id,
                    time=from_us(event.time_us),
                    price=event.price,
                    size=event.size,
                    side=event.side,
                )
            )

    def _take_book(self, event: StreamedBook) -> None:
        held = self._counted("books", event.instrument, event.time_us, event.received_us)
        if held is None:
            return
        if not event.bids or not event.asks:
            self.dropped["one_sided_books"] += 1
            return
        (bid, bid_size), (ask, ask_size) = event.bids[0], event.asks[0]
        if not (0.0 < bid < ask and bid_size > 0.0 and ask_size > 0.0):
            self.dropped["crossed_books"] += 1
        elif self._has_room("books", len(held.books)):
            book = Quoted(event.time_us, bid, bid_size, ask, ask_size)
            bisect.insort(held.books, book, key=lambda one: one.time_us)
            bids, asks = event.bids[:MOST_LEVELS], event.asks[:MOST_LEVELS]
            self._publish(MarketBook(instrument=event.instrument, time=from_us(event.time_us), bids=bids, asks=asks))

    def _take_news(self, event: StreamedNews) -> None:
        named = tuple(one for one in event.instruments if one in self._held)
        if not named:
            self.dropped["other_news"] += 1
            return
        if event.sentiment is not None and not -1.0 <= event.sentiment <= 1.0:
            self.dropped["unsound_news"] += 1
            return
        taken = False
        for instrument in named:
            held = self._counted("news", instrument, event.time_us, event.received_us)
            if held is not None and f"{event.source}|{event.id}" in held.ids:
                self.dropped["repeated_news"] += 1
            elif held is not None and self._has_room("news", len(held.news)):
                held.ids[f"{event.source}|{event.id}"] = event.time_us
                bisect.insort(held.news, (event.time_us, event.sentiment), key=lambda one: one[0])
                taken = True
        if taken:
            item = MarketNewsItem(
                instruments=named,
                id=event.id,
                time=from_us(event.time_us),
                headline=event.headline[:LONGEST_HEADLINE],
                source=event.source,
                sentiment=event.sentiment,
            )
            self._publish(item)

    def _counted(self, kind: str, instrument: str, time_us: int, received_us: int) -> _Held | None:
        """The place where an event of an instrument belongs; None for one that is dropped."""
        held = self._held.get(instrument)
        if held is None:
            self.dropped[f"other_{kind}"] += 1
        elif time_us < held.closed_us:
            self.dropped[f"late_{kind}"] += 1
        elif time_us > received_us + _AHEAD_US:
            self.dropped[f"ahead_{kind}"] += 1
        else:
            return held
        return None

    def _has_room(self, kind: str, held: int) -> bool:
        if held >= _MOST_HELD:
            self.dropped[f"too_many_{kind}"] += 1
        return held < _MOST_HELD

    def _publish(self, item: MarketTrade | MarketBook | MarketNewsItem) -> None:
        trades, books, news = self._unsent
        if len(trades) + len(books) + len(news) >= _MOST_UNSENT:
            self.dropped["unsent"] += 1
        elif isinstance(item, MarketTrade):
            trades.append(item)
        elif isinstance(item, MarketBook):
            books.append(item)
        else:
            news.append(item)


class _Held:
    """The events of an instrument whose bars have not closed, in the order of their times."""

    def __init__(self) -> None:
        self.trades: list[Traded] = []
        self.books: list[Quoted] = []
        self.news: list[tuple[int, float | None]] = []
        self.ids: dict[str, int] = {}
        """The time of each trade and piece of news that is held."""
        self.before: Quoted | None = None
        """The last state of the order book in bars that have closed."""
        self.closed_us = -(2**63)

    def until(self, close_us: int) -> tuple[list[Traded], list[Quoted], list[tuple[int, float | None]]]:
        """Take out what happened before a close."""
        at = bisect.bisect_left(self.trades, close_us, key=lambda one: one.time_us)
        trades, self.trades = self.trades[:at], self.trades[at:]
        at = bisect.bisect_left(self.books, close_us, key=lambda one: one.time_us)
        books, self.books = self.books[:at], self.books[at:]
        at = bisect.bisect_left(self.news, close_us, key=lambda one: one[0])
        news, self.news = self.news[:at], self.news[at:]
        self.ids = {id_: time_us for id_, time_us in self.ids.items() if time_us >= close_us}
        self.closed_us = max(self.closed_us, close_us)
        return trades, books, news
