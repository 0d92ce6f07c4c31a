"""`Strategy`: what an author says, in one place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tradeloop.common.arrays import Floats
from tradeloop.common.errors import UserError
from tradeloop.common.features import Feature, FeatureSet
from tradeloop.common.strategy.actions import SCHEMES, ActionScheme
from tradeloop.common.strategy.algorithms import Parameters, hyper_parameters
from tradeloop.common.strategy.observations import observation_size
from tradeloop.common.strategy.rewards import Reward, reward_id

_NAME = r"[a-z0-9][a-z0-9_-]{0,62}"


class StrategyError(UserError):
    """A strategy is defined wrongly, or broke its contract: the message names it and what it did."""


@dataclass(frozen=True, init=False)
class Strategy:
    """A strategy: what its policy sees, how it acts, and what it is rewarded for.

    Raises `StrategyError`, `FeatureError` or `RewardError` when a part is missing or wrong.
    """

    name: str
    """The name of its entry point: lower case, digits, `-` and `_`."""
    features: tuple[Feature, ...]
    """The policy's observation of the market; the reward sees them too."""
    reward: Reward
    window: int = 4
    """Bars of features in an observation."""
    actions: ActionScheme = field(default=SCHEMES["discrete"])
    algorithm: str = "PPO"
    """One of `algorithms.ALGORITHMS`."""
    parameters: Mapping[str, object] = field(default_factory=dict)
    """Hyper-parameters of the algorithm that differ from the platform's defaults."""
    reward_features: tuple[Feature, ...] = ()
    """Features that the reward sees, and the policy does not."""
    hyper_parameters: Parameters = field(init=False, repr=False, compare=False)
    """All hyper-parameters, the defaults included."""
    feature_set: FeatureSet = field(init=False, repr=False, compare=False)
    """All features with their identity, whoever sees them: first those of the observation, then those of the reward."""
    reward_id: str = field(init=False, repr=False, compare=False)
    """Identity of the reward, its version and its parameters."""

    def __init__(
        self,
        name: str,
        features: Sequence[Feature],
        reward: Reward,
        window: int = 4,
        actions: ActionScheme | str = "discrete",
        algorithm: str = "PPO",
        parameters: Mapping[str, object] | None = None,
        reward_features: Sequence[Feature] = (),
        market_features: Sequence[Feature] = (),
    ) -> None:
        """There are no `market_features`: whoever gives some is told where costs of fills are set."""
        if not re.fullmatch(_NAME, name):
            raise StrategyError(f"strategy {name!r}: a name is lower-case letters, digits, - and _, at most 63 of them")
        if market_features:
            raise StrategyError(
                f"strategy {name}: the simulator reads no features: what fills cost is in the portfolio's file (costs: "
                "slippage_bps, impact_bps, max_participation); a feature for the reward alone goes into reward_features"
            )
        for one in (*features, *reward_features):
            if isinstance(one, tuple | list):
                raise StrategyError(
                    f"strategy {name}: one of its features is a list of {len(one)}; put a star before what makes "
                    "several, as in *time_of_day()"
                )
            if not isinstance(one, Feature):
                raise StrategyError(f'strategy {name}: {one!r} is no feature; write e.g. talib("RSI") or log_return(1)')
        if not isinstance(window, int) or window < 1:
            raise StrategyError(f"strategy {name}: the window is {window!r}; it must be a whole number of bars above 0")
        if isinstance(actions, str):
            if actions not in SCHEMES:
                raise StrategyError(f"strategy {name}: no action scheme {actions!r}; there are {', '.join(SCHEMES)}")
            actions = SCHEMES[actions]
        for given in (actions, reward):
            if isinstance(given, type):
                raise StrategyError(f"strategy {name}: {given.__name__} is a class; write {given.__name__}()")
        if not callable(reward):
            raise StrategyError(f"strategy {name}: its reward is a {type(reward).__name__}; make one with @reward")
        if not features:
            raise StrategyError(f"strategy {name} has no features: a policy that sees nothing has nothing to learn")
        try:
            chosen = hyper_parameters(algorithm, parameters or {})
        except UserError as error:
            raise StrategyError(f"strategy {name}: {error}") from None
        for key, value in {
            "name": name,
            "features": tuple(features),
            "reward_features": tuple(reward_features),
            "reward": reward,
            "window": window,
            "actions": actions,
            "algorithm": algorithm,
            "parameters": dict(parameters or {}),
            "hyper_parameters": chosen,
            # Made here and now, so that a mistake in them shows here.
            "feature_set": FeatureSet((*features, *reward_features)),
            "reward_id": reward_id(reward),
        }.items():
            object.__setattr__(self, key, value)

    def observation_size(self, instruments: int) -> int:
        """Length of an observation of so many instruments."""
        return observation_size(self.window, instruments, len(self.features))

    def observed(self, values: Floats) -> Floats:
        """The values (..., F) of the features that the policy sees, a view."""
        seen: Floats = values[..., : len(self.features)]
        return seen
