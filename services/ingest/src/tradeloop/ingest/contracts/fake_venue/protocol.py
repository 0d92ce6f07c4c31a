"""What a protocol of a fake venue consists of: routes, sockets, credentials and errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tradeloop.ingest.contracts.fake_venue.faults import Faults
from tradeloop.ingest.contracts.fake_venue.market import US, Market
from tradeloop.ingest.contracts.fake_venue.socket import Connection, Session


@dataclass(frozen=True, slots=True)
class Inside:
    """All that a venue is behind its port: what protocols translate."""

    market: Market
    faults: Faults
    credentials: Mapping[str, str] | None = None
    """The secrets by key of those who may come in; None lets everybody in."""
    served: Counter[str] = field(default_factory=Counter)

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
    """The JSON of an answer, and how many rows of data are in it."""

    body: Any
    rows: int = 0


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
    """The JSON of an error."""
    allowed: Callable[[web.Request, Mapping[str, str] | None], bool] = everybody
    """Whether the credentials of a request are among those that may come in."""


def whole(request: web.Request, name: str, default: int | None = None) -> int | None:
    """A query parameter that is a whole number. Raises `Refused`."""
    text = request.query.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise Refused(400, f"parameter {name}") from None
