"""The real servers that tests talk to: session-scoped fixtures that give addresses, and the servers behind them.

A server is found on the first of three roads: an address in the environment, `TRADELOOP_TEST_<SERVER>`; a container,
where a Docker engine answers and has or can get the image; a native process. What no road leads to fails the tests
that need it, in CI and at a desk.

PostgreSQL comes in storage tiers. `postgres` and `database` have the best that their server offers: `community` or
`apache`, by the license of its TimescaleDB, which is created in the database already. `plain_postgres` and
`plain_database` are on a server that has no TimescaleDB.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Literal, Protocol

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from deploy.native.kafka import kafka as kafka_program
from deploy.native.mlflow import mlflow as mlflow_program
from deploy.native.postgres import best_installation, driver_url, system_installation
from deploy.native.postgres import postgres as postgres_program
from deploy.native.redis import redis as redis_program
from deploy.native.server import Program, Server, ServerError, free_ports
from tests.notes import take_note

StorageTier = Literal["plain", "apache", "community"]


class RealServer(Protocol):
    """A server of the tests' own. Who stops or kills it starts it again before the test ends."""

    @property
    def address(self) -> str: ...

    @property
    def running(self) -> bool: ...

    def start(self) -> None:
        """Start it on its port and with its data, unless it runs; returns when it serves clients."""
        ...

    def stop(self) -> None:
        """As an operator would; returns when it has ended."""
        ...

    def kill(self) -> None:
        """As a crash would."""
        ...


Road = Callable[[], AbstractContextManager[RealServer] | None]
"""Returns a server that runs for the time of the context, or None where the road cannot be taken."""


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> str:
    """The bootstrap address, `host:port`, of an Apache Kafka without TLS that creates no topics by itself."""
    return _address(request, "kafka")


@pytest.fixture(scope="session")
def kafka_server(pytestconfig: pytest.Config) -> Iterator[RealServer]:
    with _server(pytestconfig, "kafka", container=_container("kafka"), native=lambda: _native(kafka_program)) as server:
        yield server


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[str]:
    """The SQLAlchemy URL of a database for this session, as a superuser; its tier is the best that can be had."""
    with fresh_database(_address(request, "postgres")) as url:
        yield url


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    """Like `postgres`, for one test alone."""
    with fresh_database(_address(request, "postgres")) as url:
        yield url


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config) -> Iterator[RealServer]:
    """Its address is the URL of an empty database that `fresh_database` takes."""

    def native() -> AbstractContextManager[RealServer]:
        return _native(lambda folder, port: postgres_program(folder, port, best_installation(), durable=False))

    with _server(pytestconfig, "postgres", container=_container("postgres"), native=native) as server:
        yield server


@pytest.fixture(scope="session")
def plain_postgres(request: pytest.FixtureRequest) -> Iterator[str]:
    """The SQLAlchemy URL of a database for this session on a PostgreSQL without TimescaleDB, as a superuser."""
    with fresh_database(_address(request, "plain_postgres")) as url:
        yield url


@pytest.fixture
def plain_database(request: pytest.FixtureRequest) -> Iterator[str]:
    """Like `plain_postgres`, for one test alone."""
    with fresh_database(_address(request, "plain_postgres")) as url:
        yield url


@pytest.fixture(scope="session")
def plain_postgres_server(pytestconfig: pytest.Config) -> Iterator[RealServer]:
    def native() -> AbstractContextManager[RealServer]:
        installation = system_installation()
        if installation.timescaledb:
            raise ServerError(f"{installation.name} has TimescaleDB: set TRADELOOP_TEST_PLAIN_POSTGRES to one without")
        return _native(lambda folder, port: postgres_program(folder, port, installation, durable=False))

    with _server(pytestconfig, "plain_postgres", container=_container("plain_postgres"), native=native) as server:
        yield server


@pytest.fixture(scope="session")
def redis(request: pytest.FixtureRequest) -> str:
    """The address, `host:port`, of a Redis without a password."""
    return _address(request, "redis")


@pytest.fixture(scope="session")
def redis_server(pytestconfig: pytest.Config) -> Iterator[RealServer]:
    """Keeps nothing over a restart."""
    with _server(pytestconfig, "redis", container=_container("redis"), native=lambda: _native(redis_program)) as server:
        yield server


@pytest.fixture(scope="session")
def mlflow(request: pytest.FixtureRequest) -> str:
    """The HTTP URL of an MLflow tracking server that serves artifacts itself."""
    return _address(request, "mlflow")


@pytest.fixture(scope="session")
def mlflow_server(pytestconfig: pytest.Config) -> Iterator[RealServer]:
    with _server(pytestconfig, "mlflow", native=lambda: _native(mlflow_program)) as server:
        yield server


@contextmanager
def fresh_database(server: str) -> Iterator[str]:
    """A new database, with TimescaleDB where the server has it, on the server of a superuser's SQLAlchemy URL."""
    name = sql.Identifier(f"test_{secrets.token_hex(6)}")
    url = make_url(server).set(drivername="postgresql+psycopg", database=name.as_string().strip('"'))
    fresh = url.render_as_string(hide_password=False)
    with psycopg.connect(driver_url(server), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(name))
    try:
        with psycopg.connect(driver_url(fresh), autocommit=True) as owner:
            available = "SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'"
            if owner.execute(available).fetchone():
                owner.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        yield fresh
    finally:
        with psycopg.connect(driver_url(server), autocommit=True) as admin:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def tier_of(database: str) -> StorageTier:
    """What a database, by its SQLAlchemy URL, offers beyond PostgreSQL."""
    with psycopg.connect(driver_url(database), autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'").fetchone():
            return "plain"
        row = connection.execute("SHOW timescaledb.license").fetchone()
        return "apache" if row == ("apache",) else "community"


def _address(request: pytest.FixtureRequest, server: str) -> str:
    """What the environment says, or else the address of a server that is started for it."""
    variable = f"TRADELOOP_TEST_{server.upper()}"
    if not (given := os.environ.get(variable)):
        started: RealServer = request.getfixturevalue(f"{server}_server")
        return started.address
    _take_note(request.config, server, variable, given)
    return given


@contextmanager
def _server(config: pytest.Config, server: str, **roads: Road) -> Iterator[RealServer]:
    with ExitStack() as running:
        try:
            for road, lead in roads.items():
                if context := lead():
                    started = running.enter_context(context)
                    _take_note(config, server, road, started.address)
                    break
            else:
                raise ServerError(f"none of {', '.join(roads)} leads to one")
        except ServerError as error:
            raise pytest.fail.Exception(f"no {server} for the tests: {error}", pytrace=False) from None
        yield started


def _take_note(config: pytest.Config, server: str, road: str, address: str) -> None:
    note = f"{road}, {make_url(address) if '://' in address else address}"  # such a URL prints without its password
    if address.startswith("postgresql"):
        with fresh_database(address) as database:
            note += f", {tier_of(database)}"
    take_note(config, f"server {server}", note)


def _container(server: str) -> Road:
    def road() -> AbstractContextManager[RealServer] | None:
        from tests import containers  # the engine's client takes a while to import

        return containers.container(server) if containers.obtainable(containers.IMAGES[server]) else None

    return road


@contextmanager
def _native(program: Callable[[Path, int], Program]) -> Iterator[RealServer]:
    with tempfile.TemporaryDirectory(prefix="tradeloop-") as folder:
        [port] = free_ports(1)
        with Server(program(Path(folder), port), Path(folder)) as server:
            yield server
