"""The contract of `BarStore`, run against every adapter."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import numpy as np
import psycopg
import pytest
from sqlalchemy.exc import IntegrityError

from tests.servers import RealServer, fresh_database
from tests.tiers import database_for, execute
from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bar_store.port import BarStore, BarStoreUnavailable
from tradeloop.common.bar_store.sql import SCHEMA, SqlBarStore, StorageTier
from tradeloop.common.clock import ManualClock
from tradeloop.common.errors import UserError
from tradeloop.common.market import BarArrays, Series, Timeframe, align, to_us
from tradeloop.common.sql.migrations import migrate

MINUTE = Timeframe.M1.us
EVER = 2**62
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
        as_known_us: int = EVER,
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
def store(adapter: str, tmp_path: Path, clock: ManualClock) -> Iterator[BitemporalStore]:
    store: BitemporalStore
    if adapter == "memory":
        store = MemoryBarStore(clock)
    elif adapter == StorageTier.SQLITE:
        store = SqlBarStore(f"sqlite:///{tmp_path}/bars.db", clock)
    else:
        execute(adapter, "TRUNCATE bars")
        store = SqlBarStore(adapter, clock)
    yield store
    store.close()


def bars(minutes: dict[str, list[int]], price: float = 100.0, volume: bool = True) -> BarArrays:
    """Bars whose prices and volumes all differ, by instrument and minute."""
    series: list[Series] = []
    for a, times in enumerate(minutes.values()):
        base = price + 1000.0 * a + np.array(times, dtype=np.float64) / 3
        columns = {"open": base, "high": base + 0.7, "low": base - 0.7, "close": base + 0.1, "funding_rate": base / 1e7}
        series.append(
            {"open_us": np.array(times, dtype=np.int64) * MINUTE, **columns, **({"volume": base} if volume else {})}
        )
    return align(tuple(minutes), Timeframe.M1, series)


def assert_equal(left: BarArrays, right: BarArrays) -> None:
    for field in fields(BarArrays):
        np.testing.assert_array_equal(getattr(left, field.name), getattr(right, field.name), err_msg=field.name)


def test_what_was_written_is_read_to_the_bit(store: BarStore) -> None:
    written = bars({A: [-3, 0, 1, 2, 5], B: [1, 2, 3]})
    store.write(Timeframe.M1, written)
    assert_equal(store.read([A, B], Timeframe.M1, -EVER, EVER), written)
    assert store.read([B, A], Timeframe.M1, -EVER, EVER).instruments == (B, A)


def test_many_bars_written_by_many_at_once_are_each_there_once(store: BarStore) -> None:
    """As many as a database loads in bulk; of some the volume is not known."""
    written = bars({A: list(range(0, 3000, 2)), B: list(range(1000, 2500))})
    written.volume[::7] = np.nan
    corrected = bars({A: list(range(0, 3000, 2))}, price=7.0)
    with ThreadPoolExecutor(4) as pool:
        first = [pool.submit(store.write, Timeframe.M1, written) for _ in range(3)]
        second = pool.submit(store.write, Timeframe.M1, corrected, 1)
        for done in (*first, second):
            done.result()
    found = store.read([A, B], Timeframe.M1, -EVER, EVER)
    np.testing.assert_array_equal(found.close[found.present[:, 0], 0], corrected.close[:, 0])
    for name in ("open", "high", "low", "close", "volume", "funding_rate"):
        there = found.present[:, 1]
        np.testing.assert_array_equal(
            getattr(found, name)[there, 1], getattr(written, name)[written.present[:, 1], 1], err_msg=name
        )
    assert_equal(store.read_before([B], Timeframe.M1, EVER, 1500), store.read([B], Timeframe.M1, -EVER, EVER))


def test_a_volume_that_is_not_known_stays_so(store: BarStore) -> None:
    store.write(Timeframe.M1, bars({A: [0, 1]}, volume=False))
    assert np.isnan(store.read([A], Timeframe.M1, 0, EVER).volume).all()


def test_the_end_of_a_range_is_left_out(store: BarStore) -> None:
    store.write(Timeframe.M1, bars({A: [0, 1, 2, 3]}))
    assert store.read([A], Timeframe.M1, MINUTE, 3 * MINUTE).open_us.tolist() == [MINUTE, 2 * MINUTE]


@pytest.mark.parametrize("start", range(-4, 8))
def test_a_range_equals_that_part_of_the_whole(store: BarStore, start: int) -> None:
    whole = bars({A: [-3, 0, 1, 4, 5], B: [1, 2, 3]})
    store.write(Timeframe.M1, whole)
    first = int(np.searchsorted(whole.open_us, start * MINUTE))
    assert_equal(store.read([A, B], Timeframe.M1, start * MINUTE, EVER), whole.slice(first, len(whole)))


def test_nothing_stored_is_zero_frames(store: BarStore) -> None:
    store.write(Timeframe.M1, bars({A: [0]}))
    for nothing in (
        store.read([B], Timeframe.M1, 0, EVER),
        store.read([A], Timeframe.M5, 0, EVER),
        store.read([A], Timeframe.M1, MINUTE, EVER),
        store.read([A], Timeframe.M1, MINUTE, 0),
        store.read_before([A], Timeframe.M1, 0, 5),
        store.read_before([A], Timeframe.M1, EVER, 0),
    ):
        assert len(nothing) == 0
        assert nothing.close.shape == (0, 1)
    store.write(Timeframe.M1, bars({B: []}))
    assert len(store.read([B], Timeframe.M1, 0, EVER)) == 0


def test_the_last_frames_are_those_of_the_common_grid(store: BarStore) -> None:
    whole = bars({A: [0, 1, 2, 6], B: [1, 3, 4]})
    store.write(Timeframe.M1, whole)
    assert_equal(store.read_before([A, B], Timeframe.M1, 6 * MINUTE, 3), whole.slice(2, 5))
    assert_equal(store.read_before([A, B], Timeframe.M1, EVER, 4), whole.slice(2, 6))
    assert_equal(store.read_before([A, B], Timeframe.M1, EVER, 99), whole)


def test_writing_again_changes_nothing(store: BarStore) -> None:
    first = bars({A: [0, 1]})
    store.write(Timeframe.M1, first)
    store.write(Timeframe.M1, first)
    store.write(Timeframe.M1, bars({A: [0, 1]}, price=5.0))
    assert_equal(store.read([A], Timeframe.M1, 0, EVER), first)


def test_a_higher_revision_replaces_whenever_it_comes(store: BarStore) -> None:
    corrected = bars({A: [1]}, price=7.0)
    store.write(Timeframe.M1, corrected, revision=2)
    store.write(Timeframe.M1, bars({A: [0, 1, 2]}))
    store.write(Timeframe.M1, bars({A: [1]}, price=9.0), revision=1)

    result = store.read([A], Timeframe.M1, 0, EVER)
    assert result.open_us.tolist() == [0, MINUTE, 2 * MINUTE]
    assert result.close[1] == corrected.close[0]
    assert store.read_before([A], Timeframe.M1, EVER, 2).open_us.tolist() == [MINUTE, 2 * MINUTE]
    # Also where it is only carried forward.
    store.write(Timeframe.M1, bars({B: [2]}))
    assert store.read([A, B], Timeframe.M1, 2 * MINUTE, EVER).present.tolist() == [[True, True]]
    assert store.read([B, A], Timeframe.M1, 2 * MINUTE, 2 * MINUTE).instruments == (B, A)


def test_a_carried_close_is_that_of_the_highest_revision(store: BarStore) -> None:
    store.write(Timeframe.M1, bars({A: [1], B: [2]}))
    corrected = bars({A: [1]}, price=7.0)
    store.write(Timeframe.M1, corrected, revision=1)
    result = store.read([A, B], Timeframe.M1, 2 * MINUTE, EVER)
    assert result.present.tolist() == [[False, True]]
    assert result.close[0, 0] == corrected.close[0, 0]


def test_the_past_is_read_as_it_was_known(store: BitemporalStore, clock: ManualClock) -> None:
    first, corrected = bars({A: [0, 1]}), bars({A: [1]}, price=7.0)
    store.write(Timeframe.M1, first)
    clock.advance(60)
    store.write(Timeframe.M1, corrected, revision=1)

    assert_equal(store.read([A], Timeframe.M1, 0, EVER, as_known_us=to_us(START)), first)
    assert store.read([A], Timeframe.M1, 0, EVER, as_known_us=to_us(clock.now())).close[1] == corrected.close[0]
    assert len(store.read([A], Timeframe.M1, 0, EVER, as_known_us=to_us(START) - 1)) == 0


def test_only_present_bars_are_stored(store: BarStore) -> None:
    store.write(Timeframe.M1, bars({A: [0, 1], B: [1]}))
    assert store.read([B], Timeframe.M1, -EVER, EVER).open_us.tolist() == [MINUTE]


def test_a_file_is_shared_and_survives(tmp_path: Path, clock: ManualClock) -> None:
    url = f"sqlite:///{tmp_path}/bars.db"
    one, two = SqlBarStore(url, clock), SqlBarStore(url, clock)
    one.write(Timeframe.M1, bars({A: [0]}))
    two.write(Timeframe.M1, bars({A: [1]}))
    assert len(one.read([A], Timeframe.M1, 0, EVER)) == 2
    one.close()
    two.close()
    with sqlite3.connect(tmp_path / "bars.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_writers_wait_for_each_other(tmp_path: Path, clock: ManualClock) -> None:
    url = f"sqlite:///{tmp_path}/bars.db"
    stores = [SqlBarStore(url, clock) for _ in range(4)]

    def write(n: int) -> None:
        for minute in range(n, 80, 4):
            stores[n].write(Timeframe.M1, bars({A: [minute], B: [minute]}))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert_equal(stores[0].read([A, B], Timeframe.M1, 0, EVER), bars({A: list(range(80)), B: list(range(80))}))
    for store in stores:
        store.close()


def test_a_write_is_all_or_nothing(tmp_path: Path, clock: ManualClock) -> None:
    broken = bars({A: [0, 1], B: [0, 1]})
    broken.close[1, 1] = math.nan
    store = SqlBarStore(f"sqlite:///{tmp_path}/bars.db", clock)
    with pytest.raises(IntegrityError):
        store.write(Timeframe.M1, broken)
    assert len(store.read([A, B], Timeframe.M1, -EVER, EVER)) == 0
    store.close()


def test_a_store_out_of_reach_says_so_and_comes_back(tmp_path: Path, clock: ManualClock) -> None:
    store = SqlBarStore(f"sqlite:///{tmp_path}/later/bars.db", clock)
    with pytest.raises(BarStoreUnavailable, match="unable to open database file"):
        store.write(Timeframe.M1, bars({A: [0]}))
    with pytest.raises(BarStoreUnavailable):
        store.read([A], Timeframe.M1, 0, EVER)
    with pytest.raises(BarStoreUnavailable):
        store.read_before([A], Timeframe.M1, EVER, 1)
    with pytest.raises(BarStoreUnavailable):
        store.check()
    (tmp_path / "later").mkdir()
    store.check()
    store.write(Timeframe.M1, bars({A: [0]}))
    assert len(store.read([A], Timeframe.M1, 0, EVER)) == 1
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
                    store.read([A], Timeframe.M1, 0, EVER)
                with pytest.raises(BarStoreUnavailable, match="bar store postgresql"):
                    store.check()
        finally:
            plain_postgres_server.start()
        store.write(Timeframe.M1, bars({A: [1]}))
        assert store.read([A], Timeframe.M1, 0, EVER).open_us.tolist() == [0, MINUTE]
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
        assert len(store.read([A, B], Timeframe.M1, -EVER, EVER)) == 0
    store.close()


def test_what_is_no_database_says_so(tmp_path: Path, clock: ManualClock) -> None:
    (tmp_path / "bars.db").write_text("time,open,high,low,close\n" * 100)
    store = SqlBarStore(f"sqlite:///{tmp_path}/bars.db", clock)
    with pytest.raises(BarStoreUnavailable, match="not a database"):
        store.read([A], Timeframe.M1, 0, EVER)
    store.close()


@pytest.mark.parametrize("url", ["bars.db", "oracle9://x", "postgresql+nodriver://x"])
def test_a_bad_address_is_refused_at_once(url: str, clock: ManualClock) -> None:
    with pytest.raises(UserError, match="give sqlite:///FILE"):
        SqlBarStore(url, clock)
