"""Events of instruments through ingest: what frames say, what goes out when, and what nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from services.ingest.tests.scripted import M1, START, START_US, ScriptedSource, Stand, truth, universe
from services.ingest.tests.test_backfill_from_venues import Stand as Backfills
from services.ingest.tests.test_live import run_minutes
from tradeloop.common.market import Bar, Instrument, InstrumentEvent, Timeframe, TimeRange, Universe, from_us, to_us
from tradeloop.common.messages import BackfillRequested, BarFrame, Channel, InstrumentChanged, ReplayRequested
from tradeloop.common.messages.topics import event_id
from tradeloop.common.runtime.readback import all_messages

MINUTE_US = 60_000_000


def event(kind: str, minute: float, **more: object) -> InstrumentEvent:
    return InstrumentEvent.model_validate({"time": START + timedelta(minutes=minute), "kind": kind, **more})


def with_events(of: Universe, **events: tuple[InstrumentEvent, ...]) -> Universe:
    return of.model_copy(update={"events": {f"x:{letter}": ones for letter, ones in events.items()}})


def told(stand: Stand) -> list[tuple[str, str]]:
    """The events that went out, each once: what comes again is the same message."""
    found = {event_id(one): one for one in all_messages(stand.bus, InstrumentChanged)}
    return [(one.instrument, one.event.kind) for one in found.values()]


def state(frame: BarFrame) -> tuple[tuple[str, ...], tuple[str, ...], list[str]]:
    return frame.halted, frame.shut, [one.instrument for one in frame.delisted]


def test_a_halted_instrument_holds_up_no_live_frame_and_lacks_no_bar() -> None:
    """The history is away, so that a bar that is due would be waited for until its grace ends."""
    stand = Stand(with_events(universe(2), B=(event("halt", 2.5), event("resume", 5))))
    stand.source.without = {("x:B", minute) for minute in (3, 4)}
    stand.ask()
    run_minutes(stand, 0, 3)
    stand.source.down = True
    run_minutes(stand, 3, 5, "x:A")
    assert [len(one.bars) for one in stand.frames()] == [2, 2, 2, 1, 1]
    assert [state(one) for one in stand.frames()] == [
        ((), (), []),
        ((), (), []),
        (("x:B",), (), []),
        (("x:B",), ("x:B",), []),
        ((), ("x:B",), []),
    ]
    assert all(not one.missing and one.outside is None for one in stand.frames())
    stand.source.down = False
    run_minutes(stand, 5, 7)
    assert [state(one) for one in stand.frames()][5:] == [((), (), [])] * 2
    assert stand.count("bar_missing") == 0
    assert told(stand) == [("x:B", "halt"), ("x:B", "resume")]
    assert (stand.count("instrument_halt"), stand.count("instrument_resume")) == (1, 1)


def test_silence_in_a_halt_is_no_stale_feed() -> None:
    """Where all that trades is halted nothing closes, and nothing is overdue; without the halt it is."""
    for events, stale in (((event("halt", 2.5), event("resume", 30)),), 0), ((), 1):
        stand = Stand(with_events(universe(), A=events[0]) if events else universe())
        stand.ask()
        run_minutes(stand, 0, 2)
        stand.source.without = {("x:A", minute) for minute in range(2, 20)}
        stand.source.down = True
        stand.until(20)
        assert stand.count("feed_stale") == stale


def test_events_go_out_once_before_their_frame_whatever_restarts() -> None:
    events = (event("halt", 1.5), event("resume", 2.5), event("delisting", 4, proceeds=0.5))
    stand = Stand(with_events(universe(2), B=events))
    stand.source.without = {("x:B", minute) for minute in range(4, 20)}
    stand.ask()
    run_minutes(stand, 0, 3)
    stand.start()
    stand.settle()
    run_minutes(stand, 3, 4)
    run_minutes(stand, 4, 6, "x:A")
    assert told(stand) == [("x:B", "halt"), ("x:B", "resume"), ("x:B", "delisting")]
    assert len(list(all_messages(stand.bus, InstrumentChanged))) == 3, "a restart between frames repeats none"
    last = stand.frames()[-1]
    assert (state(last)[2], last.outside, last.missing) == (["x:B"], ("x:B",), ())
    assert [one.outside for one in stand.frames()][:3] == [()] * 3


def test_a_replay_tells_what_live_told_and_first_what_is_still_in_force() -> None:
    events = (
        event("rename", -50, symbol_before="OLD", symbol="B"),
        event("halt", -40),
        event("resume", -30),
        event("halt", 1.5),
        event("resume", 4),
    )
    stand = Stand(with_events(universe(2), B=events))
    stand.source.without = {("x:B", minute) for minute in (2, 3)}
    stand.ask()
    run_minutes(stand, 0, 2)
    run_minutes(stand, 2, 4, "x:A")
    run_minutes(stand, 4, 6)
    assert told(stand) == [("x:B", "rename"), ("x:B", "halt"), ("x:B", "resume")]
    live = stand.frames()
    replay = Stand(stand.universe, store=stand.store)
    span = TimeRange(start=from_us(START_US), end=from_us(START_US + 6 * MINUTE_US))
    replay.send(ReplayRequested(request_id="again", universe=stand.universe, range=span))
    replay.clock.advance(3600.0)
    replay.settle()
    as_live = [one.model_copy(update={"live": True, "begins": False}) for one in replay.frames()]
    assert as_live == [one.model_copy(update={"begins": False, "catches_up": False}) for one in live]
    assert told(replay) == told(stand)
    assert replay.count("instrument_halt") == 1
    late = Stand(stand.universe, store=stand.store)
    span = TimeRange(start=from_us(START_US + 3 * MINUTE_US), end=span.end)
    late.send(ReplayRequested(request_id="late", universe=stand.universe, range=span))
    late.clock.advance(3600.0)
    late.settle()
    assert told(late) == [("x:B", "rename"), ("x:B", "halt"), ("x:B", "resume")], "it is halted at its first open"
    assert to_us(late.frames()[0].open_time) == START_US + 3 * MINUTE_US


class Renamed(ScriptedSource):
    """A venue that calls an instrument x:OLD until a minute, and x:A from then on, and knows no other symbol."""

    renamed = 3
    called: tuple[tuple[str, ...], ...] = ()
    """The instruments of each stream."""

    def bar(self, instrument: str, minute: int) -> Bar | None:
        return super().bar(instrument, minute) if (instrument == "x:OLD") is (minute < self.renamed) else None

    def stream(
        self, instruments: Sequence[Instrument], timeframe: Timeframe, channels: frozenset[Channel]
    ) -> ScriptedSource:
        self.called = (*self.called, tuple(one.id for one in instruments))
        return super().stream(instruments, timeframe, channels)


def rename(minute: float) -> InstrumentEvent:
    return event("rename", minute, symbol_before="OLD", symbol="A")


def test_a_live_feed_follows_a_new_symbol() -> None:
    """Nothing is lost or doubled where the one stream ends and the other begins."""
    stand = Stand(with_events(universe(), A=(rename(3),)))
    stand.source = Renamed(stand.clock)
    stand.start()
    stand.ask()
    run_minutes(stand, 0, 3, "x:OLD")
    stand.until(3.1)
    run_minutes(stand, 3, 6, "x:A")
    stand.until(6.5)
    told_bars = [one.bars for one in stand.frames()]
    expected = [truth("x:OLD" if minute < 3 else "x:A", minute) for minute in range(6)]
    assert told_bars == [(bar.model_copy(update={"instrument": "x:A"}),) for bar in expected]
    assert stand.source.called == (("x:OLD",), ("x:A",))
    assert stand.count("bar_mismatched") == stand.count("stream_stray") == 0
    assert told(stand) == [("x:A", "rename")]


def test_a_backfill_asks_for_each_part_under_the_symbol_of_then(tmp_path: Path) -> None:
    stand = Backfills(tmp_path)
    source = Renamed(stand.clock)
    source.renamed = 150  # within a page
    stand.source = source  # type: ignore[assignment]
    stand.start()
    own = with_events(universe(), A=(rename(150),))
    span = TimeRange(start=from_us(START_US), end=from_us(START_US + 400 * M1.us))
    done = stand.completed(BackfillRequested(request_id="b", universe=own, range=span))
    assert (done.bars, done.gaps, done.left_out) == (400, 0, 0)
    stored = stand.store.read(["x:A"], M1, START_US, START_US + 400 * M1.us)
    closes = [truth("x:OLD" if minute < 150 else "x:A", minute).close for minute in range(400)]
    assert stored.close[:, 0].tolist() == closes
    asked = source.asked
    stand.completed(BackfillRequested(request_id="again", universe=own, range=span))
    assert source.asked == asked, "a second one fetches nothing"
