"""Splits and dividends against a plain holder of shares, and what an adjusted view may know."""

from __future__ import annotations

import gzip
import math
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeloop.common.errors import UserError
from tradeloop.common.market import BAR_PRICES, EVER_US, BarArrays, Series, Timeframe, align, to_us
from tradeloop.common.market.adjustments import CorporateAction, adjusted, adjustments, as_known

ONE, TWO = "alpaca:ONE", "alpaca:TWO"
DAY_US = Timeframe.D1.us
START_US = 20_000 * DAY_US
AAPL = Path(__file__).resolve().parents[4] / "shared" / "data" / "dj30-daily" / "AAPL.csv.gz"


def split(day: int, value: float, instrument: str = ONE, known_us: int | None = None) -> CorporateAction:
    return CorporateAction(instrument, START_US + day * DAY_US, "split", value, known_us)


def dividend(day: int, value: float, instrument: str = ONE, known_us: int | None = None) -> CorporateAction:
    return CorporateAction(instrument, START_US + day * DAY_US, "dividend", value, known_us)


def days(*closes: list[float | None], open_after_us: int = 0) -> BarArrays:
    """Days of the instruments; None where one has no bar. Each opens 1 % above its close, or 1 % below."""
    series: list[Series] = []
    for one in closes:
        at = [i for i, close in enumerate(one) if close is not None]
        close = np.array([one[i] for i in at], dtype=np.float64)
        opened = close * np.where(np.arange(len(close)) % 2, 1.01, 0.99)
        series.append(
            {
                "open_us": START_US + open_after_us + np.array(at, dtype=np.int64) * DAY_US,
                "open": opened,
                "high": np.maximum(opened, close) * 1.002,
                "low": np.minimum(opened, close) * 0.998,
                "close": close,
                "volume": np.arange(1.0, len(close) + 1.0) * 1000.0,
            }
        )
    return align((ONE, TWO)[: len(closes)], Timeframe.D1, series)


def wealth(closes: list[float], actions: list[CorporateAction]) -> list[float]:
    """The wealth of a holder of one share at each close, who buys more for dividends at the close before, less them."""
    shares, owned = 1.0, [closes[0]]
    for day in range(1, len(closes)):
        price = closes[day - 1]
        here = [one for one in actions if one.ex_us == START_US + day * DAY_US]
        for one in [each for each in here if each.kind == "dividend"]:
            cash = shares * one.value
            price -= one.value
            shares += cash / price
        for one in [each for each in here if each.kind == "split"]:
            shares *= one.value
        owned.append(shares * closes[day])
    return owned


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[float], list[CorporateAction]]:
    length = draw(st.integers(3, 30))
    actions: list[CorporateAction] = []
    closes = [draw(st.floats(20.0, 500.0))]
    for day in range(1, length):
        price = closes[-1]
        if draw(st.integers(0, 4)) == 0:
            amount = price * draw(st.floats(0.001, 0.3))
            actions.append(dividend(day, amount))
            price -= amount
        if draw(st.integers(0, 6)) == 0:
            factor = draw(st.sampled_from([2.0, 3.0, 0.1, 1.05, 20.0, 2 / 3]))
            actions.append(split(day, factor))
            price /= factor
        closes.append(price * draw(st.floats(0.95, 1.05)))
    return closes, actions


@settings(max_examples=100)
@given(histories())
def test_adjusted_closes_are_the_wealth_of_a_holder(history: tuple[list[float], list[CorporateAction]]) -> None:
    closes, actions = history
    bars = days([*closes])
    owned = np.array(wealth(closes, actions))
    first = adjusted(bars, actions, EVER_US, "first")
    assert np.allclose(first.close[:, 0], owned, rtol=1e-12, atol=0.0)
    last = adjusted(bars, actions, EVER_US)
    assert last.close[-1, 0] == bars.close[-1, 0], "the last price is as it is traded"
    assert np.allclose(last.close[:, 0] / last.close[-1, 0], owned / owned[-1], rtol=1e-12, atol=0.0)
    for view in (first, last):
        assert (view.low <= np.minimum(view.open, view.close)).all()
        assert (view.high >= np.maximum(view.open, view.close)).all()


@settings(max_examples=60)
@given(histories(), st.data())
def test_no_bar_knows_of_a_later_action(
    history: tuple[list[float], list[CorporateAction]], data: st.DataObject
) -> None:
    closes, actions = history
    bars = days([*closes])
    cut = data.draw(st.integers(1, len(closes) - 1))
    whole = adjusted(bars, actions, EVER_US, "first")
    past = [one for one in actions if one.ex_us < START_US + cut * DAY_US]
    for one in (adjusted(bars.slice(0, cut), actions, EVER_US, "first"), adjusted(bars, past, EVER_US, "first")):
        for field in fields(BarArrays):
            if field.name not in ("instruments", "extra"):
                here, there = getattr(one, field.name)[:cut], getattr(whole, field.name)[:cut]
                assert here.tobytes() == there.tobytes(), field.name


def test_the_return_over_an_ex_date_is_the_total_return() -> None:
    closes, amount = [100.0, 99.0, 97.0], 4.0
    view = adjusted(days([*closes]), [dividend(1, amount)], EVER_US)
    over = view.close[1, 0] / view.close[0, 0] - 1.0
    plain = (closes[1] + amount) / closes[0] - 1.0
    # The dividend is reinvested at 96, and so takes part in what 96 became: 99.
    reinvested = amount * (closes[1] - closes[0] + amount) / (closes[0] * (closes[0] - amount))
    assert over == pytest.approx(plain + reinvested, rel=1e-12)
    flat = adjusted(days([100.0, 96.0]), [dividend(1, amount)], EVER_US)
    assert flat.close[1, 0] / flat.close[0, 0] == pytest.approx(1.0, rel=1e-12)


def test_returns_but_for_those_over_ex_dates_stay() -> None:
    bars = days([100.0, 103.0, 51.0, 50.0, 49.0])
    raw = bars.close[:, 0].copy()
    view = adjusted(bars, [split(2, 2.0), dividend(4, 1.5)], EVER_US)
    assert np.array_equal(bars.close[:, 0], raw), "the bars as they were traded stay"
    for day in (1, 3):
        assert view.close[day, 0] / view.close[day - 1, 0] == pytest.approx(raw[day] / raw[day - 1], rel=1e-14)
    assert view.close[2, 0] / view.close[1, 0] == pytest.approx(102.0 / 103.0, rel=1e-12)
    assert view.close[4, 0] / view.close[3, 0] == pytest.approx(49.0 / 48.5, rel=1e-12)


@pytest.mark.parametrize(("anchor", "volumes"), [("last", [2000.0, 4000.0, 3000.0]), ("first", [1e3, 2e3, 1.5e3])])
def test_volumes_follow_splits_alone(anchor: Literal["first", "last"], volumes: list[float]) -> None:
    bars = days([100.0, 98.0, 49.5])
    view = adjusted(bars, [split(2, 2.0), dividend(1, 2.0)], EVER_US, anchor)
    assert view.volume[:, 0].tolist() == volumes
    without = adjusted(bars, [split(2, 2.0)], EVER_US, anchor)
    assert np.allclose(without.volume * without.close, bars.volume * bars.close, rtol=1e-15), "what was paid stays"


def test_each_instrument_has_its_own_and_gaps_are_carried() -> None:
    bars = days([100.0, 100.0, None, None, 50.0, 50.0], [7.0, 7.0, 7.0, 7.0, 7.0, 7.0])
    view = adjusted(bars, [split(3, 2.0)], EVER_US, "first")
    assert view.close[:, 0].tolist() == [100.0] * 6, "the split comes with the first bar after it"
    assert np.array_equal(view.close[:, 1], bars.close[:, 1])
    assert np.array_equal(view.present, bars.present)


def test_what_is_known_later_changes_nothing_before() -> None:
    known = START_US + 10 * DAY_US
    actions = [dividend(1, 2.0), dividend(1, 3.0, known_us=known), split(2, 2.0, known_us=known + 1)]
    assert [one.value for one in as_known(actions, known - 1)] == [2.0]
    assert [one.value for one in as_known(actions, known)] == [3.0]
    assert [one.value for one in as_known(actions, known + 1)] == [3.0, 2.0]
    assert as_known([*actions, dividend(1, 0.0, known_us=known + 2)], known + 2) == [actions[2]], "taken back"
    bars = days([100.0, 97.0, 48.0])
    before = adjusted(bars, actions, known - 1)
    for name in BAR_PRICES:
        assert np.array_equal(getattr(before, name), getattr(adjusted(bars, actions[:1], EVER_US), name))


def test_late_and_outside_are_told_apart() -> None:
    late = split(1, 2.0, known_us=START_US + 5 * DAY_US)
    early = dividend(2, 1.0, known_us=START_US)
    outside = [dividend(0, 1.0), dividend(9, 1.0)]
    found = adjustments(days([100.0, 50.0, 49.0]), [early, late, *outside], EVER_US)
    assert found.applied == (late, early)
    assert found.late == (late,)
    assert found.outside == tuple(outside)


@pytest.mark.parametrize(
    ("zone_h", "ex_zone_h"),
    [(one, other) for one in (-10, -5, -4, 0, 9, 11) for other in (-5, -4, 0, 9, 11) if abs(one - other) < 12],
)
def test_a_day_is_the_same_day_in_whatever_zone_it_is_given(zone_h: int, ex_zone_h: int) -> None:
    hour_us = Timeframe.H1.us
    bars = days([100.0, 100.0, 50.0, 50.0], open_after_us=-zone_h * hour_us)
    view = adjusted(bars, [replace(split(2, 2.0), ex_us=START_US + 2 * DAY_US - ex_zone_h * hour_us)], EVER_US)
    assert view.close[:, 0].tolist() == [50.0] * 4


@pytest.mark.parametrize(
    ("action", "says"),
    [
        (dividend(1, 100.0), "the dividend of 100 of alpaca:ONE, ex 2024-10-05 00:00 UTC is not less than the price"),
        (split(1, 2.0), "does not show in the bars, which go from a close of 100 to an open of 101"),
        (split(1, 0.5), "give bars as they were traded, or correct its date"),
    ],
)
def test_what_cannot_be_is_refused(action: CorporateAction, says: str) -> None:
    with pytest.raises(UserError, match=says):
        adjusted(days([100.0, 100.0, 100.0]), [action], EVER_US)


DIVIDENDS = {
    "2015-02-05": 0.1175, "2015-05-07": 0.13, "2015-08-06": 0.13, "2015-11-05": 0.13, "2016-02-04": 0.13,
    "2016-05-05": 0.1425, "2016-08-04": 0.1425, "2016-11-03": 0.1425, "2017-02-09": 0.1425, "2017-05-11": 0.1575,
    "2017-08-10": 0.1575, "2017-11-10": 0.1575, "2018-02-09": 0.1575, "2018-05-11": 0.1825, "2018-08-10": 0.1825,
    "2018-11-08": 0.1825, "2019-02-08": 0.1825, "2019-05-10": 0.1925, "2019-08-09": 0.1925, "2019-11-07": 0.1925,
    "2020-02-07": 0.1925, "2020-05-08": 0.205, "2020-08-07": 0.205, "2020-11-06": 0.205, "2021-02-05": 0.205,
    "2021-05-07": 0.22, "2021-08-06": 0.22, "2021-11-05": 0.22, "2022-02-04": 0.22, "2022-05-06": 0.23,
    "2022-08-05": 0.23, "2022-11-04": 0.23,
}  # fmt: skip
"""Apple's, per share of today, by ex date."""


@pytest.mark.skipif(not AAPL.exists(), reason="needs the days of Apple in ../shared")
def test_adjusted_closes_are_those_that_a_vendor_gives() -> None:
    table = pl.read_csv(gzip.decompress(AAPL.read_bytes())).filter(pl.col("Date") >= "2015-01-01")
    opened = table["Date"].str.to_datetime(time_unit="us", time_zone="UTC").cast(pl.Int64).to_numpy()
    bars = align(
        (ONE,), Timeframe.D1, [{"open_us": opened} | {n: table[n.capitalize()].to_numpy() for n in BAR_PRICES}]
    )
    paid = [
        CorporateAction(ONE, to_us(datetime.fromisoformat(day).replace(tzinfo=UTC)), "dividend", amount)
        for day, amount in DIVIDENDS.items()
    ]
    view = adjusted(bars, paid, EVER_US)
    assert np.allclose(view.close[:, 0], table["Adj Close"].to_numpy(), rtol=1e-6, atol=0.0)
    with pytest.raises(UserError, match="does not show in the bars"):  # its closes are adjusted for splits already
        adjusted(bars, [replace(split(0, 4.0), ex_us=to_us(datetime(2020, 8, 31, tzinfo=UTC)))], EVER_US)


def test_a_small_split_may_hide_in_a_move() -> None:
    view = adjusted(days([100.0, 100.0, 100.0]), [split(1, 1.05)], EVER_US, "first")
    assert view.close[:, 0].tolist() == [100.0, 105.0, 105.0]


def test_weeks_and_further_columns_are_refused() -> None:
    bars = days([100.0, 50.0])
    with pytest.raises(UserError, match="a bar of more than a day holds both sides"):
        adjusted(replace(bars, close_us=bars.open_us + Timeframe.W1.us), [split(1, 2.0)], EVER_US)
    with pytest.raises(UserError, match="vwap: bars with further columns are not adjusted"):
        adjusted(replace(bars, extra={"vwap": bars.close}), [split(1, 2.0)], EVER_US)
    assert math.isclose(float(adjusted(bars, [split(1, 2.0)], EVER_US).close[0, 0]), 50.0)
