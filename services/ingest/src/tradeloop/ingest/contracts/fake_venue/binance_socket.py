"""The streams of Binance: klines, trades, order books and best quotes, as one socket subscribes to them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tradeloop.ingest.contracts.fake_venue.market import BOOK_US, TIMEFRAMES, US, Bars, Listing, Market, Trade
from tradeloop.ingest.contracts.fake_venue.recorded import Recording
from tradeloop.ingest.contracts.fake_venue.socket import MOST, Body, Connection, Event, beats, changes

_NAME = re.compile(
    r"(?P<symbol>[a-z0-9]+)@(?:kline_(?P<interval>\w+)|(?P<kind>trade|aggTrade|bookTicker)|"
    r"depth(?P<levels>5|10|20)?(?:@(?P<ms>\d+)ms)?)"
)
_STEPS = {"0": 1, "100": 1, "250": 2, "500": 5, "1000": 10}


def row(one: Listing, bars: Bars, index: int) -> list[Any]:
    """A bar as a row of klines."""
    price, size = one.price_digits, one.size_digits
    return [
        int(bars.open_us[index]) // 1000,
        *(f"{column[index]:.{price}f}" for column in (bars.open, bars.high, bars.low, bars.close)),
        f"{bars.volume[index]:.{size}f}",
        int(bars.close_us[index]) // 1000 - 1,
        f"{bars.quote_volume[index]:.{price + size}f}",
        int(bars.trades[index]),
        f"{bars.taker_buy[index]:.{size}f}",
        f"{bars.taker_buy_quote[index]:.{price + size}f}",
        "0",
    ]


class BinanceSession:
    """The subscriptions of one socket."""

    def __init__(
        self,
        connection: Connection,
        recording: Recording | None,
        *,
        futures: bool,
        combined: bool,
        names: Iterable[str],
    ) -> None:
        self._connection = connection
        self._recording = recording
        self._market: Market = connection.market
        self._futures = futures
        self._combined = combined
        self._names = list(dict.fromkeys(names))
        self._listings = {
            one.symbol.replace("/", "").lower(): one for one in self._market.listings.values() if one.crypto
        }
        self._steps: dict[str, int] = {}

    async def begin(self) -> None:
        """Binance greets nobody."""

    async def hear(self, said: Body) -> None:
        try:
            wanted = json.loads(said)
            method, params, number = wanted["method"], wanted.get("params", []), wanted.get("id")
        except (ValueError, KeyError, TypeError, AttributeError):
            await self._say({"error": {"code": 3, "msg": "Invalid JSON: expected value at line 1 column 1"}})
            return
        result: Any = None
        if method == "SUBSCRIBE":
            self._names += [name for name in params if name not in self._names]
        elif method == "UNSUBSCRIBE":
            self._names = [name for name in self._names if name not in params]
            self._steps = {name: step for name, step in self._steps.items() if name in self._names}
        elif method == "LIST_SUBSCRIPTIONS":
            result = self._names
        else:
            await self._say({"error": {"code": 2, "msg": f"Invalid request: unknown variant {method}"}, "id": number})
            return
        self._connection.served[method] += 1
        await self._say({"result": result, "id": number})

    async def _say(self, answer: dict[str, Any]) -> None:
        await self._connection.say(json.dumps(answer, separators=(",", ":")))

    def events(self, start_us: int, end_us: int) -> Sequence[Event]:
        recorded = [name for name in self._names if self._recording is not None and self._recording.plays(name)]
        made = [name for name in self._names if name not in recorded]
        found = [event for name in made for event in self._of(name, start_us, end_us)]
        if self._recording is not None and recorded:
            frames = self._recording.frames(recorded, start_us, end_us, combined=self._combined)
            found += [Event(*frame) for frame in frames]
        return found

    def _of(self, name: str, start_us: int, end_us: int) -> Iterator[Event]:
        """The frames of one stream. Binance takes any name, and says nothing of those that it does not know."""
        match = _NAME.fullmatch(name)
        one = match and self._listings.get(match["symbol"])
        if not match or one is None:
            return
        if interval := match["interval"]:
            if interval in TIMEFRAMES:
                yield from self._klines(name, one, interval, start_us, end_us)
        elif match["kind"] in {"trade", "aggTrade"}:
            for trade in self._market.trades(one.symbol, start_us + 1, end_us + 1):
                yield self._event(name, match["kind"], trade.time_us, self._trade(one, trade, match["kind"]))
        elif match["kind"]:
            yield from self._quotes(name, one, start_us, end_us)
        else:
            every = _STEPS.get(match["ms"] or ("250" if self._futures else "1000"), 10)
            yield from self._books(name, one, every, int(match["levels"] or 0), start_us, end_us)

    def _event(self, name: str, kind: str, time_us: int, body: dict[str, Any]) -> Event:
        told: Any = {"stream": name, "data": body} if self._combined else body
        return Event(time_us, kind, json.dumps(told, separators=(",", ":")))

    def _told_ms(self, time_us: int) -> int:
        return (time_us + round(self._connection.faults.clock_ahead_s * US)) // 1000

    def _klines(self, name: str, one: Listing, interval: str, start_us: int, end_us: int) -> Iterator[Event]:
        length_us = TIMEFRAMES[interval] * US
        shift_us = 4 * 86_400 * US if interval == "1w" else 0
        begins_us, ends_us = self._market.lifetime(one.symbol)
        for time_us in beats(start_us - shift_us, end_us - shift_us, US, length_us):
            closed = time_us % length_us == 0
            open_us = (time_us - 1) // length_us * length_us + shift_us
            if not begins_us <= open_us < ends_us:
                continue
            bars = self._market.bar(one.symbol, interval, open_us, time_us + shift_us)
            if not closed and self._connection.faults.happens(self._connection.faults.lying_closed):
                self._connection.served["open bars that were called closed"] += 1
                closed = True
            (opened, o, h, low, c, v, closes, q, n, taker, taker_quote, _) = row(one, bars, 0)
            kline = {
                **{"t": opened, "T": closes, "s": self._id(one), "i": interval, "f": opened // 500, "L": closes // 500},
                **{"o": o, "c": c, "h": h, "l": low, "v": v, "n": n, "x": closed},
                **{"q": q, "V": taker, "Q": taker_quote, "B": "0"},
            }
            told = {"e": "kline", "E": self._told_ms(time_us + shift_us), "s": self._id(one), "k": kline}
            yield self._event(name, "kline", time_us + shift_us, told)

    def _trade(self, one: Listing, trade: Trade, kind: str) -> dict[str, Any]:
        common = {
            **{"e": kind, "E": self._told_ms(trade.time_us), "T": trade.time_us // 1000, "s": self._id(one)},
            **{
                "p": f"{trade.price:.{one.price_digits}f}",
                "q": f"{trade.size:.{one.size_digits}f}",
                "m": not trade.buy,
            },
        }
        if kind == "aggTrade":
            return {**common, "a": trade.id, "f": trade.id, "l": trade.id, "M": True}
        return {**common, "t": trade.id, **({"X": "MARKET"} if self._futures else {"M": True})}

    def _quotes(self, name: str, one: Listing, start_us: int, end_us: int) -> Iterator[Event]:
        first, last = start_us // BOOK_US, end_us // BOOK_US
        for step in range(max(first, last - MOST), last):
            book = self._market.book(one.symbol, step, 1)
            if not book.bids:
                continue
            (bid, bid_size), (ask, ask_size) = self._levels(one, book.bids)[0], self._levels(one, book.asks)[0]
            time_us = (step + 1) * BOOK_US
            quote: dict[str, Any] = {"u": step, "s": self._id(one), "b": bid, "B": bid_size, "a": ask, "A": ask_size}
            if self._futures:
                quote = {"e": "bookTicker", **quote, "T": time_us // 1000, "E": self._told_ms(time_us)}
            yield self._event(name, "bookTicker", time_us, quote)

    def _books(self, name: str, one: Listing, every: int, levels: int, start_us: int, end_us: int) -> Iterator[Event]:
        last = end_us // BOOK_US - 1
        before = self._steps.setdefault(name, start_us // BOOK_US - 1)
        every = max(every, (last - before) // MOST // every * every)
        for step in range(before + every, last + 1, every):
            time_us = (step + 1) * BOOK_US
            book = self._market.book(one.symbol, step, levels or 20)
            if levels:
                bids, asks = self._levels(one, book.bids), self._levels(one, book.asks)
            else:
                old = self._market.book(one.symbol, before)
                bids, asks = (
                    self._levels(one, changes(getattr(old, side), getattr(book, side))) for side in ("bids", "asks")
                )
            if levels and not self._futures:
                yield self._event(name, "depth", time_us, {"lastUpdateId": step, "bids": bids, "asks": asks})
            else:
                times = {"T": time_us // 1000, "pu": before} if self._futures else {}
                told = {"e": "depthUpdate", "E": self._told_ms(time_us), "s": self._id(one), "U": before + 1, "u": step}
                yield self._event(name, "depth", time_us, {**told, **times, "b": bids, "a": asks})
            before = step
        self._steps[name] = before

    def _id(self, one: Listing) -> str:
        return one.symbol.replace("/", "")

    def _levels(self, one: Listing, side: Iterable[tuple[float, float]]) -> list[list[str]]:
        return [[f"{price:.{one.price_digits}f}", f"{size:.{one.size_digits}f}"] for price, size in side]
