"""Kraken, spot: https://docs.kraken.com/api. Its candles never say that they are closed, its history ends after 720.

REST is under `/0/public`, the socket at `/v2`, where ccxt looks for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from aiohttp import web

from tradeloop.ingest.contracts.fake_venue.market import TIMEFRAMES, US, Listing, Market
from tradeloop.ingest.contracts.fake_venue.protocol import (
    Answer,
    Inside,
    Protocol,
    Refused,
    Route,
    SocketRoute,
    rfc3339,
    whole,
)
from tradeloop.ingest.contracts.fake_venue.socket import Body, Connection, Event, beats

_INTERVALS = {1: "1m", 5: "5m", 15: "15m", 30: "30m", 60: "1h", 240: "4h", 1440: "1d"}
_ROWS = 720
_ERRORS = {
    "storm": "EGeneral:Too many requests",
    "broken": "EGeneral:Internal error",
    "credentials": "EAPI:Invalid key",
    "permission": "EGeneral:Permission denied",
    "pair": "EQuery:Unknown asset pair",
}


def _error(refused: Refused) -> Any:
    return {"error": [_ERRORS.get(refused.why, "EGeneral:Invalid arguments")]}


def _answer(result: Any, rows: int = 0) -> Answer:
    return Answer({"error": [], "result": result}, rows)


def _id(one: Listing) -> str:
    return one.symbol.replace("/", "")


def _listing(market: Market, name: str) -> Listing:
    for one in market.listings.values():
        if one.crypto and name in {_id(one), one.symbol}:
            return one
    raise Refused(200, "pair")


def _time(venue: Inside, request: web.Request) -> Answer:
    return _answer({"unixtime": venue.told_us() // US, "rfc1123": ""})


def _status(venue: Inside, request: web.Request) -> Answer:
    return _answer({"status": "online", "timestamp": rfc3339(venue.told_us())})


def _assets(venue: Inside, request: web.Request) -> Answer:
    names = {name for one in venue.market.listings.values() if one.crypto for name in one.symbol.split("/")}
    common = {"aclass": "currency", "decimals": 10, "display_decimals": 5, "status": "enabled"}
    return _answer({name: {"altname": name, **common} for name in sorted(names)})


def _pairs(venue: Inside, request: web.Request) -> Answer:
    pairs = {}
    for one in venue.market.listings.values():
        if one.crypto:
            base, quote = one.symbol.split("/")
            pairs[_id(one)] = {
                **{"altname": _id(one), "wsname": one.symbol, "base": base, "quote": quote, "lot": "unit"},
                **{"aclass_base": "currency", "aclass_quote": "currency", "lot_multiplier": 1},
                **{"pair_decimals": one.price_digits, "lot_decimals": one.size_digits, "leverage_buy": []},
                **{"fees": [[0, 0.4]], "fees_maker": [[0, 0.25]], "ordermin": "0.001", "costmin": "0.5"},
                "status": "online" if venue.market.trades_now(one.symbol) else "delisted",
            }
    return _answer(pairs)


def _candles(venue: Inside, request: web.Request) -> Answer:
    one, interval = _listing(venue.market, request.query.get("pair", "")), whole(request, "interval", 1)
    timeframe = _INTERVALS.get(interval or 1)
    if timeframe is None:
        raise Refused(200, "interval")
    now_us, length_us = venue.market.now_us(), TIMEFRAMES[timeframe] * US
    limit = min(_ROWS, venue.faults.page_limit or _ROWS)
    start_us = max((whole(request, "since", 0) or 0) * US + 1, now_us - limit * length_us)
    bars = venue.market.bars(one.symbol, timeframe, start_us, now_us + 1, known_us=now_us, part=venue.faults.open_bar)
    price, size = one.price_digits, one.size_digits
    rows = [
        [
            int(bars.open_us[i]) // US,
            *(f"{column[i]:.{price}f}" for column in (bars.open, bars.high, bars.low, bars.close)),
            f"{bars.quote_volume[i] / bars.volume[i]:.{price}f}",
            f"{bars.volume[i]:.{size}f}",
            int(bars.trades[i]),
        ]
        for i in range(len(bars))
    ]
    return _answer({_id(one): rows, "last": rows[-1][0] if rows else 0}, len(rows))


class KrakenSession:
    """The subscriptions of one socket: `ohlc` and `trade`. A heartbeat comes every second of the venue."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._market = connection.market
        self._names: list[tuple[str, str, int]] = []

    async def begin(self) -> None:
        status = [{"system": "online", "api_version": "v2", "version": "2.0.0", "connection_id": 1}]
        await self._say({"channel": "status", "type": "update", "data": status})

    async def hear(self, said: Body) -> None:
        try:
            wanted = json.loads(said)
            method, number = wanted["method"], wanted.get("req_id")
            params = wanted.get("params", {})
            channel, symbols = params.get("channel"), params.get("symbol", [])
            interval = int(params.get("interval", 1))
        except (ValueError, KeyError, TypeError, AttributeError):
            await self._say({"error": "Malformed request", "success": False})
            return
        told = {"method": method, "req_id": number}
        if method == "ping":
            await self._say({**told, "method": "pong"})
            return
        for symbol in symbols:
            one = self._market.listings.get(symbol)
            if one is None or not one.crypto or channel not in {"ohlc", "trade"} or interval not in _INTERVALS:
                await self._say({**told, "error": f"Currency pair not supported {symbol}", "success": False})
                continue
            name = (channel, symbol, interval)
            self._names = [one for one in self._names if one != name] + ([name] if method == "subscribe" else [])
            self._connection.served[method] += 1
            result = {"channel": channel, "symbol": symbol, "snapshot": False}
            await self._say({**told, "result": result, "success": True})

    async def _say(self, message: dict[str, Any]) -> None:
        await self._connection.say(json.dumps(message, separators=(",", ":")))

    def events(self, start_us: int, end_us: int) -> Sequence[Event]:
        found = [event for name in self._names for event in self._of(*name, start_us, end_us)]
        if self._names:
            beat = json.dumps({"channel": "heartbeat"})
            times = beats(start_us, end_us, US, 60 * US)
            found += [Event(time_us, "heartbeat", beat, heartbeat=True) for time_us in times]
        return found

    def _of(self, channel: str, symbol: str, interval: int, start_us: int, end_us: int) -> Iterator[Event]:
        if channel == "trade":
            for each in self._market.trades(symbol, start_us + 1, end_us + 1):
                trade = {
                    **{"symbol": symbol, "side": "buy" if each.buy else "sell", "price": each.price},
                    **{"qty": each.size, "ord_type": "market", "trade_id": each.id},
                    "timestamp": rfc3339(each.time_us),
                }
                yield self._event("trade", each.time_us, trade)
            return
        length_us = interval * 60 * US
        begins_us, ends_us = self._market.lifetime(symbol)
        for time_us in beats(start_us, end_us, US, length_us):
            open_us = (time_us - 1) // length_us * length_us
            if begins_us <= open_us < ends_us:
                bars = self._market.bar(symbol, _INTERVALS[interval], open_us, time_us)
                candle = {
                    **{"symbol": symbol, "open": float(bars.open[0]), "high": float(bars.high[0])},
                    **{"low": float(bars.low[0]), "close": float(bars.close[0]), "trades": int(bars.trades[0])},
                    **{"volume": float(bars.volume[0]), "vwap": float(bars.quote_volume[0] / bars.volume[0])},
                    **{"interval_begin": rfc3339(open_us), "interval": interval},
                    "timestamp": rfc3339(open_us + length_us),
                }
                yield self._event("ohlc", time_us, candle)

    def _event(self, channel: str, time_us: int, data: dict[str, Any]) -> Event:
        told = {"channel": channel, "type": "update", "timestamp": rfc3339(time_us), "data": [data]}
        return Event(time_us, channel, json.dumps(told, separators=(",", ":")))


def _session(venue: Inside, connection: Connection) -> KrakenSession:
    return KrakenSession(connection)


KRAKEN = Protocol(
    "kraken",
    [
        Route("/0/public/Time", "time", _time),
        Route("/0/public/SystemStatus", "status", _status),
        Route("/0/public/Assets", "assets", _assets),
        Route("/0/public/AssetPairs", "assets", _pairs),
        Route("/0/public/OHLC", "klines", _candles),
    ],
    [SocketRoute("/v2", _session)],
    _error,
)
