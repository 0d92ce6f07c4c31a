"""One portfolio's book: frames and decisions in, orders, fills, marks, verdicts and rewards out.

Everything here is a function of the frames and signals, in their order; nothing reads a clock or a venue.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from tradeloop.common.arrays import Floats
from tradeloop.common.market import from_us, to_us
from tradeloop.common.messages import (
    BarFrame,
    OrderFilled,
    OrderUpdated,
    PortfolioMarked,
    PositionMark,
    RiskVerdict,
    SignalGenerated,
    Transition,
)
from tradeloop.common.messages.topics import derived_id
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.risk import DENIED, EXPLANATIONS, Halt, Verdict, wire_code
from tradeloop.common.simulation import Market, Simulator
from tradeloop.common.strategy import Strategy
from tradeloop.common.strategy.rewards import RewardEngine
from tradeloop.execution.record import BookRecord


@dataclass(frozen=True, slots=True)
class VenueFill:
    """A fill as the venue reports it."""

    order_id: str
    trade: int
    """The venue's number of this fill within the order, from 1."""
    instrument: int
    """Its index in the universe."""
    quantity: float
    """Signed, negative for a sale."""
    price: float
    fee: float
    slippage: float


class FrameReader:
    """Turns frames into the arrays (1, A) that the simulator reads. The arrays are reused."""

    def __init__(self, instruments: Sequence[str]) -> None:
        self._index = {instrument: a for a, instrument in enumerate(instruments)}
        shape = (1, len(instruments))
        self.market = Market(
            open=np.full(shape, np.nan),
            close=np.full(shape, np.nan),
            volume=np.full(shape, np.nan),
            funding_rate=np.zeros(shape),
            present=np.zeros(shape, dtype=np.bool_),
        )

    def read(self, frame: BarFrame) -> Market:
        """The bars of a frame; instruments of other universes are ignored."""
        market = self.market
        market.present[:] = False
        for bar in frame.bars:
            a = self._index.get(bar.instrument)
            if a is None:
                continue
            market.present[0, a] = True
            market.open[0, a], market.close[0, a] = bar.open, bar.close
            market.volume[0, a] = np.nan if bar.volume is None else bar.volume
            market.funding_rate[0, a] = bar.funding_rate
        return market


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
        self._reward = RewardEngine(strategy.reward, 1)
        self._names = strategy.feature_set.names
        self._rows = np.zeros(1, dtype=np.int64)
        self._signal: SignalGenerated | None = None
        self.working: tuple[OrderUpdated, ...] = ()
        self.marked_us = self.decided_us = -1

    @property
    def awaits_decision(self) -> bool:
        """Whether the last mark still waits for its signal."""
        return self.decided_us < self.marked_us

    def restore(self, record: BookRecord) -> bool:
        """Go on from where the ledger stands; False where the reward remembers something else now, and begins anew."""
        self.marked_us, self.decided_us, self.working = record.marked_us, record.decided_us, record.working
        if record.book:
            self._simulator.restore(record.book)
        self._signal = SignalGenerated.model_validate_json(record.signal) if record.signal else None
        return self._reward.restore(record.reward_state) or not record.book

    def record(self) -> BookRecord:
        """The state that the ledger must remember."""
        return BookRecord(
            marked_us=self.marked_us,
            decided_us=self.decided_us,
            book=self._simulator.snapshot(),
            reward_state=self._reward.snapshot(),
            signal=self._signal.encode() if self._signal else b"",
            working=self.working,
        )

    def check(self, signal: SignalGenerated) -> None:
        """Raises ValueError when the signal is not about this book's instruments."""
        if signal.instruments != self._instruments:
            mine, theirs = self._instruments, signal.instruments
            raise ValueError(f"portfolio {self.portfolio.name} trades {mine}, the signal is for {theirs}")

    def decide(self, signal: SignalGenerated) -> tuple[list[OrderUpdated], list[RiskVerdict]]:
        """Size a decision's orders and pass them through the risk gate. They are working from here on.

        Raises ValueError as `check` does.
        """
        self.check(signal)
        weights = np.full((1, len(self._instruments)), np.nan) if signal.hold else np.array([signal.targets])
        self._simulator.decide(weights)
        books = self._simulator.books
        orders = [
            self._order(signal.time, instrument, float(quantity))
            for instrument, quantity in zip(self._instruments, books.pending[0], strict=True)
            if quantity != 0.0
        ]
        verdicts = [
            self._denial(signal.time, a, Verdict(code)) for a, code in enumerate(books.verdict[0]) if code in DENIED
        ]
        self._signal, self.working, self.decided_us = signal, tuple(orders), to_us(signal.time)
        return orders, verdicts

    def take_frame(
        self, frame: BarFrame, bar: Market, venue_fills: Sequence[VenueFill]
    ) -> tuple[list[OrderUpdated], list[OrderFilled], list[RiskVerdict], Transition | None, PortfolioMarked]:
        """Book what filled at a frame's open and mark at its close; what did not fill has expired."""
        books = self._simulator.books
        halted = Halt(int(books.halt[0]))
        books.fill_quantity[:] = 0.0
        for fill in venue_fills:
            a = fill.instrument
            books.fill_quantity[0, a], books.fill_price[0, a] = fill.quantity, fill.price
            books.fill_fee[0, a], books.fill_slippage[0, a] = fill.fee, fill.slippage
        first = self.marked_us < 0
        self._simulator.account(bar, self._rows)
        books.pending[:] = 0.0
        orders, fills = self._close_orders(frame.open_time, venue_fills)
        time_us = to_us(frame.close_time)
        halt = Halt(int(books.halt[0]))
        newly_halted = halt is not Halt.NONE and halted is Halt.NONE
        transition = None if first else self._transition(frame.close_time, time_us, newly_halted, fills)
        self.marked_us, self.working = time_us, ()
        verdicts = [self._halted(frame.close_time, halt)] if newly_halted else []
        return orders, fills, verdicts, transition, self._mark(frame.close_time)

    def _order(self, time: datetime, instrument: str, quantity: float) -> OrderUpdated:
        portfolio = self.portfolio
        attempt = 0
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
        self, time: datetime, venue_fills: Sequence[VenueFill]
    ) -> tuple[list[OrderUpdated], list[OrderFilled]]:
        filled = {fill.order_id: fill for fill in venue_fills}
        orders: list[OrderUpdated] = []
        fills: list[OrderFilled] = []
        for order in self.working:
            fill = filled.get(order.order_id)
            if fill is None:
                orders.append(order.model_copy(update={"status": "expired"}))
                continue
            quantity = abs(fill.quantity)
            status = "filled" if quantity == order.quantity else "partially_filled"
            orders.append(order.model_copy(update={"status": status, "filled_quantity": quantity}))
            fills.append(
                OrderFilled(
                    universe=order.universe,
                    portfolio=order.portfolio,
                    account=order.account,
                    fill_id=derived_id("fill", order.account, order.order_id, fill.trade),
                    order_id=order.order_id,
                    decision_time=order.decision_time,
                    time=time,
                    instrument=order.instrument,
                    side=order.side,
                    quantity=quantity,
                    price=fill.price,
                    fee=fill.fee,
                    slippage=fill.slippage,
                )
            )
        return orders, fills

    def _transition(
        self, time: datetime, time_us: int, terminated: bool, fills: Sequence[OrderFilled]
    ) -> Transition | None:
        """The reward of the decision one bar ago; None when that was to hold, which is no decision."""
        signal = self._signal
        if signal is None or signal.hold:
            return None
        books = self._simulator.books
        context = self._simulator.context(
            np.array([signal.action]),
            np.array([self.marked_us]),
            np.array([time_us]),
            np.array([terminated]),
            np.zeros(1, dtype=np.bool_),
            DecisionFeatures(self._names, signal.features),
        )
        total = self._reward(context)
        return Transition(
            universe=signal.universe,
            portfolio=signal.portfolio,
            strategy=self._strategy.name,
            decision_time=from_us(self.marked_us),
            time=time,
            observation=signal.observation,
            action=signal.action,
            executed=tuple(books.account[0, : len(self._instruments)].tolist()),
            reward=float(total[0]),
            components={name: float(part[0]) for name, part in self._reward.components.items()},
            terminated=terminated,
            model=signal.model,
            model_version=signal.model_version,
            model_id=signal.model_id,
            feature_set=signal.feature_set,
            reward_id=self._strategy.reward_id,
            equity_prev=float(books.equity_prev[0]),
            equity=float(books.equity[0]),
            fills=tuple(fill.fill_id for fill in fills),
        )

    def _mark(self, time: datetime) -> PortfolioMarked:
        books = self._simulator.books
        count = len(self._instruments)
        account = books.account[0].tolist()
        rows = zip(
            self._instruments,
            books.position[0].tolist(),
            books.entry[0].tolist(),
            [0.0 if mark != mark else mark for mark in books.mark[0].tolist()],  # NaN before the first bar
            account[:count],
            account[count : 2 * count],
            books.holding[0].tolist(),
            strict=True,
        )
        return PortfolioMarked(
            universe=self.portfolio.universe.name,
            portfolio=self.portfolio.name,
            time=time,
            cash=float(books.cash[0]),
            equity=float(books.equity[0]),
            peak_equity=float(books.peak[0]),
            drawdown=float(books.drawdown[0]),
            state="halted" if books.halt[0] else "active",
            positions=tuple(
                PositionMark(
                    instrument=instrument,
                    quantity=quantity,
                    entry_price=entry,
                    mark_price=mark,
                    weight=weight,
                    unrealised_return=gain,
                    holding_bars=int(held),
                )
                for instrument, quantity, entry, mark, weight, gain, held in rows
            ),
        )

    def _denial(self, time: datetime, a: int, verdict: Verdict) -> RiskVerdict:
        """Why an order was not sent as it was wanted, with what the gate measured and the limit that it broke."""
        books = self._simulator.books
        measured, limit = float(books.measured[0, a]), float(books.limit[0, a])
        instead = "; closing the position instead" if books.pending[0, a] != 0.0 else ""
        return self._verdict(time, verdict, self._instruments[a], measured, limit, instead)

    def _halted(self, time: datetime, halt: Halt) -> RiskVerdict:
        limit = getattr(self.portfolio.limits, EXPLANATIONS[halt].limit)
        return self._verdict(time, halt, "", float(self._simulator.books.halt_measured[0]), limit)

    def _verdict(
        self, time: datetime, code: Verdict | Halt, instrument: str, measured: float, limit: float, instead: str = ""
    ) -> RiskVerdict:
        return RiskVerdict(
            universe=self.portfolio.universe.name,
            portfolio=self.portfolio.name,
            time=time,
            code=wire_code(code),
            instrument=instrument,
            measured=measured,
            limit=limit,
            text=f"{EXPLANATIONS[code].measured}: {measured:.6g}, limit {limit:.6g}{instead}",
        )


class DecisionFeatures(Mapping[str, Floats]):
    """A decision's features by name, (1, A) each, made into an array only when asked for."""

    def __init__(self, names: Sequence[str], values: Sequence[Sequence[float]]) -> None:
        self._names, self._values = names, values

    def __getitem__(self, name: str) -> Floats:
        if name not in self._names:
            raise KeyError(name)
        f = self._names.index(name)
        return np.array([[row[f] for row in self._values]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
