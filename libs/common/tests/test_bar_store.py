"""The contract of `BarStore`, for every adapter; then what adapters promise beyond it."""

from __future__ import annotations

import math
import sqlite3
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from sqlalchemy.exc import IntegrityError

from tests.servers import RealServer, fresh_database
from tests.tiers import database_for, execute, read_only
from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bar_store.port import BarStore, BarStoreUnavailable, StoredSeries
from tradeloop.common.bar_store.sql import SCHEMA, SqlBarStore, StorageTier
from tradeloop.common.clock import ManualClock
from tradeloop.common.contracts.bar_store import MakeBarStore
from tradeloop.common.contracts.bar_store import bars_at as bars
from tradeloop.common.errors import UserError
from tradeloop.common.market import BAR_COLUMNS, EVER_US, BarArrays, Timeframe, align, to_us
from tradeloop.common.sql.migrations import migrate
from tradeloop.common.testing import BAR_STORE_CHECKS, check_bar_store

MINUTE = Timeframe.M1.us
START = datetime(2022, 1, 1, tzinfo=UTC)
A, B = "x:A", "x:B"

ADAPTERS = ("memory", *StorageTier)
"""Each tier of a database is tested as an adapter of its own."""


class BitemporalStore(BarStore, Protocol):
    """What both adapters offer beyond the port."""

    def read(
        self,
        instruments: Sequence[str],
        timeframe: Timeframe,
        start_us: int,
        end_us: int,
        *,
        as_known_us: int = EVER_US,
    ) -> BarArrays: ...


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture(scope="module", params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a migrated database, or the name of an adapter that needs none."""
    if request.param in ("memory", StorageTier.SQLITE):
        yield request.param
        return
    with database_for(request, request.param) as url:
        migrate(url, SCHEMA)
        yield url


@pytest.fixture
def make_store(adapter: str, tmp_path: Path, clock: ManualClock) -> Callable[[], BitemporalStore]:
    """Opens the same storage anew, as a restarted process does; a store in memory stays what it is."""
    if adapter == "memory":
        store = MemoryBarStore(clock)
        return lambda: store
    if adapter == StorageTier.SQLITE:
        return partial(SqlBarStore, f"sqlite:///{tmp_path}/bars.db", clock)
    execute(adapter, "TRUNCATE bars")
    return partial(SqlBarStore, adapter, clock)


def assert_equal(left: BarArrays, right: BarArrays) -> None:
    for field in fields(BarArrays):
        if field.name != "extra":
            np.testing.assert_array_equal(getattr(left, field.name), getattr(right, field.name), err_msg=field.name)
    assert left.extra.keys() == right.extra.keys()


@pytest.mark.parametrize("check", BAR_STORE_CHECKS, ids=lambda check: check.__name__)
def test_contract(make_store: MakeBarStore, check: Callable[[MakeBarStore], None]) -> None:
    check(make_store)


def test_one_storage_takes_the_whole_contract(clock: ManualClock) -> None:
    store = MemoryBarStore(clock)
    check_bar_store(lambda: store)


class Overwriting(MemoryBarStore):
    """Takes what comes last, whatever its revision."""

    def write(self, timeframe: Timeframe, bars: BarArrays, revision: int = 0) -> None:
        self.writes = getattr(self, "writes", 0) + 1
        super().write(timeframe, bars, self.writes)


class Rounding(MemoryBarStore):
    """Keeps prices as float32."""

    def write(self, timeframe: Timeframe, bars: BarArrays, revision: int = 0) -> None:
        super().write(timeframe, replace(bars, close=bars.close.astype(np.float32).astype(np.float64)), revision)


class Inclusive(MemoryBarStore):
    """Reads the end of a range too."""

    def read(
        self,
        instruments: Sequence[str],
        timeframe: Timeframe,
        start_us: int,
        end_us: int,
        *,
        as_known_us: int = EVER_US,
    ) -> BarArrays:
        return super().read(instruments, timeframe, start_us, end_us + 1, as_known_us=as_known_us)


class Sorting(MemoryBarStore):
    """Reads instruments in an order of its own."""

    def read(
        self,
        instruments: Sequence[str],
        timeframe: Timeframe,
        start_us: int,
        end_us: int,
        *,
        as_known_us: int = EVER_US,
    ) -> BarArrays:
        return super().read(sorted(instruments), timeframe, start_us, end_us, as_known_us=as_known_us)


class Certain(MemoryBarStore):
    """Takes a volume that is not known for none."""

    def write(self, timeframe: Timeframe, bars: BarArrays, revision: int = 0) -> None:
        super().write(timeframe, replace(bars, volume=np.nan_to_num(bars.volume)), revision)


class Filling(MemoryBarStore):
    """Stores what is only carried forward."""

    def write(self, timeframe: Timeframe, bars: BarArrays, revision: int = 0) -> None:
        super().write(timeframe, replace(bars, present=~np.isnan(bars.close)), revision)


class Revising(MemoryBarStore):
    """Lists a bar once for each of its revisions."""

    def series(self) -> Sequence[StoredSeries]:
        return [one._replace(bars=one.rows) for one in super().series()]


@pytest.mark.parametrize("defect", [Overwriting, Rounding, Inclusive, Sorting, Certain, Filling, Revising])
def test_the_contract_finds_defects(defect: type[MemoryBarStore], clock: ManualClock) -> None:
    store = defect(clock)
    with pytest.raises(AssertionError):
        check_bar_store(lambda: store)


def test_the_contract_finds_a_store_that_forgets(clock: ManualClock) -> None:
    with pytest.raises(AssertionError):
        check_bar_store(lambda: MemoryBarStore(clock))


def test_the_past_is_read_as_it_was_known(make_store: Callable[[], BitemporalStore], clock: ManualClock) -> None:
    store = make_store()
    first, corrected = bars({A: [0, 1]}), bars({A: [1]}, price=7.0)
    store.write(Timeframe.M1, first)
    clock.advance(60)
    store.write(Timeframe.M1, corrected, revision=1)

    assert_equal(store.read([A], Timeframe.M1, 0, EVER_US, as_known_us=to_us(START)), first)
    assert store.read([A], Timeframe.M1, 0, EVER_US, as_known_us=to_us(clock.now())).close[1] == corrected.close[0]
    assert len(store.read([A], Timeframe.M1, 0, EVER_US, as_known_us=to_us(START) - 1)) == 0
    store.close()


def test_a_file_survives_in_one_piece(tmp_path: Path, clock: ManualClock) -> None:
    with closing(SqlBarStore(f"sqlite:///{tmp_path}/bars.db", clock)) as store:
        store.write(Timeframe.M1, bars({A: [0]}))
    with sqlite3.connect(tmp_path / "bars.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_file_of_an_earlier_release_is_written_and_read(tmp_path: Path, clock: ManualClock) -> None:
    with closing(sqlite3.connect(tmp_path / "bars.db")) as connection, connection:
        connection.execute(
            "CREATE TABLE bars (instrument TEXT, timeframe TEXT, open_us BIGINT, revision INTEGER, "
            "open DOUBLE NOT NULL, high DOUBLE NOT NULL, low DOUBLE NOT NULL, close DOUBLE NOT NULL, volume DOUBLE, "
            "funding_rate DOUBLE NOT NULL, known_us BIGINT NOT NULL, "
            "PRIMARY KEY (instrument, timeframe, open_us, revision)) WITHOUT ROWID"
        )
        connection.execute("INSERT INTO bars VALUES ('x:A', '1m', 0, 0, 1, 1, 1, 1, NULL, 0, 5)")
    for _ in range(2):
        with closing(SqlBarStore(f"sqlite:///{tmp_path}/bars.db", clock)) as store:
            later = replace(bars({A: [1]}), extra={"mood": np.array([[0.1]])})
            store.write(Timeframe.M1, later)
            found = store.read([A], Timeframe.M1, 0, EVER_US)
            assert found.close[:, 0].tolist() == [1.0, later.close[0, 0]]
            assert np.isnan(found.extra["mood"][0, 0])
            assert found.extra["mood"][1, 0] == 0.1


def test_many_bars_in_a_file_pass_as_arrays_and_not_as_objects(tmp_path: Path, clock: ManualClock) -> None:
    def peak(count: int) -> int:
        open_us = np.arange(count, dtype=np.int64) * MINUTE
        series: dict[str, NDArray[Any]] = {
            "open_us": open_us,
            **{name: np.arange(1.0, count + 1.0) for name in BAR_COLUMNS},
        }
        written = align([A], Timeframe.M1, [series])
        with closing(SqlBarStore(f"sqlite:///{tmp_path}/{count}.db", clock)) as store:
            tracemalloc.start()
            store.write(Timeframe.M1, written)
            read = store.read([A], Timeframe.M1, 0, EVER_US)
            before = store.read_before([A], Timeframe.M1, EVER_US, count)
            taken = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert (read.close == written.close).all()
        assert (before.close == written.close).all()
        return taken

    assert (peak(60_000) - peak(30_000)) / 30_000 < 200  # what is read twice, beside what was written


def test_a_new_file_that_is_locked_is_waited_for(tmp_path: Path, clock: ManualClock) -> None:
    holder = sqlite3.connect(tmp_path / "bars.db", isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    store = SqlBarStore(f"sqlite:///{tmp_path}/bars.db", clock)
    release = threading.Timer(0.3, holder.execute, ["COMMIT"])
    release.start()
    store.write(Timeframe.M1, bars({A: [0], B: [0]}))
    release.join()
    assert len(store.read([A, B], Timeframe.M1, 0, EVER_US)) == 1
    store.close()
    holder.close()


def test_a_file_that_cannot_be_written_to_is_refused_at_once(tmp_path: Path, clock: ManualClock) -> None:
    sqlite3.connect(tmp_path / "bars.db").execute("CREATE TABLE other (x)").connection.close()
    store = SqlBarStore(f"sqlite:///file:{tmp_path}/bars.db?mode=ro&uri=true", clock)
    began = time.monotonic()
    with pytest.raises(BarStoreUnavailable, match="readonly database"):
        store.write(Timeframe.M1, bars({A: [0]}))
    assert time.monotonic() - began < 15, "half of the wait for a lock"
    store.close()


def test_a_write_is_all_or_nothing(tmp_path: Path, clock: ManualClock) -> None:
    broken = bars({A: [0, 1], B: [0, 1]})
    broken.close[1, 1] = math.nan
    store = SqlBarStore(f"sqlite:///{tmp_path}/bars.db", clock)
    with pytest.raises(IntegrityError):
        store.write(Timeframe.M1, broken)
    assert len(store.read([A, B], Timeframe.M1, -EVER_US, EVER_US)) == 0
    store.close()


def test_a_store_out_of_reach_says_so_and_comes_back(tmp_path: Path, clock: ManualClock) -> None:
    store = SqlBarStore(f"sqlite:///{tmp_path}/later/bars.db", clock)
    with pytest.raises(BarStoreUnavailable, match="unable to open database file"):
        store.write(Timeframe.M1, bars({A: [0]}))
    with pytest.raises(BarStoreUnavailable):
        store.read([A], Timeframe.M1, 0, EVER_US)
    with pytest.raises(BarStoreUnavailable):
        store.read_before([A], Timeframe.M1, EVER_US, 1)
    with pytest.raises(BarStoreUnavailable):
        store.check()
    (tmp_path / "later").mkdir()
    store.check()
    store.write(Timeframe.M1, bars({A: [0]}))
    assert len(store.read([A], Timeframe.M1, 0, EVER_US)) == 1
    store.close()


def test_a_server_that_dies_is_unavailable_and_comes_back(
    plain_postgres_server: RealServer, clock: ManualClock
) -> None:
    with fresh_database(plain_postgres_server.address) as url:
        migrate(url, SCHEMA)
        store = SqlBarStore(url, clock)
        store.write(Timeframe.M1, bars({A: [0]}))
        plain_postgres_server.kill()
        try:
            for _ in range(2):
                with pytest.raises(BarStoreUnavailable, match="bar store postgresql"):
                    store.write(Timeframe.M1, bars({A: [1]}))
                with pytest.raises(BarStoreUnavailable, match="bar store postgresql"):
                    store.read([A], Timeframe.M1, 0, EVER_US)
                with pytest.raises(BarStoreUnavailable, match="bar store postgresql"):
                    store.check()
        finally:
            plain_postgres_server.start()
        store.write(Timeframe.M1, bars({A: [1]}))
        assert store.read([A], Timeframe.M1, 0, EVER_US).open_us.tolist() == [0, MINUTE]
        store.close()


def test_M7_bars_in_a_read_only_database_are_read_and_not_written(plain_database: str, clock: ManualClock) -> None:
    migrate(plain_database, SCHEMA)
    store = SqlBarStore(plain_database, clock)
    store.write(Timeframe.M1, bars({A: [0]}))
    with read_only(plain_database):
        store.check()
        assert len(store.read([A], Timeframe.M1, 0, EVER_US)) == 1
        with pytest.raises(BarStoreUnavailable, match="it takes no writes"):
            store.check(writes=True)
        with pytest.raises(BarStoreUnavailable, match="read-only transaction"):
            store.write(Timeframe.M1, bars({A: [1]}))
    store.check(writes=True)
    store.write(Timeframe.M1, bars({A: [1]}))
    store.close()


@pytest.mark.parametrize("count", [2, 2000])  # in one statement, and in bulk
def test_a_database_refuses_what_is_no_price(plain_database: str, clock: ManualClock, count: int) -> None:
    migrate(plain_database, SCHEMA)
    store = SqlBarStore(plain_database, clock)
    for wrong in (math.nan, math.inf):
        broken = bars({A: list(range(count)), B: [0, 1]})
        broken.close[1, 1] = wrong
        with pytest.raises((IntegrityError, psycopg.IntegrityError), match="bars_have_prices"):
            store.write(Timeframe.M1, broken)
        assert len(store.read([A, B], Timeframe.M1, -EVER_US, EVER_US)) == 0
    store.close()


def test_what_is_no_database_says_so(tmp_path: Path, clock: ManualClock) -> None:
    (tmp_path / "bars.db").write_text("time,open,high,low,close\n" * 100)
    store = SqlBarStore(f"sqlite:///{tmp_path}/bars.db", clock)
    with pytest.raises(BarStoreUnavailable, match="not a database"):
        store.read([A], Timeframe.M1, 0, EVER_US)
    store.close()


@pytest.mark.parametrize("url", ["bars.db", "oracle9://x", "postgresql+nodriver://x"])
def test_a_bad_address_is_refused_at_once(url: str, clock: ManualClock) -> None:
    with pytest.raises(UserError, match="give sqlite:///FILE"):
        SqlBarStore(url, clock)
