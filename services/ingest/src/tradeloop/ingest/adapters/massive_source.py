"""`MassiveSource`: stocks and, for symbols with a slash, crypto, of massive (formerly Polygon), through its client."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from massive import RESTClient, WebSocketClient
from massive.exceptions import AuthError, BadResponse

from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.common.market import Instrument, Series, Timeframe, to_us
from tradeloop.ingest.adapters.http import Throttle, answered, retry_after
from tradeloop.ingest.adapters.sections import MassiveSection
from tradeloop.ingest.adapters.streaming import Session, ThreadedStream, beat
from tradeloop.ingest.adapters.symbols import symbol_of
from tradeloop.ingest.ports import Channel, Page, SourceUnavailable, StreamedBar, StreamedTrade

_PAGE = 50_000
"""Minutes, or days for longer bars, that a page is made of at most."""
_SPANS = {"s": "second", "m": "minute", "h": "hour", "d": "day", "w": "week"}
_FIELDS = {"open": "o", "high": "h", "low": "l", "close": "c", "volume": "v"}
_KINDS = {"bars": ("AM", "XA"), "trades": ("T", "XT")}
"""The subscriptions of a channel, for stocks and for crypto."""
_BASE = "https://api.massive.com"
_FEED = "socket.massive.com"
_SIDES: dict[int, Any] = {1: "sell", 2: "buy"}
"""The conditions of a crypto trade that say who took liquidity."""


class MassiveSource:
    """The market data of massive. Prices are as they were traded, adjusted for nothing."""

    def __init__(self, venue: str, section: MassiveSection, clock: Clock) -> None:
        """Asks nothing yet. Raises `UserError` for a missing key."""
        self.venue = venue
        self._section, self._clock = section, clock
        self._throttle = Throttle(section.requests_per_s, clock)
        self._key = section.key.read(f"{venue}: its key").get_secret_value()
        timeout_s = section.timeout_s
        # Whoever asks waits itself, for as long as the venue says: urllib3 would hide both.
        self._client: Any = RESTClient(
            self._key,
            base=section.url or _BASE,
            connect_timeout=timeout_s,
            read_timeout=timeout_s,
            retries=0,
            connection_pool_kw={"retries": False},
        )
        self._answer: Any = None
        self._request = self._client.client.request
        self._client.client.request = self._remembered
        self._tickers: dict[str, dict[str, Any]] = {}

    def instruments(self, symbols: Sequence[str]) -> Sequence[Instrument]:
        for symbol in symbols:
            self._ticker(symbol)
        return [
            Instrument(
                id=f"{self.venue}:{symbol}",
                tick_size=0.0 if "/" in symbol else 0.01,
                calendar="continuous" if "/" in symbol else "sessions",
            )
            for symbol in symbols
        ]

    def history(self, instrument: Instrument, timeframe: Timeframe, start_us: int, end_us: int) -> Iterator[Page]:
        symbol = symbol_of(self.venue, instrument)
        self._ticker(symbol)
        return self._pages(symbol, timeframe, start_us, end_us)

    def stream(
        self, instruments: Sequence[Instrument], timeframe: Timeframe, channels: frozenset[Channel]
    ) -> ThreadedStream:
        if wrong := sorted(channels - _KINDS.keys()):
            raise UserError(f"{self.venue} has no live {wrong[0]} here: leave this channel out")
        if "bars" in channels and timeframe is not Timeframe.M1:
            raise UserError(f"{self.venue} has no live bars of {timeframe}: stream bars of 1m")
        symbols = [symbol_of(self.venue, instrument) for instrument in instruments]
        for symbol in symbols:
            if self._ticker(symbol).get("active") is False:
                raise UserError(f"{self.venue}:{symbol} is no longer traded: leave it out of the stream")
        run = partial(self._live, symbols=symbols, channels=channels)
        return ThreadedStream(self.venue, run, self._clock, only_closed=True)

    def time_us(self) -> int:
        found = self._ask(lambda: self._client.get_market_status(raw=True))
        return to_us(datetime.fromisoformat(found["serverTime"]))

    def close(self) -> None:
        self._client.client.clear()

    def _pages(self, symbol: str, timeframe: Timeframe, start_us: int, end_us: int) -> Iterator[Page]:
        at_us, stop_us = start_us, min(end_us, self.time_us() - timeframe.us + 1)
        many, span = int(timeframe.value[:-1]), _SPANS[timeframe.value[-1]]
        while at_us < stop_us:
            # Both ends are included, and in milliseconds.
            ask = partial(
                self._client.get_aggs,
                *(_ticker_of(symbol), many, span, -(-at_us // 1000), (stop_us - 1) // 1000),
                adjusted=False,
                sort="asc",
                limit=_PAGE,
                raw=True,
            )
            found = self._ask(ask)
            rows = [row for row in found.get("results") or [] if at_us <= row["t"] * 1000 < stop_us]
            if found.get("next_url") and not rows:
                raise SourceUnavailable(f"{self.venue}: a page without bars is not its last one")
            at_us = rows[-1]["t"] * 1000 + timeframe.us if found.get("next_url") else stop_us
            yield Page(_series(rows), at_us)

    def _remembered(self, *asked: Any, **options: Any) -> Any:
        """Keep the answer: the client's errors hold neither status nor headers."""
        self._answer = None
        self._answer = self._request(*asked, **options)
        return self._answer

    def _ask(self, ask: Callable[[], Any]) -> dict[str, Any]:
        self._throttle.take()
        try:
            found = json.loads(ask().data)
        except BadResponse as error:
            pause_s = retry_after(self._answer.headers)
            raise answered(self.venue, self._answer.status, str(error), pause_s) from error
        except Exception as error:  # of urllib3, or of a text that is no JSON
            told = " ".join(str(error).split())[:300]
            raise SourceUnavailable(f"{self.venue} does not answer: {type(error).__name__}: {told}") from error
        if not isinstance(found, dict):
            raise SourceUnavailable(f"{self.venue}: its answer cannot be read")
        return found

    def _ticker(self, symbol: str) -> dict[str, Any]:
        if symbol not in self._tickers:
            try:
                found = self._ask(lambda: self._client.get_ticker_details(_ticker_of(symbol), raw=True))
            except UserError as error:
                if self._answer is None or self._answer.status != 404:
                    raise
                raise UserError(f"{self.venue} has no {symbol}: give a ticker such as AAPL, or BTC/USD") from error
            self._tickers[symbol] = found.get("results") or {}
        return self._tickers[symbol]

    async def _live(self, session: Session, symbols: Sequence[str], channels: frozenset[Channel]) -> None:
        """All connections of a stream: stocks and crypto have one each."""
        names: dict[str, str] = {}
        clients: list[Any] = []
        for crypto, market in enumerate(("stocks", "crypto")):
            mine = [symbol for symbol in symbols if ("/" in symbol) == bool(crypto)]
            names |= {symbol.replace("/", "-"): f"{self.venue}:{symbol}" for symbol in mine}
            wanted = [
                f"{_KINDS[one][crypto]}.{symbol.replace('/', '-')}" for one in sorted(channels) for symbol in mine
            ]
            if wanted:
                base = urlsplit(self._section.url or f"https://{_FEED}")
                clients.append(
                    WebSocketClient(
                        self._key,
                        feed=f"{base.netloc}{base.path}",
                        market=market,
                        raw=True,
                        subscriptions=wanted,
                        max_reconnects=0,
                        secure=base.scheme == "https",
                    )
                )

        async def heard(frame: Any) -> None:
            self._hear(frame, names, session)

        tasks = [asyncio.ensure_future(client.connect(heard)) for client in clients]
        tasks += [asyncio.ensure_future(beat(partial(getattr, client, "websocket"), session)) for client in clients]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except AuthError as error:
            raise UserError(f"{self.venue} refuses the credentials: {error}: correct its key") from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for client in clients:
                if client.websocket is not None:
                    await client.close()

    def _hear(self, frame: Any, names: dict[str, str], session: Session) -> None:
        try:
            for message in json.loads(frame):
                self._handle(message, names, session)
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001  whatever is wrong with a frame, the next one may be well
            session.malformed(frame, f"{type(error).__name__} in a frame")

    def _handle(self, message: dict[str, Any], names: dict[str, str], session: Session) -> None:
        kind, now_us = message["ev"], session.now_us()
        if kind == "status":
            if message.get("status") in ("error", "auth_failed"):
                raise UserError(f"{self.venue} refuses the subscription: {message.get('message')}")
            session.connected()
            return
        if kind in _KINDS["bars"]:
            instrument = names[message["sym"] if kind == "AM" else message["pair"]]
            open_, high, low, close, volume = (float(message[name]) for name in _FIELDS.values())
            time_us = int(message["s"]) * 1000
            session.emit(StreamedBar(instrument, Timeframe.M1, time_us, open_, high, low, close, volume, True, now_us))
        elif kind in _KINDS["trades"]:
            instrument = names[message["sym"] if kind == "T" else message["pair"]]
            conditions = message.get("c") or [0]
            side = _SIDES.get(conditions[0]) if kind == "XT" else None
            price, size, time_us = float(message["p"]), float(message["s"]), int(message["t"]) * 1000
            session.emit(StreamedTrade(instrument, str(message["i"]), time_us, price, size, side, now_us))


def _ticker_of(symbol: str) -> str:
    return f"X:{symbol.replace('/', '')}" if "/" in symbol else symbol


def _series(rows: Sequence[dict[str, Any]]) -> Series:
    columns = {
        name: np.array([math.nan if row.get(key) is None else float(row[key]) for row in rows], dtype=np.float64)
        for name, key in _FIELDS.items()
    }
    return {"open_us": np.array([int(row["t"]) * 1000 for row in rows], dtype=np.int64), **columns}
