"""The example is a strategy as its author would write it, with the tests that its author would write."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import example_strategy
from example_strategy import DrawdownAverse, strategy
from tradeloop.common.market import Timeframe
from tradeloop.common.strategy import load
from tradeloop.common.testing import check_strategy


def test_it_keeps_its_promises() -> None:
    check_strategy(strategy)


def test_it_is_installed_under_its_name() -> None:
    assert load("example") is strategy


def test_it_is_short() -> None:
    assert len(inspect.getsource(example_strategy).splitlines()) < 50


@pytest.mark.parametrize("base", [Timeframe.M1, Timeframe.M15, Timeframe.H1])
def test_it_fits_bars_without_volume_of_several_timeframes(base: Timeframe) -> None:
    strategy.feature_set.check_base(base)
    assert not strategy.feature_set.requires_volume


def test_the_reward_is_growth_less_its_charges() -> None:
    context: Any = SimpleNamespace(
        equity_prev=np.array([100.0, 100.0]),
        equity=np.array([101.0, 99.0]),
        drawdown=np.array([0.0, 0.02]),
        turnover=np.array([0.5, 0.0]),
    )
    parts = DrawdownAverse(drawdown_weight=0.1, turnover_weight=0.02)(context)
    assert list(parts) == ["pnl", "drawdown", "turnover"]
    np.testing.assert_allclose(parts["pnl"], [100 * np.log(1.01), 100 * np.log(0.99)])
    np.testing.assert_allclose(parts["drawdown"], [0.0, -0.002])
    np.testing.assert_allclose(parts["turnover"], [-0.01, 0.0])
