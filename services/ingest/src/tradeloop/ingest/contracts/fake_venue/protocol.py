"""The parts of a protocol of a fake venue: routes, sockets, credentials and errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tradeloop.common.market import from_us, to_us
from tradeloop.ingest.contracts.fake_venue.faults import Faults
from tradeloop.ingest.contracts.fake_venue.market import US, Market
from tradeloop.ingest.contracts.fake_venue.recorded import Recording
from tradeloop.ingest.contracts.fake_venue.socket import Connection, Session


@dataclass(frozen=True, slots=True)
class Inside:
    """All that a venue is behind its port: what protocols translate."""

    market: Market
    faults: Faults
    credentials: Mapping[str, str] | None = None
    """The secrets by key of those who may come in; None lets everybody in."""
    recording: Recording | None = None
    """Frames of Binance that are served in place of what the market would say."""
    served: Counter[str] = field(default_factory=Counter)
    connections: dict[Connection, Session] = field(default_factory=dict)
    """The sockets that are open."""

    @property
    def crowded(self) -> bool:
        """Whether as many sockets are open as may be."""
        return self.faults.connection_limit is not None and len(self.connections) >= self.faults.connection_limit

    def told_us(self) -> int:
        """The time that the venue tells, in microseconds since the epoch."""
        return self.market.now_us() + round(self.faults.clock_ahead_s * US)


class Refused(Exception):
    """A request that is answered with an error: its HTTP status, and why, in the words of `Protocol.error`."""

    def __init__(self, status: int, why: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{status} {why}")
        self.status = status
        self.why = why
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Answer:
    """The JSON of an answer, or its bytes, and how many rows of data are in it."""

    body: Any
    rows: int = 0
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Route:
    """A path that is asked with GET. `kind` is its name in `FakeVenue.served`."""

    path: str
    kind: str
    answer: Callable[[Inside, web.Request], Answer]


@dataclass(frozen=True, slots=True)
class SocketRoute:
    """A path that speaks WebSocket."""

    path: str
    session: Callable[[Inside, Connection], Session]


def everybody(request: web.Request, credentials: Mapping[str, str] | None) -> bool:
    """Market data that need no credentials."""
    return True


@dataclass(frozen=True, slots=True)
class Protocol:
    """One kind of venue."""

    name: str
    routes: Sequence[Route]
    sockets: Sequence[SocketRoute]
    error: Callable[[Refused], Any]
    """The JSON of an error, or its bytes in XML."""
    allowed: Callable[[web.Request, Mapping[str, str] | None], bool] = everybody
    """Whether the credentials of a request are among those that may come in."""
    statuses: Mapping[str, int] = field(default_factory=dict)
    """The status of an error by why, where it is another than of most venues."""


def rfc3339(time_us: int) -> str:
    """A time in microseconds as APIs write it: `2024-01-01T00:00:00.5Z`."""
    return from_us(time_us).isoformat().replace("+00:00", "Z")


def instant_us(text: str, *, end: bool = False) -> int:
    """Microseconds of an RFC 3339 time, or of a date: its first one, or its last one. Raises `Refused`."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise Refused(400, "time") from None
    time_us = to_us(time if time.tzinfo else time.replace(tzinfo=UTC))
    return time_us + (86_400 * US - 1 if end and len(text) == 10 else 0)


def whole(request: web.Request, name: str, default: int | None = None) -> int | None:
    """A query parameter that is a whole number. Raises `Refused`."""
    text = request.query.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise Refused(400, f"parameter {name}") from None


def rows_asked(venue: Inside, request: web.Request, default: int, most: int) -> int:
    """The rows that a page has at most: as many as `limit` asks for, and as the protocol and the faults allow."""
    return max(min(whole(request, "limit", default) or default, most, venue.faults.page_limit or most), 1)
