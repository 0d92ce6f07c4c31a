"""`SqlLedger`: the ledger, whatever the database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from tradeloop.common.bus.port import Partition
from tradeloop.common.messages import Message
from tradeloop.common.sql.engine import TIMEOUTS, address, cause, file_of, is_about_data, open_engine, refuses_writes
from tradeloop.execution.adapters.logs import nameless, offsets_that_count
from tradeloop.execution.adapters.sql_ledger.pruning import Pruned, prune
from tradeloop.execution.adapters.sql_ledger.rows import (
    Row,
    fills_of,
    messages_of,
    orders_of,
    outputs_of,
    record_of,
    state_of,
)
from tradeloop.execution.adapters.sql_ledger.statements import BookMoved, Postgresql, Sqlite, Statements
from tradeloop.execution.adapters.sql_ledger.tables import PRIVILEGES
from tradeloop.execution.ports import Change, LedgerConflict, LedgerUnavailable, check_revision
from tradeloop.execution.record import BookRecord

T = TypeVar("T")

_NEW = BookRecord()
_HUNG_S = 10.0
"""How long a process may keep a book locked in a PostgreSQL while another one waits for it."""


class SqlLedger:
    """A ledger behind a SQLAlchemy URL. One thread, one connection.

    It connects on first use. SQLite gets its tables when they are missing; a PostgreSQL that is not migrated is
    `LedgerUnavailable`. Raises `UserError` for a URL that names no known database.

    `identity` says which log a topic is, as `Bus.identity` does, and may raise what that raises.
    """

    def __init__(self, url: str, identity: Callable[[str], str] = nameless) -> None:
        # Transactions are begun and ended here: what SQLAlchemy would do about them costs as much as the writing.
        timeouts = {**TIMEOUTS, "lock_timeout": round(_HUNG_S * 1000)}
        self._engine = open_engine(url, "ledger", timeouts).execution_options(isolation_level="AUTOCOMMIT")
        self._database = Sqlite() if self._engine.dialect.name == "sqlite" else Postgresql(_HUNG_S)
        self._sql = Statements(self._database)
        self._connection: Connection | None = None
        self._ready = False
        self._identity = identity
        self._logs: dict[str, str] = {}

    @property
    def file(self) -> Path | None:
        """The file that it is in; None for a server, and for one in memory."""
        return file_of(self._engine)

    def load(self, portfolios: Sequence[str]) -> Mapping[str, BookRecord]:
        rows = self._select(self._sql.load, self._database.names(portfolios))
        found = {portfolio: record_of(*columns) for portfolio, *columns in rows}
        return {portfolio: found.get(portfolio, _NEW) for portfolio in portfolios}

    def portfolios(self) -> Sequence[str]:
        return [portfolio for (portfolio,) in self._select(self._sql.portfolios)]

    def record(self, changes: Sequence[Change], acknowledged: Sequence[tuple[str, str]] = ()) -> None:
        if not changes:
            self.acknowledge(acknowledged, {})
            return
        for change in changes:
            check_revision(change)
        sql, move = self._sql, self._database.move
        new, same_signal, other_signal = _books_of(changes)

        def write(cursor: Any) -> None:
            move(cursor, sql.begin, new)
            move(cursor, sql.go_on, same_signal)
            move(cursor, sql.go_on_with_signal, other_signal)
            _run(cursor, sql.upsert_order, orders_of(changes))
            _run(cursor, sql.insert_fill, fills_of(changes))
            _run(cursor, sql.insert_outputs, outputs_of(changes))
            _run(cursor, sql.drop_outputs, acknowledged)

        try:
            self._transact(write)
        except BookMoved as error:
            found = self.load([change.portfolio for change in changes])
            moved = [change.portfolio for change in changes if not found[change.portfolio].stands_at(change.before)]
            raise LedgerConflict(*moved) from error

    def unsent(self, portfolios: Sequence[str]) -> Mapping[str, Sequence[tuple[str, Sequence[Message]]]]:
        found: dict[str, list[tuple[str, Sequence[Message]]]] = {}
        for portfolio, input_id, messages in self._select(self._sql.unsent, self._database.names(portfolios)):
            found.setdefault(portfolio, []).append((input_id, messages_of(messages)))
        return found

    def acknowledge(self, inputs: Sequence[tuple[str, str]], offsets: Mapping[Partition, int]) -> None:
        if not inputs and not offsets:
            return
        rows = [(topic, number, self._log_of(topic), offset) for (topic, number), offset in offsets.items()]

        def write(cursor: Any) -> None:
            _run(cursor, self._sql.drop_outputs, inputs)
            _run(cursor, self._sql.upsert_offset, rows)

        self._transact(write)

    def offsets(self) -> Mapping[Partition, int]:
        self._logs.clear()  # a topic may have been made anew since
        rows = self._select(self._sql.offsets)
        return offsets_that_count(((Partition(topic, n), log, offset) for topic, n, log, offset in rows), self._log_of)

    def check(self) -> None:
        def ask(connection: Connection) -> str | None:
            with connection.begin():
                return refuses_writes(connection, PRIVILEGES)

        if lacking := self._through(ask):
            self._disconnect()
            raise self._unavailable(lacking)

    def prune(self, older_than_us: int) -> Sequence[Pruned]:
        """Delete old orders and fills, as `pruning.prune` does. Needs the privilege, which the service does not."""
        return self._through(lambda connection: prune(_driver(connection), self._database, older_than_us))

    def close(self) -> None:
        self._disconnect()
        self._engine.dispose()

    def _log_of(self, topic: str) -> str:
        if topic not in self._logs:
            self._logs[topic] = self._identity(topic)
        return self._logs[topic]

    def _select(self, sql: str, *parameters: object) -> list[Any]:
        found: list[Any] = self._through(lambda connection: _driver(connection).execute(sql, parameters).fetchall())
        return found

    def _transact(self, work: Callable[[Any], None]) -> None:
        self._through(lambda connection: self._database.transact(_driver(connection), work))

    def _through(self, call: Callable[[Connection], T]) -> T:
        """A call with the connection, and the tables there. What is refused for its data is not the ledger's absence.

        It is a function and no context: entering and leaving those costs a tenth of a record.
        """
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
            if not self._ready:
                with self._connection.begin():
                    lacking = self._database.find_tables(self._connection)
                if lacking:
                    raise self._unavailable(lacking)
                self._ready = True
            return call(self._connection)
        except (DBAPIError, self._database.error) as error:
            if is_about_data(error):
                raise
            self._disconnect()
            raise self._unavailable(cause(error)) from error

    def _unavailable(self, why: str) -> LedgerUnavailable:
        return LedgerUnavailable(f"ledger {address(self._engine.url)}: {why}")

    def _disconnect(self) -> None:
        if self._connection is not None:
            # For good: after a failover, a connection that is kept still leads to a server that takes no writes.
            self._connection.invalidate()
            self._connection.close()
            self._connection = None


def _driver(connection: Connection) -> Any:
    """The driver's own connection."""
    return connection.connection.driver_connection


def _run(cursor: Any, sql: str, rows: Sequence[Row]) -> None:
    if rows:
        cursor.executemany(sql, rows)


def _books_of(changes: Sequence[Change]) -> tuple[list[Row], list[Row], list[Row]]:
    """The books that are new; those whose signal stays, which is long and changes once a bar; the others."""
    new: list[Row] = []
    same_signal: list[Row] = []
    other_signal: list[Row] = []
    for change in changes:
        before, after = change.before, change.after
        stood = (change.portfolio, before.revision, before.marked_us, before.decided_us)
        state = (after.revision, after.marked_us, after.decided_us, state_of(after))
        if before.stands_at(_NEW):
            new.append((*state, after.signal.decode(), change.portfolio))
        elif after.signal == before.signal:
            same_signal.append((*state, *stood))
        else:
            other_signal.append((*state, after.signal.decode(), *stood))
    return new, same_signal, other_signal
