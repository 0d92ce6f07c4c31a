"""Messages of the trading: orders, fills, marks, verdicts of the risk gate, and what a decision was worth."""

from __future__ import annotations

import operator
from datetime import datetime
from typing import ClassVar, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from tradeloop.common.market import Name
from tradeloop.common.messages.base import UniverseMessage

Side = Literal["buy", "sell"]

OrderStatus = Literal["working", "filled", "partially_filled", "expired", "cancelled"]

OrderReason = Literal["", "trading_halted", "delisted"]

FillReason = Literal["", "delisting"]

PortfolioState = Literal["active", "halted"]

PortfolioEventKind = Literal[
    "decision_missed", "quarantined", "released", "frame_failed", "transition_missing", "killed", "resumed"
]


class OrderUpdated(UniverseMessage):
    """An order's state changed. Orders are market orders for the next bar's open."""

    portfolio: Name
    account: Name
    order_id: str
    """Also the client order id at the venue: a UUIDv5 of account, portfolio, decision, leg and attempt."""
    decision_time: AwareDatetime
    instrument: str
    side: Side
    quantity: float = Field(gt=0)
    status: OrderStatus
    filled_quantity: float = Field(default=0.0, ge=0)
    reason: OrderReason = Field(default="", exclude_if=operator.not_)
    """The event of the instrument for which an order expired, where it did not merely find no trade."""

    @property
    def occurred(self) -> datetime:
        return self.decision_time

    @property
    def identity(self) -> str:
        return f"{self.order_id}|{self.status}"


class OrderFilled(UniverseMessage):
    """A fill. `price` includes slippage; `fee` is in quote currency.

    One for a delisting closes a position at the stated proceeds, without an order, a fee or slippage.
    """

    portfolio: Name
    account: Name
    fill_id: str
    order_id: str
    """A delisting has no order: here it has a UUIDv5 of account, portfolio, instrument and the event's time."""
    decision_time: AwareDatetime
    """The mark before it."""
    time: AwareDatetime
    """When it filled: the open of the bar after the decision's."""
    instrument: str
    side: Side
    quantity: float = Field(gt=0)
    price: float = Field(ge=0)
    """0 where a holder gets nothing at a delisting; otherwise above it."""
    fee: float = Field(ge=0)
    slippage: float
    """Cost against the bar's open, in quote currency; already in `price`."""
    reason: FillReason = Field(default="", exclude_if=operator.not_)
    """The event that made it, where no order did: `market.events.v1` has it."""

    @property
    def occurred(self) -> datetime:
        return self.decision_time

    @property
    def identity(self) -> str:
        return self.fill_id


class PositionMark(BaseModel):
    """One position, marked at a close."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    instrument: str
    quantity: float
    entry_price: float
    """Average price of the open quantity; 0 when flat."""
    mark_price: float
    """Last close; 0 before the first."""
    weight: float
    """Value as a share of equity, negative for short."""
    unrealised_return: float
    """Return of the open quantity on its entry price, positive when it gains."""
    holding_bars: int
    """Bars since the position was opened or flipped."""


class PortfolioMarked(UniverseMessage):
    """A portfolio's book, marked at a bar's close."""

    portfolio: Name
    time: AwareDatetime
    cash: float
    equity: float
    peak_equity: float
    drawdown: float
    """Fall from the peak as a share of it, in [0, inf)."""
    state: PortfolioState
    positions: tuple[PositionMark, ...]

    @property
    def occurred(self) -> datetime:
        return self.time

    @property
    def identity(self) -> str:
        return f"{self.portfolio}|{self.time.isoformat()}"


class RiskVerdict(UniverseMessage):
    """The risk gate denied an order, or changed the state of a portfolio."""

    portfolio: Name
    time: AwareDatetime
    code: str
    """Stable; `tradeloop.common.risk` lists them, and says for each what is measured."""
    instrument: str = ""
    measured: float
    limit: float
    text: str

    @property
    def occurred(self) -> datetime:
        return self.time

    @property
    def identity(self) -> str:
        return f"{self.portfolio}|{self.time.isoformat()}|{self.code}|{self.instrument}"


class Transition(UniverseMessage):
    """The worth of a decision: account and action at `decision_time`, reward at `time`, one bar later.

    The observation is the window of features up to `decision_time`, which are on their topic and can be computed again
    from stored bars, and behind them `account`. Which model decided is on `inference.model_activated.v1`, and what it
    was made for in its manifest. The next observation is that of the next transition of the same portfolio.
    """

    sparse: ClassVar[bool] = True

    portfolio: Name
    strategy: str = ""
    """Empty, as are all fields whose contents follow from other messages; older records have them."""
    decision_time: AwareDatetime
    time: AwareDatetime
    observation: tuple[float, ...] = ()
    account: tuple[float, ...] = ()
    """The account part of the observation, (3A + 1), float32: each value the shortest decimal that stands for it."""
    action: tuple[float, ...]
    """The action as proposed by the policy."""
    executed: tuple[float, ...]
    """Weights that the book held after the fills, at the fills' bar close: what was really done."""
    reward: float
    components: dict[str, float]
    terminated: bool
    model: str = ""
    model_version: str = ""
    model_id: str = ""
    feature_set: str = ""
    reward_id: str
    equity_prev: float
    equity: float
    fills: tuple[str, ...] = ()
    """Empty: the fills between the two marks are those with this `decision_time`."""

    @property
    def occurred(self) -> datetime:
        return self.decision_time

    @property
    def identity(self) -> str:
        return f"{self.portfolio}|{self.decision_time.isoformat()}"


class PortfolioEvent(UniverseMessage):
    """Something that did not happen as it should to a portfolio, or was done about it.

    It is recorded before it counts, and a replay honours it: what failed, came late or was commanded is an input.
    """

    portfolio: Name
    time: AwareDatetime
    """The close of the bar that it is about: of the decision that was missed or earned no transition, of the frame
    that could not be booked, of the first decision that is not taken any more, or is again. A kill or its end between
    two bars has the close of the first, and microseconds after it."""
    kind: PortfolioEventKind
    reason: str
    """Why, in words: an error, a deadline, or what an operator said."""
    request: str = Field(default="", exclude_if=operator.not_)
    """The command that killed or resumed."""
    flatten: bool = Field(default=False, exclude_if=operator.not_)
    """Whether a kill closes the positions, too."""
    orders: tuple[str, ...] = Field(default=(), exclude_if=operator.not_)
    """The orders that a kill cancelled, and those by which it closes positions, by their ids."""

    @property
    def occurred(self) -> datetime:
        return self.time

    @property
    def identity(self) -> str:
        about = f"|{self.request}" if self.request else ""
        return f"{self.portfolio}|{self.time.isoformat()}|{self.kind}|{self.reason}{about}"
