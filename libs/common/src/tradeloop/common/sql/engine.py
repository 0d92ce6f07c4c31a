"""How the platform's stores open an SQL database: bounded waits, no password in a message, tables of a known version.

Needs the extra `bars`.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError

from tradeloop.common.addresses import address as address  # every store says where it is
from tradeloop.common.errors import UserError
from tradeloop.common.tls import postgresql_remedy

_POSTGRESQL = "postgresql+psycopg"
_REMEDY = f"give sqlite:///FILE or {_POSTGRESQL}://USER:PASSWORD@HOST/NAME"
_SQLITE_WAIT_S = 30
"""How long another process may keep a SQLite file locked."""
_WAITS = {
    # Of libpq. A server that is gone without a word is noticed within half a minute, whether we wait or send.
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
SessionTimeouts = Mapping[str, int]
"""Milliseconds that PostgreSQL lets a session take, by the name of its setting."""
TIMEOUTS: SessionTimeouts = {"idle_in_transaction_session_timeout": 60_000}
"""A process that hangs in the midst of a transaction keeps its locks, and all others wait for as long as it hangs."""
_STATES_OF_DATA = {
    "22",  # data exception
    "23",  # integrity constraint violation
    "54",  # program limit exceeded: a row that is too long
}
"""Classes of SQLSTATE, the first two characters of a code."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one store, and how PostgreSQL gets them: Alembic's migrations in a folder."""

    name: str
    """Names the table that holds the version: `<name>_version`."""
    versions: Path
    head: str
    """The version that this code needs. Versions are digits of one length, so that they compare as text."""
    improve: Callable[[Connection], None] = lambda connection: None
    """Brings the tables to the best that the server can do; called by every migration, after its versions."""
    tier: Callable[[Connection], str] = lambda connection: connection.dialect.name
    """The tier that the tables have now."""


def open_engine(url: str, what: str, timeouts: SessionTimeouts = TIMEOUTS) -> Engine:
    """An engine for `sqlite:///FILE` or `postgresql+psycopg://USER:PASSWORD@HOST/NAME`; it connects on first use.

    Waits for PostgreSQL, and how long it waits for us in a transaction, are bounded unless the URL says otherwise.
    Raises `UserError` for any other URL; `what` names the store in it.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the latter of a port, which may be a part of the password
        raise UserError(f"{what}: no URL of a database: {_REMEDY}, with `/`, `:` and `@` encoded") from None
    if parsed.drivername not in ("sqlite", _POSTGRESQL):
        raise UserError(f"{what}: {address(parsed)} is no address for it: {_REMEDY}")
    waits = {name: value for name, value in _WAITS.items() if name not in parsed.query}
    if parsed.drivername == _POSTGRESQL:
        engine = create_engine(parsed, pool_pre_ping=True, connect_args=waits)
        own = str(parsed.query.get("options", ""))
        bounds = {name: timeout_ms for name, timeout_ms in timeouts.items() if not re.search(rf"\b{name}\b", own)}
        event.listen(engine, "connect", partial(_bound, bounds))
        return engine
    engine = create_engine(parsed, pool_pre_ping=True)
    event.listen(engine, "connect", _set_up_sqlite)
    return engine


def _bound(timeouts: SessionTimeouts, connection: DBAPIConnection, _: object) -> None:
    cursor = connection.cursor()
    for name, timeout_ms in timeouts.items():
        cursor.execute("SELECT set_config(%s, %s, false)", (name, str(timeout_ms)))
    cursor.close()
    connection.commit()


def _set_up_sqlite(connection: DBAPIConnection, _: object) -> None:
    """Readers and a writer side by side; a power cut may lose the last write, never break the file."""
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={_SQLITE_WAIT_S * 1000}")
    cursor.execute("PRAGMA synchronous=NORMAL")
    # A checkpoint writes each page that changed once and waits for the disk. A book changes the same pages at every
    # bar, so that few checkpoints write little; 16 MB of log are the price.
    cursor.execute("PRAGMA wal_autocheckpoint=4000")
    deadline = time.monotonic() + _SQLITE_WAIT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            # Whoever turns a new file to the write-ahead log locks it, and SQLite does not wait for that lock.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def file_of(engine: Engine) -> Path | None:
    """The file of an SQLite database; None for a server, and for a database in memory."""
    name = engine.url.database
    return Path(name) if engine.dialect.name == "sqlite" and name else None


def cause(error: Exception) -> str:
    """The words of a database or its driver, on one line, with the remedy where they are about TLS."""
    said = " ".join(str(error.orig if isinstance(error, DBAPIError) else error).split())
    remedy = postgresql_remedy(said)
    return f"{said}; {remedy}" if remedy else said


def is_about_data(error: Exception) -> bool:
    """Whether a database or its driver refused what it was given; anything else is no fault of who asked.

    A server that takes no writes, has no room, or does not let its user in would refuse everybody, and answers when
    somebody has repaired it: what is not known for certain to be about the data counts as that.
    """
    reason = error.orig if isinstance(error, DBAPIError) else error
    state: str | None = getattr(reason, "sqlstate", None)
    if state is not None:
        return state[:2] in _STATES_OF_DATA
    # Without one it comes from the driver, before or instead of an answer. The standard gives every driver these.
    names = {kind.__name__ for kind in type(reason).__mro__}
    return not names.isdisjoint({"IntegrityError", "DataError", "ProgrammingError", "NotSupportedError"})


def refuses_writes(connection: Connection, needs: Mapping[str, Sequence[str]]) -> str | None:
    """Why nothing could be written now, and the remedy; None when it can. Nothing is written.

    A server that only reads answers every question as if it were well: this is the one that it cannot. `needs` are
    the privileges that the store cannot do without, by table.
    """
    if connection.dialect.name == "sqlite":
        for table in needs:
            connection.exec_driver_sql(f"DELETE FROM {table} WHERE 0")  # a write, of nothing: raises where none may be
        return None
    wanted = [(table, privilege) for table, privileges in needs.items() for privilege in privileges]
    asked = ", ".join(f"has_table_privilege('{table}', '{privilege}')" for table, privilege in wanted)
    read_only, *granted = connection.exec_driver_sql(f"SELECT current_setting('transaction_read_only'), {asked}").one()
    if read_only == "on":
        return "it takes no writes: it is a replica, or was set to read-only"
    lacking = [
        f"GRANT {privilege} ON {table}" for (table, privilege), yes in zip(wanted, granted, strict=True) if not yes
    ]
    return f"its user may not write: {'; '.join(lacking)}" if lacking else None


def version(connection: Connection, schema: Schema) -> str | None:
    """The version of a schema's tables; None where no migration ever ran."""
    table = f"{schema.name}_version"
    if not inspect(connection).has_table(table):
        return None
    found: str | None = connection.scalar(text(f"SELECT version_num FROM {table}"))
    return found


def complaint(connection: Connection, schema: Schema) -> str | None:
    """Why a store cannot work on this PostgreSQL yet, and the remedy; None when it can.

    Tables newer than this code are taken: a migration never breaks the release before it.
    """
    found = version(connection, schema)
    if found is not None and found >= schema.head:
        return None
    state = "it has no tables yet" if found is None else f"its tables have version {found}, {schema.head} is needed"
    return f"{state}; run: tradeloop db migrate"
