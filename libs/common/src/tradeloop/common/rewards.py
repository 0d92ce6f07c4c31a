"""Rewards: what a strategy author writes, and the engine that runs it the same way in training and live.

A reward sees N books as arrays, never an environment and never the future. N is the number of parallel
episodes in training and 1 in backtest, paper and live.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, dataclass_transform, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(slots=True)
class RewardContext:
    """What happened to N books of A instruments between two marks, one bar apart.

    `_prev` is at the decision's bar close, the plain name at the close of the bar after it. Amounts are in
    quote currency, (N,) unless said otherwise. The arrays are reused: copy what must outlive the call.
    """

    equity_prev: Floats
    equity: Floats
    position_prev: Floats
    """Quantities, (N, A)."""
    position: Floats
    """(N, A)."""
    action: Floats
    """As proposed by the policy, (N, action size)."""
    price_prev: Floats
    """Closes, (N, A)."""
    price: Floats
    """(N, A)."""
    traded_notional: Floats
    turnover: Floats
    """Traded notional as a share of `equity_prev`."""
    fees: Floats
    slippage: Floats
    """Cost of fills against the bar's open, already in the fill prices."""
    funding: Floats
    """Paid in this bar; negative when received."""
    drawdown: Floats
    """Fall from the peak of equity as a share of it, at the later mark."""
    unrealised: Floats
    """Gain of open positions on their entry prices."""
    holding_bars: Floats
    """Bars since each position was opened or flipped, (N, A)."""
    terminated: Bools
    truncated: Bools
    ts_prev: NDArray[np.int64]
    """Microseconds since the epoch."""
    ts: NDArray[np.int64]
    features: Mapping[str, Floats] = field(default_factory=dict)
    """Unscaled features as of the decision by name, (N, A) each."""
    state: dict[str, Floats] = field(default_factory=dict)
    """What the reward remembers of each book, (N,) each; the reward writes it with `[:]`, a new episode resets it."""


@runtime_checkable
class Reward(Protocol):
    """A reward: one array (N,), or named components (N,) that are summed in their order."""

    def __call__(self, context: RewardContext, /) -> Floats | Mapping[str, Floats]: ...


T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def reward(version: str) -> Callable[[type[T]], type[T]]:
    """Make a class a reward: a frozen dataclass whose parameters and version are part of its identity.

    Raise `version` whenever the meaning changes. A class attribute `initial_state: ClassVar[Mapping[str, float]]`
    declares what the reward remembers of each book.
    """

    def decorate(cls: type[T]) -> type[T]:
        made = dataclass(frozen=True)(cls)
        made.version = version  # type: ignore[attr-defined]
        return made

    return decorate


ScalarReward = Callable[[Mapping[str, float], Mapping[str, float], float], float]


@dataclass(frozen=True)
class _Scalar:
    function: ScalarReward
    version: str

    def __call__(self, c: RewardContext) -> Floats:
        rewards = np.empty(len(c.equity))
        for n in range(len(rewards)):
            previous = {
                "equity": float(c.equity_prev[n]),
                "position": float(c.position_prev[n, 0]),
                "price": float(c.price_prev[n, 0]),
            }
            current = {
                "equity": float(c.equity[n]),
                "position": float(c.position[n, 0]),
                "price": float(c.price[n, 0]),
                "drawdown": float(c.drawdown[n]),
                "turnover": float(c.turnover[n]),
                "fees": float(c.fees[n]),
            }
            rewards[n] = self.function(previous, current, float(c.action[n, 0]))
        return rewards


def scalar_reward(version: str) -> Callable[[ScalarReward], _Scalar]:
    """Make `(previous, current, action) -> float` a reward for one instrument.

    Easy to write, and called once per book and bar from Python: expect training to run many times slower
    than with a reward over arrays.
    """

    def decorate(function: ScalarReward) -> _Scalar:
        return _Scalar(function, version)

    return decorate


def reward_id(instance: Reward) -> str:
    """`rw_` and 12 hex digits over the reward's name, version and parameters."""
    parts = [type(instance).__qualname__, str(getattr(instance, "version", ""))]
    if isinstance(instance, _Scalar):
        parts.append(instance.function.__qualname__)
    elif dataclasses.is_dataclass(instance):
        parts += [f"{f.name}={getattr(instance, f.name)!r}" for f in dataclasses.fields(instance)]
    return "rw_" + hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]


class RewardError(Exception):
    """A reward broke its contract: the message names the reward and what it did."""


class RewardEngine:
    """Runs a reward for N books: sums its components, keeps its state, resets it where an episode ended.

    `components` maps names to (N,) arrays of the last call; a reward of one array has the component `reward`.
    """

    def __init__(self, instance: Reward, books: int) -> None:
        self.reward = instance
        self.components: dict[str, Floats] = {}
        self._initial: Mapping[str, float] = getattr(instance, "initial_state", {})
        self.state = {name: np.full(books, value) for name, value in self._initial.items()}
        self._books = books

    def __call__(self, context: RewardContext) -> Floats:
        """Rewards (N,) float64. Raises `RewardError` for a wrong shape or a value that is not finite."""
        context.state = self.state
        answer: Any = self.reward(context)
        if isinstance(answer, Mapping):
            self.components = dict(answer)
        else:
            self.components = {"reward": answer}
        total: Floats | None = None
        for name, part in self.components.items():
            if not isinstance(part, np.ndarray) or part.shape != (self._books,):
                what = f"shape {part.shape}" if isinstance(part, np.ndarray) else type(part).__name__
                raise RewardError(f"{self._name} returned {what} for {name}; it must be an array of shape (N,)")
            total = part if total is None else total + part
        if total is None:
            raise RewardError(f"{self._name} returned no components")
        # One reduction finds what is not finite: a NaN or an infinity survives the sum.
        if not np.isfinite(total.sum()):
            raise RewardError(f"{self._name} returned a value that is not finite{self._culprit()}")
        return total

    def reset(self, done: Bools) -> None:
        """Forget the books whose episode ended."""
        for name, value in self._initial.items():
            self.state[name][done] = value

    @property
    def _name(self) -> str:
        return f"reward {type(self.reward).__qualname__}"

    def _culprit(self) -> str:
        bad = [name for name, part in self.components.items() if not np.isfinite(part).all()]
        return f" in {', '.join(bad)}" if bad else ""
