from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from exchange_calendars import get_calendar, get_calendar_names
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from tradeloop.common.errors import UserError
from tradeloop.common.market import Instrument, Timeframe, from_us, to_us
from tradeloop.common.market.calendars import Gap, gaps
from tradeloop.common.market.instruments import EXCHANGES

NEW_YORK = ZoneInfo("America/New_York")


def times(*stamps: str) -> NDArray[np.int64]:
    return np.array([to_us(datetime.fromisoformat(stamp).replace(tzinfo=UTC)) for stamp in stamps], dtype=np.int64)


@pytest.mark.parametrize(
    ("timeframe", "stamps", "continuous", "weekdays", "sessions"),
    [
        pytest.param("1m", ("2022-01-05 10:00", "2022-01-05 10:01"), 0, 0, 0, id="none"),
        pytest.param("1m", ("2022-01-05 10:00", "2022-01-05 10:02"), 1, 1, 1, id="one minute of a Wednesday"),
        pytest.param("1m", ("2022-01-07 21:59", "2022-01-09 22:00"), 1, 0, 0, id="a weekend"),
        pytest.param("1m", ("2022-01-07 21:30", "2022-01-09 22:30"), 1, 0, 0, id="early close, late open"),
        pytest.param("1m", ("2022-01-07 20:59", "2022-01-09 21:00"), 1, 0, 0, id="a weekend in summer time"),
        pytest.param("1m", ("2022-01-07 21:30", "2022-01-07 21:58"), 1, 1, 1, id="a hole in Friday night"),
        pytest.param("1m", ("2022-01-09 22:00", "2022-01-09 22:05"), 1, 1, 1, id="a hole in Sunday night"),
        pytest.param("1m", ("2022-01-07 21:58", "2022-01-07 22:00"), 1, 1, 1, id="just before the weekend"),
        pytest.param("1m", ("2022-01-05 20:59", "2022-01-06 14:30"), 1, 1, 0, id="a night"),
        pytest.param("1d", ("2022-01-07", "2022-01-10"), 1, 0, 0, id="Friday to Monday"),
        pytest.param("1d", ("2022-01-04", "2022-01-06"), 1, 1, 0, id="no Wednesday"),
        pytest.param("4h", ("1969-12-31 20:00", "1970-01-01 00:00"), 0, 0, 0, id="over the epoch"),
    ],
)
def test_gaps_by_calendar(
    timeframe: str, stamps: tuple[str, ...], continuous: int, weekdays: int, sessions: int
) -> None:
    found = {
        calendar: len(gaps(times(*stamps), Timeframe(timeframe), calendar))
        for calendar in ("continuous", "weekdays", "sessions")
    }
    assert found == {"continuous": continuous, "weekdays": weekdays, "sessions": sessions}


@given(st.sets(st.integers(0, 4 * 168 - 1), min_size=1))
def test_weekday_gaps_by_the_definition(hours: set[int]) -> None:
    open_hours = sorted(hours)
    expected = 0
    for left, right in pairwise(open_hours):
        missing = range(left + 1, right)
        weekend = any((hour - 46) % 168 < 48 for hour in missing)
        expected += bool(missing) and not weekend
    open_us = np.array(open_hours, dtype=np.int64) * Timeframe.H1.us
    assert len(gaps(open_us, Timeframe.H1, "weekdays")) == expected


def local(*stamps: str, zone: ZoneInfo = NEW_YORK) -> NDArray[np.int64]:
    return np.array([to_us(datetime.fromisoformat(stamp).replace(tzinfo=zone)) for stamp in stamps], dtype=np.int64)


@pytest.mark.parametrize(
    ("timeframe", "calendar", "before", "after", "missing"),
    [
        pytest.param("1m", "fx", "2022-01-07 16:59", "2022-01-09 17:00", 0, id="a weekend in winter"),
        pytest.param("1m", "fx", "2022-07-08 16:59", "2022-07-10 17:00", 0, id="a weekend in summer"),
        pytest.param("1m", "fx", "2022-03-11 16:59", "2022-03-13 17:00", 0, id="clocks go forward"),
        pytest.param("1m", "fx", "2022-11-04 16:59", "2022-11-06 17:00", 0, id="clocks go back"),
        pytest.param("1m", "fx", "2022-01-07 16:40", "2022-01-09 17:05", 0, id="early close, late open"),
        pytest.param("1m", "fx", "2022-01-07 14:59", "2022-01-09 17:00", 120, id="two hours of a Friday"),
        pytest.param("1m", "fx", "2022-01-05 10:00", "2022-01-05 10:02", 1, id="one minute"),
        pytest.param("1m", "fx", "2022-01-05 16:59", "2022-01-05 17:01", 1, id="one minute as the day turns"),
        pytest.param("1h", "fx", "2022-12-23 16:00", "2022-12-25 17:00", 0, id="Christmas on a Sunday"),
        pytest.param("1h", "fx", "2023-12-29 16:00", "2024-01-01 17:00", 0, id="New Year on a Monday"),
        pytest.param("1d", "fx", "2022-01-06 17:00", "2022-01-09 17:00", 0, id="Friday's day, then Monday's"),
        pytest.param("1d", "fx", "2022-01-05 17:00", "2022-01-09 17:00", 1, id="no Friday"),
        pytest.param("1m", "XNYS", "2024-07-02 15:59", "2024-07-03 09:30", 0, id="a night"),
        pytest.param("1m", "XNYS", "2024-07-03 12:59", "2024-07-05 09:30", 0, id="an early close and a holiday"),
        pytest.param("1m", "XNYS", "2024-07-02 12:59", "2024-07-03 09:30", 180, id="half a day that was whole"),
        pytest.param("1m", "XNYS", "2024-07-05 10:00", "2024-07-05 10:03", 2, id="two minutes"),
        pytest.param("1h", "XNYS", "2024-03-08 15:30", "2024-03-11 09:30", 0, id="clocks go forward over a weekend"),
        pytest.param("1h", "XNYS", "2024-07-05 14:30", "2024-07-08 09:30", 1, id="the last half hour"),
        pytest.param("1d", "XNYS", "2024-07-03 00:00", "2024-07-05 00:00", 0, id="over the fourth of July"),
        pytest.param("1d", "XNYS", "2024-07-05 00:00", "2024-07-09 00:00", 1, id="no Monday"),
        pytest.param("1d", "XNYS", "2024-11-01 00:00", "2024-11-04 00:00", 0, id="days of 25 hours"),
        pytest.param("1d", "XNYS", "2001-09-10 00:00", "2001-09-17 00:00", 0, id="September 2001"),
        pytest.param("1w", "XNYS", "2024-07-01 00:00", "2024-07-15 00:00", 1, id="a week"),
        pytest.param("1w", "continuous", "2024-07-01 00:00", "2024-07-15 00:00", 1, id="a week of all"),
    ],
)  # fmt: skip
def test_gaps_by_the_hours_of_a_market(timeframe: str, calendar: str, before: str, after: str, missing: int) -> None:
    open_us = local(before, after)
    length = Timeframe(timeframe)
    start_us = int(open_us[0]) + length.us
    expected = [Gap(start_us, int(open_us[1]), missing)] if missing else []
    assert gaps(open_us, length, calendar) == expected


def test_days_of_a_market_are_told_by_their_date() -> None:
    """Whether a day is stamped by midnight UTC, at home, or as trading begins."""
    for name, zone in (("XNYS", "America/New_York"), ("XTKS", "Asia/Tokyo"), ("XASX", "Australia/Sydney")):
        schedule = get_calendar(name, start="2015-01-01", end="2024-12-31").schedule
        days = schedule.index
        for stamps in (days.tz_localize("UTC"), days.tz_localize(zone).tz_convert("UTC"), schedule["open"]):
            open_us = stamps.to_numpy(dtype="datetime64[us]").astype(np.int64)
            assert gaps(open_us, Timeframe.D1, name) == []
            kept = np.delete(open_us, [100, 500, 501])
            assert [gap.bars for gap in gaps(kept, Timeframe.D1, name)] == [1, 2]


def test_a_lunch_is_no_gap() -> None:
    calendar = get_calendar("XHKG", start="2023-01-01", end="2023-12-31")
    open_us = calendar.minutes.to_numpy(dtype="datetime64[us]").astype(np.int64)
    assert gaps(open_us, Timeframe.M1, "XHKG") == []


@given(st.sets(st.integers(0, 1949), min_size=1, max_size=40))
@settings(max_examples=30, deadline=None)
def test_minutes_that_are_missing_are_found_one_by_one(taken: set[int]) -> None:
    minutes = get_calendar("XNYS", start="2024-07-01", end="2024-07-09").minutes
    open_us = minutes.to_numpy(dtype="datetime64[us]").astype(np.int64)
    inner = sorted(place for place in taken if 0 < place < len(open_us) - 1)
    found = gaps(np.delete(open_us, inner), Timeframe.M1, "XNYS")
    assert sum(gap.bars for gap in found) == len(inner)
    named = {us for gap in found for us in range(gap.start_us, gap.end_us, Timeframe.M1.us)}
    assert set(open_us[inner].tolist()) <= named
    assert len(found) == len([place for place in inner if place - 1 not in inner])


@given(st.sets(st.integers(0, 24 * 40), min_size=2, max_size=200))
@settings(max_examples=30, deadline=None)
def test_the_week_of_foreign_exchange_by_its_definition(hours: set[int]) -> None:
    start = to_us(datetime(2024, 10, 20, tzinfo=UTC))  # clocks go back on 3 November
    open_us = start + np.array(sorted(hours), dtype=np.int64) * Timeframe.H1.us
    expected = []
    for before, after in pairwise(open_us.tolist()):
        missing = range(before + Timeframe.H1.us, after, Timeframe.H1.us)
        traded = [us for us in missing if _trades(us)]
        beside = len(traded) < len(missing)
        if len(traded) > beside:
            expected.append(Gap(missing[0], after, len(traded)))
    assert gaps(open_us, Timeframe.H1, "fx") == expected


def _trades(open_us: int) -> bool:
    at = pd.Timestamp(from_us(open_us)).tz_convert("America/New_York")
    minute = at.dayofweek * 1440 + at.hour * 60
    return bool(minute < 4 * 1440 + 17 * 60 or minute >= 6 * 1440 + 17 * 60)


def test_every_exchange_of_the_package_is_a_calendar() -> None:
    others = {"24/5", "24/7", "us_futures"}
    assert set(EXCHANGES) == set(get_calendar_names(include_aliases=False)) - others


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("NYSE", "no calendar NYSE, did you mean XNYS?"),
        ("24/7", "did you mean continuous?"),
        ("XNYC", "did you mean XNYS?"),
        ("", "no calendar : there are continuous, weekdays, sessions, fx and exchanges by code"),
    ],
)
def test_an_unknown_calendar_is_refused(name: str, said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Instrument(id="x:A", calendar=name)
    assert said in str(refused.value)


def test_before_1970_no_holiday_is_a_gap() -> None:
    """The package takes Washington's birthday of 1962 for a day of trading."""
    assert gaps(times("1962-02-21", "1962-02-23"), Timeframe.D1, "XNYS") == []
    assert gaps(times("1972-02-18", "1972-02-22"), Timeframe.D1, "XNYS") == []


def test_bars_from_before_a_calendar_are_refused() -> None:
    open_us = times("1990-01-04", "1990-01-08")
    with pytest.raises(UserError, match="calendar XTKS is known from 1997-01-01 to 2199-12-31, and the bars are from"):
        gaps(open_us, Timeframe.D1, "XTKS")
