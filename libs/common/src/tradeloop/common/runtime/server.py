"""A small HTTP server: pages, which are asked for with GET, and doors, which take a body with POST.

Whatever is not answered is a problem as RFC 9457 describes it: one shape of JSON, for people and for programs.
"""

from __future__ import annotations

import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.message import Message as Headers
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socket import SHUT_WR
from typing import NamedTuple, Protocol

import structlog

from tradeloop.common.errors import UserError

log = structlog.get_logger(__name__)

_LINGER_S, _LINGER_BYTES = 1.0, 8 << 20
"""How long, and how far, a request is read on that was answered before its end."""
_SECURITY = (
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
)
"""Headers of every answer: it is data, for no browser to run, to frame or to keep."""


class Page(NamedTuple):
    """An answer."""

    status: HTTPStatus
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class Refused(Exception):
    """A request that gets no answer but a problem: `kind` is one of few words for programs, `detail` one line."""

    def __init__(self, status: HTTPStatus, kind: str, detail: str, *headers: tuple[str, str]) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.headers = status, kind, detail, headers

    @property
    def page(self) -> Page:
        content = {
            "type": f"urn:tradeloop:problem:{self.kind}",
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": self.detail,
        }
        body = json.dumps(content).encode() + b"\n"
        return Page(self.status, "application/problem+json", body, self.headers)


class Request(Protocol):
    """A request whose body is not read yet."""

    headers: Headers

    def read(self, most_bytes: int, within_s: float) -> bytes:
        """The body. Raises `Refused` for one that is longer, comes slower, or does not say how long it is."""
        ...


class Door(Protocol):
    """Something that answers requests with a body. Called by a thread for each request, as many as there are."""

    def answer(self, request: Request) -> Page:
        """May raise `Refused`."""
        ...


class Endpoint:
    """The server of these answers, on a port, if on any."""

    def __init__(self, pages: Mapping[str, Callable[[], Page]], doors: Mapping[str, Door]) -> None:
        self.port: int | None = None
        self.pages, self.doors = pages, doors
        """Answers by path. Replaced, never changed in place."""


@contextmanager
def listening(
    host: str, port: int | None, pages: Mapping[str, Callable[[], Page]], doors: Mapping[str, Door] | None = None
) -> Iterator[Endpoint]:
    """Answer over HTTP, where there is a port; 0 takes one that is free.

    Raises `UserError` for an address that cannot be had.
    """
    endpoint = Endpoint(pages, doors or {})
    if port is None:
        yield endpoint
        return
    try:
        server = _Server((host, port), endpoint)
    except OSError as error:
        raise UserError(f"cannot listen on {host}, port {port}: {error.strerror}") from error
    with server:
        endpoint.port = int(server.server_address[1])
        threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
        log.info("listening", host=host, port=endpoint.port)
        try:
            yield endpoint
        finally:
            server.shutdown()


class _Server(socketserver.ThreadingTCPServer):
    """Not `http.server`'s own: that one asks the name service for its name before it listens."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        super().__init__(address, _Answer)

    def handle_error(self, request: object, client_address: object) -> None:
        log.exception("an answer failed", client=str(client_address))


class _Answer(BaseHTTPRequestHandler):
    server_version, sys_version = "tradeloop", ""
    timeout = 10  # seconds for a client to say what it wants
    server: _Server
    _unread = 0
    """Bytes of the body that were announced and not read."""

    def do_GET(self) -> None:
        page, path = self.server.endpoint.pages.get(self._path), self._path
        if page is not None:
            self._send(page())
        elif path in self.server.endpoint.doors:
            self._send(_wrong_method(path, "POST"))
        else:
            self._send(_nothing(path, self.server.endpoint))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        door, path = self.server.endpoint.doors.get(self._path), self._path
        with suppress(ValueError):
            self._unread = max(int(self.headers.get("Content-Length", "0")), 0)
        if door is not None:
            page = self._asked(door)
        elif path in self.server.endpoint.pages:
            page = _wrong_method(path, "GET, HEAD")
        else:
            page = _nothing(path, self.server.endpoint)
        self._send(page)
        self._linger()

    def read(self, most_bytes: int, within_s: float) -> bytes:
        """As `Request.read`."""
        length = self.headers.get("Content-Length")
        if length is None or "Transfer-Encoding" in self.headers:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "length_required", "say how long the body is, in Content-Length")
        if not (length.isascii() and length.isdecimal()):
            raise Refused(HTTPStatus.BAD_REQUEST, "malformed", "Content-Length is no number of bytes")
        if int(length) > most_bytes:
            text = f"the body has {int(length):,} bytes; at most {most_bytes:,} are taken"
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", text)
        body, end_s = b"", time.monotonic() + within_s
        while len(body) < int(length):
            left_s = end_s - time.monotonic()
            try:
                self.connection.settimeout(max(left_s, 0.001))
                part = b"" if left_s <= 0.0 else self.rfile.read1(int(length) - len(body))
            except TimeoutError:
                left_s = 0.0
            if left_s <= 0.0:
                text = f"the body did not come within {within_s:g} s"
                raise Refused(HTTPStatus.REQUEST_TIMEOUT, "too_slow", text)
            if not part:
                raise Refused(HTTPStatus.BAD_REQUEST, "malformed", "the body ends before its Content-Length")
            body += part
            self._unread -= len(part)
        self.connection.settimeout(self.timeout)
        return body

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """The errors of Python's own server, such as of a line that is no request, in the shape of all others."""
        status = HTTPStatus(code)
        self._send(Refused(status, "malformed", message or status.description).page)

    def log_message(self, format: str, *args: object) -> None:
        """Orchestrators ask every few seconds: nobody wants to read that."""

    @property
    def _path(self) -> str:
        return self.path.partition("?")[0]

    def _asked(self, door: Door) -> Page:
        try:
            return door.answer(self)
        except Refused as refused:
            return refused.page
        except Exception:
            log.exception("an answer failed", path=self._path)
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            return Refused(status, "failed", "the answer failed: the log of the service says why").page

    def _send(self, page: Page) -> None:
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        for name, value in (*_SECURITY, *page.headers):
            self.send_header(name, value)
        self.end_headers()
        if getattr(self, "command", None) != "HEAD":
            self.wfile.write(page.body)

    def _linger(self) -> None:
        """Read on for a moment: to a client that still sends, an end now would be a reset, and no answer."""
        if self._unread <= 0:
            return
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(SHUT_WR)
            end_s, left = time.monotonic() + _LINGER_S, min(self._unread, _LINGER_BYTES)
            while left > 0 and (left_s := end_s - time.monotonic()) > 0.0:
                self.connection.settimeout(left_s)
                part = self.connection.recv(1 << 16)
                if not part:
                    break
                left -= len(part)


def _wrong_method(path: str, allowed: str) -> Page:
    text = f"{path} is asked with {allowed}"
    return Refused(HTTPStatus.METHOD_NOT_ALLOWED, "wrong_method", text, ("Allow", allowed)).page


def _nothing(path: str, endpoint: Endpoint) -> Page:
    there = ", ".join((*endpoint.pages, *endpoint.doors))
    return Refused(HTTPStatus.NOT_FOUND, "no_such_page", f"there is no such page: see {there}").page
