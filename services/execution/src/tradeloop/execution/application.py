"""Brings frames and signals to the books in the one order that counts, and their effects to the ledger."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence

from tradeloop.common.market import to_us
from tradeloop.common.messages import BarFrame, Message, SignalGenerated
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.service import Handler, Held, Position
from tradeloop.common.strategy import Strategy
from tradeloop.common.topics import event_id
from tradeloop.execution.domain import Book, BookRecord, FrameReader
from tradeloop.execution.ports import Effects, Ledger, Venue


class Desk:
    """One portfolio: its book, its venue, and the frames that wait for a decision."""

    def __init__(self, portfolio: Portfolio, strategy: Strategy, venue: Venue, ledger: Ledger, held: Held) -> None:
        self.inputs: list[tuple[str, str]] = []
        """Inputs whose outputs the present call gives back, (portfolio, input id)."""
        self.portfolio = portfolio
        self._book = Book(portfolio, strategy)
        self._reader = FrameReader(portfolio.universe.ids)
        self._venue, self._ledger, self._held = venue, ledger, held
        self._frames: deque[tuple[int, BarFrame, Position]] = deque()
        self._record = BookRecord()
        self._restored = False

    def on_frame(self, frame: BarFrame, position: Position) -> list[Message]:
        """Take a frame in; it is processed when the decision before it is settled."""
        self._restore()
        self.inputs.clear()
        time_us = to_us(frame.close_time)
        if time_us <= self._book.marked_us:
            return self._again(event_id(frame))
        if not self._frames or time_us > self._frames[-1][0]:
            self._frames.append((time_us, frame, position))
            self._held.hold(position)
        return self._process_frames()

    def on_signal(self, signal: SignalGenerated) -> list[Message]:
        """Settle a decision, then go on with the frames that waited for it.

        Raises ValueError for a decision on a bar that this book has not seen.
        """
        self._restore()
        self.inputs.clear()
        time_us = to_us(signal.time)
        if time_us > self._book.marked_us:
            raise ValueError(f"portfolio {self.portfolio.name}: a signal for {signal.time}, which is not marked yet")
        settled = time_us <= self._book.decided_us
        outputs = self._again(event_id(signal)) if settled else self._decide(signal)
        return outputs + self._process_frames()

    def _restore(self) -> None:
        if not self._restored:
            self._record = self._ledger.load(self.portfolio.name)
            self._go_back()
            self._restored = True

    def _go_back(self) -> None:
        """Return to what is recorded. The venue gets its orders again: after a crash it may never have got them."""
        self._book.restore(self._record)
        self._venue.submit(self._record.working)

    def _decide(self, signal: SignalGenerated) -> list[Message]:
        try:
            orders, verdicts = self._book.decide(signal)
            outputs: list[Message] = [*verdicts, *orders]
            self._keep(event_id(signal), Effects(self._book.record(), orders=orders, outputs=outputs))
        except BaseException:
            self._go_back()
            raise
        self._venue.submit(orders)
        return outputs

    def _process_frames(self) -> list[Message]:
        outputs: list[Message] = []
        while self._frames and not self._book.awaits_decision:
            _, frame, position = self._frames[0]
            outputs += self._settle(frame)
            self._frames.popleft()
            self._held.release(position)
        return outputs

    def _settle(self, frame: BarFrame) -> list[Message]:
        bar = self._reader.read(frame)
        try:
            orders, fills, verdicts, transition, mark = self._book.settle(frame, bar, self._venue.fills(bar))
            reward = [] if transition is None else [transition]
            outputs: list[Message] = [*orders, *fills, *verdicts, *reward, mark]
            self._keep(event_id(frame), Effects(self._book.record(), orders=orders, fills=fills, outputs=outputs))
        except BaseException:
            self._go_back()
            raise
        return outputs

    def _again(self, input_id: str) -> list[Message]:
        """The outputs of an input that was handled before, unless they left for certain."""
        outputs = list(self._ledger.outputs(self.portfolio.name, input_id))
        if outputs:
            self.inputs.append((self.portfolio.name, input_id))
        return outputs

    def _keep(self, input_id: str, effects: Effects) -> None:
        self._ledger.record(self.portfolio.name, input_id, effects)
        self._record = effects.record
        self.inputs.append((self.portfolio.name, input_id))


class Execution(Handler):
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
        self._ledger = ledger
        self._held = Held()
        self._handed_over: list[tuple[str, str]] = []
        self._desks = {p.name: Desk(p, strategies(p.strategy), venues(p), ledger, self._held) for p in portfolios}
        self._by_universe: dict[str, list[Desk]] = {}
        for desk in self._desks.values():
            self._by_universe.setdefault(desk.portfolio.universe.name, []).append(desk)

    def handle(self, message: Message, position: Position) -> Iterable[Message]:
        """Raises `Unavailable` when the ledger cannot be reached; the book is then as it was."""
        if isinstance(message, BarFrame):
            desks = [
                desk
                for desk in self._by_universe.get(message.universe, ())
                if message.timeframe is desk.portfolio.universe.timeframe
            ]
            outputs = [output for desk in desks for output in desk.on_frame(message, position)]
        elif isinstance(message, SignalGenerated) and message.portfolio in self._desks:
            desks = [self._desks[message.portfolio]]
            outputs = desks[0].on_signal(message)
        else:
            return ()
        for desk in desks:
            self._handed_over += desk.inputs
            desk.inputs.clear()
        return outputs

    def held(self) -> Collection[Position]:
        return self._held.positions()

    def before_commit(self) -> None:
        # What was handed over has been flushed by now.
        self._ledger.published(self._handed_over)
        self._handed_over.clear()

    def close(self) -> None:
        self._ledger.close()
