"""The contract of a strategy, as functions that its author runs: see `check_strategy`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from tradeloop.common.contracts.strategy import definition, doubts, features, reward
from tradeloop.common.contracts.strategy.trial import Trial
from tradeloop.common.portfolio import RiskLimits
from tradeloop.common.strategy import Strategy


def check_strategy(strategy: Strategy, limits: RiskLimits | None = None) -> tuple[str, ...]:
    """Raise `StrategyError` for the first promise that a strategy breaks; its message says which, and the remedy.

    Returns warnings, a line each: what breaks no promise, but is rarely meant, such as a feature that is a price.
    `limits` are those of the portfolio that it is for, the defaults when left out. Deterministic.
    """
    warnings: list[str] = []
    for _ in strategy_checks(strategy, limits, warnings.append):
        pass
    return tuple(warnings)


def strategy_checks(
    strategy: Strategy, limits: RiskLimits | None = None, warn: Callable[[str], object] | None = None
) -> Iterator[str]:
    """The same one by one: yields each promise once it is found kept, then calls `warn` with each warning."""
    trial = Trial(strategy, limits or RiskLimits())
    for promise, check in _CHECKS:
        with np.errstate(all="ignore"):  # what comes of it is looked at
            check(trial)
        yield promise
    if warn is not None:
        for doubt in _DOUBTS:
            with np.errstate(all="ignore"):
                for warning in doubt(trial):
                    warn(f"strategy {strategy.name}: {warning}")


_CHECKS: Sequence[tuple[str, Callable[[Trial], None]]] = (
    ("its identity is stable, also when pickled", definition.has_an_identity),
    ("features keep a value once they have one", features.features_keep_their_values),
    ("features do not foretell the next bar of a random walk", features.features_foretell_nothing),
    ("features do not change when the future is taken away", features.features_know_no_future),
    ("features do not change when the future is another", features.features_ignore_another_future),
    ("features are the same bits in a batch and bar by bar", features.features_stream),
    ("features are the same bits after a restart at any bar", features.features_restart),
    ("the observation has its declared shape", definition.observation_has_its_shape),
    ("every action becomes finite weights within the limits", definition.actions_become_weights),
    ("the reward is finite, has its shape and leaves its context alone", reward.reward_is_sound),
    ("the reward depends on its context alone", reward.reward_knows_its_context_alone),
    ("the reward of a book is the same bits alone, among others and in any order", reward.reward_sees_each_book_alone),
)

_DOUBTS: Sequence[Callable[[Trial], Iterable[str]]] = (
    doubts.features_follow_no_level,
    doubts.reward_follows_what_was_traded,
    doubts.reward_survives_ruin,
)
