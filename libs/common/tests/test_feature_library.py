"""The values of the library's definitions, beside references that share no code with them: pandas, TA-Lib over a whole
history, and formulas in plain Python.

That each is the same bits in batch and stream, and knows no future, is held in `test_features` with all other features.
"""

from __future__ import annotations

import inspect
import math
import statistics
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
import talib as library

from tradeloop.common.arrays import Floats
from tradeloop.common.features import (
    Feature,
    FeatureError,
    FeatureSet,
    change,
    change_of,
    clip,
    column,
    cross_demean,
    cross_zscore,
    difference,
    lag,
    log_return,
    month_of_year,
    named,
    of,
    on,
    product,
    quarter_of_year,
    ratio,
    rolling,
    session,
    simple_return,
    talib,
    vectorised,
    volatility,
    windowed,
    zscore,
)
from tradeloop.common.features import __all__ as exported
from tradeloop.common.features.catalogue import CATALOGUE, Entry
from tradeloop.common.market import BarArrays, Timeframe, align, from_us, to_us

LENGTH = 700


def walks(seed: int = 5, length: int = LENGTH, instruments: int = 1, start: datetime | None = None) -> BarArrays:
    """Hourly bars of random walks, on a grid without gaps."""
    rng = np.random.default_rng(seed)
    first = to_us(start or datetime(2022, 1, 3, tzinfo=UTC))
    series: list[dict[str, Any]] = []
    for _ in range(instruments):
        close = 100.0 * np.exp(np.cumsum(rng.normal(0, 1e-2, length)))
        opened = close * np.exp(rng.normal(0, 5e-3, length))
        series.append(
            {
                "open_us": first + np.arange(length, dtype=np.int64) * Timeframe.H1.us,
                "open": opened,
                "high": np.maximum(opened, close) * (1 + rng.exponential(5e-3, length)),
                "low": np.minimum(opened, close) / (1 + rng.exponential(5e-3, length)),
                "close": close,
                "volume": rng.lognormal(3, 1, length),
            }
        )
    return align([f"x:{a}" for a in range(instruments)], Timeframe.H1, series)


BARS = walks()
FRAME = pd.DataFrame({name: getattr(BARS, name)[:, 0] for name in ("open", "high", "low", "close", "volume")})


def values(*features: Feature, bars: BarArrays = BARS) -> Floats:
    """Values (T, A, F)."""
    return FeatureSet(features).compute({Timeframe.H1: bars}, Timeframe.H1).values


def one(feature: Feature) -> Floats:
    """Values (T,) on `BARS`."""
    return values(feature)[:, 0, 0]


def close_to(found: Floats, expected: Any, known: int, rtol: float = 1e-9) -> None:
    """Hold values against a reference that has values from row `known` on."""
    np.testing.assert_array_equal(np.isnan(found), np.arange(len(found)) < known)
    np.testing.assert_allclose(found[known:], np.asarray(expected, dtype=np.float64)[known:], rtol=rtol, atol=1e-12)


def test_rolling_and_zscore_are_those_of_pandas() -> None:
    volume, window = FRAME["volume"], FRAME["volume"].rolling(20)
    source = column("volume")
    close_to(one(rolling("mean", source, 20)), window.mean(), 19)
    close_to(one(rolling("total", source, 20)), window.sum(), 19)
    close_to(one(rolling("deviation", source, 20)), window.std(ddof=0), 19)
    close_to(one(rolling("lowest", source, 20)), window.min(), 19)
    close_to(one(rolling("highest", source, 20)), window.max(), 19)
    close_to(one(rolling("rank", source, 20)), (window.rank() - 1) / 19 * 2 - 1, 19)
    close_to(one(zscore(source, 20)), (volume - window.mean()) / window.std(ddof=0), 19)
    close_to(one(lag(source, 7)), volume.shift(7), 7)
    close_to(one(change(source, 7)), volume.diff(7), 7)
    close_to(one(simple_return(3)), FRAME["close"].pct_change(3), 3)


def test_equal_values_share_their_rank_and_have_no_score() -> None:
    flat = BARS.slice(0, 60)
    flat.volume[:] = 0.1  # three tenths are not three times a tenth
    assert (values(rolling("rank", column("volume"), 20), zscore(column("volume"), 20), bars=flat)[19:] == 0.0).all()
    flat.volume[:] = FRAME["volume"].to_numpy()[:60, None]


def test_a_window_over_a_recursive_indicator_is_that_of_its_series() -> None:
    rsi = pd.Series(library.RSI(FRAME["close"].to_numpy(), 14))
    close_to(
        one(zscore(talib("RSI", timeperiod=14), 30)), (rsi - rsi.rolling(30).mean()) / rsi.rolling(30).std(ddof=0), 43
    )
    close_to(one(change(talib("RSI", timeperiod=14), 5)), rsi.diff(5), 19, rtol=1e-7)
    high, low, close, volume = (FRAME[name].to_numpy() for name in ("high", "low", "close", "volume"))
    mfi = library.MFI(high, low, close, volume, 14)
    close_to(one(difference(talib("RSI"), talib("MFI"))), rsi - mfi, 14, rtol=1e-7)


@pytest.mark.parametrize("function", ["AD", "CUMSUM", "OBV", "PVT", "WAD"])
def test_the_change_of_what_adds_up_is_that_of_its_whole_history(function: str) -> None:
    feature = change_of(function, 20)
    whole = getattr(library, function)(*(FRAME[field].to_numpy() for field in feature.inputs))
    close_to(one(feature), pd.Series(whole).diff(20), 20, rtol=1e-6)


@pytest.mark.parametrize("function", ["NVI", "PVI"])
def test_an_index_of_volume_starts_at_a_thousand(function: str) -> None:
    close, volume = FRAME["close"].to_numpy(), FRAME["volume"].to_numpy()
    index = [1000.0]
    for t in range(1, LENGTH):
        counts = volume[t] < volume[t - 1] if function == "NVI" else volume[t] > volume[t - 1]
        index.append(index[-1] * (close[t] / close[t - 1] if counts else 1.0))
    expected = [1000.0 * (index[t] / index[t - 20] - 1.0) for t in range(20, LENGTH)]
    close_to(one(change_of(function, 20)), [math.nan] * 20 + expected, 20, rtol=1e-6)


def logs(t: int) -> tuple[float, float, float, float]:
    """Logarithms of the four prices at a row."""
    return tuple(math.log(FRAME[name][t]) for name in ("open", "high", "low", "close"))  # type: ignore[return-value]


def reference(estimator: str, t: int, n: int) -> float:
    """The formulas of the papers, for the window that ends at row t."""
    rows = [logs(i) for i in range(t - n + 1, t + 1)]
    returns = [after - before for before, after in pairwise([logs(t - n)[3], *(close for *_, close in rows)])]
    drift_free = sum((h - c) * (h - o) + (low - c) * (low - o) for o, h, low, c in rows) / n
    if estimator == "close":
        return statistics.stdev(returns)
    if estimator == "parkinson":
        return math.sqrt(sum((h - low) ** 2 for _, h, low, _ in rows) / (4 * math.log(2) * n))
    if estimator == "garman_klass":
        terms = [0.5 * (h - low) ** 2 - (2 * math.log(2) - 1) * (c - o) ** 2 for o, h, low, c in rows]
        return math.sqrt(sum(terms) / n)
    if estimator == "rogers_satchell":
        return math.sqrt(drift_free)
    jumps = [logs(i)[0] - logs(i - 1)[3] for i in range(t - n + 1, t + 1)]
    k = 0.34 / (1.34 + (n + 1) / (n - 1))
    within = statistics.variance([c - o for o, _, _, c in rows])
    return math.sqrt(statistics.variance(jumps) + k * within + (1 - k) * drift_free)


@pytest.mark.parametrize("estimator", ["close", "parkinson", "garman_klass", "rogers_satchell", "yang_zhang"])
def test_volatility_is_that_of_the_papers(estimator: Any) -> None:
    found, known = one(volatility(12, estimator)), 12 if estimator in ("close", "yang_zhang") else 11
    expected = [reference(estimator, t, 12) if t >= 12 else found[t] for t in range(LENGTH)]
    close_to(found, expected, known)


@pytest.mark.parametrize("estimator", ["close", "parkinson", "garman_klass", "rogers_satchell", "yang_zhang"])
def test_volatility_finds_that_of_a_walk_without_drift(estimator: Any) -> None:
    """A day of a thousand small steps, over four hundred days: each estimator finds the deviation of the day."""
    rng = np.random.default_rng(8)
    steps = rng.normal(0, 0.02 / math.sqrt(1000), (400, 1000))
    paths = np.exp(np.cumsum(steps).reshape(400, 1000)) * 100.0
    opened = np.r_[100.0, paths[:-1, -1]]
    days = {
        "open_us": np.arange(400, dtype=np.int64) * Timeframe.D1.us,
        "open": opened,
        "high": np.maximum(paths.max(axis=1), opened),
        "low": np.minimum(paths.min(axis=1), opened),
        "close": paths[:, -1],
    }
    bars = align(["x:0"], Timeframe.D1, [days])
    found = FeatureSet([volatility(399, estimator)]).compute({Timeframe.D1: bars}, Timeframe.D1).values[-1, 0, 0]
    assert found == pytest.approx(0.02, rel=0.08)  # ranges of a walk in steps are a little short


def test_features_of_one_bar_are_plain_arithmetic() -> None:
    move, volume = FRAME["close"].apply(math.log).diff(), FRAME["volume"]
    close_to(one(product(log_return(1), column("volume"))), move * volume, 1)
    close_to(one(ratio(log_return(1), column("volume"))), move / volume, 1)
    close_to(one(clip(log_return(1), -0.01, 0.005)), move.clip(-0.01, 0.005), 1)
    nothing = difference(column("close"), column("close"))
    assert (one(ratio(column("close"), nothing, otherwise=-1.0)) == -1.0).all()


def test_the_cross_section_is_centred_and_scaled_at_each_close() -> None:
    bars = walks(instruments=5)
    returns = pd.DataFrame(np.log(bars.close)).diff(5).iloc[5:]
    found = values(cross_demean(log_return(5)), cross_zscore(log_return(5)), bars=bars)[5:]
    centred = returns.sub(returns.mean(axis=1), axis=0)
    np.testing.assert_allclose(found[..., 0], centred, atol=1e-12)
    np.testing.assert_allclose(found[..., 1], centred.div(returns.std(axis=1, ddof=0), axis=0), rtol=1e-9, atol=1e-12)
    assert (values(cross_zscore(log_return(5)))[5:] == 0.0).all()


def test_minutes_of_a_session_follow_its_clock_and_its_weekdays() -> None:
    bars = walks(length=24 * 21, start=datetime(2022, 3, 4, tzinfo=UTC))  # summer time begins on the 13th
    since, until = values(*session("09:30", "16:00", "America/New_York"), bars=bars)[:, 0].T
    for t, close_us in enumerate(bars.close_us.tolist()):
        local = from_us(close_us).astimezone(ZoneInfo("America/New_York"))
        opened = local.replace(hour=9, minute=30)
        within = local.weekday() < 5 and opened <= local <= local.replace(hour=16, minute=0)
        minutes = (local - opened).total_seconds() / 60
        assert (since[t], until[t]) == ((minutes, 390.0 - minutes) if within else (0.0, 0.0))
    assert np.count_nonzero(since) == 15 * 7


@pytest.mark.parametrize("calendar", ["XNYS", "XHKG", "CMES"])
def test_minutes_of_a_session_follow_the_calendar_of_its_exchange(calendar: str) -> None:
    from exchange_calendars import get_calendar

    bars = walks(length=24 * 40, start=datetime(2024, 11, 10, tzinfo=UTC))
    since, until = values(*session(calendar=calendar), bars=bars)[:, 0].T
    schedule = get_calendar(calendar, start="2024-11-01", end="2025-01-31").schedule
    edges = zip(schedule["open"], schedule["close"], strict=True)
    spans = [(opens.timestamp(), closes.timestamp()) for opens, closes in edges]
    for t, close_us in enumerate(bars.close_us.tolist()):
        holding = [span for span in spans if span[0] <= close_us / 1e6 <= span[1]]
        opens, closes = holding[0] if holding else (close_us / 1e6, close_us / 1e6)
        assert (since[t], until[t]) == ((close_us / 1e6 - opens) / 60, (closes - close_us / 1e6) / 60)


def test_a_session_knows_holidays_and_early_closes_but_nothing_that_nobody_planned() -> None:
    since, until = session(calendar="XNYS")

    def at(*time: int) -> tuple[float, float]:
        columns = np.zeros((6, 1))
        columns[5] = datetime(*time, tzinfo=ZoneInfo("America/New_York")).timestamp()  # type: ignore[misc, arg-type]
        return float(since.batch(columns, ())[0]), float(until.batch(columns, ())[0])

    assert at(2024, 7, 3, 12, 30) == (180.0, 30.0), "it closes at 13:00 before Independence Day"
    assert at(2024, 7, 4, 12, 30) == (0.0, 0.0)
    assert at(2024, 7, 5, 9, 30) == (0.0, 390.0)
    assert at(2024, 7, 5, 16, 0) == (390.0, 0.0)
    # The package has an early close for that day alone.
    assert at(2003, 12, 26, 12, 0) == (150.0, 240.0)


def test_days_of_foreign_exchange_are_sessions() -> None:
    bars = walks(length=24 * 8, start=datetime(2024, 3, 6, tzinfo=UTC))  # clocks go forward on the 10th
    since, until = values(*session(calendar="fx"), bars=bars)[:, 0].T
    for t, close_us in enumerate(bars.close_us.tolist()):
        local = from_us(close_us - 1).astimezone(ZoneInfo("America/New_York")) + timedelta(hours=7)
        if local.weekday() < 5:
            assert since[t] == local.hour * 60 + local.minute + 1
            assert until[t] == 24 * 60 - since[t]


def test_a_session_over_midnight_belongs_to_the_day_on_which_it_opened() -> None:
    bars = walks(length=24 * 8, start=datetime(2022, 1, 3, tzinfo=UTC))  # a Monday
    since, until = values(*session("22:00", "06:00"), bars=bars)[:, 0].T
    hours = (since / 60).tolist()
    assert hours[:7] == [0.0] * 7, "nothing opened on Sunday"
    assert hours[20:32] == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0]
    assert until[21:30].tolist() == [480.0 - 60 * h for h in range(9)]
    assert hours[24 * 4 + 22 : 24 * 4 + 31] == [1, 2, 3, 4, 5, 6, 7, 8, 0], "Friday's ends on Saturday"
    assert hours[24 * 5 + 20 : 24 * 6 + 8] == [0.0] * 12


def test_months_and_quarters_turn_from_january_on() -> None:
    bars = align(
        ["x:0"],
        Timeframe.D1,
        [
            {
                "open_us": to_us(datetime(2022, 1, 1, tzinfo=UTC)) + np.arange(365, dtype=np.int64) * Timeframe.D1.us,
                **dict.fromkeys(("open", "high", "low", "close"), np.ones(365)),
            }
        ],
    )
    features = FeatureSet([*month_of_year(), *quarter_of_year()])
    found = features.compute({Timeframe.D1: bars}, Timeframe.D1).values[:, 0]
    for t, close_us in enumerate(bars.close_us.tolist()):
        month = from_us(close_us).month
        year, quarter = 2 * math.pi * (month - 1) / 12, 2 * math.pi * ((month - 1) // 3) / 4
        turned = [math.sin(year), math.cos(year), math.sin(quarter), math.cos(quarter)]
        assert found[t] == pytest.approx(turned, abs=1e-12)


def typical(high: Floats, low: Floats, close: Floats, weight: float = 2.0) -> Any:
    """A reduction, an element, a median and a product of matrices: what NumPy may do otherwise in another shape."""
    mean = (high + low + weight * close).mean(axis=0) / (2.0 + weight)
    return np.median(close, axis=0) / mean + np.linspace(-1.0, 1.0, len(close)) @ close / close.sum(axis=0)


@pytest.mark.parametrize("window", [1, 2, 7, 128, 200])
def test_a_vectorised_function_is_near_its_windowed_one(window: int) -> None:
    inputs = ("high", "low", "close")
    plain = one(windowed("plain", typical, window, inputs, weight=3.0))
    close_to(one(vectorised("fast", typical, window, inputs, weight=3.0)), plain, window - 1)


def returns_too_few(close: Floats) -> Any:
    return close.mean()


def of_the_wrong_axis(close: Floats) -> Any:
    return close.mean(axis=1)


@pytest.mark.parametrize(("fn", "what"), [(returns_too_few, "float64"), (of_the_wrong_axis, r"shape \(20,\)")])
def test_a_vectorised_function_gives_a_value_a_window(fn: Any, what: str) -> None:
    with pytest.raises(FeatureError, match=rf"feature mine: .* {what}.* for 128 windows.*\(20, 128\).*axis=0"):
        one(vectorised("mine", fn, 20))


def entries() -> list[Entry]:
    return [entry for family in CATALOGUE.values() for entry in family]


def test_the_catalogue_has_every_definition() -> None:
    from tradeloop.common import features

    definitions = {name for name in exported if inspect.isfunction(getattr(features, name))}
    others = {
        "bars_with_history",
        "basis_in_steps",
        "check_columns",
        "compute_in_steps",
        "compute_stored",
        "no_bars",
        "shown",
    }
    assert {entry.name for entry in entries()} == definitions - others


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_an_example_is_what_its_text_makes(entry: Entry) -> None:
    from tradeloop.common import features
    from tradeloop.common.features import catalogue

    for text, made in entry.examples:
        again = eval(text, vars(features) | {"reach": catalogue.reach, "_RANGE": ("high", "low", "close")})
        assert again == made
        assert entry.text


def test_the_names_of_the_catalogue_are_those_of_a_set() -> None:
    features = [feature for entry in entries() for feature in entry.features]
    assert len({feature.name for feature in features}) == len(features)
    assert len({(feature.timeframe, feature.definition) for feature in features}) == len(features)


def test_another_name_is_another_feature() -> None:
    short = named("trend", talib("ADX"))
    assert short.name == "trend"
    assert FeatureSet([short]).id != FeatureSet([talib("ADX")]).id
    np.testing.assert_array_equal(one(short), one(talib("ADX")))
    assert named("slow", on("4h", talib("ADX"))).timeframe is Timeframe.H4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: zscore(on("4h", log_return(1)), 5), r"on 4h already; say on\('4h', ...\) around all of it"),
        (lambda: lag(of(0, log_return(1))), r"looks at other instruments already; write lag\(...\) inside of that"),
        (lambda: ratio(log_return(1), 2.0), r"2.0 is no feature"),  # type: ignore[arg-type]
        (lambda: zscore(log_return(1), 1), r"zscore\(...\): n is 1; it must be at least 2"),
        (lambda: lag(log_return(1), 0), r"lag\(...\): n is 0; it must be a whole number of bars"),
        (lambda: rolling("median", log_return(1), 5), r"it can be mean, total,"),  # type: ignore[arg-type]
        (lambda: volatility(20, "garch"), r"the estimators are close, parkinson"),  # type: ignore[arg-type]
        (lambda: volatility(1), r"n is 1; it must be at least 2"),
        (lambda: clip(log_return(1), 1, -1), r"its low end is above its high end"),
        (lambda: clip(log_return(1), -math.inf, 1), r"-inf is no finite number"),
        (lambda: change_of("RSI", 5), r"the functions that add up are AD, CUMSUM, NVI"),
        (lambda: talib("OBV"), r"take its change, change_of\('OBV', n\)"),
        (lambda: column("VWAP"), r"wants 'VWAP', which bars do not have"),
        (lambda: session(), r"say when it opens and closes, or give the calendar"),
        (lambda: session("09:30", "16:00", calendar="XNYS"), r"give either a calendar, or when it opens"),
        (lambda: session(calendar="NYSE"), r"no calendar NYSE, did you mean XNYS"),
        (lambda: session(calendar="continuous"), r"it has no sessions of its own"),
        (lambda: session("9:30", "16:00"), r"write a time of day as 09:30"),
        (lambda: session("09:30", "16:00", "Mars"), r"session: this machine knows no time zone 'Mars'"),
        (lambda: named("Trend", log_return(1)), r"lower-case letters"),
    ],
)
def test_a_wrong_definition_is_refused_in_a_line(make: Any, message: str) -> None:
    with pytest.raises(FeatureError, match=message):
        make()
