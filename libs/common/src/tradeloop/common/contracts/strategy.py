"""The contract of a strategy, as functions that its author runs: see `check_strategy`.

A strategy is tried on random walks with jumps, gaps, funding and a stretch in which nothing trades, from a fixed
seed. Its reward gets what the real simulator made of random actions.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.errors import UserError
from tradeloop.common.features import BarValues, FeatureSet, FeatureStream
from tradeloop.common.features.feature import FIELDS
from tradeloop.common.market import BAR_COLUMNS, BarArrays, Instrument, Timeframe, align, resample
from tradeloop.common.portfolio import Costs, RiskLimits
from tradeloop.common.simulation import Simulator, market_of, observe
from tradeloop.common.strategy import Strategy, StrategyError
from tradeloop.common.strategy.installed import in_one_line
from tradeloop.common.strategy.observations import ObservationBuilder, account_size
from tradeloop.common.strategy.rewards import RewardContext, RewardEngine, is_scalar

Floats = NDArray[np.float64]

_SEED = 20240229
_IDS = ("check:A", "check:B")
_BOOKS, _STEPS = 8, 64
_EVERYONE = np.arange(_BOOKS)
_STREAMED = 600
"""The last bars, which are streamed: more than lie between two anchors."""
_UNBROKEN = 200
"""The last of them, without gaps: the books start there."""
_SHORTEST = 1200
"""Bars in a trial, or more until every feature has warmed up."""
_START_US = 1_577_836_800_000_000
"""2020-01-01, UTC."""


def check_strategy(strategy: Strategy, limits: RiskLimits | None = None) -> None:
    """Raise `StrategyError` for the first promise that a strategy breaks; its message says which, and the remedy.

    `limits` are those of the portfolio that it is for, the defaults when left out. Deterministic.
    """
    for _ in strategy_checks(strategy, limits):
        pass


def strategy_checks(strategy: Strategy, limits: RiskLimits | None = None) -> Iterator[str]:
    """The same one by one: yields each promise once it is found kept."""
    trial = _Trial(strategy, limits or RiskLimits())
    for promise, check in _CHECKS:
        with np.errstate(all="ignore"):  # what comes of it is looked at
            check(trial)
        yield promise


class _Trial:
    """A strategy, and the bars that it is tried on."""

    def __init__(self, strategy: Strategy, limits: RiskLimits) -> None:
        self.strategy, self.limits = strategy, limits
        self.features = strategy.feature_set
        shortest = min((t.seconds for t in self.features.timeframes), default=Timeframe.H4.seconds)
        base = max((t for t in Timeframe if t.seconds < shortest), key=lambda t: t.seconds, default=None)
        if base is None:
            raise self.broken(
                f"has features on {self.features.timeframes[0]}, the shortest timeframe: leave their on(...) out"
            )
        self.base = base

    def broken(self, what: str) -> StrategyError:
        """The error to raise."""
        return StrategyError(f"strategy {self.strategy.name} {what}")

    def call(self, what: str, function: Callable[..., Any], *arguments: object) -> Any:
        """Run what the author wrote."""
        try:
            return function(*arguments)
        except UserError as error:
            raise self.broken(f"is wrong: {error}") from error
        except Exception as error:
            raise self.broken(f"fails in {what}: {in_one_line(error)}") from error

    @cached_property
    def bars(self) -> BarArrays:
        """As many bars as it takes until every feature has a value, and `_STREAMED` more."""
        most = max((f.history + 1) * (f.timeframe or self.base).us // self.base.us for f in self.features.features)
        length = _SHORTEST
        while True:
            bars = _random_walks(length, self.base)
            values = self.values(bars)
            late = np.isnan(values[: length - _STREAMED - self.strategy.window]).all(axis=0).any(axis=0)
            if not late.any():
                return bars
            if length > most + _STREAMED + self.strategy.window:
                raise self.broken(
                    f"has a feature without values: {self.names(late)} gives none in {length} bars of {self.base}"
                )
            length *= 4

    def values(self, bars: BarArrays) -> Floats:
        """Features in a batch, (T, A, F)."""
        frames = self.frames(bars)
        try:
            return self.features.compute(frames, self.base).values
        except UserError as error:
            raise self.broken(f"is wrong: {error}") from error
        except Exception:
            for feature in self.features.features:  # to say which
                self.call(f"feature {feature.name}", FeatureSet([feature]).compute, frames, self.base)
            raise

    @cached_property
    def batch(self) -> Floats:
        """Features of all bars, (T, A, F)."""
        return self.values(self.bars)

    def frames(self, bars: BarArrays) -> Mapping[Timeframe, BarArrays]:
        """The bars, and those of the higher timeframes that have closed with them."""
        return {self.base: bars} | {higher: resample(bars, self.base, higher) for higher in self.features.timeframes}

    def names(self, which: Any) -> str:
        """The names of the features that are marked in (F,)."""
        return ", ".join(name for f, name in enumerate(self.features.names) if which[f])

    def difference(self, one: Floats, other: Floats) -> str | None:
        """Which features two arrays (T, A, F) do not agree on."""
        differ = (~((one == other) | (np.isnan(one) & np.isnan(other)))).any(axis=(0, 1))
        return f"feature {self.names(differ)}" if differ.any() else None

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """How many instruments the policy, the actions and the reward are tried with."""
        return (1,) if is_scalar(self.strategy.reward) else (1, 2)

    def actions(self, rng: np.random.Generator, books: int, instruments: int) -> Floats:
        """Random actions of a policy, (N, size), the extremes among them."""
        scheme = self.strategy.actions
        shape = (books, scheme.size(instruments))
        if scheme.kind == "discrete":
            return rng.integers(scheme.choices, size=shape).astype(np.float64)
        return np.clip(rng.normal(size=shape), -1.0, 1.0)

    @cached_property
    def rollouts(self) -> dict[int, list[_Step]]:
        """What random actions came to, by the number of instruments."""
        return {count: self._rollout(count) for count in self.counts}

    def _rollout(self, count: int) -> list[_Step]:
        rng = np.random.default_rng(_SEED)
        bars = self.bars
        market = market_of(_first(bars, count))
        simulator = Simulator(
            _BOOKS,
            [Instrument(id=name) for name in bars.instruments[:count]],
            capital=100_000.0,
            costs=Costs(),
            limits=self.limits.model_copy(update={"max_drawdown": min(0.1, self.limits.max_drawdown)}),
            no_trade_band=self.strategy.actions.no_trade_band,
        )
        rows = rng.integers(len(bars) - _UNBROKEN, len(bars) - _STEPS, size=_BOOKS)
        simulator.reset(market, rows)
        steps = []
        for _ in range(_STEPS):
            action = self.actions(rng, _BOOKS, count)
            decided = rows.copy()
            simulator.step(market, rows, self.strategy.actions.weights(action))
            terminated = simulator.books.halt != 0
            truncated = ~terminated & (rng.random(_BOOKS) < 0.05)
            context = simulator.context(
                action, bars.close_us[decided], bars.close_us[rows], terminated, truncated, features={}
            )
            steps.append(_Step(_part(context, _EVERYONE), self.batch[decided, :count], terminated | truncated))
            simulator.reset(market, rows, np.flatnonzero(steps[-1].done))
        return steps


@dataclass(frozen=True)
class _Step:
    """What one bar did to the books, copied. `features` is (N, A, F)."""

    context: RewardContext
    features: Floats
    done: NDArray[np.bool_]

    def of(self, books: NDArray[np.int64], names: Sequence[str]) -> RewardContext:
        """The context of some of the books, in their order. Its arrays may be spoilt."""
        features = self.features[books]
        # Views with strides, as in a backtest: arithmetic must not depend on that either.
        return replace(_part(self.context, books), features={name: features[..., f] for f, name in enumerate(names)})


_ARRAYS = tuple(f.name for f in fields(RewardContext) if f.name not in {"features", "state"})


def _part(context: RewardContext, books: NDArray[np.int64]) -> RewardContext:
    return RewardContext(**{name: getattr(context, name)[books] for name in _ARRAYS})


def _first(bars: BarArrays, count: int) -> BarArrays:
    """The bars of the first instruments."""
    columns = {name: getattr(bars, name)[:, :count] for name in (*BAR_COLUMNS, "present")}
    return replace(bars, instruments=bars.instruments[:count], **columns)


def _random_walks(length: int, base: Timeframe) -> BarArrays:
    """Bars of two instruments: the second lacks some of its bars, both stand still for a while."""
    rng = np.random.default_rng(_SEED)
    open_us = _START_US + np.arange(length) * base.us
    still = slice(length - _STREAMED + 40, length - _STREAMED + 140)
    series = []
    for a in range(len(_IDS)):
        change = np.clip(0.01 * rng.standard_t(3, size=length), -0.2, 0.2)
        change[still] = 0.0
        walk = np.cumsum(change)
        close = 100.0 * np.exp(np.abs((walk + 3.0) % 4.0 - 2.0) - 1.0)  # folded, so that it stays within a factor of e
        opened = np.r_[100.0, close[:-1]]
        wick = 0.5 * np.abs(change) * rng.random((2, length))
        one: dict[str, NDArray[Any]] = {
            "open_us": open_us,
            "open": opened,
            "high": np.maximum(opened, close) * (1.0 + wick[0]),
            "low": np.minimum(opened, close) * (1.0 - wick[1]),
            "close": close,
            "volume": rng.lognormal(5.0, 1.0, size=length),
            "funding_rate": rng.normal(0.0, 1e-4, size=length),
        }
        one["volume"][still] = 0.0
        there = (rng.random(length) > 0.02 * a) | (np.arange(length) >= length - _UNBROKEN)
        series.append({name: column[there] for name, column in one.items()})
    return align(_IDS, base, series)


def _has_an_identity(trial: _Trial) -> None:
    strategy = trial.strategy
    for feature in strategy.features:
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
    return Strategy(copy.name, copy.features, copy.reward, copy.window, copy.actions)


def _features_keep_their_values(trial: _Trial) -> None:
    known = ~np.isnan(trial.batch)
    lost = np.logical_or.accumulate(known) & ~known
    if lost.any():
        row, _, column = np.argwhere(lost)[0]
        raise trial.broken(
            f"has a feature that loses its value: {trial.features.names[column]} is NaN at bar {row}, after bars at "
            "which it had one; guard it where the price stands still or nothing trades, e.g. a division by zero"
        )


def _features_know_no_future(trial: _Trial) -> None:
    for cut in (len(trial.bars) - 1, len(trial.bars) - 151, len(trial.bars) - 313):
        if where := trial.difference(trial.values(trial.bars.slice(0, cut)), trial.batch[:cut]):
            raise trial.broken(f"looks ahead: {where} changes when the bars from {cut} on are taken away")


def _features_stream(trial: _Trial) -> None:
    bars, base = trial.bars, trial.base
    start = len(bars) - _STREAMED
    stream = FeatureStream(trial.features, base, bars.instruments)
    frames, past = trial.frames(bars), trial.frames(bars.slice(0, start))
    trial.call("a feature's state", stream.open, past)
    taken = {timeframe: len(past[timeframe]) for timeframe in trial.features.timeframes}
    for t in range(start, len(bars)):
        for timeframe, next_one in taken.items():
            higher = frames[timeframe]
            if next_one < len(higher) and higher.close_us[next_one] <= bars.close_us[t]:
                trial.call("a feature's state", stream.update_higher, timeframe, *_frame(higher, next_one))
                taken[timeframe] += 1
        values = np.array(trial.call("a feature's state", stream.update, *_frame(bars, t)))
        if where := trial.difference(values[None], trial.batch[t : t + 1]):
            raise trial.broken(f"trains on other values than it trades on: bar by bar, {where} differs")


def _frame(bars: BarArrays, t: int) -> tuple[int, int, list[BarValues | None]]:
    """A frame as a stream takes it."""
    columns = [getattr(bars, name)[t].tolist() for name in FIELDS]
    rows = [row if there else None for row, there in zip(zip(*columns, strict=True), bars.present[t], strict=True)]
    return int(bars.open_us[t]), int(bars.close_us[t]), rows


def _observation_has_its_shape(trial: _Trial) -> None:
    strategy, count = trial.strategy, len(_IDS)
    size = strategy.observation_size(count)
    builder = ObservationBuilder(strategy.window, count, len(trial.features.names))
    for row in trial.batch[-strategy.window :]:
        builder.append(row)
    one = builder.build(np.zeros(account_size(count)))
    if not np.isfinite(one).all():
        large = ~np.isfinite(trial.batch.astype(np.float32)[-strategy.window :]).all(axis=(0, 1))
        raise trial.broken(f"observes what no float32 can hold: scale {trial.names(large)} down")
    flat = trial.batch.reshape(len(trial.batch), -1).astype(np.float32)
    last = np.array([len(flat) - 1])
    many = observe(flat, strategy.window, last, np.zeros((1, account_size(count))), np.empty((1, size), np.float32))
    if one.shape != (1, size) or not np.array_equal(one, many):
        raise trial.broken(f"observes {one.shape[1]} numbers, not the {size} that it declares")


def _actions_become_weights(trial: _Trial) -> None:
    scheme, limits = trial.strategy.actions, trial.limits
    who = f"action scheme {getattr(scheme, 'name', type(scheme).__name__)}"
    if not trial.call(who, lambda: scheme.kind == "box" or (scheme.kind == "discrete" and scheme.choices > 1)):
        raise trial.broken(
            f"has an {who} of kind {scheme.kind!r}: let it be box, or discrete with at least two choices"
        )
    if not trial.call(who, lambda: scheme.no_trade_band >= 0.0):
        raise trial.broken(f"has an {who} with a no_trade_band of {scheme.no_trade_band}: let it be 0 or more")
    for count in trial.counts:
        size = trial.call(who, scheme.size, count)
        ends = (0.0, scheme.choices - 1.0) if scheme.kind == "discrete" else (0.0, -1.0, 1.0, -1e9, 1e9)
        extremes = [np.full((1, size), end) for end in ends]
        action = np.concatenate([*extremes, trial.call(who, trial.actions, np.random.default_rng(_SEED), 64, count)])
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
        ):
            if reached > most:
                raise trial.broken(
                    f"has an {who} that asks for {reached:.3g} times the equity, and {limit} of its portfolio "
                    f"is {most:.3g}, so such orders are denied; ask for less, or check it with its own limits"
                )
        alone = np.concatenate([trial.call(who, scheme.weights, action[n : n + 1].copy()) for n in range(len(action))])
        if not np.array_equal(alone, weights):
            raise trial.broken(
                f"has an {who} that gives a book other weights alone than among others: use each row for itself"
            )


def _reward_is_sound(trial: _Trial) -> None:
    for count, steps in trial.rollouts.items():
        engine = RewardEngine(trial.strategy.reward, _BOOKS)
        components: list[str] = []
        for step in steps:
            for name, array in engine.state.items():
                if not np.isfinite(array).all():
                    raise trial.broken(f"has a reward whose c.state[{name!r}] is not finite, which live cannot store")
            given = step.of(_EVERYONE, trial.features.names)
            trial.call(f"its reward (A = {count})", engine, given)
            kept = step.of(_EVERYONE, trial.features.names)
            for name in _ARRAYS:
                if not np.array_equal(getattr(given, name), getattr(kept, name), equal_nan=True):
                    raise trial.broken(f"has a reward that writes into c.{name}: let it make an array of its own")
            for name, column in kept.features.items():
                if not np.array_equal(given.features[name], column, equal_nan=True):
                    raise trial.broken(
                        f"has a reward that writes into c.features[{name!r}]: let it make an array of its own"
                    )
            components = components or list(engine.components)
            if list(engine.components) != components:
                raise trial.broken(
                    f"has a reward whose components change from {components} to {list(engine.components)}: "
                    "return the same ones always, zeros where there is nothing"
                )
            engine.reset(step.done)


def _reward_knows_its_context_alone(trial: _Trial) -> None:
    for steps in trial.rollouts.values():
        if not np.array_equal(_rewards(trial, steps, _EVERYONE), _rewards(trial, steps, _EVERYONE)):
            raise trial.broken(
                "has a reward that differs between two runs over the same context: let it use no random numbers and "
                "no clock, and remember things in c.state only"
            )


def _reward_sees_each_book_alone(trial: _Trial) -> None:
    for steps in trial.rollouts.values():
        together = _rewards(trial, steps, _EVERYONE)
        order = np.random.default_rng(_SEED).permutation(_BOOKS)
        shuffled = np.empty_like(together)
        shuffled[..., order] = _rewards(trial, steps, order)
        alone = np.concatenate([_rewards(trial, steps, _EVERYONE[n : n + 1]) for n in range(_BOOKS)], axis=-1)
        for found, how in ((alone, "alone"), (shuffled, "in another order")):
            if not np.array_equal(found, together):
                step, _, book = np.argwhere(found != together)[0]
                raise trial.broken(
                    f"has a reward that gives a book something else {how} than among {_BOOKS}, "
                    f"{found[step, 0, book]} and not {together[step, 0, book]}: let it compute each book from its "
                    "own row, summing over axis=1 only, and remember things in c.state only"
                )


def _rewards(trial: _Trial, steps: Sequence[_Step], books: NDArray[np.int64]) -> Floats:
    """The sums and components of some of the books, (S, 1 + components, N)."""
    engine = RewardEngine(trial.strategy.reward, len(books))
    rewards = []
    for step in steps:
        total = trial.call("its reward", engine, step.of(books, trial.features.names))
        rewards.append([total, *(part.copy() for part in engine.components.values())])
        engine.reset(step.done[books])
    return np.array(rewards)


_CHECKS: Sequence[tuple[str, Callable[[_Trial], None]]] = (
    ("its identity is stable, also when pickled", _has_an_identity),
    ("features keep a value once they have one", _features_keep_their_values),
    ("features do not change when the future is taken away", _features_know_no_future),
    ("features are the same bits in a batch and bar by bar", _features_stream),
    ("the observation has its declared shape", _observation_has_its_shape),
    ("every action becomes finite weights within the limits", _actions_become_weights),
    ("the reward is finite, has its shape and leaves its context alone", _reward_is_sound),
    ("the reward depends on its context alone", _reward_knows_its_context_alone),
    ("the reward of a book is the same bits alone, among others and in any order", _reward_sees_each_book_alone),
)
