"""Rewards: what a strategy author writes, and the engine that runs it the same way in training and live.

A reward sees N books as arrays, never an environment and never the future. N is the number of parallel
episodes in training and 1 in backtest, paper and live.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Protocol, TypeVar, dataclass_transform

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.arrays import Bools, Floats
from tradeloop.common.errors import UserError
from tradeloop.common.market import from_us

_FLOAT64 = np.dtype(np.float64)

LEAST_EQUITY = 1e-6
"""The least equity that a reward sees, as a share of the initial capital: a book that lost everything, or more, has
this, so that ratios and logarithms stay finite and the loss is a very large one."""

Initial = float | Sequence[float] | Floats
"""The first memory of one book: a number, or a row of k numbers."""


@dataclass(slots=True)
class RewardContext:
    """The changes of N books of A instruments between two marks, one bar apart.

    `_prev` is at the decision's bar close, the plain name at the close of the bar after it. Amounts are in
    quote currency, (N,) unless said otherwise. The arrays are reused: copy what must outlive the call.
    """

    equity_prev: Floats
    equity: Floats
    """Never below `LEAST_EQUITY` of the initial capital, nor is `equity_prev`; all else is as it was booked."""
    position_prev: Floats
    """Quantities, (N, A)."""
    position: Floats
    """(N, A)."""
    action: Floats
    """The action as proposed by the policy, (N, action size)."""
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
    """Unscaled features as of the decision by name, (N, A) each: those of the observation and `reward_features`."""
    state: dict[str, Floats] = field(default_factory=dict)
    """The memory of the reward, (N,) or (N, k); the reward writes into it, and a new episode resets it."""


class Reward(Protocol):
    """A reward: one array (N,), or named components (N,) that are summed in their order, all float64.

    Made by `reward` or `scalar_reward`, which give it an identity.
    """

    def __call__(self, context: RewardContext, /) -> Floats | Mapping[str, Floats]: ...


class RewardError(UserError):
    """A reward broke its contract: the message names the reward and what it did."""


T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def reward(version: str) -> Callable[[type[T]], type[T]]:
    """Make a class a reward: a frozen dataclass whose parameters and version are part of its identity.

    Raise `version` whenever the meaning changes. `initial_state`, a class attribute or a property, maps names to
    what the reward remembers of one book at first: a number, or a row of k numbers.
    """
    if not isinstance(version, str):  # what Python passes to a decorator that is written without its call
        raise RewardError(f'reward {_name(version)}: write its decorator as @reward(version="1")')

    def decorate(cls: type[T]) -> type[T]:
        made = dataclass(frozen=True)(cls)
        made.version = version  # type: ignore[attr-defined]
        return made

    return decorate


ScalarReward = Callable[[Mapping[str, float], Mapping[str, float], float], float]
"""`(previous, current, action) -> float`. `previous` has equity, position and price; `current` also drawdown,
turnover and fees."""


class _Scalar:
    def __init__(self, function: ScalarReward, version: str) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.version = version

    def __reduce__(self) -> str:
        # By its name, as functions are: the name of the function that is inside now means this object.
        return _name(self)

    def __call__(self, c: RewardContext) -> Floats:
        if c.position.shape[1] != 1:
            raise RewardError(
                f"reward {_name(self)} is a scalar reward, for one instrument, and got {c.position.shape[1]}: "
                "write it over arrays with @reward"
            )
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


def scalar_reward(version: str) -> Callable[[ScalarReward], Reward]:
    """Make `(previous, current, action) -> float` a reward for one instrument.

    Easy to write, and called once per book and bar from Python, about a million times in a CPU second: that adds
    half a second to a training of 400,000 steps, which takes some seven.
    """
    if not isinstance(version, str):
        raise RewardError(f'reward {_name(version)}: write its decorator as @scalar_reward(version="1")')

    def decorate(function: ScalarReward) -> Reward:
        return _Scalar(function, version)

    return decorate


def is_scalar(instance: Reward) -> bool:
    """Whether a reward was made by `scalar_reward`, so that it knows one instrument only."""
    return isinstance(instance, _Scalar)


def reward_id(instance: Reward) -> str:
    """`rw_` and 12 hexadecimal digits over where the reward is defined, its version and its parameters.

    Raises `RewardError` when it has no version, or a parameter that is no plain data.
    """
    if not hasattr(instance, "version"):
        raise RewardError(f'reward {_name(instance)} has no version: decorate its class with @reward(version="1")')
    parameters: dict[str, object] = dataclasses.asdict(instance) if dataclasses.is_dataclass(instance) else {}
    what = _definition(instance)
    try:
        text = json.dumps([what.__module__, what.__qualname__, instance.version, parameters], sort_keys=True)
    except TypeError as error:
        raise RewardError(
            f"reward {_name(instance)} has a parameter without a stable identity ({error}): "
            "use numbers, text, booleans, or lists and mappings of them"
        ) from None
    return "rw_" + hashlib.sha256(text.encode()).hexdigest()[:12]


class RewardEngine:
    """Runs a reward for N books: sums its components, keeps its state, resets it where an episode ended.

    `components` maps names to the (N,) arrays that the last call returned, which stay as they are when books go on or
    begin anew; a reward of one array has the component `reward`. `state` is what the reward remembers, (N,) or (N, k)
    each.
    Raises `RewardError` for an initial state that is neither a number nor a row of numbers.
    """

    def __init__(self, instance: Reward, books: int) -> None:
        self.reward = instance
        self.components: dict[str, Floats] = {}
        declared: Mapping[str, Initial] = getattr(instance, "initial_state", {})
        self._initial = {name: self._row(name, value) for name, value in declared.items()}
        self.state = {name: np.repeat(row[None], books, axis=0) for name, row in self._initial.items()}
        self._own = dict(self.state)
        self._shape = (books,)

    def __call__(self, context: RewardContext) -> Floats:
        """Rewards (N,) float64, in an array of their own. Raises `RewardError`."""
        context.state = self.state
        if not isinstance(context.features, _Asked):
            context.features = _Asked(context.features, self)
        answer: Any = self.reward(context)
        self.components = dict(answer) if isinstance(answer, Mapping) else {"reward": answer}
        total: Floats | None = None
        for name, part in self.components.items():
            if not isinstance(part, np.ndarray) or part.shape != self._shape or part.dtype != _FLOAT64:
                what = f"{part.dtype} of shape {part.shape}" if isinstance(part, np.ndarray) else type(part).__name__
                raise self._error(f"returned {what} as {name}: it must be an array of float64 of shape {self._shape}")
            if not part.flags.owndata or (self._own and any(part is kept for kept in self._own.values())):
                self.components[name] = part.copy()  # an array of the books or of the state, which an end resets
            if total is None:
                total = part.copy()
            else:
                total += part
        if total is None:
            raise self._error("returned no components: return an array, or a mapping of at least one")
        # One reduction finds what is not finite: a NaN or an infinity survives the sum.
        if not isfinite(np.add.reduce(total)):
            bad = [name for name, part in self.components.items() if not np.isfinite(part).all()]
            where = ", ".join(bad) or "the sum of its components"
            raise self._error(
                f"returned a value that is not finite in {where}: guard its divisions and logarithms "
                f"({_circumstances(context, int(np.flatnonzero(~np.isfinite(total))[0]))})"
            )
        if (self.state or self._own) and not self._state_is_kept():
            raise self._error(
                "changed what its state consists of: declare each name in initial_state, "
                "and write into the array that is there, c.state[name][:] = ..."
            )
        return total

    def _state_is_kept(self) -> bool:
        kept = all(self.state.get(name) is own for name, own in self._own.items())
        return kept and len(self.state) == len(self._own)

    def reset(self, done: Bools) -> None:
        """Forget the books whose episode ended."""
        for name, row in self._initial.items():
            self.state[name][done] = row

    def snapshot(self, book: int = 0) -> dict[str, float | list[float]]:
        """The memory of one book, ready for JSON."""
        return {name: values[book].tolist() for name, values in self.state.items()}

    def restore(self, snapshot: Mapping[str, float | Sequence[float]], book: int = 0) -> bool:
        """Put a book's memory back; False where the reward now remembers something else, and the book begins anew."""
        kept = {name: np.shape(values) for name, values in snapshot.items()}
        fits = kept == {name: row.shape for name, row in self._initial.items()}
        for name, row in self._initial.items():
            self.state[name][book] = snapshot[name] if fits else row
        return fits

    def _row(self, name: str, value: object) -> Floats:
        """The first memory of one book, () or (k,)."""
        try:
            row = np.array([] if value is None else value, dtype=np.float64)
        except (TypeError, ValueError):
            row = np.empty(0)
        if row.ndim > 1 or not row.size:
            raise self._error(
                f"declares {' '.join(reprlib.repr(value).split())} as the initial state {name}: give what one book "
                "remembers, a number such as 0.0 or a row of numbers such as np.zeros(20)"
            )
        return row

    def lacks(self, feature: str, there: Sequence[str]) -> RewardError:
        """The error of a reward that asks for a feature that it is not given."""
        near = difflib.get_close_matches(feature, there, n=1)
        return self._error(
            f"asks for the feature {feature!r}, and "
            + (f"it sees {', '.join(there)}" if there else "it sees none")
            + (f": is it {near[0]}?" if near else ": name it in the strategy's features, or in its reward_features")
        )

    def _error(self, what: str) -> RewardError:
        return RewardError(f"reward {_name(self.reward)} {what}")


class _Asked(Mapping[str, Floats]):
    """Features by name, which say what there is where a reward asks for what is not."""

    def __init__(self, features: Mapping[str, Floats], engine: RewardEngine) -> None:
        self._features, self._engine = features, engine

    def __getitem__(self, name: str) -> Floats:
        if name not in self._features:
            raise self._engine.lacks(name, tuple(self._features))
        return self._features[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self._features.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._features

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)


def _circumstances(context: RewardContext, book: int) -> str:
    """When a book was rewarded, and what its prices did, in words."""
    time = f"the bar that closed {from_us(int(context.ts[book])).isoformat()}"
    worth = f"equity {context.equity_prev[book]:.6g} to {context.equity[book]:.6g}"
    with np.errstate(all="ignore"):
        change = np.nan_to_num(np.abs(np.log(context.price[book] / context.price_prev[book])))
    a = int(np.argmax(change))
    if change[a] < _JUMP:
        return f"{time}: {worth}"
    prices = f"{context.price_prev[book, a]:.6g} to {context.price[book, a]:.6g}"
    return f"{time}: {worth}, and a price jumps from {prices}: is the file of bars right there?"


_JUMP = float(np.log(1.5))
"""Change of a price within a bar that is rather an error in the data, as a logarithm."""


def _definition(instance: object) -> Any:
    """The object that the author wrote: a function (which a scalar reward looks like), or the class of an instance."""
    return instance if hasattr(instance, "__qualname__") else type(instance)


def _name(instance: object) -> str:
    name: str = _definition(instance).__qualname__
    return name
