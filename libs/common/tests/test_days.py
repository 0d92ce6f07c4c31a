"""Where days and weeks begin, held against dates of zoneinfo, against polars and against exchange_calendars."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeloop.common.market import (
    BAR_PRICES,
    UTC_DAYS,
    Days,
    Instrument,
    Series,
    Timeframe,
    Universe,
    align,
    begins_us,
    bucket_us,
    days_of,
    from_us,
    resample,
    to_us,
)
from tradeloop.common.market.days import EXCHANGE_ZONES
from tradeloop.common.market.instruments import EXCHANGES

CALENDARS = ("continuous", "weekdays", "sessions", "fx", "XNYS", "XLON", "XASX", "XSGO", "CMES", "IEPA", "XTAE", "XTKS")
CHANGES = (datetime(2024, 3, 10, 7), datetime(2024, 11, 3, 6), datetime(2024, 3, 31, 1), datetime(2024, 12, 31))
"""Clocks change in New York and in Europe; a year ends."""


def date_of(calendar: str, time_us: int) -> date:
    """The day of a market in which a moment lies, by the clock on its wall."""
    zone, evening = {"fx": ("America/New_York", 17)}.get(calendar, (EXCHANGE_ZONES.get(calendar, "UTC"), None))
    evening = {"CMES": 17, "IEPA": 20}.get(calendar, evening)
    local = from_us(time_us).astimezone(ZoneInfo(zone))
    return local.date() + timedelta(days=evening is not None and local.hour >= evening)


def first_moment(calendar: str, day: date) -> int:
    """By search: the first minute of a day."""
    noon = to_us(datetime(day.year, day.month, day.day, tzinfo=UTC))
    minutes = range(noon - 30 * Timeframe.H1.us, noon + 30 * Timeframe.H1.us, Timeframe.M30.us)
    return next(at_us for at_us in minutes if date_of(calendar, at_us) == day)


def expected_start(calendar: str, close_us: int, target: Timeframe) -> int:
    """The definition: the day or week of the last moment before the close, unless its 24 hours are over by then."""
    day = date_of(calendar, close_us - 1)
    if target is Timeframe.W1:
        day -= timedelta(days=(day.weekday() + 1) % 7 if calendar in ("XTAE", "XSAU") else day.weekday())
    start_us = first_moment(calendar, day)
    if close_us > start_us + target.us:
        start_us = first_moment(calendar, day + timedelta(days=target.us // Timeframe.D1.us))
    return start_us


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(CALENDARS),
    st.sampled_from([Timeframe.D1, Timeframe.W1]),
    st.sampled_from([Timeframe.M1, Timeframe.M15, Timeframe.H1, Timeframe.H4]),
    st.sampled_from(CHANGES),
    st.integers(-60 * 60, 60 * 60),
)
def test_a_bucket_is_the_day_of_the_market(
    calendar: str, target: Timeframe, base: Timeframe, around: datetime, minutes: int
) -> None:
    days, open_us = days_of([calendar]), to_us(around.replace(tzinfo=UTC) + timedelta(minutes=minutes))
    start_us = bucket_us(open_us, base, target, days)
    assert start_us == expected_start(calendar, open_us + base.us, target)
    assert bucket_us(np.array([open_us]), base, target, days).tolist() == [start_us]
    assert bucket_us(open_us, base, Timeframe.H4, days) == bucket_us(open_us, base, Timeframe.H4)
    begins = begins_us(open_us, base, (target,), days)
    assert begins <= start_us
    assert begins == start_us or (target.us + begins > open_us + base.us and not days.is_utc)


def bars_around(time: datetime, base: Timeframe, keep: float = 1.0, seed: int = 0, days: int = 20) -> Series:
    rng = np.random.default_rng(seed)
    open_us = to_us(time.replace(tzinfo=UTC)) + np.arange(-days * 86_400, days * 86_400, base.seconds) * 1_000_000
    open_us = open_us[rng.random(len(open_us)) < keep].astype(np.int64)
    low, span = rng.uniform(1, 2, len(open_us)), rng.uniform(0, 1, len(open_us))
    inside = {name: low + span * rng.random(len(open_us)) for name in ("open", "close")}
    return {"open_us": open_us, **inside, "high": low + span, "low": low, "volume": rng.uniform(0, 9, len(open_us))}


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(CALENDARS),
    st.sampled_from([Timeframe.D1, Timeframe.W1]),
    st.sampled_from(CHANGES),
    st.sampled_from([1.0, 0.7, 0.05]),
    st.integers(0, 10_000),
)
def test_days_agree_with_a_group_by_of_polars(
    calendar: str, target: Timeframe, around: datetime, keep: float, seed: int
) -> None:
    base, one = Timeframe.M30, bars_around(around, Timeframe.M30, keep, seed)
    table = pl.DataFrame(dict(one)).with_columns(
        pl.Series("day", [expected_start(calendar, us + base.us, target) for us in one["open_us"].tolist()])
    )
    expected = (
        table.group_by("day", maintain_order=True)
        .agg(pl.first("open"), pl.max("high"), pl.min("low"), pl.last("close"), pl.sum("volume"))
        .filter(pl.col("day") + target.us <= int(one["open_us"][-1]) + base.us)
    )
    found = resample(align(("x:A",), base, [one]), base, target, days=days_of([calendar]))
    assert found.open_us.tolist() == expected["day"].to_list()
    for name in BAR_PRICES:
        assert getattr(found, name)[:, 0].tolist() == expected[name].to_list(), name
    np.testing.assert_allclose(found.volume[:, 0], expected["volume"], rtol=1e-12)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(["fx", "XNYS", "XLON", "XTAE"]), st.sampled_from(CHANGES), st.integers(0, 1900))
def test_a_day_knows_nothing_from_after_its_close(calendar: str, around: datetime, cut: int) -> None:
    bars = align(("x:A",), Timeframe.M30, [bars_around(around, Timeframe.M30)])
    for target in (Timeframe.D1, Timeframe.W1):
        whole = resample(bars, Timeframe.M30, target, days=days_of([calendar]))
        part = resample(bars.slice(0, cut), Timeframe.M30, target, days=days_of([calendar]))
        known = int((whole.close_us <= (bars.close_us[cut - 1] if cut else 0)).sum())
        assert part.open_us.tolist() == whole.open_us[:known].tolist()
        assert part.close.tolist() == whole.close[:known].tolist()


def test_days_of_stocks_begin_as_vendors_have_them() -> None:
    days = days_of(["XNYS"])
    winter, summer = (to_us(datetime(2024, month, 15, 15, tzinfo=UTC)) for month in (1, 7))
    assert from_us(bucket_us(winter, Timeframe.M1, Timeframe.D1, days)) == datetime(2024, 1, 15, 5, tzinfo=UTC)
    assert from_us(bucket_us(summer, Timeframe.M1, Timeframe.D1, days)) == datetime(2024, 7, 15, 4, tzinfo=UTC)
    fx = days_of(["fx"])
    assert from_us(bucket_us(winter, Timeframe.M1, Timeframe.D1, fx)) == datetime(2024, 1, 14, 22, tzinfo=UTC)
    assert from_us(bucket_us(winter, Timeframe.M1, Timeframe.W1, fx)) == datetime(2024, 1, 14, 22, tzinfo=UTC)
    assert from_us(bucket_us(summer, Timeframe.M1, Timeframe.W1, fx)) == datetime(2024, 7, 14, 21, tzinfo=UTC)


def test_a_universe_of_different_days_has_those_of_utc() -> None:
    def universe(*calendars: str) -> Universe:
        instruments = tuple(Instrument(id=f"x:{n}", calendar=name) for n, name in enumerate(calendars))
        return Universe(name="u", instruments=instruments, timeframe=Timeframe.M1)

    assert universe("XTSE", "XNYS").days == Days("America/New_York")
    assert universe("XPAR", "XAMS", "XETR").days == Days("Europe/Amsterdam")
    assert universe("XPAR", "XLON").days == universe("XNYS", "fx").days == universe("XPAR", "continuous").days
    assert universe("XNYS", "XNYS").days == Days("America/New_York")
    assert universe("XNYS", "continuous").days == UTC_DAYS
    assert universe("continuous", "weekdays", "sessions").days == UTC_DAYS


@pytest.mark.parametrize("code", EXCHANGES)
def test_zones_are_those_of_the_exchanges(code: str) -> None:
    from exchange_calendars import get_calendar

    calendar, days = get_calendar(code, start="2022-01-03", end="2023-12-29"), days_of([code])
    assert str(calendar.tz) == days.zone
    opens = calendar.schedule["open"].to_numpy(dtype="datetime64[us]").astype(np.int64)
    closes = calendar.schedule["close"].to_numpy(dtype="datetime64[us]").astype(np.int64)
    labels = [(one.year, one.month, one.day) for one in calendar.schedule.index]
    for opened, closed, label in zip(opens.tolist(), closes.tolist(), labels, strict=True):
        start_us = days.bucket_us(closed, Timeframe.D1.us)
        assert start_us <= opened
        assert days.bucket_us(opened + 1, Timeframe.D1.us) == start_us, "a session lies in two days"
        noon = datetime(*label, 12, tzinfo=ZoneInfo(days.zone))
        assert days.bucket_us(to_us(noon.astimezone(UTC)), Timeframe.D1.us) == start_us
