"""`transitions.parquet`: what each decision saw, did and earned, one row each.

A transition on the bus names none of what follows from other messages. Here all of it is joined again: the observation
from the features up to the decision and the account, the model from the signal, the fills from the decision's time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from polars.io.plugins import register_io_source

from tradeloop.common.arrays import Float32s, Floats
from tradeloop.common.market import BarArrays, to_us
from tradeloop.common.messages import FeaturesComputed, OrderFilled, SignalGenerated, Transition
from tradeloop.common.strategy import Strategy

_TIME = pl.Datetime("us", "UTC")
_BLOCK, _GROUP = 512, 16_384
"""Rows of transitions that are in memory as messages, and rows of a row group of their file."""


class _Model(NamedTuple):
    """A model, as signals name it."""

    model: str
    model_version: str
    model_id: str


def rows_of(bars: BarArrays, strategy: Strategy, published: Sequence[FeaturesComputed]) -> Floats:
    """Features as they were published, (T, A, F), at the rows of their bars; NaN where one is not known."""
    rows = np.full((len(bars), len(bars.instruments), len(strategy.feature_set.names)), np.nan)
    at = {time_us: t for t, time_us in enumerate(bars.close_us.tolist())}
    for features in published:
        t = at.get(to_us(features.time))
        if t is not None and features.feature_set == strategy.feature_set.id:
            rows[t] = np.array(features.values, dtype=np.float64)
    return rows


def write_transitions(transitions: Sequence[Transition], joined: Joined, path: Path) -> None:
    """Write the table. A component of the reward is a column, null where the reward did not give it.

    Some rows at a time are in memory: with their observations all of them would be larger than all else.
    """
    components: dict[str, None] = {}
    known = -1
    while known < len(components):  # again, where a component came first after the columns were settled
        known = len(components)
        table = _streamed(_blocks(transitions, joined, components))
        table.sink_parquet(path, compression="zstd", compression_level=3, row_group_size=_GROUP)


def _streamed(blocks: Iterator[pl.DataFrame]) -> pl.LazyFrame:
    first = next(blocks)
    rest = chain((first,), blocks)
    return register_io_source(lambda *_: rest, schema=first.schema)


def _blocks(transitions: Sequence[Transition], joined: Joined, components: dict[str, None]) -> Iterator[pl.DataFrame]:
    """The table in blocks of rows, at least one; ends where `components` lacks one that the first block does not have.

    Those are added to it.
    """
    rows = iter(transitions)
    block = list(islice(rows, _BLOCK))
    components.update(dict.fromkeys(name for t in block for name in t.components))
    names = tuple(components)
    while True:
        yield joined.table(block, names)
        block = list(islice(rows, _BLOCK))
        components.update(dict.fromkeys(name for t in block for name in t.components))
        if not block or len(components) > len(names):
            return


class Joined:
    """Transitions beside what else is known about their decisions."""

    def __init__(
        self,
        strategy: Strategy,
        bars: BarArrays,
        features: Floats,
        signals: Sequence[SignalGenerated],
        fills: Sequence[OrderFilled],
    ) -> None:
        """`features` (T, A, F) are those at the closes of the bars."""
        self._strategy, self._close_us = strategy, bars.close_us
        self._features: Float32s = strategy.observed(features).reshape(len(bars), -1).astype(np.float32)
        self._fills: dict[int, list[str]] = {}
        for fill in fills:
            self._fills.setdefault(to_us(fill.decision_time), []).append(fill.fill_id)
        self._since, self._models = _models(signals)

    def table(self, transitions: Sequence[Transition], components: Sequence[str]) -> pl.DataFrame:
        """Some rows of the table."""
        decided = [to_us(t.decision_time) for t in transitions]
        columns: dict[str, pl.Series] = {
            "decision_time": pl.Series(decided, dtype=_TIME),
            "time": pl.Series([to_us(t.time) for t in transitions], dtype=_TIME),
            "observation": self._observations(transitions, decided).cast(pl.List(pl.Float32)),
            "action": _vectors([t.action for t in transitions]),
            "executed": _vectors([t.executed for t in transitions]),
            "reward": pl.Series([t.reward for t in transitions], dtype=pl.Float64),
        }
        for name in components:
            columns[f"component_{name}"] = pl.Series([t.components.get(name) for t in transitions], dtype=pl.Float64)
        columns["terminated"] = pl.Series([t.terminated for t in transitions], dtype=pl.Boolean)
        columns["equity_prev"] = pl.Series([t.equity_prev for t in transitions], dtype=pl.Float64)
        columns["equity"] = pl.Series([t.equity for t in transitions], dtype=pl.Float64)
        columns["fills"] = pl.Series([self._fills.get(us, []) for us in decided], dtype=pl.List(pl.String))
        models = [self._models[bisect_right(self._since, us)] for us in decided]
        count = len(transitions)
        texts = {
            "universe": [t.universe for t in transitions],
            "portfolio": [t.portfolio for t in transitions],
            "strategy": [self._strategy.name] * count,
            **{name: [getattr(model, name) for model in models] for name in _Model._fields},
            "feature_set": [self._strategy.feature_set.id] * count,
            "reward_id": [t.reward_id for t in transitions],
        }
        for name, text in texts.items():
            columns[name] = pl.Series(text, dtype=pl.String)
        return pl.DataFrame(columns)

    def _observations(self, transitions: Sequence[Transition], decided: Sequence[int]) -> pl.Series:
        """The observations of the policy: the window of features, oldest first, and the account."""
        if not transitions:
            return _vectors([])
        window = self._strategy.window
        last = np.searchsorted(self._close_us, decided)
        if (last < window - 1).any():
            raise ValueError("a decision was made before a whole window of features was there")
        rows = last[:, None] + np.arange(1 - window, 1)
        account = np.array([t.account for t in transitions], dtype=np.float32)
        return _vectors(np.concatenate([self._features[rows].reshape(len(rows), -1), account], axis=1))


def _models(signals: Sequence[SignalGenerated]) -> tuple[list[int], list[_Model]]:
    """Times from which other models decided, and the models: the first one before the first of these times."""
    since: list[int] = []
    models = [_Model("", "", "")]
    for signal in signals:
        one = _Model(signal.model, signal.model_version, signal.model_id)
        if not signal.hold and one != models[-1]:
            since.append(to_us(signal.time))
            models.append(one)
    return since, models


def _vectors(rows: Sequence[tuple[float, ...]] | Float32s) -> pl.Series:
    """Vectors of one length as a column of lists."""
    return pl.Series(np.asarray(rows)).arr.to_list() if len(rows) else pl.Series(dtype=pl.List(pl.Float64))
