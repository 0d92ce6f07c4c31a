"""Minutes from a venue into the store through ccxt: how much of the time is not the client library's."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, report
from tradeloop.common.bar_store.sql import SqlBarStore
from tradeloop.common.clock import SystemClock
from tradeloop.common.market import Timeframe
from tradeloop.ingest.adapters.ccxt_source import CcxtSource
from tradeloop.ingest.adapters.sections import CcxtSection
from tradeloop.ingest.adapters.sql_fetched import SqlFetched
from tradeloop.ingest.application.fetch import fetch

BARS, AT_MOST_S = 1_000_000, 45.0
ORIGIN = "2024-01-01T00:00:00"


class Stopwatch:
    """A function of the client library, and how long it took in all."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self.wall_s = self.cpu_s = 0.0
        self.calls = 0

    def __call__(self, *arguments: Any) -> Any:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        try:
            return self._call(*arguments)
        finally:
            self.wall_s += time.perf_counter() - wall_s
            self.cpu_s += time.process_time() - cpu_s
            self.calls += 1


def measure() -> None:
    command = [sys.executable, "-m", "tradeloop.ingest.contracts.fake_venue", "--symbols", "BTC/USDT"]
    command += ["--begins", "2022-01-01", "--origin", ORIGIN, "--speed", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as venue:
        assert venue.stdout is not None
        try:
            rows, note = backfilled(venue.stdout.readline().strip())
        finally:
            venue.kill()
    report(rows, [note])


def backfilled(url: str) -> tuple[list[Row], str]:
    clock = SystemClock()
    section = CcxtSection(url=url, requests_per_s=100_000.0)
    with tempfile.TemporaryDirectory(prefix="tradeloop-bench-") as folder:
        database = f"sqlite:///{Path(folder) / 'bars.db'}"
        with (
            closing(CcxtSource("binance", section, clock)) as source,
            closing(SqlBarStore(database, clock)) as store,
            closing(SqlFetched(database, clock)) as fetched,
        ):
            [instrument] = source.instruments(["BTC/USDT"])
            end_us = source.time_us()
            start_us = end_us - BARS * Timeframe.M1.us
            store.check()
            watch = source._exchange.fetch_ohlcv = Stopwatch(source._exchange.fetch_ohlcv)
            bars, wall_s, cpu_s = 0, time.perf_counter(), time.process_time()
            for progress in fetch(
                source, "bench", store, fetched, instrument, Timeframe.M1, start_us, end_us, time.sleep
            ):
                bars += progress.bars
                if time.perf_counter() - wall_s > AT_MOST_S:
                    break
            wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
            stored = store.census([instrument.id], Timeframe.M1, start_us, end_us).rows
    if stored != bars:
        raise RuntimeError(f"{stored:,} bars of {bars:,} were stored")
    return (
        [
            Row("backfill through ccxt into SQLite", bars / wall_s, "bars/s", None),
            Row("its time outside of the client library", 100 * (1 - watch.wall_s / wall_s), "%", None),
            Row("its CPU time outside of the client library", 100 * (1 - watch.cpu_s / cpu_s), "%", None),
        ],
        f"{bars:,} minutes of one instrument in {watch.calls:,} pages, in at most {AT_MOST_S:g} s, from the "
        "fake venue in a process of its own on the same machine, without faults and without a rate limit that counts. "
        "The client library's time is that in `fetch_ohlcv`: the request, the wait for the venue, and the parsing. The "
        "rest turns rows into arrays, checks them, compares them with what is stored, stores and records each page.",
    )


if __name__ == "__main__":
    measure()
