"""Batches beside live frames, corrections, and frames that must not be computed on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bar_store.port import BarStoreUnavailable
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import LogPosition, Partition
from tradeloop.common.clock import ManualClock
from tradeloop.common.errors import Unavailable, UserError
from tradeloop.common.feature_store.memory import MemoryFeatureStore
from tradeloop.common.feature_store.port import Covered, FeatureRows
from tradeloop.common.features import cross_rank, log_return, on, relative, talib
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
from tradeloop.common.messages.topics import dead_letter_topic, topic_of
from tradeloop.common.runtime.headers import ERROR
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.pump import pump
from tradeloop.common.runtime.readback import all_messages
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.strategy import Strategy
from tradeloop.common.strategy.rewards import RewardContext, reward
from tradeloop.preprocess.adapters.bus_sent import BusSent
from tradeloop.preprocess.application import Preprocess

M1, H1 = Timeframe.M1, Timeframe.H1
START_US = to_us(datetime(2024, 1, 1, tzinfo=UTC))
UNIVERSE = Universe(
    name="u",
    instruments=(Instrument(id="x:A"), Instrument(id="x:B")),
    timeframe=M1,
    higher_timeframes=(H1,),
)


@reward(version="1")
class Gain:
    def __call__(self, c: RewardContext) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return np.log(c.equity / c.equity_prev)


STRATEGY = Strategy(
    "s", [relative(talib("EMA", timeperiod=20)), on("1h", log_return(1)), cross_rank(log_return(3))], Gain(), window=1
)
SET = STRATEGY.feature_set


def walk(frames: int, *, gap: range = range(0)) -> BarArrays:
    series: list[Series] = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        kept = np.array([n not in gap and (seed == 0 or rng.random() > 0.2) for n in range(frames)])
        close = 100.0 * np.exp(np.cumsum(rng.normal(0, 1e-3, frames)))[kept]
        open_us = (START_US + np.arange(frames, dtype=np.int64) * M1.us)[kept]
        prices = {"open": close, "high": close * 1.001, "low": close * 0.999, "close": close}
        series.append({"open_us": open_us, **prices, "volume": np.ones(len(close))})
    return align(UNIVERSE.ids, M1, series)


def frame(bars: BarArrays, t: int, revision: int = 0) -> BarFrame:
    present = [(a, one) for a, one in enumerate(bars.instruments) if bars.present[t, a]]
    names = ("open", "high", "low", "close", "volume")
    return BarFrame(
        universe="u",
        timeframe=M1,
        open_time=from_us(bars.open_us[t]),
        close_time=from_us(bars.close_us[t]),
        bars=tuple(
            Bar.model_validate({"instrument": one} | {n: float(getattr(bars, n)[t, a]) for n in names})
            for a, one in present
        ),
        missing=tuple(one for a, one in enumerate(bars.instruments) if not bars.present[t, a]),
        revision=revision,
    )


def request(first: int, last: int) -> PreprocessRequested:
    start = from_us(START_US)
    span = TimeRange(start=start + timedelta(minutes=first), end=start + timedelta(minutes=last))
    return PreprocessRequested(request_id="r", universe=UNIVERSE, strategy="s", range=span)


class Flaky(MemoryBarStore):
    """Away whenever it is told so."""

    away = 0

    def read_before(
        self,
        instruments: Sequence[str],
        timeframe: Timeframe,
        end_us: int,
        frames: int,
        *,
        as_known_us: int = EVER_US,
    ) -> BarArrays:
        if self.away:
            self.away -= 1
            raise BarStoreUnavailable("away")
        return super().read_before(instruments, timeframe, end_us, frames, as_known_us=as_known_us)


class Parts(MemoryFeatureStore):
    """Remembers how many rows came at once."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[int] = []

    def write_offline(self, feature_set: str, universe: str, rows: FeatureRows, covers: Covered | None = None) -> None:
        self.parts.append(len(rows.time_us) * len(rows.instruments))
        super().write_offline(feature_set, universe, rows, covers)


class Stand:
    """Preprocess on a bus of its own."""

    def __init__(self, bars: BarArrays) -> None:
        self.bus, self.clock = MemoryBus(), ManualClock(from_us(START_US) + timedelta(days=400))
        self.store, self.features = Flaky(self.clock), Parts()
        self.store.write(M1, bars)
        self.store.write(H1, resample(bars, M1, H1))
        self.start()

    def start(self) -> None:
        """A process that knows nothing of one before."""
        if members := self.bus._groups.get("preprocess"):
            members.members.clear()
        self.preprocess = Preprocess(
            [(UNIVERSE, "s")], lambda _: STRATEGY, self.store, self.features, self.clock, BusSent(self.bus, self.clock)
        )
        policy = RunPolicy(retry_delay_s=0.0, unavailable_delay_s=0.0, commit_interval_s=0.0)
        self.runner = Runner(self.preprocess, self.bus, self.clock, policy)

    def send(self, *messages: Message) -> None:
        producer = self.bus.producer()
        for message in messages:
            publish(producer, message, "test")

    def letters(self) -> Iterator[str]:
        for kind in (BarFrame, PreprocessRequested):
            topic = dead_letter_topic(topic_of(kind).name, "preprocess")
            for partition, end in self.bus.end_offsets(topic).items():
                yield from (record.headers[ERROR] for record in self.bus.read(partition, 0, end))


def values(messages: Iterable[FeaturesComputed]) -> list[list[float]]:
    return [[math.nan if v is None else v for row in one.values for v in row] for one in messages]


def test_H3_a_live_frame_waits_for_one_slice_of_a_batch() -> None:
    bars = walk(10_000)
    stand = Stand(bars)
    stand.send(request(0, 9_000))
    stand.runner.step()
    for t in range(9_000, 9_003):
        stand.send(frame(bars, t))
        stand.runner.step()
        assert len(all_messages(stand.bus, FeaturesComputed)) == t - 8_999
    assert stand.preprocess.busy()
    pump([stand.runner])
    (completed,) = all_messages(stand.bus, PreprocessCompleted)
    assert completed.rows == 9_000


@pytest.mark.parametrize("gap", [range(0), range(1_900, 14_000)])
def test_H3_parts_of_a_range_are_the_whole_to_the_bit(gap: range) -> None:
    bars = walk(50_000, gap=gap)
    stand = Stand(bars)
    stand.send(request(0, 50_000))
    for turn in range(3):  # a store that is away now and then
        for _ in range(7):
            stand.runner.step()
        stand.store.away = turn
    pump([stand.runner])
    (completed,) = all_messages(stand.bus, PreprocessCompleted)
    assert completed.rows == len(bars)
    expected = SET.compute({M1: bars, H1: resample(bars, M1, H1)}, M1).values
    found = stand.features.read_offline(SET.id, "u", UNIVERSE.ids, bars.close_us).values
    assert found.tobytes() == expected.tobytes()
    assert len(stand.features.parts) > 2
    assert max(stand.features.parts) <= 32_768


def test_H3_a_gap_of_decades_is_passed_over() -> None:
    stand = Stand(walk(3_000))
    ages = PreprocessRequested(
        request_id="r",
        universe=UNIVERSE,
        strategy="s",
        range=TimeRange(start=datetime(1970, 1, 1, tzinfo=UTC), end=datetime(2070, 1, 1, tzinfo=UTC)),
    )
    stand.send(ages)
    steps = 0
    while stand.runner.step():
        steps += 1
        assert steps < 60
    (completed,) = all_messages(stand.bus, PreprocessCompleted)
    assert completed.rows == 3_000


def test_H3_a_crash_within_a_batch_brings_it_again() -> None:
    stand = Stand(walk(9_000))
    stand.send(request(0, 9_000))
    for _ in range(5):
        stand.runner.step()
    assert len(list(stand.preprocess.pending())) == 1
    stand.start()
    pump([stand.runner])
    assert [one.rows for one in all_messages(stand.bus, PreprocessCompleted)] == [9_000]


def test_H3_a_store_that_is_away_costs_no_slice() -> None:
    stand = Stand(walk(3_000))
    (handled,) = [stand.preprocess.handle(request(0, 3_000), LogPosition(Partition("p", 0), 0))]
    assert not list(handled)
    away, messages = 0, list[Message]()
    while stand.preprocess.busy():
        stand.store.away = 1 if away < 2 else 0
        try:
            messages += stand.preprocess.advance()
        except Unavailable:
            away += 1
    assert away == 2
    assert [one.rows for one in messages if isinstance(one, PreprocessCompleted)] == [3_000]


def corrected_world(*, crash: bool, announced: bool) -> list[list[float]]:
    """Features of 400 frames, in whose middle three stored bars are corrected, and maybe a process dies."""
    bars = walk(400)
    stand = Stand(bars.slice(0, 1))
    for t in range(len(bars)):
        stand.store.write(M1, bars.slice(t, t + 1))
        if t == 300:
            fixed = bars.slice(295, 298)
            for name in ("open", "high", "low", "close"):
                getattr(fixed, name)[:] *= 1.01
            stand.store.write(M1, fixed, 1)
            if announced:
                stand.send(*(frame(fixed, n, revision=1) for n in range(3)))
        if t == 303 and crash:
            stand.runner.commit()
            stand.start()
        stand.send(frame(bars, t))
        stand.runner.step()
    found = all_messages(stand.bus, FeaturesComputed)
    assert len(found) == len(bars)
    return values(found)


def test_M2_after_a_correction_a_running_and_a_restarted_process_compute_the_same() -> None:
    running, restarted = (corrected_world(crash=crash, announced=True) for crash in (False, True))
    np.testing.assert_array_equal(running, restarted)
    silent = corrected_world(crash=False, announced=False)
    assert not np.array_equal(silent, restarted, equal_nan=True), "it must matter"


def test_M8_a_frame_that_has_not_come_yet_is_refused() -> None:
    bars = walk(20)
    stand = Stand(bars)
    ahead = frame(bars, 10)
    century = timedelta(days=36_525)
    ahead = ahead.model_copy(update={"open_time": ahead.open_time + century, "close_time": ahead.close_time + century})
    crooked = frame(bars, 11).model_copy(update={"open_time": frame(bars, 11).open_time + timedelta(seconds=1)})
    stand.send(frame(bars, 9), ahead, crooked, frame(bars, 12))
    pump([stand.runner])
    letters = sorted(stand.letters())
    assert len(letters) == 2
    assert letters[0].startswith("the 1m frame of u from 2024-01-01T00:11:01+00:00 to 2024-01-01T00:12:00+00:00 is no")
    assert letters[1].startswith("the 1m frame of u is of 2124-01-02T00:10:00+00:00, and it is 2025-02-04T00:00:00")
    assert [one.time for one in all_messages(stand.bus, FeaturesComputed)] == [
        frame(bars, t).close_time for t in (9, 12)
    ]


def test_M13_a_store_that_lacks_frames_that_went_out_is_not_computed_on() -> None:
    bars = walk(700)
    stand = Stand(bars)
    stand.send(*(frame(bars, t) for t in range(600, 620)))
    pump([stand.runner])
    stand.runner.commit()
    before = len(all_messages(stand.bus, FeaturesComputed))

    stand.store = Flaky(stand.clock)  # restored from a backup of ten minutes ago
    stand.store.write(M1, bars.slice(0, 610))
    stand.start()
    stand.send(frame(bars, 620))
    pump([stand.runner])
    (letter,) = stand.letters()
    assert letter == (
        "bars of u went out until 2024-01-01T10:19:00+00:00, but the stored ones end at 2024-01-01T10:09:00+00:00: "
        "backfill what is missing, then `tradeloop dlq replay`"
    )
    assert len(all_messages(stand.bus, FeaturesComputed)) == before

    stand.store.write(M1, bars)
    stand.store.write(H1, resample(bars, M1, H1))
    stand.send(frame(bars, 621))
    pump([stand.runner])
    last = all_messages(stand.bus, FeaturesComputed)[-1]
    expected = SET.compute({M1: bars, H1: resample(bars, M1, H1)}, M1).values[621]
    np.testing.assert_array_equal(values([last])[0], expected.ravel())


def test_M13_a_replay_of_earlier_frames_is_no_hole() -> None:
    bars = walk(700)
    stand = Stand(bars)
    stand.send(*(frame(bars, t) for t in range(600, 620)), *(frame(bars, t) for t in range(300, 310)))
    pump([stand.runner])
    assert list(stand.letters()) == []
    with pytest.raises(UserError, match="the 1m frame of u"):
        frame(bars, 0).model_copy(update={"open_time": from_us(1)}).check(stand.clock)
