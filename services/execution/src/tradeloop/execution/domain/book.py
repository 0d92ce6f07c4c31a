"""One portfolio's book: frames and decisions in, orders, fills, marks, verdicts and rewards out.

Everything here is a function of the frames and signals, in their order; nothing reads a clock or a venue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np

from tradeloop.common.arrays import Floats, shortest
from tradeloop.common.market import from_us, to_us
from tradeloop.common.messages import (
    BarFrame,
    OrderFilled,
    OrderUpdated,
    PortfolioEvent,
    PortfolioEventKind,
    PortfolioMarked,
    RiskVerdict,
    SignalGenerated,
    Transition,
)
from tradeloop.common.messages.topics import derived_id
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.risk import Halt
from tradeloop.common.simulation import Books, Market, Simulator, kernels
from tradeloop.common.strategy import Strategy
from tradeloop.common.strategy.rewards import RewardEngine
from tradeloop.execution.domain.figures import delisting_fill, denials, expiry, halt_verdict, marked
from tradeloop.execution.domain.inputs import DecisionFeatures, VenueFill
from tradeloop.execution.domain.snapshot import of_instruments
from tradeloop.execution.record import BookRecord, Kill, Quarantine


@dataclass(frozen=True, slots=True)
class Booked:
    """The effects of a frame on a book, but for what the decision before it earned."""

    mark: PortfolioMarked
    orders: Sequence[OrderUpdated]
    fills: Sequence[OrderFilled]
    verdicts: Sequence[RiskVerdict]
    before_us: int
    """Close of the frame before this one; -1 for none."""
    halted: bool
    """Whether this frame halted the portfolio."""
    account: Floats
    """The account as the decision before it saw it, (3A + 1)."""


class Book:
    """A portfolio's positions and cash, its working orders, and the decision that is being rewarded."""

    def __init__(self, portfolio: Portfolio, strategy: Strategy) -> None:
        self.portfolio, self._strategy = portfolio, strategy
        self._instruments = portfolio.universe.ids
        self._simulator = Simulator(
            1,
            portfolio.universe.instruments,
            capital=portfolio.capital,
            costs=portfolio.costs,
            limits=portfolio.limits,
            no_trade_band=strategy.actions.band(len(portfolio.universe.instruments)),
        )
        self._new = self._simulator.snapshot()
        self._reward = RewardEngine(strategy.reward, 1)
        self._names = strategy.feature_set.names
        self._rows = np.zeros(1, dtype=np.int64)
        self._signal: SignalGenerated | None = None
        self.working: tuple[OrderUpdated, ...] = ()
        self.marked_us = self.decided_us = -1
        self.left_out_us = -1
        """Close of the last frame that was left out, since it could not be booked; -1 for none."""
        self.quarantine: Quarantine | None = None
        self.killed: Kill | None = None
        self.heeded_us = -1
        """The time of the last kill, or of its end; -1 for none."""
        self._revision = 0

    @property
    def books(self) -> Books:
        """Its figures, as the simulator has them: to be read."""
        return self._simulator.books

    @property
    def awaits_decision(self) -> bool:
        """Whether the last mark still waits for its signal."""
        return self.decided_us < self.marked_us

    def quarantined(self, time_us: int) -> str:
        """Why the decision on a bar is not taken; empty where it is."""
        quarantine = self.quarantine
        return quarantine.cause if quarantine is not None and quarantine.since_us <= time_us else ""

    def restore(self, record: BookRecord) -> Sequence[str]:
        """Go on from where the ledger stands; says what is not as it was recorded, in words.

        Raises `BookMismatch` where the book holds what is not traded any more.
        """
        self.marked_us, self.decided_us, self.working = record.marked_us, record.decided_us, record.working
        self.quarantine, self._revision, self.left_out_us = record.quarantine, record.revision, record.left_out_us
        self.killed, self.heeded_us = record.killed, record.heeded_us
        self._simulator.restore(of_instruments(record.book, self._instruments, self._new))
        self._signal = SignalGenerated.model_validate_json(record.signal) if record.signal else None
        remarks = []
        if not self._reward.restore(record.reward_state) and record.book:
            remarks.append("the reward remembers something else now, and begins anew")
        if tuple(record.book.get("instruments", self._instruments)) != self._instruments:
            remarks.append("the instruments of the universe changed; positions stay with theirs")
        return remarks

    def record(self) -> BookRecord:
        """The state that the ledger must remember next."""
        return BookRecord(
            marked_us=self.marked_us,
            decided_us=self.decided_us,
            book={"instruments": self._instruments, **self._simulator.snapshot()},
            reward_state=self._reward.snapshot(),
            signal=self._signal.encode() if self._signal else b"",
            working=self.working,
            quarantine=self.quarantine,
            killed=self.killed,
            heeded_us=self.heeded_us,
            left_out_us=self.left_out_us,
            revision=self._revision + 1,
        )

    def recorded(self) -> None:
        """The ledger has what `record` gave."""
        self._revision += 1

    def misfit(self, signal: SignalGenerated) -> str:
        """Why a signal cannot be this book's, in words; empty when it can."""
        if signal.instruments == self._instruments:
            return ""
        mine, theirs = ", ".join(self._instruments), ", ".join(signal.instruments)
        return f"portfolio {self.portfolio.name} trades {mine}, the signal is for {theirs}"

    def decide(self, signal: SignalGenerated) -> tuple[list[OrderUpdated], list[RiskVerdict]]:
        """Size a decision's orders and pass them through the risk gate. They are working from here on."""
        weights = None if signal.hold else np.array([signal.targets])
        if weights is not None and signal.hidden:
            barred, hidden = self._simulator.books.barred[0], frozenset(signal.hidden)
            away = [one in hidden and not int(barred[a]) & kernels.OUTSIDE for a, one in enumerate(self._instruments)]
            weights[0, away] = np.nan
        return self._settle(weights, signal)

    def settle_without(self) -> tuple[list[OrderUpdated], list[RiskVerdict]]:
        """Settle the open decision without a signal: hold, or close every position, as the portfolio is configured.

        A quarantined portfolio may be told to be flat; one that merely missed a decision holds. One that was killed
        sends nothing, whatever its limits ask for, unless it was to be flat.
        """
        if self.killed is not None and not self.killed.flatten:
            self.abandon_decision()
            return [], []
        flat = self.killed is not None or (self.portfolio.on_failure == "flatten" and self.quarantined(self.marked_us))
        return self._settle(np.zeros((1, len(self._instruments))) if flat else None, None)

    def kill(self, kill: Kill) -> tuple[list[OrderUpdated], list[RiskVerdict]]:
        """Cancel what works, and send nothing from here on but what closes positions, where that is asked for.

        Another kill adds to the first: orders that close positions are left to it. A decision that is open stays so.
        The decision whose orders are cancelled earns no reward: its outcome would not be its own.
        """
        closes = self.killed is not None and self.killed.flatten
        self.killed, self.heeded_us = replace(kill, flatten=kill.flatten or closes), kill.since_us
        if closes:
            return [], []
        orders = [order.model_copy(update={"status": "cancelled"}) for order in self.working]
        self._simulator.books.pending[:] = 0.0
        self._signal, self.working = None, ()
        if not kill.flatten or self.awaits_decision or self.marked_us < 0:
            return orders, []
        closing, verdicts = self._settle(np.zeros((1, len(self._instruments))), None, kill.request)
        return [*orders, *closing], verdicts

    def resume(self, time_us: int) -> None:
        """Take decisions again after a kill; what closes positions by then goes on."""
        self.killed, self.heeded_us = None, time_us

    def abandon_decision(self) -> None:
        """Settle the open decision with nothing at all, where even to hold has failed."""
        self._simulator.books.pending[:] = 0.0
        self._signal, self.working, self.decided_us = None, (), self.marked_us

    def skip_frame(self, frame: BarFrame) -> list[OrderUpdated]:
        """Leave out a frame that cannot be booked: what it would have filled has expired."""
        expired = [order.model_copy(update={"status": "expired"}) for order in self.working]
        self._simulator.books.pending[:] = 0.0
        self.working, self.left_out_us = (), to_us(frame.close_time)
        return expired

    def _settle(
        self, weights: Floats | None, signal: SignalGenerated | None, attempt: int | str = 0
    ) -> tuple[list[OrderUpdated], list[RiskVerdict]]:
        time = from_us(self.marked_us)
        self._simulator.decide(np.full((1, len(self._instruments)), np.nan) if weights is None else weights)
        books = self._simulator.books
        orders = [
            self._order(time, instrument, float(quantity), attempt)
            for instrument, quantity in zip(self._instruments, books.pending[0], strict=True)
            if quantity != 0.0
        ]
        verdicts = denials(self.portfolio, books, time)
        self._signal, self.working, self.decided_us = signal, tuple(orders), self.marked_us
        return orders, verdicts

    def take_frame(self, frame: BarFrame, bar: Market, venue_fills: Sequence[VenueFill]) -> Booked:
        """Book what filled at a frame's open and mark at its close; what did not fill has expired."""
        books = self._simulator.books
        halted = Halt(int(books.halt[0]))
        self._take_fills(venue_fills)
        before_us, account = self.marked_us, books.account[0].copy()
        self._simulator.account(bar, self._rows)
        books.pending[:] = 0.0
        orders, fills = self._close_orders(frame, venue_fills)
        fills += self._closed_by_delisting(frame, bar, before_us)
        halt = Halt(int(books.halt[0]))
        newly_halted = halt is not Halt.NONE and halted is Halt.NONE
        self.marked_us, self.working = to_us(frame.close_time), ()
        verdicts = [halt_verdict(self.portfolio, books, frame.close_time)] if newly_halted else []
        return Booked(self.mark(), orders, fills, verdicts, before_us, newly_halted, account)

    def _take_fills(self, venue_fills: Sequence[VenueFill]) -> None:
        """The fills of each instrument as one: their sum, at their mean price."""
        books = self._simulator.books
        books.fill_quantity[:] = 0.0
        for fill in venue_fills:
            a = fill.instrument
            filled = books.fill_quantity[0, a]
            if filled == 0.0:
                books.fill_quantity[0, a], books.fill_price[0, a] = fill.quantity, fill.price
                books.fill_fee[0, a], books.fill_slippage[0, a] = fill.fee, fill.slippage
                continue
            quantity = filled + fill.quantity
            books.fill_price[0, a] = (filled * books.fill_price[0, a] + fill.quantity * fill.price) / quantity
            books.fill_quantity[0, a] = quantity
            books.fill_fee[0, a] += fill.fee
            books.fill_slippage[0, a] += fill.slippage

    def reward(self, booked: Booked) -> Transition | None:
        """The worth of the decision before the last frame; None where there was none to earn anything.

        Raises whatever the reward raises. The book is then as it was, and so is the reward's memory.
        """
        signal = self._signal
        if booked.before_us < 0 or signal is None or signal.hold:
            return None
        memory = self._reward.snapshot()
        try:
            return self._transition(signal, booked)
        except Exception:
            self._reward.restore(memory)
            raise

    def event(self, time_us: int, kind: PortfolioEventKind, reason: str, **more: Any) -> PortfolioEvent:
        """The message that something did not happen to this portfolio as it should; `more` are fields of it."""
        return PortfolioEvent(
            universe=self.portfolio.universe.name,
            portfolio=self.portfolio.name,
            time=from_us(time_us),
            kind=kind,
            reason=reason,
            **more,
        )

    def _order(self, time: datetime, instrument: str, quantity: float, attempt: int | str) -> OrderUpdated:
        portfolio = self.portfolio
        return OrderUpdated(
            universe=portfolio.universe.name,
            portfolio=portfolio.name,
            account=portfolio.account,
            order_id=derived_id("order", portfolio.account, portfolio.name, time.isoformat(), instrument, attempt),
            decision_time=time,
            instrument=instrument,
            side="buy" if quantity > 0 else "sell",
            quantity=abs(quantity),
            status="working",
        )

    def _close_orders(
        self, frame: BarFrame, venue_fills: Sequence[VenueFill]
    ) -> tuple[list[OrderUpdated], list[OrderFilled]]:
        settled = [one for one in frame.delisted if one.time <= frame.open_time]
        of_order: dict[str, list[VenueFill]] = {}
        for fill in venue_fills:
            of_order.setdefault(fill.order_id, []).append(fill)
        orders: list[OrderUpdated] = []
        fills: list[OrderFilled] = []
        for order in self.working:
            parts = of_order.get(order.order_id, [])
            if not parts:
                reason = expiry(order.instrument, frame.shut, settled)
                orders.append(order.model_copy(update={"status": "expired", "reason": reason}))
                continue
            quantity = abs(math.fsum(part.quantity for part in parts))
            whole = math.isclose(quantity, order.quantity, rel_tol=1e-12)
            state = {"status": "filled" if whole else "partially_filled", "filled_quantity": quantity}
            orders.append(order.model_copy(update=state))
            fills += [self._fill(order, part, frame.open_time) for part in parts]
        return orders, fills

    def _closed_by_delisting(self, frame: BarFrame, bar: Market, before_us: int) -> list[OrderFilled]:
        """The positions that delistings closed at the open of a frame, each as a fill that no order made."""
        books = self._simulator.books
        found = []
        for one in frame.delisted:
            a = self._instruments.index(one.instrument) if one.instrument in self._instruments else -1
            if a >= 0 and int(bar.barred[0, a]) & kernels.SETTLED and books.position_prev[0, a] != 0.0:
                quantity = -float(books.position_prev[0, a])
                found.append(delisting_fill(self.portfolio, one, quantity, from_us(before_us), frame.open_time))
        return found

    def _fill(self, order: OrderUpdated, part: VenueFill, time: datetime) -> OrderFilled:
        return OrderFilled(
            universe=order.universe,
            portfolio=order.portfolio,
            account=order.account,
            fill_id=derived_id("fill", order.account, order.order_id, part.trade),
            order_id=order.order_id,
            decision_time=order.decision_time,
            time=time,
            instrument=order.instrument,
            side=order.side,
            quantity=abs(part.quantity),
            price=part.price,
            fee=part.fee,
            slippage=part.slippage,
        )

    def _transition(self, signal: SignalGenerated, booked: Booked) -> Transition:
        books = self._simulator.books
        context = self._simulator.context(
            np.array([signal.action]),
            np.array([booked.before_us]),
            np.array([self.marked_us]),
            np.array([booked.halted]),
            np.zeros(1, dtype=np.bool_),
            DecisionFeatures(self._names, signal.features),
        )
        total = self._reward(context)
        return Transition(
            universe=signal.universe,
            portfolio=signal.portfolio,
            decision_time=from_us(booked.before_us),
            time=from_us(self.marked_us),
            account=shortest(booked.account),
            action=signal.action,
            executed=tuple(books.account[0, : len(self._instruments)].tolist()),
            reward=float(total[0]),
            components={name: float(part[0]) for name, part in self._reward.components.items()},
            terminated=booked.halted,
            reward_id=self._strategy.reward_id,
            equity_prev=float(books.equity_prev[0]),
            equity=float(books.equity[0]),
        )

    def mark(self) -> PortfolioMarked:
        """The book as it was marked last."""
        return marked(self.portfolio, self._simulator.books, from_us(self.marked_us))
