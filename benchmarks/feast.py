"""Point-in-time training sets out of Feast, against `pandas.merge_asof`."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.measure import Row, in_turns, report
from tradeloop.common.clock import ManualClock
from tradeloop.common.feature_store.feast.store import FeastFeatureStore
from tradeloop.common.feature_store.port import FeatureRows
from tradeloop.common.market import from_us

ROWS, FEATURES, INSTRUMENTS, ROUNDS = 1_000_000, 20, 10, 3
MINUTE_US, START_US = 60_000_000, 1_640_995_200_000_000
NAMES = tuple(f"f{n}" for n in range(FEATURES))
IDS = tuple(f"x:{n}" for n in range(INSTRUMENTS))


def training_set(folder: Path) -> Row:
    """A million entity rows, at times between the bars, onto a million rows of features."""
    rng = np.random.default_rng(0)
    frames = ROWS // INSTRUMENTS
    time_us = START_US + np.arange(frames, dtype=np.int64) * MINUTE_US
    values = rng.normal(size=(frames, INSTRUMENTS, FEATURES))
    store = FeastFeatureStore(folder, ManualClock(from_us(START_US) + timedelta(days=400)))
    store.define("fs_bench", NAMES)
    for start in range(0, frames, 4_096):
        part = slice(start, start + 4_096)
        store.write_offline("fs_bench", "u", FeatureRows(IDS, NAMES, time_us[part], values[part]))
    asked_us = START_US + rng.integers(0, frames * MINUTE_US, ROWS)
    asked = pd.DataFrame(
        {
            "universe": "u",
            "instrument": rng.choice(IDS, ROWS),
            "event_timestamp": pd.to_datetime(asked_us, unit="us", utc=True),
        }
    )
    references = [f"fs_bench:{name}" for name in NAMES]

    def feast() -> pd.DataFrame:
        found: pd.DataFrame = store._feast.get_historical_features(asked, references).to_df()
        return found

    def pandas() -> pd.DataFrame:
        files = sorted((folder / "offline" / "fs_bench").rglob("*.parquet"))
        columns = ["instrument", "event_timestamp", *NAMES]
        right = pd.concat([pd.read_parquet(file, columns=columns) for file in files]).sort_values("event_timestamp")
        left = asked.reset_index().sort_values("event_timestamp")
        left["event_timestamp"] = left["event_timestamp"].astype(right["event_timestamp"].dtype)
        joined = pd.merge_asof(left, right, on="event_timestamp", by="instrument")
        return joined.sort_values("index")

    if not np.array_equal(feast()[list(NAMES)], pandas()[list(NAMES)], equal_nan=True):
        raise RuntimeError("the two did not join the same values")
    joined = in_turns({"feast": (feast, ROWS), "pandas": (pandas, ROWS)}, ROUNDS)
    store.close()
    return Row(
        f"a training set of {ROWS:,} entity rows x {FEATURES} features",
        joined.rates["feast"],
        "rows/s",
        0.5,
        "at least",
        "pandas.merge_asof",
        joined.rates["pandas"],
        joined.ratio("feast", "pandas"),
    )


def measure() -> None:
    with tempfile.TemporaryDirectory(prefix="tradeloop-bench-") as folder:
        row = training_set(Path(folder))
    report(
        [row],
        [
            f"`get_historical_features` of a plain Feast client on our offline store, entity rows in no order, "
            f"{INSTRUMENTS} instruments; pandas reads the same Parquet files, sorts both sides, joins and restores the "
            f"order. The values are equal. {ROUNDS} rounds in turns. Feast's own duckdb store is not in the lock.",
        ],
    )


if __name__ == "__main__":
    measure()
