"""Alpaca's market data and assets, for stocks and crypto: https://docs.alpaca.markets/reference/stockbars.

Stocks are under `/v2/stocks`, crypto under `/v1beta3/crypto`, news under `/v1beta1/news`, instruments and the clock,
which belong to the trading API, under `/v2`.
"""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from tradeloop.ingest.contracts.fake_venue.alpaca_socket import AlpacaSession, bar, news, trade
from tradeloop.ingest.contracts.fake_venue.market import BOOK_US, TIMEFRAMES, US, Listing, Market
from tradeloop.ingest.contracts.fake_venue.protocol import (
    Answer,
    Inside,
    Protocol,
    Refused,
    Route,
    SocketRoute,
    instant_us,
    rfc3339,
    rows_asked,
)
from tradeloop.ingest.contracts.fake_venue.socket import Connection

_UNITS = {"Min": "m", "T": "m", "Hour": "h", "H": "h", "Day": "d", "D": "d", "Week": "w", "W": "w"}
_ERRORS = {
    "storm": (42910000, "too many requests."),
    "broken": (50010000, "internal server error occurred"),
    "credentials": (40110000, "unauthorized."),
    "permission": (40310000, "subscription does not permit querying recent SIP data"),
    "timeframe": (40010001, "invalid timeframe"),
    "time": (40010001, "Invalid format for parameter start: error parsing"),
    "page_token": (40010001, "invalid page_token"),
    "symbols": (40010001, "symbols is required"),
    "asset": (40410000, "asset not found"),
}


def _allowed(request: web.Request, credentials: Mapping[str, str] | None) -> bool:
    if credentials is None:
        return True
    key, secret = request.headers.get("APCA-API-KEY-ID"), request.headers.get("APCA-API-SECRET-KEY")
    if (words := request.headers.get("Authorization", "").split(" ", 1))[0] == "Basic":
        key, _, secret = base64.b64decode(words[1]).decode().partition(":")
    return key is not None and credentials.get(key) == secret


def _error(refused: Refused) -> Any:
    code, text = _ERRORS.get(refused.why, (40010001, f"invalid {refused.why}"))
    return {"code": code, "message": text}


def _crypto(request: web.Request) -> bool:
    return request.path.startswith("/v1beta3/crypto")


def _wanted(venue: Inside, request: web.Request) -> list[Listing]:
    """The listings that are asked for; Alpaca leaves out those that it does not have."""
    names = [name for name in request.query.get("symbols", "").split(",") if name]
    if not names:
        raise Refused(400, "symbols")
    found = [venue.market.listings.get(name) for name in sorted(set(names))]
    return [one for one in found if one is not None and one.crypto == _crypto(request)]


def _timeframe(text: str) -> str:
    match = re.fullmatch(r"(\d+)(\w+)", text)
    timeframe = match and f"{match[1]}{_UNITS.get(match[2], '?')}"
    if timeframe not in TIMEFRAMES:
        raise Refused(400, "timeframe")
    return timeframe


def _range(venue: Inside, request: web.Request) -> tuple[int, int]:
    """The first and the last microsecond that are asked for; from the beginning of the day if none is given."""
    now_us = venue.market.now_us()
    start, end = request.query.get("start"), request.query.get("end")
    return (
        instant_us(start) if start else now_us // (86_400 * US) * 86_400 * US,
        min(instant_us(end, end=True), now_us) if end else now_us,
    )


def _token(symbol: str, next_us: int) -> str:
    return base64.urlsafe_b64encode(f"{symbol}|{next_us}".encode()).decode()


def _begun(request: web.Request) -> tuple[str, int]:
    """The symbol and the time at which a page begins."""
    text = request.query.get("page_token")
    if not text:
        return "", 0
    try:
        symbol, _, next_us = base64.urlsafe_b64decode(text).decode().partition("|")
        return symbol, int(next_us)
    except ValueError:
        raise Refused(400, "page_token") from None


def _bars(venue: Inside, request: web.Request) -> Answer:
    timeframe = _timeframe(request.query.get("timeframe", ""))
    length_us = TIMEFRAMES[timeframe] * US
    # The minute that runs is not there; longer bars grow in history.
    part = venue.faults.open_bar and length_us > 60 * US

    def read(one: Listing, start_us: int, end_us: int) -> list[_Row]:
        now_us = venue.market.now_us()
        bars = venue.market.bars(one.symbol, timeframe, start_us, end_us, known_us=now_us, part=part)
        return [(int(bars.open_us[i]), bar(bars, i)) for i in range(len(bars))]

    return _page(venue, request, "bars", length_us, read)


def _trades(venue: Inside, request: web.Request) -> Answer:
    def read(one: Listing, start_us: int, end_us: int) -> list[_Row]:
        return [(each.time_us, trade(one, each)) for each in venue.market.trades(one.symbol, start_us, end_us)]

    return _page(venue, request, "trades", US, read)


_Row = tuple[int, dict[str, Any]]
"""The time of a row, and the rest of it."""


def _page(
    venue: Inside, request: web.Request, kind: str, every_us: int, read: Callable[[Listing, int, int], list[_Row]]
) -> Answer:
    """A page of the rows of all symbols, one symbol after the other. `read` gives those of one in `[start, end)`; about
    one comes `every_us`, so that no more is read than the page can hold."""
    start_us, end_us = _range(venue, request)
    limit, token = rows_asked(venue, request, 10_000, 10_000), None
    begun, next_us = _begun(request)
    found: dict[str, list[dict[str, Any]]] = {}
    left = limit
    for one in _wanted(venue, request):
        if one.symbol < begun:
            continue
        begins_us, ends_us = venue.market.lifetime(one.symbol)
        first, end = max(start_us, begins_us, next_us if one.symbol == begun else 0), min(end_us + 1, ends_us)
        if left == 0:
            token = _token(one.symbol, first)
            break
        until = min(end, first + (left + 2) * every_us)
        rows = read(one, first, until)
        if rows:
            found[one.symbol] = [{"t": rfc3339(time_us), **row} for time_us, row in rows[:left]]
        if len(rows) > left or until < end:
            token = _token(one.symbol, rows[left][0] if len(rows) > left else until)
            left -= min(len(rows), left)
            break
        left -= len(rows)
    return Answer({kind: found, "next_page_token": token}, limit - left)


def _latest(venue: Inside, request: web.Request) -> Answer:
    """The newest bar, trade, quote or order book of each symbol."""
    now_us, kind = venue.market.now_us(), next(kind for kind in _LATEST if kind in request.path.split("/"))
    found: dict[str, Any] = {}
    for one in _wanted(venue, request):
        begins_us, ends_us = venue.market.lifetime(one.symbol)
        until_us = min(now_us, ends_us)
        if until_us <= begins_us + 60 * US:
            continue
        if kind == "bars":
            bars = venue.market.bars(one.symbol, "1m", until_us - 120 * US, until_us, known_us=now_us)
            found[one.symbol] = {"t": rfc3339(int(bars.open_us[-1])), **bar(bars, -1)}
        elif kind == "trades":
            last = venue.market.trades(one.symbol, until_us - 2 * US, until_us)[-1]
            found[one.symbol] = {"t": rfc3339(last.time_us), **trade(one, last)}
        else:
            book = venue.market.book(one.symbol, until_us // BOOK_US - 1)
            sides = {"b": book.bids, "a": book.asks}
            levels = {side: [{"p": price, "s": size} for price, size in levels] for side, levels in sides.items()}
            found[one.symbol] = {"t": rfc3339(until_us // BOOK_US * BOOK_US), **levels}
    return Answer({kind: found}, len(found))


_LATEST = ("bars", "trades", "orderbooks")


def _news(venue: Inside, request: web.Request) -> Answer:
    start_us, end_us = _range(venue, request)
    names = [name for name in request.query.get("symbols", "").split(",") if name] or list(venue.market.listings)
    _, begun_us = _begun(request)
    listed = (name for name in names if name in venue.market.listings)
    every = [one for name in listed for one in venue.market.news(name, max(start_us, begun_us), end_us + 1)]
    every.sort(key=lambda one: (one.time_us, one.symbol))
    limit = rows_asked(venue, request, 50, 50)
    token = _token("", every[limit].time_us) if len(every) > limit else None
    rows = []
    for one in every[:limit]:
        time = rfc3339(one.time_us)
        rows.append({**news(one), "created_at": time, "updated_at": time, "images": []})
    return Answer({"news": rows, "next_page_token": token}, len(rows))


def _clock(venue: Inside, request: web.Request) -> Answer:
    told_us = venue.told_us()
    later = rfc3339(told_us + 3600 * US)
    return Answer({"timestamp": rfc3339(told_us), "is_open": True, "next_open": later, "next_close": later})


def _asset(market: Market, one: Listing) -> dict[str, Any]:
    active = market.trades_now(one.symbol)
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, one.symbol)),
        "class": "crypto" if one.crypto else "us_equity",
        "exchange": "CRYPTO" if one.crypto else "NASDAQ",
        "symbol": one.symbol,
        "name": f"{one.symbol} of the fake venue",
        "status": "active" if active else "inactive",
        "tradable": active,
        "marginable": not one.crypto,
        "shortable": not one.crypto,
        "easy_to_borrow": not one.crypto,
        "fractionable": True,
        "min_order_size": f"{10.0**-one.size_digits:.{one.size_digits}f}",
        "min_trade_increment": f"{10.0**-one.size_digits:.{one.size_digits}f}",
        "price_increment": f"{10.0**-one.price_digits:.{one.price_digits}f}",
    }


def _assets(venue: Inside, request: web.Request) -> Answer:
    kind, status = request.query.get("asset_class", "us_equity"), request.query.get("status")
    every = [_asset(venue.market, one) for one in venue.market.listings.values()]
    rows = [one for one in every if one["class"] == kind and status in {None, one["status"]}]
    return Answer(rows, len(rows))


def _one_asset(venue: Inside, request: web.Request) -> Answer:
    one = venue.market.listings.get(request.match_info["symbol"])
    if one is None:
        raise Refused(404, "asset")
    return Answer(_asset(venue.market, one), 1)


def _session(venue: Inside, connection: Connection) -> AlpacaSession:
    return AlpacaSession(connection, venue.credentials, crowded=venue.crowded)


ALPACA = Protocol(
    "alpaca",
    [
        *(Route(f"{root}/bars", "bars", _bars) for root in ("/v2/stocks", "/v1beta3/crypto/{place}")),
        *(Route(f"{root}/trades", "trades", _trades) for root in ("/v2/stocks", "/v1beta3/crypto/{place}")),
        *(Route(f"/v2/stocks/{kind}/latest", f"latest {kind}", _latest) for kind in ("bars", "trades")),
        *(Route(f"/v1beta3/crypto/{{place}}/latest/{kind}", f"latest {kind}", _latest) for kind in _LATEST),
        Route("/v1beta1/news", "news", _news),
        Route("/v2/clock", "time", _clock),
        Route("/v2/assets", "assets", _assets),
        Route("/v2/assets/{symbol:.+}", "assets", _one_asset),
    ],
    [
        SocketRoute("/v2/{feed:iex|sip|delayed_sip|test}", _session),
        SocketRoute("/v1beta3/crypto/{place}", _session),
        SocketRoute("/v1beta1/news", _session),
    ],
    _error,
    _allowed,
)
