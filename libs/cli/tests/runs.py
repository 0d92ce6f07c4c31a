"""A plausible run on a random walk, for the tests of what a run leaves behind."""

from __future__ import annotations

from typing import Any

import numpy as np

from tradeloop.cli.report.files import Run
from tradeloop.common.arrays import Floats, shortest
from tradeloop.common.evaluation import backtest
from tradeloop.common.evaluation.assessment import assess
from tradeloop.common.evaluation.performance import drawdown
from tradeloop.common.market import BarArrays, Instrument, Timeframe, Universe, align, from_us
from tradeloop.common.messages import (
    OrderFilled,
    OrderUpdated,
    PortfolioMarked,
    PositionMark,
    RiskVerdict,
    SignalGenerated,
    Transition,
)
from tradeloop.common.messages.topics import derived_id
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.strategy import Strategy, log_return
from tradeloop.common.strategy.rewards import RewardContext, reward
from tradeloop.inference.domain import account_of

THREE = ("binance:BTC/USDT", "binance:ETH/USDT", "binance:ADA/USDT")
START_US = 1_641_168_000_000_000  # 2022-01-03 00:00


@reward(version="1")
class GainLessTurnover:
    """Return of equity, less a charge for trading."""

    charge: float = 5e-4

    def __call__(self, c: RewardContext) -> dict[str, Floats]:
        return {"gain": c.equity / c.equity_prev - 1.0, "turnover": -self.charge * c.turnover}


def random_walk(
    length: int, instruments: tuple[str, ...], *, seed: int = 0, missing: float = 0.0, step: float = 8e-4
) -> BarArrays:
    """Bars of one minute; a share of them is `missing`, and every other instrument has no volume."""
    generator = np.random.default_rng(seed)
    series = []
    for a in range(len(instruments)):
        close = 46_000.0 / 10**a * np.exp(generator.normal(0.0, step, length).cumsum())
        opened = np.append(close[0], close[:-1]) * (1.0 + generator.normal(0.0, 1e-5, length))
        spread = np.abs(generator.normal(0.0, 3e-4, (2, length)))
        columns: dict[str, Any] = {
            "open_us": START_US + np.arange(length) * Timeframe.M1.us,
            "open": opened,
            "high": np.maximum(opened, close) * (1.0 + spread[0]),
            "low": np.minimum(opened, close) * (1.0 - spread[1]),
            "close": close,
        }
        if a % 2 == 0:
            columns["volume"] = generator.uniform(1.0, 900.0, length)
        kept = generator.random(length) >= missing
        kept[0] = True
        series.append({name: column[kept] for name, column in columns.items()})
    return align(instruments, Timeframe.M1, series)


def make_run(
    length: int = 400,
    instruments: tuple[str, ...] = ("binance:BTC/USDT",),
    *,
    seed: int = 0,
    missing: float = 0.0,
    trade: bool = True,
    step: float = 8e-4,
    lot: float = 1e-4,
    training: dict[str, float] | None = None,
    portfolio_options: dict[str, Any] | None = None,
) -> Run:
    """A noisy follower of the last hours' trend over a random walk, with the messages that it would have published."""
    bars = random_walk(length, instruments, seed=seed, missing=missing, step=step)
    universe = Universe(
        name="crypto", timeframe=Timeframe.M1, instruments=tuple(Instrument(id=i, lot_size=lot) for i in instruments)
    )
    portfolio = Portfolio(name="walk", universe=universe, strategy="walker", **(portfolio_options or {}))
    strategy = Strategy("walker", [log_return(1)], GainLessTurnover(), window=16, actions="target_position")
    closes = np.log(bars.close)
    features = np.diff(closes, axis=0, prepend=np.nan)[:, :, None]
    generator, mood = np.random.default_rng(seed), np.zeros(len(instruments))

    def decide(t: int, account: Floats) -> Floats:
        if not trade or t < 16:
            return np.full((1, len(instruments)), np.nan)
        nonlocal mood
        mood = 0.995 * mood + generator.normal(0.0, 0.02, len(instruments))
        trend = 15.0 * np.nan_to_num(closes[t] - closes[max(0, t - 240)])
        return strategy.actions.weights(np.tanh(trend + mood)[None])

    result = backtest.run(portfolio, strategy, bars, features, decide)
    published = _messages(portfolio, strategy, bars, result)
    judged = assess(portfolio, strategy, bars, features, result, seed)
    return Run(
        portfolio=portfolio,
        strategy=strategy,
        bars=bars,
        features=features,
        signals=published["signals"],
        orders=published["orders"],
        fills=published["fills"],
        marks=published["marks"],
        transitions=published["transitions"],
        verdicts=published["verdicts"],
        baselines=judged.baselines,
        significance=judged.significance,
        training=training or {},
        summary={"seed": seed, "train_bars": 3 * length, "parity_rel_diff": 0.0, "final_equity": result.final_equity},
        source="random walk",
    )


def _messages(
    portfolio: Portfolio, strategy: Strategy, bars: BarArrays, result: backtest.BacktestResult
) -> dict[str, list[Any]]:
    """What the services would have published for a backtest."""
    ids = bars.instruments
    where: dict[str, Any] = {"universe": portfolio.universe.name, "portfolio": portfolio.name}
    model: dict[str, Any] = {"model": "walker", "model_version": "3", "model_id": "c0ffee" * 10 + "cafe"}
    value = result.position * np.nan_to_num(bars.close)
    held = value / result.equity[:, None]
    fall = drawdown(result.equity)
    halted = np.maximum.accumulate(fall >= portfolio.limits.max_drawdown)
    out: dict[str, list[Any]] = {
        name: [] for name in ("signals", "orders", "fills", "marks", "transitions", "verdicts")
    }
    for t, time in enumerate(map(from_us, result.time_us)):
        decided = time - portfolio.universe.timeframe.delta
        filled = []
        asked = result.fill_quantity[t].copy()
        if t:  # what no bar could fill expires
            asked = np.where((asked == 0.0) & ~(bars.present[t] & bars.present[t - 1]), result.weights[t - 1], asked)
        for a in np.flatnonzero(np.nan_to_num(asked)):
            quantity = float(asked[a])
            order_id = derived_id("order", decided, ids[a])
            order = {
                **where,
                "account": portfolio.account,
                "order_id": order_id,
                "decision_time": decided,
                "instrument": ids[a],
                "side": "buy" if quantity > 0 else "sell",
                "quantity": abs(quantity),
            }
            if not result.fill_quantity[t, a]:
                out["orders"] += [OrderUpdated(**order, status="working"), OrderUpdated(**order, status="expired")]
                continue
            price = float(result.fill_price[t, a])
            fill = OrderFilled(
                **order,
                fill_id=derived_id("fill", order_id),
                time=from_us(bars.open_us[t]),
                price=price,
                fee=float(result.fill_fee[t, a]),
                slippage=abs(price - float(bars.open[t, a])) * abs(quantity),
            )
            filled.append(fill)
            out["orders"].append(OrderUpdated(**order, status="working"))
            out["orders"].append(OrderUpdated(**order, status="filled", filled_quantity=abs(quantity)))
        out["fills"] += filled
        if t and not np.isnan(result.weights[t - 1]).all():
            out["transitions"].append(
                Transition(
                    **where,
                    decision_time=decided,
                    time=time,
                    account=shortest(account_of(out["marks"][t - 1])),
                    action=tuple(result.weights[t - 1].tolist()),
                    executed=tuple(held[t].tolist()),
                    reward=float(result.rewards[t]),
                    components={name: float(part[t]) for name, part in result.components.items()},
                    terminated=False,
                    reward_id=strategy.reward_id,
                    equity_prev=float(result.equity[t - 1]),
                    equity=float(result.equity[t]),
                )
            )
        if halted[t] and not halted[t - 1]:
            measured, limit = float(fall[t]), portfolio.limits.max_drawdown
            text = f"drawdown; flattening: {measured:.6g}, limit {limit:.6g}"
            halt = RiskVerdict(**where, time=time, code="drawdown_halt", measured=measured, limit=limit, text=text)
            out["verdicts"].append(halt)
        out["marks"].append(
            PortfolioMarked(
                **where,
                time=time,
                cash=float(result.cash[t]),
                equity=float(result.equity[t]),
                peak_equity=float(result.equity[: t + 1].max()),
                drawdown=float(fall[t]),
                state="halted" if halted[t] else "active",
                positions=tuple(
                    PositionMark(
                        instrument=instrument,
                        quantity=float(result.position[t, a]),
                        entry_price=0.0,
                        mark_price=float(np.nan_to_num(bars.close[t, a])),
                        weight=float(held[t, a]),
                        unrealised_return=0.0,
                        holding_bars=0,
                    )
                    for a, instrument in enumerate(ids)
                ),
            )
        )
        target = np.where(np.isnan(result.weights[t]), held[t], result.weights[t])
        hold = bool(np.isnan(result.weights[t]).all())
        deciding = {} if hold else model
        out["signals"].append(
            SignalGenerated(**where, **deciding, time=time, instruments=ids, targets=tuple(target.tolist()), hold=hold)
        )
    return out
