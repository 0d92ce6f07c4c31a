"""`LiveUniverse`: the live feed of one universe, from its streams onto the bus."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from zlib import crc32

import structlog

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.clock import Clock
from tradeloop.common.errors import Unavailable, UserError
from tradeloop.common.market import EVER_US, from_us, to_us
from tradeloop.common.messages import LiveRequested, Message
from tradeloop.common.runtime.standing import FeedStanding
from tradeloop.ingest.application.live.assembler import Assembler
from tradeloop.ingest.application.live.flows import Flows
from tradeloop.ingest.application.live.history import Answer, Asks, Purpose, Question
from tradeloop.ingest.application.live.line import Line, Manner
from tradeloop.ingest.application.live.outlet import Outlet, bars_in, bars_of
from tradeloop.ingest.application.live.policy import LivePolicy
from tradeloop.ingest.domain import Facts
from tradeloop.ingest.ports import (
    Connected,
    Disconnected,
    Malformed,
    MarketEvent,
    MarketSource,
    MarketStream,
    Published,
    StreamedBar,
)

log = structlog.get_logger(__name__)

_CLOCK_EVERY_S = 60.0
_OVERLAP_BARS = 64
"""Bars that each comparison with the history looks at once more: venues correct what is some minutes old, and what they
say of it on their stream may be lost."""
_FRAMES_AT_ONCE = 64


@dataclass
class Venue:
    """A source, and who asks it; shared by all universes of the venue."""

    source: MarketSource
    asker: Asks


@dataclass
class _Stream:
    """A venue as one universe sees it."""

    venue: Venue
    stream: MarketStream | None = None
    connected: bool = False
    offset_us: int | None = None
    """How far its clock is ahead of this machine's; None until that was measured."""
    clock_due_s: float = 0.0
    clock_asked: bool = False
    manner: Manner = field(default_factory=Manner)


@dataclass
class _Asking:
    """The questions of one line to its history."""

    open: set[Purpose] = field(default_factory=set)
    failed: int = 0
    """Answers in a row that brought nothing."""
    settle_due_s: float = 0.0
    check_due_s: float = 0.0
    first_us: int = 0
    """No bar that opens before it is compared with the history."""
    checked_us: int = 0
    """Stored bars that open before it were."""
    checks: int = 0


class LiveUniverse:
    """The feed of one universe: all that it knows is in the store, on the bus, or asked again."""

    def __init__(
        self,
        request: LiveRequested,
        venues: Mapping[str, Venue],
        flows: Flows,
        store: BarStore,
        published: Published,
        clock: Clock,
        policy: LivePolicy,
        count: Callable[[str, int], None],
    ) -> None:
        """`count` counts events. Nothing is opened yet."""
        self.request, self._universe, self._base = request, request.universe, request.universe.timeframe
        self._facts = Facts(request.universe)
        self._store, self._clock, self._policy, self._pace = store, clock, policy, policy.pace(self._base)
        self._check_every_s = max(policy.check_every_s, float(self._base.seconds))
        self._count = count
        self._published = published
        self._streams = {name: _Stream(venue) for name, venue in venues.items()}
        self._answers: deque[Answer] = deque()
        self._asking = {name: _Asking() for name in self._universe.ids}
        self._assembler: Assembler | None = None
        self._outlet = Outlet(request.universe, store, published, count)
        self._flows = flows
        self._stale_us: int | None = None
        self._trouble = ""
        self.busy = False
        """Whether the last step found more to do."""

    @property
    def begun(self) -> bool:
        """Whether its streams are open."""
        return self._assembler is not None

    def step(self) -> Iterator[Message]:
        """Hear, ask, store, publish. What is not consumed, or raises on its way out, comes again.

        Raises `Unavailable` with unchanged state, `UserError` for what no waiting heals.
        """
        yield from self._outlet.send()
        self._learn()
        self._ask_clocks()
        if any(one.offset_us is None for one in self._streams.values()):
            return
        assembler = self._assembler or self._begin()
        # What is not heard by then may be asked for; what came while this process was busy is heard in the next step.
        heard_us = {venue: self._now_us(venue) for venue in self._streams}
        heard = self._hear(assembler)
        self._count("frame_revised", self._outlet.correct())
        sent = self._release(assembler)
        self._ask(assembler, heard_us)
        self._watch(assembler, heard_us)
        self.busy = heard or sent or bool(self._answers)
        yield from self._outlet.send()
        yield from self._flows.send()

    def standing(self) -> FeedStanding:
        """How it goes, for all to see."""
        offsets = [one.offset_us / 1e6 for one in self._streams.values() if one.offset_us is not None]
        newest_us = self._outlet.newest_us
        return FeedStanding(
            universe=self._universe.name,
            connected=self.begun and all(one.connected for one in self._streams.values()),
            published=None if newest_us is None else from_us(newest_us + self._base.us),
            stale_since=None if self._stale_us is None else from_us(self._stale_us),
            clock_offset_s=max(offsets, key=abs, default=0.0),
            cause=self._trouble,
        )

    def close(self) -> None:
        """End the streams."""
        for one in self._streams.values():
            if one.stream is not None:
                try:
                    one.stream.close()
                except Exception as error:  # noqa: BLE001  nothing depends on it
                    log.warning("a stream was not closed", universe=self._universe.name, error=str(error))
                one.stream = None

    def _now_us(self, venue: str) -> int:
        """The venue's clock."""
        return to_us(self._clock.now()) + (self._streams[venue].offset_us or 0)

    def _begin(self) -> Assembler:
        """See how far the frames and the bars are, and open the streams."""
        universe, base_us = self._universe, self._base.us
        now = {venue: self._now_us(venue) for venue in self._streams}
        newest_us = self._outlet.begin()
        next_us = to_us(self.request.time) - base_us + 1 if newest_us is None else newest_us + 1
        if self.request.since is not None and (newest_us is None or to_us(self.request.since) > newest_us):
            next_us = to_us(self.request.since)
            self._outlet.begin_at(next_us)
        elif newest_us is None:
            self._outlet.begin_at(next_us)
        lines: list[Line] = []
        for instrument in universe.instruments:
            venue_us = now[instrument.id.partition(":")[0]]
            last = self._store.read_before([instrument.id], self._base, EVER_US, 1)
            last_us = int(last.open_us[-1]) if len(last) else None
            start_us = next_us if last_us is None else min(next_us, last_us + base_us)
            if (bars := (venue_us - start_us) // base_us) > self._policy.fill_bars:
                raise UserError(
                    f"the live feed of {universe.name}: {bars:,} bars of {instrument.id} are missing since "
                    f"{from_us(start_us).isoformat()}, and a feed fills {self._policy.fill_bars:,} at most: backfill "
                    "them, then start it again"
                )
            phase_us = 0 if last_us is None else last_us % base_us
            manner = self._streams[instrument.id.partition(":")[0]].manner
            lines.append(Line(instrument, self._base, self._pace, manner, start_us, phase_us, venue_us))
            before = self._store.read([instrument.id], self._base, start_us - _OVERLAP_BARS * base_us, start_us)
            # Frames may have gone out without a bar that nobody has stored since.
            out_us = start_us if newest_us is None else max(self._outlet.first_us, start_us - _OVERLAP_BARS * base_us)
            stored_us = int(before.open_us[0]) if len(before) else start_us
            asking = self._asking[instrument.id]
            asking.first_us = asking.checked_us = min(stored_us, out_us)
            # Spread, so that not all are asked for at once, now and ever after.
            asking.check_due_s = self._clock.monotonic() + self._check_every_s * len(lines) / (len(universe.ids) + 1)
        assembler = Assembler(self._base, lines, next_us, self._pace.flow_us if self._flows else 0, self._facts)
        stored = bars_in(self._store.read(universe.ids, self._base, next_us, EVER_US))
        for name, bars_by_open in stored.items():
            for open_us, bar in bars_by_open.items():
                assembler.lines[name].offer(open_us, bar)
            assembler.collect(assembler.lines[name])
        for venue, one in self._streams.items():
            mine = [each for each in universe.instruments if each.id.partition(":")[0] == venue]
            one.stream = one.venue.source.stream(mine, self._base, frozenset(self.request.channels))
        self._assembler = assembler
        log.info("live", universe=universe.name, request=self.request.request_id, from_=from_us(next_us).isoformat())
        return assembler

    def _hear(self, assembler: Assembler) -> bool:
        """Take in what the streams brought. Raises `UserError`."""
        heard = False
        for venue, one in self._streams.items():
            if one.stream is None:
                continue
            for event in one.stream.poll(0.0):
                heard = True
                self._take(assembler, venue, one, event)
        return heard

    def _take(self, assembler: Assembler, venue: str, one: _Stream, event: MarketEvent) -> None:
        now_us, universe = self._now_us(venue), self._universe.name
        is_asked_for = self._flows.take(venue, event, one.offset_us or 0)
        if isinstance(event, StreamedBar):
            line = assembler.lines.get(event.instrument)
            if line is None or event.timeframe is not self._base:
                self._count("stream_stray", 1)
                return
            heard_us = event.received_us + (one.offset_us or 0)
            doubts = line.doubts
            if not line.take(event, now_us, heard_us):
                self._count("stream_malformed", 1)
                log.warning("no bar can be so", universe=universe, bar=str(event))
            self._count("bar_doubted", line.doubts - doubts)
            assembler.collect(line)
        elif isinstance(event, Connected | Disconnected):
            one.connected = isinstance(event, Connected)
            if isinstance(event, Connected):
                one.manner.begins(event.only_closed)
            for line in assembler.lines.values():
                if line.venue == venue:
                    line.interrupted(event.time_us + (one.offset_us or 0), begins=one.connected)
                    self._asking[line.instrument.id].settle_due_s = 0.0
            if isinstance(event, Disconnected):
                self._count("stream_interrupted", 1)
                log.warning("the stream is interrupted", universe=universe, venue=venue, reason=event.reason)
            else:
                log.info("the stream is there", universe=universe, venue=venue)
        elif isinstance(event, Malformed):
            self._count("stream_malformed", 1)
            log.warning("a frame of the stream cannot be read", universe=universe, venue=venue, reason=event.reason)
            for line in assembler.lines.values():
                if line.venue == venue:
                    line.interrupted(event.time_us + (one.offset_us or 0))
        elif not is_asked_for:
            self._count("stream_stray", 1)

    def _learn(self) -> None:
        """Take in the answers. Raises what is the fault of no outage."""
        while self._answers:
            answer = self._answers[0]
            question = answer.question
            if answer.error is not None and not isinstance(answer.error, Unavailable):
                self._answers.popleft()
                raise answer.error
            if question.instrument is None:
                self._set_clock(self._streams[question.venue], answer)
            elif self._assembler is not None:
                self._learn_bars(self._assembler, self._assembler.lines[question.instrument.id], answer)
            self._answers.popleft()

    def _set_clock(self, one: _Stream, answer: Answer) -> None:
        one.clock_asked, one.clock_due_s = False, self._clock.monotonic() + _CLOCK_EVERY_S
        if answer.error is None:
            one.offset_us = answer.offset_us
            self._trouble = ""
            return
        self._unavailable(answer)
        one.clock_due_s = self._clock.monotonic() + self._policy.retry_s

    def _learn_bars(self, assembler: Assembler, line: Line, answer: Answer) -> None:
        question, name = answer.question, line.instrument.id
        asking = self._asking[name]
        asking.open.discard(question.purpose)
        now_us, now_s = self._now_us(line.venue), self._clock.monotonic()
        if answer.error is not None:
            self._unavailable(answer)
            asking.failed += 1
            wait_s = getattr(answer.error, "retry_after_s", None) or self._pause_s(name, asking.failed)
            asking.settle_due_s = asking.check_due_s = now_s + wait_s
            return
        self._trouble = ""
        bars, unsound = ({}, 0) if answer.bars is None else bars_of(name, answer.bars)
        if unsound:
            self._count("history_unsound", unsound)
            log.error("the history has bars that cannot be so", universe=self._universe.name, instrument=name)
        if question.purpose == "check":
            until_us = min(answer.until_us, question.end_us)
            bars = {open_us: bar for open_us, bar in bars.items() if open_us < until_us}
            self._count("bar_mismatched", self._outlet.compare(name, bars))
            asking.checked_us = max(asking.checked_us, until_us)
            asking.failed = 0
            return
        disagreed, filled = line.disagreed, line.filled
        news = line.settle(bars, question.start_us, answer.until_us, now_us)
        self._count("bar_mismatched", line.disagreed - disagreed)
        self._count("bar_filled", line.filled - filled)
        asking.failed = 0 if news else asking.failed + 1
        asking.settle_due_s = 0.0 if news else now_s + self._pause_s(name, asking.failed)
        assembler.collect(line)

    def _unavailable(self, answer: Answer) -> None:
        self._count("history_unavailable", 1)
        if not self._trouble:
            log.warning("the history is away", universe=self._universe.name, error=str(answer.error))
        self._trouble = f"{answer.question.venue}: {answer.error}"

    def _release(self, assembler: Assembler) -> bool:
        """Let the frames out that may go. Whether there were any."""
        length_us = self._base.us
        if assembler.late:
            self._outlet.late((at, self._flows.extended(bar, at, at + length_us)) for at, bar in assembler.late)
            assembler.late.clear()
            self._count("frame_revised", self._outlet.correct())
        now = {venue: self._now_us(venue) for venue in self._streams}
        while self._outlet.room(_FRAMES_AT_ONCE):
            ready = assembler.release(now)
            if ready is None:
                break
            close_us = ready.open_us + length_us
            bars = {name: self._flows.extended(bar, ready.open_us, close_us) for name, bar in ready.bars.items()}
            self._outlet.put(replace(ready, bars=bars))
            expected = len(self._universe.ids) - len(self._facts.away(ready.open_us, close_us) - ready.bars.keys())
            self._count("bar_missing", expected - len(ready.bars))
        return self._outlet.store()

    def _ask(self, assembler: Assembler, heard_us: Mapping[str, int]) -> None:
        now_s = self._clock.monotonic()
        for name, line in assembler.lines.items():
            asking, now_us = self._asking[name], heard_us[line.venue]
            if "settle" not in asking.open and now_s >= asking.settle_due_s:
                span = line.asks(now_us, assembler.next_us, assembler.waited_us)
                if span is not None:
                    self._put(line, "settle", *span)
            if "check" not in asking.open:
                self._ask_check(line, asking, now_us, now_s)

    def _ask_check(self, line: Line, asking: _Asking, now_us: int, now_s: float) -> None:
        """Ask for what was stored since the last comparison, or for what the stream says otherwise."""
        end_us = min(line.settled_us, now_us - self._base.us - self._pace.grace_us + 1)
        if line.recheck_us is not None and line.recheck_us < end_us:
            asking.checked_us, line.recheck_us = min(asking.checked_us, line.recheck_us), None
        elif now_s < asking.check_due_s or self._policy.check_share <= 0:
            return
        if end_us <= asking.checked_us:
            return
        asking.check_due_s, asking.checks = now_s + self._check_every_s, asking.checks + 1
        # Every so many of them, spread evenly: which ones follows from their number alone.
        share = self._policy.check_share
        if int(asking.checks * share) > int((asking.checks - 1) * share):
            self._put(line, "check", max(asking.checked_us - _OVERLAP_BARS * self._base.us, asking.first_us), end_us)
        else:
            asking.checked_us = end_us

    def _put(self, line: Line, purpose: Purpose, start_us: int, end_us: int) -> None:
        self._asking[line.instrument.id].open.add(purpose)
        self._count("history_asked", 1)
        of = line.instrument, self._base, start_us, end_us
        question = Question(purpose, self._answers, line.venue, *of, put_us=to_us(self._clock.now()))
        self._streams[line.venue].venue.asker.ask(question)

    def _ask_clocks(self) -> None:
        for name, one in self._streams.items():
            if not one.clock_asked and self._clock.monotonic() >= one.clock_due_s:
                one.clock_asked = True
                one.venue.asker.ask(Question("clock", self._answers, name))

    def _pause_s(self, name: str, failed: int) -> float:
        """How long to leave a history alone, spread a little, so that not all come back at once."""
        spread = 0.75 + (crc32(f"{name} {failed}".encode()) % 512) / 1024
        shortest_s = min(self._policy.retry_s, self._pace.grace_us / 4e6)
        return min(shortest_s * float(1 << min(failed - 1, 16)), self._policy.retry_most_s) * spread

    def _watch(self, assembler: Assembler, heard_us: Mapping[str, int]) -> None:
        """See whether an expected bar is overdue."""
        stale_us = assembler.stale_since_us(heard_us)
        if stale_us is not None and self._stale_us is None:
            self._count("feed_stale", 1)
            log.error("no bar closed in time", universe=self._universe.name, since=from_us(stale_us).isoformat())
        elif stale_us is None and self._stale_us is not None:
            late = timedelta(microseconds=to_us(self._clock.now()) - self._stale_us)
            log.info("bars close again", universe=self._universe.name, after=str(late))
        self._stale_us = stale_us
