"""Live feeds on a scripted venue: closed means closed, no hole, nothing twice, whatever happens when."""

from __future__ import annotations

from collections import deque
from datetime import timedelta

import numpy as np
import pytest

from services.ingest.tests.scripted import M1, START, START_US, ScriptedSource, Stand, plain, streamed, truth, universe
from tradeloop.common.clock import ManualClock
from tradeloop.common.market import Instrument, Membership, Timeframe, to_us
from tradeloop.common.messages import BarFrame
from tradeloop.ingest.application.live import LivePolicy
from tradeloop.ingest.application.live.history import Answer, Asker, Question
from tradeloop.ingest.application.live.line import Line, Manner


def run_minutes(stand: Stand, first: int, last: int, *instruments: str) -> None:
    """Minutes in which everything comes as it should: updates, then the closed bar just after its close."""
    names = instruments or stand.universe.ids
    for minute in range(first, last):
        for second in range(8, 60, 8):
            stand.until(minute + second / 60)
            stand.source.put(minute, *names, closed=False, part=second / 60)
            stand.settle()
        stand.until(minute + 1)
        stand.clock.advance(0.05)
        stand.source.put(minute, *names)
        stand.settle()


def is_true(stand: Stand, first: int, last: int) -> None:
    """The frames of these minutes went out as the source has them, each once and in order; stored, too."""
    assert [plain(one) for one in stand.frames()] == [stand.expected(minute) for minute in range(first, last)]
    assert stand.stored(first, last) == [bar for minute in range(first, last) for bar in stand.expected(minute).bars]


def test_bars_that_close_go_out_at_once() -> None:
    stand = Stand(universe(2))
    stand.ask()
    assert stand.reports() == [("started", "")]
    run_minutes(stand, 0, 3)
    stand.until(3.5)
    is_true(stand, 0, 3)
    assert not any(one.catches_up for one in stand.frames())
    assert all(one.live for one in stand.frames())
    assert stand.count("bar_mismatched") == 0


def test_a_closed_flag_on_an_unfinished_bar_is_not_believed() -> None:
    """A candle that is called closed at half its time, and the true one never comes through the stream."""
    stand = Stand(universe())
    stand.ask()
    run_minutes(stand, 0, 2)
    stand.until(2.5)
    stand.source.put(2, "x:A", closed=True, part=0.5)
    stand.settle()
    assert len(stand.frames()) == 2
    stand.until(3.5)
    is_true(stand, 0, 3)
    assert stand.count("bar_doubted") > 0


def test_an_unfinished_bar_that_the_venue_closes_in_time_after_a_stall_is_not_believed() -> None:
    """The socket stalls inside a bar and resumes with its close, without what was traded meanwhile."""
    stand = Stand(universe())
    stand.ask()
    run_minutes(stand, 0, 3)
    for part in (0.1, 0.2):
        stand.until(3 + part)
        stand.source.put(3, "x:A", closed=False, part=part)
    stand.until(4, step_s=10.0)
    stand.clock.advance(0.05)
    stand.source.put(3, "x:A", closed=True, part=0.2)
    stand.settle()
    assert len(stand.frames()) == 3, "it is in doubt"
    stand.until(4.5)
    is_true(stand, 0, 4)
    assert stand.count("bar_mismatched") == 1, "the venue said otherwise than its history"


def test_bars_that_no_flag_closes_are_confirmed() -> None:
    stand = Stand(universe())
    stand.ask()
    for minute in range(6):
        for part in (0.3, 0.6):
            stand.until(minute + part)
            stand.source.put(minute, "x:A", closed=None, part=part)
    stand.until(6.2)
    is_true(stand, 0, 6)


def test_heartbeats_without_bars_are_noticed_and_filled() -> None:
    """The connection lives, and nothing comes through it."""
    stand = Stand(universe(2))
    stand.ask()
    run_minutes(stand, 0, 2)
    run_minutes(stand, 2, 6, "x:B")  # nothing of A
    stand.until(7.9)  # and then nothing of either
    is_true(stand, 0, 7)
    assert stand.count("bar_filled") >= 5
    assert stand.count("bar_missing") == 0


def test_a_frame_waits_no_longer_than_grace_and_names_what_is_missing() -> None:
    stand = Stand(universe(2))
    stand.ask()
    run_minutes(stand, 0, 2)
    stand.source.down = True
    run_minutes(stand, 2, 3, "x:A")
    stand.until(3 + 9 / 60)
    assert len(stand.frames()) == 2
    stand.until(3 + 11 / 60)
    frame = stand.frames()[-1]
    assert ([bar.instrument for bar in frame.bars], frame.missing) == (["x:A"], ("x:B",))
    assert (stand.count("bar_missing"), stand.count("history_unavailable") > 0) == (1, True)
    stand.source.down = False
    stand.until(5)
    (late,) = [one for one in stand.revisions() if one.open_time == frame.open_time]
    assert plain(late) == stand.expected(2).model_copy(update={"revision": 1})
    assert stand.stored(0, 4) == [bar for minute in range(4) for bar in stand.expected(minute).bars]


def test_what_is_no_member_holds_up_no_frame_and_is_not_missing() -> None:
    stays = Membership(start=START - timedelta(days=1), end=START + timedelta(minutes=3))
    members = {"x:A": (Membership(start=stays.start),), "x:B": (stays,)}
    stand = Stand(universe(2).model_copy(update={"members": members}))
    stand.ask()
    run_minutes(stand, 0, 3)
    stand.source.down = True
    run_minutes(stand, 3, 4, "x:A")
    told = [([bar.instrument for bar in one.bars], one.missing, one.outside) for one in stand.frames()]
    # At the close of the third minute it has just left; it may have a bar there nevertheless.
    assert told == [(["x:A", "x:B"], (), ())] * 2 + [(["x:A", "x:B"], (), ("x:B",)), (["x:A"], (), ("x:B",))]
    assert stand.count("bar_missing") == 0


def test_after_a_reconnection_the_hole_is_filled_before_live_bars_go_on() -> None:
    stand = Stand(universe(2))
    stand.ask()
    run_minutes(stand, 0, 3)
    stand.until(3.4)
    stand.source.disconnect()
    stand.source.down = True
    stand.until(3.5)
    trouble = next(iter(stand.ingest.feeds()))
    assert not trouble.connected
    stand.until(20.3)
    assert stand.count("feed_stale") == 1
    assert next(iter(stand.ingest.feeds())).stale_since is not None
    assert len(stand.frames()) == 3
    stand.source.down = False
    stand.source.connect()
    stand.settle()
    stand.until(21)
    run_minutes(stand, 21, 23)
    is_true(stand, 0, 23)
    late = [one.open_time for one in stand.frames() if one.catches_up]
    assert late == [START + timedelta(minutes=n) for n in range(3, 19)], "nobody trades at the prices of then"
    assert next(iter(stand.ingest.feeds())).stale_since is None


def test_a_bar_that_no_one_stored_before_a_restart_is_found_after_it() -> None:
    """The frame went out without the only bar of an instrument; then the process was killed."""
    stand = Stand(universe(2))
    stand.ask()
    stand.source.without = {("x:B", 0)}
    run_minutes(stand, 0, 1, "x:A")
    stand.until(1.5)
    assert [one.missing for one in stand.frames()] == [("x:B",)]
    stand.start()
    stand.source.without = set()
    stand.until(5)
    (late,) = [one for one in stand.revisions() if one.open_time == START]
    assert plain(late) == stand.expected(0).model_copy(update={"revision": 1})


@pytest.mark.parametrize(("promised", "most"), [(True, 2 * 8), (False, 3 * 8)])
def test_bars_that_come_once_each_are_asked_for_only_where_something_speaks_against_them(
    promised: bool, most: int
) -> None:
    """A stream of closed bars alone, promised or not: its silence in between is no reason to ask."""
    stand = Stand(universe(8), LivePolicy(check_share=0.0))
    stand.source.only_closed = promised
    stand.ask()
    stand.until(0.5)
    for minute in range(40):
        stand.until(minute + 1)
        stand.clock.advance(0.05)
        stand.source.put(minute, *stand.universe.ids)
        stand.settle()
        if minute == 20:
            assert stand.count("history_asked") == stand.source.asked <= most
    stand.source.disconnect()
    stand.source.connect()
    stand.until(41.5)
    assert most < stand.source.asked <= most + 2 * 8, "a reconnection speaks against them"
    is_true(stand, 0, 41)
    assert stand.count("bar_missing") == 0


def test_missing_bars_are_asked_for_in_a_stream_of_closed_ones() -> None:
    """Four of five are missing, while the connection lives."""
    stand = Stand(universe(2), LivePolicy(check_share=0.0))
    stand.source.only_closed = True
    stand.ask()
    for minute in range(30):
        stand.until(minute + 1)
        stand.clock.advance(0.05)
        for place, name in enumerate(stand.universe.ids):
            if minute % 5 == place:
                stand.source.put(minute, name)
        stand.settle()
    stand.until(30.5)
    is_true(stand, 0, 30)
    assert stand.count("bar_filled") >= 2 * 24
    assert stand.count("bar_missing") == 0


@pytest.mark.parametrize("ahead_s", [-600.0, 600.0, 30.0])
def test_the_venues_clock_says_what_is_closed(ahead_s: float) -> None:
    stand = Stand(universe(), ahead_s=ahead_s)
    stand.ask()
    assert next(iter(stand.ingest.feeds())).clock_offset_s == ahead_s
    stand.until(12)
    frames = stand.frames()
    assert frames
    first = int((frames[0].open_time - START) / timedelta(minutes=1))
    assert [plain(one) for one in frames] == [stand.expected(first + n) for n in range(len(frames))]
    venue = stand.clock.now() + timedelta(seconds=ahead_s)
    assert venue - timedelta(minutes=1, seconds=15) < frames[-1].close_time <= venue


def test_what_was_corrected_goes_out_as_a_revision() -> None:
    stand = Stand(universe(2, (Timeframe.M5,)))
    stand.ask()
    run_minutes(stand, 0, 12)
    other = truth("x:A", 3).model_copy(update={"volume": 1_000.0})
    stand.source.corrected["x:A", 3] = other
    stand.source.put(3, "x:A")
    stand.settle()
    stand.until(14)
    (revised,) = stand.revisions()
    assert revised == stand.expected(3).model_copy(update={"revision": 1})
    (longer,) = stand.revisions(Timeframe.M5)
    assert longer.open_time == START
    assert sum(bar.volume or 0.0 for bar in longer.bars) == sum(
        bar.volume or 0.0 for minute in range(5) for bar in stand.expected(minute).bars
    )


def test_what_the_history_has_otherwise_is_found_by_itself() -> None:
    """A lie that nothing speaks against: only the sampling shows it."""
    stand = Stand(universe())
    stand.ask()
    run_minutes(stand, 0, 2)
    told = truth("x:A", 2)
    stand.source.corrected["x:A", 2] = told.model_copy(update={"volume": 1.0})
    run_minutes(stand, 2, 3)
    stand.source.corrected.clear()
    stand.until(5)
    assert stand.frames()[2].bars[0].volume == 1.0
    (revised,) = stand.revisions()
    assert revised.bars == (told,)
    assert stand.count("bar_mismatched") == 1
    assert stand.stored(2, 3) == [told]


def test_the_seam_has_no_hole_and_no_bar_twice() -> None:
    """Bars of a history are stored up to 40 minutes ago: the hole is filled, and live frames begin where they close."""
    stand = Stand(universe(2, (Timeframe.M5,)))
    stand.until(60)
    stand.ask()
    stand.source.put(59, "x:A", "x:B")
    run_minutes(stand, 60, 63)
    is_true(stand, 60, 63)
    stand.ask("stop", "s")
    stand.until(100)
    stand.ask("start", "again")
    run_minutes(stand, 100, 103)
    assert stand.reports() == [("started", ""), ("stopped", ""), ("started", "")]
    is_true(stand, 60, 103)
    fives = stand.frames(Timeframe.M5)
    assert [one.open_time for one in fives] == [START + timedelta(minutes=n) for n in range(60, 100, 5)]


def test_since_says_where_frames_begin() -> None:
    stand = Stand(universe())
    stand.until(30)
    stand.ask(since=START + timedelta(minutes=10))
    stand.until(31.2)
    is_true(stand, 10, 31)


def test_what_no_reconnection_heals_stops_one_feed_visibly() -> None:
    stand = Stand(universe())
    stand.source.fails = "x: the key may not read this: give one that may"
    stand.ask()
    assert stand.reports() == [("started", ""), ("failed", stand.source.fails)] or stand.reports() == [
        ("failed", stand.source.fails)
    ]
    (standing,) = stand.ingest.feeds()
    assert (standing.failed, standing.trouble) == (True, f"given up: {stand.source.fails}")
    assert stand.count("feed_failed") == 1
    stand.source.fails = ""
    stand.ask(request="again")
    run_minutes(stand, 0, 1)
    stand.until(1.2)
    is_true(stand, 0, 1)


def test_a_venue_without_a_source_is_refused() -> None:
    stand = Stand(universe(venue="nowhere"))
    stand.ask()
    assert stand.reports() == [("failed", "no source of live data is configured for the venue nowhere")]


@pytest.mark.parametrize("command", ["start", "stop"])
def test_the_newest_request_holds_after_a_restart(command: str) -> None:
    stand = Stand(universe())
    stand.ask("start", "a")
    run_minutes(stand, 0, 2)
    if command == "stop":
        stand.ask("stop", "b")
    stand.start()
    stand.settle()
    stand.until(4.2)
    assert len(stand.frames()) == (4 if command == "start" else 2)


@pytest.mark.parametrize("seed", range(6))
def test_a_kill_anywhere_loses_nothing_and_doubles_nothing(seed: int) -> None:
    """Killed at random moments, between storing and publishing too: the frames equal those of an uninterrupted run."""
    chance = np.random.default_rng(seed)
    stand = Stand(universe(2, (Timeframe.M5,)))
    stand.ask()
    for minute in range(20):
        for part in (0.3, 0.6, 1.001):
            stand.until(minute + part)
            stand.source.put(minute, *stand.universe.ids, closed=part > 1, part=min(part, 1.0))
            if chance.random() < 0.3:
                steps = int(chance.integers(4))
                for _ in range(steps):
                    stand.runner.step()
                if chance.random() < 0.5:
                    for _ in zip(range(int(chance.integers(4))), stand.ingest.advance(), strict=False):
                        pass  # what it had stored, and never published
                stand.start()
            stand.settle()
    stand.until(20.5)
    assert len(stand.frames()) == 20
    is_true(stand, 0, 20)
    fives = stand.frames(Timeframe.M5)
    assert [one.open_time for one in fives] == [START + timedelta(minutes=n) for n in range(0, 20, 5)]
    assert not stand.revisions()
    by_identity: dict[str, BarFrame] = {}
    for one in stand.published():
        assert by_identity.setdefault(one.identity, one) == one


@pytest.mark.parametrize("promised", [True, False])
def test_bars_that_close_while_a_history_is_slow_are_kept_and_it_is_not_asked_again(promised: bool) -> None:
    """Many instruments, and each waits fifty bars long for its turn."""
    length = M1.us
    pace = LivePolicy(fill_s=3600.0).pace(M1)
    manner = Manner()
    manner.begins(promised)
    lines = [Line(Instrument(id=f"x:{n}"), M1, pace, manner, START_US - length, 0, START_US) for n in range(20)]
    for line in lines:
        line.interrupted(START_US, begins=True)
        assert line.asks(START_US, START_US, None) == (START_US - length, START_US - length + 1)
    for minute in range(50):
        at_us = START_US + (minute + 1) * length
        for line in lines:
            name = line.instrument.id
            assert line.take(streamed(truth(name, minute), at_us - length, at_us, True), at_us, at_us)
            assert line.holds_up(at_us - length, at_us + length - 1), "its frame waits for the first answer"
    now_us = START_US + 50 * length
    for line in lines:
        name = line.instrument.id
        line.settle(
            {START_US + n * length: truth(name, n) for n in range(-1, 25)},
            START_US - length,
            START_US + 25 * length,
            now_us,
        )
    for line in lines[1:]:
        assert sorted(line.closed) == [START_US + n * length for n in range(-1, 50)]
        assert line.asks(now_us, START_US, None) is None


def test_a_question_that_had_to_wait_is_for_what_closed_meanwhile_too() -> None:
    clock = ManualClock(START + timedelta(minutes=10))
    source = ScriptedSource(clock)
    asker = Asker(source, lambda: to_us(clock.now()), threaded=False)
    answers: deque[Answer] = deque()
    put_us = to_us(clock.now())
    clock.advance(180.0)
    asker.ask(Question("settle", answers, "x", Instrument(id="x:A"), M1, START_US, START_US + 9 * M1.us + 1, put_us))
    asker.ask(Question("check", answers, "x", Instrument(id="x:A"), M1, START_US, START_US + 9 * M1.us + 1, put_us))
    assert [one.bars is not None and len(one.bars["open_us"]) for one in answers] == [13, 10]
