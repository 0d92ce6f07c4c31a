"""Features of time, of other instruments, and functions with parameters: their values, beside plain arithmetic.

That they are the same in batch and stream, and know no future, is held in `test_features` with all other features.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from tradeloop.common.arrays import Floats
from tradeloop.common.features import (
    Feature,
    FeatureError,
    FeatureSet,
    FeatureStream,
    cross_mean,
    cross_rank,
    day_of_week,
    log_return,
    of,
    on,
    time_of_day,
    windowed,
)
from tradeloop.common.features.simple import logarithms
from tradeloop.common.market import BarArrays, Timeframe, align, from_us, resample, to_us


def bars_of(start: datetime, count: int, closes: Sequence[Sequence[float]], missing: Sequence[int] = ()) -> BarArrays:
    """Hourly bars; the second instrument lacks those of the rows `missing`."""
    open_us = to_us(start) + np.arange(count) * Timeframe.H1.us
    series = []
    for a, close in enumerate(closes):
        own = np.array([t for t in range(count) if a != 1 or t not in missing])
        price = np.array(close)[own]
        series.append({"open_us": open_us[own], "open": price, "high": price, "low": price, "close": price})
    return align([f"x:{name}" for name in "abcd"[: len(closes)]], Timeframe.H1, series)


def values(features: Sequence[Feature], bars: BarArrays) -> Floats:
    return FeatureSet(features).compute({Timeframe.H1: bars}, Timeframe.H1).values


def hours(day: datetime, count: int = 24) -> BarArrays:
    return bars_of(day, count, [[100.0] * count])


def test_the_time_of_day_is_that_of_the_close_in_its_time_zone() -> None:
    """Across the change to summer time, which New York makes at 07:00 UTC of 13 March 2022."""
    bars = hours(datetime(2022, 3, 12, tzinfo=UTC), 48)
    sine, cosine, sine_there, cosine_there = values([*time_of_day(), *time_of_day("America/New_York")], bars)[:, 0].T
    for t, close_us in enumerate(bars.close_us.tolist()):
        close = from_us(close_us)
        assert (sine[t], cosine[t]) == turned(close.hour / 24)
        assert (sine_there[t], cosine_there[t]) == turned(close.astimezone(ZoneInfo("America/New_York")).hour / 24)
    # The close at 06:00 UTC is at 01:00 there, and the next at 03:00.
    assert math.degrees(math.atan2(sine_there[29], cosine_there[29])) == pytest.approx(15.0)
    assert math.degrees(math.atan2(sine_there[30], cosine_there[30])) == pytest.approx(45.0)


def turned(share: float) -> tuple[float, float]:
    return math.sin(2 * math.pi * share), math.cos(2 * math.pi * share)


def test_the_day_of_the_week_starts_on_monday_of_its_time_zone() -> None:
    bars = hours(datetime(2022, 1, 2, tzinfo=UTC), 48)  # a Sunday
    utc, _, tokyo, _ = values([*day_of_week(), *day_of_week("Asia/Tokyo")], bars)[:, 0].T
    assert utc[:23].tolist() == [turned(6 / 7)[0]] * 23
    assert utc[23:47].tolist() == [0.0] * 24  # what closes at midnight is decided on Monday
    assert np.flatnonzero(tokyo == 0.0).tolist() == list(range(14, 38))


def test_names_of_time_say_what_is_not_utc() -> None:
    names = FeatureSet([*time_of_day(), *day_of_week("America/New_York"), on("4h", time_of_day("Etc/GMT+5")[0])]).names
    assert names == (
        "time_of_day_sin",
        "time_of_day_cos",
        "day_of_week_america_new_york_sin",
        "day_of_week_america_new_york_cos",
        "4h_time_of_day_etc_gmt_plus_5_sin",
    )


def in_session(time: Floats, zone: str, start: int, end: int) -> float:
    """Whether a bar closed within a session, given in minutes of the local day."""
    local = datetime.fromtimestamp(time[-1], ZoneInfo(zone))
    return float(start < local.hour * 60 + local.minute <= end)


def test_a_function_may_ask_for_the_time_and_for_parameters() -> None:
    feature = windowed("session", in_session, 1, ("time",), zone="America/New_York", start=570, end=960)
    bars = hours(datetime(2022, 1, 3, tzinfo=UTC))
    assert np.flatnonzero(values([feature], bars)[:, 0, 0]).tolist() == [14, 15, 16, 17, 18, 19, 20]
    assert values([pickle.loads(pickle.dumps(feature))], bars).tolist() == values([feature], bars).tolist()


def weighted(close: Floats, weights: tuple[float, ...]) -> float:
    return float(close @ np.array(weights))


def test_a_parameter_cannot_be_changed_from_outside() -> None:
    weights = [0.25, np.float64(0.75)]
    feature = windowed("weighted", weighted, 2, weights=weights)
    weights[0] = 99.0
    assert values([feature], bars_of(datetime(2022, 1, 3, tzinfo=UTC), 2, [[1.0, 2.0]]))[1, 0, 0] == 1.75
    same = windowed("weighted", weighted, 2, weights=(0.25, 0.75))
    assert FeatureSet([feature]).id == FeatureSet([same]).id


START = datetime(2022, 1, 3, tzinfo=UTC)
RISING = [[1.0, 2.0, 4.0, 8.0], [1.0, 3.0, 9.0, 27.0], [5.0, 5.0, 5.0, 5.0]]
L2, L3 = math.log(2.0), math.log(3.0)


def test_a_feature_of_another_instrument_is_the_same_for_all() -> None:
    bars = bars_of(START, 4, RISING)
    for feature in (of("b", log_return(1)), of("x:b", log_return(1)), of(1, log_return(1))):
        assert np.isnan(values([feature], bars)[0]).all()
        assert values([feature], bars)[1:, :, 0].tolist() == [[L3] * 3] * 3


def test_where_the_other_instrument_has_no_bar_its_value_repeats() -> None:
    found = values([of("b", log_return(1))], bars_of(START, 4, RISING, missing=(0, 2)))[:, :, 0]
    assert np.isnan(found[:3]).all()  # one bar of its own until then
    assert found[3].tolist() == [math.log(27.0 / 3.0)] * 3


def test_the_cross_section_waits_until_every_instrument_has_a_value() -> None:
    mean, rank = np.moveaxis(
        values([cross_mean(log_return(1)), cross_rank(log_return(1))], bars_of(START, 4, RISING)), 2, 0
    )
    assert np.isnan(mean[0]).all()
    assert np.isnan(rank[0]).all()
    assert mean[1:].tolist() == [[(L2 + L3 + 0.0) / 3] * 3] * 3
    assert rank[1:].tolist() == [[0.0, 1.0, -1.0]] * 3
    late = values([cross_mean(log_return(1)), cross_rank(log_return(1))], bars_of(START, 4, RISING, missing=(0, 1)))
    assert np.isnan(late[:3]).all()
    assert not np.isnan(late[3]).any()


def test_equal_values_share_a_rank_and_one_instrument_has_the_middle_one() -> None:
    level = [[1.0, 2.0], [1.0, 2.0], [3.0, 3.0], [1.0, 4.0]]
    assert values([cross_rank(log_return(1))], bars_of(START, 2, level))[1, :, 0].tolist() == [0.0, 0.0, -1.0, 1.0]
    assert values([cross_rank(log_return(1))], bars_of(START, 2, level[:1]))[1, 0, 0] == 0.0


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (of("btc", log_return(1)), "of_btc_log_return_1: btc is not among the instruments of .*; name one of x:a, y:a"),
        (of("a", log_return(1)), "of_a_log_return_1: a is the symbol of several instruments of .*; name one of x:a"),
        (of(2, log_return(1)), "the instrument in place 2, counted from 0, and the universe has 2: x:a, y:a"),
    ],
)
def test_an_instrument_that_is_not_there_is_named(feature: Feature, message: str) -> None:
    bars = bars_of(START, 4, RISING[:2])
    with pytest.raises(FeatureError, match=message):
        values([feature], BarArrays(("x:a", "y:a"), *(getattr(bars, name) for name in BarArrays.__slots__[1:])))
    with pytest.raises(FeatureError, match=message):
        FeatureStream(FeatureSet([feature]), Timeframe.H1, ["x:a", "y:a"])


def test_another_instrument_on_a_higher_timeframe_is_as_of_its_last_closed_bar() -> None:
    count = 12
    bars = bars_of(START, count, [[1.0] * count, [2.0**t for t in range(count)]])
    frames = {Timeframe.H1: bars, Timeframe.H4: resample(bars, Timeframe.H1, Timeframe.H4)}
    found = FeatureSet([of("b", on("4h", log_return(1)))]).compute(frames, Timeframe.H1).values[:, 0, 0]
    assert np.isnan(found[:7]).all()
    np.testing.assert_allclose(found[7:], 4 * L2)


def test_logarithms_of_many_have_the_bits_of_one() -> None:
    """A stream takes them one by one, a batch all at once."""
    rng = np.random.default_rng(0)
    some = np.concatenate(
        [np.exp(rng.normal(0.0, scale, 100_000)) for scale in (1e-4, 0.1, 100.0)] + [[5e-324, 1e-310, 1.0, math.inf]]
    )
    assert logarithms(some).tolist() == [math.log(value) for value in some.tolist()]
    assert logarithms(some[::3]).tolist() == [math.log(value) for value in some[::3].tolist()]
    assert logarithms(np.empty(0)).tolist() == []
    with pytest.raises(ValueError, match="math domain"):
        logarithms(np.array([1.0, 0.0]))
