"""Databases of each storage tier, from what `servers.py` has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from sqlalchemy import make_url

from deploy.native.postgres import driver_url
from tests.servers import fresh_database, tier_of
from tradeloop.common.bar_store.sql import StorageTier

_OFFERS = {StorageTier.POSTGRESQL: "plain", StorageTier.APACHE: "apache", StorageTier.COMMUNITY: "community"}


@contextmanager
def database_for(request: pytest.FixtureRequest, tier: StorageTier) -> Iterator[str]:
    """A new database that a migration of the bars brings to a tier, by its SQLAlchemy URL.

    Skips the test where the server's TimescaleDB has the license of another tier, which holds for a whole server.
    """
    server = "plain_postgres" if tier is StorageTier.POSTGRESQL else "postgres"
    with fresh_database(request.getfixturevalue(server)) as url:
        offered = tier_of(url)
        if offered == "plain" and tier is not StorageTier.POSTGRESQL:
            pytest.fail("the server has no TimescaleDB")
        if offered != _OFFERS[tier]:
            pytest.skip(f"the server's TimescaleDB is licensed as {offered}")
        yield url


def execute(url: str, *statements: str) -> list[tuple[object, ...]]:
    """Run statements, each its own transaction; what the last one returns."""
    with psycopg.connect(driver_url(url), autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


@contextmanager
def read_only(url: str) -> Iterator[None]:
    """A database that takes no writes of new connections, as after a failover; those that are there are closed."""
    name = make_url(url).database
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    others += " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    execute(url, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on', others)
    try:
        yield
    finally:
        execute(url, "SET default_transaction_read_only = off", f'ALTER DATABASE "{name}" RESET ALL')
