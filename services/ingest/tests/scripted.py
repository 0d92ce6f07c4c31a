"""A market source whose every event a test decides, and a stand that runs ingest on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np

from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.clock import ManualClock
from tradeloop.common.errors import UserError
from tradeloop.common.event_store.port import EventStore
from tradeloop.common.market import Bar, Instrument, Timeframe, Universe, from_us, to_us
from tradeloop.common.messages import BarFrame, Channel, LiveReported, LiveRequested, Message
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.readback import all_messages, of_kind, partition_of, records_of
from tradeloop.common.runtime.runner import Runner
from tradeloop.ingest.adapters.bus_frames import BusFrames
from tradeloop.ingest.adapters.files import read_blocks
from tradeloop.ingest.application import Ingest
from tradeloop.ingest.application.live import LivePolicy
from tradeloop.ingest.ports import (
    Connected,
    Disconnected,
    MarketEvent,
    MarketSource,
    Page,
    SourceUnavailable,
    StreamedBar,
)

START = datetime(2024, 1, 1, tzinfo=UTC)
START_US = to_us(START)
M1 = Timeframe.M1


def truth(instrument: str, minute: int) -> Bar:
    """The bar of an instrument that opens so many minutes after the start: a pure function."""
    chance = np.random.default_rng([minute + 10_000, *instrument.encode()])
    low, a, b, high = np.sort(chance.integers(1_000, 2_000, 4)).tolist()
    opened, close = (a, b) if minute % 2 else (b, a)
    return Bar(
        instrument=instrument, open=opened / 8, high=high / 8, low=low / 8, close=close / 8, volume=minute % 97 + 0.5
    )


def streamed(bar: Bar, open_us: int, received_us: int, closed: bool | None = True) -> StreamedBar:
    return StreamedBar(
        bar.instrument,
        M1,
        open_us,
        bar.open,
        bar.high,
        bar.low,
        bar.close,
        bar.volume,
        closed,
        received_us,
    )


class ScriptedSource:
    """A venue: its history is the truth up to its clock, its stream whatever a test puts."""

    def __init__(self, clock: ManualClock, venue: str = "x", ahead_s: float = 0.0) -> None:
        self.clock, self.venue, self.ahead_us = clock, venue, int(ahead_s * 1e6)
        self.events: list[MarketEvent] = []
        self.down = False
        self.without: set[tuple[str, int]] = set()
        """Bars, by instrument and minute, that do not exist."""
        self.corrected: dict[tuple[str, int], Bar] = {}
        self.lags_s = 0.0
        """How long the history takes to know a bar."""
        self.page_bars = 100
        self.asked = 0
        self.streams = 0
        self.fails: str = ""
        self.only_closed = False
        """Whether it promises closed bars alone."""
        self.start_us = START_US
        """When minute 0 opens."""

    def bar(self, instrument: str, minute: int) -> Bar | None:
        if (instrument, minute) in self.without:
            return None
        return self.corrected.get((instrument, minute)) or truth(instrument, minute)

    def instruments(self, symbols: Sequence[str]) -> Sequence[Instrument]:
        return [Instrument(id=f"{self.venue}:{symbol}") for symbol in symbols]

    def history(self, instrument: Instrument, timeframe: Timeframe, start_us: int, end_us: int) -> Iterator[Page]:
        assert timeframe is M1
        self.asked += 1
        if self.down:
            raise SourceUnavailable("maintenance")
        closed_us = self.time_us() - int(self.lags_s * 1e6) - M1.us + 1
        at_us, end_us = start_us, min(end_us, closed_us)
        while at_us < end_us:
            until_us = min(at_us + self.page_bars * M1.us, end_us)
            minutes = range(-(-(at_us - self.start_us) // M1.us), -(-(until_us - self.start_us) // M1.us))
            found = [(minute, bar) for minute in minutes if (bar := self.bar(instrument.id, minute)) is not None]
            columns = {
                name: np.array([getattr(bar, name) for _, bar in found], dtype=np.float64)
                for name in ("open", "high", "low", "close", "volume")
            }
            opens = np.array([self.start_us + minute * M1.us for minute, _ in found], dtype=np.int64)
            yield Page({"open_us": opens, **columns}, until_us)
            at_us = until_us

    def stream(
        self, instruments: Sequence[Instrument], timeframe: Timeframe, channels: frozenset[Channel]
    ) -> ScriptedSource:
        self.streams += 1
        self.events = [Connected(to_us(self.clock.now()), self.only_closed)]
        return self

    def poll(self, timeout_s: float) -> Sequence[MarketEvent]:
        if self.fails:
            raise UserError(self.fails)
        events, self.events = self.events, []
        return events

    def time_us(self) -> int:
        if self.down:
            raise SourceUnavailable("maintenance")
        return to_us(self.clock.now()) + self.ahead_us

    def close(self) -> None:
        """Nothing is held open."""

    def put(self, minute: int, *instruments: str, closed: bool | None = True, part: float = 1.0) -> None:
        """Stream a bar as it is after a part of its time: less than all of it has not traded everything."""
        now_us = to_us(self.clock.now())
        for name in instruments:
            bar = self.bar(name, minute)
            assert bar is not None
            assert bar.volume is not None
            if part < 1.0:
                middle = bar.open
                bar = bar.model_copy(
                    update={"high": middle, "low": middle, "close": middle, "volume": bar.volume * part}
                )
            self.events.append(streamed(bar, self.start_us + minute * M1.us, now_us, closed))

    def disconnect(self) -> None:
        self.events.append(Disconnected(to_us(self.clock.now()), "the peer is gone"))

    def connect(self) -> None:
        self.events.append(Connected(to_us(self.clock.now()), self.only_closed))


def universe(instruments: int = 1, higher: tuple[Timeframe, ...] = (), venue: str = "x") -> Universe:
    ids = tuple(Instrument(id=f"{venue}:{letter}") for letter in "ABCDEFGH"[:instruments])
    return Universe(name="u", instruments=ids, timeframe=M1, higher_timeframes=higher)


class Stand:
    """Ingest on a bus of its own, with a venue, and a clock that a test moves."""

    def __init__(
        self,
        of: Universe,
        policy: LivePolicy | None = None,
        store: BarStore | None = None,
        ahead_s: float = 0.0,
        events: EventStore | None = None,
    ) -> None:
        self.universe, self.policy, self.events = of, policy or LivePolicy(), events
        self.bus, self.clock = MemoryBus(), ManualClock(START)
        self.store = store or MemoryBarStore(self.clock)
        self.source = ScriptedSource(self.clock, ahead_s=ahead_s)
        self.start()

    def start(self) -> None:
        """A process that knows nothing of one before."""
        if members := self.bus._groups.get("ingest"):
            members.members.clear()
        self.ingest = Ingest(
            self.store,
            partial(read_blocks, block_bytes=2_000),
            BusFrames(self.bus),
            self.clock,
            open_source=self.open_source,
            live=self.policy,
            events=self.events,
            threaded=False,
        )
        run = RunPolicy(retry_delay_s=0.0, unavailable_delay_s=0.0, commit_interval_s=0.0, check_interval_s=0.0)
        self.runner = Runner(self.ingest, self.bus, self.clock, run)

    def open_source(self, venue: str) -> MarketSource:
        if venue != self.source.venue:
            raise UserError(f"no source of live data is configured for the venue {venue}")
        return self.source

    def send(self, *messages: Message) -> None:
        producer = self.bus.producer()
        for message in messages:
            publish(producer, message, "test")

    def ask(self, command: str = "start", request: str = "r", since: datetime | None = None) -> None:
        self.send(
            LiveRequested.model_validate(
                {
                    "request_id": request,
                    "universe": self.universe,
                    "command": command,
                    "time": self.clock.now(),
                    "since": since,
                }
            )
        )
        self.settle()

    def settle(self) -> None:
        """Step until nothing is left to do at once."""
        for _ in range(500):
            if not self.runner.step():
                return
        raise AssertionError("ingest does not come to rest")

    def until(self, minute: float, step_s: float = 5.0) -> None:
        """Let the clock come to a minute after the start, and ingest work meanwhile."""
        target = START + timedelta(minutes=minute)
        while self.clock.now() < target:
            self.clock.advance(min(step_s, (target - self.clock.now()).total_seconds()))
            self.settle()

    def published(self) -> list[BarFrame]:
        """Every frame in the order in which it went out, those that came again too."""
        records = records_of(self.bus, partition_of(self.bus, topic_of(BarFrame).name, self.universe.name))
        return list(of_kind(records, BarFrame))

    def frames(self, timeframe: Timeframe = M1) -> list[BarFrame]:
        """The first frames of a timeframe."""
        return [one for one in all_messages(self.bus, BarFrame) if one.timeframe is timeframe and not one.revision]

    def revisions(self, timeframe: Timeframe = M1) -> list[BarFrame]:
        return [one for one in all_messages(self.bus, BarFrame) if one.timeframe is timeframe and one.revision]

    def reports(self) -> list[tuple[str, str]]:
        return [(one.state, one.reason) for one in all_messages(self.bus, LiveReported)]

    def count(self, event: str) -> int:
        return self.ingest.tallies().get((event, self.universe.name), 0)

    def expected(self, minute: int) -> BarFrame:
        """The true frame of a minute."""
        found = {name: self.source.bar(name, minute) for name in self.universe.ids}
        open_time = from_us(START_US + minute * M1.us)
        return BarFrame(
            universe="u",
            timeframe=M1,
            open_time=open_time,
            close_time=open_time + M1.delta,
            bars=tuple(bar for bar in found.values() if bar is not None),
            missing=tuple(name for name, bar in found.items() if bar is None),
            live=True,
        )

    def stored(self, first: int, last: int) -> list[Bar]:
        """The stored bars of these minutes."""
        from tradeloop.ingest.domain import frames

        bars = self.store.read(self.universe.ids, M1, START_US + first * M1.us, START_US + last * M1.us)
        return [bar for one in frames("u", M1, bars) for bar in one.bars]


def plain(frame: BarFrame) -> BarFrame:
    """A frame without whether it came late, or first."""
    return frame.model_copy(update={"catches_up": False, "begins": False})
