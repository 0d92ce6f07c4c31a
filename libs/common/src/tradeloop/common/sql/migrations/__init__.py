"""Migrations of the platform's tables in PostgreSQL, by Alembic, for `tradeloop db migrate`.

A migration is one transaction under a lock of the database: it happens as a whole or not at all, and of several that
start together one does the work and the others find it done. It never breaks the release before it (what is added
may be missing, what is dropped was unused), so that replicas can be replaced one by one. There are no downgrades: to
go back, run the older release on the migrated database, or restore the backup that was made before
(`pg_dump --format=custom DATABASE`, then `pg_restore --clean --if-exists`; with TimescaleDB between
`SELECT timescaledb_pre_restore()` and `SELECT timescaledb_post_restore()`).

SQLite is not migrated: stores make their tables in it by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from tradeloop.common.errors import Unavailable, UserError
from tradeloop.common.sql.engine import Schema, address, cause, open_engine, version


class MigrationFailed(Unavailable):
    """The database cannot be reached, or refused. It is as it was; trying again is safe."""


@dataclass(frozen=True, slots=True)
class State:
    """The state of the tables of one schema in one database."""

    version: str | None
    """None for no tables."""
    tier: str


def migrate(url: str, schema: Schema) -> tuple[State, State]:
    """Bring a PostgreSQL database to the newest version of a schema. Returns what was and what is.

    Doing it again changes nothing. Raises `MigrationFailed`, and `UserError` for an address that is none of
    PostgreSQL.
    """
    # Importing Alembic takes a while, and services never need it.
    from alembic import command
    from alembic.config import Config

    with _transaction(url, schema) as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": crc32(b"tradeloop db migrate")})
        before = _state(connection, schema)
        if before.version is None or before.version < schema.head:
            config = Config()
            # Options of an ini file, in which a single percent sign would mean another option.
            options = {"script_location": Path(__file__).parent, "version_locations": schema.versions}
            for name, value in options.items():
                config.set_main_option(name, str(value).replace("%", "%%"))
            config.set_main_option("path_separator", "newline")
            config.attributes |= {"connection": connection, "version_table": f"{schema.name}_version"}
            command.upgrade(config, "head")
        schema.improve(connection)
        return before, _state(connection, schema)


def current(url: str, schema: Schema) -> State:
    """The state of a PostgreSQL database. Raises as `migrate` does."""
    with _transaction(url, schema) as connection:
        return _state(connection, schema)


def _state(connection: Connection, schema: Schema) -> State:
    return State(version(connection, schema), schema.tier(connection))


@contextmanager
def _transaction(url: str, schema: Schema) -> Iterator[Connection]:
    engine = open_engine(url, f"{schema.name} database")
    if engine.dialect.name == "sqlite":
        raise UserError(f"{schema.name} database: {address(engine.url)} needs no migration: give one in PostgreSQL")
    try:
        with engine.begin() as connection:
            yield connection
    except DBAPIError as error:
        raise MigrationFailed(f"{schema.name} database {address(engine.url)}: {cause(error)}") from error
    finally:
        engine.dispose()
