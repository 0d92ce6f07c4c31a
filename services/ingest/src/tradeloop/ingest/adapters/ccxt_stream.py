"""Live data of an exchange, through ccxt.pro.

A frame that ccxt cannot read ends its loop of reading without a word, and so the socket would seem to stall: here such
a frame is reported, and reading goes on. Where an exchange says that a bar is closed, as Binance does, ccxt drops the
word: it is taken from the frame itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import ccxt
import ccxt.pro

from tradeloop.common.errors import UserError
from tradeloop.common.market import Timeframe
from tradeloop.ingest.adapters.ccxt_exchange import opened, translated
from tradeloop.ingest.adapters.sections import CcxtSection
from tradeloop.ingest.adapters.streaming import HEARTBEAT_S, ConnectionLost, Session
from tradeloop.ingest.ports import Channel, StreamedBar, StreamedBook, StreamedTrade

_LEVELS = 20
_METHODS: dict[Channel, str] = {"bars": "watchOHLCV", "trades": "watchTrades", "books": "watchOrderBook"}


def check_channels(venue: str, section: CcxtSection, channels: frozenset[Channel]) -> None:
    """Raise `UserError` for a channel that ccxt has not for the exchange."""
    exchange = opened(ccxt.pro, venue, section)
    for channel in sorted(channels):
        if channel not in _METHODS or not exchange.has.get(_METHODS[channel]):
            raise UserError(f"{venue} has no live {channel}: leave this channel out")


class CcxtStream:
    """One connection after the other; each is an exchange of ccxt.pro of its own."""

    def __init__(
        self,
        venue: str,
        section: CcxtSection,
        markets: Mapping[str, Any],
        symbols: Mapping[str, str],
        timeframe: Timeframe,
        channels: frozenset[Channel],
    ) -> None:
        """`symbols` are ccxt's, each with the id of its instrument; `markets` spares asking for them again."""
        self._venue, self._section, self._markets = venue, section, dict(markets)
        self._symbols, self._timeframe, self._channels = symbols, timeframe, channels

    async def __call__(self, session: Session) -> None:
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        exchange = opened(ccxt.pro, self._venue, self._section, lambda kind: self._watched(kind, session, lost))
        exchange.set_markets(self._markets)
        tasks = [asyncio.ensure_future(work) for work in self._work(exchange, session, lost)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if isinstance(error, ConnectionLost):
                    raise error
                if isinstance(error, Exception):
                    raise translated(self._venue, error)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await exchange.close()

    def _work(self, exchange: Any, session: Session, lost: asyncio.Future[str]) -> list[Awaitable[None]]:
        work: list[Awaitable[None]] = [_until(lost)]
        if "bars" in self._channels:
            if exchange.says_closed:
                work.append(self._subscribe_bars(exchange))
            else:
                work += [self._bars(exchange, session, symbol) for symbol in self._symbols]
        if "trades" in self._channels:
            work += [self._trades(exchange, session, symbol) for symbol in self._symbols]
        if "books" in self._channels:
            work += [self._books(exchange, session, symbol) for symbol in self._symbols]
        return work

    async def _subscribe_bars(self, exchange: Any) -> None:
        """Ask for all bars at once; the frames themselves are read in `handle_ohlcv`."""
        wanted = [[symbol, self._timeframe.value] for symbol in self._symbols]
        await exchange.watch_ohlcv_for_symbols(wanted)
        exchange.is_waited_for = False
        await asyncio.Event().wait()

    async def _bars(self, exchange: Any, session: Session, symbol: str) -> None:
        while True:
            for row in await exchange.watch_ohlcv(symbol, self._timeframe.value):
                session.emit(self._bar(symbol, row, None, session))

    async def _trades(self, exchange: Any, session: Session, symbol: str) -> None:
        number = 0
        while True:
            for trade in await exchange.watch_trades(symbol):
                number += 1
                # A few exchanges number no trades: their place in time tells them apart.
                identity = trade.get("id") or f"{trade['timestamp']}-{number}"
                side = trade.get("side")
                session.emit(
                    StreamedTrade(
                        self._symbols[symbol],
                        str(identity),
                        int(trade["timestamp"]) * 1000,
                        float(trade["price"]),
                        float(trade["amount"]),
                        side if side in ("buy", "sell") else None,
                        session.now_us(),
                    )
                )

    async def _books(self, exchange: Any, session: Session, symbol: str) -> None:
        while True:
            book = await exchange.watch_order_book(symbol)
            now_us = session.now_us()
            time_us = int(book["timestamp"]) * 1000 if book.get("timestamp") else now_us
            bids = tuple((float(level[0]), float(level[1])) for level in book["bids"][:_LEVELS])
            asks = tuple((float(level[0]), float(level[1])) for level in book["asks"][:_LEVELS])
            session.emit(StreamedBook(self._symbols[symbol], time_us, bids, asks, now_us))

    def _bar(self, symbol: str, row: list[Any], closed: bool | None, session: Session) -> StreamedBar:
        volume = None if row[5] is None else float(row[5])
        prices = [float(price) for price in row[1:5]]
        return StreamedBar(
            self._symbols[symbol],
            self._timeframe,
            int(row[0]) * 1000,
            prices[0],
            prices[1],
            prices[2],
            prices[3],
            volume,
            closed,
            session.now_us(),
        )

    def _watched(self, kind: Any, session: Session, lost: asyncio.Future[str]) -> Any:
        """The exchange's class, whose connections and frames are watched."""
        stream = self

        def lose(reason: object) -> None:
            if not lost.done():
                lost.set_result(" ".join(str(reason).split()) or "the venue closed the connection")

        class Watched(kind):  # type: ignore[misc]
            is_waited_for = True
            """Whether somebody asks ccxt for bars, who has its own of them."""
            says_closed = hasattr(kind, "handle_ohlcv") and "binance" in [one.__name__ for one in kind.__mro__]

            def client(self, url: str) -> Any:
                fresh = url not in (self.clients or {})
                client = super().client(url)
                if fresh:
                    _guard(client, session, lose)
                return client

            def on_connected(self, client: Any, message: Any = None) -> None:
                session.connected()
                super().on_connected(client, message)

            def on_error(self, client: Any, error: Any) -> None:
                super().on_error(client, error)
                lose(error)

            def on_close(self, client: Any, error: Any) -> None:
                super().on_close(client, error)
                lose(f"the venue closed the connection ({error})")

            def handle_ohlcv(self, client: Any, message: Any) -> None:
                if self.says_closed:
                    stream._read_kline(self, message, session)
                if self.is_waited_for:
                    super().handle_ohlcv(client, message)

        return Watched

    def _read_kline(self, exchange: Any, message: Any, session: Session) -> None:
        kline = message["k"]
        for market in exchange.markets_by_id.get(kline["s"], ()):
            if market["symbol"] in self._symbols and kline["i"] == exchange.timeframes[self._timeframe.value]:
                row = [kline["t"], kline["o"], kline["h"], kline["l"], kline["c"], kline["v"]]
                session.emit(self._bar(market["symbol"], row, bool(kline["x"]), session))


def _guard(client: Any, session: Session, lose: Callable[[object], None]) -> None:
    """Report frames that cannot be read, and the answers to pings; both are lost in ccxt."""
    read, handle = client.handle_text_or_binary_message, client.handle_message
    beaten = [0.0]

    def reported(data: Any) -> None:
        try:
            read(data)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, ccxt.BaseError) as error:
            if isinstance(error, (ccxt.AuthenticationError, ccxt.BadSymbol)):
                lose(error)
            session.malformed(data, f"{type(error).__name__} in a frame")
            return
        _check(data, session)

    def handled(message: Any) -> None:
        if message.type.name in ("PONG", "PING"):
            now = asyncio.get_running_loop().time()
            if now - beaten[0] >= HEARTBEAT_S / 2:
                beaten[0] = now
                session.heartbeat()
        handle(message)
        if message.type.name in ("CLOSED", "CLOSING"):
            # ccxt goes on reading from a connection that is gone.
            lose("the connection ended without a word")

    client.handle_text_or_binary_message, client.handle_message = reported, handled
    client.keepAlive = HEARTBEAT_S * 1000


def _check(data: Any, session: Session) -> None:
    """Report what does not begin as JSON: ccxt passes it on as text, which its exchanges ignore."""
    text = data.decode(errors="replace") if isinstance(data, bytes) else str(data)
    if text[:1] not in ("{", "[") and text.strip().lower() not in ("ping", "pong", "connected", ""):
        session.malformed(data, "a frame is no JSON")
        return


async def _until(lost: asyncio.Future[str]) -> None:
    raise ConnectionLost(await lost)
