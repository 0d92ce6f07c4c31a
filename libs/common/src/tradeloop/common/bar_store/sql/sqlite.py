"""Bars in SQLite: one file, many readers beside one writer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain, islice
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable

from tradeloop.common.bar_store.rows import STORED, columns_of, parsed, rows_of, with_extra
from tradeloop.common.bar_store.sql.table import BARS
from tradeloop.common.market import BarArrays, Series, Timeframe, joined

_INSERT = (
    f"INSERT INTO bars (instrument, timeframe, revision, known_us, {', '.join(STORED)}) "
    f"VALUES ({', '.join('?' * (4 + len(STORED)))}) ON CONFLICT DO NOTHING"
)
# With a lone max(), SQLite takes the other columns from the row that has it.
_CURRENT = (
    f"SELECT {', '.join(STORED)}, max(revision) FROM bars "
    "WHERE instrument = ? AND timeframe = ? AND known_us <= ? AND open_us < ?"
)
_EXTRA_COLUMNS = (
    "SELECT DISTINCT json_each.key FROM bars, json_each(bars.extra) "
    "WHERE instrument = ? AND timeframe = ? AND open_us >= ? AND open_us < ?"
)
_HAS_EXTRA = "SELECT 1 FROM pragma_table_info('bars') WHERE name = 'extra'"
_AT_ONCE = 10_000
"""Bars that are Python objects at the same time."""
_BEFORE = f"{_CURRENT} GROUP BY open_us ORDER BY open_us DESC LIMIT ?"
_BETWEEN = f"{_CURRENT} AND open_us >= ? GROUP BY open_us ORDER BY open_us"


class SqliteBars:
    """The statements of SQLite, in the transaction of a connection."""

    def find_table(self, connection: Connection) -> str | None:
        """Create it where it is not there, and give it the column that those of earlier releases lack; then it can be
        used."""
        connection.execute(CreateTable(BARS, if_not_exists=True))
        if not connection.exec_driver_sql(_HAS_EXTRA).first():
            try:
                connection.exec_driver_sql("ALTER TABLE bars ADD COLUMN extra TEXT")
            except DBAPIError:
                if not connection.exec_driver_sql(_HAS_EXTRA).first():  # unless another process was faster
                    raise
        return None

    def insert(
        self, connection: Connection, timeframe: Timeframe, bars: BarArrays, revision: int, known_us: int
    ) -> None:
        """Store the present bars, but for those whose revision is there."""
        rows = (
            (instrument, timeframe.value, revision, known_us, *row)
            for a, instrument in enumerate(bars.instruments)
            for start in range(0, len(bars), _AT_ONCE)
            for row in rows_of(bars.slice(start, start + _AT_ONCE), a)
        )
        while block := list(islice(rows, _AT_ONCE)):
            # Straight to the driver: SQLAlchemy's care for each row's parameters takes four times as long.
            connection.exec_driver_sql(_INSERT, block)

    def between(
        self,
        connection: Connection,
        instruments: Sequence[str],
        timeframe: Timeframe,
        start_us: int,
        end_us: int,
        known_us: int,
    ) -> list[Series]:
        """Each instrument's bars of a range, after the last one before it; as they were known."""
        histories: list[Series] = []
        with closing(_cursor(connection)) as cursor:
            for instrument in instruments:
                key = (instrument, timeframe.value, known_us)
                carried = cursor.execute(_BEFORE, (*key, min(start_us, end_us), 1)).fetchall()
                histories.append(_series(chain(carried, cursor.execute(_BETWEEN, (*key, end_us, start_us)))))
        return histories

    def before(
        self,
        connection: Connection,
        instruments: Sequence[str],
        timeframe: Timeframe,
        end_us: int,
        frames: int,
        known_us: int,
    ) -> list[Series]:
        """Each instrument's last bars before a time; as they were known."""
        key = (timeframe.value, known_us, end_us, frames)
        histories: list[Series] = []
        with closing(_cursor(connection)) as cursor:
            for instrument in instruments:
                latest_first = _series(cursor.execute(_BEFORE, (instrument, *key)))
                histories.append({name: column[::-1] for name, column in latest_first.items()})
        return histories

    def extra_columns(
        self, connection: Connection, instruments: Sequence[str], timeframe: Timeframe, start_us: int, end_us: int
    ) -> Iterator[str]:
        """The further columns of any bar of a range."""
        for instrument in instruments:
            key = (instrument, timeframe.value, start_us, end_us)
            yield from connection.exec_driver_sql(_EXTRA_COLUMNS, key).scalars()


def _cursor(connection: Connection) -> Any:
    """The driver's own: of one bar each of many instruments, SQLAlchemy's answers take longer than the database."""
    return connection.connection.cursor()


def _series(rows: Iterator[tuple[object, ...]]) -> Series:
    """The series of rows in their order, without their revision."""
    # Years of minutes as Python objects would take ten times the memory of the arrays.
    parts = []
    while block := list(islice(rows, _AT_ONCE)):
        *columns, extra, _ = zip(*block, strict=True)
        bars = columns_of(columns)
        parts.append(with_extra(bars, parsed(extra)) if any(extra) else bars)
    return joined(parts) if parts else columns_of([])
