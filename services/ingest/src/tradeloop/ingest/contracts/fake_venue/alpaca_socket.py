"""Alpaca's streams: https://docs.alpaca.markets/docs/real-time-stock-pricing-data.

Frames are MessagePack for a client whose handshake says so, as that of alpaca-py does, and JSON for others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgpack

from tradeloop.ingest.contracts.fake_venue.market import BOOK_US, US, Bars, Listing, News, Trade
from tradeloop.ingest.contracts.fake_venue.protocol import rfc3339
from tradeloop.ingest.contracts.fake_venue.socket import Body, Connection, Event, beats, changes

CHANNELS = ("trades", "quotes", "orderbooks", "bars", "updatedBars", "dailyBars", "news")
_ERRORS = {
    400: "invalid syntax",
    401: "not authenticated",
    402: "auth failed",
    403: "already authenticated",
    405: "symbol limit exceeded",
    406: "connection limit exceeded",
    409: "insufficient subscription",
    410: "invalid subscribe action for this feed",
}


def bar(bars: Bars, index: int) -> dict[str, Any]:
    """A bar as Alpaca writes it, without its time."""
    volume = float(bars.volume[index])
    return {
        "o": float(bars.open[index]),
        "h": float(bars.high[index]),
        "l": float(bars.low[index]),
        "c": float(bars.close[index]),
        "v": volume,
        "n": int(bars.trades[index]),
        "vw": round(float(bars.quote_volume[index]) / volume, 6),
    }


def trade(one: Listing, each: Trade) -> dict[str, Any]:
    """A trade as Alpaca writes it, without its time."""
    common = {"i": each.id, "p": each.price, "s": each.size}
    if one.crypto:
        return {**common, "tks": "B" if each.buy else "S"}
    return {**common, "x": "V", "c": ["@"], "z": "C"}


def news(one: News) -> dict[str, Any]:
    """A piece of news as Alpaca writes it, without its times. It has no sentiment."""
    return {
        "id": one.id,
        "headline": one.headline,
        "source": "fake",
        "url": None,
        "summary": "",
        "symbols": [one.symbol],
        "author": "Chance",
        "content": "",
    }


class AlpacaSession:
    """The subscriptions of one socket, which speaks only after `auth`."""

    def __init__(self, connection: Connection, credentials: Mapping[str, str] | None, *, crowded: bool) -> None:
        self._connection = connection
        self._market = connection.market
        self._credentials = credentials
        self._crowded = crowded
        self._packed = connection.request.headers.get("Content-Type") == "application/msgpack"
        self._crypto = "crypto" in connection.request.path
        self._only_news = connection.request.path.endswith("/news")
        self._welcome = False
        self._names: dict[str, list[str]] = {channel: [] for channel in CHANNELS}
        self._steps: dict[str, int] = {}

    async def begin(self) -> None:
        await self._say({"T": "success", "msg": "connected"})

    async def hear(self, said: Body) -> None:
        try:
            wanted = msgpack.unpackb(said) if isinstance(said, bytes) else json.loads(said)
            action = wanted["action"]
        except (ValueError, KeyError, TypeError, msgpack.UnpackException):
            await self._fail(400)
            return
        if action == "auth":
            await self._authenticate(wanted)
        elif not self._welcome:
            await self._fail(401)
        elif action in {"subscribe", "unsubscribe"}:
            await self._change(action, wanted)
        else:
            await self._fail(400)

    async def _authenticate(self, wanted: dict[str, Any]) -> None:
        if self._welcome:
            await self._fail(403)
        elif self._crowded:
            await self._fail(406)
            await self._connection.close()
        elif self._credentials is not None and self._credentials.get(wanted.get("key", "")) != wanted.get("secret"):
            await self._fail(402)
        elif self._connection.faults.denied:
            await self._fail(409)
        else:
            self._welcome = True
            await self._say({"T": "success", "msg": "authenticated"})

    async def _change(self, action: str, wanted: dict[str, Any]) -> None:
        asked = {channel: list(wanted[channel]) for channel in CHANNELS if wanted.get(channel)}
        if any((channel == "news") != self._only_news for channel in asked):
            await self._fail(410)
            return
        limit = self._connection.faults.symbol_limit
        if action == "subscribe":
            after = {name for names in (*self._names.values(), *asked.values()) for name in names}
            if limit is not None and len(after) > limit:
                await self._fail(405)
                return
        for channel, names in asked.items():
            kept = [name for name in self._names[channel] if name not in names]
            self._names[channel] = [*kept, *names] if action == "subscribe" else kept
        self._connection.served[action] += 1
        await self._say({"T": "subscription", **self._names})

    async def _fail(self, code: int) -> None:
        self._connection.served[f"error {code}"] += 1
        await self._say({"T": "error", "code": code, "msg": _ERRORS[code]})

    async def _say(self, message: dict[str, Any]) -> None:
        await self._connection.say(self._frame([message]))

    def _frame(self, messages: Sequence[dict[str, Any]]) -> Body:
        if self._packed:
            packed: bytes = msgpack.packb(messages)
            return packed
        return json.dumps(messages, separators=(",", ":"))

    def events(self, start_us: int, end_us: int) -> Sequence[Event]:
        return [
            Event(time_us, str(body["T"]), self._frame([body]))
            for channel, names in self._names.items()
            for one in self._listed(names)
            for time_us, body in self._of(channel, one, start_us, end_us)
        ]

    def _listed(self, names: Iterable[str]) -> list[Listing]:
        """The listings that names mean, `*` being all."""
        every = self._market.listings.values()
        fitting = [one for one in every if self._only_news or one.crypto == self._crypto]
        return [one for one in fitting if one.symbol in names or "*" in names]

    def _time(self, time_us: int) -> Any:
        if self._packed:
            return msgpack.Timestamp(time_us // US, time_us % US * 1000)
        return rfc3339(time_us)

    def _of(self, channel: str, one: Listing, start_us: int, end_us: int) -> Iterator[tuple[int, dict[str, Any]]]:
        if channel == "trades":
            for each in self._market.trades(one.symbol, start_us + 1, end_us + 1):
                yield each.time_us, {"T": "t", "S": one.symbol, "t": self._time(each.time_us), **trade(one, each)}
        elif channel == "news":
            for piece in self._market.news(one.symbol, start_us + 1, end_us + 1):
                times = {"created_at": self._time(piece.time_us), "updated_at": self._time(piece.time_us)}
                yield piece.time_us, {"T": "n", **news(piece), **times}
        elif channel == "updatedBars":
            for open_us in self._market.corrected(one.symbol, start_us + 1, end_us + 1).tolist():
                time_us = open_us + 60 * US + self._market.correction_delay_us
                yield time_us, self._bar("u", one, "1m", open_us, time_us)
        elif channel in {"bars", "dailyBars"}:
            yield from self._bars(channel, one, start_us, end_us)
        else:
            yield from self._books(channel, one, start_us, end_us)

    def _bars(self, channel: str, one: Listing, start_us: int, end_us: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Minutes as they close, and days as they are at the end of each minute."""
        kind, timeframe, length_us = ("b", "1m", 60 * US) if channel == "bars" else ("d", "1d", 86_400 * US)
        begins_us, ends_us = self._market.lifetime(one.symbol)
        faults = self._connection.faults
        for time_us in beats(start_us, end_us, US if faults.lying_closed else 60 * US, 60 * US):
            lies = bool(time_us % (60 * US)) and kind == "b" and faults.happens(faults.lying_closed)
            self._connection.served["open bars that were called closed"] += lies
            if begins_us < time_us <= ends_us and (lies or time_us % (60 * US) == 0):
                yield time_us, self._bar(kind, one, timeframe, (time_us - 1) // length_us * length_us, time_us)

    def _bar(self, kind: str, one: Listing, timeframe: str, open_us: int, until_us: int) -> dict[str, Any]:
        bars = self._market.bar(one.symbol, timeframe, open_us, until_us)
        return {"T": kind, "S": one.symbol, "t": self._time(open_us), **bar(bars, 0)}

    def _books(self, channel: str, one: Listing, start_us: int, end_us: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Quotes and order books as they change; a book comes as a whole first, then in what changes."""
        name = f"{channel} {one.symbol}"
        before = self._steps.get(name)
        for time_us in beats(start_us, end_us, BOOK_US, 60 * US):
            step = time_us // BOOK_US - 1
            book = self._market.book(one.symbol, step)
            if not book.bids:
                continue
            told = {"S": one.symbol, "t": self._time(time_us)}
            if channel == "quotes":
                quote = {"bp": book.bids[0][0], "bs": book.bids[0][1], "ap": book.asks[0][0], "as": book.asks[0][1]}
                yield time_us, {"T": "q", **told, **quote, **({} if self._crypto else _QUOTE)}
                continue
            old = None if before is None else self._market.book(one.symbol, before)
            bids = book.bids if old is None else changes(old.bids, book.bids)
            asks = book.asks if old is None else changes(old.asks, book.asks)
            sides = {"b": _levels(bids), "a": _levels(asks)}
            yield time_us, {"T": "o", **told, **sides, **({"r": True} if old is None else {})}
            before = self._steps[name] = step


_QUOTE = {"bx": "V", "ax": "V", "c": ["R"], "z": "C"}


def _levels(side: Iterable[tuple[float, float]]) -> list[dict[str, float]]:
    return [{"p": price, "s": size} for price, size in side]
