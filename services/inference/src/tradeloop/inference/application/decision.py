"""The decision on a bar, and what a desk shows of itself to who asks for one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.arrays import Bools, Floats
from tradeloop.common.features.shown import shown
from tradeloop.common.market import Universe
from tradeloop.common.messages import HoldReason, PortfolioMarked, SignalGenerated
from tradeloop.common.strategy import Strategy
from tradeloop.common.strategy.observations import ObservationBuilder
from tradeloop.inference.domain import ActiveModel, NoModel, account_of


class Features(Protocol):
    """The features of a bar: `FeaturesComputed`, or what nobody published."""

    @property
    def feature_set(self) -> str: ...

    @property
    def instruments(self) -> tuple[str, ...]: ...

    @property
    def values(self) -> tuple[tuple[float | None, ...], ...]:
        """(A, F), unscaled; None for one that is not known."""
        ...

    @property
    def error(self) -> str:
        """Why no value is known, where a feature failed."""
        ...


@dataclass(frozen=True, slots=True)
class View:
    """A desk after a decision. Nothing of it changes: other threads may read it."""

    mark: PortfolioMarked
    """The book that was decided on."""
    model: ActiveModel | NoModel | None
    seen_us: int
    """Close of the last bar of `rows`, or of one after it whose features are not known."""
    rows: NDArray[np.float32]
    """The features of the last bars as the policy sees them, (T, A * F), a window of them at most, oldest first."""


def decide(
    strategy: Strategy,
    universe: Universe,
    features: Features,
    mark: PortfolioMarked,
    model: ActiveModel | NoModel | None,
    window: ObservationBuilder,
    act: Callable[[ActiveModel, NDArray[np.float32]], NDArray[np.float64]],
) -> SignalGenerated:
    """The decision on features whose bar is the last one of the window. `act` lets a model answer an observation."""
    if features.error:
        return hold(strategy, mark, "error", features.error)
    if not isinstance(model, ActiveModel):
        return hold(strategy, mark, "no_model", model.why if model else "")
    if not window.ready:
        return hold(strategy, mark, "warming_up")
    action = act(model, window.build(account_of(mark)))
    weights = strategy.actions.weights(action)
    values, hidden = _shown(features, universe)
    away = () if hidden is None else np.flatnonzero(hidden).tolist()
    return SignalGenerated(
        universe=mark.universe,
        portfolio=mark.portfolio,
        time=mark.time,
        instruments=features.instruments,
        targets=tuple(weights[0].tolist()),
        model=model.name,
        model_version=model.version,
        model_id=model.model_id,
        feature_set=features.feature_set,
        features=tuple(map(tuple, values.tolist())),
        hidden=tuple(features.instruments[a] for a in away),
        action=tuple(action[0].tolist()),
    )


def hold(strategy: Strategy, mark: PortfolioMarked, reason: HoldReason, error: str = "") -> SignalGenerated:
    """The decision to leave every position as it is."""
    return SignalGenerated(
        universe=mark.universe,
        portfolio=mark.portfolio,
        time=mark.time,
        instruments=tuple(position.instrument for position in mark.positions),
        targets=tuple(position.weight for position in mark.positions),
        hold=True,
        reason=reason,
        error=error,
        feature_set=strategy.feature_set.id,
    )


def see(window: ObservationBuilder, strategy: Strategy, universe: Universe, features: Features) -> Floats | None:
    """Add a bar to a window, and give back its features; None for those that are not known yet: they start it anew."""
    values, _ = _shown(features, universe)
    if np.isnan(values).any():
        window.clear()
        return None
    window.append(strategy.observed(values))
    return values


def _shown(features: Features, universe: Universe) -> tuple[Floats, Bools | None]:
    """Features as the policy sees them, and what it is not shown."""
    return shown(np.array(features.values, dtype=np.float64), universe)
