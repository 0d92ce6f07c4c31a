"""Limits that grow with the book: perfect foresight is never held on the wrong side, however much it has won."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tradeloop.common.arrays import Floats
from tradeloop.common.evaluation import backtest
from tradeloop.common.market import BarArrays, Instrument, Timeframe, Universe, align
from tradeloop.common.portfolio import Costs, Portfolio, RiskLimits
from tradeloop.common.strategy import RewardContext, Strategy, TargetPosition, log_return, reward

BARS, PERIOD, SWING = 1_200, 48, 0.02
FEE, SLIPPAGE = 2e-4, 1e-4


@reward(version="1")
class Nothing:
    def __call__(self, c: RewardContext) -> Floats:
        return np.zeros_like(c.equity)


def world(instruments: int, leverage: float, limits: RiskLimits) -> tuple[Portfolio, Strategy, BarArrays, Floats]:
    """A market of sines out of step with each other, in which a bar opens where the one before it closed."""
    phases = 2.0 * math.pi * (np.arange(BARS + 1)[:, None] / PERIOD + np.arange(instruments) / max(instruments, 1))
    price = 100.0 * (1.0 + SWING * np.sin(phases))
    ids = [f"test:{a}" for a in range(instruments)]
    hours = Timeframe.H1.us * np.arange(BARS)
    series = [
        {
            "open_us": hours,
            "open": price[:-1, a],
            "high": np.maximum(price[:-1, a], price[1:, a]),
            "low": np.minimum(price[:-1, a], price[1:, a]),
            "close": price[1:, a],
        }
        for a in range(instruments)
    ]
    universe = Universe(
        name="sines",
        instruments=tuple(Instrument(id=one, taker_bps=FEE * 1e4) for one in ids),
        timeframe=Timeframe.H1,
    )
    portfolio = Portfolio(
        name="book", universe=universe, strategy="seer", costs=Costs(slippage_bps=SLIPPAGE * 1e4), limits=limits
    )
    strategy = Strategy(
        "seer", [log_return(1)], Nothing(), actions=TargetPosition(no_trade_band=0.0, leverage=leverage)
    )
    return portfolio, strategy, align(ids, Timeframe.H1, series), price


def foresight(price: Floats, leverage: float) -> Floats:
    """Weights (T, A) towards where each price goes from the next open to the one after it; flat at the end."""
    ahead = np.zeros((BARS, price.shape[1]))
    ahead[:-1] = np.sign(price[2:] - price[1:-1])
    weights: Floats = leverage / price.shape[1] * ahead
    return weights


def worth(price: Floats, weights: Floats, capital: float) -> float:
    """The final equity of these weights, in plain Python: no limits, no simulator."""
    cash, held = capital, [0.0] * price.shape[1]
    for t in range(BARS - 1):
        at = price[t + 1].tolist()
        equity = cash + sum(quantity * p for quantity, p in zip(held, at, strict=True))
        for a, p in enumerate(at):
            order = weights[t, a] * equity / p - held[a]
            paid = p * (1.0 + math.copysign(SLIPPAGE, order))
            cash -= order * paid + abs(order) * paid * FEE
            held[a] += order
    final: float = cash + sum(quantity * p for quantity, p in zip(held, price[BARS].tolist(), strict=True))
    return final


@pytest.mark.parametrize("leverage", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("instruments", [1, 2, 3, 8])
def test_a_winning_book_is_never_held_on_the_wrong_side(instruments: int, leverage: float) -> None:
    limits = RiskLimits(max_position=1.05 * leverage, max_leverage=1.05 * leverage)
    portfolio, strategy, bars, price = world(instruments, leverage, limits)
    weights = foresight(price, leverage)
    nothing = np.zeros((BARS, instruments, 1))
    result = backtest.run(portfolio, strategy, bars, nothing, lambda t, account: weights[t : t + 1])
    assert result.denials == {}
    assert (np.sign(result.position[1:]) == np.sign(weights[:-1])).all()
    expected = worth(price, weights, portfolio.capital)
    assert result.final_equity == pytest.approx(expected, rel=1e-9)
    assert expected > 2.5 * portfolio.capital, "it wins more than a limit on the starting capital would bear"


@pytest.mark.parametrize(
    "limits",
    [
        RiskLimits(max_order_notional=1.5),
        RiskLimits(max_leverage=2.0, max_position=2.0, max_order_notional=1.5),
    ],
)
def test_a_flip_that_is_too_large_takes_two_bars(limits: RiskLimits) -> None:
    """It closes first, and opens the other side at the next decision, when that is within the limit."""
    portfolio, strategy, bars, price = world(1, 1.0, limits)
    weights = foresight(price, 1.0)
    result = backtest.run(portfolio, strategy, bars, np.zeros((BARS, 1, 1)), lambda t, account: weights[t : t + 1])
    held, wanted = np.sign(result.position[1:, 0]), np.sign(weights[:-1, 0])
    flips = int((np.diff(wanted) != 0.0).sum())
    assert result.denials == {"max_order_notional": pytest.approx(flips, abs=1)}
    assert result.denied == result.denials["max_order_notional"]
    assert result.decisions == BARS
    assert not (held == -wanted)[1:].any(), "it is flat for a bar, and never on the wrong side"
    assert result.final_equity > 2.0 * portfolio.capital


def test_the_default_limit_lets_a_whole_flip_through_at_any_leverage() -> None:
    for leverage in (0.5, 1.05, 3.0, 10.0):
        assert RiskLimits(max_leverage=leverage).largest_order >= 2.0 * leverage
    assert RiskLimits(max_order_notional=0.7).largest_order == 0.7
