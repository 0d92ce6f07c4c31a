"""The folder of a feature store as others see it: Feast's own command, its pages, a notebook; and pandas as a judge."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.native.server import free_ports
from tests.waiting import until
from tradeloop.common.clock import ManualClock
from tradeloop.common.contracts.feature_store import rows_at
from tradeloop.common.feature_store.port import FeatureStore

SET, UNIVERSE = "fs_0123456789ab", "crypto"
NAMES = ("log_return(1)", "1h:EMA(20)", "rsi.14")
INSTRUMENTS = ("binance:BTC/USDT", "binance:ETH/USDT")
SECONDS = 1_000_000


def opened(folder: Path, **sections: dict[str, Any]) -> FeatureStore:
    from tradeloop.common.feature_store.feast.store import FeastFeatureStore  # importing Feast takes seconds

    return FeastFeatureStore(folder, ManualClock(datetime(2026, 1, 1, tzinfo=UTC)), **sections)


def filled(folder: Path, **sections: dict[str, Any]) -> Path:
    store = opened(folder, **sections)
    store.define(SET, NAMES)
    store.write_offline(SET, UNIVERSE, rows_at([1, 2, 3], np.array([1.0, 2.0, 3.0])[:, None, None]))
    store.write_online(SET, UNIVERSE, rows_at([3], 3.0))
    store.close()
    return folder


def feast_command(*arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("feast")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("features"))


def test_feasts_own_command_lists_views_and_services_by_the_name_of_the_set(repository: Path) -> None:
    assert SET in feast_command("-c", str(repository), "feature-views", "list")
    described = yaml.safe_load(feast_command("-c", str(repository), "feature-services", "describe", SET))
    assert described["spec"]["name"] == SET
    [projection] = described["spec"]["features"]
    assert projection["featureViewName"] == SET
    assert [column["name"] for column in projection["featureColumns"]][: len(NAMES)] == list(NAMES)


def test_a_notebook_with_feast_alone_gets_history_and_current_values(repository: Path) -> None:
    script = f"""
import pandas as pd
from feast import FeatureStore
store = FeatureStore(repo_path={str(repository)!r})
asked = pd.DataFrame({{
    "universe": {UNIVERSE!r}, "instrument": {INSTRUMENTS[0]!r},
    "event_timestamp": pd.to_datetime([59, 120, 500], unit="s", utc=True),
}})
found = store.get_historical_features(asked, store.get_feature_service({SET!r})).to_df()
print(found[{NAMES[1]!r}].tolist())
served = store.get_online_features(
    features=store.get_feature_service({SET!r}),
    entity_rows=[{{"universe": {UNIVERSE!r}, "instrument": {INSTRUMENTS[1]!r}}}],
).to_dict()
print(served[{NAMES[2]!r}])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[nan, 2.0, 3.0]", "[3.0]"]


def test_feasts_own_pages_start(repository: Path) -> None:
    [port] = free_ports(1)
    command = [str(Path(sys.executable).with_name("feast")), "-c", str(repository)]
    pages = subprocess.Popen(
        [*command, "ui", "--host", "127.0.0.1", "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:

        def answers() -> bool:
            assert pages.poll() is None, pages.stderr.read().decode() if pages.stderr else ""
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    return b"Feast" in answer.read()
            except OSError:
                return False

        until(answers)
    finally:
        pages.kill()
        pages.communicate()


def test_a_repository_that_moves_is_still_one(tmp_path: Path) -> None:
    moved = filled(tmp_path / "here").rename(tmp_path / "there")
    assert SET in feast_command("-c", str(moved), "feature-views", "list")


def test_no_password_is_written_into_the_repository(tmp_path: Path) -> None:
    from tradeloop.common.feature_store.feast.repository import FILE

    registry = {"registry_type": "sql", "path": f"sqlite:///{tmp_path}/secret-a.db", "cache_ttl_seconds": 5}
    online = {"type": "sqlite", "path": str(tmp_path / "secret-b.db")}
    text = (filled(tmp_path / "features", registry=registry, online_store=online) / FILE).read_text()
    assert "secret" not in text
    told = yaml.safe_load(text)
    assert told["registry"]["path"] == "${TRADELOOP_FEAST_REGISTRY_PATH}"
    assert told["registry"]["cache_ttl_seconds"] == 5
    assert told["online_store"] == {"type": "sqlite", "path": "${TRADELOOP_FEAST_ONLINE_PATH}"}
    assert "environment variables TRADELOOP_FEAST_ONLINE_PATH, TRADELOOP_FEAST_REGISTRY_PATH" in text


# The join, beside pandas


@st.composite
def histories(draw: st.DrawFn) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """Rows of two instruments, some of equal times and creations; entity rows in any order; a TTL in seconds."""
    seconds = st.integers(0, 40)
    row = st.tuples(st.sampled_from("AB"), seconds, st.integers(0, 3), st.none() | st.floats(-9, 9))
    stored = pd.DataFrame(draw(st.lists(row, max_size=25)), columns=["symbol", "ts", "made", "value"])
    asked = draw(st.lists(st.tuples(st.sampled_from("ABC"), seconds, st.integers(0, 1)), min_size=1, max_size=15))
    return stored, pd.DataFrame(asked, columns=["symbol", "ts", "label"]), draw(st.sampled_from([0, 1, 5, 30]))


@pytest.fixture(scope="module")
def client_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("joins")


@given(case=histories(), microseconds=st.booleans())
@settings(max_examples=60, deadline=None)
def test_historical_features_are_those_of_merge_asof(
    client_folder: Path, case: tuple[pd.DataFrame, pd.DataFrame, int], microseconds: bool
) -> None:
    from tradeloop.common.feature_store.feast.offline import PolarsOfflineStore

    # isort: split
    from datetime import timedelta

    from feast import Entity, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64, String

    stored, asked, ttl_s = case
    symbol = Entity(name="symbol", join_keys=["symbol"], value_type=ValueType.STRING)
    view = FeatureView(
        name="prices",
        entities=[symbol],
        ttl=timedelta(seconds=ttl_s),
        schema=[Field(name="symbol", dtype=String), Field(name="value", dtype=Float64)],
        source=FileSource(name="prices", path="stored.parquet", timestamp_field="ts", created_timestamp_column="made"),
    )
    view.entity_columns = [Field(name="symbol", dtype=String)]
    times = pl.Datetime("us" if microseconds else "ns", "UTC")
    pl.DataFrame(
        {
            "symbol": pl.Series(stored["symbol"].tolist(), dtype=pl.String),
            "ts": pl.Series(stored["ts"].tolist(), dtype=pl.Int64).cast(pl.Int64) * SECONDS,
            "made": pl.Series(stored["made"].tolist(), dtype=pl.Int64) * SECONDS,
            "value": pl.Series(stored["value"].tolist(), dtype=pl.Float64, strict=False),
        }
    ).with_columns(
        pl.col("ts", "made").cast(pl.Datetime("us", "UTC")).cast(times),
    ).write_parquet(client_folder / "stored.parquet")
    config = RepoConfig(
        project="p",
        registry=str(client_folder / "registry.pb"),
        offline_store={"type": "tradeloop.common.feature_store.feast.offline.PolarsOfflineStore"},
        repo_path=client_folder,
    )
    entity_rows = asked.assign(event_timestamp=pd.to_datetime(asked.pop("ts"), unit="s", utc=True))
    registry: Any = type("Empty", (), {"list_on_demand_feature_views": lambda *_, **__: []})()
    job = PolarsOfflineStore.get_historical_features(config, [view], ["prices:value"], entity_rows, registry, "p")
    found = job.to_arrow().to_pandas()

    # One row for each symbol and time: of equal times the one made last, and of equal makings the last.
    right = stored.sort_values(["ts", "made"], kind="stable").drop_duplicates(["symbol", "ts"], keep="last")
    right = right.assign(event_timestamp=pd.to_datetime(right["ts"].astype("int64"), unit="s", utc=True))
    left = entity_rows.reset_index().sort_values("event_timestamp", kind="stable")
    expected = pd.merge_asof(
        left,
        right.astype({"symbol": object, "value": float})[["symbol", "event_timestamp", "value"]],
        on="event_timestamp",
        by="symbol",
        tolerance=pd.Timedelta(seconds=ttl_s) if ttl_s else None,
    ).sort_values("index")
    assert found["label"].tolist() == entity_rows["label"].tolist()
    np.testing.assert_array_equal(found["value"].astype(float), expected["value"].astype(float))
