"""The WebSocket side of a fake venue: one connection, its faults, and the protocol's session on it."""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from aiohttp import WSMessage, WSMsgType, web

from tradeloop.ingest.contracts.fake_venue.faults import Faults
from tradeloop.ingest.contracts.fake_venue.market import Market

Body = str | bytes
MOST = 600
"""Updates of one stream in one go: when a clock jumps, a venue does not say all that it would have said."""


@dataclass(frozen=True, slots=True)
class Event:
    """A frame that is due at a time of the venue."""

    time_us: int
    kind: str
    body: Body
    heartbeat: bool = False
    """Whether it is no data, and goes on while these are missing."""


class Session(Protocol):
    """The behaviour of a protocol on one connection."""

    async def begin(self) -> None:
        """Greet."""
        ...

    async def hear(self, said: Body) -> None:
        """Answer a frame of the client."""
        ...

    def events(self, start_us: int, end_us: int) -> Sequence[Event]:
        """The frames of all subscriptions that are due in `(start_us, end_us]`."""
        ...


class Connection:
    """A socket to one client: sends what is due, with the faults that there are."""

    def __init__(
        self, market: Market, faults: Faults, served: Counter[str], socket: web.WebSocketResponse, request: web.Request
    ) -> None:
        self.market = market
        self.faults = faults
        self.served = served
        self.request = request
        self._socket = socket
        self._held: Event | None = None
        self._turn = asyncio.Lock()
        self._seen_us = market.now_us()

    @property
    def closed(self) -> bool:
        return self._socket.closed or self.request.transport is None or self.request.transport.is_closing()

    async def say(self, body: Body) -> None:
        """Send an answer, which no fault of frames meets: only those of the whole connection."""
        if self.faults.deaf or self.closed:
            return
        await (self._socket.send_str(body) if isinstance(body, str) else self._socket.send_bytes(body))

    async def pump(self, session: Session) -> None:
        """Send all frames that are due by now."""
        async with self._turn:
            now_us = self.market.now_us()
            if now_us <= self._seen_us or self.closed:
                return
            for event in sorted(session.events(self._seen_us, now_us), key=lambda event: event.time_us):
                await self.push(event)
            self._seen_us = now_us

    async def push(self, event: Event) -> None:
        """Send a frame, unless a fault has it otherwise; all of it is counted."""
        faults, served = self.faults, self.served
        if self.closed:
            return
        if event.heartbeat:
            await self.say(event.body)
            served[event.kind] += 1
            return
        if faults.stalled or faults.happens(faults.missing):
            served["lost frames"] += 1
            served[f"lost {event.kind}"] += 1
            return
        if faults.happens(faults.disconnects):
            await self.cut(event.body)
            return
        if self._held is None and faults.happens(faults.reordered):
            self._held = event
            return
        await self._send(event)
        if self._held is not None:
            late, self._held = self._held, None
            served["reordered frames"] += 1
            await self._send(late)

    async def _send(self, event: Event) -> None:
        body = event.body
        if self.faults.happens(self.faults.malformed):
            self.served["malformed frames"] += 1
            body = body[: len(body) // 2]
        for again in (False, True):
            if again and not self.faults.happens(self.faults.repeated):
                return
            self.served["repeated frames"] += again
            self.served["frames"] += 1
            self.served[event.kind] += 1
            await self.say(body)

    async def cut(self, body: Body | None = None) -> None:
        """Break the connection without a farewell, in the middle of a frame if one is given."""
        transport = self.request.transport
        if transport is None:
            return
        self.served["disconnects"] += 1
        if body is not None:
            data = body.encode() if isinstance(body, str) else body
            kind = 0x81 if isinstance(body, str) else 0x82
            if len(data) < 126:
                head = struct.pack("!BB", kind, len(data))
            else:
                head = struct.pack("!BBH", kind, 126, min(len(data), 0xFFFF))
            self.served["frames cut in their middle"] += 1
            transport.write(head + data[: len(data) // 2])
        transport.close()

    async def close(self) -> None:
        """End the connection as a server does."""
        await self._socket.close()

    async def serve(self, session: Session, tick_s: float, ping_s: float) -> None:
        """Hear and pump until the client leaves."""
        beat = asyncio.ensure_future(self._beat(session, tick_s, ping_s))
        try:
            await session.begin()
            while not self.closed:
                message: WSMessage = await self._socket.receive()
                if message.type in {WSMsgType.TEXT, WSMsgType.BINARY}:
                    await session.hear(message.data)
                elif message.type is WSMsgType.PING:
                    if not self.faults.deaf:
                        self.served["pongs"] += 1
                        await self._socket.pong(message.data)
                elif message.type is not WSMsgType.PONG:
                    break
        except ConnectionError:
            pass  # The client has gone, or was cut off.
        finally:
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)

    async def _beat(self, session: Session, tick_s: float, ping_s: float) -> None:
        loop = asyncio.get_running_loop()
        pinged = loop.time()
        try:
            while not self.closed:
                await self.pump(session)
                if loop.time() - pinged >= ping_s and not self.faults.deaf:
                    pinged = loop.time()
                    self.served["pings"] += 1
                    await self._socket.ping()
                await asyncio.sleep(tick_s)
        except ConnectionError:
            pass


def beats(start_us: int, end_us: int, every_us: int, closes_us: int) -> Iterator[int]:
    """Multiples of `every_us` in `(start_us, end_us]`; of a long time, those of `closes_us` and the last alone."""
    if (end_us - start_us) // every_us > MOST:
        yield from range((start_us // closes_us + 1) * closes_us, end_us + 1, closes_us)
        last = end_us // every_us * every_us
        if last % closes_us and last > start_us:
            yield last
    else:
        yield from range((start_us // every_us + 1) * every_us, end_us + 1, every_us)


def changes(old: Iterable[tuple[float, float]], new: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The levels that make one side of a book into the next: those that have another size, and 0 for those that end."""
    before, after = dict(old), dict(new)
    gone = [(price, 0.0) for price in before if price not in after]
    return [*gone, *((price, size) for price, size in after.items() if before.get(price) != size)]
