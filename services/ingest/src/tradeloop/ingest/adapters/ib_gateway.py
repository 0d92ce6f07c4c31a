"""`Gateway`: a connection to TWS or IB Gateway that is asked one question after the other, through ib_async.

It asks for market data alone: neither account nor orders are touched, so the API may be read-only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import ib_async
import structlog
from ib_async.wrapper import RequestError

from tradeloop.common.errors import UserError
from tradeloop.ingest.adapters.ib_pacing import AGAIN_S
from tradeloop.ingest.adapters.sections import IbSection
from tradeloop.ingest.ports import SourceUnavailable

T = TypeVar("T")

log = structlog.get_logger(__name__)

_CONNECT_S = 10.0
_VIOLATION_S = 4 * AGAIN_S
"""A pause after a violation of pacing: with it, a fetch tries for longer than the ten minutes of the longest rule."""
_QUIET = frozenset({165, 2104, 2106, 2107, 2108, 2119, 2158, 2174, 2176, 10167})
"""Messages that tell of nothing that is wrong, such as that a data farm is connected."""
_CUT_OFF = frozenset({502, 504, 1100, 1300, 2110})
"""TWS is there, and the servers behind it are not; or it moves to another port. 1101 and 1102 say that they are back:
then the next question finds them."""
_FARM_AWAY = frozenset({2103, 2105, 2157})
_DENIED = frozenset({203, 354, 420, 10089, 10090, 10091, 10168, 10186, 10187, 10189, 10275})


class NoData(Exception):
    """There is nothing of what was asked for."""


class NoDefinition(Exception):
    """There is no contract like this (200)."""


class Gateway:
    """Asks TWS or IB Gateway. It connects when it is asked, and again when the connection was lost in between.

    It has an event loop of its own, which runs in the thread of whoever asks, and only then. Threads ask in turn.
    """

    def __init__(self, venue: str, section: IbSection) -> None:
        self._venue, self._section = venue, section
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._turn = threading.Lock()
        self._closed = False
        self._ib: Any = None
        self._failed: asyncio.Future[None] | None = None
        self._said = ""
        # All that it says is an error or a log line of ours.
        logging.getLogger("ib_async").setLevel(logging.CRITICAL)

    def time(self) -> datetime:
        """The clock of the machine on which TWS runs, in whole seconds. Raises as `ask`."""
        found: datetime = self.ask(lambda ib: ib.reqCurrentTimeAsync())
        return found

    def details(self, **fields: Any) -> list[Any]:
        """The contracts like this; none where there are none. Raises as `ask`."""
        try:
            return list(self.ask(lambda ib: ib.reqContractDetailsAsync(ib_async.Contract(**fields))))
        except NoDefinition:
            return []

    def like(self, text: str) -> list[Any]:
        """The contracts whose symbol or name begins like this. Raises as `ask`."""
        found = self.ask(lambda ib: ib.reqMatchingSymbolsAsync(text))
        return [one.contract for one in found or ()]

    def first(self, contract: Any, shows: str, *, regular: bool) -> datetime | None:
        """About when the data of a contract begin, by some hours; None where nobody knows. Raises as `ask`."""
        try:
            found = self.ask(lambda ib: ib.reqHeadTimeStampAsync(contract, shows, regular, 2))
        except NoData:
            return None
        if not isinstance(found, datetime):
            return None
        return found if found.tzinfo else found.replace(tzinfo=UTC)  # not every TWS gives seconds since the epoch

    def bars(self, contract: Any, end: datetime, duration: str, size: str, shows: str, *, regular: bool) -> list[Any]:
        """The bars of some time before `end`; none where there are none. Raises as `ask`."""
        try:
            # With its own timeout the library would take no answer for no bars.
            return list(
                self.ask(
                    lambda ib: ib.reqHistoricalDataAsync(
                        contract, end, duration, size, shows, regular, formatDate=2, timeout=0
                    )
                )
            )
        except NoData:
            return []

    def wait(self, seconds: float) -> None:
        """Wait, while the connection lives."""
        self._run(lambda: asyncio.sleep(seconds))

    def ask(self, question: Callable[[Any], Awaitable[T]]) -> T:
        """The answer to a question.

        Raises `SourceUnavailable`, `UserError` for what is refused, `NoData` and `NoDefinition`.
        """
        return self._run(lambda: self._answer(question))

    def close(self) -> None:
        """End the connection; whoever asks meanwhile gets `SourceUnavailable`."""
        if self._closed:
            return
        self._closed = True
        self._runner.get_loop().call_soon_threadsafe(self._fail, self._no_more())
        self._run(self._drop, last=True)
        self._runner.close()

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]], *, last: bool = False) -> T:
        with self._turn:
            if self._closed and not last:
                raise self._no_more()
            # The library awaits its events in the loop that its thread has for the current one, not in the running one.
            asyncio.set_event_loop(self._runner.get_loop())
            try:
                return self._runner.run(work())
            finally:
                asyncio.set_event_loop(None)

    async def _answer(self, question: Callable[[Any], Awaitable[T]]) -> T:
        self._failed = asyncio.get_running_loop().create_future()
        self._said = ""
        ib = await self._connected()
        asked: asyncio.Future[Any] = asyncio.ensure_future(question(ib))
        timeout_s = self._section.timeout_s
        try:
            await asyncio.wait({asked, self._failed}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
            if not asked.done():
                raise SourceUnavailable(f"{self._venue} does not answer within {timeout_s:g} s{self._said}")
            answer: T = asked.result()
            return answer
        except RequestError as error:
            raise translated(self._venue, error.code, error.message, self._section.pace) from None
        except (SourceUnavailable, asyncio.CancelledError):
            # What comes now belongs to no question, and may be half of an answer.
            await self._drop()
            raise
        except (OSError, ValueError) as error:
            await self._drop()
            raise SourceUnavailable(
                f"{self._venue}: the connection broke: {_line(error) or type(error).__name__}"
            ) from None
        finally:
            asked.cancel()
            await asyncio.wait({asked})
            if not asked.cancelled():
                asked.exception()  # it may have ended just now, and nobody else would look
            self._failed = None

    async def _connected(self) -> Any:
        for _ in range(3):  # what came since the last question, such as the end of the connection
            await asyncio.sleep(0)
        if self._ib is not None and self._ib.isConnected():
            return self._ib
        await self._drop()
        parts, wait_s = urlsplit(self._section.url), min(self._section.timeout_s, _CONNECT_S)
        loop = asyncio.get_running_loop()
        # Streams of bytes that are no messages are an error of the connection; nothing else is to be said of them.
        loop.set_exception_handler(lambda _loop, told: self._fail(SourceUnavailable(self._unreadable(told["message"]))))
        ib: Any = ib_async.IB()
        ib.RaiseRequestErrors = True
        # The library leaves out what it cannot read, and says so in its log alone.
        ib.client.decoder.logger = _Unread(lambda text: self._fail(SourceUnavailable(self._unreadable(text))))
        ib.errorEvent += self._heard
        ended: asyncio.Future[str] = loop.create_future()

        def end(text: str) -> None:
            if not ended.done():
                ended.set_result(text)

        ib.client.apiError += end
        # `IB.connectAsync` would ask for the account's positions.
        connecting = asyncio.ensure_future(
            ib.client.connectAsync(parts.hostname, parts.port, self._section.client_id, wait_s)
        )
        self._ib = ib
        assert self._failed is not None
        try:
            await asyncio.wait({connecting, ended, self._failed}, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
            if not connecting.done():
                raise SourceUnavailable(f"{self._at()}: {ended.result()}")
            connecting.result()
        except TimeoutError:
            raise SourceUnavailable(
                f"{self._at()} takes the connection and says nothing: let this machine in (Configure > API > "
                "Settings > Trusted IPs), or answer the question on its screen"
            ) from None
        except OSError as error:
            raise SourceUnavailable(
                f"{self._at()} cannot be reached (502): {_line(error)}: start TWS or IB Gateway, and enable its API "
                "(Configure > API > Settings > Enable ActiveX and Socket Clients)"
            ) from None
        finally:
            if not connecting.done() or connecting.cancelled() or connecting.exception():
                connecting.cancel()
                await asyncio.wait({connecting})
                await self._drop()
        return ib

    async def _drop(self) -> None:
        ib, self._ib = self._ib, None
        if ib is not None:
            ib.errorEvent -= self._heard
            with contextlib.suppress(OSError, RuntimeError):  # the other side may be gone already
                ib.client.disconnect()
            await asyncio.sleep(0)

    def _heard(self, request: int, code: int, text: str, _contract: object) -> None:
        """Take a message of TWS; those about a question that ends with it come as a `RequestError`, too."""
        if code in _QUIET:
            return
        if request < 0:
            log.info("TWS says", venue=self._venue, code=code, text=_line(text))
        if code in _FARM_AWAY:
            self._said = f": it says {_line(text)} ({code})"
        elif code in _CUT_OFF or code == 326 or (code == 321 and request >= 0):
            # The library takes 321 for a warning, and would wait for ever.
            self._fail(translated(self._venue, code, text, self._section.pace))

    def _fail(self, error: Exception) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    def _no_more(self) -> SourceUnavailable:
        return SourceUnavailable(f"{self._venue} was closed")

    def _at(self) -> str:
        return f"{self._venue} at {self._section.url}"

    def _unreadable(self, text: str) -> str:
        return f"{self._venue}: its answer cannot be read: {_line(text)[:100]}"


def translated(venue: str, code: int, text: str, pace: float = 1.0) -> Exception:
    """The error for a message of TWS that ends a question. See "Error Codes" in the documentation of the TWS API."""
    told = f"{_line(text)} ({code})"
    small = text.lower()
    if code == 200:
        return NoDefinition(told)
    if code == 162 and ("no data" in small or "no head time stamp" in small):
        return NoData(told)
    if "pacing violation" in small:
        return SourceUnavailable(f"{venue} says that it is asked too often: {told}", _VIOLATION_S * pace)
    if code in _DENIED or "permission" in small or "subscri" in small:
        return UserError(
            f"{venue} denies permission: {told}: subscribe to this data in Client Portal (Settings > Market Data "
            "Subscriptions), and log TWS in anew"
        )
    if code == 326:
        return SourceUnavailable(
            f"{venue}: another client has its number: {told}: give another client_id in its section"
        )
    if code in _CUT_OFF:
        return SourceUnavailable(f"{venue} has lost its servers: {told}")
    if code == 162 and "no historical market data" not in small:
        return SourceUnavailable(f"{venue} does not answer: {told}")
    if code in (100, 366):
        return SourceUnavailable(f"{venue} does not answer: {told}", 1.0)
    return UserError(f"{venue} refuses the request: {told}")


class _Unread(logging.Logger):
    """Takes what the library logs of messages that it cannot read."""

    def __init__(self, told: Callable[[str], None]) -> None:
        super().__init__("ib_async.decoder")
        self._told = told

    def exception(self, msg: object, *_arguments: object, **_options: object) -> None:
        self._told(str(msg))


def _line(text: object) -> str:
    line = "".join(sign if sign.isprintable() else " " for sign in str(text))
    return " ".join(line.split())[:300]
