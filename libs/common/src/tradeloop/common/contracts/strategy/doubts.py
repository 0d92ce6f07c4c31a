"""Doubts about a strategy: what keeps every promise and is still rarely meant. Each is a warning with its remedy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tradeloop.common.arrays import Floats
from tradeloop.common.contracts.strategy.reward import rewards_of
from tradeloop.common.contracts.strategy.trial import BOOKS, CAPITAL, EVERYONE, SEED, Trial
from tradeloop.common.errors import UserError
from tradeloop.common.market import BAR_PRICES, BarArrays
from tradeloop.common.strategy.rewards import LEAST_EQUITY, RewardEngine

_TIMES = 8
"""A power of two: what does not depend on the scale of prices stays the same to the last bit."""
_LATER_US = 364 * 86_400_000_000
"""Whole weeks, and about a year, so that the hour, the day of the week and the season stay."""
_MOVED = 0.5
"""A feature has moved when its values change by more than this, in their own standard deviations."""


def features_follow_no_level(trial: Trial) -> Iterator[str]:
    """Multiply the prices: a feature that keeps its range does not mind."""
    bars = trial.bars
    scaled = replace(bars, **{name: getattr(bars, name) * _TIMES for name in BAR_PRICES})
    yield from _moved(
        trial,
        scaled,
        f"with all prices {_TIMES} times as high",
        "price",
        "a policy knows such values from the prices that it was trained on only; take relative(...), a return, or a "
        "ratio of prices",
    )
    if any("time" in feature.inputs for feature in trial.features.features):
        later = replace(bars, open_us=bars.open_us + _LATER_US, close_us=bars.close_us + _LATER_US)
        yield from _moved(
            trial,
            later,
            "a year later",
            "date",
            "a policy will trade at dates that it was not trained on; take the hour, the day of the week, or a "
            "difference of times",
        )


def reward_follows_what_was_traded(trial: Trial) -> Iterator[str]:
    """Change what was proposed and nothing else: the reward of what happened stays the same."""
    rng = np.random.default_rng(SEED + 1)
    for count, steps in trial.rollouts.items():
        others = [
            replace(step, context=replace(step.context, action=trial.actions(rng, BOOKS, count))) for step in steps
        ]
        if not np.array_equal(rewards_of(trial, steps, EVERYONE), rewards_of(trial, others, EVERYONE)):
            yield (
                "its reward depends on the action, which is what the policy proposed and not what was traded: an order "
                "that the no-trade band, the risk gate or the market kept back counts as if it had been filled; "
                "take c.position, c.turnover or c.traded_notional"
            )
            return


def reward_survives_ruin(trial: Trial) -> Iterator[str]:
    """Let books lose more than they have, as a price that jumps can make them."""
    for steps in trial.rollouts.values():
        last = steps[-1]
        ruined = replace(
            last.context,
            equity_prev=np.full(BOOKS, CAPITAL),
            equity=np.full(BOOKS, LEAST_EQUITY * CAPITAL),
            drawdown=np.full(BOOKS, 1.2),
            terminated=np.ones(BOOKS, dtype=np.bool_),
            truncated=np.zeros(BOOKS, dtype=np.bool_),
        )
        engine = RewardEngine(trial.strategy.reward, BOOKS)
        try:
            trial.call("its reward", engine, replace(last, context=ruined).of(EVERYONE, trial.features.names))
        except UserError as error:
            yield (
                f"its training ends with an error once a book loses more than it has: {error}; c.equity is then "
                f"{LEAST_EQUITY:g} times the capital, and c.drawdown above 1"
            )
            return


def _moved(trial: Trial, bars: BarArrays, circumstance: str, what: str, remedy: str) -> Iterator[str]:
    """Which features have other values on these bars than on the trial's."""
    try:
        values = trial.values(bars)
    except UserError as error:
        yield f"{circumstance}, its features cannot be computed: {error}"
        return
    moved = [f for f in range(values.shape[2]) if _differ(trial.batch[..., f], values[..., f])]
    if moved:
        names = ", ".join(trial.features.names[f] for f in moved)
        before, after = (_median(one[..., moved[0]]) for one in (trial.batch, values))
        median = f"{trial.features.names[moved[0]]} goes from {before:.4g} to {after:.4g} in the median"
        yield f"features that follow the {what}: {names} ({circumstance}, {median}); {remedy}"


def _differ(one: Floats, other: Floats) -> bool:
    known = ~np.isnan(one)
    return bool(np.isnan(other[known]).any() or _median(np.abs(other - one)) > _MOVED * one[known].std())


def _median(values: Floats) -> float:
    """The median of what is known, NaN where nothing is."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else math.nan
