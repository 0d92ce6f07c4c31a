"""Bars in SQLite: one file, many readers beside one writer."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection
from sqlalchemy.schema import CreateTable

from tradeloop.common.bar_store.rows import columns_of, rows_of
from tradeloop.common.bar_store.sql.table import BARS
from tradeloop.common.market import BAR_COLUMNS, BarArrays, Series, Timeframe

_INSERT = (
    f"INSERT INTO bars (instrument, timeframe, revision, known_us, open_us, {', '.join(BAR_COLUMNS)}) "
    f"VALUES ({', '.join('?' * (5 + len(BAR_COLUMNS)))}) ON CONFLICT DO NOTHING"
)
# With a lone max(), SQLite takes the other columns from the row that has it.
_CURRENT = (
    f"SELECT open_us, {', '.join(BAR_COLUMNS)}, max(revision) FROM bars "
    "WHERE instrument = ? AND timeframe = ? AND known_us <= ? AND open_us < ?"
)
_BEFORE = f"{_CURRENT} GROUP BY open_us ORDER BY open_us DESC LIMIT ?"
_BETWEEN = f"{_CURRENT} AND open_us >= ? GROUP BY open_us ORDER BY open_us"


class SqliteBars:
    """The statements of SQLite, in the transaction of a connection."""

    def find_table(self, connection: Connection) -> None:
        """Create it where it is not there."""
        connection.execute(CreateTable(BARS, if_not_exists=True))

    def insert(
        self, connection: Connection, timeframe: Timeframe, bars: BarArrays, revision: int, known_us: int
    ) -> None:
        """Store the present bars, but for those whose revision is there."""
        for a, instrument in enumerate(bars.instruments):
            key = (instrument, timeframe.value, revision, known_us)
            if rows := [(*key, *row) for row in rows_of(bars, a)]:
                # Straight to the driver: SQLAlchemy's care for each row's parameters takes four times as long.
                connection.exec_driver_sql(_INSERT, rows)

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
        run = connection.exec_driver_sql
        histories = []
        for instrument in instruments:
            key = (instrument, timeframe.value, known_us)
            carried = run(_BEFORE, (*key, min(start_us, end_us), 1)).all()
            histories.append(_series([*carried, *run(_BETWEEN, (*key, end_us, start_us)).all()]))
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
        return [
            _series(connection.exec_driver_sql(_BEFORE, (instrument, *key)).all()[::-1]) for instrument in instruments
        ]


def _series(rows: Sequence[Sequence[object]]) -> Series:
    """The series of rows in order of time, without their revision."""
    return columns_of(list(zip(*rows, strict=True))[:-1])
