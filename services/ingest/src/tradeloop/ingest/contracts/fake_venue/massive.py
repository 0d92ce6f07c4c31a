"""massive, formerly Polygon: https://massive.com/docs/rest. Stocks are `AAPL`, pairs of coins `X:BTCUSDT`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from tradeloop.ingest.contracts.fake_venue.market import TIMEFRAMES, US, Listing, Market, News
from tradeloop.ingest.contracts.fake_venue.massive_socket import MassiveSession
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

_SPANS = {"second": "s", "minute": "m", "hour": "h", "day": "d", "week": "w"}
_BASES = {"second": 1, "minute": 60, "hour": 60, "day": 86_400, "week": 86_400}
"""Seconds of the aggregates that each span is made of; the limit of a page counts these."""
_ERRORS = {
    "storm": "You've exceeded the maximum requests per minute, please wait or upgrade your subscription to continue.",
    "broken": "Internal server error.",
    "credentials": "Unknown API Key",
    "permission": "You are not entitled to this data. Please upgrade your plan.",
    "ticker": "Ticker not found.",
    "time": "Could not parse the time parameter.",
    "timeframe": "The multiplier or timespan is not supported.",
}


def ticker(one: Listing) -> str:
    """massive's name of a listing."""
    return f"X:{one.symbol.replace('/', '')}" if one.crypto else one.symbol


def _find(market: Market, name: str) -> Listing | None:
    return next((one for one in market.listings.values() if ticker(one) == name), None)


def _allowed(request: web.Request, credentials: Mapping[str, str] | None) -> bool:
    word = request.headers.get("Authorization", "").removeprefix("Bearer ") or request.query.get("apiKey", "")
    return credentials is None or word in credentials


def _error(refused: Refused) -> Any:
    text = _ERRORS.get(refused.why, f"The parameter {refused.why.removeprefix('parameter ')} is not valid.")
    status = {403: "NOT_AUTHORIZED", 404: "NOT_FOUND"}.get(refused.status, "ERROR")
    return {"status": status, "request_id": "fake", "message" if refused.status in {403, 404} else "error": text}


def _instant_us(text: str, *, end: bool = False) -> int:
    """A date, or milliseconds since the epoch."""
    return int(text) * 1000 + (999 if end else 0) if re.fullmatch(r"-?\d{5,}", text) else instant_us(text, end=end)


def _next(request: web.Request, path: str, **query: object) -> str:
    return f"http://{request.host}{path}?{urlencode(query)}"


def _oldest_first(request: web.Request) -> bool:
    return request.query.get("order", "desc") == "asc"


def _bounds(
    request: web.Request, field: str, parse: Callable[[str], int], start_us: int, end_us: int
) -> tuple[int, int]:
    """The first microsecond, and that after the last one, that a query asks for by `field.gte` and its like."""
    for name, text in request.query.items():
        if name in {f"{field}.gte", f"{field}.gt"}:
            start_us = parse(text) + (name == f"{field}.gt")
        elif name in {f"{field}.lt", f"{field}.lte"}:
            end_us = min(end_us, parse(text) + (name == f"{field}.lte"))
    return start_us, end_us


def _rest(request: web.Request, field: str, at: str, limit: int) -> dict[str, str]:
    """The address of the next page, which begins with the row of the time `at`, in the order that was asked for."""
    bound, other = (f"{field}.gte", f"{field}.gt") if _oldest_first(request) else (f"{field}.lte", f"{field}.lt")
    kept = {name: text for name, text in request.query.items() if name not in {bound, other}}
    return {"next_url": _next(request, request.path, **{**kept, bound: at, "cursor": "fake", "limit": limit})}


def _bars(venue: Inside, request: web.Request) -> Answer:
    where, now_us = request.match_info, venue.market.now_us()
    one = _find(venue.market, where["ticker"])
    span, many = where["span"], int(where["many"])
    timeframe = f"{many}{_SPANS.get(span, '?')}"
    if timeframe not in TIMEFRAMES:
        raise Refused(400, "timeframe")
    start_us, end_us = _instant_us(where["start"]), _instant_us(where["end"], end=True)
    length_us = TIMEFRAMES[timeframe] * US
    base = rows_asked(venue, request, 5000, 50_000)
    limit = max(base * _BASES[span] * US // length_us, 1)
    common = {"ticker": where["ticker"], "adjusted": request.query.get("adjusted", "true") == "true", "status": "OK"}
    nothing = {**common, "queryCount": 0, "resultsCount": 0, "request_id": "fake"}
    if one is None:
        return Answer(nothing)
    first, last = max(start_us, venue.market.lifetime(one.symbol)[0]), min(end_us, now_us) + 1
    newest_first = request.query.get("sort") == "desc"
    if newest_first:
        first = max(first, last - (limit + 1) * length_us)
    else:
        last = min(last, first + (limit + 1) * length_us)
    part = venue.faults.open_bar
    bars = venue.market.bars(one.symbol, timeframe, first, last, known_us=now_us, part=part)
    rows = [
        {
            **{"v": float(bars.volume[i]), "vw": round(float(bars.quote_volume[i] / bars.volume[i]), 4)},
            **{"o": float(bars.open[i]), "c": float(bars.close[i]), "h": float(bars.high[i]), "l": float(bars.low[i])},
            **{"t": int(bars.open_us[i]) // 1000, "n": int(bars.trades[i])},
        }
        for i in range(len(bars))
    ]
    more = {}
    if newest_first:
        rows = rows[::-1][:limit]
    else:
        rows = rows[:limit]
        if rows and rows[-1]["t"] * 1000 + length_us < min(end_us + 1, now_us // length_us * length_us + part):
            begin = rows[-1]["t"] + length_us // 1000
            path = f"/v2/aggs/ticker/{where['ticker']}/range/{many}/{span}/{begin}/{where['end']}"
            more = {"next_url": _next(request, path, cursor="fake", limit=base, sort="asc")}
    if not rows:
        return Answer(nothing)
    counts = {"queryCount": len(rows), "resultsCount": len(rows), "count": len(rows), "request_id": "fake"}
    return Answer({**common, **counts, "results": rows, **more}, len(rows))


def _trades(venue: Inside, request: web.Request) -> Answer:
    one = _find(venue.market, request.match_info["ticker"])
    if one is None:
        return Answer({"results": [], "status": "OK", "request_id": "fake"})
    now_us = venue.market.now_us()
    limit = rows_asked(venue, request, 1000, 50_000)
    begins_us = venue.market.lifetime(one.symbol)[0]
    first, last = _bounds(request, "timestamp", _nanoseconds, begins_us, now_us + 1)
    first = max(first, begins_us)
    if _oldest_first(request):
        found = venue.market.trades(one.symbol, first, min(last, first + (limit + 2) * US))
    else:
        found = venue.market.trades(one.symbol, max(first, last - (limit + 2) * US), last)[::-1]
    rows = [
        {
            **{"conditions": [], "exchange": 4, "id": str(each.id), "participant_timestamp": each.time_us * 1000},
            **{"price": each.price, "sequence_number": each.id, "sip_timestamp": each.time_us * 1000},
            **{"size": each.size, "tape": 3},
        }
        for each in found[:limit]
    ]
    more = {}
    if len(found) > limit:
        more = _rest(request, "timestamp", str(found[limit].time_us * 1000), limit)
    return Answer({"results": rows, "status": "OK", "request_id": "fake", **more}, len(rows))


def _nanoseconds(text: str) -> int:
    """Microseconds of a time that is given in nanoseconds or as a date."""
    return int(text) // 1000 if text.isdigit() else instant_us(text)


def _ticker(market: Market, one: Listing) -> dict[str, Any]:
    begins_us, ends_us = market.lifetime(one.symbol)
    active = market.trades_now(one.symbol)
    base, _, quote = one.symbol.partition("/")
    kind = {"base_currency_symbol": base, "currency_symbol": quote} if one.crypto else {"primary_exchange": "XNAS"}
    return {
        "ticker": ticker(one),
        "name": f"{one.symbol} of the fake venue",
        "market": "crypto" if one.crypto else "stocks",
        "locale": "global" if one.crypto else "us",
        "active": active,
        "currency_name": quote.lower() or "usd",
        **kind,
        **({} if one.crypto else {"type": "CS"}),
        **({} if active or market.now_us() < begins_us else {"delisted_utc": rfc3339(ends_us)}),
    }


def _tickers(venue: Inside, request: web.Request) -> Answer:
    query = request.query
    active = query.get("active", "true") == "true"
    every = sorted(
        (_ticker(venue.market, one) for one in venue.market.listings.values()), key=lambda one: one["ticker"]
    )
    rows = [
        one
        for one in every
        if one["active"] == active
        and query.get("market") in {None, one["market"]}
        and query.get("ticker") in {None, one["ticker"]}
        and one["ticker"] > query.get("cursor", "")
    ]
    limit = rows_asked(venue, request, 100, 1000)
    more = {}
    if len(rows) > limit:
        rows = rows[:limit]
        asked = {**query, "limit": limit, "cursor": rows[-1]["ticker"]}
        more = {"next_url": _next(request, request.path, **asked)}
    return Answer({"results": rows, "status": "OK", "request_id": "fake", "count": len(rows), **more}, len(rows))


def _one_ticker(venue: Inside, request: web.Request) -> Answer:
    one = _find(venue.market, request.match_info["ticker"])
    if one is None:
        raise Refused(404, "ticker")
    return Answer({"results": _ticker(venue.market, one), "status": "OK", "request_id": "fake"}, 1)


def _status(venue: Inside, request: web.Request) -> Answer:
    return Answer({"market": "open", "serverTime": rfc3339(venue.told_us()), "afterHours": False, "earlyHours": False})


def _piece(market: Market, one: News) -> dict[str, Any]:
    name = ticker(market.listings[one.symbol])
    mood = "negative" if one.sentiment < -0.3 else "positive" if one.sentiment > 0.3 else "neutral"
    return {
        "id": f"{one.id}-{name}",
        "publisher": {"name": "fake"},
        "title": one.headline,
        "author": "Chance",
        "published_utc": rfc3339(one.time_us),
        "article_url": "",
        "tickers": [name],
        "description": "",
        "insights": [{"ticker": name, "sentiment": mood, "sentiment_reasoning": f"chance says {one.sentiment}"}],
    }


def _news(venue: Inside, request: web.Request) -> Answer:
    now_us = venue.market.now_us()
    wanted = [one for one in venue.market.listings.values() if request.query.get("ticker") in {None, ticker(one)}]
    limit = rows_asked(venue, request, 10, 1000)
    first, last = _bounds(request, "published_utc", instant_us, now_us - 30 * 86_400 * US, now_us + 1)
    every = [piece for one in wanted for piece in venue.market.news(one.symbol, first, last)]
    every.sort(key=lambda piece: (piece.time_us, piece.symbol), reverse=not _oldest_first(request))
    more = {}
    if len(every) > limit:
        more = _rest(request, "published_utc", rfc3339(every[limit].time_us), limit)
    rows = [_piece(venue.market, piece) for piece in every[:limit]]
    return Answer({"results": rows, "status": "OK", "request_id": "fake", "count": len(rows), **more}, len(rows))


def _session(venue: Inside, connection: Connection) -> MassiveSession:
    return MassiveSession(connection, venue.credentials, crowded=venue.crowded)


MASSIVE = Protocol(
    "massive",
    [
        Route("/v2/aggs/ticker/{ticker}/range/{many:[0-9]+}/{span}/{start}/{end}", "bars", _bars),
        Route("/v3/trades/{ticker}", "trades", _trades),
        Route("/v3/reference/tickers", "tickers", _tickers),
        Route("/v3/reference/tickers/{ticker}", "tickers", _one_ticker),
        Route("/v2/reference/news", "news", _news),
        Route("/v1/marketstatus/now", "time", _status),
    ],
    [SocketRoute("/{market:stocks|crypto}", _session)],
    _error,
    _allowed,
)
