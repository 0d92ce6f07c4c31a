"""One portfolio as it is traded: what waits for it, and the order in which it is taken."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from tradeloop.common.bus.port import LogPosition
from tradeloop.common.clock import Clock
from tradeloop.common.errors import Unavailable
from tradeloop.common.market import BAR_COLUMNS, EVER_US, from_us, to_us
from tradeloop.common.messages import BarFrame, Message, PortfolioCommanded, PortfolioEvent, SignalGenerated
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.attempts import Attempts, Patience, words
from tradeloop.common.runtime.held import Queue, ReadOn, limit_of
from tradeloop.common.runtime.metrics import Figure
from tradeloop.common.runtime.pending import Pending
from tradeloop.common.runtime.standing import Standing
from tradeloop.common.strategy import Strategy
from tradeloop.execution.application.measured import Measured
from tradeloop.execution.application.turn import CAUGHT_UP, Turn, Waiting
from tradeloop.execution.domain.book import Book
from tradeloop.execution.domain.inputs import FrameReader
from tradeloop.execution.ports import Change, Venue
from tradeloop.execution.record import BookRecord

log = structlog.get_logger(__name__)

_BARS = topic_of(BarFrame).name


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The surroundings of a portfolio; but for its numbers all portfolios of a service share them."""

    clock: Clock
    patience: Patience
    grace_s: float
    """How long a decision is waited for at least, however late its bar was marked."""
    pending: Pending
    count: Callable[[str, str], None]
    """Counts an event, by its kind and portfolio."""
    measured: Measured
    """The numbers of the portfolio."""


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
        values = len(portfolio.universe.instruments) * len(BAR_COLUMNS)
        self._waiting = Waiting(Queue(around.pending, read_frames, limit_of(values)), self._overdue)
        self._live = self._catches_up = False
        """Whether the last mark is that of a live frame, and of one that nothing is decided on any more."""
        self._record: BookRecord | None = None
        """Where the ledger stands; None when it must be asked."""
        self._refused = False
        self._turn = self._new_turn()
        self._more = self._in_part = False
        """Whether there is more to do at once; whether what is being done is only a part of that."""
        self._attempts = Attempts(around.clock, around.patience)
        self._sends = Attempts(around.clock, around.patience)
        self._unsent = False
        """Whether the venue has not acknowledged the working orders."""
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
    def bar(self) -> datetime | None:
        """The close of the bar that its book was marked at last."""
        return from_us(self._book.marked_us) if self._book.marked_us >= 0 else None

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
        """Whether there is more to do at once: orders had to leave first, something failed and was given up, or frames
        wait on the bus."""
        if self.retries:
            return False
        return self._more or (self._waiting.frames.overflows and not self._book.awaits_decision)

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
        return len(self._waiting.frames) > 0 and self._waiting.frames[0][1].live

    @property
    def standing(self) -> Standing:
        """How far it is, and what it waits for."""
        book, quarantine, killed = self._book, self._book.quarantine, self._book.killed
        causes = (quarantine.cause if quarantine else "", self._attempts.error, self._sends.error)
        return Standing(
            universe=self.portfolio.universe.name,
            portfolio=self.portfolio.name,
            marked=self.bar,
            decided=from_us(book.decided_us) if book.decided_us >= 0 else None,
            awaiting_since=self._awaits_since,
            quarantined_since=from_us(quarantine.since_us) if quarantine else None,
            cause="; ".join(filter(None, causes)),
            killed_since=from_us(killed.since_us) if killed else None,
            killed=killed.said if killed else "",
        )

    @property
    def figures(self) -> Iterable[Figure]:
        """The figures of its book, as it is recorded."""
        return self._around.measured.of_book(self._book, self._record.revision) if self._record else ()

    def put_frame(self, frame: BarFrame, position: LogPosition) -> None:
        """Take a frame in; it is processed when the decision before it is settled."""
        if not self._waiting.frames.put(to_us(frame.close_time), frame, position) and position.partition.topic != _BARS:
            # It failed when it came, and later ones were taken meanwhile.
            self._around.count("late_frame", self.portfolio.name)
            log.error("a frame came too late", portfolio=self.portfolio.name, time=frame.close_time.isoformat())

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
        elif time_us not in self._waiting.signals:
            self._waiting.signals[time_us] = signal, position
            self._pending.hold(position)

    def put_command(self, command: PortfolioCommanded, position: LogPosition) -> None:
        """Take an operator's word in."""
        if self._refused:
            return
        self._waiting.commands.append((command, position))
        self._pending.hold(position)

    def restore(self, record: BookRecord, events: Iterable[PortfolioEvent], unsent: Sequence[Message]) -> list[Message]:
        """Go on from where the ledger stands; gives back what must be published again.

        That are the outputs of which the ledger does not know that they left, and the mark whose decision is awaited:
        whoever decides may never have read it.
        """
        self._record = record
        self._go_back(record)
        book = self._book
        self._waiting.frames.drop_until(max(book.marked_us, book.left_out_us))
        for time_us in [time_us for time_us in self._waiting.signals if time_us <= book.decided_us]:
            self._pending.release(self._waiting.signals.pop(time_us)[1])
        self._waiting.honour(events, unsent, book)
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
        kills = self._waiting.kills  # it waits for nothing: for no venue that is away, and no other attempt
        if self._unsent and not kills:
            self._send()
        if (self._unsent or not self._attempts.due) and not kills:
            return None
        turn = self._turn = self._new_turn()
        self._more, self._in_part = False, kills or bool(self._given_up) or self._attempts.waiting
        try:
            if kills:
                turn.advance(1)
            elif self._given_up:
                turn.give_up(self._given_up)
            else:
                self._waiting.frames.fill()
                turn.advance(1 if self._attempts.waiting else None)  # one by one, when something fails
        except Unavailable as error:
            self._attempts.held_up(error)
            self._undo()
        except Exception as error:  # noqa: BLE001  whatever a portfolio's code does is its own failure
            self._fail(error)
        turn = self._turn
        if not turn.effects:
            self._drop_commands(turn)
            return None
        after = replace(self._book.record(), live=turn.live, catches_up=turn.catches_up)
        return Change(self.portfolio.name, self._record, after, turn.effects)

    def recorded(self, change: Change) -> list[tuple[str, Sequence[Message]]]:
        """Let go of what was done; gives back the outputs by the ids of the inputs that had them.

        Orders leave now: what is recorded as intended is sent until the venue has it.
        """
        turn, self._turn = self._turn, self._new_turn()
        self._measure(turn, change)
        self._record, self._more = change.after, turn.more or self._in_part
        self._live, self._catches_up = turn.live, turn.catches_up
        self._book.recorded()
        self._drop_signals(turn)
        self._waiting.frames.take(turn.frames)
        self._drop_commands(turn)
        for _ in range(turn.honoured):
            self._waiting.honoured.popleft()
        self._waiting.heeded.update(event.request for event in turn.events if event.request)
        for event in turn.events:
            self._around.count(event.kind, event.portfolio)
            if event.kind == "decision_missed" and event.reason != CAUGHT_UP:  # its signal is late by intention
                self._missed.append(to_us(event.time))
            log.warning(event.kind, portfolio=event.portfolio, time=event.time.isoformat(), reason=event.reason)
        self._attempts.passed()
        self._given_up = ""
        if turn.killed or (self._venue.outside and self._book.working and not self._book.awaits_decision):
            self._unsent = True
            self._send()
        self._note_awaiting()
        return [(input_id, effects.outputs) for input_id, effects in turn.effects.items()]

    def _measure(self, turn: Turn, change: Change) -> None:
        measured, before = self._around.measured, change.before
        measured.count(turn.effects.values(), turn.outcomes)
        if before.live and not before.catches_up and turn.decided and turn.decided[0] == before.marked_us:
            ordered = any(order.status == "working" for each in turn.effects.values() for order in each.orders)
            if turn.outcomes[0] not in ("missed", "quarantined"):
                measured.took(self._around.clock.now().timestamp() - before.marked_us / 1e6, ordered)

    def undo(self, error: BaseException | None = None) -> None:
        """Return to what is recorded: the ledger does not have what was done. With an error, that is a failure."""
        self._undo()
        if error is not None and self._attempts.failed(error):
            self._given_up = words(error)

    def refuse(self) -> None:
        """Let go of all that waits: this book cannot be traded as its portfolio is configured now."""
        self._refused, self._record = True, None
        self._waiting.frames.drop_until(EVER_US)
        for _, position in (*self._waiting.signals.values(), *self._waiting.commands):
            self._pending.release(position)
        self._waiting.signals.clear()
        self._waiting.commands.clear()

    def forget(self) -> None:
        """Ask the ledger anew: somebody else went on with the book."""
        self._turn = self._new_turn()
        self._record = None

    def _undo(self) -> None:
        self._turn = self._new_turn()
        if self._record is None:
            raise AssertionError("a book changes only after it was restored")
        self._go_back(self._record)

    def _go_back(self, record: BookRecord) -> None:
        """Return to a record. The venue gets its orders again: after a crash it may never have got them."""
        self._live, self._catches_up = record.live, record.catches_up
        for remark in self._book.restore(record):
            log.warning(remark, portfolio=self.portfolio.name)
        if self._venue.outside:
            self._unsent = bool(record.working or record.killed)  # what a kill cancelled may never have been
        else:
            self._unsent = True
            self._send()
        self._note_awaiting()

    def _note_awaiting(self) -> None:
        if not self._book.awaits_decision:
            self._awaits_since = None
        elif self._awaits_since is None or self._noted_us != self._book.marked_us:
            self._awaits_since, self._noted_us = self._around.clock.now(), self._book.marked_us

    def _send(self) -> None:
        """Send the working orders. A venue that is away, or fails, keeps this portfolio from going on, and no other."""
        if not self._sends.due:
            return
        try:
            self._venue.submit(self._book.working)
        except Exception as error:  # noqa: BLE001  of a venue's own code, too
            self._sends.held_up(error)
            log.warning("orders are not sent yet", portfolio=self.portfolio.name, error=words(error))
            return
        self._sends.passed()
        self._unsent = False

    def _fail(self, error: Exception) -> None:
        """Go back to before what failed, and keep what was done before it; try again later, or give it up."""
        done = len(self._turn.effects)
        self._in_part = True
        self._undo()
        log.error(
            "a portfolio's own work failed",
            portfolio=self.portfolio.name,
            universe=self.portfolio.universe.name,
            marked=self.bar.isoformat() if self.bar else None,
            error=words(error),
            exc_info=error,
        )
        if done:
            try:
                self._turn.advance(done)
                return
            except Exception as again:  # noqa: BLE001  what went well a moment ago
                error = again
                self._undo()
        if self._attempts.failed(error):
            self._turn.give_up(words(error))

    def _drop_commands(self, turn: Turn) -> None:
        for _ in range(turn.commands):
            self._pending.release(self._waiting.commands.popleft()[1])
        turn.commands = 0

    def _drop_signals(self, turn: Turn) -> None:
        """Let go of the decisions that were settled, and of those on times that were no bars of this book."""
        signals = self._waiting.signals
        for time_us in [time_us for time_us in signals if time_us <= self._book.decided_us]:
            signal, position = signals.pop(time_us)
            self._pending.release(position)
            if time_us not in turn.decided:
                self._around.count("stray_signal", self.portfolio.name)
                log.error("signal for a bar that was never marked", portfolio=self.portfolio.name, time=signal.time)

    def _overdue(self, marked_us: int) -> str:
        if self._record is None or self._record.marked_us != marked_us:
            return ""  # its mark has not even left
        due_s = self.due_s
        if due_s is not None and self._around.clock.now().timestamp() >= due_s:
            return f"no decision by {from_us(int(due_s * 1e6)).isoformat()}"
        return ""

    def _new_turn(self) -> Turn:
        return Turn(self._book, self._reader, self._venue, self._waiting, self._live, self._catches_up)
