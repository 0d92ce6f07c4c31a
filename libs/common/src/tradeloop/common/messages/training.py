"""Messages of the training: asked for, under way, and a policy that is ready."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from tradeloop.common.market import ModelName, Name, TimeRange, Universe
from tradeloop.common.messages.base import Message

CANDIDATE, CHAMPION = "candidate", "champion"
"""The aliases of the newest policy, and of the newest one that may trade."""


class MarketRange(BaseModel):
    """The bars of a universe over a range."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    universe: Universe
    range: TimeRange


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
    also: tuple[MarketRange, ...] = ()
    """More markets to learn from, each of as many instruments as the universe and of its timeframe. Costs and sizes
    are those of the universe's instruments."""
    promote: bool = False
    """Whether the policy becomes champion whatever the gate says of it."""

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
    metrics: dict[str, float] = Field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.run_id

    @property
    def identity(self) -> str:
        return f"{self.run_id}|{self.step}"


class ModelReady(Message):
    """A policy is registered: as champion, which may trade, or as candidate, which may be looked at.

    Its key is the universe, so that it reaches whoever decides for that universe.
    """

    request_id: str
    strategy: Name
    universe: Name
    model: ModelName
    version: str
    alias: Name
    model_id: str
    """SHA-256 of the exported policy: what decides, whatever it is called."""
    feature_set: str
    metrics: dict[str, float] = Field(default_factory=dict)
    """Figures on the bars that it learnt from, `in_sample_`, and on those that were kept apart, `valid_`."""
    reason: str = ""
    """Why it is champion or candidate."""

    @property
    def key(self) -> str:
        return self.universe

    @property
    def identity(self) -> str:
        return f"{self.request_id}|{self.model}|{self.version}"

    def moves(self, alias: str) -> bool:
        """Whether an alias points at this policy now: the newest one is always the candidate."""
        return alias in (self.alias, CANDIDATE)
