"""Universes with bars in files, and policies that trade them: what the proofs over real servers run on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.evaluation.backtest import BacktestResult, backtest
from tradeloop.common.features import shown
from tradeloop.common.features.feature import FIELDS
from tradeloop.common.market import (
    BarArrays,
    Instrument,
    InstrumentEvent,
    Membership,
    Timeframe,
    TimeRange,
    Universe,
    align,
    from_us,
    resample,
)
from tradeloop.common.messages import BackfillRequested, ReplayRequested
from tradeloop.common.model_store.onnx_policy import OnnxPolicy
from tradeloop.common.model_store.port import Policy, model_name
from tradeloop.common.portfolio import Costs, Portfolio, RiskLimits
from tradeloop.common.strategy import load
from tradeloop.training.adapters.random_policy import random_policy

BASE, HIGHER = Timeframe.H1, Timeframe.H4
START_US = 946_857_600_000_000  # 2000-01-03, so that a long run ends before today
HISTORY = 400
"""Bars that are stored and not traded, enough for the slowest feature of the example strategy."""
STRATEGY = load("probe")


@dataclass(frozen=True)
class World:
    """A universe of random walks: its files, its portfolio, its policy, and what must come out."""

    name: str
    instruments: int
    traded: int
    """How many bars are traded."""
    folder: Path
    members_change: bool = False
    """Whether its instruments but the first come and go."""
    has_events: bool = False
    """Whether its instruments but the first are halted, and delisted in the end."""

    @cached_property
    def universe(self) -> Universe:
        letters = "ABCDEFGH"[: self.instruments]
        return Universe(
            name=self.name,
            instruments=tuple(Instrument(id=f"{self.name}:{x}", lot_size=1e-3, taker_bps=0.3) for x in letters),
            timeframe=BASE,
            higher_timeframes=(HIGHER,),
            members=self._members() if self.members_change else {},
            events=self._events() if self.has_events else {},
        )

    def _events(self) -> dict[str, tuple[InstrumentEvent, ...]]:
        """Halts of a few bars, ever other ones, from the middle of a bar on; delistings one after the other."""

        def one(kind: str, bar: float, **more: object) -> InstrumentEvent:
            time = from_us(START_US + int(BASE.us * (HISTORY + bar)))
            return InstrumentEvent.model_validate({"time": time, "kind": kind, **more})

        found = {}
        for a, letter in enumerate("ABCDEFGH"[1 : self.instruments]):
            end = self.traded * (0.5 + a / 10)
            halts = [
                each
                for bar in range(20, int(end) - 20, 23 + a)
                for each in (one("halt", bar + 0.5), one("resume", bar + 3 + a))
            ]
            found[f"{self.name}:{letter}"] = (*halts, one("delisting", end, proceeds=30.0 * a))
        return found

    def _members(self) -> dict[str, tuple[Membership, ...]]:
        """The first one always belongs, the second leaves and comes back, each later one joins later, for a while."""

        def stay(first: float, last: float | None = None) -> Membership:
            start, end = (
                None if share is None else from_us(START_US + BASE.us * (HISTORY + int(share * self.traded)))
                for share in (first, last)
            )
            assert start is not None
            return Membership(start=start, end=end)

        names = [f"{self.name}:{letter}" for letter in "ABCDEFGH"[: self.instruments]]
        always = Membership(start=from_us(START_US))
        members = {names[0]: (always,), names[1]: (stay(0.0, 0.3), stay(0.5))}
        return members | {name: (stay(a / 10, 0.6 + a / 20),) for a, name in enumerate(names[2:], 1)}

    @cached_property
    def portfolio(self) -> Portfolio:
        costs, limits = Costs(slippage_bps=0.1, impact_bps=1.0, max_participation=0.5), RiskLimits(max_drawdown=1.0)
        return Portfolio(
            name=f"{self.name}-book",
            universe=self.universe,
            strategy="probe",
            model_alias="proof",  # what is trained on the side becomes the champion and must not take over
            costs=costs,
            limits=limits,
        )

    @cached_property
    def bars(self) -> BarArrays:
        """All bars; with several instruments some are missing."""
        generator = np.random.default_rng([self.instruments, len(self.name), *self.name.encode()])
        total = HISTORY + self.traded
        series = []
        for a in range(self.instruments):
            close = 100.0 * np.exp(np.cumsum(generator.normal(0.0, 4e-3, total)))
            opened = np.r_[100.0, close[:-1]] * np.exp(generator.normal(0.0, 2e-4, total))
            kept = generator.random(total) > (0.05 if a else 0.0)
            columns = {
                "open_us": START_US + BASE.us * np.arange(total),
                "open": opened,
                "high": np.maximum(opened, close) * 1.0003,
                "low": np.minimum(opened, close) * 0.9997,
                "close": close,
                "volume": generator.lognormal(8.0, 1.0, total),
            }
            series.append({name: column[kept] for name, column in columns.items()})
        return align(self.universe.ids, BASE, series)

    @cached_property
    def features(self) -> NDArray[np.float64]:
        bars = {BASE: self.bars, HIGHER: resample(self.bars, BASE, HIGHER)}
        roster = self.universe.roster if self.universe.changes else None
        return STRATEGY.feature_set.compute(bars, BASE, roster).values

    @cached_property
    def policy(self) -> Policy:
        """Random weights on standardised features: it changes its mind every few bars."""
        values, _ = shown(self.features[HISTORY - STRATEGY.window :], self.universe)
        policy = random_policy(STRATEGY, self.name, values, hidden=(), gain=1.5, seed=self.instruments)
        known_to = {"trained_to": from_us(int(self.bars.close_us[HISTORY])).isoformat()}
        return replace(policy, manifest=policy.manifest.model_copy(update=known_to))

    @property
    def model(self) -> str:
        return model_name(STRATEGY.name, self.name)

    def backfill(self) -> BackfillRequested:
        """Load all bars, from files that are written here."""
        files = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        for a, instrument in enumerate(self.universe.ids):
            path = self.folder / f"{self.name}-{a}.csv"
            rows = self.bars.present[:, a]
            columns = [self.bars.open_us[rows] // 1_000_000]
            columns += [getattr(self.bars, name)[rows, a] for name in FIELDS]
            lines = [",".join(map(repr, row)) for row in zip(*(c.tolist() for c in columns), strict=True)]
            path.write_text("\n".join(["time,open,high,low,close,volume", *lines]))
            files[instrument] = str(path)
        return BackfillRequested(request_id=f"backfill-{self.name}", universe=self.universe, files=files)

    def replay(self, speed: float | None = None) -> ReplayRequested:
        """Trade the bars after the history."""
        span = TimeRange(start=from_us(int(self.bars.open_us[HISTORY])), end=from_us(self.last_us))
        return ReplayRequested(request_id=f"replay-{self.name}", universe=self.universe, range=span, speed=speed)

    @property
    def last_us(self) -> int:
        return int(self.bars.close_us[-1])

    @cached_property
    def expected(self) -> BacktestResult:
        bars = self.bars.slice(HISTORY, len(self.bars))
        return backtest(self.portfolio, STRATEGY, bars, self.features[HISTORY:], OnnxPolicy(self.policy))
