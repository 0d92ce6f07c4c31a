"""Databases of each level that bars can be at, from what `servers.py` has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from deploy.native.postgres import driver_url
from tests.servers import fresh_database, level_of
from tradeloop.common.bar_store.sql import Level

_OFFERS = {Level.POSTGRESQL: "plain", Level.APACHE: "apache", Level.COMMUNITY: "community"}


@contextmanager
def database_for(request: pytest.FixtureRequest, level: Level) -> Iterator[str]:
    """A new database that a migration of the bars brings to a level, by its SQLAlchemy URL.

    Skips the test where the server's TimescaleDB has the license of another level, which holds for a whole server.
    """
    server = "plain_postgres" if level is Level.POSTGRESQL else "postgres"
    with fresh_database(request.getfixturevalue(server)) as url:
        offered = level_of(url)
        if offered == "plain" and level is not Level.POSTGRESQL:
            pytest.fail("the server has no TimescaleDB")
        if offered != _OFFERS[level]:
            pytest.skip(f"the server's TimescaleDB is licensed as {offered}")
        yield url


def execute(url: str, *statements: str) -> list[tuple[object, ...]]:
    """Run statements, each its own transaction; what the last one returns."""
    with psycopg.connect(driver_url(url), autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []
