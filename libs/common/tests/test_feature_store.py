"""The contract of `FeatureStore`, for every adapter; then what only the Feast adapter promises."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from redis import Redis

from tests.servers import RealServer, fresh_database
from tradeloop.common.clock import ManualClock
from tradeloop.common.contracts.feature_store import MakeFeatureStore, another_opening_finds_everything
from tradeloop.common.contracts.feature_store import rows_at as rows
from tradeloop.common.feature_store.memory import MemoryFeatureStore
from tradeloop.common.feature_store.port import Covered, FeatureRows, FeatureStore, FeatureStoreUnavailable
from tradeloop.common.testing import FEATURE_STORE_CHECKS, check_feature_store

if TYPE_CHECKING:  # importing Feast takes seconds: only tests that need it pay
    from feast import FeatureStore as Feast

MINUTE = 60_000_000
SET, UNIVERSE = "fs-1", "crypto"
NAMES = ("log_return(1)", "1h:EMA(20)", "rsi.14")
INSTRUMENTS = ("binance:BTC/USDT", "binance:ETH/USDT")


def feast(
    folder: Path, registry: Mapping[str, object] | None = None, online_store: Mapping[str, object] | None = None
) -> FeatureStore:
    from tradeloop.common.feature_store.feast.store import FeastFeatureStore

    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    return FeastFeatureStore(folder, clock, registry=registry, online_store=online_store)


def feast_on_servers(folder: Path, database: str, redis: str) -> FeatureStore:
    """As in production: the registry in PostgreSQL, the online store in Redis."""
    online_store = {"type": "redis", "connection_string": f"{redis},db={REDIS_DATABASE}"}
    return feast(folder, {"registry_type": "sql", "path": database}, online_store)


REDIS_DATABASE = 9


@pytest.fixture
def empty_redis(redis: str) -> str:
    redis_client(redis).flushdb()
    return redis


def redis_client(redis: str) -> Redis:
    host, port = redis.split(":")
    return Redis(host=host, port=int(port), db=REDIS_DATABASE)


@pytest.fixture(params=["memory", "feast", "feast on servers"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeFeatureStore:
    """Opens the same storage anew, as a restarted process does; a store in memory stays what it is."""
    if request.param == "memory":
        store = MemoryFeatureStore()
        return lambda: store
    if request.param == "feast":
        return partial(feast, tmp_path)
    servers = request.getfixturevalue("plain_database"), request.getfixturevalue("empty_redis")
    return partial(feast_on_servers, tmp_path, *servers)


def read(store: FeatureStore, minutes: list[int], instruments: tuple[str, ...] = INSTRUMENTS) -> NDArray[np.float64]:
    return store.read_offline(SET, UNIVERSE, instruments, np.array(minutes, dtype=np.int64) * MINUTE).values


def scalars(values: NDArray[np.float64]) -> list[float]:
    """One number for each row whose values are all equal."""
    assert np.array_equal(values, np.broadcast_to(values[:, :1, :1], values.shape), equal_nan=True)
    return list(values[:, 0, 0])


@pytest.mark.parametrize("check", FEATURE_STORE_CHECKS, ids=lambda check: check.__name__)
def test_contract(make_store: MakeFeatureStore, check: Callable[[MakeFeatureStore], None]) -> None:
    check(make_store)


def test_one_storage_takes_the_whole_contract() -> None:
    store = MemoryFeatureStore()
    check_feature_store(lambda: store)


class LookingAhead(MemoryFeatureStore):
    """Joins the next row where it is not a second away."""

    def read_offline(
        self, feature_set: str, universe: str, instruments: Sequence[str], time_us: NDArray[np.int64]
    ) -> FeatureRows:
        found = super().read_offline(feature_set, universe, instruments, time_us + 1_000_000)
        return replace(found, time_us=time_us)


class Filling(MemoryFeatureStore):
    """Takes NaN for missing, and keeps the last value that was none."""

    def write_offline(self, feature_set: str, universe: str, rows: FeatureRows, covers: Covered | None = None) -> None:
        known = ~np.isnan(rows.values).all(axis=(1, 2))
        super().write_offline(
            feature_set, universe, replace(rows, time_us=rows.time_us[known], values=rows.values[known]), covers
        )


class Rounding(MemoryFeatureStore):
    """Keeps current values as float32."""

    def write_online(self, feature_set: str, universe: str, rows: FeatureRows) -> None:
        super().write_online(feature_set, universe, replace(rows, values=rows.values.astype(np.float32).astype(float)))


class Newest(MemoryFeatureStore):
    """Takes what comes last for the newest."""

    def write_online(self, feature_set: str, universe: str, rows: FeatureRows) -> None:
        self._current.clear()
        super().write_online(feature_set, universe, rows)


class OneUniverse(MemoryFeatureStore):
    """Keeps the history of all universes as one."""

    def write_offline(self, feature_set: str, universe: str, rows: FeatureRows, covers: Covered | None = None) -> None:
        super().write_offline(feature_set, "", rows, covers)

    def read_offline(
        self, feature_set: str, universe: str, instruments: Sequence[str], time_us: NDArray[np.int64]
    ) -> FeatureRows:
        return super().read_offline(feature_set, "", instruments, time_us)


class Obliging(MemoryFeatureStore):
    """Lets a known feature set change."""

    def define(self, feature_set: str, names: Sequence[str]) -> None:
        self._names[feature_set] = tuple(names)


@pytest.mark.parametrize("defect", [LookingAhead, Filling, Rounding, Newest, OneUniverse, Obliging])
def test_the_contract_finds_defects(defect: type[MemoryFeatureStore]) -> None:
    store = defect()
    with pytest.raises(AssertionError):
        check_feature_store(lambda: store)


def test_the_contract_finds_a_store_that_forgets() -> None:
    with pytest.raises(AssertionError, match="is gone"):
        check_feature_store(MemoryFeatureStore)


def test_rows_must_fit_together() -> None:
    with pytest.raises(ValueError, match="shape"):
        FeatureRows(INSTRUMENTS, NAMES, np.array([1, 2]), np.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match="strictly increase"):
        FeatureRows(INSTRUMENTS, NAMES, np.array([2, 2]), np.zeros((2, 2, 3)))


@given(
    stored=st.lists(st.tuples(st.integers(0, 12), st.sampled_from(INSTRUMENTS), st.floats(width=64)), max_size=12),
    asked=st.lists(st.integers(-2, 14), min_size=1, max_size=8, unique=True).map(sorted),
)
@settings(max_examples=25, deadline=None)
def test_both_adapters_join_alike(
    tmp_path_factory: pytest.TempPathFactory, stored: list[tuple[int, str, float]], asked: list[int]
) -> None:
    memory, on_disk = MemoryFeatureStore(), feast(tmp_path_factory.mktemp("feast"))
    for store in (memory, on_disk):
        store.define(SET, NAMES)
        for minute, instrument, value in stored:
            store.write_offline(SET, UNIVERSE, rows([minute], value, (instrument,)))
    np.testing.assert_array_equal(read(on_disk, asked), read(memory, asked))
    on_disk.close()


# Only Feast


def test_another_process_finds_everything_by_a_registry_in_sqlite(tmp_path: Path) -> None:
    registry = {"registry_type": "sql", "path": f"sqlite:///{tmp_path}/registry.db"}
    another_opening_finds_everything(partial(feast, tmp_path, registry))


def test_small_writes_leave_few_files_and_lose_nothing(tmp_path: Path) -> None:
    store = feast(tmp_path)
    store.define(SET, NAMES)
    for minute in range(100):
        store.write_offline(SET, UNIVERSE, rows([minute], float(minute)))
    assert scalars(read(store, list(range(100)))) == list(range(100))
    files = list((tmp_path / "offline" / SET / UNIVERSE).iterdir())
    assert len(files) <= 7  # log2(100)
    assert {path.suffix for path in files} == {".parquet"}
    store.close()


def test_a_history_written_again_in_parts_takes_the_place_of_the_older_one(tmp_path: Path) -> None:
    store = feast(tmp_path)
    store.define(SET, NAMES)
    part = 20_000

    def write(value: float, end: int) -> list[Path]:
        for start in range(0, end, part):
            minutes = range(start, min(start + part, end))
            store.write_offline(SET, UNIVERSE, rows(list(minutes), value))
        return sorted((tmp_path / "offline" / SET / UNIVERSE).iterdir())

    first = write(1.0, 70_000)
    assert len(first) == 4
    second = write(2.0, 90_000)
    assert (len(second), set(first) & set(second)) == (5, set())
    assert scalars(read(store, [0, 69_999, 89_999])) == [2.0, 2.0, 2.0]
    store.write_offline(SET, UNIVERSE, rows(list(range(20_000, 60_000, 2)), 3.0))
    assert set(second) < set((tmp_path / "offline" / SET / UNIVERSE).iterdir()), "they have rows that it has not"
    assert scalars(read(store, [20_000, 20_001, 59_999])) == [3.0, 2.0, 2.0]
    store.close()


def test_a_write_cut_short_is_not_seen(tmp_path: Path) -> None:
    store = feast(tmp_path)
    store.define(SET, NAMES)
    store.write_offline(SET, UNIVERSE, rows([1], 1.0))
    (tmp_path / "offline" / SET / UNIVERSE / f"{10**20 - 1}.unfinished").write_bytes(b"PAR1 and then the power went")
    assert scalars(read(store, [1])) == [1]
    store.close()


def test_a_merged_file_left_behind_changes_nothing(tmp_path: Path) -> None:
    store = feast(tmp_path)
    store.define(SET, NAMES)
    store.write_offline(SET, UNIVERSE, rows([1, 2], 1.0))
    [old] = (tmp_path / "offline" / SET / UNIVERSE).iterdir()
    content = old.read_bytes()
    store.write_offline(SET, UNIVERSE, rows([1, 2], 2.0))
    assert not old.exists()
    old.write_bytes(content)  # as after a crash between the merge and the removal
    assert scalars(read(store, [1, 2])) == [2, 2]
    store.close()


def test_reading_goes_on_while_files_are_merged(tmp_path: Path) -> None:
    store = feast(tmp_path)
    store.define(SET, NAMES)
    store.write_offline(SET, UNIVERSE, rows([0], 0.0))

    def write() -> None:
        for minute in range(1, 120):
            store.write_offline(SET, UNIVERSE, rows([minute], float(minute)))

    writer = threading.Thread(target=write)
    writer.start()
    seen = [0.0]
    while writer.is_alive():
        seen += scalars(read(store, [200]))
    writer.join()
    seen += scalars(read(store, [200]))
    assert seen == sorted(seen)
    assert seen[-1] == 119
    store.close()


@pytest.fixture
def berlin() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("berlin")
def test_the_clock_change_of_a_laptop_moves_no_bar(tmp_path: Path) -> None:
    store = feast(tmp_path)
    store.define(SET, NAMES)
    night = int(datetime(2026, 3, 29, 2, 30, tzinfo=UTC).timestamp()) // 60  # 02:30 does not exist in Berlin
    store.write_online(SET, UNIVERSE, rows([night], 1.0))
    store.write_online(SET, UNIVERSE, rows([night + 1], 2.0))
    found = store.read_online(SET, UNIVERSE, INSTRUMENTS)
    assert found.time_us.tolist() == [(night + 1) * MINUTE]
    assert scalars(found.values) == [2]
    store.close()


def test_a_root_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = feast(tmp_path / "file")
    with pytest.raises(FeatureStoreUnavailable, match="file"):
        store.define(SET, NAMES)
    store.close()


def test_a_flushed_redis_is_filled_again_by_the_next_bar(tmp_path: Path, plain_database: str, empty_redis: str) -> None:
    store = feast_on_servers(tmp_path, plain_database, empty_redis)
    store.define(SET, NAMES)
    store.write_online(SET, UNIVERSE, rows([1], 1.0))
    redis_client(empty_redis).flushdb()
    assert len(store.read_online(SET, UNIVERSE, INSTRUMENTS).time_us) == 0
    store.write_online(SET, UNIVERSE, rows([2], 2.0))
    assert scalars(store.read_online(SET, UNIVERSE, INSTRUMENTS).values) == [2]
    store.close()


def test_a_redis_that_dies_is_unavailable_and_comes_back(
    tmp_path: Path, plain_database: str, redis_server: RealServer
) -> None:
    store = feast_on_servers(tmp_path, plain_database, redis_server.address)
    store.define(SET, NAMES)
    store.write_online(SET, UNIVERSE, rows([1], 1.0))
    store.check()
    redis_server.kill()
    try:
        with pytest.raises(FeatureStoreUnavailable, match="feature store"):
            store.check()
        with pytest.raises(FeatureStoreUnavailable, match="feature store"):
            store.write_online(SET, UNIVERSE, rows([2], 2.0))
        with pytest.raises(FeatureStoreUnavailable, match="feature store"):
            store.read_online(SET, UNIVERSE, INSTRUMENTS)
        store.write_offline(SET, UNIVERSE, rows([2], 2.0))
    finally:
        redis_server.start()
    store.check()
    store.write_online(SET, UNIVERSE, rows([2], 2.0))
    assert scalars(store.read_online(SET, UNIVERSE, INSTRUMENTS).values) == [2]
    store.close()


def test_a_registry_that_dies_is_unavailable_and_comes_back(
    tmp_path: Path, plain_postgres_server: RealServer, empty_redis: str
) -> None:
    with fresh_database(plain_postgres_server.address) as database:
        known, early = (feast_on_servers(tmp_path, database, empty_redis) for _ in range(2))
        known.define(SET, NAMES)
        plain_postgres_server.kill()
        try:
            for name in ("fs-2", SET):
                with pytest.raises(FeatureStoreUnavailable, match="feature store"):
                    early.define(name, NAMES)
            with pytest.raises(FeatureStoreUnavailable, match="feature store"):
                known.define("fs-2", NAMES)
            known.write_online(SET, UNIVERSE, rows([1], 1.0))  # what is defined already goes on
        finally:
            plain_postgres_server.start()
        early.define("fs-2", NAMES)
        known.define("fs-2", NAMES)
        assert scalars(early.read_online(SET, UNIVERSE, INSTRUMENTS).values) == [1]
        known.close()
        early.close()


def test_a_taken_name_is_refused(tmp_path: Path) -> None:
    store = feast(tmp_path)
    with pytest.raises(ValueError, match="instrument is no name for a feature"):
        store.define(SET, ["rsi", "instrument"])
    store.close()


def test_importing_feast_leaves_the_metrics_of_this_process_in_memory() -> None:
    import prometheus_client.values

    import tradeloop.common.feature_store.feast.store  # noqa: F401

    assert prometheus_client.values.ValueClass is prometheus_client.values.MutexValue
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ
    assert "PROMETHEUS_MULTIPROCESS_DIR" not in os.environ


def test_a_plain_feast_client_reads_and_materialises_the_store(tmp_path: Path) -> None:
    store = feast(tmp_path)
    store.define(SET, NAMES)
    values = np.array([[[1.0, 2, np.nan], [4, 5, 6]], [[7, 8, np.nan], [10, 11, 12]]])
    store.write_offline(SET, UNIVERSE, rows([1, 2], values))
    client = plain_feast(tmp_path)
    client.materialize(datetime(1970, 1, 1, tzinfo=UTC), datetime(1970, 1, 2, tzinfo=UTC), feature_views=[SET])
    served = client.get_online_features(
        features=[f"{SET}:{NAMES[1]}"],
        entity_rows=[{"universe": UNIVERSE, "instrument": instrument} for instrument in INSTRUMENTS],
    ).to_dict()
    assert served[NAMES[1]] == [8, 11]
    found = store.read_online(SET, UNIVERSE, INSTRUMENTS)
    assert found.time_us.tolist() == [2 * MINUTE]
    np.testing.assert_array_equal(found.values, values[1:])  # Feast materialises NaN as not set
    store.close()


# The offline store, through Feast alone


def plain_feast(folder: Path) -> Feast:
    from feast import FeatureStore as Feast
    from feast import RepoConfig

    config = RepoConfig(
        project="tradeloop",
        registry=str(folder / "registry.pb"),
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        offline_store={"type": "tradeloop.common.feature_store.feast.offline.PolarsOfflineStore"},
        repo_path=folder,
    )
    return Feast(repo_path=str(folder), config=config)


def at(minute: float) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)


@pytest.fixture
def client(tmp_path: Path) -> Feast:
    """Two views: `prices` by venue and symbol, with a TTL and renamed columns; `mood` of the whole market."""
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64, String

    pl.DataFrame(
        {
            "exchange": ["x", "x", "x", "x", "y"],
            "symbol": ["A", "A", "A", "B", "A"],
            "px": [1.0, 2.0, 2.5, 10.0, 100.0],
            "ts": [at(0), at(10), at(10), at(10), at(10)],
            "made": [at(0), at(12), at(11), at(10), at(10)],
        }
    ).write_parquet(tmp_path / "prices.parquet")
    times = [at(5).replace(tzinfo=None), at(15).replace(tzinfo=None)]  # without a zone, in nanoseconds
    pl.DataFrame({"px": [0.5, 0.7], "ts": pl.Series(times, dtype=pl.Datetime("ns"))}).write_parquet(
        tmp_path / "mood.parquet"
    )
    venue = Entity(name="venue", join_keys=["venue"], value_type=ValueType.STRING)
    symbol = Entity(name="symbol", join_keys=["symbol"], value_type=ValueType.STRING)
    prices = FeatureView(
        name="prices",
        entities=[venue, symbol],
        ttl=timedelta(minutes=30),
        schema=[Field(name=name, dtype=String) for name in ("venue", "symbol")] + [Field(name="price", dtype=Float64)],
        source=FileSource(
            name="prices",
            path="prices.parquet",
            timestamp_field="ts",
            created_timestamp_column="made",
            field_mapping={"exchange": "venue", "px": "price"},
        ),
    )
    mood = FeatureView(
        name="mood",
        schema=[Field(name="price", dtype=Float64)],
        source=FileSource(name="mood", path="mood.parquet", timestamp_field="ts", field_mapping={"px": "price"}),
    )
    client = plain_feast(tmp_path)
    client.apply([venue, symbol, prices, mood])
    return client


def ask(
    client: Feast, rows: list[tuple[str, str, float]], features: list[str], full_feature_names: bool = False
) -> pd.DataFrame:
    venues, symbols, minutes = zip(*rows, strict=True)
    asked = {"venue": venues, "symbol": symbols, "event_timestamp": [at(minute) for minute in minutes]}
    return client.get_historical_features(pd.DataFrame(asked), features, full_feature_names).to_df()


def test_entity_rows_keep_their_order_and_columns(client: Feast) -> None:
    found = ask(client, [("x", "B", 20), ("x", "A", 9), ("y", "A", 10), ("z", "A", 20)], ["prices:price"])
    assert list(found.columns) == ["venue", "symbol", "event_timestamp", "price"]
    assert found["symbol"].tolist() == ["B", "A", "A", "A"]
    np.testing.assert_array_equal(found["price"], [10, 1, 100, np.nan])


def test_of_rows_of_one_time_the_one_created_last_counts(client: Feast) -> None:
    assert ask(client, [("x", "A", 10)], ["prices:price"])["price"].tolist() == [2]


def test_a_row_counts_up_to_its_ttl_inclusive(client: Feast) -> None:
    found = ask(client, [("x", "A", 40), ("x", "A", 40.01), ("x", "A", -0.01)], ["prices:price"])
    np.testing.assert_array_equal(found["price"], [2, np.nan, np.nan])


def test_views_join_in_one_request_under_full_names(client: Feast) -> None:
    found = ask(
        client, [("x", "A", 15), ("x", "A", 14), ("x", "A", 4)], ["prices:price", "mood:price"], full_feature_names=True
    )
    np.testing.assert_array_equal(found["prices__price"], [2, 2, 1])
    np.testing.assert_array_equal(found["mood__price"], [0.7, 0.5, np.nan])


def test_entity_rows_without_a_zone_are_utc(client: Feast) -> None:
    asked = pd.DataFrame({"venue": ["x"], "symbol": ["B"], "event_timestamp": [at(10).replace(tzinfo=None)]})
    assert client.get_historical_features(asked, ["prices:price"]).to_df()["price"].tolist() == [10]


def test_bad_entity_rows_are_named(client: Feast) -> None:
    with pytest.raises(ValueError, match="entity rows lack the column symbol"):
        client.get_historical_features(pd.DataFrame({"venue": ["x"], "event_timestamp": [at(0)]}), ["prices:price"])
    with pytest.raises(ValueError, match="pass one as entity_df"):
        client.get_historical_features("SELECT 1", ["prices:price"])


@pytest.mark.parametrize("latest", [True, False])
def test_materialising_serves_the_newest_rows_of_the_range(tmp_path: Path, client: Feast, latest: bool) -> None:
    client.config.materialization_config.pull_latest_features = latest
    client.materialize(at(-1), at(10))
    served = client.get_online_features(
        features=["prices:price", "mood:price"],
        entity_rows=[{"venue": "x", "symbol": "A"}, {"venue": "y", "symbol": "A"}, {"venue": "x", "symbol": "C"}],
        full_feature_names=True,
    ).to_dict()
    assert served["prices__price"] == [2, 100, None]
    assert served["mood__price"] == [0.5] * 3
