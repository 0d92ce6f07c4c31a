"""Backfills and replays beside live work: how long who waits for whom, and what a crash costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import Partition, partition_for
from tradeloop.common.clock import ManualClock
from tradeloop.common.market import BarArrays, Instrument, Series, Timeframe, TimeRange, Universe, align, to_us
from tradeloop.common.messages import (
    BackfillCompleted,
    BackfillRequested,
    BarFrame,
    Message,
    PortfolioMarked,
    ReplayRequested,
)
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.pump import pump
from tradeloop.common.runtime.readback import all_messages
from tradeloop.common.runtime.runner import Runner
from tradeloop.ingest.adapters.bus_frames import BusFrames
from tradeloop.ingest.adapters.files import read_blocks
from tradeloop.ingest.application import Ingest
from tradeloop.ingest.domain import frames

START = datetime(2024, 1, 1, tzinfo=UTC)
M1 = Timeframe.M1
WINDOW = 256


def universe(name: str, instruments: int = 1, higher: tuple[Timeframe, ...] = ()) -> Universe:
    ids = tuple(Instrument(id=f"x:{letter}") for letter in "ABC"[:instruments])
    return Universe(name=name, instruments=ids, timeframe=M1, higher_timeframes=higher)


def walk(minutes: int, first: int = 0, seed: int = 1) -> Series:
    close = 100.0 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 1e-3, minutes)))
    open_us = to_us(START) + (first + np.arange(minutes, dtype=np.int64)) * M1.us
    prices = {"open": close, "high": close * 1.5, "low": close * 0.5, "close": close}
    return {"open_us": open_us, **prices, "volume": np.ones(minutes)}


def history(of: Universe, minutes: int) -> BarArrays:
    return align(of.ids, M1, [walk(minutes, seed=seed) for seed, _ in enumerate(of.ids)])


def csv(path: Path, bars: Series) -> str:
    rows = zip(*(column.tolist() for column in bars.values()), strict=True)
    path.write_text("\n".join([",".join(bars).replace("open_us", "ts"), *(",".join(map(repr, row)) for row in rows)]))
    return str(path)


def backfill(of: Universe, *files: str) -> BackfillRequested:
    return BackfillRequested(request_id="b", universe=of, files=dict(zip(of.ids, files, strict=True)))


def replay(of: Universe, minutes: int, first: int = 0) -> ReplayRequested:
    start = START + timedelta(minutes=first)
    return ReplayRequested(
        request_id="r", universe=of, range=TimeRange(start=start, end=start + timedelta(minutes=minutes))
    )


class Stand:
    """Ingest on a bus of its own, and a clock that is a year ahead of the bars."""

    def __init__(self, store: BarStore | None = None) -> None:
        self.bus, self.clock = MemoryBus(), ManualClock(START + timedelta(days=366))
        self.store = store or MemoryBarStore(self.clock)
        self.start()

    def start(self) -> None:
        """A process that knows nothing of one before."""
        if members := self.bus._groups.get("ingest"):
            members.members.clear()
        source, published = partial(read_blocks, block_bytes=2_000), BusFrames(self.bus)
        source, published = partial(read_blocks, block_bytes=2_000), BusFrames(self.bus)
        self.ingest = Ingest(self.store, source, published, self.clock, chunk_frames=64, window_frames=WINDOW)
        policy = RunPolicy(retry_delay_s=0.0, unavailable_delay_s=0.0, commit_interval_s=0.0)
        self.runner = Runner(self.ingest, self.bus, self.clock, policy)

    def send(self, *messages: Message) -> None:
        producer = self.bus.producer()
        for message in messages:
            publish(producer, message, "test")

    def frames(self, name: str) -> list[BarFrame]:
        return [frame for frame in all_messages(self.bus, BarFrame) if frame.universe == name]


def mark(frame: BarFrame, portfolio: str) -> PortfolioMarked:
    return PortfolioMarked(
        universe=frame.universe,
        portfolio=portfolio,
        time=frame.close_time,
        cash=1.0,
        equity=1.0,
        peak_equity=1.0,
        drawdown=0.0,
        state="active",
        positions=(),
    )


class Trader:
    """Whoever trades: takes the frames of a partition one by one, and marks those of the universes it knows."""

    def __init__(self, stand: Stand, name: str, portfolios: int = 1) -> None:
        self._stand, self._portfolios = stand, portfolios
        self._partition = Partition(topic_of(BarFrame).name, partition_for(name, 12))
        self._next = 0
        self.marked: list[str] = []

    def step(self) -> bool:
        records = self._stand.bus.read(self._partition, self._next, self._next + 1)
        for record in records:
            frame = BarFrame.model_validate_json(record.value)
            self._next += 1
            self.marked.append(frame.universe)
            for n in range(self._portfolios):
                self._stand.send(mark(frame, f"p{n}"))
        return bool(records)


def same_partition(name: str) -> str:
    return next(other for n in range(1000) if partition_for(other := f"live{n}", 12) == partition_for(name, 12))


def test_H4_a_live_bar_waits_for_a_window_of_a_replay() -> None:
    """20,000 replayed bars of one universe; in the middle, a bar of another one of the same partition closes."""
    stand, replayed = Stand(), universe("replayed")
    live = universe(same_partition("replayed"))
    stand.store.write(M1, history(replayed, 20_000))
    stand.send(replay(replayed, 20_000))
    trader = Trader(stand, "replayed", portfolios=2)
    while len(trader.marked) < 7_000:
        stand.runner.step()
        trader.step()
    (bar,) = frames(live.name, M1, history(live, 1))
    stand.send(bar)
    before = len(trader.marked)
    while live.name not in trader.marked:
        stand.runner.step()
        trader.step()
    assert len(trader.marked) - 1 - before <= WINDOW
    while stand.runner.step() or trader.step() or stand.runner.waiting:
        pass
    assert [frame.open_time for frame in stand.frames("replayed")] == [
        START + timedelta(minutes=n) for n in range(20_000)
    ]


def test_H4_a_replay_that_nobody_answers_goes_on_by_a_window_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    stand, alone = Stand(), universe("alone")
    stand.store.write(M1, history(alone, 1_000))
    stand.send(replay(alone, 1_000))
    seen = []
    for _ in range(6):
        for _ in range(20):
            stand.runner.step()
        seen.append(len(stand.frames("alone")))
        stand.clock.advance(1.0)
    assert seen == [256, 512, 768, 1_000, 1_000, 1_000]
    assert not stand.runner.waiting
    assert capsys.readouterr().out.count("nobody marks the frames of a replay") == 1


def test_H4_a_portfolio_that_stands_still_does_not_stop_a_replay_for_ever() -> None:
    stand, one = Stand(), universe("one")
    stand.store.write(M1, history(one, 3_000))
    stand.send(replay(one, 3_000))
    trader = Trader(stand, "one")
    stand.runner.step()
    stand.send(mark(stand.frames("one")[0], "stuck"))
    for _ in range(400):
        stand.runner.step()
        trader.step()
    assert len(stand.frames("one")) == WINDOW, "the slowest has marked less than a chunk"
    stand.clock.advance(1.0)
    while stand.runner.step() or trader.step() or stand.runner.waiting:
        pass
    assert len(stand.frames("one")) == 3_000


def test_H3_a_replayed_bar_waits_for_a_slice_of_a_backfill(tmp_path: Path) -> None:
    stand, live, batch = Stand(), universe("live"), universe("batch")
    stand.store.write(M1, history(live, 64 * 3))
    path = csv(tmp_path / "a.csv", walk(2_000))
    stand.send(backfill(batch, path))
    stand.runner.step()
    stand.send(replay(live, 64 * 3))
    for chunk in (1, 2, 3):
        stand.runner.step()
        assert len(stand.frames("live")) == 64 * chunk
    assert stand.ingest.busy()
    pump([stand.runner])
    assert [one.bars for one in all_messages(stand.bus, BackfillCompleted)] == [2_000]


class Counted(MemoryBarStore):
    """Counts the bars that are written."""

    written = 0

    def write(self, timeframe: Timeframe, bars: BarArrays, revision: int = 0) -> None:
        self.written += int(bars.present.sum())
        super().write(timeframe, bars, revision)


def test_H3_a_backfill_goes_on_after_a_crash_behind_what_is_stored(tmp_path: Path) -> None:
    store = Counted(ManualClock(START))
    stand, of = Stand(store), universe("u", 2, (Timeframe.M5, Timeframe.H1))
    files = [csv(tmp_path / f"{seed}.csv", walk(1_500, seed=seed)) for seed in (0, 1)]
    stand.send(backfill(of, *files))
    while store.written < 2_000:
        stand.runner.step()
    stand.start()
    pump([stand.runner])
    higher = 2 * (1_500 // 5 + 1_500 // 60)
    assert store.written == 3_000 + higher, "nothing was written twice"
    whole = Stand(Counted(ManualClock(START)))
    whole.send(backfill(of, *files))
    pump([whole.runner])
    assert all_messages(whole.bus, BackfillCompleted) == all_messages(stand.bus, BackfillCompleted)
    for timeframe in (M1, Timeframe.M5, Timeframe.H1):
        left, right = (one.store.read(of.ids, timeframe, 0, 2**62) for one in (stand, whole))
        assert left.close.tobytes() == right.close.tobytes()
        assert left.volume.tobytes() == right.volume.tobytes()


def test_H3_nothing_of_a_backfill_is_stored_before_all_files_are_checked(tmp_path: Path) -> None:
    store = Counted(ManualClock(START))
    stand, of = Stand(store), universe("u", 2)
    bad = walk(2_000, seed=1)
    bad["close"][1_999] = -1.0
    stand.send(backfill(of, csv(tmp_path / "a.csv", walk(2_000)), csv(tmp_path / "b.csv", bad)))
    pump([stand.runner])
    assert (stand.runner.counters.dead_letters, store.written) == (1, 0)


def test_H3_a_replay_that_is_asked_for_during_its_backfill_waits_for_it(tmp_path: Path) -> None:
    stand, of = Stand(), universe("u")
    stand.send(backfill(of, csv(tmp_path / "a.csv", walk(200))))
    stand.runner.step()
    stand.send(replay(of, 200))
    stand.runner.step()
    assert len(stand.ingest.pending()) == 2
    for _ in range(300):
        stand.runner.step()
    assert stand.runner.counters.retried == 0
    assert len(stand.frames("u")) == 200


@pytest.fixture
def corrected(tmp_path: Path) -> Callable[[Stand], None]:
    """Sends a file that corrects minutes 100 to 102 of two hundred."""

    def send(stand: Stand) -> None:
        bars = {name: column.copy() for name, column in walk(200, seed=0).items()}
        for name in ("open", "high", "low", "close"):
            bars[name][100:103] *= 1.01
        of = universe("u", higher=(Timeframe.M5,))
        stand.send(backfill(of, csv(tmp_path / "corrected.csv", bars)))

    return send


def published(stand: Stand) -> Universe:
    """A universe whose first 150 minutes of 200 went out."""
    of = universe("u", higher=(Timeframe.M5,))
    stand.store.write(M1, history(of, 200))
    stand.send(replay(of, 150))
    pump([stand.runner])
    return of


def test_M2_corrections_of_bars_that_went_out_go_out_as_revisions(corrected: Callable[[Stand], None]) -> None:
    stand = Stand()
    of = published(stand)
    before = len(stand.frames("u"))
    assert not any(frame.revision for frame in stand.frames("u"))
    corrected(stand)
    pump([stand.runner])
    revised = stand.frames("u")[before:]
    expected = [
        frame.model_copy(update={"revision": 1})
        for timeframe in (M1, Timeframe.M5)
        for frame in frames("u", timeframe, stand.store.read(of.ids, timeframe, 0, 2**62))
        if START + timedelta(minutes=100) <= frame.open_time < START + timedelta(minutes=103)
    ]
    assert sorted(revised, key=lambda frame: frame.identity) == sorted(expected, key=lambda frame: frame.identity)
    assert [frame.close_time for frame in revised] == sorted(frame.close_time for frame in revised)

    corrected(stand)
    pump([stand.runner])
    assert stand.frames("u")[before:] == revised, "what went out as it is stored is not corrected"


def test_M2_a_crash_before_corrections_are_announced_does_not_lose_them(corrected: Callable[[Stand], None]) -> None:
    whole, broken = Stand(), Stand()
    for stand in (whole, broken):
        published(stand)
        corrected(stand)
    pump([whole.runner])
    first = float(broken.store.read(["x:A"], M1, to_us(START), to_us(START) + 200 * M1.us).close[100, 0])
    while broken.store.read(["x:A"], M1, to_us(START), to_us(START) + 200 * M1.us).close[100, 0] == first:
        broken.runner.step()
    assert not any(frame.revision for frame in broken.frames("u"))
    broken.start()
    pump([broken.runner])
    assert broken.frames("u") == whole.frames("u")


def test_M8_a_file_of_the_future_is_refused(tmp_path: Path) -> None:
    stand, of = Stand(), universe("u")
    ahead = walk(20, first=366 * 24 * 60 - 10)
    stand.send(backfill(of, csv(tmp_path / "a.csv", ahead)))
    pump([stand.runner])
    assert stand.runner.counters.dead_letters == 1
    soon = replace(history(of, 1), open_us=np.array([to_us(stand.clock.now())]))
    (frame,) = frames("u", M1, replace(soon, close_us=soon.open_us + M1.us))
    frame.check(stand.clock)
