"""Objects of a store that speaks as S3 does: listed and read, with signed requests. Nothing is written.

The signature is version 4: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-authenticating-requests.html.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import IO
from urllib.parse import quote, urlsplit

from pydantic import SecretStr

from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.ingest.adapters.http import answered, retry_after
from tradeloop.ingest.ports import SourceUnavailable

_EMPTY = hashlib.sha256(b"").hexdigest()
_MOST_TEXT = 16_000_000
"""Bytes of a list or of an error that are read at most."""
_WRONG = ("InvalidAccessKeyId", "SignatureDoesNotMatch")


def signed(
    url: str,
    key: str,
    secret: SecretStr,
    now: datetime,
    headers: Mapping[str, str] | None = None,
    region: str = "us-east-1",
) -> dict[str, str]:
    """The headers of a GET of `url`, whose query is encoded already and in order, that sign it and these `headers`."""
    parts, stamp = urlsplit(url), now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    told = {**(headers or {}), "host": parts.netloc, "x-amz-content-sha256": _EMPTY, "x-amz-date": stamp}
    told = {name.lower(): value for name, value in sorted(told.items(), key=lambda item: item[0].lower())}
    names = ";".join(told)
    listed = "".join(f"{name}:{value.strip()}\n" for name, value in told.items())
    request = "\n".join(("GET", parts.path or "/", parts.query, listed, names, _EMPTY))
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    text = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()))
    derived = f"AWS4{secret.get_secret_value()}".encode()
    for part in scope.split("/"):
        derived = hmac.digest(derived, part.encode(), "sha256")
    signature = hmac.new(derived, text.encode(), "sha256").hexdigest()
    credential = f"AWS4-HMAC-SHA256 Credential={key}/{scope},SignedHeaders={names},Signature={signature}"
    return {**told, "authorization": credential}


class Bucket:
    """A bucket, addressed by its path. Every answer tells the server's clock."""

    def __init__(
        self, venue: str, url: str, bucket: str, key: str, secret: SecretStr, clock: Clock, timeout_s: float,
        turn: Callable[[], object],
    ) -> None:  # fmt: skip
        """`turn` waits until a request may be made."""
        self._venue, self._url, self._key, self._secret = venue, f"{url}/{quote(bucket)}", key, secret
        self._clock, self._timeout_s, self._turn = clock, timeout_s, turn

    def keys(self, prefix: str) -> tuple[list[str], datetime]:
        """The keys that begin so, in order, and the server's time. Raises as `MarketSource`."""
        found: list[str] = []
        token = ""
        while True:
            query = {"list-type": "2", "prefix": prefix, **({"continuation-token": token} if token else {})}
            told = "&".join(f"{name}={quote(value, safe='')}" for name, value in sorted(query.items()))
            with self._asked(f"{self._url}?{told}") as answer:
                assert answer is not None, "only a missing object is none"
                time = _date(answer.headers.get("Date"), self._clock)
                found_here, token = self._listed(answer.read(_MOST_TEXT))
            found += found_here
            if not token:
                return sorted(found), time

    @contextmanager
    def object(self, key: str) -> Iterator[IO[bytes] | None]:
        """The bytes of an object, as they come; None where there is none. Raises as `MarketSource`."""
        with self._asked(f"{self._url}/{quote(key)}", missing=True) as answer:
            yield answer

    @contextmanager
    def _asked(self, url: str, *, missing: bool = False) -> Iterator[http.client.HTTPResponse | None]:
        self._turn()
        request = urllib.request.Request(url, headers=signed(url, self._key, self._secret, self._clock.now()))
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:
                yield answer
        except urllib.error.HTTPError as error:
            with error:
                if missing and error.code == 404:
                    yield None
                    return
                text = error.read(_MOST_TEXT).decode(errors="replace")
            raise self._refused(error, text) from None
        except (OSError, EOFError, http.client.HTTPException) as error:
            told = " ".join(str(error).split())[:300]
            raise SourceUnavailable(f"{self._venue} does not answer: {type(error).__name__}: {told}") from error

    def _refused(self, error: urllib.error.HTTPError, text: str) -> SourceUnavailable | UserError:
        pause_s = retry_after(error.headers)
        if error.code == 403 and any(word in text for word in _WRONG):
            return answered(self._venue, 401, text, pause_s)
        if error.code == 403 and "RequestTimeTooSkewed" in text:
            return UserError(f"{self._venue}: this machine's clock is wrong by a quarter of an hour or more: set it")
        if error.code == 503 and "SlowDown" in text:
            return answered(self._venue, 429, text, pause_s)
        return answered(self._venue, error.code, text, pause_s)

    def _listed(self, text: bytes) -> tuple[list[str], str]:
        try:
            if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
                raise ValueError("it declares entities")
            root = ElementTree.fromstring(text)
        except (ElementTree.ParseError, ValueError) as error:
            raise SourceUnavailable(f"{self._venue}: its list of files cannot be read: {error}") from None
        keys = [one.text or "" for one in root.iterfind("{*}Contents/{*}Key")]
        more = root.findtext("{*}IsTruncated") == "true"
        return keys, (root.findtext("{*}NextContinuationToken") or "") if more else ""


def _date(text: str | None, clock: Clock) -> datetime:
    """The time of a `Date` header."""
    try:
        return parsedate_to_datetime(text or "")
    except ValueError:
        return clock.now()
