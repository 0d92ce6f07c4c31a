"""massive's flat files, in a store that speaks as S3 does: https://massive.com/docs/flat-files/stocks/overview.

The bucket is `flatfiles`. The files of a day are there from the next one on, at 16:00 UTC; there are none of weekends
and of a few holidays. https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html.
"""

from __future__ import annotations

import gzip
import hashlib
import hmac
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from urllib.parse import quote
from xml.sax.saxutils import escape
from zoneinfo import ZoneInfo

from aiohttp import web

from tradeloop.common.market import from_us, to_us
from tradeloop.ingest.contracts.fake_venue.market import Market
from tradeloop.ingest.contracts.fake_venue.protocol import Answer, Inside, Protocol, Refused, Route, whole

_KINDS = {"minute_aggs_v1": "1m", "day_aggs_v1": "1d"}
_NEW_YORK = ZoneInfo("America/New_York")
_HOLIDAYS = {(1, 1), (6, 19), (7, 4), (12, 25)}
_NAMES = {
    "storm": "SlowDown",
    "broken": "InternalError",
    "credentials": "SignatureDoesNotMatch",
    "permission": "AccessDenied",
    "key": "NoSuchKey",
    "bucket": "NoSuchBucket",
}


def _error(refused: Refused) -> bytes:
    name = _NAMES.get(refused.why, "InvalidArgument")
    return f'<?xml version="1.0"?><Error><Code>{name}</Code><Message>{name}</Message></Error>'.encode()


def _allowed(request: web.Request, credentials: Mapping[str, str] | None) -> bool:
    """Whether a request bears the signature of one of the secrets, version 4, and a time of about now."""
    if credentials is None:
        return True
    kind, _, rest = request.headers.get("Authorization", "").partition(" ")
    told = dict(part.strip().partition("=")[::2] for part in rest.split(","))
    key, *scope = told.get("Credential", "").split("/")
    if kind != "AWS4-HMAC-SHA256" or key not in credentials or len(scope) != 4:
        return False
    names = told.get("SignedHeaders", "")
    listed = [f"{name}:{request.headers.get(name, '').strip()}" for name in names.split(";")]
    query = sorted(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in request.query.items())
    payload = request.headers.get("x-amz-content-sha256", "")
    canonical = [request.method, request.rel_url.raw_path, "&".join(query), *listed, "", names, payload]
    digest = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    secret = b"AWS4" + credentials[key].encode()
    for part in scope:
        secret = hmac.new(secret, part.encode(), hashlib.sha256).digest()
    text = "\n".join([kind, request.headers.get("x-amz-date", ""), "/".join(scope), digest])
    expected = hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
    return "host" in names.split(";") and hmac.compare_digest(expected, told.get("Signature", ""))


def trades_on(day: date) -> bool:
    """Whether there is a file of a day."""
    return day.weekday() < 5 and (day.month, day.day) not in _HOLIDAYS


def _days(market: Market) -> Iterator[date]:
    """The days whose files are there."""
    day = from_us(market.begins_us).date()
    while datetime.combine(day + timedelta(days=1), time(16), tzinfo=UTC) <= from_us(market.now_us()):
        if trades_on(day):
            yield day
        day += timedelta(days=1)


def _list(venue: Inside, request: web.Request) -> Answer:
    query = request.query
    prefix, after = query.get("prefix", ""), query.get("continuation-token", query.get("start-after", ""))
    most = max(min(whole(request, "max-keys", 1000) or 1000, 1000, venue.faults.page_limit or 1000), 1)
    keys = sorted(f"us_stocks_sip/{kind}/{day:%Y/%m/%Y-%m-%d}.csv.gz" for kind in _KINDS for day in _days(venue.market))
    keys = [key for key in keys if key.startswith(prefix) and key > after]
    here = keys[:most]
    more = f"<NextContinuationToken>{here[-1]}</NextContinuationToken>" if len(keys) > most else ""
    listed = "".join(f"<Contents><Key>{escape(key)}</Key></Contents>" for key in here)
    text = (
        '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{listed}{more}</ListBucketResult>"
    )
    return Answer(text.encode(), len(here), "application/xml")


def _file(venue: Inside, request: web.Request) -> Answer:
    kind, name = request.match_info["kind"], request.match_info["name"]
    market = venue.market
    day = next((one for one in _days(market) if name == f"{one:%Y/%m/%Y-%m-%d}.csv.gz"), None)
    if kind not in _KINDS or day is None:
        raise Refused(404, "key")
    start_us, end_us = (
        to_us(datetime.combine(one, time(), tzinfo=_NEW_YORK).astimezone(UTC)) for one in (day, day + timedelta(days=1))
    )
    lines = ["ticker,volume,open,close,high,low,window_start,transactions"]
    for listing in sorted(market.listings.values(), key=lambda one: one.symbol):
        if listing.crypto:
            continue
        if kind == "day_aggs_v1":
            bars = market.bar(listing.symbol, "1d", start_us, end_us)
        else:
            bars = market.bars(listing.symbol, "1m", start_us, end_us)
        lines += [
            f"{listing.symbol},{float(bars.volume[i]):.15g},{float(bars.open[i])!r},{float(bars.close[i])!r},"
            f"{float(bars.high[i])!r},{float(bars.low[i])!r},{int(bars.open_us[i]) * 1000},{int(bars.trades[i])}"
            for i in range(len(bars))
        ]
    return Answer(gzip.compress("\n".join([*lines, ""]).encode(), 1), len(lines) - 1, "application/gzip")


FLAT_FILES = Protocol(
    "flat files",
    [
        Route("/flatfiles", "file lists", _list),
        Route("/flatfiles/us_stocks_sip/{kind}/{name:.+}", "files", _file),
    ],
    [],
    _error,
    _allowed,
    {"storm": 503, "credentials": 403},
)
