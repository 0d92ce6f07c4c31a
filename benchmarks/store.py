"""Bars into PostgreSQL and out of it, against COPY and one query through psycopg alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import psycopg

from benchmarks.measure import Row, in_turns, report
from deploy.native.postgres import Installation, best_installation, driver_url, postgres, system_installation
from deploy.native.server import Server, free_ports
from tradeloop.common.bar_store.sql import SCHEMA, SqlBarStore
from tradeloop.common.clock import SystemClock
from tradeloop.common.market import BAR_COLUMNS, BarArrays, Timeframe
from tradeloop.common.sql.migrations import migrate

INSTRUMENTS, FRAMES, READ_FRAMES = 200, 5_000, 500
LOADS, READS = 3, 10
START_US = 1_640_995_200_000_000
COLUMNS = ("instrument", "timeframe", "open_us", "revision", *BAR_COLUMNS)
TYPES = ("S", "S", ">i8", ">i4", *[">f8"] * 6, ">i8")


def made_up(rng: np.random.Generator) -> BarArrays:
    """A million minute bars of random walks."""
    shape = (FRAMES, INSTRUMENTS)
    close = 100.0 * np.exp(np.cumsum(rng.normal(scale=1e-3, size=shape), axis=0))
    opened = START_US + np.arange(FRAMES, dtype=np.int64) * Timeframe.M1.us
    return BarArrays(
        instruments=tuple(f"venue:X{a}/USD" for a in range(INSTRUMENTS)),
        open_us=opened,
        close_us=opened + Timeframe.M1.us,
        open=close * 0.999,
        high=close * 1.001,
        low=close * 0.998,
        close=close,
        volume=rng.exponential(size=shape),
        funding_rate=np.zeros(shape),
        present=np.ones(shape, dtype=np.bool_),
    )


def encoded(bars: BarArrays) -> bytes:
    """All bars in COPY's binary format, ready to be sent."""
    parts = [b"PGCOPY\n\xff\r\n\0", bytes(8)]
    for a, instrument in enumerate(bars.instruments):
        values = [getattr(bars, name)[:, a] for name in COLUMNS[4:]]
        fields = [instrument.encode(), b"1m", bars.open_us, 0, *values, START_US]
        kinds = [f"S{len(f)}" if isinstance(f, bytes) else kind for f, kind in zip(fields, TYPES, strict=True)]
        layout = [("count", ">i2")] + [
            column for i, kind in enumerate(kinds) for column in ((f"length {i}", ">i4"), (f"field {i}", kind))
        ]
        rows = np.empty(len(bars), dtype=np.dtype(layout))
        rows["count"] = len(fields)
        for i, (field, kind) in enumerate(zip(fields, kinds, strict=True)):
            rows[f"length {i}"], rows[f"field {i}"] = np.dtype(kind).itemsize, field
        parts.append(rows.tobytes())
    return b"".join([*parts, b"\xff\xff"])


def rows(installation: Installation, bars: BarArrays, ready: bytes) -> list[Row]:
    """Both ratios on one server."""
    with server(installation) as url, psycopg.connect(driver_url(url), autocommit=True) as bare:
        level = migrate(url, SCHEMA)[1].tier
        bare.execute("SET jit = off")  # as in the store: for such a query compiling takes longer than running
        store = SqlBarStore(url, SystemClock())
        end_us = int(bars.open_us[-1])
        start_us = int(bars.open_us[-1 - READ_FRAMES])
        query = (
            f"SELECT {', '.join(COLUMNS[:3] + COLUMNS[4:])} FROM bars WHERE instrument = ANY(%s) AND timeframe = '1m' "
            "AND open_us >= %s AND open_us < %s ORDER BY instrument, open_us"
        )

        def copy() -> None:
            with bare.cursor().copy(f"COPY bars ({', '.join(COLUMNS)}, known_us) FROM STDIN (FORMAT BINARY)") as to:
                to.write(ready)

        def fetch() -> int:
            return len(bare.execute(query, (list(bars.instruments), start_us, end_us)).fetchall())

        def read() -> BarArrays:
            return store.read_before(bars.instruments, Timeframe.M1, end_us, READ_FRAMES)

        def empty() -> None:
            bare.execute("TRUNCATE bars")
            bare.execute("CHECKPOINT")

        loaded = in_turns(
            {"copy": (copy, bars.close.size), "ours": (lambda: store.write(Timeframe.M1, bars), bars.close.size)},
            LOADS,
            {"copy": empty, "ours": empty},
        )
        bare.execute("VACUUM ANALYZE bars")
        count = READ_FRAMES * INSTRUMENTS
        if fetch() != count or read().present.sum() != count:
            raise RuntimeError("the two did not read the same bars")
        fetched = in_turns({"query": (fetch, count), "ours": (read, count)}, READS)
        store.close()
    return [
        Row(
            f"a million bars into {level}",
            loaded.rates["ours"],
            "bars/s",
            0.6,
            "at least",
            "bare COPY, encoded before",
            loaded.rates["copy"],
            loaded.ratio("ours", "copy"),
        ),
        Row(
            f"{READ_FRAMES} bars x {INSTRUMENTS} instruments out of {level}",
            fetched.rates["ours"],
            "bars/s",
            0.333,
            "at least",
            "bare query, fetchall",
            fetched.rates["query"],
            fetched.ratio("ours", "query"),
        ),
    ]


@contextmanager
def server(installation: Installation) -> Iterator[str]:
    """A PostgreSQL of its own that keeps what is committed, as production's does."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tradeloop-bench-")))
        [port] = free_ports(1)
        yield stack.enter_context(Server(postgres(folder, port, installation), folder)).address


def measure() -> None:
    bars = made_up(np.random.default_rng(0))
    ready = encoded(bars)
    installations = {each.name: each for each in (system_installation(), best_installation())}
    report(
        [row for installation in installations.values() for row in rows(installation, bars, ready)],
        [
            f"{INSTRUMENTS} instruments x {FRAMES:,} minutes into an empty, migrated table, on "
            f"{' and '.join(installations)}; {LOADS} rounds in turns. Ours encodes the arrays and asks whether any of "
            "the bars is there; the bound sends bytes that were encoded before the clock started, to the same table "
            "with the same key.",
            f"`read_before` gives aligned arrays, each bar in its highest revision; the bare query gives tuples of "
            f"every revision, and the range is told to it. {READS} rounds in turns, both without JIT.",
        ],
    )


if __name__ == "__main__":
    measure()
