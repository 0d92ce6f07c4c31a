"""Action schemes: what a policy's output means as target weights. Pure NumPy, the same code everywhere.

A weight is a position's value as a share of equity, negative for short. Schemes map actions of N books,
shape (N, action_size), to weights of shape (N, A).

The `no_trade_band` of the schemes here counts in even shares: an instrument's part of what may be held when A
instruments share it out evenly. So the same band means the same at any leverage and with any number of instruments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.errors import UserError


class ActionScheme(Protocol):
    """How a policy acts."""

    @property
    def name(self) -> str:
        """Stable: it is part of a policy's manifest."""
        ...

    @property
    def kind(self) -> Literal["box", "discrete"]:
        """`box`: floats in [-1, 1], clipped beyond. `discrete`: whole numbers from 0 to `choices` - 1."""
        ...

    @property
    def choices(self) -> int:
        """Choices per component of a discrete scheme; 0 for a box."""
        ...

    def band(self, instruments: int) -> float:
        """A target weight that is closer than this to the present weight leaves the position as it is.

        In weights, as `weights` gives them: everything that trades, trains or evaluates asks here.
        """
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
    """Share of `leverage / A`, the largest weight of one of A instruments."""
    long_only: bool = False
    """Whether -1 means no position instead of short."""

    def __post_init__(self) -> None:
        _require(self.leverage > 0, f"TargetPosition: leverage is {self.leverage}; it must be above 0")
        _require_band(self)

    @property
    def name(self) -> str:
        return f"target_position({self.leverage!r},{_share(self)},{self.long_only!r})"

    @property
    def kind(self) -> Literal["box", "discrete"]:
        return "box"

    @property
    def choices(self) -> int:
        return 0

    def band(self, instruments: int) -> float:
        return self.no_trade_band * (self.leverage / instruments)

    def size(self, instruments: int) -> int:
        return instruments

    def weights(self, action: NDArray[np.float64]) -> NDArray[np.float64]:
        share = np.minimum(np.maximum(action, -1.0), 1.0)
        if self.long_only:
            share = (share + 1.0) * 0.5
        weights: NDArray[np.float64] = share * (self.leverage / action.shape[1])
        return weights


@dataclass(frozen=True, slots=True)
class Discrete:
    """One choice per instrument among `levels`, by default short, flat, long: its weight, shared out evenly."""

    levels: tuple[float, ...] = (-1.0, 0.0, 1.0)
    no_trade_band: float = 0.05
    """Share of the largest level over A, the largest weight of one of A instruments."""

    def __post_init__(self) -> None:
        _require(len(self.levels) > 1, f"Discrete: levels are {self.levels}; a choice needs at least two")
        _require_band(self)

    @property
    def name(self) -> str:
        return f"discrete({','.join(map(repr, self.levels))};{_share(self)})"

    @property
    def kind(self) -> Literal["box", "discrete"]:
        return "discrete"

    @property
    def choices(self) -> int:
        return len(self.levels)

    def band(self, instruments: int) -> float:
        return self.no_trade_band * (max(map(abs, self.levels)) / instruments)

    def size(self, instruments: int) -> int:
        return instruments

    def weights(self, action: NDArray[np.float64]) -> NDArray[np.float64]:
        weights: NDArray[np.float64] = np.asarray(self.levels)[action.astype(np.int64)] / action.shape[1]
        return weights


@dataclass(frozen=True, slots=True)
class PortfolioWeights:
    """One number for cash, then one per instrument: a softmax makes them long-only weights that sum to one."""

    temperature: float = 0.5
    """Lower lets the weights differ more: at 0.5, two of them by a factor of up to exp(2 / 0.5) = 55."""
    no_trade_band: float = 0.05
    """Share of 1 / A, the weight that each of A instruments has when they are held evenly and no cash is left."""

    def __post_init__(self) -> None:
        _require(self.temperature > 0, f"PortfolioWeights: temperature is {self.temperature}; it must be above 0")
        _require_band(self)

    @property
    def name(self) -> str:
        return f"portfolio_weights({self.temperature!r},{_share(self)})"

    @property
    def kind(self) -> Literal["box", "discrete"]:
        return "box"

    @property
    def choices(self) -> int:
        return 0

    def band(self, instruments: int) -> float:
        return self.no_trade_band / instruments

    def size(self, instruments: int) -> int:
        return instruments + 1

    def weights(self, action: NDArray[np.float64]) -> NDArray[np.float64]:
        clipped = np.minimum(np.maximum(action, -1.0), 1.0)
        scores = np.exp((clipped - clipped.max(axis=1, keepdims=True)) / self.temperature)
        # A running sum: unlike `sum`, its bits do not depend on how the array lies in memory.
        weights: NDArray[np.float64] = scores[:, 1:] / np.add.accumulate(scores, axis=1)[:, -1:]
        return weights


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)


_Banded = TargetPosition | Discrete | PortfolioWeights


def _share(scheme: _Banded) -> str:
    """The band in a scheme's name. It says of what: a policy of when bands were shares of equity is another."""
    return f"{scheme.no_trade_band!r} of an even share"


def _require_band(scheme: _Banded) -> None:
    band = scheme.no_trade_band
    _require(band >= 0, f"{type(scheme).__name__}: no_trade_band is {band}; it must be 0 or more")


SCHEMES: dict[str, ActionScheme] = {
    "target_position": TargetPosition(),
    "discrete": Discrete(),
    "portfolio_weights": PortfolioWeights(),
}
"""Schemes that a strategy may name instead of building one."""
