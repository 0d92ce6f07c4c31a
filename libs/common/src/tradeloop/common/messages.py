"""Every message that travels between services: frozen models, JSON on the wire.

Readers ignore fields they do not know, so optional fields may be added; any other change is a new topic
version. A message's id is a UUIDv5 of its topic and its `identity`, so the same input gives the same id
wherever and however often it is computed. All times are UTC; `time` is always the close of the bar that a
message is about.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from tradeloop.common.market import Bar, Name, Timeframe, TimeRange, Universe

Side = Literal["buy", "sell"]
OrderStatus = Literal["working", "filled", "partially_filled", "expired"]
PortfolioState = Literal["active", "halted"]


_ENCODED = "encoded"
"""Where a message keeps its own encoding; no field has this name."""


class Message(BaseModel):
    """The base of all messages. NaN and infinities are refused in both directions."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    @property
    def key(self) -> str:
        """The partition key."""
        raise NotImplementedError(type(self).__name__)

    @property
    def identity(self) -> str:
        """What makes this message this message: equal for every computation of the same fact."""
        raise NotImplementedError(type(self).__name__)

    @property
    def trace(self) -> str:
        """What this message belongs to: all messages about one bar of one universe share it, from bar to reward."""
        return self.identity

    @property
    def occurred(self) -> datetime | None:
        """The event time, or None for requests and reports, which have none."""
        return None

    def encode(self) -> bytes:
        """The message as JSON, UTF-8. Floats keep full precision. Computed once: messages do not change."""
        encoded: bytes | None = self.__dict__.get(_ENCODED)
        if encoded is None:
            encoded = self.__dict__[_ENCODED] = self.__pydantic_serializer__.to_json(self)
        return encoded

    def __copy__(self) -> Self:
        copy = super().__copy__()
        copy.__dict__.pop(_ENCODED, None)
        return copy


class _UniverseMessage(Message):
    """A message of one universe; its name is the partition key."""

    universe: Name

    @property
    def key(self) -> str:
        return self.universe

    @property
    def trace(self) -> str:
        return f"{self.universe}|{self.occurred}"


class _UniverseRequest(Message):
    """A request about a universe, or its answer: both carry the same `request_id`."""

    request_id: str
    universe: Universe

    @property
    def key(self) -> str:
        return self.universe.name

    @property
    def identity(self) -> str:
        return self.request_id


# --- ingest ---------------------------------------------------------------------------------------


class BackfillRequested(_UniverseRequest):
    """Load a file of bars into the store."""

    files: dict[str, str]
    """Path of the bars of each instrument of the universe, by instrument id."""


class BackfillCompleted(_UniverseRequest):
    """Bars of a range are in the store (the claim-check pattern: the bars themselves are not sent)."""

    range: TimeRange
    bars: int
    gaps: int
    """Places where the calendar expected bars and there were none."""


class ReplayRequested(_UniverseRequest):
    """Publish stored bars of a range as if they closed now."""

    range: TimeRange
    speed: float | None = Field(default=None, gt=0)
    """Bar time per wall time, e.g. 60 for an hour a minute; None for as fast as the loop settles."""


class BarFrame(_UniverseMessage):
    """All bars of a universe at one open time and one timeframe, closed."""

    timeframe: Timeframe
    open_time: AwareDatetime
    close_time: AwareDatetime
    bars: tuple[Bar, ...]
    missing: tuple[str, ...] = ()
    """Instruments of the universe that have no bar here."""
    revision: int = Field(default=0, ge=0)
    """Raised when a bar that went out is corrected; a decision that was made is never re-made."""

    @property
    def occurred(self) -> datetime:
        return self.close_time

    @property
    def identity(self) -> str:
        return f"{self.universe}|{self.timeframe}|{self.open_time.isoformat()}|{self.revision}"


# --- preprocess -----------------------------------------------------------------------------------


class PreprocessRequested(_UniverseRequest):
    """Compute a strategy's features over stored bars, into the offline feature store."""

    strategy: Name
    range: TimeRange


class PreprocessCompleted(_UniverseRequest):
    """Features of a range are in the offline feature store."""

    strategy: Name
    feature_set: str
    range: TimeRange
    rows: int


class FeaturesComputed(_UniverseMessage):
    """Features as of a bar's close. `values[a][f]` is feature `names[f]` of `instruments[a]`, unscaled.

    None stands for a value that is not known yet: its indicator is still warming up.
    """

    feature_set: str
    time: AwareDatetime
    instruments: tuple[str, ...]
    names: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]

    @property
    def occurred(self) -> datetime:
        return self.time

    @property
    def identity(self) -> str:
        return f"{self.universe}|{self.feature_set}|{self.time.isoformat()}"


# --- training -------------------------------------------------------------------------------------


class TrainingRequested(Message):
    """Train a policy on the features of a range and register it."""

    request_id: str
    strategy: Name
    universe: Universe
    range: TimeRange
    seed: int = Field(default=0, ge=0)
    steps: int = Field(gt=0)
    """Environment steps over all parallel books."""
    portfolio: str = ""
    """JSON of the portfolio whose capital, costs and limits training assumes; empty for the defaults."""

    @property
    def key(self) -> str:
        return self.strategy

    @property
    def identity(self) -> str:
        return self.request_id


class TrainingProgressed(Message):
    """How far a training run is."""

    run_id: str
    strategy: Name
    step: int
    total: int
    metrics: dict[str, float] = {}

    @property
    def key(self) -> str:
        return self.run_id

    @property
    def identity(self) -> str:
        return f"{self.run_id}|{self.step}"


class ModelReady(Message):
    """A policy is registered and may be activated.

    Its key is the universe, so that it reaches whoever decides for that universe.
    """

    request_id: str
    strategy: Name
    universe: Name
    model: Name
    version: str
    alias: Name
    model_id: str
    """SHA-256 of the exported policy: what decides, whatever it is called."""
    feature_set: str
    metrics: dict[str, float] = {}

    @property
    def key(self) -> str:
        return self.universe

    @property
    def identity(self) -> str:
        return f"{self.request_id}|{self.model}|{self.version}"


# --- inference ------------------------------------------------------------------------------------


class ModelActivated(_UniverseMessage):
    """From the decision at `time` on, this model decides for this portfolio."""

    portfolio: Name
    time: AwareDatetime
    model: Name
    version: str
    model_id: str
    cause: str = ""
    """Id of the event that promoted the model; empty when the portfolio's alias named it."""

    @property
    def occurred(self) -> datetime:
        return self.time

    @property
    def identity(self) -> str:
        return f"{self.portfolio}|{self.time.isoformat()}|{self.model_id}"


class SignalGenerated(_UniverseMessage):
    """The decision at a bar's close: target weights, or to hold. Exactly one per bar and portfolio.

    Carries what decided (features, observation, action), so that the decision can be replayed and rewarded
    from the log alone.
    """

    portfolio: Name
    time: AwareDatetime
    instruments: tuple[str, ...]
    targets: tuple[float, ...]
    """Target value of each position as a share of equity, negative for short."""
    hold: bool = False
    """True: leave every position as it is; `targets` then repeats the present weights."""
    reason: Literal["policy", "warming_up", "no_model", "no_features"] = "policy"
    model: str = ""
    model_version: str = ""
    model_id: str = ""
    feature_set: str = ""
    features: tuple[tuple[float, ...], ...] = ()
    """Features as of the decision, (A, F), unscaled."""
    observation: tuple[float, ...] = ()
    """What the policy saw, float32 values."""
    action: tuple[float, ...] = ()
    """What the policy answered, before the action scheme."""

    @property
    def occurred(self) -> datetime:
        return self.time

    @property
    def identity(self) -> str:
        return f"{self.portfolio}|{self.time.isoformat()}"


# --- execution ------------------------------------------------------------------------------------


class OrderUpdated(_UniverseMessage):
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

    @property
    def occurred(self) -> datetime:
        return self.decision_time

    @property
    def identity(self) -> str:
        return f"{self.order_id}|{self.status}"


class OrderFilled(_UniverseMessage):
    """A fill. `price` includes slippage; `fee` is in quote currency."""

    portfolio: Name
    account: Name
    fill_id: str
    order_id: str
    decision_time: AwareDatetime
    time: AwareDatetime
    """When it filled: the open of the bar after the decision's."""
    instrument: str
    side: Side
    quantity: float = Field(gt=0)
    price: float = Field(gt=0)
    fee: float = Field(ge=0)
    slippage: float
    """Cost against the bar's open, in quote currency; already in `price`."""

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


class PortfolioMarked(_UniverseMessage):
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


class RiskVerdict(_UniverseMessage):
    """The risk gate denied an order, or changed the state of a portfolio."""

    portfolio: Name
    time: AwareDatetime
    code: str
    """Stable: see `tradeloop.common.simulation.Verdict`."""
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


class Transition(_UniverseMessage):
    """What a decision was worth: observation and action at `decision_time`, reward at `time`, one bar later.

    The next observation is the observation of the next transition of the same portfolio.
    """

    portfolio: Name
    strategy: Name
    decision_time: AwareDatetime
    time: AwareDatetime
    observation: tuple[float, ...]
    action: tuple[float, ...]
    """As proposed by the policy."""
    executed: tuple[float, ...]
    """Weights that the book held after the fills, at the fills' bar close: what was really done."""
    reward: float
    components: dict[str, float]
    terminated: bool
    model: str
    model_version: str
    model_id: str
    feature_set: str
    reward_id: str
    equity_prev: float
    equity: float
    fills: tuple[str, ...] = ()
    """Ids of the fills between the two marks."""

    @property
    def occurred(self) -> datetime:
        return self.decision_time

    @property
    def identity(self) -> str:
        return f"{self.portfolio}|{self.decision_time.isoformat()}"
