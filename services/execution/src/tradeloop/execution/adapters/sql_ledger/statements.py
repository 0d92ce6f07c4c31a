"""The statements of the ledger, in the words of SQLite and of PostgreSQL.

They run on the driver's own cursor: several are run for every bar, and through SQLAlchemy each costs many times what
the driver needs.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import structlog
from sqlalchemy import Connection

from tradeloop.common.sql.engine import complaint
from tradeloop.execution.adapters.ledger_versions import SCHEMA
from tradeloop.execution.adapters.sql_ledger.rows import Row
from tradeloop.execution.adapters.sql_ledger.tables import log_positions, make_tables, metadata

log = structlog.get_logger(__name__)

_STANDS = "revision = ? AND marked_us = ? AND decided_us = ?"
_END_THOSE_THAT_HANG = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND usename = current_user AND wait_event = 'ClientRead'
AND xact_start < clock_timestamp() - make_interval(secs => %s)
AND pid IN (SELECT pid FROM pg_locks WHERE granted AND mode = 'RowExclusiveLock' AND relation = ANY(%s::regclass[]))
"""
"""Ends sessions of the same user that changed the ledger and wait for their process to say what is next."""
_TABLES = [table.name for table in metadata.sorted_tables]


class BookMoved(Exception):
    """A book does not stand where the statement says."""


class Sqlite:
    """One file. A transaction takes the lock of writers when it begins, so that it cannot fail for it half way."""

    in_names = "IN (SELECT value FROM json_each(?))"
    error: type[Exception] = sqlite3.Error

    def words(self, sql: str) -> str:
        return sql

    def moving(self, sql: str) -> str:
        """A statement on a book that raises `BookMoved` in a transaction when it changes no row."""
        return sql

    def names(self, portfolios: Sequence[str]) -> object:
        return json.dumps(list(portfolios))

    def find_tables(self, connection: Connection) -> str | None:
        driver: Any = connection.connection.driver_connection
        self.transact(driver, lambda _: make_tables(connection))
        return None

    def transact(self, driver: Any, work: Callable[[Any], None]) -> None:
        cursor = driver.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        try:
            work(cursor)
            cursor.execute("COMMIT")
        except BaseException:
            if driver.in_transaction:
                cursor.execute("ROLLBACK")
            raise

    def move(self, cursor: Any, sql: str, rows: Sequence[Row]) -> None:
        if rows and cursor.executemany(sql, rows).rowcount != len(rows):
            raise BookMoved


class Postgresql:
    """A server. The statements of a transaction are sent together and answered together, in one round trip.

    A process that hangs in the midst of that keeps what it changed locked for as long as it hangs: whoever waited for
    a lock for `hung_s` ends the sessions of such.
    """

    in_names = "= ANY(?)"
    error: type[Exception] = psycopg.Error

    def __init__(self, hung_s: float) -> None:
        self._hung_s = hung_s

    def words(self, sql: str) -> str:
        return sql.replace("?", "%s")

    def moving(self, sql: str) -> str:
        """As in SQLite; with no round trip to ask for the number of rows, it is what one is divided by."""
        return self.words(f"WITH moved AS ({sql} RETURNING 1) SELECT 1 / count(*) FROM moved")

    def names(self, portfolios: Sequence[str]) -> object:
        return list(portfolios)

    def find_tables(self, connection: Connection) -> str | None:
        return complaint(connection, SCHEMA)

    def transact(self, driver: Any, work: Callable[[Any], None]) -> None:
        # One transaction without BEGIN and COMMIT, since the connection is told to begin none by itself.
        try:
            with driver.pipeline(), driver.cursor() as cursor:
                work(cursor)
        except psycopg.errors.DivisionByZero as error:
            raise BookMoved from error
        except psycopg.errors.LockNotAvailable:
            ended = driver.execute(_END_THOSE_THAT_HANG, [self._hung_s, _TABLES]).fetchall()
            if ended:
                log.warning("a process that hangs had rows locked: its transaction is ended", sessions=len(ended))
            raise

    def move(self, cursor: Any, sql: str, rows: Sequence[Row]) -> None:
        if rows:
            cursor.executemany(sql, rows)


class Statements:
    """All of them, for one database."""

    def __init__(self, database: Sqlite | Postgresql) -> None:
        words, moving, named = database.words, database.moving, f"portfolio {database.in_names}"
        self.load = words(
            f"SELECT portfolio, revision, marked_us, decided_us, state, signal FROM execution_books WHERE {named}"
        )
        self.portfolios = words("SELECT portfolio FROM execution_books ORDER BY portfolio")
        self.unsent = words(
            f"SELECT portfolio, input_id, messages FROM execution_outbox WHERE {named} ORDER BY revision, place"
        )
        self.drop_outputs = words("DELETE FROM execution_outbox WHERE portfolio = ? AND input_id = ?")
        self.insert_outputs = words(
            "INSERT INTO execution_outbox (portfolio, input_id, revision, place, messages) VALUES (?, ?, ?, ?, ?)"
        )
        self.go_on = moving(
            "UPDATE execution_books SET revision = ?, marked_us = ?, decided_us = ?, state = ?"
            f" WHERE portfolio = ? AND {_STANDS}"
        )
        self.go_on_with_signal = moving(
            "UPDATE execution_books SET revision = ?, marked_us = ?, decided_us = ?, state = ?, signal = ?"
            f" WHERE portfolio = ? AND {_STANDS}"
        )
        # The releases before made a row when they first looked for a book.
        self.begin = moving(
            "INSERT INTO execution_books AS book (revision, marked_us, decided_us, state, signal, portfolio)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (portfolio) DO UPDATE SET revision = excluded.revision,"
            " marked_us = excluded.marked_us, decided_us = excluded.decided_us, state = excluded.state,"
            " signal = excluded.signal WHERE book.revision = 0 AND book.marked_us = -1 AND book.decided_us = -1"
        )
        self.upsert_order = words(
            "INSERT INTO execution_orders (order_id, portfolio, account, decision_us, instrument, side, quantity,"
            " filled_quantity, status) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (order_id) DO UPDATE SET"
            " status = excluded.status, filled_quantity = excluded.filled_quantity"
        )
        self.insert_fill = words(
            "INSERT INTO execution_fills (fill_id, order_id, portfolio, account, time_us, instrument, side, quantity,"
            " price, fee, reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        )
        self.offsets = f'SELECT topic, "partition", log, next_offset FROM {log_positions.name}'
        # An offset of another log says nothing about this one; earlier releases did not store which log it was.
        self.upsert_offset = words(
            f'INSERT INTO {log_positions.name} AS old (topic, "partition", log, next_offset) VALUES (?, ?, ?, ?)'
            ' ON CONFLICT (topic, "partition") DO UPDATE SET'
            " next_offset = CASE WHEN old.next_offset > excluded.next_offset AND"
            " (old.log IN ('', excluded.log) OR excluded.log = '') THEN old.next_offset ELSE excluded.next_offset END,"
            " log = CASE WHEN excluded.log = '' THEN old.log ELSE excluded.log END"
        )
