"""`SqlBarStore`: bars in PostgreSQL (TimescaleDB) or SQLite, by SQLAlchemy Core; `MemoryBarStore`: in a dictionary.

Both are bitemporal: each revision of a bar stays, with the time at which it became known, and a read takes the
highest, or the highest that was known at a given time. Needs the extra `bars`; PostgreSQL also the driver that
its URL names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter

import numpy as np
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    Connection,
    Double,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    func,
    literal,
    select,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.schema import CreateTable

from tradeloop.common.bars import BarStoreUnavailable
from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.common.market import BarArrays, Series, Timeframe, align, to_us

_BUSY_TIMEOUT_S = 30
_KEY = ("instrument", "timeframe", "revision", "known_us")
_VALUES = ("open", "high", "low", "close", "volume", "funding_rate")

_BARS = Table(
    "bars",
    MetaData(),
    Column("instrument", String, primary_key=True),
    Column("timeframe", String, primary_key=True),
    Column("open_us", BigInteger, primary_key=True),
    Column("revision", Integer, primary_key=True),
    *(Column(name, Double, nullable=name == "volume") for name in _VALUES),
    Column("known_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
_C = _BARS.c
_Row = tuple[int, float, float, float, float, float | None, float]
"""`open_us`, then `_VALUES`; a volume of None is not known."""
_Key = tuple[str, str, int, int]
"""Instrument, timeframe, revision, known_us: what the bars of one write have in common."""


class SqlBarStore:
    """Bars in one table of a database, e.g. `sqlite:///bars.db`, `postgresql+psycopg://user:password@host/database`.

    Connects on first use and creates the table when it is not there; SQLite's folder must exist. Safe between
    threads and between processes. Raises `UserError` for a URL that names no known database.
    """

    def __init__(self, url: str, clock: Clock) -> None:
        try:
            self._engine = create_engine(url, pool_pre_ping=True)
        except (ArgumentError, ModuleNotFoundError) as error:
            raise UserError(
                f"bar store: {error}: give sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME, "
                "and install the driver"
            ) from error
        self._clock = clock
        self._created = False
        self._insert = _insert_on_postgresql
        if self._engine.dialect.name == "sqlite":
            self._insert = _insert_on_sqlite
            event.listen(self._engine, "connect", _set_up_sqlite)

    def write(self, timeframe: Timeframe, bars: BarArrays, revision: int = 0) -> None:
        known_us = to_us(self._clock.now())
        with self._transaction() as connection:
            for a, instrument in enumerate(bars.instruments):
                if rows := _rows(bars, a):
                    self._insert(connection, (instrument, timeframe.value, revision, known_us), rows)

    def read(
        self,
        instruments: Sequence[str],
        timeframe: Timeframe,
        start_us: int,
        end_us: int,
        *,
        as_known_us: int | None = None,
    ) -> BarArrays:
        """As `BarStore.read`; with `as_known_us`, of what was stored until then."""
        known = [] if as_known_us is None else [_C.known_us <= as_known_us]
        wanted = [_C.timeframe == timeframe.value, _C.open_us < end_us, *known]
        statement = (
            select(_C.instrument, _C.open_us, *(_C[name] for name in _VALUES))
            .where(_C.instrument.in_(instruments), _C.open_us >= start_us, *wanted)
            .order_by(_C.instrument, _C.open_us, _C.revision)
        )
        closes = [
            select(_C.close)
            .where(_C.instrument == instrument, _C.open_us < start_us, *wanted)
            .order_by(_C.open_us.desc(), _C.revision.desc())
            .limit(1)
            for instrument in instruments
        ]
        with self._transaction() as connection:
            found = connection.execute(statement).all()
            last_closes = [connection.execute(close).scalar() for close in closes]
        rows = {name: [row[1:] for row in group] for name, group in groupby(found, itemgetter(0))}
        return _aligned(instruments, timeframe, rows, last_closes)

    def read_before(self, instruments: Sequence[str], timeframe: Timeframe, end_us: int, frames: int) -> BarArrays:
        with self._transaction() as connection:
            times = [
                connection.scalars(
                    select(_C.open_us)
                    .distinct()
                    .where(_C.instrument == instrument, _C.timeframe == timeframe.value, _C.open_us < end_us)
                    .order_by(_C.open_us.desc())
                    .limit(frames)
                ).all()
                for instrument in instruments
            ]
        return self.read(instruments, timeframe, _start_of_last(times, frames, end_us), end_us)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """One transaction, with the table there. What the driver refuses for its data is not the store's absence."""
        try:
            with self._engine.begin() as connection:
                if not self._created:
                    connection.execute(CreateTable(_BARS, if_not_exists=True))
                yield connection
            self._created = True
        except (IntegrityError, DataError):
            raise
        except (DBAPIError, PoolTimeout, self._engine.dialect.loaded_dbapi.Error) as error:
            cause = " ".join(str(error.orig if isinstance(error, DBAPIError) else error).split())
            raise BarStoreUnavailable(f"bar store {self._engine.url!r}: {cause}") from error


class MemoryBarStore:
    """Bars in this process, for tests."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._bars: dict[tuple[str, Timeframe], dict[int, dict[int, tuple[int, _Row]]]] = {}

    def write(self, timeframe: Timeframe, bars: BarArrays, revision: int = 0) -> None:
        known_us = to_us(self._clock.now())
        for a, instrument in enumerate(bars.instruments):
            stored = self._bars.setdefault((instrument, timeframe), {})
            for row in _rows(bars, a):
                stored.setdefault(row[0], {}).setdefault(revision, (known_us, row))

    def read(
        self,
        instruments: Sequence[str],
        timeframe: Timeframe,
        start_us: int,
        end_us: int,
        *,
        as_known_us: int | None = None,
    ) -> BarArrays:
        """As `BarStore.read`; with `as_known_us`, of what was stored until then."""
        rows: dict[str, list[_Row]] = {}
        last_closes: list[float | None] = []
        for instrument in instruments:
            stored = self._bars.get((instrument, timeframe), {})
            history = [
                row
                for open_us in sorted(stored)
                for _, (known_us, row) in sorted(stored[open_us].items())
                if open_us < end_us and (as_known_us is None or known_us <= as_known_us)
            ]
            rows[instrument] = [row for row in history if row[0] >= start_us]
            last_closes.append(next((row[4] for row in reversed(history) if row[0] < start_us), None))
        return _aligned(instruments, timeframe, rows, last_closes)

    def read_before(self, instruments: Sequence[str], timeframe: Timeframe, end_us: int, frames: int) -> BarArrays:
        times = [[t for t in self._bars.get((i, timeframe), {}) if t < end_us] for i in instruments]
        return self.read(instruments, timeframe, _start_of_last(times, frames, end_us), end_us)

    def close(self) -> None:
        """Nothing is held open."""


def _set_up_sqlite(connection: DBAPIConnection, _: object) -> None:
    """Readers and a writer side by side; a power cut may lose the last write, never break the file."""
    for pragma in (f"busy_timeout={_BUSY_TIMEOUT_S * 1000}", "journal_mode=WAL", "synchronous=NORMAL"):
        connection.cursor().execute(f"PRAGMA {pragma}")


def _insert_on_sqlite(connection: Connection, key: _Key, rows: list[_Row]) -> None:
    # Straight to the driver: SQLAlchemy's care for each row's parameters takes four times as long as SQLite.
    names = (*_KEY, "open_us", *_VALUES)
    marks = ", ".join("?" * len(names))
    statement = f"INSERT INTO {_BARS.name} ({', '.join(names)}) VALUES ({marks}) ON CONFLICT DO NOTHING"
    connection.exec_driver_sql(statement, [(*key, *row) for row in rows])


def _insert_on_postgresql(connection: Connection, key: _Key, rows: list[_Row]) -> None:
    # One statement over arrays: a row at a time takes three times as long.
    names = ("open_us", *_VALUES)
    arrays = [
        literal(list(column), ARRAY(_C[name].type)) for name, column in zip(names, zip(*rows, strict=True), strict=True)
    ]
    values = func.unnest(*arrays).table_valued(*names).render_derived()
    common = [literal(value, _C[name].type) for name, value in zip(_KEY, key, strict=True)]
    chosen = select(*common, *(values.c[name] for name in names))
    connection.execute(postgresql.insert(_BARS).from_select([*_KEY, *names], chosen).on_conflict_do_nothing())


def _rows(bars: BarArrays, a: int) -> list[_Row]:
    """The bars that instrument `a` has."""
    present = bars.present[:, a]
    columns = [getattr(bars, name)[present, a].tolist() for name in _VALUES]
    columns[4] = [None if math.isnan(volume) else volume for volume in columns[4]]
    return list(zip(bars.open_us[present].tolist(), *columns, strict=True))


def _aligned(
    instruments: Sequence[str],
    timeframe: Timeframe,
    rows: Mapping[str, Sequence[_Row]],
    last_closes: Sequence[float | None],
) -> BarArrays:
    """Each instrument's rows, ordered by open time and revision, on the common grid."""
    series = [_series(rows.get(instrument, ())) for instrument in instruments]
    return align(instruments, timeframe, series, [math.nan if c is None else c for c in last_closes])


def _series(rows: Sequence[_Row]) -> Series:
    columns = list(zip(*rows, strict=True)) or [()] * (1 + len(_VALUES))
    open_us = np.array(columns[0], dtype=np.int64)
    highest = np.append(open_us[1:] != open_us[:-1], True)[: len(open_us)]
    values = {name: np.array(column, dtype=np.float64) for name, column in zip(_VALUES, columns[1:], strict=True)}
    return {"open_us": open_us[highest], **{name: column[highest] for name, column in values.items()}}


def _start_of_last(times: Sequence[Sequence[int]], frames: int, end_us: int) -> int:
    """Where the last frames of the union of all times begin; `end_us` when there are none."""
    union = sorted(set().union(*times))
    last = union[max(len(union) - frames, 0) :]
    return last[0] if last else end_us
