"""The promises about what a strategy declares: its identity, its observation and its actions."""

from __future__ import annotations

import pickle

import numpy as np

from tradeloop.common.arrays import Floats
from tradeloop.common.contracts.strategy.trial import SEED, Trial
from tradeloop.common.simulation import observe
from tradeloop.common.strategy import Strategy
from tradeloop.common.strategy.observations import ObservationBuilder, account_size


def has_an_identity(trial: Trial) -> None:
    strategy = trial.strategy
    for feature in strategy.feature_set.features:
        if " at 0x" in feature.definition:
            raise trial.broken(
                f"has no stable identity: the definition of feature {feature.name} holds an address in memory; "
                "describe the feature by its parameters"
            )
    copy = trial.call("pickling, so define what it uses at the top level of a module", _pickled, strategy)
    if (copy.reward_id, copy.feature_set.id, copy.actions.name) != (
        strategy.reward_id,
        strategy.feature_set.id,
        strategy.actions.name,
    ):
        raise trial.broken("is another after pickling: let its parts keep all their parameters when they are pickled")


def _pickled(strategy: Strategy) -> Strategy:
    copy: Strategy = pickle.loads(pickle.dumps(strategy))
    # Made anew from its parts, so that the identities are derived again.
    return Strategy(
        copy.name, copy.features, copy.reward, copy.window, copy.actions, reward_features=copy.reward_features
    )


def observation_has_its_shape(trial: Trial) -> None:
    strategy, count = trial.strategy, len(trial.ids)
    size = strategy.observation_size(count)
    seen = strategy.observed(trial.batch)
    builder = ObservationBuilder(strategy.window, count, seen.shape[2])
    for row in seen[-strategy.window :]:
        builder.append(row)
    one = builder.build(np.zeros(account_size(count)))
    if not np.isfinite(one).all():
        large = ~np.isfinite(seen.astype(np.float32)[-strategy.window :]).all(axis=(0, 1))
        raise trial.broken(f"observes what no float32 can hold: scale {trial.names(large)} down")
    flat = seen.reshape(len(seen), -1).astype(np.float32)
    last = np.array([len(flat) - 1])
    many = observe(flat, strategy.window, last, np.zeros((1, account_size(count))), np.empty((1, size), np.float32))
    if one.shape != (1, size) or not np.array_equal(one, many):
        raise trial.broken(f"observes {one.shape[1]} numbers, not the {size} that it declares")


def actions_become_weights(trial: Trial) -> None:
    scheme, limits = trial.strategy.actions, trial.limits
    who = f"action scheme {getattr(scheme, 'name', type(scheme).__name__)}"
    if not trial.call(who, lambda: scheme.kind == "box" or (scheme.kind == "discrete" and scheme.choices > 1)):
        raise trial.broken(
            f"has an {who} of kind {scheme.kind!r}: let it be box, or discrete with at least two choices"
        )
    for count in trial.counts:
        size = trial.call(who, scheme.size, count)
        extremes = _extremes(trial, size)
        action = np.concatenate([extremes, trial.call(who, trial.actions, np.random.default_rng(SEED), 64, count)])
        given = action.copy()
        weights = trial.call(who, scheme.weights, given)
        if not isinstance(weights, np.ndarray) or weights.shape != (len(action), count) or weights.dtype != np.float64:
            what = (
                f"{weights.dtype} of shape {weights.shape}"
                if isinstance(weights, np.ndarray)
                else type(weights).__name__
            )
            raise trial.broken(f"has an {who} that gives {what}: let it be float64 of shape {(len(action), count)}")
        if not np.array_equal(given, action):
            raise trial.broken(f"has an {who} that writes into the actions: let it leave them as they are")
        if not np.isfinite(weights).all():
            wrong = action[~np.isfinite(weights).all(axis=1)][0].tolist()
            raise trial.broken(f"has an {who} that answers {wrong} with a weight that is not finite")
        for limit, most, reached in (
            ("max_position", limits.max_position, np.abs(weights).max()),
            ("max_leverage", limits.max_leverage, np.abs(weights).sum(axis=1).max()),
            ("max_order_notional", limits.largest_order, np.ptp(weights, axis=0).max()),
        ):
            if reached > most:
                raise trial.broken(
                    f"has an {who} that asks for {reached:.3g} times the equity, and {limit} of its portfolio "
                    f"is {most:.3g}, so such orders are denied; ask for less, or raise that limit of the portfolio"
                )
        alone = np.concatenate([trial.call(who, scheme.weights, action[n : n + 1].copy()) for n in range(len(action))])
        if not np.array_equal(alone, weights):
            raise trial.broken(
                f"has an {who} that gives a book other weights alone than among others: use each row for itself"
            )
    for count in (1,) if trial.counts == (1,) else _UNIVERSES:
        _band_can_be_crossed(trial, who, count)


_UNIVERSES = (1, 2, 3, 8)
"""Numbers of instruments that the no-trade band is tried with: one in weights may be too wide for more of them."""


def _extremes(trial: Trial, size: int) -> Floats:
    """Actions at the ends of what a policy can answer, all numbers alike and each against the others."""
    scheme = trial.strategy.actions
    ends = (0.0, scheme.choices - 1.0) if scheme.kind == "discrete" else (0.0, -1.0, 1.0, -1e9, 1e9)
    alike = [np.full((1, size), end) for end in ends]
    low, high = (0.0, scheme.choices - 1.0) if scheme.kind == "discrete" else (-1.0, 1.0)
    return np.concatenate([*alike, np.where(np.eye(size) > 0.0, high, low)])


def _band_can_be_crossed(trial: Trial, who: str, count: int) -> None:
    scheme = trial.strategy.actions
    if not callable(getattr(scheme, "band", None)):
        raise trial.broken(
            f"has an {who} without band(instruments), which took the place of no_trade_band: let it give the smallest "
            "change of a weight that is worth an order, such as 0.05 / instruments"
        )
    band = trial.call(who, scheme.band, count)
    if not 0.0 <= band < np.inf:
        raise trial.broken(f"has an {who} with a no-trade band of {band}: let it be 0 or more")
    size = trial.call(who, scheme.size, count)
    choices = [np.full((1, size), float(choice)) for choice in range(scheme.choices)]
    weights = trial.call(who, scheme.weights, np.concatenate([_extremes(trial, size), *choices]))
    largest = float(np.abs(weights).max())
    if 0.0 < largest < band:
        raise trial.broken(
            f"has an {who} whose no-trade band of {band:.3g} is wider than any of its weights with {count} "
            f"instrument{'s' * (count != 1)}, {largest:.3g} at most, so nothing would ever be traded: make it narrower"
        )
