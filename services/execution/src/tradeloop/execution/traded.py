"""One portfolio as it is traded: what waits for it, and the order in which it is taken."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from tradeloop.common.bus.port import LogPosition
from tradeloop.common.clock import Clock
from tradeloop.common.errors import Unavailable
from tradeloop.common.market import EVER_US, from_us, to_us
from tradeloop.common.messages import BarFrame, Message, PortfolioCommanded, PortfolioEvent, SignalGenerated
from tradeloop.common.messages.topics import derived_id, event_id
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.attempts import Attempts, Patience, words
from tradeloop.common.runtime.held import Queue, ReadOn
from tradeloop.common.runtime.pending import Pending
from tradeloop.common.runtime.standing import Standing
from tradeloop.common.strategy import Strategy
from tradeloop.execution.domain import Book
from tradeloop.execution.inputs import FrameReader
from tradeloop.execution.ports import Change, Effects, Venue
from tradeloop.execution.record import BookRecord, Quarantine

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Go:
    """The work on a book that one transaction records."""

    effects: dict[str, Effects] = field(default_factory=dict)
    """Effects by the ids of the inputs that had them, in order."""
    decided: list[int] = field(default_factory=list)
    """Closes of the bars whose decisions were settled."""
    frames: int = 0
    """How many of the waiting frames were taken."""
    commands: int = 0
    """How many of the waiting commands were obeyed."""
    honoured: int = 0
    """How many of the events on record were repeated."""
    events: list[PortfolioEvent] = field(default_factory=list)
    more: bool = False
    """Whether orders have to leave before anything else is done."""

    def add(self, input_id: str, effects: Effects) -> None:
        self.effects[input_id] = effects

    @property
    def outputs(self) -> list[Message]:
        return [output for effects in self.effects.values() for output in effects.outputs]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the portfolios of a service have in common."""

    clock: Clock
    patience: Patience
    grace_s: float
    """How long a decision is waited for at least, however late its bar was marked."""
    pending: Pending
    count: Callable[[str, str], None]
    """Counts an event, by its kind and portfolio."""


class TradedPortfolio:
    """One portfolio: its book, its venue, and the frames, signals and commands that wait for each other.

    Messages are put in; `work` does all that can be done with them, and changes nothing outside. Then the ledger
    records it, and `recorded` lets go of what was done; or `undo` returns to what is recorded. Whatever fails for good
    in between is this portfolio's own failure: it is recorded, and its decisions are no longer taken.
    """

    def __init__(
        self,
        portfolio: Portfolio,
        strategy: Strategy,
        venue: Venue,
        read_frames: ReadOn[BarFrame],
        around: Surroundings,
    ) -> None:
        self.portfolio = portfolio
        self._around, self._pending = around, around.pending
        self._book = Book(portfolio, strategy)
        self._reader = FrameReader(portfolio.universe.ids)
        self._venue = venue
        self._frames: Queue[BarFrame] = Queue(around.pending, read_frames)
        self._signals: dict[int, tuple[SignalGenerated, LogPosition]] = {}
        """Decisions on bars that are not settled yet, by their time."""
        self._commands: deque[tuple[PortfolioCommanded, LogPosition]] = deque()
        self._honoured: deque[PortfolioEvent] = deque()
        """Events that are on record and may still come to count here, in the order of time: those of the run that is
        replayed, or those since a backup of the ledger."""
        self._record: BookRecord | None = None
        """Where the ledger stands; None when it must be asked."""
        self._refused = False
        self._go = _Go()
        self._more = False
        self._attempts = Attempts(around.clock, around.patience)
        self._sends = Attempts(around.clock, around.patience)
        self._unsent = False
        """Whether the venue has not acknowledged the working orders."""
        self._live = False
        """Whether the last mark is that of a live frame."""
        self._awaits_since: datetime | None = None
        self._noted_us = -1
        """The mark to which that belongs."""
        self._given_up = ""
        """Why what comes next has failed for good; empty when it has not."""
        self._missed: deque[int] = deque(maxlen=64)
        """The last decisions that were settled without their signals because these did not come."""

    @property
    def restored(self) -> bool:
        """Whether it knows where the ledger stands."""
        return self._record is not None

    @property
    def retries(self) -> bool:
        """Whether something failed that is tried again later."""
        return self._attempts.waiting or self._sends.waiting

    @property
    def retry_due(self) -> bool:
        """Whether the time of that has come."""
        return self._attempts.due and self._sends.due

    @property
    def unfinished(self) -> bool:
        """Whether there is more to do at once: orders had to leave first, or frames wait on the bus."""
        if self.retries:
            return False
        return self._more or (self._frames.overflows and not self._book.awaits_decision)

    @property
    def due_s(self) -> float | None:
        """The wall-clock time, in seconds since the epoch, at which the open decision is missed; None for never."""
        if self._awaits_since is None or not (self._live or self._next_is_live):
            return None
        portfolio = self.portfolio
        within_s = portfolio.decision_within * portfolio.universe.timeframe.seconds
        return max(self._book.marked_us / 1e6 + within_s, self._awaits_since.timestamp() + self._around.grace_s)

    @property
    def _next_is_live(self) -> bool:
        return len(self._frames) > 0 and self._frames[0][1].live

    @property
    def standing(self) -> Standing:
        """How far it is, and what it waits for."""
        book, quarantine = self._book, self._book.quarantine
        causes = (quarantine.cause if quarantine else "", self._attempts.error, self._sends.error)
        return Standing(
            universe=self.portfolio.universe.name,
            portfolio=self.portfolio.name,
            marked=from_us(book.marked_us) if book.marked_us >= 0 else None,
            decided=from_us(book.decided_us) if book.decided_us >= 0 else None,
            awaiting_since=self._awaits_since,
            quarantined_since=from_us(quarantine.since_us) if quarantine else None,
            cause="; ".join(filter(None, causes)),
        )

    def put_frame(self, frame: BarFrame, position: LogPosition) -> None:
        """Take a frame in; it is processed when the decision before it is settled."""
        self._frames.put(to_us(frame.close_time), frame, position)

    def put_signal(self, signal: SignalGenerated, position: LogPosition) -> None:
        """Take a decision in.

        One on a bar that this book has not marked waits for its frame: both are read anew, each from its own topic,
        when the ledger is older than what was committed.
        """
        time_us = to_us(signal.time)
        if self._refused:
            return
        if self.restored and time_us <= self._book.decided_us:
            if time_us in self._missed:
                self._missed.remove(time_us)
                self._around.count("late_signal", self.portfolio.name)
                log.warning("a signal came too late", portfolio=self.portfolio.name, time=signal.time.isoformat())
        elif time_us not in self._signals:
            self._signals[time_us] = signal, position
            self._pending.hold(position)

    def put_command(self, command: PortfolioCommanded, position: LogPosition) -> None:
        """Take an operator's word in."""
        if self._refused:
            return
        self._commands.append((command, position))
        self._pending.hold(position)

    def restore(self, record: BookRecord, events: Iterable[PortfolioEvent], unsent: Sequence[Message]) -> list[Message]:
        """Go on from where the ledger stands; gives back what must be published again.

        That are the outputs of which the ledger does not know that they left, and the mark whose decision is awaited:
        whoever decides may never have read it.
        """
        self._record = record
        self._go_back(record)
        book = self._book
        self._frames.drop_until(max(book.marked_us, book.left_out_us))
        for time_us in [time_us for time_us in self._signals if time_us <= book.decided_us]:
            self._pending.release(self._signals.pop(time_us)[1])
        self._honoured = deque(
            sorted((e for e in events if to_us(e.time) > book.decided_us), key=lambda event: event.time)
        )
        again = list(unsent)
        if book.marked_us >= 0:
            log.info(
                "goes on", portfolio=self.portfolio.name, marked=from_us(book.marked_us).isoformat(), unsent=len(unsent)
            )
            if book.awaits_decision and (mark := book.mark()) not in again:
                again.append(mark)
        return again

    def work(self) -> Change | None:
        """Do all that can be done: decide when the decision is there, take the next frame when nothing is open.

        It ends before orders leave the process. None where nothing was done.
        """
        if self._record is None:
            raise AssertionError("a book changes only after it was restored")
        if self._unsent:
            self._send()
        if self._unsent or not self._attempts.due:
            return None
        go = self._go = _Go()
        self._more = False
        try:
            if self._given_up:
                self._give_up(self._given_up)
            else:
                self._frames.fill()
                self._advance(go, 1 if self._attempts.waiting else None)  # one by one, when something fails
        except Unavailable as error:
            self._attempts.held_up(error)
            self._undo()
        except Exception as error:
            # Whatever a portfolio's code does, it is the failure of this portfolio alone.
            self._fail(error)
        if not self._go.effects:
            self._drop_commands(self._go)
            return None
        return Change(self.portfolio.name, self._record, self._book.record(), self._go.effects)

    def recorded(self, change: Change) -> list[tuple[str, Sequence[Message]]]:
        """Let go of what was done; gives back the outputs by the ids of the inputs that had them.

        Orders leave now: what is recorded as intended is sent until the venue has it.
        """
        go, self._go = self._go, _Go()
        self._record, self._more = change.after, go.more
        self._book.recorded()
        for time_us in go.decided:
            if time_us in self._signals:
                self._pending.release(self._signals.pop(time_us)[1])
        self._frames.take(go.frames)
        self._drop_commands(go)
        for _ in range(go.honoured):
            self._honoured.popleft()
        for event in go.events:
            self._around.count(event.kind, event.portfolio)
            if event.kind == "decision_missed":
                self._missed.append(to_us(event.time))
            log.warning(event.kind, portfolio=event.portfolio, time=event.time.isoformat(), reason=event.reason)
        self._attempts.passed()
        self._given_up = ""
        if self._venue.outside and self._book.working and not self._book.awaits_decision:
            self._unsent = True
            self._send()
        self._note_awaiting()
        return [(input_id, effects.outputs) for input_id, effects in go.effects.items()]

    def undo(self, error: BaseException | None = None) -> None:
        """Return to what is recorded: the ledger does not have what was done. With an error, that is a failure."""
        self._undo()
        if error is not None and self._attempts.failed(error):
            self._given_up = words(error)

    def refuse(self) -> None:
        """Let go of all that waits: this book cannot be traded as its portfolio is configured now."""
        self._refused, self._record = True, None
        self._frames.drop_until(EVER_US)
        for _, position in (*self._signals.values(), *self._commands):
            self._pending.release(position)
        self._signals.clear()
        self._commands.clear()

    def forget(self) -> None:
        """Ask the ledger anew: somebody else went on with the book."""
        self._go = _Go()
        self._record = None

    def _undo(self) -> None:
        self._go = _Go()
        if self._record is None:
            raise AssertionError("a book changes only after it was restored")
        self._go_back(self._record)

    def _go_back(self, record: BookRecord) -> None:
        """Return to a record. The venue gets its orders again: after a crash it may never have got them."""
        if not self._book.restore(record):
            log.warning("the reward remembers something else now, and begins anew", portfolio=self.portfolio.name)
        if self._venue.outside:
            self._unsent = bool(record.working)
        else:
            self._venue.submit(record.working)
        self._note_awaiting()

    def _note_awaiting(self) -> None:
        if not self._book.awaits_decision:
            self._awaits_since = None
        elif self._awaits_since is None or self._noted_us != self._book.marked_us:
            self._awaits_since, self._noted_us = self._around.clock.now(), self._book.marked_us

    def _send(self) -> None:
        """Send the working orders. A venue that is away keeps this portfolio from going on, and no other."""
        if not self._sends.due:
            return
        try:
            self._venue.submit(self._book.working)
        except Unavailable as error:
            self._sends.held_up(error)
            log.warning("orders are not sent yet", portfolio=self.portfolio.name, error=str(error))
            return
        self._sends.passed()
        self._unsent = False

    def _advance(self, go: _Go, pieces: int | None = None) -> None:
        """Do what can be done, or so many pieces of it, until orders have to leave."""
        while pieces is None or len(go.effects) < pieces:
            self._obey(go)
            if self._book.awaits_decision:
                if not self._settle(go):
                    return
                if self._venue.outside and self._book.working:
                    go.more = True
                    return
                self._venue.submit(self._book.working)
            elif go.frames < len(self._frames):
                self._drop_signals(go)
                self._take(go, self._frames[go.frames][1])
                go.frames += 1
            else:
                return

    def _obey(self, go: _Go) -> None:
        """Release the portfolio where an operator said so; a decision to be skipped is looked up when it is open."""
        while go.commands < len(self._commands):
            command, quarantine = self._commands[go.commands][0], self._book.quarantine
            time_us = to_us(command.time)
            if command.command == "skip" and self._book.awaits_decision and time_us == self._book.marked_us:
                return  # the open decision is settled next, and this command is looked at then
            go.commands += 1
            if command.command == "release" and quarantine and time_us == quarantine.since_us:
                since_us = max(self._next_us, quarantine.since_us + 1)
                self._change(go, event_id(command), "released", since_us, command.reason)
            else:
                log.warning(
                    "a command has no effect", portfolio=command.portfolio, command=command.command, time=command.time
                )

    @property
    def _next_us(self) -> int:
        """The first bar whose decision is not settled."""
        return self._book.marked_us if self._book.awaits_decision else self._book.marked_us + 1

    def _settle(self, go: _Go) -> bool:
        """Settle the open decision, if it can be."""
        book, time_us = self._book, self._book.marked_us
        missed = self._honour(go, time_us)
        waiting = self._signals.get(time_us)
        if book.quarantined(time_us):
            orders, verdicts = book.settle_without()
            go.add(
                derived_id("settled", self.portfolio.name, time_us),
                Effects(orders=orders, outputs=[*verdicts, *orders]),
            )
        elif missed or (waiting is None and (missed := self._why_missed(go))):
            event = book.event(time_us, "decision_missed", missed)
            orders, verdicts = book.settle_without()
            go.events.append(event)
            go.add(event_id(event), Effects(orders=orders, outputs=[event, *verdicts, *orders]))
        elif waiting is not None:
            signal = waiting[0]
            if cause := signal.error if signal.reason == "error" else book.misfit(signal):
                self._change(go, event_id(signal), "quarantined", time_us, cause)
                return self._settle(go)
            orders, verdicts = book.decide(signal)
            go.add(event_id(signal), Effects(orders=orders, outputs=[*verdicts, *orders]))
        else:
            return False
        go.decided.append(time_us)
        return True

    def _why_missed(self, go: _Go) -> str:
        """Why the open decision is not waited for any more, in words; empty where it is."""
        if go.commands < len(self._commands):
            command = self._commands[go.commands][0]
            if command.command == "skip" and to_us(command.time) == self._book.marked_us:
                go.commands += 1
                return f"skipped by an operator: {command.reason}"
        if self._record is not None and self._record.marked_us != self._book.marked_us:
            return ""  # its mark has not even left
        due_s = self.due_s
        if due_s is not None and self._around.clock.now().timestamp() >= due_s:
            return f"no decision by {from_us(int(due_s * 1e6)).isoformat()}"
        return ""

    def _honour(self, go: _Go, time_us: int) -> str:
        """Repeat what is on record up to a bar; why its decision was missed, in words, or nothing."""
        missed = ""
        while go.honoured < len(self._honoured):
            event = self._honoured[go.honoured]
            event_us = to_us(event.time)
            if event_us > time_us:
                break
            go.honoured += 1
            if event.kind == "quarantined" and not self._book.quarantine:
                self._change(go, event_id(event), "quarantined", event_us, event.reason)
            elif event.kind == "released" and self._book.quarantine and self._book.quarantine.since_us < event_us:
                self._change(go, event_id(event), "released", event_us, event.reason)
            elif event.kind == "decision_missed" and event_us == time_us:
                missed = event.reason
        return missed

    def _change(self, go: _Go, input_id: str, kind: str, time_us: int, reason: str) -> None:
        """Begin or end a quarantine."""
        event = self._book.event(time_us, "quarantined" if kind == "quarantined" else "released", reason)
        self._book.quarantine = Quarantine(time_us, reason) if kind == "quarantined" else None
        go.events.append(event)
        go.add(input_id, Effects(outputs=[event]))

    def _take(self, go: _Go, frame: BarFrame) -> None:
        for event in self._honoured:
            if event.kind == "frame_failed" and event.time == frame.close_time:
                return self._leave_out(go, frame, event.reason)
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
            log.exception("no transition: the reward failed", portfolio=self.portfolio.name, time=event.time)
            go.events.append(event)
            earned.append(event)
        outputs: list[Message] = [booked.mark, *booked.orders, *booked.fills, *booked.verdicts, *earned]
        go.add(event_id(frame), Effects(orders=booked.orders, fills=booked.fills, outputs=outputs))
        self._live = frame.live

    def _leave_out(self, go: _Go, frame: BarFrame, reason: str) -> None:
        """Go on without a frame that cannot be booked."""
        time_us = to_us(frame.close_time)
        event = self._book.event(time_us, "frame_failed", reason)
        orders = self._book.skip_frame(frame)
        self._venue.submit(())
        go.events.append(event)
        go.add(event_id(frame), Effects(orders=orders, outputs=[event, *orders]))
        if not self._book.quarantine:
            self._change(go, derived_id("left out", self.portfolio.name, time_us), "quarantined", time_us, reason)

    def _drop_signals(self, go: _Go) -> None:
        """Let go of decisions on times that were no bars of this book: no frame can come for them any more."""
        gone = [time_us for time_us in self._signals if time_us <= self._book.marked_us and time_us not in go.decided]
        for time_us in gone:
            signal, position = self._signals.pop(time_us)
            self._pending.release(position)
            self._around.count("stray_signal", self.portfolio.name)
            log.error("signal for a bar that was never marked", portfolio=self.portfolio.name, time=signal.time)

    def _fail(self, error: BaseException) -> None:
        """Go back to before what failed, and keep what was done before it; try again later, or give it up."""
        done = len(self._go.effects)
        self._undo()
        log.error(
            "a portfolio's own work failed",
            portfolio=self.portfolio.name,
            universe=self.portfolio.universe.name,
            marked=from_us(self._book.marked_us).isoformat() if self._book.marked_us >= 0 else None,
            error=words(error),
            exc_info=error,
        )
        if done:
            try:
                self._advance(self._go, done)
                return
            except Exception as again:  # what went well a moment ago
                error = again
                self._undo()
        if self._attempts.failed(error):
            self._give_up(words(error))

    def _drop_commands(self, go: _Go) -> None:
        for _ in range(go.commands):
            self._pending.release(self._commands.popleft()[1])
        go.commands = 0

    def _give_up(self, cause: str) -> None:
        """Record that what comes next has failed for good, and go on behind it, in quarantine."""
        go, book = self._go, self._book
        if not book.awaits_decision and len(self._frames):
            self._leave_out(go, self._frames[0][1], cause)
            go.frames += 1
        elif book.awaits_decision:
            if not book.quarantine:
                self._change(
                    go, derived_id("failed", self.portfolio.name, book.marked_us), "quarantined", book.marked_us, cause
                )
            event = book.event(book.marked_us, "decision_missed", cause)
            go.decided.append(book.marked_us)
            book.abandon_decision()
            go.events.append(event)
            go.add(event_id(event), Effects(outputs=[event]))
