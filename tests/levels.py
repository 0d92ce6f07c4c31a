"""Databases of each level that bars can be at, from what `servers.py` has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from sqlalchemy import make_url

from deploy.native.postgres import driver_url
from tests.servers import fresh_database, level_of
from tradeloop.common.sql_bars import Level


@contextmanager
def database_for(request: pytest.FixtureRequest, level: Level) -> Iterator[str]:
    """A new database that a migration of the bars brings to a level, by its SQLAlchemy URL.

    Skips the test where the license of the server's TimescaleDB does not allow the level: only the community's own
    packages and images have it.
    """
    server = "plain_postgres" if level is Level.POSTGRESQL else "postgres"
    with fresh_database(request.getfixturevalue(server)) as url:
        best = level_of(url)
        if level is not Level.POSTGRESQL and best == "plain":
            pytest.fail("the server has no TimescaleDB")
        if level is Level.COMMUNITY and best != "community":
            pytest.skip("the server's TimescaleDB has the Apache license, without compression and aggregates")
        if level is Level.APACHE and best == "community":
            # Not in a session that has a license already.
            unlicensed = make_url(url).update_query_dict({"options": "-ctimescaledb.disable_load=on"})
            change = f"ALTER DATABASE {unlicensed.database} SET timescaledb.license = 'apache'"
            execute(unlicensed.render_as_string(hide_password=False), change)
        yield url


def execute(url: str, *statements: str) -> list[tuple[object, ...]]:
    """Run statements, each its own transaction; what the last one returns."""
    with psycopg.connect(driver_url(url), autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []
