"""The baselines trade as they say, through the same simulator, fills and costs as a policy."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from libs.cli.tests.runs import THREE, GainLessTurnover, random_walk
from tradeloop.common.evaluation.backtest import BacktestResult, run
from tradeloop.common.evaluation.baselines import LOOKBACK, REBALANCE, baselines
from tradeloop.common.market import BarArrays, Instrument, Timeframe, Universe
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.strategy import Strategy, log_return
from tradeloop.common.strategy.actions import ActionScheme, Discrete, PortfolioWeights, TargetPosition

ONE = THREE[:1]
WINDOW = 8
WARMING_UP = 5
FIRST = WARMING_UP + WINDOW - 1
"""The bar of the first decision."""


def trade(
    bars: BarArrays, *, actions: ActionScheme | None = None, lot: float = 0.0, **options: Any
) -> tuple[Portfolio, dict[str, BacktestResult]]:
    universe = Universe(
        name="u",
        timeframe=Timeframe.M1,
        instruments=tuple(Instrument(id=i, taker_bps=10.0, lot_size=lot) for i in bars.instruments),
    )
    portfolio = Portfolio(name="p", universe=universe, strategy="s", **options)
    strategy = Strategy("s", [log_return(1)], GainLessTurnover(), window=WINDOW, actions=actions or TargetPosition())
    features: NDArray[np.float64] = np.zeros((*bars.open.shape, 1))
    features[:WARMING_UP] = np.nan
    return portfolio, baselines(portfolio, strategy, bars, features)


def falling(bars: BarArrays, share: float) -> BarArrays:
    """The same bars on the way down to a share of their price."""
    slope = np.linspace(1.0, share, len(bars))[:, None]
    return dataclasses.replace(bars, **{n: getattr(bars, n) * slope for n in ("open", "high", "low", "close")})


def test_cash_stays_what_it_was() -> None:
    portfolio, results = trade(random_walk(100, THREE))
    assert list(results) == ["cash", "buy_and_hold", "equal_weight", "momentum"]
    assert (results["cash"].equity == portfolio.capital).all()


def test_equal_weight_of_one_instrument_would_be_buy_and_hold() -> None:
    assert list(trade(random_walk(100, ONE))[1]) == ["cash", "buy_and_hold", "momentum"]


@pytest.mark.parametrize("lot", [0.0, 0.01])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        # What would stop a policy, and what would shrink its orders, stops no baseline.
        {"limits": {"max_drawdown": 0.01, "max_position": 0.1, "max_leverage": 0.1, "maintenance_margin": 1.0}},
        {"limits": {"max_order_notional": 0.01}},
    ],
    ids=["defaults", "tight limits", "small orders"],
)
def test_buy_and_hold_is_the_last_close_over_the_first_fill(lot: float, count: int, options: dict[str, Any]) -> None:
    bars = falling(random_walk(200, THREE[:count]), 0.2)
    portfolio, results = trade(bars, actions=TargetPosition(no_trade_band=1.0), lot=lot, **options)
    final = portfolio.capital
    for a in range(count):
        quantity = portfolio.capital / count / float(bars.close[FIRST, a])
        if lot:
            quantity = math.floor(quantity / lot + 1e-9) * lot
        paid = float(bars.open[FIRST + 1, a]) * 1.0001  # slippage of 1 bp, then a fee of 10
        final += quantity * (float(bars.close[-1, a]) - paid - paid * 0.001)
    held = results["buy_and_hold"]
    assert held.final_equity == pytest.approx(final, rel=1e-12)
    assert np.flatnonzero(held.fill_quantity.any(axis=1)).tolist() == [FIRST + 1]
    assert held.halted_at is None
    assert held.denials == {}


def test_buy_and_hold_buys_what_comes_later_when_it_comes() -> None:
    bars = random_walk(60, THREE)
    late = bars.present.copy()
    late[:30, 1] = False
    opened, closed = np.where(late, bars.open, np.nan), np.where(late, bars.close, np.nan)
    _, results = trade(dataclasses.replace(bars, present=late, open=opened, close=closed))
    filled = results["buy_and_hold"].fill_quantity
    assert [int(np.flatnonzero(filled[:, a])[0]) for a in range(3)] == [FIRST + 1, 31, FIRST + 1]
    assert (filled != 0.0).sum() == 3


def test_buy_and_hold_buys_on_until_it_has_what_a_thin_market_gives() -> None:
    bars = random_walk(200, ONE)
    thin = dataclasses.replace(bars, volume=np.full(bars.open.shape, 1.0))
    portfolio, results = trade(thin, costs={"max_participation": 0.1})
    held = results["buy_and_hold"]
    wanted = portfolio.capital / bars.close[FIRST, 0]
    assert held.fill_quantity[FIRST + 1, 0] == pytest.approx(0.1)
    assert held.position[-1, 0] == pytest.approx(wanted)
    assert np.count_nonzero(held.fill_quantity) == math.ceil(wanted / 0.1)


def test_equal_weight_is_rebalanced_as_often_as_it_says() -> None:
    bars = random_walk(400, THREE, step=5e-3)
    held = trade(bars)[1]["equal_weight"]
    rows = np.arange(FIRST, 399, REBALANCE)
    assert np.flatnonzero(held.fill_quantity.any(axis=1)).tolist() == (rows + 1).tolist()
    value = held.equity[rows][:, None] / 3
    assert held.position[rows + 1] * bars.close[rows] == pytest.approx(np.broadcast_to(value, (len(rows), 3)))


@pytest.mark.parametrize(
    ("actions", "below"),
    [
        (TargetPosition(), -1.0),
        (Discrete(), -1.0),
        (TargetPosition(long_only=True), 0.0),
        (Discrete((0.0, 1.0)), 0.0),
        (PortfolioWeights(), 0.0),
    ],
    ids=["box", "discrete", "long-only box", "long-only choices", "weights"],
)
@pytest.mark.parametrize("count", [1, 3])
def test_momentum_holds_the_side_of_the_return_behind(actions: ActionScheme, below: float, count: int) -> None:
    bars = random_walk(500, THREE[:count], step=5e-3)
    held = trade(bars, actions=actions)[1]["momentum"]
    for a in range(count):
        for t in range(500 - 1):
            if t < LOOKBACK:
                assert held.position[t + 1, a] == 0.0
                continue
            up = bars.close[t, a] > bars.close[t - LOOKBACK, a]
            assert np.sign(held.position[t + 1, a]) == (1.0 if up else below)
    fills = np.count_nonzero(held.fill_quantity)
    sides = np.sign(held.position)
    assert fills == np.count_nonzero(np.diff(sides, axis=0))  # it trades when it changes sides, and never else
    opened = np.flatnonzero(held.fill_quantity[:, 0])[0]
    assert abs(held.position[opened, 0]) * bars.close[opened - 1, 0] == pytest.approx(
        held.equity[opened - 1] / count, rel=1e-9
    )


def test_what_is_too_dear_is_counted_and_bought_when_it_is_not() -> None:
    bars = falling(random_walk(200, ONE), 0.5)
    portfolio, results = trade(bars, lot=3.0)  # 3 lots of some 46,000 cost more than there is
    held = results["buy_and_hold"]
    [bought] = np.flatnonzero(held.fill_quantity)
    assert bars.close[bought - 1, 0] * 3.0 <= portfolio.capital < bars.close[FIRST : bought - 1, 0].min() * 3.0
    assert held.unsized == bought - 1 - FIRST
    assert trade(random_walk(200, ONE), lot=3.0)[1]["buy_and_hold"].unsized == 200 - FIRST


def test_a_rule_that_loses_everything_says_where() -> None:
    bars = random_walk(200, ONE)
    up = np.where(np.arange(200) < 100, 1.0 - 0.001 * np.arange(200), 5.0)[:, None]
    price = 100.0 * up
    _, results = trade(dataclasses.replace(bars, open=price, high=price, low=price, close=price))
    assert results["momentum"].halted_at == 100  # it is short when the price jumps to five times itself
    assert results["momentum"].equity[100] < 0.0
    assert results["buy_and_hold"].halted_at is None


def test_bars_shorter_than_the_window_are_held_through() -> None:
    portfolio, results = trade(random_walk(FIRST, THREE))
    assert {name: result.final_equity for name, result in results.items()} == dict.fromkeys(results, portfolio.capital)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("actions", [TargetPosition(no_trade_band=0.5), Discrete(no_trade_band=1.0)])
def test_a_policy_trades_any_number_of_instruments_through_its_band(actions: ActionScheme, count: int) -> None:
    bars = random_walk(60, tuple(f"x:{a}" for a in range(count)))
    instruments = tuple(Instrument(id=i) for i in bars.instruments)
    portfolio = Portfolio(
        name="p", universe=Universe(name="u", timeframe=Timeframe.M1, instruments=instruments), strategy="s"
    )
    strategy = Strategy("s", [log_return(1)], GainLessTurnover(), window=1, actions=actions)
    answers = [
        actions.weights(np.full((1, count), answer)) for answer in ((2.0, 0.0) if actions.choices else (1.0, -1.0))
    ]
    result = run(portfolio, strategy, bars, np.zeros((60, count, 1)), lambda t, account: answers[t // 10 % 2])
    assert np.count_nonzero(result.fill_quantity) == 6 * count
