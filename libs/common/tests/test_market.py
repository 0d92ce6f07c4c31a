from __future__ import annotations

import math
from dataclasses import fields
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tradeloop.common.market import (
    EVER_US,
    BarArrays,
    Instrument,
    Series,
    Timeframe,
    TimeRange,
    Universe,
    align,
    cycle_us,
    from_us,
    overlaps,
    resample,
    to_us,
    whole_us,
)

MINUTE = Timeframe.M1.us
NAMES = ("x:A", "x:B", "x:C")


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
    if volume:
        columns["volume"] = rng.uniform(0, 1e6, n)
    return columns


def equal(left: BarArrays, right: BarArrays) -> bool:
    ours, theirs = left.columns(), right.columns()
    same = all(
        getattr(left, name).tolist() == getattr(right, name).tolist() for name in ("open_us", "close_us", "present")
    )
    same &= left.instruments == right.instruments and ours.keys() == theirs.keys()
    return same and all(np.array_equal(ours[name], theirs[name], equal_nan=True) for name in ours)


def minutes_lists(most: int = 90) -> st.SearchStrategy[list[int]]:
    return st.sets(st.integers(-40, most), max_size=60).map(sorted)


def moved(one: Series, by_us: int) -> Series:
    return {**one, "open_us": one["open_us"] + by_us}


@st.composite
def bars(draw: st.DrawFn) -> BarArrays:
    """On a grid of whole minutes, or beside it."""
    minutes = draw(st.lists(minutes_lists(), min_size=1, max_size=3))
    beside_us = draw(st.sampled_from([0, MINUTE // 2, 1, MINUTE - 1]))
    parts = [moved(series(m, i, i != 1), beside_us) for i, m in enumerate(minutes)]
    return align(NAMES[: len(minutes)], Timeframe.M1, parts)


def slow_resample(bars: BarArrays, target: Timeframe, closed_us: int) -> dict[tuple[str, int], dict[str, float]]:
    """The definition, one bar at a time."""
    buckets: dict[tuple[str, int], dict[str, float]] = {}
    for t in range(len(bars)):
        bucket = -(-int(bars.close_us[t]) // target.us) * target.us - target.us
        if bucket + target.us > closed_us:
            continue
        for a, instrument in enumerate(bars.instruments):
            if not bars.present[t, a]:
                continue
            bar = {f.name: float(getattr(bars, f.name)[t, a]) for f in fields(bars)[3:9]}
            whole = buckets.setdefault((instrument, bucket), bar | {"volume": 0.0, "funding_rate": 0.0})
            whole["high"] = max(whole["high"], bar["high"])
            whole["low"] = min(whole["low"], bar["low"])
            whole["close"] = bar["close"]
            whole["volume"] += bar["volume"]
            whole["funding_rate"] += bar["funding_rate"]
    return buckets


@given(bars(), st.sampled_from([Timeframe.M5, Timeframe.M15, Timeframe.H1]), st.none() | st.integers(-60, 120))
def test_resampling_agrees_with_its_definition_to_the_bit(
    bars: BarArrays, target: Timeframe, closed_minute: int | None
) -> None:
    closed_us = None if closed_minute is None else closed_minute * MINUTE
    known_us = closed_us if closed_us is not None else int(bars.close_us[-1]) if len(bars) else 0
    expected = slow_resample(bars, target, known_us)

    result = resample(bars, Timeframe.M1, target, closed_us)

    assert set(result.open_us.tolist()) == {open_us for _, open_us in expected}
    assert np.all(np.diff(result.open_us) > 0)
    assert np.array_equal(result.close_us, result.open_us + target.us)
    for t, open_us in enumerate(result.open_us.tolist()):
        for a, instrument in enumerate(result.instruments):
            bar = expected.get((instrument, open_us))
            assert result.present[t, a] == (bar is not None)
            for name, value in (bar or {}).items():
                assert np.array_equal(getattr(result, name)[t, a], value, equal_nan=True), name


@pytest.mark.parametrize(
    ("minutes", "hours"),
    [
        pytest.param(range(60, 119), [], id="its last minute is still to come"),
        pytest.param(range(60, 120), [1], id="its last minute is there"),
        pytest.param([119], [1], id="the last minute alone"),
        pytest.param([60, 61, 120], [1], id="a later bar closes it"),
    ],
)
def test_the_last_bucket_counts_only_when_closed(minutes: list[int], hours: list[int]) -> None:
    result = resample(align(NAMES[:1], Timeframe.M1, [series(list(minutes))]), Timeframe.M1, Timeframe.H1)
    assert result.open_us.tolist() == [hour * Timeframe.H1.us for hour in hours]


WEEK = Timeframe.W1.us
MONDAY = to_us(datetime(2024, 3, 4, tzinfo=UTC))


@pytest.mark.parametrize(
    "after_midnight",
    [
        pytest.param(0, id="UTC"),
        pytest.param(-2, id="New York, 17:00, in winter"),
        pytest.param(5, id="New York, midnight, in winter"),
    ],
)
def test_a_week_holds_the_days_that_close_in_it(after_midnight: int) -> None:
    days = series([week * 7 + day for week in range(3) for day in range(5)])
    open_us = MONDAY + after_midnight * Timeframe.H1.us + days["open_us"] // MINUTE * Timeframe.D1.us
    daily = align(NAMES[:1], Timeframe.D1, [{**days, "open_us": open_us.astype(np.int64)}])
    weeks = resample(daily, Timeframe.D1, Timeframe.W1, 2**62)
    assert weeks.open_us.tolist() == [MONDAY, MONDAY + WEEK, MONDAY + 2 * WEEK]
    assert weeks.open[:, 0].tolist() == days["open"][[0, 5, 10]].tolist()
    assert weeks.close[:, 0].tolist() == days["close"][[4, 9, 14]].tolist()


@given(bars(), st.sampled_from([Timeframe.M3, Timeframe.M5, Timeframe.H2, Timeframe.W1]), st.integers(0, 180))
def test_a_longer_bar_knows_nothing_from_after_its_close(bars: BarArrays, target: Timeframe, frames: int) -> None:
    whole, part = resample(bars, Timeframe.M1, target), bars.slice(0, frames)
    known_us = int(part.close_us[-1]) if len(part) else -EVER_US
    so_far = resample(part, Timeframe.M1, target)
    assert equal(so_far, whole.slice(0, int((whole.close_us <= known_us).sum())))


def test_buckets_of_several_timeframes_begin_together() -> None:
    assert cycle_us((Timeframe.M3, Timeframe.M5)) == Timeframe.M15.us
    assert cycle_us((Timeframe.H8, Timeframe.H12, Timeframe.H6)) == Timeframe.D1.us
    assert cycle_us(Timeframe) == WEEK
    time_us = to_us(datetime(2024, 3, 6, 7, 8, 9, tzinfo=UTC))
    assert whole_us(time_us, WEEK) == MONDAY
    for timeframe in Timeframe:
        if timeframe is not Timeframe.W1:
            assert whole_us(time_us, timeframe.us) == time_us // timeframe.us * timeframe.us


def test_timeframes_have_their_lengths() -> None:
    assert [timeframe.us for timeframe in Timeframe] == sorted(timeframe.us for timeframe in Timeframe)
    assert (Timeframe.S15.delta, Timeframe.H8.delta) == (timedelta(seconds=15), timedelta(hours=8))
    assert (Timeframe.D1.delta, Timeframe.W1.delta) == (timedelta(days=1), timedelta(weeks=1))


@pytest.mark.parametrize(
    ("timeframe", "hours", "overlap"),
    [
        pytest.param(Timeframe.D1, [0, 24, 47, 71], None, id="clocks go forward"),
        pytest.param(Timeframe.D1, [0, 24, 46], 2, id="two hours early"),
        pytest.param(Timeframe.H4, [0, 3, 7, 12], None, id="four hours, clocks go forward"),
        pytest.param(Timeframe.H1, [0, 1, 2.5, 3], 3, id="half past, then the hour"),
        pytest.param(Timeframe.H1, [0.5, 1.5, 9.25], None, id="a gap"),
        pytest.param(Timeframe.H1, [1], None, id="one"),
    ],
)
def test_frames_that_overlap_are_found(timeframe: Timeframe, hours: list[float], overlap: int | None) -> None:
    steps = np.diff(np.array([int(hour * Timeframe.H1.us) for hour in hours]))
    assert np.flatnonzero(overlaps(steps, timeframe)).tolist() == ([] if overlap is None else [overlap - 1])


def test_resampling_to_no_multiple_is_refused() -> None:
    with pytest.raises(ValueError, match="1m is no multiple of 5m"):
        resample(align(NAMES[:1], Timeframe.M5, [series([0, 5])]), Timeframe.M5, Timeframe.M1)


def test_a_missing_instrument_repeats_its_last_close() -> None:
    one, two = series([0, 1, 2, 3], 1), series([1, 3], 2)
    result = align(NAMES[:2], Timeframe.M1, [one, two])

    assert result.present.tolist() == [[True, False], [True, True], [True, False], [True, True]]
    close = two["close"][0]
    for name in ("open", "high", "low", "close"):
        assert math.isnan(getattr(result, name)[0, 1])
        assert getattr(result, name)[2, 1] == close
    assert np.isnan(result.volume[[0, 2], 1]).all()
    assert result.funding_rate[[0, 2], 1].tolist() == [0.0, 0.0]


@given(st.lists(minutes_lists(), min_size=1, max_size=3), st.integers(-41, 91))
def test_a_part_with_the_closes_before_it_equals_that_part_of_the_whole(minutes: list[list[int]], cut: int) -> None:
    names = NAMES[: len(minutes)]
    whole = align(names, Timeframe.M1, [series(m, i) for i, m in enumerate(minutes)])
    at = int(np.searchsorted(whole.open_us, cut * MINUTE))
    later = [{k: v[whole_at:] for k, v in s.items()} for s, whole_at in _cuts(minutes, cut)]
    closes = whole.close[at - 1].tolist() if at else [math.nan] * len(names)

    assert equal(align(names, Timeframe.M1, later, closes), whole.slice(at, len(whole)))


def _cuts(minutes: list[list[int]], cut: int) -> list[tuple[Series, int]]:
    return [(series(m, i), sum(minute < cut for minute in m)) for i, m in enumerate(minutes)]


def test_no_bars_at_all_are_zero_frames() -> None:
    empty = align(NAMES[:2], Timeframe.M1, [series([]), series([])])
    assert len(empty) == 0
    assert empty.close.shape == (0, 2)
    assert len(resample(empty, Timeframe.M1, Timeframe.H1)) == 0


@given(st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)))
def test_times_survive_microseconds(naive: datetime) -> None:
    time = naive.replace(tzinfo=UTC)
    assert from_us(to_us(time)) == time


def test_a_universe_refuses_what_cannot_be_traded_together() -> None:
    one = Instrument(id="x:A")
    with pytest.raises(ValueError, match="listed twice"):
        Universe(name="u", instruments=(one, one), timeframe=Timeframe.M1)
    with pytest.raises(ValueError, match="5m is no multiple of its base 15m"):
        Universe(name="u", instruments=(one,), timeframe=Timeframe.M15, higher_timeframes=(Timeframe.M5,))


def test_a_range_does_not_run_backwards() -> None:
    now = datetime(2022, 1, 1, tzinfo=UTC)
    with pytest.raises(ValueError, match="ends"):
        TimeRange(start=now, end=now - timedelta(seconds=1))
