"""A portfolio as its owner configures it: capital, universe, strategy, model alias, costs and risk limits."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tradeloop.common.market import Name, Universe


class Costs(BaseModel):
    """What trading costs beyond the venue's fees, as the simulator charges it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slippage_bps: float = Field(default=1.0, ge=0)
    """Paid on each fill against the bar's open, in basis points."""
    impact_bps: float = Field(default=0.0, ge=0)
    """Added slippage for taking a whole bar's volume; scales with the square root of the share taken. Volumes
    must be in base units."""
    max_participation: float | None = Field(default=None, gt=0, le=1)
    """Largest share of a bar's volume that one order may take; the rest is cancelled. None for no cap. Only
    meaningful where volumes are in base units."""
    fee_multiplier: float = Field(default=1.0, ge=0)
    """Scales the venue's fees: 0 for a world without, 2 or 5 for a stress."""


class RiskLimits(BaseModel):
    """Hard limits that every order passes, the same ones in training, backtest and live."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_position: float = Field(default=1.05, gt=0)
    """Largest value of one position, as a multiple of equity."""
    max_leverage: float = Field(default=1.05, gt=0)
    """Largest sum of absolute position values, as a multiple of equity."""
    max_order_notional: float = Field(default=2.5, gt=0)
    """Largest value of an order that opens exposure, as a multiple of the portfolio's capital. A flip from long to
    short needs 2; what only reduces a position is never too large."""
    max_drawdown: float = Field(default=0.5, gt=0, le=1)
    """Fall from the peak of equity, unrealised included, that flattens the book and halts it."""
    max_price_age_bars: int = Field(default=0, ge=0)
    """How many frames an instrument may have missed before its price is stale and its orders are denied."""
    maintenance_margin: float = Field(default=0.05, ge=0, le=1)
    """Equity below this share of gross position value is a margin call: flattened and halted."""


class Portfolio(BaseModel):
    """One book: what it trades, with which policy, under which limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    universe: Universe
    strategy: Name
    model_alias: Name = "champion"
    capital: float = Field(default=100_000.0, gt=0)
    """Starting cash, in quote currency."""
    account: Name = "paper"
    mode: Literal["paper"] = "paper"
    costs: Costs = Costs()
    limits: RiskLimits = RiskLimits()
