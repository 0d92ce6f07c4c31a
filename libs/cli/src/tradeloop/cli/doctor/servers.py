"""Redis and MLflow, asked in a line or two each: without the libraries that take seconds to import."""

from __future__ import annotations

import base64
import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from tradeloop.cli.doctor.clocks import ServerTime, offset
from tradeloop.cli.doctor.finding import Finding, failed, ok, warning
from tradeloop.common.addresses import address
from tradeloop.common.clock import Clock

_TESTED_FROM = 7
"""The oldest major version of Redis that the tests run on."""


def redis(variable: str, section: Mapping[str, Any], wait_s: float, clock: Clock) -> Iterator[Finding]:
    """The online store of a Feast section whose type is Redis."""
    from redis import ConnectionError, Redis, RedisError

    [where, *options] = str(section.get("connection_string", "localhost:6379")).split(",")
    told = dict(option.partition("=")[::2] for option in options)
    host, _, port = where.rpartition(":")
    subject = f"Redis of {variable}"
    client = Redis(
        host=host or where,
        port=int(port) if host and port.isdecimal() else 6379,
        db=int(told.get("db", "0")),
        username=told.get("username"),
        password=told.get("password"),
        ssl=told.get("ssl", "").lower() == "true",
        ssl_ca_certs=told.get("ssl_ca_certs"),
        socket_timeout=wait_s,
        socket_connect_timeout=wait_s,
    )
    with client:
        try:
            known: Mapping[str, Any] = client.info()  # type: ignore[assignment]
            number = str(known.get("redis_version", "0"))
            said = f"{where}, version {number}"
            if int(number.partition(".")[0]) < _TESTED_FROM:
                yield warning(subject, said, f"upgrade: Tradeloop is tested from Redis {_TESTED_FROM} on")
            else:
                yield ok(subject, said)
            if known.get("maxmemory") and known.get("maxmemory_policy") == "noeviction":
                remedy = "set maxmemory-policy to allkeys-lru: a full Redis that refuses writes stops preprocess"
                yield warning(subject, "it refuses writes when it is full", remedy)
            yield from offset(subject, clock, lambda: _redis_time(client.time()))
        except ConnectionError as error:  # a wrong password is one, too
            yield failed(subject, f"{where}: {error}", f"start it, or mend connection_string in {variable}")
        except RedisError as error:
            yield failed(subject, f"{where}: {error}", f"mend the user or the password in {variable}")


def _redis_time(told: Any) -> ServerTime:
    seconds, microseconds = told
    return ServerTime(float(seconds) + float(microseconds) / 1e6, 0.0)


def mlflow(variable: str, uri: str, wait_s: float, clock: Clock) -> Iterator[Finding]:
    """The model registry at an address: a server, or a file of SQLite."""
    parts = urlsplit(uri)
    subject = f"MLflow of {variable}"
    if parts.scheme == "sqlite":
        file = Path(uri.removeprefix("sqlite:///"))
        if file.exists():
            yield ok(subject, f"{file}")
        else:
            yield warning(subject, f"{file} is not there yet", "the first training makes it")
        return
    if parts.scheme not in ("http", "https"):
        yield warning(subject, f"{address(uri)} cannot be looked at here", "give http://USER:PASSWORD@HOST:PORT")
        return
    base = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    headers = {}
    if user:
        headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    try:
        asked = _Asked(f"{base}/version", wait_s, headers)
        yield from _version(subject, base, asked.body)
        yield from offset(subject, clock, lambda: _Asked(f"{base}/health", wait_s, headers).time)
        found = json.loads(_Asked(f"{base}/api/2.0/mlflow/experiments/search?max_results=1", wait_s, headers).body)
        if not isinstance(found, dict):
            raise ValueError("its answer is no object")
        yield ok(f"registry of {variable}", f"models may be read as {user or 'nobody'}")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            remedy = f"mend user and password in {variable}: http://USER:PASSWORD@HOST:PORT"
            yield failed(subject, f"{base} does not let {user or 'nobody'} in ({error.code})", remedy)
        else:
            yield failed(subject, f"{base} answers {error.code}", "see its log")
    except OSError as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        yield failed(subject, f"{base}: {reason}", f"start it, or mend {variable}")
    except ValueError as error:
        yield failed(subject, f"{base} is no MLflow: {error}", f"mend {variable}")


def _version(subject: str, base: str, body: str) -> Iterator[Finding]:
    there = body.strip()
    if not there[:1].isdecimal():
        raise ValueError("it tells no version")
    try:
        here = version("mlflow")
    except PackageNotFoundError:
        here = version("mlflow-skinny")
    if there.partition(".")[0] == here.partition(".")[0]:
        yield ok(subject, f"{base}, version {there}")
    else:
        yield warning(subject, f"{base}, version {there}, and the client is {here}", "bring both to one major version")


class _Asked:
    """A page of a server."""

    def __init__(self, url: str, wait_s: float, headers: Mapping[str, str]) -> None:
        request = urllib.request.Request(url, headers=dict(headers))
        trusted = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
        with urllib.request.urlopen(request, timeout=wait_s, context=trusted) as answer:
            self.body = answer.read(1 << 20).decode(errors="replace")
            self._date = answer.headers.get("Date")

    @property
    def time(self) -> ServerTime:
        """Raises `ValueError` where it tells none."""
        if self._date is None:
            raise ValueError("it tells no time")
        return ServerTime(parsedate_to_datetime(self._date).timestamp(), 1.0)
