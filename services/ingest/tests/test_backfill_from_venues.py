"""Backfills of a range from venues on a running ingest service: what is stored, recorded, published and refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic

import numpy as np
import pytest

from services.ingest.tests.scripted import M1, START, START_US, ScriptedSource, truth, universe
from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.clock import ManualClock
from tradeloop.common.market import EVER_US, Bar, Instrument, Timeframe, TimeRange, Universe, resample
from tradeloop.common.messages import BackfillCompleted, BackfillRequested, BarFrame, Message, ReplayRequested
from tradeloop.common.messages.topics import dead_letter_topic, topic_of
from tradeloop.common.runtime.headers import ERROR
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.readback import all_messages, all_records
from tradeloop.common.runtime.runner import Runner
from tradeloop.ingest.adapters.bus_frames import BusFrames
from tradeloop.ingest.adapters.files import read_blocks
from tradeloop.ingest.adapters.sql_fetched import SqlFetched
from tradeloop.ingest.application import Ingest
from tradeloop.ingest.application.fetch import ATTEMPTS
from tradeloop.ingest.ports import FetchedSpan

LENGTH = 5000
"""Minutes of a range: several answers, each of several pages."""


class Source(ScriptedSource):
    """It has terms of its instruments, or refuses to tell them."""

    def instruments(self, symbols: Sequence[str]) -> Sequence[Instrument]:
        if self.fails:
            raise ValueError(self.fails)
        return [Instrument(id=f"{self.venue}:{symbol}", calendar="sessions") for symbol in symbols]


class Stand:
    """Ingest with a venue x; a test moves the clock of both."""

    def __init__(self, folder: Path, *, threaded: bool = False) -> None:
        self.bus, self.clock = MemoryBus(), ManualClock(START + timedelta(minutes=LENGTH + 100))
        self.store = MemoryBarStore(self.clock)
        self.url, self.threaded = f"sqlite:///{folder}/fetched.db", threaded
        self.source = Source(self.clock)
        self.start()

    def start(self) -> None:
        def opened(venue: str) -> Source:
            assert venue == "x"
            return self.source

        self.fetched = SqlFetched(self.url, self.clock)
        self.ingest = Ingest(
            self.store,
            read_blocks,
            BusFrames(self.bus),
            self.clock,
            open_source=opened,
            fetched=self.fetched,
            threaded=self.threaded,
            window_frames=10_000,
        )
        policy = RunPolicy(retry_delay_s=0.0, unavailable_delay_s=0.0, commit_interval_s=0.0)
        self.runner = Runner(self.ingest, self.bus, self.clock, policy)

    def crash(self) -> None:
        del self.bus._groups["ingest"].members[:]
        self.start()

    def send(self, *messages: Message) -> None:
        producer = self.bus.producer()
        for message in messages:
            publish(producer, message, "test")

    def until(self, over: Callable[[], bool], steps: int = 5000) -> None:
        """Let the service work; time goes on where it waits."""
        for _ in range(steps):
            if over():
                return
            self.runner.step(0.0)
            if not self.ingest.busy():
                self.clock.advance(0.25)
        raise AssertionError("it does not end")

    def completed(self, request: BackfillRequested) -> BackfillCompleted:
        def found() -> list[BackfillCompleted]:
            every = all_messages(self.bus, BackfillCompleted)
            return [one for one in every if one.request_id == request.request_id]

        self.send(request)
        self.until(lambda: bool(found()))
        return found()[0]

    def refused(self, request: BackfillRequested) -> str:
        topic = dead_letter_topic(topic_of(BackfillRequested).name, "ingest")
        before = len(list(all_records(self.bus, topic)))
        self.send(request)
        self.until(lambda: len(list(all_records(self.bus, topic))) > before)
        return list(all_records(self.bus, topic))[-1].headers[ERROR]


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    stand = Stand(tmp_path)
    yield stand
    stand.runner.close()


def asked(of: Universe, first: int = 0, last: int = LENGTH, request_id: str = "b") -> BackfillRequested:
    span = TimeRange(start=START + timedelta(minutes=first), end=START + timedelta(minutes=last))
    return BackfillRequested(request_id=request_id, universe=of, range=span)


def assert_stored(stand: Stand, instrument: str, minutes: Sequence[int]) -> None:
    bars = stand.store.read([instrument], M1, -EVER_US, EVER_US)
    assert ((bars.open_us - START_US) // M1.us).tolist() == list(minutes)
    expected = [bar for minute in minutes if (bar := stand.source.bar(instrument, minute)) is not None]
    for name in ("open", "high", "low", "close", "volume"):
        assert getattr(bars, name)[:, 0].tolist() == [getattr(bar, name) for bar in expected], name


def test_a_range_is_stored_with_its_higher_bars_recorded_and_told(stand: Stand) -> None:
    of = universe(2, (Timeframe.H1,))
    stand.source.without = {("x:A", minute) for minute in range(700, 703)}
    done = stand.completed(asked(of))
    there = [minute for minute in range(LENGTH) if minute not in range(700, 703)]
    assert_stored(stand, "x:A", there)
    assert_stored(stand, "x:B", range(LENGTH))
    assert (done.bars, done.gaps, done.left_out, done.remarks) == (2 * LENGTH - 3, 1, 0, ())
    assert (done.range.start, done.range.end) == (START, START + timedelta(minutes=LENGTH))
    for name in of.ids:
        base = stand.store.read([name], M1, -EVER_US, EVER_US)
        hours = stand.store.read([name], Timeframe.H1, -EVER_US, EVER_US)
        expected = resample(base, M1, Timeframe.H1, int(base.close_us[-1]))
        assert len(hours) == LENGTH // 60
        assert np.array_equal(hours.close, expected.close)
        assert np.array_equal(hours.open_us, expected.open_us)
        end_us = START_US + LENGTH * M1.us
        assert list(stand.fetched.spans("x", name, M1)) == [FetchedSpan(START_US, end_us)]
        [(_, terms)] = stand.fetched.terms(name)
        assert terms.calendar == "sessions"


def test_only_what_is_missing_is_asked_for(stand: Stand) -> None:
    of = universe()
    stand.completed(asked(of, 1000, 2000, "first"))
    before = stand.source.asked
    done = stand.completed(asked(of, 1000, 2000, "again"))
    assert stand.source.asked == before
    assert done.bars == 1000
    done = stand.completed(asked(of, 0, 3000, "longer"))
    assert stand.source.asked == before + 2
    assert done.bars == 3000
    assert_stored(stand, "x:A", range(3000))


def test_a_range_ends_where_the_venue_is(stand: Stand) -> None:
    done = stand.completed(asked(universe(), 0, 10 * LENGTH))
    assert done.bars == LENGTH + 100
    assert done.range.end == START + timedelta(minutes=LENGTH + 100)


def test_a_crash_at_any_step_goes_on_and_answers_once_more(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    of = universe(2)
    stand.send(asked(of))
    for steps in (2, 5, 7, 11):
        for _ in range(steps):
            stand.runner.step(0.0)
        stand.crash()
    stand.until(lambda: bool(all_messages(stand.bus, BackfillCompleted)))
    for name in of.ids:
        assert_stored(stand, name, range(LENGTH))
    # An answer is of 2,000 bars, and a crash costs the one that was on its way.
    assert stand.source.asked <= 2 * 3 + 4
    stand.runner.close()


def test_a_bar_that_is_none_is_left_out_and_said(stand: Stand) -> None:
    stand.source.corrected = {
        ("x:A", minute): truth("x:A", minute).model_copy(update={"low": 0.0}) for minute in range(10, 17)
    }
    done = stand.completed(asked(universe(), 0, 100))
    assert (done.bars, done.left_out, len(done.remarks)) == (93, 7, 5)
    assert done.remarks[0] == "x:A: left out 2024-01-01T00:10:00+00:00: low 0.0 is no price"
    assert stand.completed(asked(universe(), 0, 100, "again")).left_out == 0


def test_what_went_out_otherwise_goes_out_in_its_next_revision(stand: Stand) -> None:
    of = universe()
    stand.completed(asked(of, 0, 100, "first"))
    span = TimeRange(start=START, end=START + timedelta(minutes=100))
    stand.send(ReplayRequested(request_id="r", universe=of, range=span))
    stand.until(lambda: len(all_messages(stand.bus, BarFrame)) == 100)
    bar = truth("x:A", 40)
    corrected = Bar(instrument="x:A", open=bar.open, high=bar.high, low=bar.low, close=bar.low, volume=bar.volume)
    stand.source.corrected = {("x:A", 40): corrected}
    stand.fetched = stand.ingest._fetched = SqlFetched(stand.url.replace("fetched.db", "other.db"), stand.clock)
    stand.completed(asked(of, 0, 100, "second"))
    [revised] = [frame for frame in all_messages(stand.bus, BarFrame) if frame.revision]
    assert revised.open_time == START + timedelta(minutes=40)
    assert revised.bars[0].close == bar.low


def test_a_venue_that_is_away_is_waited_for(stand: Stand) -> None:
    stand.source.down = True
    stand.send(asked(universe(), 0, 50))
    for _ in range(10):
        stand.runner.step(0.0)
    assert not stand.ingest.busy(), "it spins while it waits"
    assert stand.ingest.waiting()
    stand.source.down = False
    stand.until(lambda: bool(all_messages(stand.bus, BackfillCompleted)))
    assert_stored(stand, "x:A", range(50))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda stand: setattr(stand.source, "down", True), f"x did not answer in {ATTEMPTS} attempts: maintenance"),
        (lambda stand: setattr(stand.source, "fails", "x has no A"), "x has no A"),
    ],
)
def test_what_cannot_be_had_is_one_line_and_holds_up_nothing(
    stand: Stand, spoil: Callable[[Stand], None], said: str
) -> None:
    spoil(stand)
    error = stand.refused(asked(universe(), 0, 50))
    assert said in error
    assert "\n" not in error
    stand.source.down, stand.source.fails = False, ""
    assert stand.completed(asked(universe(), 0, 50, "again")).bars == 50


def test_requests_that_contradict_themselves_are_refused(stand: Stand) -> None:
    both = asked(universe()).model_copy(update={"files": {"x:A": "a.csv"}})
    assert "not both" in stand.refused(both)
    neither = both.model_copy(update={"files": {}, "range": None, "request_id": "neither"})
    assert "give one file for each of its instruments, see x:A" in stand.refused(neither)
    assert "give an earlier start" in stand.refused(asked(universe(), 10 * LENGTH, 11 * LENGTH, "future"))


def test_a_venue_is_asked_in_a_thread_of_its_own(tmp_path: Path) -> None:
    stand = Stand(tmp_path, threaded=True)
    stand.send(asked(universe(), 0, 500))

    deadline_s = monotonic() + 60
    while not all_messages(stand.bus, BackfillCompleted):
        assert monotonic() < deadline_s
        stand.runner.step(0.01)
    assert_stored(stand, "x:A", range(500))
    stand.runner.close()


def test_ranges_are_mended_whatever_was_fetched_and_go_out_again(stand: Stand) -> None:
    of = universe(1, (Timeframe.H1,))
    wrong = truth("x:A", 40).model_copy(update={"high": 900.0})
    stand.source.without = {("x:A", minute) for minute in range(70, 73)}
    stand.source.corrected = {("x:A", 40): wrong}
    stand.completed(asked(of, 0, 240, "first"))
    span = TimeRange(start=START, end=START + timedelta(minutes=240))
    stand.send(ReplayRequested(request_id="r", universe=of, range=span))
    stand.until(lambda: len(all_messages(stand.bus, BarFrame)) == 237 + 4)

    def mended(request_id: str, *minutes: tuple[int, int]) -> BackfillCompleted:
        ranges = [TimeRange(start=START + a * M1.delta, end=START + b * M1.delta) for a, b in minutes]
        request = asked(of, minutes[0][0], minutes[-1][1], request_id)
        return stand.completed(request.model_copy(update={"anew": {"x:A": tuple(ranges)}}))

    stand.source.without, stand.source.corrected = set(), {}
    done = mended("mend", (40, 41), (70, 73))
    assert done.remarks == (
        f"x:A, 2024-01-01 00:40:00: changed: high 900 becomes {truth('x:A', 40).high:.10g}",
        "x:A, 2024-01-01 01:10:00 to 2024-01-01 01:12:00: 3 bars added that were missing",
    )
    assert_stored(stand, "x:A", range(240))
    base = stand.store.read(of.ids, M1, -EVER_US, EVER_US)
    hours, expected = stand.store.read(of.ids, Timeframe.H1, -EVER_US, EVER_US), resample(base, M1, Timeframe.H1)
    assert np.array_equal(hours.high, expected.high)
    assert np.array_equal(hours.volume, expected.volume)
    revised = {(one.timeframe, one.open_time) for one in all_messages(stand.bus, BarFrame) if one.revision}
    hour = timedelta(hours=1)
    assert revised == {(M1, START + 40 * M1.delta), (Timeframe.H1, START), (Timeframe.H1, START + hour)}
    # Asked once more it changes nothing.
    again = mended("again", (40, 41), (70, 73))
    assert all(line.endswith("the source has it as it is stored") for line in again.remarks)
    assert len([one for one in all_messages(stand.bus, BarFrame) if one.revision]) == 3


def test_bars_that_do_not_fit_those_beside_them_are_not_taken(stand: Stand) -> None:
    of = universe()
    stand.source.without = {("x:A", minute) for minute in range(70, 73)}
    stand.completed(asked(of, 0, 240, "first"))
    stand.source.without = set()
    stand.source.corrected = {
        ("x:A", minute): truth("x:A", minute).model_copy(
            update={name: getattr(truth("x:A", minute), name) * 2 for name in ("open", "high", "low", "close")}
        )
        for minute in range(240)
    }
    span = TimeRange(start=START + 70 * M1.delta, end=START + 73 * M1.delta)
    request = asked(of, 70, 73, "mend").model_copy(update={"anew": {"x:A": (span,)}})
    [line] = stand.completed(request).remarks
    assert "left as it is: prices beside it differ by 100.00% from the source's" in line
    assert len(stand.store.read(of.ids, M1, -EVER_US, EVER_US)) == 237
    unknown = request.model_copy(update={"request_id": "unknown", "anew": {"x:B": (span,)}})
    assert "it lacks x:B, to be mended" in stand.refused(unknown)


def test_days_of_a_backfill_begin_where_the_market_has_them(tmp_path: Path) -> None:
    """Windows of the backfill end within days, and clocks change in them."""
    stand = Stand(tmp_path)
    begins = datetime(2024, 3, 4, tzinfo=UTC)
    stand.clock.advance((begins + timedelta(days=15) - stand.clock.now()) / timedelta(seconds=1))
    longer = (Timeframe.H4, Timeframe.D1, Timeframe.W1)
    of = universe(1, longer)
    fx = of.model_copy(update={"instruments": (Instrument(id="x:A", calendar="fx"),)})
    span = TimeRange(start=begins + timedelta(hours=30), end=begins + timedelta(days=14))
    stand.completed(BackfillRequested(request_id="later", universe=fx, range=span))
    # Earlier bars complete the day and the week with which those began.
    whole = span.model_copy(update={"start": begins})
    stand.completed(BackfillRequested(request_id="whole", universe=fx, range=whole))
    base = stand.store.read(["x:A"], M1, -EVER_US, EVER_US)
    assert len(base) == 14 * 24 * 60
    for timeframe in longer:
        expected = resample(base, M1, timeframe, days=fx.days)
        found = stand.store.read(["x:A"], timeframe, -EVER_US, EVER_US)
        assert found.open_us.tolist() == expected.open_us.tolist()
        for name in ("open", "high", "low", "close", "volume"):
            assert np.array_equal(getattr(found, name), getattr(expected, name)), (timeframe, name)
    stand.runner.close()
