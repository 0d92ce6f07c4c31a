"""A thousand portfolios on a hundred universes, and five hundred instruments in one: to start, to decide, to move."""

from __future__ import annotations

import logging
import statistics
import tempfile
from contextlib import closing
from pathlib import Path

import structlog

from benchmarks.measure import Row, report, seconds
from tests.e2e.crowds import Crowd
from tradeloop.common.messages.topics import CATALOGUE
from tradeloop.execution.adapters.sql_ledger import SqlLedger

UNIVERSES, EACH, DAYS, BARS = 100, 10, 365, 10
INSTRUMENTS, FEATURES, WINDOW = 500, 8, 32


def many(folder: Path) -> list[Row]:
    """A thousand portfolios over a ledger on SQLite, each of them with a model of every day of a year."""
    with closing(SqlLedger(f"sqlite:///{folder}/ledger.db")) as ledger:
        crowd = Crowd(UNIVERSES, EACH, ledger=ledger)
        crowd.activate(DAYS)
        crowd.start(3)
        start_s = seconds(crowd.run)
        bars_s = []
        for _ in range(BARS):
            crowd.bar()
            bars_s.append(seconds(crowd.run))
        crowd.bar()

        def move() -> None:
            crowd.stop(crowd.replicas[0])
            crowd.run()

        move_s = seconds(move)
        crowd.stop()
    portfolios, one_s = UNIVERSES * EACH, statistics.median(bars_s[3:])
    whole = f"{portfolios:,} portfolios on {UNIVERSES} universes"
    return [
        Row(f"{whole}: start, in 3 replicas one after the other", start_s, "s", 30.0, "under"),
        Row(f"{whole}: a bar of all, from frame to reward", one_s, "s", None),
        Row(f"{whole}: decisions", portfolios / one_s, "/s", None),
        Row(f"{whole}: a replica of a third leaves, the other two take over", move_s, "s", 20.0, "under"),
    ]


def wide() -> tuple[list[Row], str]:
    """One portfolio of many instruments."""
    crowd = Crowd(1, 1, instruments=INSTRUMENTS, features=FEATURES, window=WINDOW)
    crowd.start()
    taken = []
    for _ in range(WINDOW + 20):
        crowd.bar()
        taken.append(seconds(crowd.run))
    sizes = crowd.largest()
    crowd.stop()
    name = max(sizes, key=sizes.__getitem__)
    what = f"{INSTRUMENTS} instruments in a universe, {FEATURES} features, window {WINDOW}"
    listed = ", ".join(f"{topic} {sizes[topic]:,}" for topic in CATALOGUE if topic in sizes)
    return [
        Row(f"{what}: a bar, from frame to reward", 1e3 * statistics.median(taken[WINDOW + 2 :]), "ms", None),
        Row(f"{what}: the largest message, {name}", float(sizes[name]), "bytes", 1_000_000.0, "under"),
    ], f"The largest message of each topic there, in bytes: {listed}."


def measure() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory(prefix="tradeloop-bench-") as folder:
        rows = many(Path(folder))
    wide_rows, sizes = wide()
    report(
        [*rows, *wide_rows],
        [
            f"Inference and execution of the stack over a bus in memory, in one process and one thread, with a policy "
            f"that costs nothing; frames and features are published ready. Start reads {UNIVERSES * EACH * DAYS:,} "
            "activations: a year of daily training. Replicas take turns here, so that one alone takes a third.",
            sizes,
        ],
    )


if __name__ == "__main__":
    measure()
