"""Binance, spot and USD-M futures: https://developers.binance.com/docs/binance-spot-api-docs and
https://developers.binance.com/docs/derivatives/usds-margined-futures.

Spot is under `/api/v3`, futures under `/fapi/v1`. A socket whose path has a part `fstream`, `public` or `market` is
that of futures; all others are of spot, and ccxt takes for spot only those with a part `stream`.
"""

from __future__ import annotations

import re
from typing import Any

from aiohttp import web

from tradeloop.ingest.contracts.fake_venue.binance_socket import BinanceSession, row
from tradeloop.ingest.contracts.fake_venue.market import BOOK_US, TIMEFRAMES, US, Listing, Market, Trade
from tradeloop.ingest.contracts.fake_venue.protocol import (
    Answer,
    Inside,
    Protocol,
    Refused,
    Route,
    SocketRoute,
    rows_asked,
    whole,
)
from tradeloop.ingest.contracts.fake_venue.socket import Connection

INTERVALS = ("1s", "1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d", "1w")
_ERRORS = {
    "storm": (-1003, "Too many requests; current limit of IP is exceeded. Please use the websocket for live updates."),
    "broken": (-1000, "An unknown error occurred while processing the request."),
    "credentials": (-2014, "API-key format invalid."),
    "permission": (-2015, "Invalid API-key, IP, or permissions for action."),
    "symbol": (-1121, "Invalid symbol."),
    "interval": (-1120, "Invalid interval."),
}


def listing(market: Market, symbol: str | None) -> Listing:
    """The listing of `BTCUSDT`. Raises `Refused`."""
    if symbol is None:
        raise Refused(400, "symbol")
    for one in market.listings.values():
        if one.crypto and one.symbol.replace("/", "") == symbol.upper():
            return one
    raise Refused(400, "symbol")


def _error(refused: Refused) -> Any:
    code, text = _ERRORS.get(refused.why, (-1100, f"Illegal characters found in {refused.why}."))
    if refused.status == 418:
        text = "Way too many requests; IP banned. Please use the websocket for live updates to avoid bans."
    return {"code": code, "msg": text}


def _time(venue: Inside, request: web.Request) -> Answer:
    return Answer({"serverTime": _told_ms(venue)})


def _ping(venue: Inside, request: web.Request) -> Answer:
    return Answer({})


def _told_ms(venue: Inside) -> int:
    return venue.told_us() // 1000


def _info(venue: Inside, request: web.Request) -> Answer:
    futures = request.path.startswith("/fapi")
    asked = request.query.get("symbol")
    listings = [listing(venue.market, asked)] if asked else list(venue.market.listings.values())
    symbols = [_symbol(venue.market, one, futures) for one in listings if one.crypto]
    return Answer({"timezone": "UTC", "serverTime": _told_ms(venue), "rateLimits": [], "symbols": symbols})


def _nothing(venue: Inside, request: web.Request) -> Answer:
    return Answer({"timezone": "UTC", "serverTime": _told_ms(venue), "rateLimits": [], "symbols": []})


def _status(venue: Inside, request: web.Request) -> Answer:
    return Answer({"status": 0, "msg": "normal"})


def _symbol(market: Market, one: Listing, futures: bool) -> dict[str, Any]:
    base, quote = one.symbol.split("/")
    trading = market.trades_now(one.symbol)
    tick, lot = f"{10.0**-one.price_digits:.{one.price_digits}f}", f"{10.0**-one.size_digits:.{one.size_digits}f}"
    common: dict[str, Any] = {
        "symbol": base + quote,
        "status": "TRADING" if trading else "SETTLING" if futures else "BREAK",
        "baseAsset": base,
        "quoteAsset": quote,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "orderTypes": ["LIMIT", "MARKET"],
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": tick, "maxPrice": "1000000.00", "tickSize": tick},
            {"filterType": "LOT_SIZE", "minQty": lot, "maxQty": "9000.00000", "stepSize": lot},
        ],
    }
    if not futures:
        notional = {"filterType": "NOTIONAL", "minNotional": "5.00000000", "maxNotional": "9000000.00000000"}
        return {
            **common,
            "isSpotTradingAllowed": True,
            "isMarginTradingAllowed": False,
            "permissions": [],
            "permissionSets": [["SPOT"]],
            "filters": [*common["filters"], notional],
        }
    return {
        **common,
        "pair": base + quote,
        "contractType": "PERPETUAL",
        "deliveryDate": 4_133_404_800_000,
        "onboardDate": market.lifetime(one.symbol)[0] // 1000,
        "marginAsset": quote,
        "pricePrecision": one.price_digits,
        "quantityPrecision": one.size_digits,
        "filters": [*common["filters"], {"filterType": "MIN_NOTIONAL", "notional": "5"}],
    }


def _klines(venue: Inside, request: web.Request) -> Answer:
    market, faults = venue.market, venue.faults
    one = listing(market, request.query.get("symbol"))
    interval = request.query.get("interval", "")
    if interval not in INTERVALS:
        raise Refused(400, "interval")
    length_us = TIMEFRAMES[interval] * US
    most = 1500 if request.path.startswith("/fapi") else 1000
    limit = rows_asked(venue, request, 500, most)
    now_us = market.now_us()
    end_ms = whole(request, "endTime")
    end_us = min(now_us, now_us if end_ms is None else end_ms * 1000) + 1
    begins_us, ends_us = market.lifetime(one.symbol)
    start_ms = whole(request, "startTime")
    if start_ms is None:
        # The newest ones.
        end_us = min(end_us, ends_us)
        start_us = end_us - 1 - limit * length_us
    else:
        start_us = max(start_ms * 1000, begins_us)
        end_us = min(end_us, start_us + (limit + 1) * length_us)
    bars = market.bars(one.symbol, interval, start_us, end_us, known_us=now_us, part=faults.open_bar)
    keep = slice(-limit, None) if start_ms is None else slice(limit)
    rows = [row(one, bars, index) for index in range(len(bars))[keep]]
    return Answer(rows, len(rows))


def _trade(one: Listing, trade: Trade) -> dict[str, Any]:
    return {
        "id": trade.id,
        "price": f"{trade.price:.{one.price_digits}f}",
        "qty": f"{trade.size:.{one.size_digits}f}",
        "quoteQty": f"{trade.price * trade.size:.8f}",
        "time": trade.time_us // 1000,
        "isBuyerMaker": not trade.buy,
        "isBestMatch": True,
    }


def _trades(venue: Inside, request: web.Request) -> Answer:
    one = listing(venue.market, request.query.get("symbol"))
    limit = rows_asked(venue, request, 500, 1000)
    now_us = venue.market.now_us()
    found = venue.market.trades(one.symbol, now_us - (limit + 1) * US, now_us + 1)[-limit:]
    return Answer([_trade(one, trade) for trade in found], len(found))


def _aggregate_trades(venue: Inside, request: web.Request) -> Answer:
    one = listing(venue.market, request.query.get("symbol"))
    limit = rows_asked(venue, request, 500, 1000)
    now_us = venue.market.now_us()
    start_ms, end_ms, first = whole(request, "startTime"), whole(request, "endTime"), whole(request, "fromId")
    end_us = now_us + 1 if end_ms is None else min(end_ms * 1000 + 1000, now_us + 1)
    if first is not None:
        start_us = first // 2 * US
    elif start_ms is not None:
        start_us = start_ms * 1000
    else:
        start_us = end_us - (limit + 1) * US
    if first is not None or start_ms is not None:
        start_us = max(start_us, venue.market.lifetime(one.symbol)[0])
        end_us = min(end_us, start_us + (limit + 2) * US)
    found = [trade for trade in venue.market.trades(one.symbol, start_us, end_us) if trade.id >= (first or 0)]
    found = found[:limit] if first is not None or start_ms is not None else found[-limit:]
    rows = [
        {
            "a": trade.id,
            "p": f"{trade.price:.{one.price_digits}f}",
            "q": f"{trade.size:.{one.size_digits}f}",
            "f": trade.id,
            "l": trade.id,
            "T": trade.time_us // 1000,
            "m": not trade.buy,
            "M": True,
        }
        for trade in found
    ]
    return Answer(rows, len(rows))


def _depth(venue: Inside, request: web.Request) -> Answer:
    one = listing(venue.market, request.query.get("symbol"))
    limit = min(max(whole(request, "limit", 100) or 100, 1), 20)
    now_us = venue.market.now_us()
    if venue.recording and (recorded := venue.recording.book(one.symbol.replace("/", ""), now_us)):
        return Answer(recorded, len(recorded["bids"]) + len(recorded["asks"]))
    book = venue.market.book(one.symbol, now_us // BOOK_US - 1)
    sides = {
        name: [[f"{price:.{one.price_digits}f}", f"{size:.{one.size_digits}f}"] for price, size in side[:limit]]
        for name, side in (("bids", book.bids), ("asks", book.asks))
    }
    times = {"E": _told_ms(venue), "T": now_us // 1000} if request.path.startswith("/fapi") else {}
    return Answer({"lastUpdateId": book.step, **times, **sides}, len(sides["bids"]) + len(sides["asks"]))


def _is_futures(path: str) -> bool:
    return bool({"fstream", "public", "market"} & set(path.split("/")))


def _routes() -> list[Route]:
    answers = {
        "ping": _ping,
        "time": _time,
        "exchangeInfo": _info,
        "klines": _klines,
        "trades": _trades,
        "aggTrades": _aggregate_trades,
        "depth": _depth,
    }
    found = [Route(f"{root}/{name}", name, one) for root in ("/api/v3", "/fapi/v1") for name, one in answers.items()]
    return [
        *found,
        Route("/dapi/v1/exchangeInfo", "exchangeInfo", _nothing),
        Route("/sapi/v1/system/status", "status", _status),
    ]


def _session(venue: Inside, connection: Connection) -> BinanceSession:
    request = connection.request
    names = [*re.split(r"[/]", request.query.get("streams", "")), *request.path.split("/")]
    return BinanceSession(
        connection,
        venue.recording,
        futures=_is_futures(request.path),
        combined=request.path.rstrip("/").endswith("/stream"),
        names=[name for name in names if "@" in name],
    )


BINANCE = Protocol(
    "binance",
    _routes(),
    [
        SocketRoute(path, _session)
        for path in ("/{before:(?:[a-z]+/)*}ws{after:(?:/.*)?}", "/{before:(?:[a-z]+/)*}stream")
    ],
    _error,
)
