"""Messages of the decisions: which model decides, and what it decided."""

from __future__ import annotations

import operator
from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, Field

from tradeloop.common.market import ModelName, Name
from tradeloop.common.messages.base import UniverseMessage

HoldReason = Literal["warming_up", "no_model", "no_features", "error"]
"""Why a decision is to leave every position as it is."""


class ModelActivated(UniverseMessage):
    """From the decision at `time` on, this model decides for this portfolio."""

    portfolio: Name
    time: AwareDatetime
    model: ModelName
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


class SignalGenerated(UniverseMessage):
    """The decision at a bar's close: target weights, or to hold. Exactly one per bar and portfolio.

    Carries what decided it, the last features and the action, so that the decision can be rewarded. The rest of the
    observation follows from the features before, which are on their topic, and the mark.
    """

    portfolio: Name
    time: AwareDatetime
    instruments: tuple[str, ...]
    targets: tuple[float, ...]
    """Target value of each position as a share of equity, negative for short."""
    hold: bool = False
    """True: leave every position as it is; `targets` then repeats the present weights."""
    reason: HoldReason | Literal["policy"] = "policy"
    error: str = ""
    """Why nothing could be decided, where the reason is `error`; what is wrong with the model, for `no_model`."""
    model: str = ""
    model_version: str = ""
    model_id: str = ""
    feature_set: str = ""
    features: tuple[tuple[float, ...], ...] = ()
    """Features as of the decision, (A, F), unscaled."""
    hidden: tuple[str, ...] = Field(default=(), exclude_if=operator.not_)
    """Instruments that the policy was not shown, since they do not belong to the universe, or their features are not
    known yet: those that do belong are left as they are, whatever their target."""
    observation: tuple[float, ...] = ()
    """Empty; older records have the input of the policy here."""
    action: tuple[float, ...] = ()
    """The answer of the policy, before the action scheme."""

    @property
    def occurred(self) -> datetime:
        return self.time

    @property
    def identity(self) -> str:
        return f"{self.portfolio}|{self.time.isoformat()}"
