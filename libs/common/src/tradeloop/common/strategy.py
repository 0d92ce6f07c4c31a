"""The plug-in interface: all that a strategy package imports.

A strategy is an installed package with an entry point in the group `tradeloop.strategies` that names a
`Strategy`. It says what the policy sees (features, window), how it acts and what it is rewarded for.
"""

from __future__ import annotations

import difflib
import importlib
import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path

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
    "StrategyError",
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

_NAME = r"[a-z0-9][a-z0-9_-]{0,62}"


class StrategyError(UserError):
    """A strategy is defined wrongly, or broke its contract: the message names it and what it did."""


@dataclass(frozen=True, init=False)
class Strategy:
    """What a policy sees, how it acts, and what it is rewarded for.

    Raises `StrategyError`, `FeatureError` or `RewardError` when a part is missing or wrong.
    """

    name: str
    """As its entry point is named: lower case, digits, `-` and `_`."""
    features: tuple[Feature, ...]
    reward: Reward
    window: int = 32
    """Bars of features in an observation."""
    actions: ActionScheme = field(default=SCHEMES["target_position"])
    algorithm: str = "PPO"
    """An algorithm of the training engine."""
    parameters: Mapping[str, object] = field(default_factory=dict)
    """Hyper-parameters of the algorithm that differ from the platform's defaults."""
    feature_set: FeatureSet = field(init=False, repr=False, compare=False)
    """The features, with their identity."""
    reward_id: str = field(init=False, repr=False, compare=False)
    """Identity of the reward, its version and its parameters."""

    def __init__(
        self,
        name: str,
        features: Sequence[Feature],
        reward: Reward,
        window: int = 32,
        actions: ActionScheme | str = "target_position",
        algorithm: str = "PPO",
        parameters: Mapping[str, object] | None = None,
    ) -> None:
        if not re.fullmatch(_NAME, name):
            raise StrategyError(f"strategy {name!r}: a name is lower-case letters, digits, - and _, at most 63 of them")
        for one in features:
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
        for key, value in {
            "name": name,
            "features": tuple(features),
            "reward": reward,
            "window": window,
            "actions": actions,
            "algorithm": algorithm,
            "parameters": dict(parameters or {}),
            # Made here and now, so that a mistake in them shows here.
            "feature_set": FeatureSet(features),
            "reward_id": reward_id(reward),
        }.items():
            object.__setattr__(self, key, value)

    def observation_size(self, instruments: int) -> int:
        """Length of an observation of so many instruments."""
        return observation_size(self.window, instruments, len(self.feature_set.names))


def installed() -> dict[str, str]:
    """Names of the installed strategies, and where each lives (`module:attribute`)."""
    return {point.name: point.value for point in sorted(entry_points(group=GROUP))}


def load(name: str) -> Strategy:
    """The installed strategy of that name.

    Raises `StrategyError` when there is none or more than one, when its package does not import, or when what it
    names is no `Strategy`.
    """
    found = {point.value: point for point in entry_points(group=GROUP, name=name)}
    if not found:
        names = list(installed())
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"installed are: {', '.join(names) or 'none'}"
        raise StrategyError(f"strategy {name} is not installed; {hint}")
    if len(found) > 1:
        raise StrategyError(
            f"strategy {name} is in several packages, {' and '.join(sorted(found))}; uninstall all but one"
        )
    [(where, point)] = found.items()
    try:
        strategy = point.load()
    except Exception as error:
        raise StrategyError(f"strategy {name}: {where} cannot be loaded: {in_one_line(error)}") from error
    if not isinstance(strategy, Strategy):
        raise StrategyError(f"strategy {name}: {where} is a {type(strategy).__name__}, not a Strategy")
    if strategy.name != name:
        raise StrategyError(f"strategy {name}: {where} calls itself {strategy.name}; give both the same name")
    return strategy


def in_one_line(error: BaseException) -> str:
    """What went wrong inside an author's code: the error, and which line of theirs raised it."""
    # What lies between them and here: this package, and Python's import of theirs.
    between = (str(Path(__file__).parent), str(Path(importlib.__file__).parent), "<frozen")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        # The backport of Python's own importlib.metadata takes its place once any library has imported it.
        if not frame.filename.startswith(between) and "importlib_metadata" not in Path(frame.filename).parts
    ]
    theirs = [frame for frame in frames if frame.filename == frames[0].filename]
    where = f" ({'/'.join(Path(theirs[-1].filename).parts[-2:])}:{theirs[-1].lineno})" if theirs else ""
    return " ".join(f"{type(error).__name__}: {error}{where}".split())
