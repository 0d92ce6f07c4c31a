"""A fake TWS: speaks the TCP protocol of Trader Workstation and IB Gateway, version 178, with the real ib_async.

It answers what a reader of history asks: contracts, the earliest data, bars, the time, symbols like one. It knows
nothing of accounts and orders.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from tradeloop.common.market import from_us, to_us
from tradeloop.ingest.contracts.fake_venue import tws_bars
from tradeloop.ingest.contracts.fake_venue.faults import Faults
from tradeloop.ingest.contracts.fake_venue.market import US, Listing, Market
from tradeloop.ingest.contracts.fake_venue.threaded import ThreadedServer

VERSION = 178
_LEAST_CLIENT = 157
_PATIENCE_S = 30.0
_SMALL_S = 30
_VIOLATION = "Historical Market Data Service error message:Historical data request pacing violation"
_LOST = "Connectivity between IBKR and Trader Workstation has been lost."


class _Error(Exception):
    """A question that is answered with an error."""

    def __init__(self, code: int, text: str, *, of_all: bool = False) -> None:
        super().__init__(f"{code} {text}")
        self.code, self.text, self.of_all = code, text, of_all


@dataclass(eq=False)
class _Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    id: int = -1
    answers: list[asyncio.Task[None]] = field(default_factory=list)


class FakeTws(ThreadedServer):
    """A TWS on this machine: `with FakeTws(Market()) as tws: ... tws.url`.

    Stocks of the market are listed at NASDAQ, pairs such as `EUR/USD` are currencies. `pacing` keeps the rules of
    Interactive Brokers for requests of history by the machine's clock, with their times multiplied by it; 0: none.
    `served` counts what was asked and refused. Of the faults, those of requests and answers count, and `disconnects`,
    `repeated` (of bars), `clock_ahead_s` and `open_bar`.
    """

    def __init__(
        self,
        market: Market | None = None,
        *,
        faults: Faults | None = None,
        pacing: float = 0.0,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.market, self.faults = market or Market(), faults or Faults()
        self.host, self.port = host, port
        self.served: Counter[str] = Counter()
        self._pacing = pacing
        self._asked: deque[tuple[float, str, tuple[str, ...], bool]] = deque(maxlen=1000)
        self._clients: set[_Client] = set()

    @property
    def url(self) -> str:
        return f"tcp://{self.host}:{self.port}"

    async def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until it is cancelled, or the block ends."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.faults._disconnect.append(self._disconnect)
        server = await asyncio.start_server(self._talk, self.host, self.port)
        try:
            self.port = server.sockets[0].getsockname()[1]
            ready()
            await self._stop.wait()
        finally:
            self.faults._disconnect.remove(self._disconnect)
            server.close()
            for client in list(self._clients):
                client.writer.transport.abort()
            while self._clients:
                await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        """Move the venue's clock."""
        self.market.clock.advance(seconds)

    def tell(self, code: int, text: str) -> None:
        """Send a message that belongs to no question to all clients, such as 1100."""
        self._in_loop(self._tell_all(code, text))

    def _disconnect(self, mid_frame: bool) -> None:
        async def cut() -> None:
            for client in list(self._clients):
                if mid_frame:
                    client.writer.write(_framed("17", "1")[:-2])
                    with suppress(OSError):
                        await client.writer.drain()
                client.writer.close()

        self._in_loop(cut())

    def _in_loop(self, work: object) -> None:
        assert self._loop is not None, "a fake TWS is told something while it serves"
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE_S)  # type: ignore[arg-type]

    async def _tell_all(self, code: int, text: str) -> None:
        for client in list(self._clients):
            await self._send(client, *_error(-1, code, text))

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _Client(reader, writer)
        self._clients.add(client)
        self.served["connections"] += 1
        try:
            if await self._welcome(client):
                while True:
                    fields = await self._message(client)
                    client.answers = [one for one in client.answers if not one.done()]
                    client.answers.append(asyncio.ensure_future(self._answer(client, fields)))
        except (OSError, asyncio.IncompleteReadError, ValueError):
            pass  # the client has gone, or speaks something else
        finally:
            for answer in client.answers:
                answer.cancel()
            await asyncio.gather(*client.answers, return_exceptions=True)
            writer.close()
            self._clients.discard(client)

    async def _welcome(self, client: _Client) -> bool:
        if await client.reader.readexactly(4) != b"API\0":
            return False
        [versions] = await self._message(client)
        least, _, most = versions.split(" ")[0].removeprefix("v").partition("..")
        if not (int(least) <= VERSION and int(most or least) >= _LEAST_CLIENT):
            return False
        await self._send(client, str(VERSION), f"{from_us(self.market.now_us()):%Y%m%d %H:%M:%S} UTC")
        kind, _, client_id, *_ = await self._message(client)
        if kind != "71":
            return False
        if any(other.id == int(client_id) for other in self._clients):
            self.served["client id in use"] += 1
            await self._send(client, *_error(-1, 326, "Unable to connect as the client id is already in use."))
            return False
        client.id = int(client_id)
        await self._send(client, "15", "1", "DU0000001")
        await self._send(client, "9", "1", "1")
        for code, text in ((2104, "Market data farm connection is OK:usfarm"), (2106, "HMDS data farm is OK:ushmds")):
            await self._send(client, *_error(-1, code, text))
        return True

    async def _message(self, client: _Client) -> list[str]:
        [length] = struct.unpack(">I", await client.reader.readexactly(4))
        text = (await client.reader.readexactly(length)).decode()
        return text.removesuffix("\0").split("\0")

    async def _send(self, client: _Client, *fields: str) -> None:
        client.writer.write(_framed(*fields))
        await client.writer.drain()

    async def _answer(self, client: _Client, fields: list[str]) -> None:
        kind, request = fields[0], fields[{"9": 2, "20": 1, "81": 1, "87": 1}.get(fields[0], 0)]
        self.served["requests"] += 1
        if self.faults.slow_s:
            await asyncio.sleep(self.faults.slow_s)
        try:
            messages = await asyncio.to_thread(self._answers, kind, fields)
        except _Error as error:
            self.served[f"error {error.code}"] += 1
            messages = [_error(-1 if error.of_all else int(request), error.code, error.text)]
        for message in messages:
            frame = _framed(*message)
            if self.faults.happens(self.faults.garbled_answers):
                self.served["garbled answers"] += 1
                frame = _packed(frame[4 : 4 + len(frame[4:]) // 2])
            if self.faults.happens(self.faults.disconnects):
                self.served["disconnects"] += 1
                client.writer.write(frame[: len(frame) // 2])
                with suppress(OSError):
                    await client.writer.drain()
                client.writer.close()
                return
            with suppress(OSError):
                client.writer.write(frame)
                await client.writer.drain()

    def _answers(self, kind: str, fields: list[str]) -> list[Sequence[str]]:
        if kind == "9":
            return self._details(fields[2], _Contract.of(fields[3:15]))
        if kind == "20":
            return [self._history(fields[1], _Contract.of(fields[2:14]), fields[15:])]
        if kind == "81":
            return [self._like(fields[1], fields[2])]
        if kind == "87":
            contract, regular = _Contract.of(fields[2:14]), fields[15] == "1"
            self._admit("head")
            first_us = tws_bars.first_us(self.market, self._listing(contract), regular=regular)
            return [("88", fields[1], str(first_us // US))]
        if kind == "49":
            self.served["time"] += 1
            return [("49", "1", str(self.market.now_us() // US + round(self.faults.clock_ahead_s)))]
        if kind in ("25", "90"):  # cancelled; all has been said
            return []
        raise _Error(505, f"Fatal Error: Unknown message id {kind}", of_all=True)

    def _admit(self, what: str) -> None:
        self.served[what] += 1
        if refusal := self.faults.refusal():
            status, _ = refusal
            if status == 503:
                raise _Error(1100, _LOST, of_all=True)
            if status == 500:
                raise _Error(162, "Historical Market Data Service error message:HMDS server disconnect occurred.")
            raise _Error(162, _VIOLATION)
        if self.faults.denied:
            raise _Error(162, "Historical Market Data Service error message:No market data permissions for ISLAND STK")

    def _listing(self, contract: _Contract) -> Listing:
        symbol = f"{contract.symbol}/{contract.currency}" if contract.kind == "CASH" else contract.symbol
        one = self.market.listings.get(symbol)
        at = "IDEALPRO" if contract.kind == "CASH" else "SMART NASDAQ ISLAND"
        known = contract.kind in ("STK", "CASH") and contract.exchange in at.split(" ")
        if one is None or not known or (contract.kind == "STK" and contract.currency != "USD"):
            raise _Error(200, "No security definition has been found for the request")
        return one

    def _number(self, one: Listing) -> str:
        return str(1000 + list(self.market.listings).index(one.symbol))

    def _details(self, request: str, contract: _Contract) -> list[Sequence[str]]:
        self.served["details"] += 1
        one = self._listing(contract)
        cash = contract.kind == "CASH"
        local = one.symbol.replace("/", ".")
        hours = "20240104:0930-20240104:1600"
        step, lot = f"{10.0**-one.price_digits:.{one.price_digits}f}", f"{10.0**-one.size_digits:.{one.size_digits}f}"
        return [
            (
                *("10", request, contract.symbol, contract.kind, "", "0", "", contract.exchange, contract.currency),
                *(local, local, local, self._number(one), step, "", "LMT,MKT", contract.exchange, "1", "0"),
                *(f"{local} of the fake TWS", "" if cash else "NASDAQ", "", "", "", "", "US/Eastern", hours, hours),
                *("", "0", "0", "1", "", "", "26", "", "" if cash else "COMMON", lot, lot, lot),
            ),
            ("52", "1", request),
        ]

    def _like(self, request: str, text: str) -> Sequence[str]:
        self.served["like"] += 1
        found = [one for one in self.market.listings.values() if not one.crypto and one.symbol.startswith(text)]
        rows = [(self._number(one), one.symbol, "STK", "NASDAQ", "USD", "0", one.symbol, "") for one in found]
        return ["79", request, str(len(rows)), *(part for row in rows for part in row)]

    def _history(self, request: str, contract: _Contract, asked: list[str]) -> Sequence[str]:
        end, size, duration, regular, shows, form, *_ = asked
        self._keep_pace(contract, tuple(asked), size)
        self._admit("historical")
        one = self._listing(contract)
        if size not in tws_bars.SIZES or form != "2":
            raise _Error(321, f"Error validating request:-'bh' : cause - Invalid bar size {size} or date format {form}")
        if (shows == "TRADES") == one.crypto:
            raise _Error(162, f"Historical Market Data Service error message:No historical market data for {shows}")
        bars = tws_bars.newest(
            self.market, one, size, duration, _time_us(end), regular=regular == "1", open_bar=self.faults.open_bar
        )
        if not bars:
            raise _Error(162, f"Historical Market Data Service error message:HMDS query returned no data: {one.symbol}")
        rows = [row for bar in bars for row in [bar] * (2 if self.faults.happens(self.faults.repeated) else 1)]
        self.served["historical rows"] += len(rows)
        parts = (
            (bar.date, repr(bar.open), repr(bar.high), repr(bar.low), repr(bar.close), repr(bar.volume), "0", bar.count)
            for bar in rows
        )
        return ["17", request, end, end, str(len(rows)), *(str(part) for row in parts for part in row)]

    def _keep_pace(self, contract: _Contract, asked: tuple[str, ...], size: str) -> None:
        """Raise for a request that comes too soon; it counts all the same."""
        now, small = time.monotonic(), tws_bars.SIZES.get(size, 60) <= _SMALL_S
        name = f"{contract.symbol} {contract.exchange} {asked[4]}"
        before, pace = list(self._asked), self._pacing
        self._asked.append((now, name, asked, small))
        same = any(now - at < 15 * pace and (name, asked) == (other, was) for at, other, was, _ in before)
        burst = sum(now - at < 2 * pace and other == name for at, other, _, _ in before) >= 5
        many = small and sum(now - at < 600 * pace and other for at, _, _, other in before) >= 60
        if same or burst or many:
            self.served["pacing violations"] += 1
            raise _Error(162, _VIOLATION)


@dataclass(frozen=True, slots=True)
class _Contract:
    symbol: str
    kind: str
    exchange: str
    currency: str

    @classmethod
    def of(cls, fields: Sequence[str]) -> _Contract:
        """The contract in twelve fields of a message."""
        return cls(fields[1], fields[2], fields[7], fields[9])


def _error(request: int, code: int, text: str) -> Sequence[str]:
    return ("4", "2", str(request), str(code), text, "")


def _framed(*fields: str) -> bytes:
    return _packed("".join(f"{one}\0" for one in fields).encode())


def _packed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def _time_us(text: str) -> int:
    """`20240104 00:00:00 UTC`. Raises `_Error` for a time that TWS cannot read."""
    day, _, rest = text.partition(" ")
    clock, _, zone = rest.partition(" ")
    try:
        when = datetime.strptime(f"{day} {clock}", "%Y%m%d %H:%M:%S")
        return to_us(when.replace(tzinfo=ZoneInfo(zone or "UTC")).astimezone(UTC))
    except ValueError:
        raise _Error(10314, f"End Date/Time: The date, time, or time-zone entered is invalid: {text}") from None
