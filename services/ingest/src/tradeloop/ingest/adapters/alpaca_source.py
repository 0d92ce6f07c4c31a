"""`AlpacaSource`: stocks and, for symbols with a slash, crypto, through alpaca-py. See docs.alpaca.markets."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import quote

import numpy as np
from alpaca.common.exceptions import APIError
from alpaca.data.enums import DataFeed
from alpaca.data.historical import CryptoHistoricalDataClient, StockHistoricalDataClient
from alpaca.data.live import CryptoDataStream, NewsDataStream, StockDataStream
from alpaca.data.live import websocket as live
from alpaca.trading.client import TradingClient

from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.common.market import Instrument, Series, Timeframe, from_us, to_us
from tradeloop.ingest.adapters.http import Throttle, answered, retry_after
from tradeloop.ingest.adapters.sections import AlpacaSection
from tradeloop.ingest.adapters.streaming import HEARTBEAT_S, PONG_S, ConnectionLost, Session, ThreadedStream, beat
from tradeloop.ingest.adapters.symbols import symbol_of, unknown
from tradeloop.ingest.adapters.urls import websocket
from tradeloop.ingest.ports import (
    Channel,
    Page,
    SourceUnavailable,
    StreamedBar,
    StreamedBook,
    StreamedNews,
    StreamedTrade,
)

_PAGE = 10_000
_SYMBOLS_AT_ONCE = 100
"""Symbols of one request, whose address has room for some thousand letters."""
_ASSETS_ONE_BY_ONE = 10
"""More symbols than so many are looked up in the list of all that are active, which is one request."""
_UNITS = {"m": "Min", "h": "Hour", "d": "Day", "w": "Week"}
_CRYPTO_BPS = (15.0, 25.0)
"""The fees of crypto in the lowest tier; stocks have none."""
_FIELDS = {"open": "o", "high": "h", "low": "l", "close": "c", "volume": "v"}


class AlpacaSource:
    """The market data of Alpaca. Prices are as they were traded, adjusted for nothing."""

    at_once = _SYMBOLS_AT_ONCE

    def __init__(self, venue: str, section: AlpacaSection, clock: Clock) -> None:
        """Asks nothing yet. Raises `UserError` for missing secrets."""
        self.venue = venue
        self._section, self._clock = section, clock
        self._throttle = Throttle(section.requests_per_s, clock)
        self._key = section.key.read(f"{venue}: its key").get_secret_value()
        self._secret = section.secret.read(f"{venue}: its secret").get_secret_value()
        told: dict[str, Any] = {"raw_data": True, "url_override": section.url}
        self._stocks = StockHistoricalDataClient(self._key, self._secret, **told)
        self._crypto = CryptoHistoricalDataClient(self._key, self._secret, **told)
        self._trading = TradingClient(self._key, self._secret, paper=True, **told)
        for client in (self._stocks, self._crypto, self._trading):
            client._retry = 0  # whoever asks waits itself, for as long as the venue says
            # The client would wait for ever.
            setattr(client._session, "request", partial(client._session.request, timeout=section.timeout_s))  # noqa: B010
        self._assets: dict[str, dict[str, Any]] = {}

    def instruments(self, symbols: Sequence[str]) -> Sequence[Instrument]:
        self._look_up(symbols)
        return [self._instrument(self._asset(symbol)) for symbol in symbols]

    def history(self, instrument: Instrument, timeframe: Timeframe, start_us: int, end_us: int) -> Iterator[Page]:
        symbol = symbol_of(self.venue, instrument)
        self._asset(symbol)
        self._check(timeframe)
        return self._pages(symbol, timeframe, start_us, end_us)

    def histories(
        self, instruments: Sequence[Instrument], timeframe: Timeframe, start_us: int, end_us: int
    ) -> Mapping[str, Page]:
        named = {symbol_of(self.venue, instrument): instrument.id for instrument in instruments}
        self._look_up(list(named))
        for symbol in named:
            self._asset(symbol)
        self._check(timeframe)
        stop_us = min(end_us, self.time_us() - timeframe.us + 1)
        rows: dict[str, list[dict[str, Any]]] = {symbol: [] for symbol in named}
        for crypto in (False, True) if start_us < stop_us else ():
            symbols = [symbol for symbol in named if ("/" in symbol) == crypto]
            token: str | None = None
            while symbols:
                found = self._bars(symbols, timeframe, start_us, stop_us, token)
                for symbol, bars in (found.get("bars") or {}).items():
                    rows[symbol] += [row for row in bars if start_us <= _us(row["t"]) < stop_us]
                before, token = token, found.get("next_page_token")
                if token is None:
                    break
                if token == before:
                    raise SourceUnavailable(f"{self.venue}: a page follows itself")
        until_us = max(stop_us, start_us)
        return {named[symbol]: Page(_series(bars), until_us) for symbol, bars in rows.items()}

    def stream(
        self, instruments: Sequence[Instrument], timeframe: Timeframe, channels: frozenset[Channel]
    ) -> ThreadedStream:
        if "bars" in channels and timeframe is not Timeframe.M1:
            raise UserError(f"{self.venue} has no live bars of {timeframe}: stream bars of 1m")
        symbols = [symbol_of(self.venue, instrument) for instrument in instruments]
        self._look_up(symbols)
        for symbol in symbols:
            if not self._asset(symbol)["tradable"]:
                raise UserError(f"{self.venue}:{symbol} is no longer traded: leave it out of the stream")
        run = partial(self._live, symbols=symbols, channels=channels)
        return ThreadedStream(self.venue, run, self._clock, only_closed=True)

    def time_us(self) -> int:
        return _us(self._ask(lambda: self._trading.get("/clock"))["timestamp"])

    def close(self) -> None:
        for client in (self._stocks, self._crypto, self._trading):
            client._session.close()

    def _check(self, timeframe: Timeframe) -> None:
        if timeframe.value[-1] not in _UNITS:
            raise UserError(f"{self.venue} has no bars of {timeframe}: give 1m or longer")

    def _pages(self, symbol: str, timeframe: Timeframe, start_us: int, end_us: int) -> Iterator[Page]:
        at_us, stop_us = start_us, min(end_us, self.time_us() - timeframe.us + 1)
        while at_us < stop_us:
            found = self._bars([symbol], timeframe, at_us, stop_us)
            rows = [row for row in (found.get("bars") or {}).get(symbol) or [] if at_us <= _us(row["t"]) < stop_us]
            at_us = _us(rows[-1]["t"]) + timeframe.us if found.get("next_page_token") and rows else stop_us
            yield Page(_series(rows), at_us)

    def _bars(
        self, symbols: Sequence[str], timeframe: Timeframe, start_us: int, stop_us: int, token: str | None = None
    ) -> dict[str, Any]:
        """One page of bars, of stocks or of crypto; symbol by symbol."""
        crypto = "/" in symbols[0]
        client, path = (self._crypto, "/crypto/us/bars") if crypto else (self._stocks, "/stocks/bars")
        asked: dict[str, Any] = {
            "symbols": ",".join(symbols),
            "timeframe": f"{timeframe.value[:-1]}{_UNITS[timeframe.value[-1]]}",
            "limit": _PAGE,
            "sort": "asc",
            # Both ends are included.
            "start": from_us(start_us).isoformat(),
            "end": from_us(stop_us - 1).isoformat(),
        }
        if not crypto:
            asked |= {"adjustment": "raw", "feed": self._section.feed}
        if token is not None:
            asked["page_token"] = token
        found: dict[str, Any] = self._ask(lambda: client.get(path, asked))
        return found

    def _ask(self, ask: Callable[[], Any]) -> Any:
        self._throttle.take()
        try:
            found = ask()
        except APIError as error:
            response = error.response
            headers = getattr(response, "headers", None)
            raise answered(self.venue, error.status_code or 500, str(error), retry_after(headers)) from error
        except (OSError, ValueError) as error:  # of requests: its errors are such
            raise SourceUnavailable(f"{self.venue} does not answer: {' '.join(str(error).split())[:300]}") from error
        if not isinstance(found, (dict, list)):
            raise SourceUnavailable(f"{self.venue}: its answer cannot be read")
        return found

    def _look_up(self, symbols: Sequence[str]) -> None:
        """Know many assets by few requests; those that are not active stay for `_asset`."""
        for crypto in (False, True):
            wanted = {one for one in symbols if ("/" in one) == crypto} - self._assets.keys()
            if len(wanted) > _ASSETS_ONE_BY_ONE:
                self._assets |= {one["symbol"]: one for one in self._active(crypto) if one["symbol"] in wanted}

    def _active(self, crypto: bool) -> list[dict[str, Any]]:
        kind = "crypto" if crypto else "us_equity"
        found: list[dict[str, Any]] = self._ask(
            lambda: self._trading.get("/assets", {"asset_class": kind, "status": "active"})
        )
        return found

    def _asset(self, symbol: str) -> dict[str, Any]:
        if symbol not in self._assets:
            try:
                self._assets[symbol] = self._ask(lambda: self._trading.get(f"/assets/{quote(symbol, safe='')}"))
            except UserError as error:
                if not isinstance(error.__cause__, APIError) or error.__cause__.status_code != 404:
                    raise
                every = self._active("/" in symbol)
                raise unknown(self.venue, symbol, [one["symbol"] for one in every]) from None
        return self._assets[symbol]

    def _instrument(self, asset: dict[str, Any]) -> Instrument:
        crypto = asset["class"] == "crypto"
        maker, taker = _CRYPTO_BPS if crypto else (0.0, 0.0)
        parts = 1e-9 if asset.get("fractionable") else 1.0
        return Instrument(
            id=f"{self.venue}:{asset['symbol']}",
            tick_size=float(asset.get("price_increment") or 0.01),
            lot_size=float(asset.get("min_trade_increment") or parts),
            min_notional=1.0 if asset.get("fractionable") else 0.0,
            maker_bps=maker,
            taker_bps=taker,
            calendar="continuous" if crypto else "sessions",
        )

    async def _live(self, session: Session, symbols: Sequence[str], channels: frozenset[Channel]) -> None:
        """All connections of a stream: each kind of instrument has one, and news."""
        options: dict[str, Any] = {
            "raw_data": True,
            "websocket_params": {"ping_interval": HEARTBEAT_S, "ping_timeout": PONG_S, "max_queue": 1024},
        }
        base = None if self._section.url is None else websocket(self._section.url)

        def at(path: str) -> str | None:
            return None if base is None else f"{base}{path}"

        stocks = [symbol for symbol in symbols if "/" not in symbol]
        crypto = [symbol for symbol in symbols if "/" in symbol]
        wanted = {kind for kind in ("bars", "trades", "books") if kind in channels}
        parts: list[tuple[Any, list[str], dict[str, list[str]]]] = []
        if stocks and wanted:
            names = {"bars": ["bars", "updatedBars"], "trades": ["trades"], "books": ["quotes"]}
            feed = DataFeed.SIP if self._section.feed == "sip" else DataFeed.IEX
            stream: Any = StockDataStream(
                self._key, self._secret, feed=feed, url_override=at(f"/v2/{self._section.feed}"), **options
            )
            parts.append((stream, stocks, {kind: names[kind] for kind in wanted}))
        if crypto and wanted:
            names = {"bars": ["bars", "updatedBars"], "trades": ["trades"], "books": ["quotes"]}
            stream = CryptoDataStream(self._key, self._secret, url_override=at("/v1beta3/crypto/us"), **options)
            parts.append((stream, crypto, {kind: names[kind] for kind in wanted}))
        if "news" in channels:
            stream = NewsDataStream(self._key, self._secret, url_override=at("/v1beta1/news"), **options)
            parts.append((stream, list(symbols), {"news": ["news"]}))
        tasks: list[asyncio.Task[None]] = []
        try:
            for stream, names_of, kinds in parts:
                await self._begin(stream, names_of, [one for found in kinds.values() for one in found])
            session.connected()
            for stream, _, _ in parts:
                tasks.append(asyncio.ensure_future(self._read(stream, session)))
                tasks.append(asyncio.ensure_future(beat(partial(getattr, stream, "_ws"), session)))
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for stream, _, _ in parts:
                await stream.close()

    async def _begin(self, stream: Any, symbols: Sequence[str], kinds: Iterable[str]) -> None:
        try:
            await stream._start_ws()
        except ValueError as error:
            said = str(error)
            if "limit" not in said and "auth" in said:
                raise UserError(f"{self.venue} refuses the credentials: {said}: correct its key and secret") from None
            raise ConnectionLost(said) from None
        for kind in kinds:
            for symbol in symbols:
                stream._handlers[kind][symbol] = None
        await stream._send_subscribe_msg()

    async def _read(self, stream: Any, session: Session) -> None:
        packer: Any = live
        while True:
            frame = await stream._ws.recv()
            try:
                for message in packer.msgpack.unpackb(frame):
                    self._handle(message, session)
            except (UserError, ConnectionLost):
                raise
            except Exception as error:  # noqa: BLE001  whatever is wrong with a frame, the next one may be well
                session.malformed(frame, f"{type(error).__name__} in a frame")

    def _handle(self, message: dict[str, Any], session: Session) -> None:
        kind, now_us = message["T"], session.now_us()
        if kind == "error":
            said = f"{message.get('msg')} ({message.get('code')})"
            if message.get("code") in (400, 405, 409, 410):
                raise UserError(f"{self.venue} refuses the subscription: {said}")
            raise ConnectionLost(said)
        if kind in ("success", "subscription"):
            return
        if kind == "n":
            session.emit(
                StreamedNews(
                    tuple(f"{self.venue}:{symbol}" for symbol in message.get("symbols") or ()),
                    str(message["id"]),
                    _stamp(message["created_at"]),
                    str(message["headline"]),
                    str(message.get("source", "")),
                    None,
                    now_us,
                )
            )
            return
        instrument, time_us = f"{self.venue}:{message['S']}", _stamp(message["t"])
        if kind in ("b", "u"):  # closed, and corrected
            open_, high, low, close, volume = (float(message[name]) for name in _FIELDS.values())
            session.emit(StreamedBar(instrument, Timeframe.M1, time_us, open_, high, low, close, volume, True, now_us))
        elif kind == "t":
            side: Any = {"B": "buy", "S": "sell"}.get(str(message.get("tks")))
            price, size = float(message["p"]), float(message["s"])
            session.emit(StreamedTrade(instrument, str(message["i"]), time_us, price, size, side, now_us))
        elif kind == "q":
            bids = ((float(message["bp"]), float(message["bs"])),)
            asks = ((float(message["ap"]), float(message["as"])),)
            session.emit(StreamedBook(instrument, time_us, bids, asks, now_us))


def _us(text: str) -> int:
    return to_us(datetime.fromisoformat(text))


def _stamp(stamp: Any) -> int:
    """Microseconds of a time stamp of MessagePack."""
    return int(stamp.to_unix_nano()) // 1000


def _series(rows: Sequence[dict[str, Any]]) -> Series:
    columns = {
        name: np.array([math.nan if row.get(key) is None else float(row[key]) for row in rows], dtype=np.float64)
        for name, key in _FIELDS.items()
    }
    return {"open_us": np.array([_us(row["t"]) for row in rows], dtype=np.int64), **columns}
