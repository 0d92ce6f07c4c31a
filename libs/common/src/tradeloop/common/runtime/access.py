"""Tokens: what a client sends over HTTP to be let in, for one role.

A role may have several tokens, so that a new one is there before the old one goes. A token may be told by its SHA-256
alone: it is long and random, so that nobody finds it from that.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Annotated, Protocol

import structlog
from pydantic import AfterValidator, SecretStr

from tradeloop.common.runtime.metrics import Figure
from tradeloop.common.runtime.server import Page, Refused, Request

log = structlog.get_logger(__name__)

_SHORTEST = 16
_HASHED = re.compile(r"sha256:[0-9a-f]{64}")
_SAY_EVERY_S = 10.0


def _understood(tokens: SecretStr | None) -> SecretStr | None:
    value = "" if tokens is None else tokens.get_secret_value()
    if not value:  # as Compose passes on what is not set
        return None
    for token in value.split(" "):
        if len(token) < _SHORTEST or not (token.isascii() and token.isprintable()):
            raise ValueError("a token has at least 16 letters, digits and signs; one space stands between two tokens")
        if token.startswith("sha256:") and not _HASHED.fullmatch(token):
            raise ValueError("sha256: stands before 64 hexadecimal digits, in small letters")
    return tokens


Tokens = Annotated[SecretStr | None, AfterValidator(_understood)]
"""The tokens of one role, one space between two, each as it is or as `sha256:` and the digits of its hash."""


class Guard:
    """Lets in whoever sends a token of a role, and nobody where there is none. Shared between threads."""

    def __init__(self, tokens: SecretStr | None, path: str, setting: str) -> None:
        """`setting` names what to set so that `path` opens."""
        value = "" if tokens is None else tokens.get_secret_value()
        self._digests = [_digest(token) for token in value.split()]
        self._path, self._setting = path, setting
        self._counting = threading.Lock()
        self._refused, self._said_s = 0, -_SAY_EVERY_S

    def check(self, request: Request) -> None:
        """Raises `Refused`: 403 where there is no token, 401 where none of them was sent."""
        if not self._digests:
            text = f"{self._path} is off: set {self._setting} to a token that its clients send"
            raise Refused(HTTPStatus.FORBIDDEN, "off", text)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        given = hashlib.sha256(token.encode(errors="surrogateescape")).digest()
        # All of them, whichever fits: the time to answer says nothing.
        fits = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme != "Bearer" or not any(fits):
            self._tell()
            text = "send the token: Authorization: Bearer TOKEN"
            raise Refused(HTTPStatus.UNAUTHORIZED, "unauthorized", text, ("WWW-Authenticate", "Bearer"))

    def _tell(self) -> None:
        with self._counting:
            self._refused += 1
            now_s = time.monotonic()
            if now_s < self._said_s + _SAY_EVERY_S:
                return
            self._said_s, count, self._refused = now_s, self._refused, 0
        log.warning("no valid token", path=self._path, requests=count)


class Counted(Protocol):
    """A door with numbers, as `health.CountedDoor`."""

    def answer(self, request: Request) -> Page: ...

    def figures(self) -> Iterable[Figure]: ...


class Guarded:
    """A door that opens to a token."""

    def __init__(self, door: Counted, guard: Guard) -> None:
        self._door, self._guard = door, guard

    def answer(self, request: Request) -> Page:
        """As `Door.answer`; without the token nothing of the request but its head is read."""
        self._guard.check(request)
        return self._door.answer(request)

    def figures(self) -> Iterable[Figure]:
        """As `CountedDoor.figures`."""
        return self._door.figures()


def _digest(token: str) -> bytes:
    if _HASHED.fullmatch(token):
        return bytes.fromhex(token.removeprefix("sha256:"))
    return hashlib.sha256(token.encode()).digest()
