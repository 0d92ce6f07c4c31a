"""Longer bars of a stream over restarts, and of a batch, held to what databases make of the same bars.

PostgreSQL groups by `date_bin` and `date_trunc`, TimescaleDB by `time_bucket`, and its community edition by continuous
aggregates: the views of the bar store, and one with the days of a market.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import psycopg
import pytest

from deploy.native.postgres import driver_url
from tests.tiers import database_for, execute
from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bar_store.sql import SCHEMA, SqlBarStore, StorageTier
from tradeloop.common.clock import ManualClock
from tradeloop.common.market import BarArrays, Instrument, Series, Timeframe, Universe, align, from_us, resample, to_us
from tradeloop.common.messages import BarFrame
from tradeloop.common.sql.migrations import migrate
from tradeloop.ingest.application.replay import resumed
from tradeloop.ingest.domain import Resampler, frames

BEGINS = datetime(2024, 3, 4, tzinfo=UTC)
CLOCK = ManualClock(BEGINS)
M1 = Timeframe.M1
VIEWS = tuple(map(Timeframe, ("5m", "15m", "1h", "4h", "1d")))
TIERS = [tier for tier in StorageTier if tier is not StorageTier.SQLITE]


@pytest.fixture(params=TIERS)
def tiered(request: pytest.FixtureRequest) -> Iterator[tuple[str, StorageTier]]:
    with database_for(request, request.param) as url:
        yield url, request.param


def universe(calendar: str, higher: Sequence[Timeframe]) -> Universe:
    instruments = tuple(Instrument(id=name, calendar=calendar) for name in ("x:A", "x:B"))
    return Universe(name="u", instruments=instruments, timeframe=M1, higher_timeframes=tuple(higher))


def bars(of: Universe, opens: Sequence[int], seed: int) -> BarArrays:
    """Bars of both instruments, each with gaps of its own."""
    rng = np.random.default_rng(seed)

    def one(keep: float) -> Series:
        open_us = np.array(opens, dtype=np.int64)
        open_us = open_us[rng.random(len(open_us)) < keep]
        low, span = rng.uniform(1, 2, len(open_us)), rng.uniform(0, 1, len(open_us))
        inside = {name: low + span * rng.random(len(open_us)) for name in ("open", "close")}
        return {"open_us": open_us, **inside, "high": low + span, "low": low, "volume": rng.uniform(0, 9, len(open_us))}

    return align(of.ids, M1, [one(0.9), one(0.05)])


Numbers = dict[tuple[str, int], tuple[float, ...]]
"""Prices and volume of longer bars, by instrument and open time."""


def streamed(of: Universe, base: BarArrays, restarts: Sequence[int]) -> dict[Timeframe, Numbers]:
    """What a stream makes of the bars, killed at some frames and resumed from the store."""
    store, resampler = MemoryBarStore(CLOCK), Resampler(of)
    store.write(M1, base)
    sent = list[BarFrame]()
    for number, frame in enumerate(frames("u", M1, base)):
        if number in restarts:
            resampler = resumed(store, of, to_us(frame.open_time))
        sent += resampler.feed(frame)
    found: dict[Timeframe, Numbers] = {one: {} for one in of.higher_timeframes}
    for frame in sent:
        for bar in frame.bars:
            numbers = (bar.open, bar.high, bar.low, bar.close, bar.volume or 0.0)
            found[frame.timeframe][bar.instrument, to_us(frame.open_time)] = numbers
    for one in of.higher_timeframes:
        batch = resample(base, M1, one, days=of.days)
        assert sum(batch.present.sum(axis=1)) == len(found[one])
        assert {open_us for _, open_us in found[one]} == set(batch.open_us.tolist())
    return found


def assert_same(ours: Numbers, theirs: Sequence[tuple[object, ...]], length: Timeframe, end_us: int) -> None:
    """The prices to the bit, sums up to the order in which they were added. Buckets that have not closed are theirs
    alone."""
    closed = {}
    for name, open_us, *numbers in theirs:
        key, floats = (str(name), int(str(open_us))), [float(str(number)) for number in numbers]
        if key[1] + length.us <= end_us:
            closed[key] = floats
    assert closed.keys() == ours.keys()
    for key, (*prices, volume) in closed.items():
        *expected, total = ours[key]
        assert prices == expected, key
        assert volume == pytest.approx(total, rel=1e-12), key


def test_the_views_of_the_store_hold_what_is_streamed(tiered: tuple[str, StorageTier]) -> None:
    url, tier = tiered
    migrate(url, SCHEMA)
    of = universe("continuous", VIEWS)
    minutes = range(to_us(BEGINS), to_us(BEGINS + timedelta(days=4, hours=7)), M1.us)
    base = bars(of, minutes, seed=1)
    with closing(SqlBarStore(url, CLOCK)) as store:
        store.write(M1, base)
        if tier is StorageTier.COMMUNITY:
            for (job,) in execute(
                url,
                "SELECT job_id FROM timescaledb_information.jobs "
                "WHERE proc_name LIKE '%continuous_aggregate' ORDER BY 1",
            ):
                execute(url, f"CALL run_job({job})")
            stored = "SELECT count(*) FROM timescaledb_information.continuous_aggregates WHERE view_name LIKE 'bars_%'"
            assert execute(url, stored) == [(len(VIEWS) + 1,)]
    found = streamed(of, base, restarts=[1, 700, 701, 3_000, 5_999])
    for one in VIEWS:
        view = f"SELECT instrument, open_us, open, high, low, close, volume FROM bars_{one} WHERE base = '1m'"
        assert_same(found[one], execute(url, view), one, int(base.close_us[-1]))


def sessions(calendar: str) -> list[int]:
    """Minutes around a change of the clock in New York, while the market trades."""
    zone, opens = ZoneInfo("America/New_York"), []
    for at_us in range(to_us(BEGINS), to_us(BEGINS + timedelta(days=17)), 3 * M1.us):
        local = from_us(at_us).astimezone(zone)
        minute = local.hour * 60 + local.minute
        if calendar == "XNYS":
            trades = local.weekday() < 5 and 9 * 60 + 30 <= minute < 16 * 60
        else:
            day = (local + timedelta(hours=7)).weekday()  # it turns at 17:00
            trades = day < 5
        if trades:
            opens.append(at_us)
    return opens


@pytest.mark.parametrize("calendar", ["XNYS", "fx"])
def test_days_of_a_market_are_those_of_its_time_zone(tiered: tuple[str, StorageTier], calendar: str) -> None:
    url, tier = tiered
    longer = (Timeframe.D1, Timeframe.W1)
    of = universe(calendar, longer)
    base = bars(of, sessions(calendar), seed=2)
    found = streamed(of, base, restarts=[1, 400, 1_111, 2_000])
    execute(
        url,
        "CREATE TABLE ticks (instrument text, time timestamptz NOT NULL, open float8, high float8, low float8, "
        "close float8, volume float8)",
    )
    if tier is not StorageTier.POSTGRESQL:
        execute(url, "SELECT create_hypertable('ticks', by_range('time'))")
    with psycopg.connect(driver_url(url), autocommit=True) as connection:
        columns = ("open", "high", "low", "close", "volume")
        with connection.cursor().copy("COPY ticks FROM STDIN") as copy:
            for a, name in enumerate(base.instruments):
                one = base.series(a)
                for row, open_us in enumerate(one["open_us"].tolist()):
                    copy.write_row((name, from_us(open_us), *(float(one[column][row]) for column in columns)))
    zone, shift = "America/New_York", "7 hours" if calendar == "fx" else "0 hours"
    for length, unit, monday in ((Timeframe.D1, "day", "2000-01-03"), (Timeframe.W1, "week", "2000-01-03")):
        first, last = "(array_agg(open ORDER BY time))[1]", "(array_agg(close ORDER BY time DESC))[1]"
        local = f"date_trunc('{unit}', (time AT TIME ZONE '{zone}') + interval '{shift}') - interval '{shift}'"
        bucket = f"({local}) AT TIME ZONE '{zone}'"
        if tier is not StorageTier.POSTGRESQL:
            first, last = "first(open, time)", "last(close, time)"
            origin = f"(timestamp '{monday}' - interval '{shift}') AT TIME ZONE '{zone}'"
            bucket = f"time_bucket('1 {unit}', time, '{zone}', {origin})"
        query = (
            f"SELECT instrument, {bucket} AS bucket, {first} AS open, max(high) AS high, min(low) AS low, "
            f"{last} AS close, sum(volume) AS volume FROM ticks GROUP BY 1, 2"
        )
        if tier is StorageTier.COMMUNITY:
            execute(
                url,
                f"CREATE MATERIALIZED VIEW ticks_{unit} WITH (timescaledb.continuous) AS {query} WITH NO DATA",
                f"CALL refresh_continuous_aggregate('ticks_{unit}', NULL, NULL)",
            )
            query = f"SELECT * FROM ticks_{unit}"
        rows = execute(
            url,
            "SELECT instrument, (extract(epoch FROM bucket) * 1000000)::bigint, open, high, low, close, volume "
            f"FROM ({query}) AS buckets",
        )
        assert rows
        assert_same(found[length], rows, length, int(base.close_us[-1]))
