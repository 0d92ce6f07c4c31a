from __future__ import annotations

import csv
import gzip
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from talib import get_functions

from tradeloop.common.arrays import Floats
from tradeloop.common.features import (
    ANCHOR_BARS,
    BarValues,
    CrossSection,
    Feature,
    FeatureError,
    FeatureSet,
    FeatureStream,
    change,
    change_of,
    column,
    cross_mean,
    cross_rank,
    cross_zscore,
    day_of_week,
    difference,
    lag,
    log_return,
    of,
    on,
    ratio,
    relative,
    rolling,
    session,
    talib,
    time_of_day,
    vectorised,
    volatility,
    windowed,
    zscore,
)
from tradeloop.common.features.catalogue import CATALOGUE
from tradeloop.common.market import BarArrays, Timeframe, align, resample, to_us

Bars = Mapping[Timeframe, BarArrays]
FIELDS = ("open", "high", "low", "close", "volume")
BASE, HIGHER = Timeframe.M1, Timeframe.M5
SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def score(close: Floats) -> float:
    spread = close.std()
    return float((close[-1] - close.mean()) / spread) if spread else math.nan


def signed_volume(close: Floats, volume: Floats) -> float:
    return float(np.sign(close[-1] - close[0]) * volume[-1])


def close_per_volume(close: Floats, volume: Floats) -> float:
    return float(close[-1] / volume[-1]) if volume[-1] else math.inf


def stretched(close: Floats, time: Floats, scale: float) -> float:
    """A move in units of `scale`, over the hours that it took."""
    return float(math.log(close[-1] / close[0]) / scale / max((time[-1] - time[0]) / 3600.0, 1.0))


def pressure(mood: Floats, close: Floats, buy_volume: Floats) -> float:
    return float(mood[-1] * (close[-1] - close[0]) + buy_volume.mean())


def mood_change(mood: Floats) -> float:
    return float(mood[-1] - mood[0])


SCALE = 1.0


def scaled(close: Floats, scale: float = 1.5, words: tuple[str, ...] = ()) -> float:
    return float(close[-1] / close[0] * scale)


def scaled_by_default(close: Floats, scale: float = SCALE) -> float:
    return float(close[-1] / close[0] * scale)


def reads_a_constant(close: Floats) -> float:
    return float(sum(SCALE * one for one in close / close[0]))


def odd(close: Floats, table: dict[str, float] = {}) -> float:  # noqa: B006
    return float(close[-1])


def shape_kept(close: Floats) -> Floats:
    return close


SET = FeatureSet(
    [
        log_return(1),
        log_return(15),
        talib("RSI", timeperiod=14),
        talib("MACD", output="macdhist"),
        talib("VAR", timeperiod=30),  # running sums: their last bits never forget where they began
        talib("CDLDOJI"),
        relative(talib("EMA", timeperiod=20)),
        windowed("zscore", score, 16),
        windowed("signed_volume", signed_volume, 2, inputs=("close", "volume")),
        windowed("stretched", stretched, 3, inputs=("close", "time"), scale=0.01),
        windowed("pressure", pressure, 4, inputs=("mood", "close", "buy_volume")),
        talib("EMA", timeperiod=9, inputs=("buy_volume",)),
        relative(talib("SMA", timeperiod=3, inputs=("mood",))),
        on("5m", talib("RSI", timeperiod=3, inputs=("buy_volume",))),
        cross_rank(windowed("mood_change", mood_change, 2, inputs=("mood",))),
        on("5m", log_return(2)),
        on("5m", relative(talib("EMA", timeperiod=5))),
        *time_of_day("America/New_York"),
        *day_of_week(),
        on("5m", time_of_day()[0]),
        of(0, log_return(3)),
        of("0", on("5m", log_return(3))),
        cross_mean(windowed("zscore", score, 5)),
        cross_rank(log_return(7)),
    ]
)


def sloped(close: Floats, volume: Floats) -> Floats:
    """Whatever NumPy may compute otherwise in another shape: sums, products of matrices, logarithms, sorting."""
    slope = np.linspace(-1.0, 1.0, len(close)) @ close / close.sum(axis=0)
    return np.asarray(slope * np.log(np.median(volume, axis=0)) + close.std(axis=0) / close.mean(axis=0))


def moody(close: Floats, mood: Floats, volume: Floats) -> Floats:
    return np.asarray((close * mood).sum(axis=0) / volume.sum(axis=0))


LIBRARY = [
    *(f for family in CATALOGUE.values() for entry in family for f in entry.features if not (f.timeframe or f.extras)),
    vectorised("sloped", sloped, 11, ("close", "volume")),
    zscore(ratio(talib("ATR"), rolling("mean", lag(talib("EMA", timeperiod=9), 2), 5)), 40),  # nested, and recursive
    difference(talib("RSI", timeperiod=5), talib("RSI", timeperiod=60)),  # of other histories
    cross_zscore(change(talib("KAMA"), 3)),
    cross_rank(vectorised("sloped", sloped, 5, ("close", "volume"))),
    *(
        on("5m", feature)
        for feature in (
            volatility(10, "yang_zhang"),
            zscore(talib("RSI"), 10),
            change_of("AD", 6),
            session("09:30", "16:00")[0],
            vectorised("sloped", sloped, 3, ("close", "volume")),
        )
    ),
    of(0, on("5m", rolling("rank", column("volume"), 4))),
    zscore(column("mood"), 5),
    ratio(column("mood"), rolling("mean", column("buy_volume"), 3)),
    difference(talib("EMA", timeperiod=4, inputs=("mood",)), talib("SMA", timeperiod=3, inputs=("buy_volume",))),
    change_of("OBV", 5, inputs=("close", "buy_volume")),
    vectorised("moody", moody, 4, ("close", "mood", "volume")),
    on("5m", rolling("highest", column("buy_volume"), 3)),
]
"""The library: every example of the catalogue, and its definitions inside of each other."""


def walk(rng: np.random.Generator, open_us: NDArray[np.int64]) -> dict[str, Floats | NDArray[np.int64]]:
    n = len(open_us)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0, 1e-3, n)))
    opened = close * np.exp(rng.normal(0, 1e-4, n))
    return {
        "open_us": open_us,
        "open": opened,
        "high": np.maximum(opened, close) * (1 + rng.exponential(5e-4, n)),
        "low": np.minimum(opened, close) / (1 + rng.exponential(5e-4, n)),
        "close": close,
        "volume": rng.lognormal(3, 1, n),
    }


def further(rng: np.random.Generator, n: int) -> dict[str, Floats]:
    """Further columns: one at nearly all bars, one that begins late and stands still now and then."""
    there = rng.random((2, n)) >= [[rng.choice([0.0, 0.004])], [0.02]]
    there[1, : int(rng.integers(0, n + 1))] &= rng.random() < 0.5
    return {
        "buy_volume": np.where(there[0], rng.lognormal(2, 1, n), np.nan),
        "mood": np.where(there[1], rng.normal(5, 1, n), np.nan),
    }


def market(rng: np.random.Generator, frames: int, instruments: int, gap: float, missing: float) -> Bars:
    """Random walks whose time jumps now and then, by up to two intervals between anchors."""
    jumps = np.where(rng.random(frames) < gap, rng.integers(2, 2 * ANCHOR_BARS, frames), 1)
    grid = (27_000_000 + np.cumsum(jumps)) * BASE.us
    series = []
    for _ in range(instruments):
        own = grid[rng.random(frames) >= missing]
        own = own if len(own) else grid[:1]
        series.append({**walk(rng, own), **further(rng, len(own))})
    bars = align([f"x:{a}" for a in range(instruments)], BASE, series)
    return {BASE: bars, HIGHER: resample(bars, BASE, HIGHER)}


markets = st.builds(
    lambda seed, *shape: market(np.random.default_rng(seed), *shape),
    st.integers(0, 2**32),
    st.integers(1, 1300),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.002, 0.05]),
    st.sampled_from([0.0, 0.3]),
)


def rows_of(bars: BarArrays, t: int, extras: Sequence[str] = ()) -> list[BarValues | None]:
    columns = [getattr(bars, field)[t].tolist() for field in FIELDS]
    columns += [bars.extra[name][t].tolist() for name in extras]
    return [
        row if there else None for row, there in zip(zip(*columns, strict=True), bars.present[t].tolist(), strict=True)
    ]


def play(
    features: FeatureSet, stream: FeatureStream, bars: Bars, start: int, stop: int
) -> Iterator[Sequence[Sequence[float]]]:
    """Feed base frames `start` to `stop`, and higher frames when they are due."""
    base = bars[BASE]
    for t in range(start, stop):
        close_us = int(base.close_us[t])
        for timeframe, higher in bars.items():
            newest = stream.last_open_us(timeframe)
            if timeframe is BASE:
                continue
            due = (higher.close_us <= close_us) & (higher.open_us > (-1 if newest is None else newest))
            for j in np.flatnonzero(due).tolist():
                row = rows_of(higher, j, features.extras)
                stream.update_higher(timeframe, int(higher.open_us[j]), int(higher.close_us[j]), row)
        yield stream.update(int(base.open_us[t]), close_us, rows_of(base, t, features.extras))


def played(features: FeatureSet, bars: Bars) -> Floats:
    """All values of a stream that sees everything from the start."""
    stream = FeatureStream(features, BASE, bars[BASE].instruments)
    return np.array(list(play(features, stream, bars, 0, len(bars[BASE]))))


def recent(bars: BarArrays, stop: int, count: int) -> BarArrays:
    """The last `count` own bars of each instrument among the first `stop` frames: what recovery reads."""
    series = []
    for a in range(len(bars.instruments)):
        own = np.flatnonzero(bars.present[:stop, a])[-count:]
        columns = {field: bars.columns()[field][own, a] for field in (*FIELDS, *bars.extra)}
        series.append({"open_us": bars.open_us[own], **columns})
    timeframe = next(t for t in Timeframe if len(bars) == 0 or t.us == bars.close_us[0] - bars.open_us[0])
    return align(bars.instruments, timeframe, series)


def reopened(features: FeatureSet, bars: Bars, cut: int) -> FeatureStream:
    """A stream opened just before base frame `cut`, on no more history than it asks for."""
    base = bars[BASE]
    stream = FeatureStream(features, BASE, base.instruments)
    visible = {
        timeframe: cut if timeframe is BASE else int(np.searchsorted(one.close_us, base.close_us[cut], side="right"))
        for timeframe, one in bars.items()
    }
    stream.open({t: recent(one, visible[t], features.history(t)) for t, one in bars.items()})
    return stream


def same(a: Floats, b: Floats) -> bool:
    """Equal to the last bit, where NaN equals NaN."""
    known = ~np.isnan(a)
    return a.shape == b.shape and np.array_equal(known, ~np.isnan(b)) and a[known].tobytes() == b[known].tobytes()


libraries = st.lists(st.sampled_from(LIBRARY), min_size=1, max_size=10, unique_by=lambda feature: feature.name).map(
    lambda features: FeatureSet([*features, on("5m", log_return(2))])  # which `play` feeds bars of both timeframes
)


@given(bars=markets, features=libraries, data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_library_is_the_same_bits_in_batch_in_stream_and_after_a_restart(
    bars: Bars, features: FeatureSet, data: st.DataObject
) -> None:
    """Restarts come at any bar, over gaps, of many instruments and on both timeframes at once."""
    frames = len(bars[BASE])
    expected = features.compute(bars, BASE).values
    assert same(played(features, bars), expected)
    cut = data.draw(st.integers(0, frames - 1))
    stop = min(frames, cut + 40)
    assert same(np.array(list(play(features, reopened(features, bars, cut), bars, cut, stop))), expected[cut:stop])


@given(bars=markets, features=libraries, data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_library_knows_no_future(bars: Bars, features: FeatureSet, data: st.DataObject) -> None:
    """Neither when what comes is taken away, nor when it is another."""
    cut = data.draw(st.integers(1, len(bars[BASE])))
    expected = features.compute(bars, BASE).values[:cut]
    past = bars[BASE].slice(0, cut)
    assert same(features.compute({BASE: past, HIGHER: resample(past, BASE, HIGHER)}, BASE).values, expected)
    base = bars[BASE]
    other = {name: getattr(base, name).copy() for name in FIELDS}
    for numbers in other.values():
        numbers[cut:] *= 3.0
    scrambled = replace(base, **other)
    assert same(
        features.compute({BASE: scrambled, HIGHER: resample(scrambled, BASE, HIGHER)}, BASE).values[:cut], expected
    )


@given(bars=markets, features=libraries)
@settings(max_examples=30, deadline=None)
def test_instruments_share_no_state(bars: Bars, features: FeatureSet) -> None:
    """Alone, an instrument has the values that it has among others, but for those that look at the others."""
    alone = [f for f in features.features if not isinstance(f, CrossSection)]
    if not alone:
        return
    base = bars[BASE]
    among = FeatureSet(alone).compute(bars, BASE)
    stream = played(FeatureSet(alone), bars)
    for a, instrument in enumerate(base.instruments):
        own = np.flatnonzero(base.present[:, a])
        further = {field: bars[BASE].columns()[field][own, a] for field in (*FIELDS, *base.extra)}
        series = {"open_us": base.open_us[own], **further}
        single = align([instrument], BASE, [series])
        found = FeatureSet(alone).compute({BASE: single, HIGHER: resample(single, BASE, HIGHER)}, BASE)
        assert same(found.values[:, 0], among.values[own, a])
        assert same(found.values[:, 0], stream[own, a])


@given(bars=markets)
@settings(max_examples=25, deadline=None)
def test_a_stream_gives_the_batch_to_the_last_bit(bars: Bars) -> None:
    assert same(played(SET, bars), SET.compute(bars, BASE).values)


@given(bars=markets, data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_stream_opened_at_any_bar_goes_on_as_if_never_stopped(bars: Bars, data: st.DataObject) -> None:
    frames = len(bars[BASE])
    expected = SET.compute(bars, BASE).values
    cut = data.draw(st.integers(0, frames - 1))
    stop = min(frames, cut + 40)
    stream = reopened(SET, bars, cut)
    assert same(np.array(list(play(SET, stream, bars, cut, stop))), expected[cut:stop])


@pytest.mark.parametrize("place", [0, 1, ANCHOR_BARS - 1])
@pytest.mark.parametrize("missing", [False, True])
def test_the_history_that_is_asked_for_is_just_enough(place: int, missing: bool) -> None:
    """At the first and the last bar after an anchor, and where the frame holds no new bar of the instrument."""
    features = FeatureSet([talib("VAR", timeperiod=30), log_return(3)])
    bars = market(np.random.default_rng(11), 5 * ANCHOR_BARS, 2, gap=0.0, missing=0.0)
    base = bars[BASE]
    first = int(np.flatnonzero(base.open_us % (ANCHOR_BARS * BASE.us) == 0)[3])
    cut = first + place
    present = base.present.copy()
    present[cut, 1] = not missing
    bars = {BASE: replace(base, present=present)}
    expected = features.compute(bars, BASE).values[cut : cut + 9]
    assert same(np.array(list(play(features, reopened(features, bars, cut), bars, cut, cut + 9))), expected)
    too_little = FeatureStream(features, BASE, base.instruments)
    needed = place + features.features[0].history if not (missing and place == 0) else features.history(BASE)
    too_little.open({BASE: recent(bars[BASE], cut, needed - 1)})
    assert not same(np.array(list(play(features, too_little, bars, cut, cut + 9))), expected)


@given(bars=markets, data=st.data())
@settings(max_examples=30, deadline=None)
def test_the_future_changes_nothing(bars: Bars, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(bars[BASE])))
    past = bars[BASE].slice(0, cut)
    known = {BASE: past, HIGHER: resample(past, BASE, HIGHER)}
    assert same(SET.compute(known, BASE).values, SET.compute(bars, BASE).values[:cut])


def with_history(features: FeatureSet, bars: Bars, cut: int) -> Bars:
    """Base frame `cut` and all later ones, and no more before it than the history that is asked for."""
    visible = int(np.searchsorted(bars[HIGHER].close_us, bars[BASE].close_us[cut], side="right"))
    earliest = {
        BASE: recent(bars[BASE], cut, features.history(BASE)).open_us,
        HIGHER: recent(bars[HIGHER], visible, features.history(HIGHER)).open_us,
    }
    return {
        t: one.slice(int(np.searchsorted(one.open_us, earliest[t][0])) if len(earliest[t]) else 0, len(one))
        for t, one in bars.items()
    }


@given(bars=markets, data=st.data())
@settings(max_examples=30, deadline=None)
def test_history_before_the_bars_that_are_asked_for_is_enough(bars: Bars, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(bars[BASE]) - 1))
    whole = SET.compute(bars, BASE).values
    part = SET.compute(with_history(SET, bars, cut), BASE).values
    assert same(part[-(len(bars[BASE]) - cut) :], whole[cut:])


def test_many_bars_give_what_their_last_ones_give_alone() -> None:
    """They are computed in parts, of about 32,768 of an instrument's own bars."""
    features = FeatureSet(
        [
            *(log_return(1), talib("RSI"), talib("MACD", output="macdhist"), relative(talib("EMA", timeperiod=60))),
            *(volatility(30), change(talib("RSI"), 5), zscore(relative(talib("EMA", timeperiod=20)), 40)),
            zscore(ratio(talib("ATR"), rolling("mean", lag(talib("EMA", timeperiod=9), 2), 5)), 40),
            vectorised("sloped", sloped, 11, ("close", "volume")),
            cross_rank(rolling("mean", log_return(1), 700)),
            on("5m", zscore(talib("RSI"), 10)),
        ]
    )
    bars = market(np.random.default_rng(5), 36_000, 2, gap=0.001, missing=0.05)
    whole = features.compute(bars, BASE).values
    part = features.compute(with_history(features, bars, 34_000), BASE).values
    assert same(part[-2_000:], whole[-2_000:])


@pytest.mark.parametrize("before", [1, 6, 30])
def test_windows_behind_an_anchor_just_after_the_first_bar(before: int) -> None:
    bars = market(np.random.default_rng(9), 700, 1, gap=0.0, missing=0.0)[BASE]
    anchor = int(np.flatnonzero(bars.open_us % (ANCHOR_BARS * BASE.us) == 0)[0])
    since = {BASE: bars.slice(anchor - before, len(bars))}
    inner = talib("BOP"), talib("RSI", timeperiod=3)
    features = FeatureSet([make(one) for one in inner for make in (partial(lag, n=20), partial(change, n=10))])
    assert same(played(features, since), features.compute(since, BASE).values)


def real_bars(count: int) -> Bars:
    with gzip.open(SHARED / "btc-perp-1m-2022-01.csv.gz", "rt") as file:
        lines = [line for line, _ in zip(csv.DictReader(file), range(count), strict=False)]
    times = [to_us(datetime.fromisoformat(line["timestamp"]).replace(tzinfo=UTC)) for line in lines]
    columns = {field: np.array([float(line[field]) for line in lines]) for field in FIELDS}
    bars = align(["binance:BTC-PERP"], BASE, [{"open_us": np.array(times, dtype=np.int64), **columns}])
    return {BASE: bars, Timeframe.H1: resample(bars, BASE, Timeframe.H1)}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared market data is not here")
def test_real_bars_with_an_hourly_feature() -> None:
    bars = real_bars(6000)
    features = FeatureSet(
        [*(f for f in SET.features if not (f.timeframe or f.extras)), on("1h", talib("EMA", timeperiod=20))]
    )
    expected = features.compute(bars, BASE).values
    assert same(played(features, bars), expected)
    for cut in (1, 33, 511, 1500, 3583, 3584, 5999):
        values = list(play(features, reopened(features, bars, cut), bars, cut, min(cut + 200, 6000)))
        assert same(np.array(values), expected[cut : cut + 200])
    # The file starts at 23:01, so the 20th hourly bar, 59 minutes of the first hour included, closes after 1199 bars.
    hourly = expected[:, 0, -1]
    assert np.isnan(hourly[:1198]).all()
    assert hourly[1198] == bars[Timeframe.H1].close[:20, 0].mean()
    assert len(np.unique(hourly[1198:1258])) == 1
    assert hourly[1258] != hourly[1257]


def talib_of(function: str) -> Feature:
    """The function with its defaults, and its first output."""
    try:
        return talib(function)
    except FeatureError as error:
        return talib(function, output=str(error).rpartition("of ")[2].split(", ")[0])


SUPPORTED = sorted(
    set(get_functions())  # type: ignore[no-untyped-call]
    - {"AD", "CUMSUM", "MAXINDEX", "MININDEX", "MINMAXINDEX", "NVI", "OBV", "PVI", "PVT", "VWAP", "WAD"}
    - {"MAVP"}  # reads a series of periods
    - {"ACOS", "ASIN"}  # of a price: no number
    - {"COSH", "EXP", "SINH"}  # of a price: too large
)


@pytest.mark.parametrize("function", SUPPORTED)
def test_restarting_at_anchors_hardly_changes_a_value(function: str) -> None:
    """Against one run over all history; a function that never forgets its start would fail here."""
    bars = market(np.random.default_rng(7), 2600, 1, gap=0.0, missing=0.0)
    feature = talib_of(function)
    columns = np.array([getattr(bars[BASE], field)[:, 0] for field in FIELDS])
    anchored = FeatureSet([feature]).compute(bars, BASE).values[:, 0, 0]
    full = feature.batch(columns, [(0, 0, 2600)])
    assert np.array_equal(np.isnan(anchored), np.isnan(full))
    known = ~np.isnan(full)
    assert known.sum() > 2400
    size = np.abs(full[known])
    assert (np.abs(anchored - full)[known] <= 1e-9 * np.maximum(size, np.median(size))).all()
    assert same(played(FeatureSet([feature]), {BASE: bars[BASE].slice(0, 1200)})[:, 0, 0], anchored[:1200])


def test_a_missing_bar_repeats_the_values_and_moves_nothing() -> None:
    bars = market(np.random.default_rng(3), 200, 2, gap=0.0, missing=0.0)
    base = bars[BASE]
    present = base.present.copy()
    present[100:110, 1] = False
    holes = {BASE: replace(base, present=present)}
    features = FeatureSet([log_return(1), talib("RSI", timeperiod=14)])
    values = features.compute(holes, BASE).values
    assert same(values[:, 0], features.compute(bars, BASE).values[:, 0])
    assert (values[100:110, 1] == values[99, 1]).all()
    assert values[110, 1, 0] == math.log(base.close[110, 1] / base.close[99, 1])


def test_a_higher_bar_is_seen_from_the_base_bar_that_closes_with_it() -> None:
    bars = market(np.random.default_rng(3), 30, 1, gap=0.0, missing=0.0)
    values = FeatureSet([on("5m", log_return(1))]).compute(bars, BASE).values[:, 0, 0]
    close, close_us = bars[HIGHER].close[:, 0], bars[HIGHER].close_us
    for t, now_us in enumerate(bars[BASE].close_us):
        closed = close[close_us <= now_us]
        expected = math.log(closed[-1] / closed[-2]) if len(closed) > 1 else math.nan
        np.testing.assert_equal(values[t], expected)
    assert 20 <= np.isfinite(values).sum() < 30


def test_values_of_known_definitions() -> None:
    grid = np.arange(5, dtype=np.int64) * BASE.us
    close = np.array([100.0, 110.0, 99.0, 99.0, 120.0])
    series = {"open_us": grid, "open": close, "high": close, "low": close, "close": close, "volume": close}
    features = FeatureSet([log_return(2), talib("SMA", timeperiod=2), relative(talib("SMA", timeperiod=2))])
    values = features.compute({BASE: align(["x:a"], BASE, [series])}, BASE).values[:, 0]
    nan = math.nan
    np.testing.assert_allclose(values[:, 0], [nan, nan, *np.log([0.99, 0.9, 120 / 99])], rtol=1e-15)
    np.testing.assert_allclose(values[:, 1], [nan, 105, 104.5, 99, 109.5], rtol=1e-15)
    np.testing.assert_allclose(values[:, 2], [nan, *(close[1:] / [105, 104.5, 99, 109.5] - 1)], rtol=1e-15)


def test_names_are_readable() -> None:
    features = FeatureSet(
        [
            log_return(1),
            talib("RSI", timeperiod=14),
            talib("BBANDS", nbdevup=2.5, output="upperband"),
            talib("EMA", timeperiod=20, inputs=("volume",)),
            on("1h", relative(talib("EMA", timeperiod=20))),
            on(Timeframe.D1, windowed("zscore", score, 5)),
        ]
    )
    assert features.names == (
        "log_return_1",
        "rsi_14",
        "bbands_20_2p5_2_0_upperband",
        "ema_20_volume",
        "1h_relative_ema_20",
        "1d_zscore",
    )
    assert features.timeframes == (Timeframe.H1, Timeframe.D1)
    assert features.requires_volume
    assert not FeatureSet([log_return(1)]).requires_volume


def test_the_identity_follows_the_definitions_alone() -> None:
    """The literal fails when the arithmetic's identity changes, which orphans every trained model: do so knowingly."""
    assert FeatureSet([log_return(1), talib("EMA", timeperiod=20)]).id == "fs_fc1bcab6b571"
    assert FeatureSet([talib("RSI")]).id == FeatureSet([talib("RSI", timeperiod=14)]).id
    variants = [
        [talib("RSI")],
        [talib("RSI", timeperiod=15)],
        [talib("RSI", inputs=("open",))],
        [relative(talib("RSI"))],
        [on("1h", talib("RSI"))],
        [on("4h", talib("RSI"))],
        [talib("STOCH", output="slowk")],
        [talib("STOCH", output="slowd")],
        [windowed("zscore", score, 5)],
        [windowed("zscore", score, 6)],
        [windowed("zscore", shape_kept, 5)],
        [windowed("scaled", scaled, 5, scale=2.0)],
        [windowed("scaled", scaled, 5, scale=3.0)],
        [windowed("scaled", scaled, 5)],
        [windowed("scaled", scaled, 5, scale=2.0, words=("a", "b"))],
        [windowed("scaled", scaled_by_default, 5)],
        [time_of_day()[0]],
        [time_of_day()[1]],
        [time_of_day("Asia/Tokyo")[0]],
        [day_of_week()[0]],
        [of("x:a", log_return(1))],
        [of("a", log_return(1))],
        [of(0, log_return(1))],
        [of("a", log_return(2))],
        [of("a", on("1h", log_return(1)))],
        [cross_mean(log_return(1))],
        [cross_rank(log_return(1))],
        [log_return(1), log_return(2)],
        [log_return(2), log_return(1)],
    ]
    assert len({FeatureSet(features).id for features in variants}) == len(variants)


def test_a_function_is_also_the_values_that_its_source_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its source reads the same when a constant of its module changes, or the variable that gave it a default."""
    before = FeatureSet([windowed("reads", reads_a_constant, 5)]).id
    assert FeatureSet([windowed("reads", reads_a_constant, 5)]).id == before
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert FeatureSet([windowed("reads", reads_a_constant, 5)]).id != before
    usual = FeatureSet([windowed("scaled", scaled_by_default, 5)]).id
    monkeypatch.setattr(scaled_by_default, "__defaults__", (3.0,))
    assert FeatureSet([windowed("scaled", scaled_by_default, 5)]).id != usual


def test_history_is_an_interval_between_anchors_and_a_restart() -> None:
    features = FeatureSet([log_return(3), talib("EMA", timeperiod=100), on("1h", log_return(7))])
    assert features.history(BASE) == ANCHOR_BARS + 2752  # 99 bars of lookback and 26 periods, in steps of 64
    assert features.history(Timeframe.H1) == ANCHOR_BARS + 7


@pytest.mark.parametrize(
    ("define", "message"),
    [
        (lambda: talib("RSY"), "no function 'RSY': did you mean RSI"),
        (lambda: talib("RSI", period=3), "no parameter 'period': its parameters are timeperiod"),
        (lambda: talib("RSI", timeperiod=2.5), "expected int, got float"),
        (lambda: talib("RSI", timeperiod=-1), "refuses timeperiod=-1"),
        (lambda: talib("MACD"), "several outputs: choose one with output=, of macd, macdsignal, macdhist"),
        (lambda: talib("MACD", output="signal"), "no output 'signal': it has macd, macdsignal, macdhist"),
        (lambda: talib("OBV"), r"depends on where its series starts.*change_of\('OBV', n\)"),
        (lambda: talib("ATR", inputs=("close",)), r"takes 3 inputs \(high, low, close\), not 1"),
        (lambda: talib("RSI", inputs=("Bid",)), "'Bid', which bars do not have: they have open, high"),
        (lambda: talib("MAVP"), "'periods', which bars do not have"),
        (lambda: log_return(0), "n is 0; it must be a whole number of bars, at least 1"),
        (lambda: windowed("Z score", score, 3), "a name is lower-case letters"),
        (lambda: windowed("z", score, 0), "window is 0"),
        (lambda: windowed("z", score, 3, inputs=("price!",)), "'price!', which bars do not have"),
        (lambda: windowed("z", lambda close: close[-1], 3), r"written with def.*windowed\('z', fn, 3, scale=2.0\)"),
        (lambda: windowed("z", partial(scaled, scale=2.0), 3), r"written with def.*windowed\('z', fn, 3, scale=2.0\)"),
        (lambda: windowed("z", scaled, 3, scole=2.0), r"calls scaled\(close, scole\), and scaled takes \(close.*scole"),
        (lambda: windowed("z", stretched, 3, ("close", "time")), "missing a required argument: 'scale'"),
        (lambda: windowed("z", scaled, 3, close=2.0), "multiple values for keyword argument 'close'"),
        (lambda: windowed("z", scaled, 3, scale=np.arange(3)), r"parameter scale is array\(\[0, 1, 2\]\).*plain data"),
        (lambda: windowed("z", scaled, 3, scale=math.nan), "parameter scale is nan; parameters are plain data: finite"),
        (lambda: windowed("z", scaled, 3, words={"a": 1}), "parameter words is {'a': 1}; parameters are plain data"),
        (lambda: windowed("z", odd, 3), "parameter table is {}; parameters are plain data"),
        (lambda: time_of_day("New York"), "time_of_day: this machine knows no time zone 'New York': write a name of"),
        (lambda: day_of_week("../etc"), "day_of_week: this machine knows no time zone"),
        (lambda: time_of_day(None), "time_of_day: this machine knows no time zone None"),  # type: ignore[arg-type]
        (lambda: of("", log_return(1)), "name an instrument by its id, its symbol, or its place"),
        (lambda: of("a b", log_return(1)), "name an instrument by its id"),
        (lambda: of(-1, log_return(1)), "name an instrument by its id"),
        (lambda: of(True, log_return(1)), "name an instrument by its id"),
        (lambda: of("a", cross_rank(log_return(1))), "looks at other instruments already, and cannot do so twice"),
        (lambda: cross_mean("rsi"), "'rsi' is no feature"),  # type: ignore[arg-type]
        (lambda: on("1h", of("a", log_return(1))), r"write on\('1h', ...\) inside of that"),
        (lambda: relative(cross_mean(log_return(1))), r"write relative\(...\) inside of that"),
        (lambda: on("7h", log_return(1)), "the timeframes are 1s, 5s"),
        (lambda: on("4h", on("1h", log_return(1))), "is on 1h already"),
        (lambda: relative(on("1h", talib("EMA"))), r"say on\('1h', relative\(...\)\)"),
        (lambda: FeatureSet([]), "at least one feature"),
        (lambda: FeatureSet([log_return(1), log_return(1)]), "log_return_1 is listed twice"),
        (lambda: FeatureStream(FeatureSet([on("1h", log_return(1))]), Timeframe.H1, ["x:a"]), "1h is no higher"),
        (lambda: FeatureSet([on("1h", log_return(1))]).compute({BASE: small()}, BASE), "add 1h to the universe"),
    ],
)
def test_a_wrong_definition_is_refused_with_its_remedy(define: object, message: str) -> None:
    assert callable(define)
    with pytest.raises(FeatureError, match=message):
        define()


def test_a_function_that_closes_over_a_variable_is_refused() -> None:
    scale = 3.0

    def scaled(close: Floats) -> float:
        return float(close[-1] * scale)

    with pytest.raises(FeatureError, match="reads no variables of an enclosing function"):
        windowed("scaled", scaled, 3)


def small(volume: float = 1.0) -> BarArrays:
    bars = market(np.random.default_rng(1), 40, 1, gap=0.0, missing=0.0)[BASE]
    volumes = bars.volume.copy()
    volumes[30] = volume
    return replace(bars, volume=volumes)


@pytest.mark.parametrize(
    ("feature", "volume", "message"),
    [
        (talib("MFI"), math.nan, "feature mfi_14 needs volume, and the bar of x:0 that opened .* has none"),
        (windowed("cpv", close_per_volume, 2, ("close", "volume")), 0.0, "feature cpv of x:0 is infinite at the bar"),
        (windowed("kept", shape_kept, 2), 1.0, r"returned an array of shape \(2,\) for one window"),
    ],
)
def test_bars_that_cannot_give_a_feature_are_named(feature: Feature, volume: float, message: str) -> None:
    features, bars = FeatureSet([feature]), {BASE: small(volume)}
    with pytest.raises(FeatureError, match=message):
        features.compute(bars, BASE)
    with pytest.raises(FeatureError, match=message):
        played(features, bars)
    with pytest.raises(FeatureError, match=message):
        FeatureStream(features, BASE, ["x:0"]).open({BASE: bars[BASE].slice(0, 31)})


def test_a_column_that_no_bar_has_is_named_with_those_that_there_are() -> None:
    features = FeatureSet([talib("SMA", timeperiod=2, inputs=("buy_volumes",))])
    told = (
        "feature sma_2_buy_volumes reads 'buy_volumes', which no 1m bar has here: did you mean buy_volume? they have "
        "open, high, low, close, volume, buy_volume, mood; use a source that gives buy_volumes, or leave the feature "
        "out"
    )
    with pytest.raises(FeatureError, match=re.escape(told)):
        features.compute({BASE: small()}, BASE)
    # A stream may be ahead of its source: it waits.
    assert np.isnan(played_without_columns(features)).all()


def played_without_columns(features: FeatureSet) -> Floats:
    stream = FeatureStream(features, BASE, ["x:0"])
    bars = replace(small(), extra={})
    stream.open({BASE: bars.slice(0, 30)})
    frames = [(int(bars.open_us[t]), int(bars.close_us[t]), features.frame(bars, t)) for t in range(30, 40)]
    return np.array([stream.update(*one) for one in frames])


def test_a_level_of_zero_is_no_level() -> None:
    bars = small()
    flat = np.full((40, 1), 100.0)
    features = FeatureSet([relative(talib("MACD", output="macd"))])
    for run in (lambda b: features.compute(b, BASE), lambda b: played(features, b)):
        with pytest.raises(FeatureError, match="relative_macd_12_26_9_macd of x:0 is infinite"):
            run({BASE: replace(bars, open=flat, high=flat, low=flat, close=flat)})


def test_an_author_cannot_write_into_the_bars() -> None:
    def spoil(close: Floats) -> float:
        close[0] = 0.0
        return 0.0

    features = FeatureSet([windowed("spoil", spoil, 4)])
    with pytest.raises(ValueError, match="read-only"):
        features.compute({BASE: small()}, BASE)
    with pytest.raises(ValueError, match="read-only"):
        played(features, {BASE: small()})


def test_frames_out_of_order_are_refused() -> None:
    row: list[BarValues | None] = [(1.0, 1.0, 1.0, 1.0, 1.0)]
    stream = FeatureStream(FeatureSet([log_return(1), on("5m", log_return(1))]), BASE, ["x:a"])
    stream.update(0, BASE.us, row)
    with pytest.raises(ValueError, match="a 1m frame that opened at 0 came after one that opened at 0"):
        stream.update(0, BASE.us, row)
    stream.update_higher(HIGHER, 0, HIGHER.us, row)
    with pytest.raises(ValueError, match="came before its end"):
        stream.update(BASE.us, 2 * BASE.us, row)
