"""Algorithms and their hyper-parameters: names, types, ranges, and defaults that were chosen by measurement.

They are declared here, and not where policies are learnt, so that a wrong one is refused when a strategy is defined.
The names and meanings are those of Stable-Baselines3, where it has them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from tradeloop.common.errors import UserError


@dataclass(frozen=True, slots=True)
class Linear:
    """A rate that changes in a straight line from the first step of a training to its last."""

    start: float
    end: float = 0.0

    def __call__(self, remaining: float) -> float:
        """The rate while the share `remaining` of the steps, from 1 down to 0, is still to be taken."""
        return self.end + (self.start - self.end) * remaining


def _rate(value: object) -> float | Linear:
    ends: tuple[Any, Any] = (value.start, value.end) if isinstance(value, Linear) else (value, value)
    for end in ends:
        if not isinstance(end, int | float) or isinstance(end, bool) or not 0.0 <= end <= 1.0:
            raise ValueError("should be a number from 0 to 1, or a Linear from one to another")
    if ends == (0, 0):
        raise ValueError("should not be 0 all the time")
    return value if isinstance(value, Linear) else float(ends[0])


def _widths(value: object) -> tuple[int, ...]:
    widths = tuple(value) if isinstance(value, list | tuple) else ()
    if not widths or not all(type(width) is int and 1 <= width <= 4096 for width in widths):
        raise ValueError("should be the widths of hidden layers, whole numbers from 1 to 4096, such as (64, 64)")
    return widths


LARGEST_ROLLOUT = 10_000_000
"""Steps of all books together."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float | Linear, PlainValidator(_rate)]


class Parameters(BaseModel):
    """The hyper-parameters that every algorithm has."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    books: int = Field(default=32, ge=1, le=65_536)
    """The number of episodes that are played side by side."""
    episode_bars: int | None = Field(default=None, ge=1, le=10_000_000)
    """The steps of an episode; None for 256, or a quarter of the bars where that is less."""
    net_arch: Annotated[tuple[int, ...], PlainValidator(_widths)] = (64, 64)
    """The widths of the hidden layers, of the policy and of the value function alike."""
    activation: Literal["tanh", "relu"] = "tanh"
    log_std_init: float = Field(default=0.0, ge=-10.0, le=2.0)
    """Logarithm of the standard deviation that a `box` policy starts to explore with."""
    validation: float = Field(default=0.15, ge=0.0, le=0.5)
    """The share of the training range, at its end, that is kept apart to compare checkpoints on; 0 for none."""
    patience: int = Field(default=12, ge=0)
    """The training ends after so many rollouts without a better checkpoint; 0 to take every step."""
    learning_rate: Rate = 3e-4
    n_steps: int = Field(default=128, ge=1, le=65_536)
    """Steps of each book in a rollout."""
    gamma: Share = 0.95
    """The discount of a reward one bar later."""
    gae_lambda: Share = 0.95
    normalize_advantage: bool = True
    ent_coef: float = Field(default=0.003, ge=0.0)
    vf_coef: float = Field(default=0.5, ge=0.0)
    max_grad_norm: float = Field(default=0.5, gt=0.0)

    @model_validator(mode="after")
    def _rollout_fits(self) -> Self:
        rollout = self.books * self.n_steps
        if self.normalize_advantage and rollout < 2:
            raise ValueError("books times n_steps is 1, and one step has no deviation: take at least 2")
        if rollout > LARGEST_ROLLOUT:
            raise ValueError(
                f"books times n_steps is {rollout:,}, and all steps of a rollout are held in memory: take at most "
                f"{LARGEST_ROLLOUT:,}"
            )
        return self


class PpoParameters(Parameters):
    """Proximal policy optimisation: Schulman et al., Proximal Policy Optimization Algorithms (2017)."""

    batch_size: int = Field(default=512, ge=1)
    """The default is cut to the steps of a rollout; a larger one that is given is refused."""
    n_epochs: int = Field(default=5, ge=1, le=1000)
    clip_range: Rate = 0.2
    clip_range_vf: float | None = Field(default=None, gt=0.0)
    target_kl: float | None = Field(default=None, gt=0.0)

    @model_validator(mode="after")
    def _batch_fits(self) -> Self:
        rollout = self.books * self.n_steps
        if "batch_size" in self.model_fields_set and self.batch_size > rollout:
            raise ValueError(f"batch_size {self.batch_size} is more than the {rollout} steps of books times n_steps")
        return self


class A2cParameters(Parameters):
    """Advantage actor-critic: Mnih et al., Asynchronous Methods for Deep Reinforcement Learning (2016), in step."""

    books: int = Field(default=64, ge=1, le=65_536)
    n_steps: int = Field(default=16, ge=1, le=65_536)
    learning_rate: Rate = 7e-4
    use_rms_prop: bool = True
    rms_prop_eps: float = Field(default=1e-5, gt=0.0)


ALGORITHMS: Mapping[str, type[Parameters]] = {"PPO": PpoParameters, "A2C": A2cParameters}


def hyper_parameters(algorithm: str, given: Mapping[str, Any]) -> Parameters:
    """The parameters of an algorithm: the given ones, and the defaults of the others.

    Raises `UserError` for an algorithm or a parameter that does not exist, and for a value of the wrong type or out of
    its range.
    """
    if algorithm not in ALGORITHMS:
        raise UserError(f"there is no algorithm {algorithm!r}; take one of {', '.join(ALGORITHMS)}")
    kind = ALGORITHMS[algorithm]
    known = sorted(kind.model_fields)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise UserError(f"{algorithm} has no parameter {name}; {hint}")
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        reason = wrong["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if not wrong["loc"]:
            raise UserError(f"{algorithm}: {reason}") from None
        name = str(wrong["loc"][0])
        raise UserError(f"{algorithm}: parameter {name} is {given.get(name)!r}; it {reason}") from None
