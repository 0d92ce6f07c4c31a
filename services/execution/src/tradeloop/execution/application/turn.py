"""One turn of a portfolio: the work on its book that one transaction records."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import structlog

from tradeloop.common.bus.port import LogPosition
from tradeloop.common.market import to_us
from tradeloop.common.messages import BarFrame, Message, PortfolioCommanded, PortfolioEvent, SignalGenerated
from tradeloop.common.messages.topics import derived_id, event_id
from tradeloop.common.runtime.attempts import words
from tradeloop.common.runtime.held import Queue
from tradeloop.execution.domain.book import Book
from tradeloop.execution.domain.inputs import FrameReader, Outcome
from tradeloop.execution.ports import Effects, Venue
from tradeloop.execution.record import Kill, Quarantine

log = structlog.get_logger(__name__)

CAUGHT_UP = "newer bars had closed when its frame came: it filled a hole"
"""Why the decision on such a bar is missed at once: its prices are gone."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The messages that wait for a portfolio, each with where it stands."""

    frames: Queue[BarFrame]
    overdue: Callable[[int], str]
    """Why the decision on a bar is not waited for any more, in words; empty where it is."""
    signals: dict[int, tuple[SignalGenerated, LogPosition]] = field(default_factory=dict)
    """Decisions on bars that are not settled yet, by their close."""
    commands: deque[tuple[PortfolioCommanded, LogPosition]] = field(default_factory=deque)
    honoured: deque[PortfolioEvent] = field(default_factory=deque)
    """Events that are on record and may still come to count here, in the order of time: those of the run that is
    replayed, or those since a backup of the ledger."""
    heeded: set[str] = field(default_factory=set)
    """The commands to kill and to resume whose events are on record: one that comes again is not obeyed again."""

    @property
    def kills(self) -> bool:
        """Whether a kill waits that is not on record."""
        return any(one.command == "kill" and one.request_id not in self.heeded for one, _ in self.commands)

    def honour(self, events: Iterable[PortfolioEvent], unsent: Iterable[Message], book: Book) -> None:
        """Take the events on record; `unsent` are messages of which it is not certain that they left, events too."""
        known = list(events)
        left = [one for one in unsent if isinstance(one, PortfolioEvent)]
        self.heeded.update(event.request for event in (*known, *left) if event.request)
        to_come = (e for e in known if to_us(e.time) > (book.heeded_us if e.request else book.decided_us))
        self.honoured.clear()
        self.honoured.extend(sorted(to_come, key=lambda event: event.time))


class Turn:
    """The work on a book since its last record. It takes nothing away from what waits: whoever records it does."""

    def __init__(
        self, book: Book, reader: FrameReader, venue: Venue, waiting: Waiting, live: bool, catches_up: bool
    ) -> None:
        self._book, self._reader, self._venue, self._waiting = book, reader, venue, waiting
        self._name = book.portfolio.name
        self.effects: dict[str, Effects] = {}
        """Effects by the ids of the inputs that had them, in order."""
        self.decided: list[int] = []
        """Closes of the bars whose decisions were settled."""
        self.outcomes: list[Outcome] = []
        """The fate of each of these."""
        self.frames = self.commands = self.honoured = 0
        """How many of the waiting frames and commands, and of the events on record, were taken."""
        self.events: list[PortfolioEvent] = []
        self.live, self.catches_up = live, catches_up
        """Whether the last frame that was taken is a live one, and one that nothing is decided on any more."""
        self.more = False
        """Whether orders have to leave, or to be cancelled, before anything else is done."""
        self.killed = False
        """Whether orders that may work are to be cancelled."""

    def advance(self, pieces: int | None = None) -> None:
        """Do what can be done, or so many pieces of it, until orders have to leave."""
        while pieces is None or len(self.effects) < pieces:
            self._obey()
            if self.more or (pieces is not None and len(self.effects) >= pieces):
                return
            if self._book.awaits_decision:
                if not self._settle():
                    return
                if self._venue.outside and self._book.working:
                    self.more = True
                    return
                self._venue.submit(self._book.working)
            elif self.frames < len(self._waiting.frames):
                frame = self._waiting.frames[self.frames][1]
                if self._honours_before(frame):
                    continue
                self._take(frame)
                self.frames += 1
            else:
                return

    def _obey(self) -> None:
        """Kill, resume and release where an operator said so; a decision to be skipped is looked up when it is open."""
        kills = self._waiting.kills
        while self.commands < len(self._waiting.commands):
            command, quarantine = self._waiting.commands[self.commands][0], self._book.quarantine
            time_us = to_us(command.time)
            if (command.command, kills) == ("skip", False) and self._is_open(time_us):
                return  # the open decision is settled next, and this command is looked at then
            self.commands += 1
            killed, request = self._book.killed, command.request_id
            again = request in self._waiting.heeded or any(event.request == request for event in self.events)
            if command.command == "kill" and not again:
                self._kill(event_id(command), request, command.said, command.flatten)
                if self._book.awaits_decision:
                    self._settle()  # now, since decisions may be taken again at once
                    self._submit()
            elif command.command == "resume" and not again and killed is not None and killed.request == command.about:
                self._resume(event_id(command), request, command.said)
            elif command.command == "release" and quarantine and time_us == quarantine.since_us:
                since_us = max(self._next_us, quarantine.since_us + 1)
                self._change(event_id(command), "released", since_us, command.reason)
            else:
                log.warning(
                    "a command has no effect", portfolio=command.portfolio, command=command.command, time=command.time
                )

    def _is_open(self, time_us: int) -> bool:
        return self._book.awaits_decision and time_us == self._book.marked_us

    def _kill(self, input_id: str, request: str, said: str, flatten: bool) -> None:
        book = self._book
        time_us = max(self._next_us, book.heeded_us + 1)
        orders, verdicts = book.kill(Kill(time_us, said, request, flatten))
        changed = tuple(order.order_id for order in orders)
        event = book.event(time_us, "killed", said, request=request, flatten=flatten, orders=changed)
        self.events.append(event)
        self._add(input_id, Effects(orders=orders, outputs=[event, *verdicts, *orders]))
        self.killed = self.more = self._venue.outside
        self._submit()

    def _submit(self) -> None:
        """Let the book's orders work, and no others: at once, where they do not leave this process."""
        if not self._venue.outside:
            self._venue.submit(self._book.working)

    def _resume(self, input_id: str, request: str, said: str) -> None:
        time_us = max(self._next_us, self._book.heeded_us + 1)
        self._book.resume(time_us)
        event = self._book.event(time_us, "resumed", said, request=request)
        self.events.append(event)
        self._add(input_id, Effects(outputs=[event]))

    @property
    def _next_us(self) -> int:
        """The first bar whose decision is not settled."""
        return self._book.marked_us if self._book.awaits_decision else self._book.marked_us + 1

    def _settle(self) -> bool:
        """Settle the open decision, if it can be."""
        book, time_us = self._book, self._book.marked_us
        missed = self._honour(time_us)
        waiting = self._waiting.signals.get(time_us)
        if book.killed is not None or book.quarantined(time_us):
            orders, verdicts = book.settle_without()
            input_id = derived_id("settled", self._name, time_us)
            self._add(input_id, Effects(orders=orders, outputs=[*verdicts, *orders]))
            self.outcomes.append("quarantined" if book.killed is None else "killed")
        elif missed or (waiting is None and (missed := self._why_missed())):
            event = book.event(time_us, "decision_missed", missed)
            orders, verdicts = book.settle_without()
            self.events.append(event)
            self._add(event_id(event), Effects(orders=orders, outputs=[event, *verdicts, *orders]))
            self.outcomes.append("missed")
        elif waiting is not None:
            signal = waiting[0]
            if signal.reason == "error" or (cause := book.misfit(signal)):
                cause = signal.error if signal.reason == "error" else cause
                self._change(event_id(signal), "quarantined", time_us, cause)
                return self._settle()
            orders, verdicts = book.decide(signal)
            self._add(event_id(signal), Effects(orders=orders, outputs=[*verdicts, *orders]))
            self.outcomes.append(signal.reason)
        else:
            return False
        self.decided.append(time_us)
        return True

    def _why_missed(self) -> str:
        """Why the open decision is not waited for any more, in words; empty where it is."""
        if self.commands < len(self._waiting.commands):
            command = self._waiting.commands[self.commands][0]
            if command.command == "skip" and self._is_open(to_us(command.time)):
                self.commands += 1
                return f"skipped by an operator: {command.reason}"
        if self.catches_up:
            return CAUGHT_UP
        return self._waiting.overdue(self._book.marked_us)

    def _honour(self, time_us: int) -> str:
        """Repeat what is on record up to a bar; why its decision was missed, in words, or nothing."""
        missed = ""
        while self.honoured < len(self._waiting.honoured):
            event = self._waiting.honoured[self.honoured]
            event_us = to_us(event.time)
            if event_us > time_us:
                break
            self.honoured += 1
            if event.kind == "quarantined" and not self._book.quarantine:
                self._change(event_id(event), "quarantined", event_us, event.reason)
            elif event.kind == "released" and self._book.quarantine and self._book.quarantine.since_us < event_us:
                self._change(event_id(event), "released", event_us, event.reason)
            elif event.kind == "killed":
                self._kill(event_id(event), event.request, event.reason, event.flatten)
            elif event.kind == "resumed" and self._book.killed is not None:
                self._resume(event_id(event), event.request, event.reason)
            elif event.kind == "decision_missed" and event_us == time_us:
                missed = event.reason
        return missed

    def _honours_before(self, frame: BarFrame) -> bool:
        """Repeat what is on record between the last bar and a frame; whether anything was."""
        before = len(self.effects)
        self._honour(to_us(frame.close_time) - 1)
        return len(self.effects) > before

    def _change(self, input_id: str, kind: Literal["quarantined", "released"], time_us: int, reason: str) -> None:
        """Begin or end a quarantine."""
        event = self._book.event(time_us, kind, reason)
        self._book.quarantine = Quarantine(time_us, reason) if kind == "quarantined" else None
        self.events.append(event)
        self._add(input_id, Effects(outputs=[event]))

    def _take(self, frame: BarFrame) -> None:
        for event in self._waiting.honoured:
            if event.kind == "frame_failed" and event.time == frame.close_time:
                return self._leave_out(frame, event.reason)
        bar = self._reader.read(frame)
        booked = self._book.take_frame(frame, bar, self._venue.fills(bar))
        earned: list[Message] = []
        try:
            transition = self._book.reward(booked)
            if transition is not None:
                earned.append(transition)
        except Exception as error:
            # Experience has no veto: the book is marked and its limits are checked, whatever the reward does.
            event = self._book.event(booked.before_us, "transition_missing", words(error))
            log.exception("no transition: the reward failed", portfolio=self._name, time=event.time)
            self.events.append(event)
            earned.append(event)
        outputs: list[Message] = [booked.mark, *booked.orders, *booked.fills, *booked.verdicts, *earned]
        self._add(event_id(frame), Effects(orders=booked.orders, fills=booked.fills, outputs=outputs))
        self.live, self.catches_up = frame.live, frame.live and frame.catches_up

    def _leave_out(self, frame: BarFrame, reason: str) -> None:
        """Go on without a frame that cannot be booked."""
        time_us = to_us(frame.close_time)
        event = self._book.event(time_us, "frame_failed", reason)
        orders = self._book.skip_frame(frame)
        self._venue.submit(())
        self.events.append(event)
        self._add(event_id(frame), Effects(orders=orders, outputs=[event, *orders]))
        if not self._book.quarantine:
            self._change(derived_id("left out", self._name, time_us), "quarantined", time_us, reason)

    def give_up(self, cause: str) -> None:
        """Record that what comes next has failed for good, and go on behind it, in quarantine."""
        book = self._book
        if not book.awaits_decision and len(self._waiting.frames):
            self._leave_out(self._waiting.frames[0][1], cause)
            self.frames += 1
        elif book.awaits_decision:
            if not book.quarantine:
                input_id = derived_id("failed", self._name, book.marked_us)
                self._change(input_id, "quarantined", book.marked_us, cause)
            event = book.event(book.marked_us, "decision_missed", cause)
            self.decided.append(book.marked_us)
            self.outcomes.append("missed")
            book.abandon_decision()
            self.events.append(event)
            self._add(event_id(event), Effects(outputs=[event]))

    def _add(self, input_id: str, effects: Effects) -> None:
        self.effects[input_id] = effects
