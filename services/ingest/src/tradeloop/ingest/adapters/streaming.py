"""`ThreadedStream`: a live stream that a thread keeps connected, whatever library does the talking."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import stamina
import structlog

from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.common.market import to_us
from tradeloop.ingest.ports import Connected, Disconnected, Heartbeat, Malformed, MarketEvent

log = structlog.get_logger(__name__)

CAPACITY = 200_000
"""Events that wait to be polled at most: some 100 MB."""
HEARTBEAT_S = 5.0
PONG_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 30.0
_LIVED_S = 10.0
"""A connection that lived as long as this was a good one: the pauses begin small again."""
_SHOWN = 120
_END_S = 10.0


class ConnectionLost(Exception):
    """The connection ended; its message is the reason, in one line."""


class Session:
    """One connection, as it tells what it brings. It is used in the thread of the stream alone."""

    def __init__(self, stream: ThreadedStream, clock: Clock) -> None:
        self._stream, self._clock = stream, clock
        self.is_connected = False

    def now_us(self) -> int:
        """This machine's clock, for `received_us`."""
        return to_us(self._clock.now())

    def connected(self) -> None:
        """Say that the connection stands; only the first time counts."""
        if not self.is_connected:
            self.is_connected = True
            self._stream.put(Connected(self.now_us(), self._stream.only_closed))

    def heartbeat(self, venue_time_us: int | None = None) -> None:
        """Say that the connection lives."""
        self.connected()
        self._stream.put(Heartbeat(self.now_us(), venue_time_us))

    def malformed(self, frame: object, why: str) -> None:
        """Say that a frame could not be read."""
        self.connected()
        shown = frame.decode(errors="replace") if isinstance(frame, bytes) else str(frame)
        line = "".join(sign if sign.isprintable() else " " for sign in shown[:_SHOWN])
        self._stream.put(Malformed(self.now_us(), f"{why}: {line}"))

    def emit(self, event: MarketEvent) -> None:
        """Pass data on."""
        self.connected()
        self._stream.put(event)


Run = Callable[[Session], Awaitable[None]]
"""Connects, subscribes, and passes on what comes, until the connection ends: then it returns or raises.

A `UserError` that it raises is for good, and comes out of `poll`; anything else is a reason to connect again.
"""


class ThreadedStream:
    """A stream whose connection is kept by a thread with an event loop of its own.

    Events wait in a queue of bounded length. When it is full, the reader is too slow: the rest is counted and left out,
    the connection ends, `Disconnected` says so, and it begins again once the reader has caught up.
    """

    def __init__(
        self, venue: str, run: Run, clock: Clock, capacity: int = CAPACITY, *, only_closed: bool = False
    ) -> None:
        """`only_closed` is that of `Connected`."""
        self.only_closed = only_closed
        self._venue, self._run, self._clock, self._capacity = venue, run, clock, capacity
        self._events: deque[MarketEvent] = deque()
        self._ready = threading.Condition()
        self._dropped = 0
        self._error: UserError | None = None
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._session: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._work, name=f"stream of {venue}", daemon=True)
        self._thread.start()

    def poll(self, timeout_s: float) -> Sequence[MarketEvent]:
        with self._ready:
            self._ready.wait_for(lambda: self._events or self._error or self._closed, timeout_s)
            events, self._events = self._events, deque()
        if not events and self._error is not None:
            raise self._error
        return events

    def close(self) -> None:
        with self._ready:
            self._closed = True
            loop, main = self._loop, self._main
            self._ready.notify_all()
        if loop is not None and main is not None and not loop.is_closed():
            with contextlib.suppress(RuntimeError):  # it may just have ended by itself
                loop.call_soon_threadsafe(main.cancel)
        self._thread.join(_END_S)
        if self._thread.is_alive():
            log.warning("the thread of a stream does not end", venue=self._venue, waited_s=_END_S)

    def put(self, event: MarketEvent) -> None:
        """Take an event from the connection."""
        with self._ready:
            if len(self._events) < self._capacity:
                self._events.append(event)
                self._ready.notify_all()
                return
            self._dropped += 1
        if self._dropped == 1 and self._session is not None:
            self._session.cancel()

    def _work(self) -> None:
        try:
            asyncio.run(self._live())
        except asyncio.CancelledError:
            pass
        except UserError as error:
            with self._ready:
                self._error = error
                self._ready.notify_all()
        except Exception as error:  # whatever it is, the reader must learn of it
            log.exception("a stream ended", venue=self._venue)
            with self._ready:
                self._error = UserError(f"{self._venue}: the stream failed: {_line(error)}")
                self._ready.notify_all()

    async def _live(self) -> None:
        with self._ready:
            self._loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
        while not self._closed:
            pauses = stamina.retry_context(
                on=ConnectionLost,
                attempts=None,
                timeout=None,
                wait_initial=_FIRST_PAUSE_S,
                wait_max=_LONGEST_PAUSE_S,
                wait_jitter=_FIRST_PAUSE_S,
            )
            async for attempt in pauses:
                with attempt:
                    await self._connection()
            await asyncio.sleep(_FIRST_PAUSE_S)

    async def _connection(self) -> None:
        """One connection, from begin to end. Raises `ConnectionLost` unless it was a good one."""
        session, began_s = Session(self, self._clock), self._clock.monotonic()
        self._session = asyncio.ensure_future(self._run(session))
        try:
            await asyncio.wait([self._session])
        finally:
            self._session.cancel()
            # Its connections are closed before the loop ends, or the next one begins.
            await asyncio.wait([self._session])
        reason = self._reason(self._session)
        if self._dropped:
            reason = await self._caught_up()
        with self._ready:  # past the limit, too: without it nobody would know
            self._events.append(Disconnected(session.now_us(), reason))
            self._ready.notify_all()
        if not session.is_connected or self._clock.monotonic() - began_s < _LIVED_S:
            raise ConnectionLost(reason)

    def _reason(self, session: asyncio.Task[None]) -> str:
        if session.cancelled():
            return "too slow"
        error = session.exception()
        if isinstance(error, UserError):
            raise error
        return "the venue closed the connection" if error is None else _line(error)

    async def _caught_up(self) -> str:
        """Wait for the reader."""
        while self._events:
            await asyncio.sleep(0.01)
        dropped, self._dropped = self._dropped, 0
        return f"too slow: {self._capacity:,} events waited to be read, and {dropped:,} more were left out"


async def beat(socket: Callable[[], Any], session: Session) -> None:
    """Ask a socket for a sign of life again and again. Raises `ConnectionLost` when there is none."""
    while True:
        await asyncio.sleep(HEARTBEAT_S)
        if (open_socket := socket()) is None:
            continue
        pong = await open_socket.ping()
        try:
            await asyncio.wait_for(pong, PONG_S)
        except TimeoutError:
            raise ConnectionLost(f"no sign of life for {PONG_S:g} s") from None
        session.heartbeat()


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
