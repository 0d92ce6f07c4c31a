from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tradeloop.common.arrays import Floats
from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bar_store.port import BarStoreUnavailable
from tradeloop.common.bar_store.sql import SqlBarStore
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import LogPosition, Partition
from tradeloop.common.clock import ManualClock
from tradeloop.common.errors import UserError
from tradeloop.common.feature_store.feast.store import FeastFeatureStore
from tradeloop.common.feature_store.memory import MemoryFeatureStore
from tradeloop.common.feature_store.port import FeatureRows, FeatureSetUnknown
from tradeloop.common.features import (
    FeatureError,
    cross_rank,
    log_return,
    of,
    on,
    relative,
    talib,
    time_of_day,
    windowed,
)
from tradeloop.common.market import (
    EVER_US,
    Bar,
    BarArrays,
    Instrument,
    Series,
    Timeframe,
    TimeRange,
    Universe,
    align,
    from_us,
    resample,
    to_us,
)
from tradeloop.common.messages import BarFrame, FeaturesComputed, Message, PreprocessCompleted, PreprocessRequested
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.portfolio import Portfolio, portfolio_yaml
from tradeloop.common.runtime.pump import pump
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.runtime.service import RequestFailed
from tradeloop.common.strategy import Strategy
from tradeloop.common.strategy.rewards import RewardContext, reward
from tradeloop.preprocess.application import Preprocess
from tradeloop.preprocess.config import Settings
from tradeloop.preprocess.main import build

BASE, HIGHER = Timeframe.M1, Timeframe.M5
POSITION = LogPosition(Partition("market.bars.v1", 0), 0)
UNIVERSE = Universe(
    name="u",
    instruments=tuple(Instrument(id=f"x:{letter}") for letter in "ABC"),
    timeframe=BASE,
    higher_timeframes=(HIGHER, Timeframe.M15),
)
START_US = to_us(datetime(2024, 1, 1, tzinfo=UTC))


@reward(version="1")
class Gain:
    def __call__(self, c: RewardContext) -> Floats:
        return np.log(c.equity / c.equity_prev)


def pressure(mood_mean: Floats, buy_volume: Floats) -> float:
    return float(mood_mean[-1] * buy_volume[0])


FEATURES = [
    log_return(2),
    talib("VAR", timeperiod=5),  # running sums: their last bits never forget where they began
    on("5m", relative(talib("EMA", timeperiod=3))),
    time_of_day("Europe/Berlin")[0],
    of("B", on("5m", log_return(1))),
    cross_rank(log_return(1)),
    windowed("pressure", pressure, 2, inputs=("mood_mean", "buy_volume")),
    on("5m", talib("EMA", timeperiod=3, inputs=("mood_mean",))),
]
STRATEGIES = {
    "s": Strategy("s", FEATURES, Gain()),
    "same": Strategy("same", FEATURES, Gain(), window=8),
    "led": Strategy("led", [of("ETH", log_return(1))], Gain()),
    "hourly": Strategy("hourly", [on("1h", log_return(1))], Gain()),
    "volume": Strategy("volume", [talib("MFI")], Gain()),
    "moody": Strategy("moody", [talib("SMA", inputs=("moodmean",))], Gain()),
}
SET = STRATEGIES["s"].feature_set


def market(seed: int, frames: int, gap: float = 0.03, missing: float = 0.2) -> dict[Timeframe, BarArrays]:
    """Random walks with jumps in time and bars that are missing."""
    rng = np.random.default_rng(seed)
    steps = np.where(rng.random(frames) < gap, rng.integers(2, 700, frames), 1)
    grid = START_US + np.cumsum(steps) * BASE.us
    present = rng.random((frames, len(UNIVERSE.ids))) >= missing
    present[~present.any(axis=1), 0] = True
    series: list[Series] = []
    for a in range(len(UNIVERSE.ids)):
        open_us = grid[present[:, a]]
        close = 100.0 * np.exp(np.cumsum(rng.normal(0, 1e-3, len(open_us))))
        volume = rng.lognormal(3, 1, len(open_us))
        prices = {"open": close, "high": close * 1.001, "low": close * 0.999, "close": close}
        mood = np.where(rng.random(len(open_us)) < 0.05, np.nan, rng.normal(5, 1, len(open_us)))
        further = {"mood_mean": mood, **({"buy_volume": volume * 0.4} if a else {})}
        series.append({"open_us": open_us, **prices, "volume": volume, **further})
    bars = align(UNIVERSE.ids, BASE, series)
    return {BASE: bars, HIGHER: resample(bars, BASE, HIGHER)}


def frame(timeframe: Timeframe, bars: BarArrays, t: int, revision: int = 0) -> BarFrame:
    return BarFrame(
        universe=UNIVERSE.name,
        timeframe=timeframe,
        open_time=from_us(bars.open_us[t]),
        close_time=from_us(bars.close_us[t]),
        bars=tuple(
            Bar(
                instrument=instrument,
                open=bars.open[t, a],
                high=bars.high[t, a],
                low=bars.low[t, a],
                close=bars.close[t, a],
                volume=None if math.isnan(bars.volume[t, a]) else bars.volume[t, a],
                extra={name: one[t, a] for name, one in bars.extra.items() if not math.isnan(one[t, a])},
            )
            for a, instrument in enumerate(bars.instruments)
            if bars.present[t, a]
        ),
        missing=tuple(one for a, one in enumerate(bars.instruments) if not bars.present[t, a]),
        revision=revision,
    )


def feed(bars: dict[Timeframe, BarArrays], start: int = 0, stop: int | None = None) -> list[BarFrame]:
    """Base frames `start` to `stop`, each after the higher frames that its close makes known."""
    frames = []
    for t in range(start, len(bars[BASE]) if stop is None else stop):
        known_us = bars[BASE].close_us[t - 1] if t else 0
        higher = bars[HIGHER]
        due = np.flatnonzero((higher.close_us <= bars[BASE].close_us[t]) & (higher.close_us > known_us))
        frames += [*(frame(HIGHER, higher, int(j)) for j in due), frame(BASE, bars[BASE], t)]
    return frames


class CountingBarStore(MemoryBarStore):
    """Counts its reads, and is away when told so."""

    def __init__(self) -> None:
        super().__init__(ManualClock(from_us(START_US)))
        self.reads = 0
        self.away = False

    def read_before(
        self,
        instruments: Sequence[str],
        timeframe: Timeframe,
        end_us: int,
        frames: int,
        *,
        as_known_us: int = EVER_US,
    ) -> BarArrays:
        self.reads += 1
        if self.away:
            raise BarStoreUnavailable("it is away")
        return super().read_before(instruments, timeframe, end_us, frames, as_known_us=as_known_us)

    def check(self, *, writes: bool = False) -> None:
        if self.away:
            raise BarStoreUnavailable("it is away")


class CountingFeatureStore(MemoryFeatureStore):
    """Remembers what was written online."""

    def __init__(self) -> None:
        super().__init__()
        self.online: list[FeatureRows] = []

    def write_online(self, feature_set: str, universe: str, rows: FeatureRows) -> None:
        super().write_online(feature_set, universe, rows)
        self.online.append(rows)


def stored(bars: dict[Timeframe, BarArrays]) -> CountingBarStore:
    store = CountingBarStore()
    for timeframe, one in bars.items():
        store.write(timeframe, one)
    return store


def service(
    bars: CountingBarStore,
    features: MemoryFeatureStore | None = None,
    strategies: Sequence[str] = ("s",),
    sent: Sequence[BarFrame] = (),
) -> Preprocess:
    pairs = [(UNIVERSE, name) for name in strategies]
    clock = ManualClock(from_us(START_US) + timedelta(days=365))
    return Preprocess(pairs, STRATEGIES.__getitem__, bars, features or MemoryFeatureStore(), clock, AllSent(sent))


class AllSent:
    """All frames of a market went out, in their order, whoever handled them."""

    def __init__(self, frames: Sequence[BarFrame]) -> None:
        self._frames = frames

    def before(self, position: LogPosition, universe: Universe, open_us: int) -> Iterator[BarFrame]:
        for i, one in enumerate(self._frames):
            if one.timeframe is BASE and not one.revision and to_us(one.open_time) == open_us:
                return reversed(self._frames[:i])
        return iter(())


def answered(preprocess: Preprocess, asked: PreprocessRequested) -> list[Message]:
    """What comes of a request, all its slices done."""
    messages = list(preprocess.handle(asked, POSITION))
    while preprocess.busy():
        messages += preprocess.advance()
    assert not preprocess.pending()
    return messages


def published(preprocess: Preprocess, frames: Iterable[BarFrame]) -> list[FeaturesComputed]:
    messages = [message for one in frames for message in preprocess.handle(one, POSITION)]
    assert all(isinstance(message, FeaturesComputed) for message in messages)
    return [message for message in messages if isinstance(message, FeaturesComputed)]


def values_of(messages: Sequence[FeaturesComputed]) -> Floats:
    values = [[[math.nan if v is None else v for v in row] for row in message.values] for message in messages]
    return np.array(values, dtype=np.float64).reshape(len(messages), len(UNIVERSE.ids), len(SET.names))


def same(a: Floats, b: Floats) -> bool:
    """Equal to the last bit, where NaN equals NaN."""
    known = ~np.isnan(a)
    return a.shape == b.shape and np.array_equal(known, ~np.isnan(b)) and a[known].tobytes() == b[known].tobytes()


def test_frames_give_the_batch() -> None:
    bars = market(1, 900)
    messages = published(service(stored(bars)), feed(bars))
    assert same(values_of(messages), SET.compute(bars, BASE).values)
    assert [to_us(message.time) for message in messages] == bars[BASE].close_us.tolist()
    assert {(m.universe, m.feature_set, m.instruments, m.names) for m in messages} == {
        ("u", SET.id, UNIVERSE.ids, SET.names)
    }
    assert messages[0].values[0][0] is None


@given(st.integers(0, 2**32), st.data())
@settings(max_examples=20, deadline=None)
def test_frames_give_the_same_features_whenever_and_however_often_they_come(seed: int, data: st.DataObject) -> None:
    """Redelivery, replays of any range, and what another consumer had meanwhile; each with or without a restart."""
    bars = market(seed, 900)
    expected = SET.compute(bars, BASE).values
    store, sent = stored(bars), feed(bars) if data.draw(st.booleans()) else ()
    preprocess = service(store, sent=sent)
    for _ in range(6):
        start = data.draw(st.integers(0, 899))
        stop = min(900, start + data.draw(st.integers(1, 12)))
        if data.draw(st.booleans()):
            preprocess = service(store, sent=sent)
        assert same(values_of(published(preprocess, feed(bars, start, stop))), expected[start:stop])


@given(st.integers(0, 2**32), st.lists(st.booleans(), min_size=24, max_size=24))
@settings(max_examples=25, deadline=None)
def test_frames_that_another_consumer_took_are_read_from_the_store(seed: int, seen: list[bool]) -> None:
    """A partition went away and came back, anywhere between two frames, of whatever timeframe."""
    bars = market(seed, 700, gap=0.2)
    expected = dict(zip(bars[BASE].close_us.tolist(), SET.compute(bars, BASE).values, strict=True))
    frames = feed(bars, 600, 600 + len(seen))[: len(seen)]
    mine = [one for one, here in zip(frames, seen, strict=True) if here]
    for message in published(service(stored(bars), sent=feed(bars)), mine):
        assert same(values_of([message])[0], expected[to_us(message.time)])


def test_the_store_is_asked_only_where_frames_do_not_follow() -> None:
    bars = market(5, 300, gap=0.0, missing=0.0)
    gapped = {BASE: bars[BASE].slice(0, 200), HIGHER: bars[HIGHER]}
    later = market(6, 100, gap=0.0, missing=0.0)[BASE]
    shift = bars[BASE].open_us[199] + 50 * Timeframe.H1.us - later.open_us[0]
    series: list[Series] = []
    for a in range(len(UNIVERSE.ids)):
        series.append(
            {
                "open_us": np.concatenate([gapped[BASE].open_us, later.open_us + shift]),
                **{
                    name: np.concatenate([getattr(gapped[BASE], name)[:, a], getattr(later, name)[:, a]])
                    for name in ("open", "high", "low", "close", "volume")
                },
            }
        )
    base = align(UNIVERSE.ids, BASE, series)
    bars = {BASE: base, HIGHER: resample(base, BASE, HIGHER)}
    store = stored(bars)
    preprocess = service(store, sent=feed(bars))
    published(preprocess, feed(bars, 0, 1))
    opening = store.reads
    published(preprocess, feed(bars, 1, 200))
    assert store.reads == opening
    published(preprocess, feed(bars, 200, 300))
    assert store.reads == opening, "a gap in the market costs a look at the frames alone"
    published(preprocess, feed(bars, 100, 150))
    assert store.reads == 2 * opening + 1, "the store is looked at for frames that it lacks"


def test_the_newest_features_go_online_once() -> None:
    bars = market(2, 40)
    features = CountingFeatureStore()
    preprocess = service(stored(bars), features)
    preprocess.before_commit({})
    assert features.online == []
    messages = published(preprocess, feed(bars, 0, 30))
    preprocess.before_commit({})
    preprocess.before_commit({})
    assert len(features.online) == 1
    published(preprocess, feed(bars, 10, 12))  # redelivery must not set the clock back
    preprocess.before_commit({})
    current = features.read_online(SET.id, "u", UNIVERSE.ids)
    assert current.time_us.tolist() == [to_us(messages[-1].time)]
    assert same(current.values, values_of(messages[-1:]))


def test_strategies_of_equal_features_share_them() -> None:
    bars = market(2, 10)
    assert len(published(service(stored(bars), strategies=("s", "same")), feed(bars))) == 10


def test_frames_of_other_universes_are_nobodys() -> None:
    bars = market(2, 3)
    foreign = [one.model_copy(update={"universe": "other"}) for one in feed(bars)]
    assert published(service(stored(bars)), foreign) == []


def test_a_correction_publishes_nothing_and_counts_from_then_on() -> None:
    bars = market(4, 60, gap=0.0, missing=0.0)
    store = stored(bars)
    preprocess = service(store)
    before = published(preprocess, feed(bars, 0, 50))
    close = bars[BASE].close.copy()
    close[48] *= 1.01
    corrected = replace(bars[BASE], close=close, high=close * 1.001)
    store.write(BASE, corrected.slice(48, 49), revision=1)
    assert published(preprocess, [frame(BASE, corrected, 48, revision=1)]) == []
    after = published(preprocess, feed(bars, 50, 52))
    assert same(values_of(before), SET.compute(bars, BASE).values[:50])
    expected = SET.compute({**bars, BASE: corrected}, BASE).values[50:52]
    assert same(values_of(after), expected)
    assert not same(expected, SET.compute(bars, BASE).values[50:52])


def lived(seed: int) -> tuple[CountingBarStore, list[BarFrame], dict[int, Floats]]:
    """A stretch of a live feed: what is stored at its end, the frames as they went out, and the features by close.

    Bars are wrong at first, or late, or their whole frame is, until they are stored as they are and announced. In its
    middle the feed rests, and what was missed is stored and never goes out.
    """
    rng, true = np.random.default_rng(seed), market(seed, 860, gap=0.01, missing=0.1)[BASE]
    close, present = true.close.copy(), true.present.copy()
    began, rest = 620, range(740, 760)
    wrong = [t for t in range(began, len(true)) if {t - 1, t, t + 1}.isdisjoint(rest) and rng.random() < 0.15]
    for t in wrong:
        kind = rng.integers(3)
        close[t] *= 1.001 if kind == 0 else 1.0
        present[t] &= (np.arange(len(UNIVERSE.ids)) == np.argmax(present[t])) & (kind < 2)
    store, sent, features = CountingBarStore(), list[BarFrame](), dict[int, Floats]()
    preprocess = service(store, sent=sent)

    def known(stop: int) -> BarArrays:
        bars = replace(true, close=close, high=np.maximum(true.high, close), present=present).slice(0, stop)
        return bars.frames(np.flatnonzero(bars.present.any(axis=1)))

    def send(*frames: BarFrame) -> None:
        for one in frames:
            sent.append(one)
            for message in published(preprocess, [one]):
                features[to_us(message.time)] = values_of([message])[0]

    def store_all(stop: int, closed_us: int, revision: int) -> BarArrays:
        bars = known(stop)
        store.write(
            BASE,
            bars if stop == began + 1 else bars.frames(np.flatnonzero(bars.open_us >= true.open_us[began])),
            revision,
        )
        higher = resample(known(stop), BASE, HIGHER, closed_us)
        store.write(HIGHER, higher, revision)
        return higher

    for t in range(began, len(true)):
        higher, close_us = store_all(t + 1, int(true.close_us[t]), 0), int(true.close_us[t])
        if t in rest or not present[t].any():
            continue
        for j in np.flatnonzero(higher.close_us <= close_us)[-4:]:
            if not any(one.timeframe is HIGHER and to_us(one.open_time) == higher.open_us[j] for one in sent):
                send(frame(HIGHER, higher, int(j)))
        row = len(known(t + 1)) - 1
        send(frame(BASE, known(t + 1), row).model_copy(update={"begins": t in (began, rest.stop)}))
        for late in [one for one in wrong if one < t and (rng.random() < 0.2 or t == rest.start - 1)]:
            wrong.remove(late)
            close[late], present[late] = true.close[late], true.present[late]
            revision = len(sent)  # whatever is stored now takes the place of what was
            higher = store_all(t + 1, close_us, revision)
            row = int(np.flatnonzero(known(t + 1).open_us == true.open_us[late])[0])
            send(frame(BASE, known(t + 1), row, revision))
            j = int(np.searchsorted(higher.close_us, true.close_us[late]))
            if j < len(higher) and higher.open_us[j] + HIGHER.us >= true.close_us[late]:
                send(frame(HIGHER, higher, j, revision))
    return store, sent, features


@pytest.mark.parametrize("seed", range(2))
def test_what_is_corrected_later_changes_nothing_of_what_is_handled_again(seed: int) -> None:
    """A process that died anywhere finds a store that is ahead of the frames that it handles."""
    store, sent, features = lived(seed)
    assert sum(one.revision > 0 for one in sent) > 10
    for start in range(0, len(sent), 11):
        for message in published(service(store, sent=sent), sent[start : start + 12]):
            assert same(values_of([message])[0], features[to_us(message.time)]), (start, message.time)


def test_a_store_that_is_away_leaves_no_trace() -> None:
    bars = market(3, 60)
    store = stored(bars)
    preprocess = service(store)
    frames = feed(bars)
    store.away = True
    with pytest.raises(BarStoreUnavailable):
        published(preprocess, frames[:1])
    with pytest.raises(BarStoreUnavailable):
        preprocess.not_ready()
    store.away = False
    assert not preprocess.not_ready()
    assert same(values_of(published(preprocess, frames)), SET.compute(bars, BASE).values)


def test_after_a_frame_without_volume_others_go_on() -> None:
    bars = market(3, 40, gap=0.0, missing=0.0)
    store = stored(bars)
    preprocess = service(store, strategies=("volume",))
    published(preprocess, feed(bars, 0, 30))
    broken = replace(bars[BASE], volume=np.full_like(bars[BASE].volume, np.nan))
    with pytest.raises(FeatureError, match="needs volume"):
        published(preprocess, [frame(BASE, broken, 30)])
    messages = published(preprocess, feed(bars, 30, 40))
    expected = STRATEGIES["volume"].feature_set.compute(bars, BASE).values[30:]
    assert same(np.array([message.values for message in messages], dtype=np.float64), expected)


BREAKS: list[int] = []
"""How often `fragile` still fails; empty for never."""


def fragile(close: Floats) -> Floats:
    if BREAKS and BREAKS.pop():
        raise ZeroDivisionError("of the author's own making")
    return close[..., -1]


STRATEGIES["fragile"] = Strategy("fragile", [windowed("last", fragile, 2, inputs=("close",))], Gain())


@pytest.mark.parametrize("failures", [1, 2, 40])
def test_features_that_fail_are_published_as_unknown_and_others_go_on(failures: int) -> None:
    """A failure that passes equals none; what fails for good costs its bar, and no other feature set."""
    bars = market(3, 40, gap=0.0, missing=0.0)
    whole = published(service(stored(bars), strategies=("fragile", "s")), feed(bars))
    preprocess = service(stored(bars), strategies=("fragile", "s"))
    with capture_logs():
        out = published(preprocess, feed(bars, 0, 30))
        BREAKS.extend([1] * failures)
        out += published(preprocess, feed(bars, 30, 31))
        BREAKS.clear()
        out += published(preprocess, feed(bars, 31, 40))
    own = STRATEGIES["fragile"].feature_set.id
    assert [one for one in out if one.feature_set != own] == [one for one in whole if one.feature_set != own]
    failed = [one for one in out if one.error]
    if failures == 1:
        assert out == whole
        return
    [lost] = failed
    assert lost.error == "ZeroDivisionError: of the author's own making"
    assert {value for row in lost.values for value in row} == {None}
    assert [one for one in out if not one.error] == [
        one for one in whole if (one.time, one.feature_set) != (lost.time, own)
    ]
    assert preprocess.tallies() == {("features_failed", "u"): 1}


def test_the_newest_stored_bar_is_online_before_another_frame_comes() -> None:
    """A service that was away, or an online store that was emptied; and not where there is nothing to do."""
    bars = market(3, 300)
    features, store = CountingFeatureStore(), stored(bars)
    preprocess = service(store, features)
    preprocess.assigned({}, lambda universe: universe == "other")
    assert not preprocess.busy(), "it is another process's universe"
    preprocess.assigned({}, lambda _: True)
    while preprocess.busy():
        assert not list(preprocess.advance())
    [rows] = features.online
    assert rows.time_us.tolist() == [int(bars[BASE].close_us[-1])]
    assert same(rows.values, SET.compute(bars, BASE).values[-1:])
    preprocess.assigned({}, lambda _: True)
    while preprocess.busy():
        list(preprocess.advance())
    assert len(features.online) == 1, "it is there"
    published(preprocess, feed(bars, 200, 201))
    preprocess.before_commit({})
    found = features.read_online(SET.id, "u", UNIVERSE.ids)
    assert found.time_us.tolist() == [int(bars[BASE].close_us[-1])], "an older bar is not current"


def test_an_online_store_that_is_read_has_a_bar_before_it_is_published() -> None:
    bars = market(3, 30)
    features, clock = CountingFeatureStore(), ManualClock(from_us(START_US) + timedelta(days=365))
    pairs = [(UNIVERSE, "s")]
    preprocess = Preprocess(pairs, STRATEGIES.__getitem__, stored(bars), features, clock, AllSent(()), True)
    for one in feed(bars):
        for computed in preprocess.handle(one, POSITION):
            assert isinstance(computed, FeaturesComputed)
            found = features.read_online(SET.id, "u", UNIVERSE.ids, to_us(computed.time))
            assert same(found.values, values_of([computed]))


def request(start_us: int, end_us: int, strategy: str = "s") -> PreprocessRequested:
    asked = TimeRange(start=from_us(start_us), end=from_us(end_us))
    return PreprocessRequested(request_id="r", universe=UNIVERSE, strategy=strategy, range=asked)


@given(st.integers(0, 2**32), st.integers(0, 899), st.integers(0, 899))
@settings(max_examples=30, deadline=None)
def test_a_range_gives_the_rows_of_all_history(seed: int, one: int, other: int) -> None:
    start, stop = min(one, other), max(one, other) + 1
    bars = market(seed, 900)
    whole, base = SET.compute(bars, BASE), bars[BASE]
    features = MemoryFeatureStore()
    asked = request(int(base.open_us[start]), int(base.open_us[stop - 1]) + 1)
    for _ in range(2):  # redelivery
        (completed,) = answered(service(stored(bars), features, strategies=()), asked)
        assert completed == PreprocessCompleted(
            request_id="r", universe=UNIVERSE, strategy="s", feature_set=SET.id, range=asked.range, rows=stop - start
        )
    written = features.read_offline(SET.id, "u", UNIVERSE.ids, base.close_us)
    assert written.names == SET.names
    assert np.isnan(written.values[:start]).all()
    assert same(written.values[start:stop], whole.values[start:stop])


def test_a_range_without_bars_is_refused() -> None:
    bars = market(2, 10)
    with pytest.raises(RequestFailed) as raised:
        answered(service(stored(bars)), request(0, START_US))
    assert isinstance(raised.value.__cause__, UserError)
    line = r"no 1m bars of u are stored from 1970-01-01T00:00:00\+00:00 to .*: backfill them first"
    assert re.fullmatch(line, str(raised.value.__cause__))


def test_a_column_that_no_stored_bar_has_is_refused_before_anything_is_written() -> None:
    bars, features = market(2, 10), MemoryFeatureStore()
    with pytest.raises(RequestFailed) as raised:
        answered(service(stored(bars), features), request(START_US, START_US + 100 * BASE.us, "moody"))
    line = "reads 'moodmean', which no 1m bar has here: did you mean mood_mean? they have open, high, low, close, "
    assert line in str(raised.value.__cause__)
    with pytest.raises(FeatureSetUnknown):
        features.read_offline(STRATEGIES["moody"].feature_set.id, "u", UNIVERSE.ids, bars[BASE].close_us)


def test_a_timeframe_that_the_universe_lacks_is_refused() -> None:
    store = stored(market(2, 10))
    message = "strategy hourly needs 1h bars, which universe u does not have: add 1h to its higher_timeframes"
    with pytest.raises(UserError, match=message):
        service(store, strategies=("hourly",))
    with pytest.raises(UserError, match=message):
        list(service(store).handle(request(START_US, START_US + 1, "hourly"), POSITION))


def test_an_instrument_that_the_universe_lacks_is_refused() -> None:
    store = stored(market(2, 10))
    message = "feature of_eth_log_return_1: ETH is not among the instruments of the universe; name one of x:A, x:B, x:C"
    with pytest.raises(UserError, match=message):
        service(store, strategies=("led",))
    with pytest.raises(UserError, match=message):
        list(service(store).handle(request(START_US, START_US + 1, "led"), POSITION))


def test_the_composed_service_runs_on_a_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite and Feast, through the run loop: a request is answered, frames become features, online as published."""
    bars = market(8, 200)
    monkeypatch.setattr("tradeloop.preprocess.main.load", STRATEGIES.__getitem__)
    books = tmp_path / "portfolios"
    books.mkdir()
    (books / "p.yaml").write_text(portfolio_yaml(Portfolio(name="p", universe=UNIVERSE, strategy="s")))
    monkeypatch.setenv("PREPROCESS_PORTFOLIO_FOLDER", str(books))
    monkeypatch.setenv("PREPROCESS_DATABASE_URL", f"sqlite:///{tmp_path}/bars.db")
    monkeypatch.setenv("PREPROCESS_FEATURE_ROOT", str(tmp_path / "features"))
    bus, clock = MemoryBus(), ManualClock(from_us(START_US) + timedelta(days=365))
    preprocess = build(Settings(), bus, clock)
    store = SqlBarStore(f"sqlite:///{tmp_path}/bars.db", clock)
    for timeframe, one in bars.items():
        store.write(timeframe, one)
    store.close()
    runner = Runner(preprocess, bus, clock)
    producer = bus.producer()
    asked = request(START_US, int(bars[BASE].close_us[-1]))
    producer.publish(topic_of(PreprocessRequested).name, "u", asked.encode(), {})
    for one_frame in feed(bars):
        producer.publish(topic_of(BarFrame).name, "u", one_frame.encode(), {})
    answers = bus.consumer("test", [topic_of(PreprocessCompleted).name, topic_of(FeaturesComputed).name])
    pump([runner])
    records = answers.poll(1000)
    completed = [r for r in records if r.topic == topic_of(PreprocessCompleted).name]
    assert [PreprocessCompleted.model_validate_json(r.value).rows for r in completed] == [200]
    computed = [FeaturesComputed.model_validate_json(r.value) for r in records if r not in completed]
    expected = SET.compute(bars, BASE).values
    assert same(values_of(computed), expected)
    runner.close()
    features = FeastFeatureStore(tmp_path / "features", clock)
    offline = features.read_offline(SET.id, "u", UNIVERSE.ids, bars[BASE].close_us)
    assert same(offline.values, expected)
    assert same(features.read_online(SET.id, "u", UNIVERSE.ids).values, expected[-1:])
    features.close()
