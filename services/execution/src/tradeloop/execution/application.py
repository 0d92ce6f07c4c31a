"""Brings frames and signals to the books in the one order that counts, and their effects to the ledger."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from tradeloop.common.bus.port import LogPosition, Partition
from tradeloop.common.market import to_us
from tradeloop.common.messages import BarFrame, Message, SignalGenerated
from tradeloop.common.messages.topics import event_id, topic_of
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.pending import Pending
from tradeloop.common.runtime.service import ServiceDefaults
from tradeloop.common.strategy import Strategy
from tradeloop.execution.domain import Book, BookRecord, FrameReader
from tradeloop.execution.ports import Effects, Ledger, LedgerConflict, Venue

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Go:
    """The work on a book that one transaction records."""

    effects: dict[str, Effects] = field(default_factory=dict)
    """Effects by the ids of the inputs that had them, in order."""
    outputs: list[Message] = field(default_factory=list)
    decided: list[int] = field(default_factory=list)
    """Times of the signals that were decided on."""
    frames: int = 0
    """How many of the waiting frames were taken."""

    def add(self, input_id: str, effects: Effects) -> None:
        self.effects[input_id] = effects
        self.outputs += effects.outputs


class TradedPortfolio:
    """One portfolio: its book, its venue, and the frames and signals that wait for each other."""

    def __init__(
        self, portfolio: Portfolio, strategy: Strategy, venue: Venue, ledger: Ledger, pending: Pending
    ) -> None:
        self.inputs: list[tuple[str, str]] = []
        """Inputs whose outputs the present call gives back, (portfolio, input id)."""
        self.portfolio = portfolio
        self._book = Book(portfolio, strategy)
        self._reader = FrameReader(portfolio.universe.ids)
        self._venue, self._ledger, self._pending = venue, ledger, pending
        self._frames: deque[tuple[int, BarFrame, LogPosition]] = deque()
        self._signals: dict[int, tuple[SignalGenerated, LogPosition]] = {}
        """Decisions on bars that are not marked yet, by their time."""
        self._record: BookRecord | None = None
        """Where the ledger stands; None when it must be asked."""

    def on_frame(self, frame: BarFrame, position: LogPosition) -> list[Message]:
        """Take a frame in; it is processed when the decision before it is settled."""
        self.inputs.clear()
        self._restore()
        time_us = to_us(frame.close_time)
        if time_us <= self._book.marked_us:
            return self._again(event_id(frame))
        if not self._frames or time_us > self._frames[-1][0]:
            self._frames.append((time_us, frame, position))
            self._pending.hold(position)
        return self._go_on()

    def on_signal(self, signal: SignalGenerated, position: LogPosition) -> list[Message]:
        """Settle a decision, then go on with the frames that waited for it.

        One on a bar that this book has not marked waits for its frame: both are read anew, each from its own topic,
        when the ledger is older than what was committed.
        """
        self.inputs.clear()
        self._restore()
        time_us = to_us(signal.time)
        if time_us <= self._book.decided_us:
            return self._again(event_id(signal))
        self._book.check(signal)
        if time_us not in self._signals:
            self._signals[time_us] = signal, position
            self._pending.hold(position)
        return self._go_on()

    def _restore(self) -> None:
        if self._record is None:
            self._record = self._ledger.load(self.portfolio.name)
            self._go_back(self._record)

    def _go_back(self, record: BookRecord) -> None:
        """Return to what is recorded. The venue gets its orders again: after a crash it may never have got them."""
        if not self._book.restore(record):
            log.warning("the reward remembers something else now, and begins anew", portfolio=self.portfolio.name)
        self._venue.submit(record.working)

    def _go_on(self) -> list[Message]:
        """Do all that can be done: decide when the decision is there, take the next frame when nothing is open.

        What is done in one go is recorded in one transaction. It ends before orders leave the process.
        """
        outputs: list[Message] = []
        goes_on = True
        while goes_on:
            go = _Go()
            with self._recorded(go):
                goes_on = self._advance(go)
            outputs += go.outputs
            if goes_on:
                self._venue.submit(self._book.working)
        return outputs

    def _advance(self, go: _Go) -> bool:
        """Do what can be done; whether orders have to be sent before anything else is."""
        while True:
            if self._book.awaits_decision:
                waiting = self._signals.get(self._book.marked_us)
                if waiting is None:
                    return False
                self._decide(go, waiting[0])
                if self._venue.outside and self._book.working:
                    return True
                self._venue.submit(self._book.working)
            elif go.frames < len(self._frames):
                self._drop_signals(go)
                time_us, frame, _ = self._frames[go.frames]
                if time_us > self._book.marked_us:
                    self._settle(go, frame)
                else:
                    go.outputs += self._again(event_id(frame))
                go.frames += 1
            else:
                return False

    def _drop_signals(self, go: _Go) -> None:
        """Let go of decisions on times that were no bars of this book: no frame can come for them any more."""
        gone = [time_us for time_us in self._signals if time_us <= self._book.marked_us and time_us not in go.decided]
        for time_us in gone:
            signal, position = self._signals.pop(time_us)
            self._pending.release(position)
            log.error("signal for a bar that was never marked", portfolio=self.portfolio.name, time=signal.time)

    def _decide(self, go: _Go, signal: SignalGenerated) -> None:
        orders, verdicts = self._book.decide(signal)
        go.decided.append(self._book.decided_us)
        go.add(event_id(signal), Effects(orders=orders, outputs=[*verdicts, *orders]))

    def _settle(self, go: _Go, frame: BarFrame) -> None:
        bar = self._reader.read(frame)
        orders, fills, verdicts, transition, mark = self._book.take_frame(frame, bar, self._venue.fills(bar))
        reward = [] if transition is None else [transition]
        outputs: list[Message] = [mark, *orders, *fills, *verdicts, *reward]
        go.add(event_id(frame), Effects(orders=orders, fills=fills, outputs=outputs))

    @contextmanager
    def _recorded(self, go: _Go) -> Iterator[None]:
        """Changes of the book that are undone unless the ledger keeps them; what led to them no longer waits then."""
        before = self._record
        if before is None:
            raise AssertionError("a book changes only after it was restored")
        try:
            yield
            if go.effects:
                after = self._book.record()
                self._ledger.record(self.portfolio.name, before, after, go.effects)
                self._record = after
        except LedgerConflict:
            self._record = None  # whoever went on with it knows better
            raise
        except BaseException:
            self._go_back(before)
            raise
        self.inputs += [(self.portfolio.name, input_id) for input_id, each in go.effects.items() if each.outputs]
        for time_us in go.decided:
            self._pending.release(self._signals.pop(time_us)[1])
        for _ in range(go.frames):
            self._pending.release(self._frames.popleft()[2])

    def _again(self, input_id: str) -> list[Message]:
        """The outputs of an input that was handled before, unless they left for certain."""
        outputs = list(self._ledger.outputs(self.portfolio.name, input_id))
        if outputs:
            self.inputs.append((self.portfolio.name, input_id))
        return outputs


_INPUTS = frozenset(topic_of(kind).name for kind in (BarFrame, SignalGenerated))


class Execution(ServiceDefaults):
    """The execution service."""

    name = "execution"
    consumes = (BarFrame, SignalGenerated)

    def __init__(
        self,
        portfolios: Sequence[Portfolio],
        strategies: Callable[[str], Strategy],
        venues: Callable[[Portfolio], Venue],
        ledger: Ledger,
    ) -> None:
        """`strategies` gives a strategy by name, `venues` the venue of a portfolio."""
        self._venues, self._ledger = venues, ledger
        self._portfolios = [(portfolio, strategies(portfolio.strategy)) for portfolio in portfolios]
        self._begin()

    def _begin(self) -> None:
        """Begin with portfolios of which nothing is known yet."""
        self._pending = Pending()
        self._handed_over: list[tuple[str, str]] = []
        self._traded: dict[str, TradedPortfolio] = {}
        self._by_universe: dict[str, list[TradedPortfolio]] = {}
        for portfolio, strategy in self._portfolios:
            traded = TradedPortfolio(portfolio, strategy, self._venues(portfolio), self._ledger, self._pending)
            self._traded[portfolio.name] = traded
            self._by_universe.setdefault(portfolio.universe.name, []).append(traded)

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        """Raises `Unavailable` when the ledger cannot be reached; the book is then as it was."""
        if isinstance(message, BarFrame):
            concerned = [
                traded
                for traded in self._by_universe.get(message.universe, ())
                if message.timeframe is traded.portfolio.universe.timeframe
            ]
            outputs = [output for traded in concerned for output in traded.on_frame(message, position)]
        elif isinstance(message, SignalGenerated) and message.portfolio in self._traded:
            concerned = [self._traded[message.portfolio]]
            outputs = concerned[0].on_signal(message, position)
        else:
            return ()
        for traded in concerned:
            self._handed_over += traded.inputs
            traded.inputs.clear()
        return outputs

    def pending(self) -> Pending:
        return self._pending

    def assigned(self, committed: Mapping[Partition, int], owns: Callable[[str], bool]) -> Mapping[Partition, int]:
        """Messages that were committed and whose effects the ledger lacks are read again."""
        kept = self._ledger.offsets()
        return {p: kept.get(p, 0) for p, offset in committed.items() if p.topic in _INPUTS and kept.get(p, 0) < offset}

    def revoked(self) -> None:
        self._begin()

    def before_commit(self, offsets: Mapping[Partition, int]) -> None:
        # What was handed over has been flushed by now.
        self._ledger.acknowledge(self._handed_over, {p: offset for p, offset in offsets.items() if p.topic in _INPUTS})
        self._handed_over.clear()

    def not_ready(self) -> Iterable[str]:
        self._ledger.offsets()  # the least that it can be asked
        return ()

    def close(self) -> None:
        self._ledger.close()
