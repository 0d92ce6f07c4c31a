"""The contract of a strategy, as functions that its author runs: see `check_strategy`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tradeloop.common.contracts.strategy import definition, features, reward
from tradeloop.common.contracts.strategy.trial import Trial
from tradeloop.common.portfolio import RiskLimits
from tradeloop.common.strategy import Strategy


def check_strategy(strategy: Strategy, limits: RiskLimits | None = None) -> None:
    """Raise `StrategyError` for the first promise that a strategy breaks; its message says which, and the remedy.

    `limits` are those of the portfolio that it is for, the defaults when left out. Deterministic.
    """
    for _ in strategy_checks(strategy, limits):
        pass


def strategy_checks(strategy: Strategy, limits: RiskLimits | None = None) -> Iterator[str]:
    """The same one by one: yields each promise once it is found kept."""
    trial = Trial(strategy, limits or RiskLimits())
    for promise, check in _CHECKS:
        with np.errstate(all="ignore"):  # what comes of it is looked at
            check(trial)
        yield promise


_CHECKS: Sequence[tuple[str, Callable[[Trial], None]]] = (
    ("its identity is stable, also when pickled", definition.has_an_identity),
    ("features keep a value once they have one", features.features_keep_their_values),
    ("features do not change when the future is taken away", features.features_know_no_future),
    ("features are the same bits in a batch and bar by bar", features.features_stream),
    ("the observation has its declared shape", definition.observation_has_its_shape),
    ("every action becomes finite weights within the limits", definition.actions_become_weights),
    ("the reward is finite, has its shape and leaves its context alone", reward.reward_is_sound),
    ("the reward depends on its context alone", reward.reward_knows_its_context_alone),
    ("the reward of a book is the same bits alone, among others and in any order", reward.reward_sees_each_book_alone),
)
