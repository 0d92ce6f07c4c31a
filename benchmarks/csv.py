"""A million minutes of CSV into the store, by the backfill of ingest, against polars and the database's bare load."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import polars as pl
import psycopg

from benchmarks.features import made_up
from benchmarks.measure import Row, in_turns, report
from benchmarks.store import COLUMNS, START_US, encoded, server
from deploy.native.postgres import best_installation, driver_url
from tradeloop.common.bar_store.sql import SCHEMA, SqlBarStore
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.clock import SystemClock
from tradeloop.common.market import BarArrays, Instrument, Timeframe, Universe, align
from tradeloop.common.messages import BackfillRequested, BarFrame
from tradeloop.common.messages.topics import specs, topic_of
from tradeloop.common.sql.migrations import migrate
from tradeloop.ingest.adapters.bus_frames import BusFrames
from tradeloop.ingest.adapters.files import read_blocks
from tradeloop.ingest.application.backfill import Backfill

BARS, ROUNDS = 1_000_000, 2
FIELDS = ("open", "high", "low", "close", "volume")
UNIVERSE = Universe(name="bench", instruments=(Instrument(id="venue:X/USD"),), timeframe=Timeframe.M1)
[NAME] = UNIVERSE.ids


def write_file(path: Path) -> None:
    """Bars as people have them: an ISO time and five numbers."""
    bars = made_up(BARS)
    times = pl.Series(bars.open_us).cast(pl.Datetime("us")).dt.strftime("%Y-%m-%d %H:%M:%S")
    values = {field: np.round(getattr(bars, field)[:, 0], 6) for field in FIELDS}
    pl.DataFrame({"time": times, **values}).write_csv(path)


def bare_read(path: Path) -> BarArrays:
    """The file through polars, with nothing checked."""
    table = pl.read_csv(path, try_parse_dates=True)
    series = {field: table[field].to_numpy() for field in FIELDS}
    return align([NAME], Timeframe.M1, [{"open_us": table["time"].cast(pl.Int64).to_numpy(), **series}])


def no_venue(name: str) -> NoReturn:
    """Files are read here, and no venue is asked."""
    raise LookupError(name)


def backfill(store: SqlBarStore, path: Path) -> None:
    """The file through the service's own backfill."""
    bus = MemoryBus()
    bus.create_topics(specs({"bench": [topic_of(BarFrame).name]}))
    request = BackfillRequested(request_id="bench", universe=UNIVERSE, files={NAME: str(path)})
    one = Backfill(store, read_blocks, BusFrames(bus), SystemClock(), request, None, no_venue)
    while not one.finished:
        list(one.step())


def compared(
    what: str,
    bare: Callable[[], object],
    store: SqlBarStore,
    path: Path,
    empty: Callable[[], object],
    count: Callable[[], int],
) -> Row:
    """Both in turns, into an empty table each."""
    by = in_turns(
        {"bare": (bare, BARS), "ours": (lambda: backfill(store, path), BARS)}, ROUNDS, {"bare": empty, "ours": empty}
    )
    if (stored := count()) != BARS:
        raise RuntimeError(f"{stored:,} bars of {BARS:,} were stored")
    return Row(
        f"a million bars of CSV into {what}",
        by.rates["ours"],
        "bars/s",
        1 / 3,
        "at least",
        "bare read and load",
        by.rates["bare"],
        by.ratio("ours", "bare"),
    )


def into_sqlite(folder: Path, path: Path) -> Row:
    file = folder / "bars.db"
    store = SqlBarStore(f"sqlite:///{file}", SystemClock())
    store.check()
    connection = sqlite3.connect(file, isolation_level=None)

    def load() -> None:
        bars = bare_read(path)
        values = [getattr(bars, name)[:, 0].tolist() for name in COLUMNS[4:]]
        rows = zip(bars.open_us.tolist(), *values, strict=True)
        connection.execute("BEGIN")
        connection.executemany(
            f"INSERT INTO bars ({', '.join(COLUMNS)}, known_us) "
            f"VALUES ('{NAME}', '1m', ?, 0, {', '.join('?' * len(values))}, {START_US})",
            rows,
        )
        connection.execute("COMMIT")

    def count() -> int:
        found: int = connection.execute("SELECT count(*) FROM bars").fetchone()[0]
        return found

    row = compared("SQLite", load, store, path, partial(connection.execute, "DELETE FROM bars"), count)
    connection.close()
    store.close()
    return row


def into_postgres(path: Path) -> Row:
    with server(best_installation()) as url, psycopg.connect(driver_url(url), autocommit=True) as bare:
        level = migrate(url, SCHEMA)[1].tier
        store = SqlBarStore(url, SystemClock())

        def load() -> None:
            ready = encoded(bare_read(path))
            with bare.cursor().copy(f"COPY bars ({', '.join(COLUMNS)}, known_us) FROM STDIN (FORMAT BINARY)") as to:
                to.write(ready)

        def empty() -> None:
            bare.execute("TRUNCATE bars")
            bare.execute("CHECKPOINT")

        def count() -> int:
            [found] = bare.execute("SELECT count(*) FROM bars").fetchone() or [0]
            return int(found)

        row = compared(level, load, store, path, empty, count)
        store.close()
    return row


def measure() -> None:
    with tempfile.TemporaryDirectory(prefix="tradeloop-bench-") as name:
        folder = Path(name)
        write_file(path := folder / "bars.csv")
        rows = [into_sqlite(folder, path), into_postgres(path)]
    report(
        rows,
        [
            f"One instrument, {BARS:,} minutes, an ISO time and five numbers a line. Ours reads and checks the whole "
            "file before anything is stored, then reads it again and stores it block by block, each compared with what "
            "is there. The bound reads once through polars, checks nothing, and loads by one executemany in a "
            f"transaction (SQLite) or one binary COPY, whose bytes NumPy encodes (PostgreSQL). {ROUNDS} rounds in "
            "turns, into an empty table each.",
        ],
    )


if __name__ == "__main__":
    measure()
