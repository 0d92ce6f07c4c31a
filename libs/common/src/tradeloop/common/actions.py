"""Action schemes: what a policy's output means as target weights. Pure NumPy, the same code everywhere.

A weight is a position's value as a share of equity, negative for short. Schemes map actions of N books,
shape (N, action_size), to weights of shape (N, A).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray


class ActionScheme(Protocol):
    """How a policy acts."""

    @property
    def name(self) -> str:
        """Stable: it is part of a policy's manifest."""
        ...

    @property
    def kind(self) -> Literal["box", "discrete"]:
        """`box`: floats in [-1, 1]. `discrete`: one choice per action component, 0 to `choices` - 1."""
        ...

    @property
    def choices(self) -> int:
        """Choices per component of a discrete scheme; 0 for a box."""
        ...

    @property
    def no_trade_band(self) -> float:
        """A target closer than this to the present weight leaves the position as it is."""
        ...

    def size(self, instruments: int) -> int:
        """How many numbers an action has."""
        ...

    def weights(self, action: NDArray[np.float64]) -> NDArray[np.float64]:
        """Target weights (N, A) of actions (N, size)."""
        ...


@dataclass(frozen=True, slots=True)
class TargetPosition:
    """One number per instrument in [-1, 1]: its weight, shared out so that all together never exceed `leverage`."""

    leverage: float = 1.0
    no_trade_band: float = 0.05
    long_only: bool = False

    @property
    def name(self) -> str:
        return f"target_position({self.leverage!r},{self.no_trade_band!r},{self.long_only!r})"

    @property
    def kind(self) -> Literal["box", "discrete"]:
        return "box"

    @property
    def choices(self) -> int:
        return 0

    def size(self, instruments: int) -> int:
        return instruments

    def weights(self, action: NDArray[np.float64]) -> NDArray[np.float64]:
        share = np.minimum(np.maximum(action, -1.0), 1.0)
        if self.long_only:
            share = (share + 1.0) * 0.5
        return share * (self.leverage / action.shape[1])


@dataclass(frozen=True, slots=True)
class Discrete:
    """One choice per instrument among evenly spaced weights, by default short, flat, long."""

    levels: tuple[float, ...] = (-1.0, 0.0, 1.0)
    no_trade_band: float = 0.05

    @property
    def name(self) -> str:
        return f"discrete({','.join(map(repr, self.levels))};{self.no_trade_band!r})"

    @property
    def kind(self) -> Literal["box", "discrete"]:
        return "discrete"

    @property
    def choices(self) -> int:
        return len(self.levels)

    def size(self, instruments: int) -> int:
        return instruments

    def weights(self, action: NDArray[np.float64]) -> NDArray[np.float64]:
        levels = np.asarray(self.levels)
        return levels[action.astype(np.int64)] / action.shape[1]


@dataclass(frozen=True, slots=True)
class PortfolioWeights:
    """One number per instrument and one for cash: a softmax makes them long-only weights that sum to one."""

    temperature: float = 0.5
    no_trade_band: float = 0.05

    @property
    def name(self) -> str:
        return f"portfolio_weights({self.temperature!r},{self.no_trade_band!r})"

    @property
    def kind(self) -> Literal["box", "discrete"]:
        return "box"

    @property
    def choices(self) -> int:
        return 0

    def size(self, instruments: int) -> int:
        return instruments + 1

    def weights(self, action: NDArray[np.float64]) -> NDArray[np.float64]:
        scores = np.exp(np.minimum(np.maximum(action, -1.0), 1.0) / self.temperature)
        return scores[:, 1:] / scores.sum(axis=1, keepdims=True)


SCHEMES: dict[str, ActionScheme] = {
    "target_position": TargetPosition(),
    "discrete": Discrete(),
    "portfolio_weights": PortfolioWeights(),
}
"""Schemes that a strategy may name instead of building one."""
