"""The observation, as it is built bar by bar."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tradeloop.common.market import Instrument
from tradeloop.common.messages import PortfolioMarked, PositionMark
from tradeloop.common.portfolio import Costs, RiskLimits
from tradeloop.common.simulation import Market, Simulator
from tradeloop.common.strategy.observations import ObservationBuilder, account_size, observation_size
from tradeloop.inference.domain import account_of


def rows(count: int, instruments: int, features: int) -> NDArray[np.float64]:
    return np.arange(count * instruments * features, dtype=np.float64).reshape(count, instruments, features) + 1


def test_sizes() -> None:
    assert account_size(2) == 7
    assert observation_size(window=32, instruments=2, features=5) == 32 * 2 * 5 + 7


@given(window=st.integers(1, 5), instruments=st.integers(1, 3), features=st.integers(1, 3), bars=st.integers(1, 20))
def test_the_window_is_the_last_rows_then_the_account(window: int, instruments: int, features: int, bars: int) -> None:
    builder = ObservationBuilder(window, instruments, features)
    history = rows(bars, instruments, features)
    account = np.linspace(-1.0, 1.0, account_size(instruments))
    for t in range(bars):
        builder.append(history[t])
        assert builder.ready == (t + 1 >= window)
        if builder.ready:
            observation = builder.build(account)
            expected = np.concatenate([history[t + 1 - window : t + 1].ravel(), account]).astype(np.float32)
            assert observation.dtype == np.float32
            np.testing.assert_array_equal(observation, expected[None])


def test_a_cleared_window_fills_anew() -> None:
    builder = ObservationBuilder(window=2, instruments=1, features=1)
    for value in (1.0, 2.0, 3.0):
        builder.append(np.array([value]))
    builder.clear()
    assert not builder.ready
    builder.append(np.array([4.0]))
    assert not builder.ready
    builder.append(np.array([5.0]))
    assert builder.build(np.zeros(4))[0, :2].tolist() == [4.0, 5.0]


def test_the_account_is_read_from_the_mark_as_the_simulator_writes_it() -> None:
    """Training observes the simulator's arrays, inference the portfolio's message: the same bits."""
    simulator = Simulator(
        1,
        [Instrument(id="test:A"), Instrument(id="test:B")],
        capital=1000.0,
        costs=Costs(),
        limits=RiskLimits(),
        no_trade_band=0.0,
    )
    closes = np.array([[10.0, 20.0], [10.1, 19.0], [10.3, 18.7]])
    market = Market(closes, closes, np.ones((3, 2)), np.zeros((3, 2)), np.ones((3, 2), dtype=np.bool_))
    simulator.reset(market, np.array([0]))
    simulator.step(market, np.array([0]), np.array([[0.3, -0.6]]))
    simulator.step(market, np.array([1]), np.array([[0.1, np.nan]]))
    books = simulator.books
    marked = PortfolioMarked(
        universe="u",
        portfolio="p",
        time=datetime(2024, 1, 1, tzinfo=UTC),
        cash=books.cash[0].item(),
        equity=books.equity[0].item(),
        peak_equity=books.peak[0].item(),
        drawdown=books.drawdown[0].item(),
        state="active",
        positions=tuple(
            PositionMark(
                instrument=name,
                quantity=books.position[0, a].item(),
                entry_price=books.entry[0, a].item(),
                mark_price=books.mark[0, a].item(),
                weight=books.account[0, a].item(),
                unrealised_return=books.account[0, 2 + a].item(),
                holding_bars=int(books.holding[0, a]),
            )
            for a, name in enumerate(("test:A", "test:B"))
        ),
    )
    assert (books.holding[0] == 2).all()
    assert account_of(marked).tolist() == books.account[0].tolist()
