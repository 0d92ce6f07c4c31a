"""A backtest as a run that can be reported: the messages that the services would have published for it.

Their ids follow from the same facts, so the files of a backtest are those of a live run over the same bars.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from tradeloop.cli.report.files import Run
from tradeloop.common.arrays import Bools, Float32s, Floats, shortest
from tradeloop.common.evaluation.assessment import Assessment
from tradeloop.common.evaluation.backtest import BacktestResult, backtest
from tradeloop.common.features import shown
from tradeloop.common.market import BarArrays, from_us
from tradeloop.common.messages import (
    OrderFilled,
    OrderUpdated,
    PortfolioMarked,
    RiskVerdict,
    SignalGenerated,
    Transition,
)
from tradeloop.common.messages.topics import derived_id
from tradeloop.common.model_store.port import Actor, RegisteredPolicy
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.risk import Halt
from tradeloop.common.simulation import Books
from tradeloop.common.strategy import Strategy
from tradeloop.execution.domain.figures import delisting_fill, denials, expiry, halt_verdict, marked
from tradeloop.inference.domain import account_of


@dataclass
class Recording:
    """A backtest while it runs: give it as `watch`, with `answer` as what decides."""

    portfolio: Portfolio
    strategy: Strategy
    bars: BarArrays
    features: Floats
    actor: Actor
    model: Mapping[str, Any]
    """Name, version and id of the model, as messages name them."""
    hidden: Bools | None = None
    """The instruments that `features` do not show, (T, A)."""
    signals: list[SignalGenerated] = field(default_factory=list)
    orders: list[OrderUpdated] = field(default_factory=list)
    fills: list[OrderFilled] = field(default_factory=list)
    marks: list[PortfolioMarked] = field(default_factory=list)
    verdicts: list[RiskVerdict] = field(default_factory=list)
    halted: list[bool] = field(default_factory=list)
    """The bars at whose close the book was halted."""
    _working: list[OrderUpdated] = field(default_factory=list)
    _answered: Floats | None = None
    _halt: Halt = Halt.NONE

    def act(self, observation: Float32s) -> Floats:
        """Answer as the policy does, and remember it until the bar ends."""
        action = self.actor.act(observation)
        self._answered = action[0]
        return action

    def watch(self, t: int, books: Books) -> None:
        """Take down what happened at a bar, in the order in which it is published."""
        close, opened = from_us(self.bars.close_us[t]), from_us(self.bars.open_us[t])
        self._close_orders(t, opened, books)
        self.marks.append(marked(self.portfolio, books, close))
        halt = Halt(int(books.halt[0]))
        self.halted.append(halt is not Halt.NONE and self._halt is Halt.NONE)
        if self.halted[-1]:
            self.verdicts.append(halt_verdict(self.portfolio, books, close))
        self._halt = halt
        self.signals.append(self._signal(t, close))
        ids = self.bars.instruments
        self._working = [
            self._order(close, ids[a], float(books.pending[0, a])) for a in np.flatnonzero(books.pending[0])
        ]
        self.orders += self._working
        self.verdicts += denials(self.portfolio, books, close)

    def transitions(self, result: BacktestResult) -> list[Transition]:
        """The worth of each decision, once the backtest has ended."""
        found = []
        for t in range(1, len(self.signals)):
            signal = self.signals[t - 1]
            if signal.hold:
                continue
            found.append(
                Transition(
                    **self._where,
                    decision_time=signal.time,
                    time=from_us(self.bars.close_us[t]),
                    account=shortest(account_of(self.marks[t - 1])),
                    action=signal.action,
                    executed=tuple(position.weight for position in self.marks[t].positions),
                    reward=float(result.rewards[t]),
                    components={name: float(part[t]) for name, part in result.components.items()},
                    terminated=self.halted[t],
                    reward_id=self.strategy.reward_id,
                    equity_prev=float(result.equity[t - 1]),
                    equity=float(result.equity[t]),
                )
            )
        return found

    @property
    def _where(self) -> dict[str, Any]:
        return {"universe": self.portfolio.universe.name, "portfolio": self.portfolio.name}

    def _signal(self, t: int, time: datetime) -> SignalGenerated:
        action, self._answered = self._answered, None
        common: dict[str, Any] = {**self._where, "time": time, "instruments": self.bars.instruments}
        common["feature_set"] = self.strategy.feature_set.id
        if action is None:
            targets = tuple(position.weight for position in self.marks[-1].positions)
            return SignalGenerated(**common, targets=targets, hold=True, reason="warming_up")
        away = () if self.hidden is None else np.flatnonzero(self.hidden[t]).tolist()
        return SignalGenerated(
            **common,
            **self.model,
            hidden=tuple(self.bars.instruments[a] for a in away),
            targets=tuple(self.strategy.actions.weights(action[None])[0].tolist()),
            features=tuple(map(tuple, self.features[t].tolist())),
            action=tuple(action.tolist()),
        )

    def _order(self, time: datetime, instrument: str, quantity: float) -> OrderUpdated:
        portfolio = self.portfolio
        return OrderUpdated(
            **self._where,
            account=portfolio.account,
            order_id=derived_id("order", portfolio.account, portfolio.name, time.isoformat(), instrument, 0),
            decision_time=time,
            instrument=instrument,
            side="buy" if quantity > 0 else "sell",
            quantity=abs(quantity),
            status="working",
        )

    def _close_orders(self, t: int, opened: datetime, books: Books) -> None:
        """Each working order filled at the open, in whole or in part, or has expired; delistings close positions."""
        force, open_us = self.portfolio.universe.in_force, int(self.bars.open_us[t])
        halted, delisted = force.halted(open_us), force.delisted(open_us)
        for order in self._working:
            a = self.bars.instruments.index(order.instrument)
            quantity = abs(float(books.fill_quantity[0, a]))
            if quantity == 0.0:
                reason = expiry(order.instrument, halted, delisted)
                self.orders.append(order.model_copy(update={"status": "expired", "reason": reason}))
                continue
            status = "filled" if quantity == order.quantity else "partially_filled"
            self.orders.append(order.model_copy(update={"status": status, "filled_quantity": quantity}))
            self.fills.append(
                OrderFilled(
                    **self._where,
                    account=order.account,
                    fill_id=derived_id("fill", order.account, order.order_id, 1),
                    order_id=order.order_id,
                    decision_time=order.decision_time,
                    time=opened,
                    instrument=order.instrument,
                    side=order.side,
                    quantity=quantity,
                    price=float(books.fill_price[0, a]),
                    fee=float(books.fill_fee[0, a]),
                    slippage=float(books.fill_slippage[0, a]),
                )
            )
        for one in delisted:
            quantity = float(books.fill_quantity[0, self.bars.instruments.index(one.instrument)])
            if quantity != 0.0:
                before = from_us(self.bars.close_us[t - 1])
                self.fills.append(delisting_fill(self.portfolio, one, quantity, before, opened))


def recorded_backtest(
    portfolio: Portfolio,
    strategy: Strategy,
    bars: BarArrays,
    features: Floats,
    actor: Actor,
    registered: RegisteredPolicy,
) -> tuple[BacktestResult, Recording]:
    """A backtest, and all that it would have published but for the rewards, which `transitions` gives."""
    model = {
        "model": registered.name,
        "model_version": registered.version,
        "model_id": registered.policy.model_id,
    }
    features, hidden = shown(features, portfolio.universe)
    recording = Recording(portfolio, strategy, bars, features, actor, model, hidden)
    return backtest(portfolio, strategy, bars, features, recording, recording.watch, hidden), recording


def run_of(
    recording: Recording,
    result: BacktestResult,
    judged: Assessment,
    summary: Mapping[str, object],
    source: str,
) -> Run:
    """The run that a report and its files are made of."""
    return Run(
        portfolio=recording.portfolio,
        strategy=recording.strategy,
        bars=recording.bars,
        features=recording.features,
        signals=recording.signals,
        orders=recording.orders,
        fills=recording.fills,
        marks=recording.marks,
        transitions=recording.transitions(result),
        verdicts=recording.verdicts,
        baselines=judged.baselines,
        summary=summary,
        source=source,
        significance=judged.significance,
    )
