from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from tradeloop.common.arrays import Floats
from tradeloop.common.market import BarArrays, Instrument, Timeframe, Universe
from tradeloop.common.portfolio import Costs, Portfolio, RiskLimits
from tradeloop.common.strategy import RewardContext, Strategy, log_return, reward


@reward(version="1")
class Growth:
    """Log return of equity in percent, less a charge for drawdown."""

    drawdown_weight: float = 0.1

    def __call__(self, c: RewardContext) -> dict[str, Floats]:
        return {"pnl": 100.0 * np.log(c.equity / c.equity_prev), "drawdown": -self.drawdown_weight * c.drawdown}


@reward(version="1")
class Curious:
    """Uses all that a reward may: features, times, flags, and a memory."""

    initial_state: ClassVar[Mapping[str, float]] = {"steps": 0.0}

    def __call__(self, c: RewardContext) -> dict[str, Floats]:
        c.state["steps"][:] += 1.0
        return {
            "feature": c.features["log_return_1"].sum(axis=1),
            "elapsed": (c.ts - c.ts_prev) / 60e6,
            "ended": c.terminated * 10.0 + c.truncated * 100.0,
            "steps": c.state["steps"] / 8.0,
            "pnl": c.equity - c.equity_prev,
        }


@dataclass(frozen=True)
class World:
    """Something to train on: T bars of A instruments, and F features of them."""

    portfolio: Portfolio
    bars: BarArrays
    features: Floats

    def strategy(self, **changes: Any) -> Strategy:
        names = [log_return(n + 1) for n in range(self.features.shape[2])]
        return Strategy(**{"name": "test", "features": names, "reward": Growth(), **ACTS, **changes})


ACTS = {"window": 3, "actions": "target_position"}

MakeWorld = Callable[..., World]


@pytest.fixture
def make_world() -> MakeWorld:
    """A world of a random walk, or of a `signal`: the first feature then says where the next bar goes."""

    def make(
        length: int = 200,
        instruments: int = 1,
        features: int = 2,
        seed: int = 0,
        signal: float = 0.0,
        warm_up: int = 4,
        costs: Costs | None = None,
        limits: RiskLimits | None = None,
    ) -> World:
        generator = np.random.default_rng(seed)
        shape = (length, instruments)
        values = generator.normal(size=(*shape, features))
        moves = generator.normal(0.0, 0.004, shape)
        if signal:
            values[:, :, 0] = generator.choice([-1.0, 1.0], shape)
            moves[1:] = signal * values[:-1, :, 0]
        values[:warm_up] = np.nan
        close = 100.0 * np.exp(np.cumsum(moves, axis=0))
        open_ = np.vstack([close[:1], close[:-1]])
        times = np.arange(length) * Timeframe.M1.us
        universe = Universe(
            name="synthetic",
            instruments=tuple(Instrument(id=f"test:{a}", taker_bps=1.0) for a in range(instruments)),
            timeframe=Timeframe.M1,
        )
        return World(
            Portfolio(
                name="test",
                universe=universe,
                strategy="test",
                costs=costs or Costs(),
                limits=limits or RiskLimits(),
            ),
            BarArrays(
                instruments=universe.ids,
                open_us=times,
                close_us=times + Timeframe.M1.us,
                open=open_,
                high=np.maximum(open_, close),
                low=np.minimum(open_, close),
                close=close,
                volume=np.full(shape, np.nan),
                funding_rate=np.zeros(shape),
                present=np.ones(shape, dtype=np.bool_),
            ),
            values,
        )

    return make


@pytest.fixture
def curious() -> Curious:
    return Curious()
