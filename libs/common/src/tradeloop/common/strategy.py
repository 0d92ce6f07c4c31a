"""The plug-in interface: all that a strategy package imports.

A strategy is an installed package with an entry point in the group `tradeloop.strategies` that names a
`Strategy`. It says what the policy sees (features, window), how it acts and what it is rewarded for.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import entry_points

from tradeloop.common.actions import SCHEMES, ActionScheme, Discrete, PortfolioWeights, TargetPosition
from tradeloop.common.errors import UserError
from tradeloop.common.features import Feature, FeatureSet, log_return, on, relative, talib, windowed
from tradeloop.common.observations import observation_size
from tradeloop.common.rewards import Reward, RewardContext, reward, reward_id, scalar_reward

__all__ = [
    "ActionScheme",
    "Discrete",
    "Feature",
    "PortfolioWeights",
    "Reward",
    "RewardContext",
    "Strategy",
    "TargetPosition",
    "log_return",
    "on",
    "relative",
    "reward",
    "scalar_reward",
    "talib",
    "windowed",
]

GROUP = "tradeloop.strategies"
"""The entry point group."""


@dataclass(frozen=True)
class Strategy:
    """What a policy sees, how it acts, and what it is rewarded for.

    Raises ValueError when a part is missing or contradicts another.
    """

    name: str
    features: tuple[Feature, ...]
    reward: Reward
    window: int = 32
    """Bars of features in an observation."""
    actions: ActionScheme = field(default=SCHEMES["target_position"])
    algorithm: str = "PPO"
    """An algorithm of the training engine."""
    parameters: Mapping[str, object] = field(default_factory=dict)
    """Hyper-parameters of the algorithm that differ from the platform's defaults."""

    def __init__(
        self,
        name: str,
        features: list[Feature] | tuple[Feature, ...],
        reward: Reward,
        window: int = 32,
        actions: ActionScheme | str = "target_position",
        algorithm: str = "PPO",
        parameters: Mapping[str, object] | None = None,
    ) -> None:
        if not features:
            raise ValueError(f"strategy {name}: give it at least one feature")
        if window < 1:
            raise ValueError(f"strategy {name}: the window is {window} bars; it must be at least 1")
        if isinstance(actions, str):
            if actions not in SCHEMES:
                raise ValueError(f"strategy {name}: no action scheme {actions!r}; there are {', '.join(SCHEMES)}")
            actions = SCHEMES[actions]
        if not callable(reward):
            raise ValueError(f"strategy {name}: its reward is no callable; give an instance, such as MyReward()")
        for key, value in {
            "name": name,
            "features": tuple(features),
            "reward": reward,
            "window": window,
            "actions": actions,
            "algorithm": algorithm,
            "parameters": dict(parameters or {}),
        }.items():
            object.__setattr__(self, key, value)

    @cached_property
    def feature_set(self) -> FeatureSet:
        """The features, with their identity."""
        return FeatureSet(self.features)

    @property
    def reward_id(self) -> str:
        """Identity of the reward, its version and its parameters."""
        return reward_id(self.reward)

    def observation_size(self, instruments: int) -> int:
        """Length of an observation of so many instruments."""
        return observation_size(self.window, instruments, len(self.feature_set.names))


def installed() -> dict[str, str]:
    """Names of the installed strategies, and where each lives (`module:attribute`)."""
    return {point.name: point.value for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)}


def load(name: str) -> Strategy:
    """The installed strategy of that name.

    Raises `UserError` when there is none, when its package does not import, or when it is no `Strategy`.
    """
    found = [point for point in entry_points(group=GROUP) if point.name == name]
    if not found:
        names = sorted(installed())
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"installed are: {', '.join(names) or 'none'}"
        raise UserError(f"strategy {name} is not installed; {hint}")
    try:
        strategy = found[0].load()
    except Exception as error:
        raise UserError(
            f"strategy {name}: {found[0].value} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(strategy, Strategy):
        raise UserError(f"strategy {name}: {found[0].value} is a {type(strategy).__name__}, not a Strategy")
    if strategy.name != name:
        raise UserError(f"strategy {name}: {found[0].value} calls itself {strategy.name}; give both the same name")
    return strategy
