"""The bars and the books that a strategy is tried on.

A strategy is tried on random walks with jumps, gaps, funding and a stretch in which nothing trades, from a fixed
seed. Its reward gets what the real simulator made of random actions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.arrays import Floats
from tradeloop.common.errors import UserError
from tradeloop.common.features import FeatureSet
from tradeloop.common.market import BAR_COLUMNS, BarArrays, Instrument, Timeframe, align, resample
from tradeloop.common.portfolio import Costs, RiskLimits
from tradeloop.common.simulation import Simulator, market_of
from tradeloop.common.strategy import Strategy, StrategyError
from tradeloop.common.strategy.installed import in_one_line
from tradeloop.common.strategy.rewards import RewardContext, is_scalar

SEED = 20240229
BOOKS, _STEPS = 8, 64
CAPITAL = 100_000.0
EVERYONE = np.arange(BOOKS)
STREAMED = 600
"""The last bars, which are streamed: more than lie between two anchors."""
_UNBROKEN = 200
"""The last of them, without gaps: the books start there."""
_SHORTEST = 1200
"""Bars in a trial, or more until every feature has warmed up."""
_START_US = 1_577_836_800_000_000
"""2020-01-01, UTC."""


class Trial:
    """A strategy, and the bars that it is tried on."""

    def __init__(self, strategy: Strategy, limits: RiskLimits) -> None:
        self.strategy, self.limits = strategy, limits
        self.features = strategy.feature_set
        higher = [t.us for t in self.features.timeframes] or [Timeframe.H4.us]
        # At least three bars to the shortest bucket: the first, the last, and one between.
        fitting = [t for t in Timeframe if 3 * t.us <= min(higher) and not any(us % t.us for us in higher)]
        base = max(fitting, key=lambda t: t.us, default=None)
        if base is None:
            raise self.broken(
                f"has features on {self.features.timeframes[0]}, the shortest timeframe: leave their on(...) out"
            )
        self.base = base

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Two instruments, and more where its features look at others: those that they name, and so many."""
        asked = [feature.instrument for _, feature in self.features.cross_sections]
        named = sorted((one for one in asked if isinstance(one, str)), key=lambda one: ":" not in one)
        ids = ["check:A"]
        for one in named:
            if all(one not in (known, known.partition(":")[2]) for known in ids):
                ids.append(one if ":" in one else f"check:{one}")
        least = max([2, *(one + 1 for one in asked if isinstance(one, int))])
        free = (name for n in itertools.count() if (name := f"check:B{n or ''}") not in ids)
        while len(ids) < least:
            ids.append(next(free))
        return tuple(ids)

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
        """As many bars as it takes until every feature has a value, and `STREAMED` more."""
        most = max((f.history + 1) * (f.timeframe or self.base).us // self.base.us for f in self.features.features)
        length = _SHORTEST
        while True:
            bars = _random_walks(length, self.base, self.ids, self.features.extras)
            values = self.values(bars)
            late = np.isnan(values[: length - STREAMED - self.strategy.window]).all(axis=0).any(axis=0)
            if not late.any():
                return bars
            if length > most + STREAMED + self.strategy.window:
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

    @cached_property
    def all_frames(self) -> Mapping[Timeframe, BarArrays]:
        """The frames of all bars."""
        return self.frames(self.bars)

    def frames(self, bars: BarArrays) -> Mapping[Timeframe, BarArrays]:
        """The bars, and those of the higher timeframes that have closed with them."""
        return {self.base: bars} | {higher: resample(bars, self.base, higher) for higher in self.features.timeframes}

    def names(self, which: Any) -> str:
        """The names of the features that are marked in (F,)."""
        return ", ".join(name for f, name in enumerate(self.features.names) if which[f])

    def first_difference(self, one: Floats, other: Floats, first: int = 0) -> str | None:
        """The first value that two arrays (T, A, F) do not agree on, in words; their first row is bar `first`."""
        differ = np.argwhere(~((one == other) | (np.isnan(one) & np.isnan(other))))
        if not len(differ):
            return None
        t, a, f = differ[0].tolist()
        where = f" of {self.ids[a]}" if len(self.ids) > 1 else ""
        return f"feature {self.features.names[f]}{where} at bar {first + t}"

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
    def rollouts(self) -> dict[int, list[Step]]:
        """The results of random actions, by the number of instruments."""
        return {count: self._rollout(count) for count in self.counts}

    def _rollout(self, count: int) -> list[Step]:
        rng = np.random.default_rng(SEED)
        bars = self.bars
        market = market_of(_first(bars, count))
        simulator = Simulator(
            BOOKS,
            [Instrument(id=name) for name in bars.instruments[:count]],
            capital=CAPITAL,
            costs=Costs(),
            limits=self.limits.model_copy(update={"max_drawdown": min(0.1, self.limits.max_drawdown)}),
            no_trade_band=self.strategy.actions.band(count),
        )
        rows = rng.integers(len(bars) - _UNBROKEN, len(bars) - _STEPS, size=BOOKS)
        simulator.reset(market, rows)
        steps = []
        for _ in range(_STEPS):
            action = self.actions(rng, BOOKS, count)
            decided = rows.copy()
            simulator.step(market, rows, self.strategy.actions.weights(action))
            terminated = simulator.books.halt != 0
            truncated = ~terminated & (rng.random(BOOKS) < 0.05)
            context = simulator.context(
                action, bars.close_us[decided], bars.close_us[rows], terminated, truncated, features={}
            )
            steps.append(Step(part(context, EVERYONE), self.batch[decided, :count], terminated | truncated))
            simulator.reset(market, rows, np.flatnonzero(steps[-1].done))
        return steps


@dataclass(frozen=True)
class Step:
    """The effect of one bar on the books, copied. `features` is (N, A, F)."""

    context: RewardContext
    features: Floats
    done: NDArray[np.bool_]

    def of(self, books: NDArray[np.int64], names: Sequence[str]) -> RewardContext:
        """The context of some of the books, in their order. Its arrays may be spoilt."""
        features = self.features[books]
        # Views with strides, as in a backtest: arithmetic must not depend on that either.
        return replace(part(self.context, books), features={name: features[..., f] for f, name in enumerate(names)})


ARRAYS = tuple(f.name for f in fields(RewardContext) if f.name not in {"features", "state"})


def part(context: RewardContext, books: NDArray[np.int64]) -> RewardContext:
    return RewardContext(**{name: getattr(context, name)[books] for name in ARRAYS})


def _first(bars: BarArrays, count: int) -> BarArrays:
    """The bars of the first instruments, as a market takes them."""
    columns = {name: getattr(bars, name)[:, :count] for name in (*BAR_COLUMNS, "present")}
    return replace(bars, instruments=bars.instruments[:count], **columns, extra={})


def _random_walks(length: int, base: Timeframe, ids: Sequence[str], extras: Sequence[str]) -> BarArrays:
    """Bars of instruments that stand still for a while; all but the first lack some of theirs. Every bar has the
    further columns `extras`, whose values say nothing."""
    rng = np.random.default_rng(SEED)
    open_us = _START_US + np.arange(length) * base.us
    still = slice(length - STREAMED + 40, length - STREAMED + 140)
    series = []
    for a in range(len(ids)):
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
        one |= {name: rng.lognormal(0.0, 1.0, size=length) for name in extras}
        one["volume"][still] = 0.0
        there = (rng.random(length) > 0.02 * a) | (np.arange(length) >= length - _UNBROKEN)
        series.append({name: column[there] for name, column in one.items()})
    return align(ids, base, series)
