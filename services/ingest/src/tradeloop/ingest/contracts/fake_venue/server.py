"""The fake venue as a server: one port for HTTP and WebSocket."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import fields
from email.utils import format_datetime
from typing import Any

from aiohttp import web

from tradeloop.common.market import from_us
from tradeloop.ingest.contracts.fake_venue import alpaca, binance, flat_files, kraken, massive
from tradeloop.ingest.contracts.fake_venue.faults import Faults
from tradeloop.ingest.contracts.fake_venue.market import Market
from tradeloop.ingest.contracts.fake_venue.protocol import Inside, Protocol, Refused, Route, SocketRoute
from tradeloop.ingest.contracts.fake_venue.recorded import Recording
from tradeloop.ingest.contracts.fake_venue.socket import Connection
from tradeloop.ingest.contracts.fake_venue.threaded import ThreadedServer

PROTOCOLS: Sequence[Protocol] = (binance.BINANCE, alpaca.ALPACA, massive.MASSIVE, kraken.KRAKEN, flat_files.FLAT_FILES)
_PATIENCE_S = 30.0


class FakeVenue(ThreadedServer):
    """A venue on this machine that speaks as real ones do: `with FakeVenue(Market()) as venue: ... venue.url`.

    `credentials` are the secrets by key of those who may come in; None lets everybody in. A `recording` of Binance
    begins to play with the venue, in place of the market's streams of the same names. `served` counts everything that
    was asked, sent, lost and refused.
    """

    def __init__(
        self,
        market: Market | None = None,
        *,
        faults: Faults | None = None,
        credentials: Mapping[str, str] | None = None,
        recording: Recording | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        tick_s: float = 0.02,
        ping_s: float = 20.0,
    ) -> None:
        self._inside = Inside(market or Market(), faults or Faults(), credentials, recording)
        self.host = host
        self.port = port
        self._tick_s = tick_s
        self._ping_s = ping_s

    @property
    def market(self) -> Market:
        return self._inside.market

    @property
    def faults(self) -> Faults:
        return self._inside.faults

    @property
    def served(self) -> Counter[str]:
        return self._inside.served

    @property
    def url(self) -> str:
        """Base address of its HTTP side, without a slash at the end; `ws://` and the same is that of its sockets."""
        return f"http://{self.address}"

    @property
    def ws_url(self) -> str:
        return f"ws://{self.address}"

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"

    @property
    def connections(self) -> int:
        """Sockets that are open."""
        return len(self._inside.connections)

    async def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until it is cancelled, or the block ends."""
        if self._inside.recording is not None:
            self._inside.recording.play_from(self.market.now_us())
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.faults._disconnect.append(self._disconnect)
        runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self.host, self.port, reuse_address=True)
            await site.start()
            self.port = runner.addresses[0][1]
            ready()
            await self._stop.wait()
        finally:
            self.faults._disconnect.remove(self._disconnect)
            for connection in list(self._inside.connections):
                await connection.cut()
            await runner.cleanup()

    def advance(self, seconds: float) -> None:
        """Move the venue's clock, and come back when all sockets have been sent what became due."""
        assert self._loop is not None, "a venue's clock is advanced while it serves"
        self.market.clock.advance(seconds)
        asyncio.run_coroutine_threadsafe(self._pump(), self._loop).result(_PATIENCE_S)

    async def _pump(self) -> None:
        for connection, session in list(self._inside.connections.items()):
            try:
                await connection.pump(session)
            except ConnectionError:
                continue  # Whoever has gone gets nothing.

    def _disconnect(self, mid_frame: bool) -> None:
        async def cut() -> None:
            for connection in list(self._inside.connections):
                await connection.cut('{"e":"cut in the middle of its text"}' if mid_frame else None)

        if self._loop is not None and self._loop.is_running():
            asyncio.run_coroutine_threadsafe(cut(), self._loop).result(_PATIENCE_S)

    def _application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/_control", self._tell)
        app.router.add_post("/_control", self._control)
        for protocol in PROTOCOLS:
            answers = {route.path: self._answers(protocol, route) for route in protocol.routes}
            for socket in protocol.sockets:
                talk = self._talks(protocol, socket)
                app.router.add_get(socket.path, _either(talk, answers.pop(socket.path, None)))
            for path, answer in answers.items():
                app.router.add_get(path, answer)
        return app

    def _answers(self, protocol: Protocol, route: Route) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            self.served["requests"] += 1
            self.served[route.kind] += 1
            if self.faults.slow_s:
                await asyncio.sleep(self.faults.slow_s)
            try:
                self._admit(protocol.allowed(request, self._inside.credentials))
                found = await asyncio.to_thread(route.answer, self._inside, request)
            except Refused as refused:
                return self._refuse(protocol, refused)
            self.served["rows"] += found.rows
            self.served[f"{route.kind} rows"] += found.rows
            body = found.body
            if not isinstance(body, bytes):
                body = json.dumps(body, separators=(",", ":")).encode()
            if self.faults.happens(self.faults.garbled_answers):
                self.served["garbled answers"] += 1
                body = body[: len(body) // 2]
            headers = {"Date": format_datetime(from_us(self._inside.told_us()), usegmt=True)}
            return web.Response(body=body, content_type=found.content_type, headers=headers)

        return answer

    def _admit(self, allowed: bool) -> None:
        """Raise `Refused` for a request that a fault meets, or whose credentials are wrong."""
        if refusal := self.faults.refusal():
            status, wait_s = refusal
            raise Refused(status, "storm" if status in {418, 429} else "broken", wait_s)
        if not allowed:
            raise Refused(401, "credentials")
        if self.faults.denied:
            raise Refused(403, "permission")

    def _refuse(self, protocol: Protocol, refused: Refused) -> web.Response:
        status = protocol.statuses.get(refused.why, refused.status)
        self.served[f"status {status}"] += 1
        headers = {} if refused.retry_after_s is None else {"Retry-After": f"{-(-refused.retry_after_s // 1):.0f}"}
        error = protocol.error(refused)
        if isinstance(error, bytes) and refused.status != 503:
            return web.Response(body=error, status=status, headers=headers, content_type="application/xml")
        if refused.status == 503:
            # Load balancers answer for a venue that is closed, and do not know its protocol.
            return web.Response(status=503, text="<html><body>503 Service Unavailable</body></html>", headers=headers)
        return web.json_response(error, status=status, headers=headers)

    def _talks(self, protocol: Protocol, route: SocketRoute) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def talk(request: web.Request) -> web.StreamResponse:
            self.served["handshakes"] += 1
            refusal = self.faults.refusal()
            if refusal is not None:
                return self._refuse(protocol, Refused(refusal[0], "storm", refusal[1]))
            socket = web.WebSocketResponse(autoping=False, compress=False)
            await socket.prepare(request)
            connection = Connection(self.market, self.faults, self.served, socket, request)
            session = route.session(self._inside, connection)
            self._inside.connections[connection] = session
            self.served["connections"] += 1
            try:
                await connection.serve(session, self._tick_s, self._ping_s)
            finally:
                del self._inside.connections[connection]
            return socket

        return talk

    async def _tell(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "now_us": self.market.now_us(),
                "connections": self.connections,
                "served": dict(self.served),
                "faults": {one.name: getattr(self.faults, one.name) for one in fields(self.faults) if one.init},
            }
        )

    async def _control(self, request: web.Request) -> web.Response:
        """Change faults: `{"set": {"missing": 0.8}}`, `{"storm": 5, "status": 418}`, `{"stall": 10, "deaf": true}`,
        `{"resume": true}`, `{"disconnect": true}`, `{"advance": 60}`, several at once."""
        try:
            wanted: dict[str, Any] = await request.json()
            unknown = wanted.keys() - {"set", "storm", "status", "stall", "deaf", "resume", "disconnect", "advance"}
            if unknown:
                raise ValueError(f"a fake venue has no command {', '.join(sorted(unknown))}")
            self.faults.change(**wanted.get("set", {}))
            if "storm" in wanted:
                self.faults.storm(int(wanted["storm"]), int(wanted.get("status", 429)))
            if "stall" in wanted:
                self.faults.stall(float(wanted["stall"]), deaf=bool(wanted.get("deaf", False)))
            if wanted.get("resume"):
                self.faults.resume()
            if "advance" in wanted:
                self.market.clock.advance(float(wanted["advance"]))
                await self._pump()
            if wanted.get("disconnect"):
                for connection in list(self._inside.connections):
                    await connection.cut('{"e":"cut in the middle of its text"}')
        except (ValueError, TypeError, AttributeError) as error:
            return web.json_response({"error": str(error)}, status=400)
        return await self._tell(request)


_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _either(talk: _Handler, answer: _Handler | None) -> _Handler:
    """A path that speaks WebSocket with whoever asks for it, and may answer others."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await talk(request)
        if answer is not None:
            return await answer(request)
        return web.Response(status=426, text="This path speaks WebSocket")

    return handle
