from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.clock import ManualClock
from tradeloop.common.market import (
    BarArrays,
    Instrument,
    Series,
    Timeframe,
    Universe,
    align,
    resample,
    to_us,
)
from tradeloop.common.messages import BarFrame
from tradeloop.ingest.application.replay import resumed
from tradeloop.ingest.domain import Gate, Refused, Resampler, corrections, frames, together

MINUTE = Timeframe.M1.us
EXTRAS = ("trade_count", "buy_volume", "spread_mean", "bid_max", "ask_min", "vwap", "mood")
HIGHER = (Timeframe.H1, Timeframe.M5, Timeframe.M15, Timeframe.M3)


def universe(instruments: int, higher: tuple[Timeframe, ...] = HIGHER) -> Universe:
    ids = tuple(Instrument(id=f"x:{name}") for name in "ABC"[:instruments])
    return Universe(name="u", instruments=ids, timeframe=Timeframe.M1, higher_timeframes=higher)


def series(minutes: list[int], seed: int = 0, volume: bool = True) -> Series:
    rng = np.random.default_rng(seed)
    n = len(minutes)
    low, span = rng.uniform(1, 2, n), rng.uniform(0, 1, n)
    columns: dict[str, NDArray[np.float64] | NDArray[np.int64]] = {
        "open_us": np.array(minutes, dtype=np.int64) * MINUTE,
        "open": low + span * rng.random(n),
        "high": low + span,
        "low": low,
        "close": low + span * rng.random(n),
        "funding_rate": rng.normal(0, 1e-4, n),
    }
    return columns | {"volume": rng.uniform(0, 1e6, n)} if volume else columns


def further(names: list[str], n: int, a: int) -> dict[str, NDArray[np.float64]]:
    """Further columns that begin late, or lack values; the third instrument has none."""
    rng = np.random.default_rng(n + a)
    return {
        name: np.where(rng.random(n) < [1.0, 0.9, 0.1][(a + place) % 3], rng.normal(size=n), np.nan)
        for place, name in enumerate(names)
        if a < 2
    }


@st.composite
def histories(draw: st.DrawFn) -> BarArrays:
    """Up to three instruments with gaps of their own, some without volume."""
    minutes = draw(st.lists(st.sets(st.integers(-70, 150), max_size=80).map(sorted), min_size=1, max_size=3))
    ids = universe(len(minutes)).ids
    parts = [series(times, a, volume=a != 1) for a, times in enumerate(minutes)]
    beside_us = draw(st.sampled_from([0, MINUTE // 2, MINUTE - 1]))
    extras = draw(st.lists(st.sampled_from(EXTRAS), unique=True))
    beside = [
        {**part, "open_us": part["open_us"] + beside_us, **further(extras, len(part["open_us"]), a)}
        for a, part in enumerate(parts)
    ]
    return align(ids, Timeframe.M1, beside)


def feed_all(resampler: Resampler, base: list[BarFrame]) -> list[BarFrame]:
    return [closed for frame in base for closed in resampler.feed(frame)]


# --- frames ---------------------------------------------------------------------------------------


def test_a_frame_carries_its_bars_and_names_what_is_missing() -> None:
    bars = align(("x:A", "x:B"), Timeframe.M1, [series([0, 1], 1), series([1], 2, volume=False)])
    first, second = frames("u", Timeframe.M1, bars)

    assert first.open_time == datetime(1970, 1, 1, tzinfo=UTC)
    assert first.close_time == first.open_time + timedelta(minutes=1)
    assert [bar.instrument for bar in first.bars] == ["x:A"]
    assert (first.missing, second.missing) == (("x:B",), ())
    assert (first.universe, first.timeframe, first.revision) == ("u", Timeframe.M1, 0)
    a, b = second.bars
    assert (a.open, a.high, a.low, a.close) == tuple(bars.open[1, :1]) + tuple(
        getattr(bars, name)[1, 0] for name in ("high", "low", "close")
    )
    assert (a.volume, b.volume) == (bars.volume[1, 0], None)
    assert b.funding_rate == bars.funding_rate[1, 1]


# --- resampling a stream --------------------------------------------------------------------------


@given(histories())
def test_a_stream_resamples_to_what_the_batch_gives(bars: BarArrays) -> None:
    one = universe(len(bars.instruments))
    streamed = feed_all(Resampler(one), list(frames("u", Timeframe.M1, bars)))
    for timeframe in HIGHER:
        batch = list(frames("u", timeframe, resample(bars, Timeframe.M1, timeframe)))
        assert [frame for frame in streamed if frame.timeframe == timeframe] == batch
    closes = [(frame.close_time, frame.timeframe.us) for frame in streamed]
    assert closes == sorted(closes)


LONGER = (Timeframe.M5, Timeframe.M15, Timeframe.H1, Timeframe.H4, Timeframe.D1)


@given(st.integers(0, 2**32), st.lists(st.integers(1, 2_900), max_size=3).map(sorted))
@settings(max_examples=20, deadline=None)
def test_a_stream_with_restarts_resamples_to_what_polars_groups(seed: int, restarts: list[int]) -> None:
    """Two days of minutes with gaps, the process killed at some frames and resumed from where all buckets begin."""
    rng = np.random.default_rng(seed)
    minutes = np.flatnonzero(rng.random(2 * 24 * 60 + 60) > rng.choice([0.0, 0.1, 0.9])).tolist()
    bars = align(("x:A",), Timeframe.M1, [series(minutes, seed)])
    one, base = universe(1, LONGER), list(frames("u", Timeframe.M1, bars))
    resampler, sent = Resampler(one), []
    for number, frame in enumerate(base):
        if number in restarts:
            day = (to_us(base[number - 1].close_time) - 1) // Timeframe.D1.us * Timeframe.D1.us
            resampler = Resampler(one)
            feed_all(resampler, [old for old in base[:number] if to_us(old.close_time) > day])
        sent += resampler.feed(frame)
    columns = {name: getattr(bars, name)[:, 0] for name in ("open", "high", "low", "close", "volume")}
    table = pl.DataFrame({"open_us": bars.open_us, **columns})
    for timeframe in LONGER:
        expected = (
            table.group_by_dynamic("open_us", every=f"{timeframe.us}i")
            .agg(pl.first("open"), pl.max("high"), pl.min("low"), pl.last("close"), pl.sum("volume"))
            .filter(pl.col("open_us") + timeframe.us <= int(bars.close_us[-1]))
        )
        own = [frame for frame in sent if frame.timeframe is timeframe]
        assert [to_us(frame.open_time) for frame in own] == expected["open_us"].to_list()
        for name in ("open", "high", "low", "close"):
            assert [getattr(frame.bars[0], name) for frame in own] == expected[name].to_list()
        np.testing.assert_allclose([frame.bars[0].volume or 0.0 for frame in own], expected["volume"], rtol=1e-12)


@given(histories())
def test_a_higher_frame_comes_as_soon_as_it_is_known_to_be_closed(bars: BarArrays) -> None:
    resampler, published = Resampler(universe(len(bars.instruments))), set()
    known_until = None
    for frame in frames("u", Timeframe.M1, bars):
        for closed in resampler.feed(frame):
            assert closed.close_time <= frame.close_time
            assert known_until is None or closed.close_time > known_until, "it could have come earlier"
            published.add(closed.identity)
        known_until = frame.close_time


@given(histories(), st.data())
def test_a_restart_counts_no_bar_twice(bars: BarArrays, data: st.DataObject) -> None:
    one, base = universe(len(bars.instruments)), list(frames("u", Timeframe.M1, bars))
    at = data.draw(st.integers(0, len(base)), label="frames before the crash")
    again = data.draw(st.integers(0, at), label="frames that come again")

    whole = feed_all(Resampler(one), base)
    before = feed_all(Resampler(one), base[:at])
    restarted = Resampler(one)
    if at:
        bucket = (to_us(base[at - 1].close_time) - 1) // Timeframe.H1.us * Timeframe.H1.us
        feed_all(restarted, [frame for frame in base[:at] if to_us(frame.close_time) > bucket])

    assert before + feed_all(restarted, base[at - again :]) == whole


# --- the data gate on arrays ----------------------------------------------------------------------


@given(st.integers(10, 60), st.sampled_from(list(Timeframe)), st.integers(-5, 5))
def test_good_bars_pass_and_tell_their_timeframe(n: int, timeframe: Timeframe, start: int) -> None:
    good = dict(series(list(range(n))))
    good["open_us"] = (np.arange(n) + start) * timeframe.us
    for known in (None, timeframe):
        gate = Gate(known, 10)
        assert gate.take(good) is good
        assert gate.end() == gate.timeframe == timeframe


@pytest.mark.parametrize(
    ("timeframe", "offset_hours", "row", "early_hours", "fault"),
    [
        pytest.param("1h", 0.5, None, 0, "", id="hours from half past on"),
        pytest.param("1d", -2, None, 0, "", id="days from 22:00 on"),
        pytest.param("1d", 5, 7, 1, "", id="clocks go forward"),
        pytest.param("1d", 4, 7, -1, "", id="clocks go back"),
        pytest.param("1d", 4, 7, 2, "is no open time of a 1d bar here", id="two hours early"),
        pytest.param("1h", 0, 7, 0.5, "is no open time of a 1h bar here", id="half an hour early"),
    ],
)
def test_bars_may_open_at_any_time_but_not_inside_of_another(
    timeframe: Timeframe, offset_hours: float, row: int | None, early_hours: float, fault: str
) -> None:
    bars = dict(series(list(range(20))))
    bars["open_us"] = (np.arange(20) * Timeframe(timeframe).us + offset_hours * Timeframe.H1.us).astype(np.int64)
    bars["open_us"][len(bars["open_us"]) if row is None else row :] -= int(early_hours * Timeframe.H1.us)
    gate = Gate(None, 10)
    if not fault:
        assert gate.take(bars) is bars
        assert gate.timeframe is Timeframe(timeframe)
        return
    with pytest.raises(Refused, match=fault) as refused:
        gate.take(bars)
    assert refused.value.row == row


def test_bars_of_two_blocks_do_not_overlap() -> None:
    bars = dict(series(list(range(20))))
    gate = Gate(Timeframe.M1, 10)
    gate.take(bars)
    with pytest.raises(Refused, match="is no open time of a 1m bar"):
        gate.take({**bars, "open_us": bars["open_us"] + 20 * MINUTE - MINUTE // 2})


# --- what the store holds otherwise ---------------------------------------------------------------


def test_only_what_differs_is_corrected() -> None:
    ids = ("x:A", "x:B")
    stored = align(ids, Timeframe.M1, [series([0, 1, 2, 3], 1), series([0, 2, 3], 2, volume=False)])
    assert len(corrections(stored.slice(1, 3), stored)) == 0

    new = align(ids, Timeframe.M1, [series([0, 1, 2, 3], 1), series([0, 2, 3], 2, volume=False)])
    new.close[2, 1] += 1
    new.volume[3, 0] = np.nan
    result = corrections(new, stored)
    assert result.open_us.tolist() == [2 * MINUTE, 3 * MINUTE]
    assert result.present.tolist() == [[False, True], [True, False]]
    assert result.close[0, 1] == new.close[2, 1]

    stored = replace(new, extra={"mood": np.array([[1.0, np.nan], [2.0, np.nan], [np.nan] * 2, [3.0] * 2])})
    other = replace(new, extra={"mood": np.array([[1.0, np.nan], [5.0, np.nan], [4.0, np.nan], [3.0] * 2])})
    assert corrections(stored, stored).present.tolist() == []
    assert corrections(other, stored).open_us.tolist() == [MINUTE, 2 * MINUTE]
    assert corrections(other, stored).extra["mood"].tolist()[0][0] == 5.0
    assert corrections(stored, new).open_us.tolist() == [0, MINUTE, 3 * MINUTE]


def test_a_source_that_does_not_give_a_column_takes_none_away() -> None:
    ids = ("x:A",)
    plain = align(ids, Timeframe.M1, [series([0, 1, 2], 1)])
    stored = replace(plain, extra={"mood": np.array([[1.0], [2.0], [np.nan]])})
    assert len(corrections(plain, stored)) == 0
    moved = replace(plain, close=plain.close + np.array([[0.0], [0.1], [0.0]]), extra={"fear": np.full((3, 1), np.nan)})
    result = corrections(moved, stored)
    assert result.open_us.tolist() == [MINUTE]
    assert result.extra["mood"].tolist() == [[2.0]]
    assert np.isnan(result.extra["fear"]).all()


def test_parts_are_put_on_one_grid() -> None:
    a = align(("x:A",), Timeframe.M1, [series([0, 1], 1)])
    b = align(("x:B",), Timeframe.M1, [series([1, 2], 2)])
    both = together(Timeframe.M1, [a, b])
    assert both.instruments == ("x:A", "x:B")
    assert both.present.tolist() == [[True, False], [True, True], [False, True]]
    assert both.volume[:2, 0].tolist() == a.volume[:, 0].tolist()


DAYS_AND_WEEKS = (Timeframe.M30, Timeframe.H4, Timeframe.D1, Timeframe.W1)


@given(
    st.sampled_from(["fx", "XNYS", "XLON", "XTAE", "continuous"]),
    st.sampled_from([datetime(2024, 3, 10, tzinfo=UTC), datetime(2024, 10, 27, tzinfo=UTC)]),
    st.sampled_from([1.0, 0.6, 0.03]),
    st.integers(0, 2**32),
    st.lists(st.integers(0, 900), max_size=4).map(sorted),
)
@settings(max_examples=25, deadline=None)
def test_days_of_a_market_stream_over_restarts_as_in_a_batch(
    calendar: str, around: datetime, keep: float, seed: int, restarts: list[int]
) -> None:
    """Clocks change on the way; the process is killed at some frames, and resumes from what is stored."""
    rng = np.random.default_rng(seed)
    quarters = np.flatnonzero(rng.random(10 * 96) < keep).tolist()
    one = {**series(quarters, seed)}
    one["open_us"] = one["open_us"] * 15 + to_us(around - timedelta(days=6))
    bars = align(("x:A",), Timeframe.M15, [one])
    market = Universe(
        name="u",
        instruments=(Instrument(id="x:A", calendar=calendar),),
        timeframe=Timeframe.M15,
        higher_timeframes=DAYS_AND_WEEKS,
    )
    base, store = list(frames("u", Timeframe.M15, bars)), MemoryBarStore(ManualClock(around))
    resampler, sent = Resampler(market), list[BarFrame]()
    for number, frame in enumerate(base):
        if number in restarts:
            resampler = resumed(store, market, to_us(frame.open_time))
        sent += resampler.feed(frame)
        store.write(Timeframe.M15, bars.slice(number, number + 1))
    for timeframe in DAYS_AND_WEEKS:
        batch = list(frames("u", timeframe, resample(bars, Timeframe.M15, timeframe, days=market.days)))
        assert [frame for frame in sent if frame.timeframe is timeframe] == batch
    closes = [(frame.close_time, frame.timeframe.us) for frame in sent]
    assert closes == sorted(closes)
