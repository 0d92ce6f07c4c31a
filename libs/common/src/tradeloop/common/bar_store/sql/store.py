"""`SqlBarStore`: the store, whatever the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog
from sqlalchemy import Connection, func, select

from tradeloop.common.bar_store.port import BarStoreUnavailable, Census, StoredSeries
from tradeloop.common.bar_store.rows import before, between, in_order
from tradeloop.common.bar_store.sql.aside import last_aside, set_aside
from tradeloop.common.bar_store.sql.postgresql import PostgresqlBars
from tradeloop.common.bar_store.sql.sqlite import SqliteBars
from tradeloop.common.bar_store.sql.table import BARS
from tradeloop.common.bar_store.sql.timescale import StorageTier, tier_of
from tradeloop.common.clock import Clock
from tradeloop.common.market import EVER_US, BarArrays, Series, Timeframe, to_us
from tradeloop.common.sql.database import Database
from tradeloop.common.sql.engine import refuses_writes

log = structlog.get_logger(__name__)


class SqlBarStore:
    """Bars in one table of a database, e.g. `sqlite:///bars.db`, `postgresql+psycopg://user:password@host/database`.

    Connects on first use, and logs then which tier of database it found. SQLite gets its table when it is not there,
    its folder must exist; a PostgreSQL that is not migrated is `BarStoreUnavailable`. Safe between threads and between
    processes. Raises `UserError` for a URL that names no known database.
    """

    def __init__(self, url: str, clock: Clock) -> None:
        self._database = Database(url, "bar store", BarStoreUnavailable, self._find_table)
        self._clock = clock
        engine = self._database.engine
        self._bars = SqliteBars() if engine.dialect.name == "sqlite" else PostgresqlBars(engine)

    @property
    def tier(self) -> StorageTier:
        """The tier that holds the bars. Raises `BarStoreUnavailable`."""
        with self._database.transaction() as connection:
            return tier_of(connection)

    def write(self, timeframe: Timeframe, bars: BarArrays, revision: int = 0) -> None:
        known_us = to_us(self._clock.now())
        with self._database.transaction() as connection:
            self._bars.insert(connection, timeframe, bars, revision, known_us)

    def read(
        self,
        instruments: Sequence[str],
        timeframe: Timeframe,
        start_us: int,
        end_us: int,
        *,
        as_known_us: int = EVER_US,
    ) -> BarArrays:
        """As `BarStore.read`, of what was stored until `as_known_us`."""
        with self._database.transaction() as connection:
            histories = self._bars.between(connection, instruments, timeframe, start_us, end_us, as_known_us)
        return between(instruments, timeframe, histories, start_us)

    def read_before(
        self,
        instruments: Sequence[str],
        timeframe: Timeframe,
        end_us: int,
        frames: int,
        *,
        as_known_us: int = EVER_US,
    ) -> BarArrays:
        """As `BarStore.read_before`, of what was stored until `as_known_us`."""
        with self._database.transaction() as connection:
            histories = self._bars.before(connection, instruments, timeframe, end_us, frames, as_known_us)
        return before(instruments, timeframe, histories, end_us, frames)

    def census(self, instruments: Sequence[str], timeframe: Timeframe, start_us: int, end_us: int) -> Census:
        column = BARS.c
        counts = select(
            func.count(column.open_us.distinct()),
            func.count(),
            func.coalesce(func.sum(column.revision), 0),
            func.coalesce(func.max(column.known_us), 0),
        ).where(
            column.instrument.in_(instruments),
            column.timeframe == timeframe.value,
            column.open_us >= start_us,
            column.open_us < end_us,
        )
        with self._database.transaction() as connection:
            return Census(*(int(count) for count in connection.execute(counts).one()))

    def series(self) -> Sequence[StoredSeries]:
        column = BARS.c
        counts = select(
            column.instrument,
            column.timeframe,
            func.count(column.open_us.distinct()),
            func.count(),
            func.min(column.open_us),
            func.max(column.open_us),
        ).group_by(column.instrument, column.timeframe)
        with self._database.transaction() as connection:
            rows = connection.execute(counts).all()
        return in_order(StoredSeries(name, Timeframe(timeframe), *counted) for name, timeframe, *counted in rows)

    def extra_columns(
        self, instruments: Sequence[str], timeframe: Timeframe, start_us: int, end_us: int
    ) -> frozenset[str]:
        with self._database.transaction() as connection:
            return frozenset(self._bars.extra_columns(connection, instruments, timeframe, start_us, end_us))

    def set_aside(self, instrument: str, dropped: Mapping[Timeframe, Mapping[int, str]]) -> None:
        """Drop bars, by timeframe and open time, each with the reason: all or none. They are kept in a table beside.

        Raises `UserError` for PostgreSQL, and `BarStoreUnavailable`.
        """
        with self._database.transaction() as connection:
            set_aside(connection, instrument, dropped, to_us(self._clock.now()))

    def aside(self, instrument: str, timeframe: Timeframe) -> Series:
        """The bars that were dropped, each as it was dropped last. Raises `BarStoreUnavailable`."""
        with self._database.transaction() as connection:
            return last_aside(connection, instrument, timeframe)

    def check(self, *, writes: bool = False) -> None:
        with self._database.transaction() as connection:
            connection.scalar(select(1))  # a pooled connection may have died unnoticed
            lacking = refuses_writes(connection, {BARS.name: ("SELECT", "INSERT")}) if writes else None
        if lacking:
            raise self._database.unavailable(lacking)

    def close(self) -> None:
        self._database.close()

    def _find_table(self, connection: Connection) -> str | None:
        lacking = self._bars.find_table(connection)
        if lacking is None:
            log.info("bar store", database=self._database.address, storage=tier_of(connection).value)
        return lacking
