"""Tokens by role over HTTP, and the headers that every answer has."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Iterable, Iterator
from http import HTTPStatus

import pytest
from pydantic import SecretStr, ValidationError
from structlog.testing import capture_logs

from tradeloop.common.runtime.access import Guard, Guarded
from tradeloop.common.runtime.health import HttpSettings, starting
from tradeloop.common.runtime.metrics import Figure
from tradeloop.common.runtime.server import Endpoint, Page, Request, listening

OLD, NEW, OTHER = "the-token-until-now", "the-token-from-now-on", "the-token-of-others"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Lever:
    """Changes something."""

    def __init__(self) -> None:
        self.pulled = 0

    def answer(self, request: Request) -> Page:
        self.pulled += len(request.read(10, 1.0))
        return Page(HTTPStatus.OK, "application/json", b"{}")

    def figures(self) -> Iterable[Figure]:
        return ()


def guarded(lever: Lever, tokens: str | None) -> Guarded:
    secret = HttpSettings(operate_tokens=None if tokens is None else SecretStr(tokens)).operate_tokens
    return Guarded(lever, Guard(secret, "/lever", "INGEST_HTTP__OPERATE_TOKENS"))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with listening("127.0.0.1", 0, starting("it has not started")) as endpoint:
        yield endpoint


def ask(
    endpoint: Endpoint, token: str | None, method: str = "POST", path: str = "/lever"
) -> tuple[int, dict[str, str], bytes]:
    assert endpoint.port is not None
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=10)
    try:
        headers = {} if token is None else {"Authorization": token}
        connection.request(method, path, b"1" if method == "POST" else None, headers)
        found = connection.getresponse()
        return found.status, dict(found.headers), found.read()
    finally:
        connection.close()


def hashed(token: str) -> str:
    return f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"


@pytest.mark.parametrize("tokens", [OLD, f"{OLD} {NEW}", f"{NEW} {OLD}", hashed(OLD), f"{hashed(NEW)} {hashed(OLD)}"])
def test_a_role_has_several_tokens_so_that_one_may_follow_another(endpoint: Endpoint, tokens: str) -> None:
    lever = Lever()
    endpoint.doors = {"/lever": guarded(lever, tokens)}
    assert ask(endpoint, f"Bearer {OLD}")[0] == 200
    assert ask(endpoint, f"Bearer {NEW}")[0] == (200 if " " in tokens else 401)
    before = lever.pulled
    for wrong in (None, "", "Bearer", "Bearer ", OLD, f"Basic {OLD}", f"bearer  {OLD}", f"Bearer {OLD}x"):
        assert ask(endpoint, wrong)[0] == 401
    for wrong in (OTHER, OLD[:-1], hashed(OLD), f"{OLD} {NEW}", "\xe9" * 20):
        assert ask(endpoint, f"Bearer {wrong}")[0] == 401, "nor does the hash itself open it"
    assert lever.pulled == before


def test_it_is_off_without_a_token_and_says_what_to_set(endpoint: Endpoint) -> None:
    for nothing in (None, ""):
        endpoint.doors = {"/lever": guarded(Lever(), nothing)}
        status, _, body = ask(endpoint, f"Bearer {OLD}")
        assert status == 403
        assert (
            json.loads(body)["detail"]
            == "/lever is off: set INGEST_HTTP__OPERATE_TOKENS to a token that its clients send"
        )


def test_who_tries_is_in_the_log_now_and_then_and_no_token_is(endpoint: Endpoint) -> None:
    endpoint.doors = {"/lever": guarded(Lever(), OLD)}
    with capture_logs() as logs:
        for _ in range(20):
            ask(endpoint, f"Bearer {OTHER}")
    assert [(one["event"], one["path"], one["requests"]) for one in logs] == [("no valid token", "/lever", 1)]
    assert OTHER not in str(logs)


@pytest.mark.parametrize(
    "wrong",
    ["short", f"{OLD}  {NEW}", f"{OLD} short", "umlaut-äöüäöüäöüäöü", "tab\tbed-tab-tabbed", "sha256:" + "A" * 64],
)
def test_what_is_no_token_is_refused_and_not_shown(wrong: str) -> None:
    with pytest.raises(ValidationError) as caught:
        HttpSettings(operate_tokens=SecretStr(wrong))
    assert wrong not in str(caught.value)
    assert OLD not in repr(HttpSettings(operate_tokens=SecretStr(OLD)))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/live", 200),
        ("HEAD", "/live", 200),
        ("GET", "/ready", 503),
        ("POST", "/lever", 200),
        ("GET", "/lever", 405),
        ("GET", "/nowhere", 404),
        ("BREW", "/live", 501),
    ],
)
def test_every_answer_has_the_headers_of_what_no_browser_runs(
    endpoint: Endpoint, method: str, path: str, status: int
) -> None:
    endpoint.doors = {"/lever": guarded(Lever(), OLD)}
    found, headers, _ = ask(endpoint, f"Bearer {OLD}", method, path)
    assert found == status
    assert {name: headers.get(name) for name in HEADERS} == HEADERS
