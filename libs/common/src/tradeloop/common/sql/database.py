"""`Database`: a store's transactions, with its tables there and with the errors of its port.

Needs the extra `bars`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, Table
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.schema import CreateTable

from tradeloop.common.errors import Unavailable
from tradeloop.common.sql.engine import Schema, address, cause, complaint, file_of, is_about_data, open_engine

FindTables = Callable[[Connection], str | None]
"""Makes the tables of a store where it may, and says why the store cannot work on the database yet, with the remedy;
None when it can."""


class Database:
    """The database of one store, connected on first use. Safe between threads and between processes.

    `what` names the store in messages, `unavailable` is its port's error. `find_tables` is asked until a transaction
    was a success. Raises `UserError` for a URL of no known database.
    """

    def __init__(self, url: str, what: str, unavailable: type[Unavailable], find_tables: FindTables) -> None:
        self._engine = open_engine(url, what)
        self._what = what
        self._unavailable = unavailable
        self._find_tables = find_tables
        self._ready = False

    @property
    def engine(self) -> Engine:
        """The engine, for what depends on the kind of database."""
        return self._engine

    @property
    def address(self) -> str:
        """The database, without its password."""
        return address(self._engine.url)

    @property
    def file(self) -> Path | None:
        """The file that it is in; None for a server, and for one in memory."""
        return file_of(self._engine)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One transaction, with the tables there. What is refused for its data is not the store's absence: that error
        comes through as it is, every other one as `unavailable`."""
        driver = self._engine.dialect.loaded_dbapi
        try:
            with self._engine.begin() as connection:
                if not self._ready and (lacking := self._find_tables(connection)):
                    raise self._error(lacking)
                yield connection
            self._ready = True
        except (DBAPIError, PoolTimeout, driver.Error) as error:
            if is_about_data(error):
                raise
            raise self.unavailable(cause(error)) from error

    def unavailable(self, why: str) -> Unavailable:
        """The port's error, to be raised outside a transaction; what follows takes new connections."""
        # After a failover, a connection that is kept still leads to a server that takes no writes.
        self._engine.dispose()
        return self._error(why)

    def close(self) -> None:
        """End all connections."""
        self._engine.dispose()

    def _error(self, why: str) -> Unavailable:
        return self._unavailable(f"{self._what} {self.address}: {why}")


def made_or_migrated(tables: Sequence[Table], schema: Schema) -> FindTables:
    """The usual way to tables: SQLite gets those that it lacks, a PostgreSQL has them by migration."""

    def find(connection: Connection) -> str | None:
        if connection.dialect.name != "sqlite":
            return complaint(connection, schema)
        for table in tables:
            connection.execute(CreateTable(table, if_not_exists=True))
        return None

    return find


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, object]]) -> None:
    """Insert the rows, but for those whose key is there."""
    if rows:
        insert = sqlite_insert if connection.dialect.name == "sqlite" else postgresql_insert
        connection.execute(insert(table).on_conflict_do_nothing(), [dict(row) for row in rows])
