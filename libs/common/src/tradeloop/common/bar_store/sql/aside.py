"""Bars that were dropped: in SQLite they are moved, with all their revisions and the reason, into a table of their own.

PostgreSQL has none: services may only add to its bars, and what reads them beside us would not learn of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Column, Connection, MetaData, Table, Text
from sqlalchemy.schema import CreateTable

from tradeloop.common.bar_store.rows import STORED, columns_of
from tradeloop.common.bar_store.sql.table import BARS
from tradeloop.common.errors import UserError
from tradeloop.common.market import Series, Timeframe

ASIDE = Table(
    "bars_aside",
    MetaData(),
    *(Column(one.name, one.type, primary_key=one.primary_key, nullable=one.nullable) for one in BARS.columns),
    Column("aside_us", BARS.c.known_us.type, primary_key=True, autoincrement=False),
    Column("reason", Text, nullable=False),
    sqlite_with_rowid=False,
)
"""`aside_us` is when a bar was dropped: it may be stored anew, and be dropped again."""

_KEY = "instrument = ? AND timeframe = ? AND open_us = ?"
_COLUMNS = ", ".join(one.name for one in BARS.columns)
_MOVE = (
    f"INSERT OR IGNORE INTO bars_aside ({_COLUMNS}, aside_us, reason) SELECT {_COLUMNS}, ?, ? FROM bars WHERE {_KEY}",
    f"DELETE FROM bars WHERE {_KEY}",
)
# With a lone max(), SQLite takes the other columns from the row that has it: the revision dropped last.
_LAST = (
    f"SELECT {', '.join(STORED[:-1])}, max(aside_us * 1000 + revision) FROM bars_aside "
    "WHERE instrument = ? AND timeframe = ? GROUP BY open_us ORDER BY open_us"
)


def set_aside(
    connection: Connection, instrument: str, dropped: Mapping[Timeframe, Mapping[int, str]], now_us: int
) -> None:
    """Move bars, by timeframe and open time, with the reason of each. Raises `UserError` where it cannot be done."""
    if connection.dialect.name != "sqlite":
        raise UserError("bars of PostgreSQL are not dropped, since services may only add to them: correct their source")
    _create(connection)
    move, delete = _MOVE
    for timeframe, reasons in dropped.items():
        for open_us, reason in reasons.items():
            key = (instrument, timeframe.value, open_us)
            connection.exec_driver_sql(move, (now_us, reason, *key))
            connection.exec_driver_sql(delete, key)


def last_aside(connection: Connection, instrument: str, timeframe: Timeframe) -> Series:
    """The bars that were dropped, each as it was dropped last."""
    if connection.dialect.name != "sqlite":
        return columns_of(())
    _create(connection)
    rows = connection.exec_driver_sql(_LAST, (instrument, timeframe.value)).all()
    *columns, _ = zip(*rows, strict=True) if rows else ((),)
    return columns_of(columns)


def _create(connection: Connection) -> None:
    connection.execute(CreateTable(ASIDE, if_not_exists=True))
