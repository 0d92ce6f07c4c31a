"""The loop as one would write it by hand, without services, topics or recovery: the bound of the embedded stack.

The same streamed features, ONNX policy, kernels and reward for every bar, its five messages as JSON, and one SQLite
transaction that stores the book and them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import scenario
from tradeloop.common.features.stream import FeatureStream
from tradeloop.common.market import BarArrays, Universe
from tradeloop.common.model_store.onnx_policy import OnnxPolicy
from tradeloop.common.model_store.port import Policy
from tradeloop.common.simulation import Simulator, market_of
from tradeloop.common.strategy import load
from tradeloop.common.strategy.observations import ObservationBuilder
from tradeloop.common.strategy.rewards import RewardEngine


def by_hand(file: Path, traded: Universe, bars: BarArrays, policy: Policy, start: int) -> Callable[[int, int], int]:
    """A function that trades bars `first` to `last` (exclusive), in their order from `start` on, and gives back how
    many orders filled."""
    strategy, portfolio = load("example"), scenario.portfolio(traded)
    names = strategy.feature_set.names
    stream = FeatureStream(strategy.feature_set, traded.timeframe, traded.ids)
    stream.open({traded.timeframe: bars.slice(0, start)})
    builder = ObservationBuilder(strategy.window, 1, len(names))
    actor = OnnxPolicy(policy)
    simulator = Simulator(
        1,
        traded.instruments,
        capital=portfolio.capital,
        costs=portfolio.costs,
        limits=portfolio.limits,
        no_trade_band=strategy.actions.band(1),
    )
    reward, books, market = RewardEngine(strategy.reward, 1), simulator.books, market_of(bars)
    row, no = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.bool_)
    columns = [column[:, 0].tolist() for column in (bars.open, bars.high, bars.low, bars.close, bars.volume)]
    opens, closes = bars.open_us.tolist(), bars.close_us.tolist()
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("CREATE TABLE books (portfolio TEXT PRIMARY KEY, book TEXT)")
    connection.execute("CREATE TABLE messages (bar INTEGER PRIMARY KEY, bodies TEXT)")
    decided: tuple[np.ndarray, dict[str, np.ndarray], list[float]] | None = None

    def trade(first: int, last: int) -> int:
        nonlocal decided
        filled = 0
        for t in range(first, last):
            open_us, close_us = opens[t], closes[t]
            bar = (*(column[t] for column in columns),)
            values = stream.update(open_us, close_us, [bar])
            messages: list[object] = [
                {"universe": traded.name, "open_us": open_us, "bars": bar},
                {"universe": traded.name, "time": close_us, "names": names, "values": values},
            ]
            row[:] = t
            if decided is None and t == start:
                simulator.reset(market, row)
            else:
                simulator.fill_and_mark(market, row)
            account = books.account[0].tolist()
            messages.append({"time": close_us, "cash": books.cash[0], "equity": books.equity[0], "account": account})
            if books.fill_quantity[0, 0] != 0.0:
                filled += 1
                fill = {"quantity": books.fill_quantity[0, 0], "price": books.fill_price[0, 0]}
                messages.append({"time": open_us, **fill})
            if decided is not None:
                action, features, observation = decided
                times = bars.close_us[t - 1 : t], bars.close_us[t : t + 1]
                total = reward(simulator.context(action, *times, no, no, features))
                parts = {name: float(part[0]) for name, part in reward.components.items()}
                messages.append(
                    {"time": close_us, "observation": observation, "reward": float(total[0]), "components": parts}
                )
            builder.append(np.array(values))
            if builder.ready:
                seen = builder.build(books.account[0])
                action = actor.act(seen)
                weights = strategy.actions.weights(action)
                simulator.decide(weights)
                features = {name: np.array([[values[0][f]]]) for f, name in enumerate(names)}
                decided = action, features, seen[0].tolist()
                signal = {"time": close_us, "targets": weights[0].tolist(), "action": action[0].tolist()}
                messages.append(signal | {"features": values, "observation": decided[2]})
            connection.execute("BEGIN IMMEDIATE")
            book = json.dumps(simulator.snapshot() | reward.snapshot())
            connection.execute("INSERT OR REPLACE INTO books VALUES (?, ?)", (portfolio.name, book))
            bodies = "\n".join(map(json.dumps, messages))
            connection.execute("INSERT INTO messages VALUES (?, ?)", (close_us, bodies))
            connection.execute("COMMIT")
        return filled

    return trade
