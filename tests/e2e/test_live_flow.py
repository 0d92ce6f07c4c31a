"""Order flow traded live: simulated trades and books become columns, features, orders; replayed bars give the same.

Ingest, preprocess, inference and execution in one process over one bus, while the clock goes on second by second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs

from tests.e2e.untrained import untrained
from tradeloop.common.arrays import Floats
from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.clock import ManualClock
from tradeloop.common.feature_store.memory import MemoryFeatureStore
from tradeloop.common.market import EVER_US, BarArrays, Series, Timeframe, TimeRange, Universe, to_us
from tradeloop.common.messages import (
    FeaturesComputed,
    LiveRequested,
    MarketBooks,
    MarketTrades,
    Message,
    PortfolioMarked,
    ReplayRequested,
    SignalGenerated,
)
from tradeloop.common.model_store.port import Policy, RegisteredPolicy
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.readback import all_messages
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.strategy import (
    RewardContext,
    Strategy,
    TargetPosition,
    book_imbalance,
    buy_pressure,
    log_return,
    on,
    order_flow_imbalance,
    reward,
    spread,
)
from tradeloop.execution.adapters.bus_history import BusHistory as ExecutionHistory
from tradeloop.execution.adapters.memory_ledger import MemoryLedger
from tradeloop.execution.adapters.paper import PaperVenue
from tradeloop.execution.application import Execution
from tradeloop.inference.adapters.bus_history import BusHistory
from tradeloop.inference.application import Inference
from tradeloop.ingest.adapters.bus_frames import BusFrames
from tradeloop.ingest.adapters.files import read_blocks
from tradeloop.ingest.adapters.simulated_market import SimulatedMarket
from tradeloop.ingest.adapters.simulated_source import SimulatedSource
from tradeloop.ingest.application import Ingest
from tradeloop.preprocess.adapters.bus_sent import BusSent
from tradeloop.preprocess.application import Preprocess

SEED, SYMBOLS = 3, ("BTC/USDT", "ETH/USDT")
OPENS = datetime(2024, 1, 8, 10, tzinfo=UTC)
BARS = 45
SECOND, MINUTE = 1_000_000, Timeframe.M1.us


@reward(version="1")
class Gain:
    """The change of the equity."""

    def __call__(self, c: RewardContext) -> dict[str, Floats]:
        return {"pnl": np.log(c.equity / c.equity_prev)}


STRATEGY = Strategy(
    "flow",
    [
        order_flow_imbalance(2),
        buy_pressure(3),
        book_imbalance(1),
        spread(2),
        on("5m", order_flow_imbalance(1)),
        log_return(1),
    ],
    Gain(),
    window=2,
    actions=TargetPosition(no_trade_band=0.02),
)


class Follower:
    """A policy that follows the flow, and nothing else."""

    def __init__(self, policy: Policy) -> None:
        self._count = policy.manifest.instruments

    def act(self, observation: NDArray[np.float32]) -> Floats:
        features = len(STRATEGY.features)
        rows = observation[0, : 2 * self._count * features].astype(np.float64).reshape(2, self._count, features)
        last = rows[-1]
        action: Floats = np.tanh(0.02 * last[:, 0] + last[:, 1] + last[:, 2] + 10.0 * last[:, 3] + 0.01 * last[:, 4])
        return action[None]


class Models:
    """One version of one model."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def load(self, name: str, reference: str) -> RegisteredPolicy:
        return RegisteredPolicy(name, "1", self._policy)


class World:
    """All services but training, with a simulated venue."""

    def __init__(self, bars: MemoryBarStore | None = None) -> None:
        self.bus, self.ledger, self.features = MemoryBus(), MemoryLedger(), MemoryFeatureStore()
        self.clock = ManualClock(OPENS - timedelta(seconds=5))
        self.bars = bars or MemoryBarStore(self.clock)
        source = SimulatedSource(self.clock, seed=SEED)
        self.universe = Universe(
            name="u",
            instruments=tuple(source.instruments(SYMBOLS)),
            timeframe=Timeframe.M1,
            higher_timeframes=(Timeframe.M5,),
        )
        portfolio = Portfolio(name="book", universe=self.universe, strategy="flow")
        services: Sequence[Any] = (
            Ingest(
                self.bars,
                read_blocks,
                BusFrames(self.bus),
                self.clock,
                open_source=lambda _: source,
                threaded=False,
            ),
            Preprocess(
                [(self.universe, "flow")],
                lambda _: STRATEGY,
                self.bars,
                self.features,
                self.clock,
                BusSent(self.bus, self.clock),
            ),
            Inference(
                [portfolio],
                lambda _: STRATEGY,
                Models(untrained(STRATEGY, "u", len(SYMBOLS), b"1")),
                Follower,
                BusHistory(self.bus),
                self.clock,
            ),
            Execution([portfolio], lambda _: STRATEGY, PaperVenue, self.ledger, ExecutionHistory(self.bus), self.clock),
        )
        run = RunPolicy(retry_delay_s=0.0, unavailable_delay_s=0.0, commit_interval_s=0.0, check_interval_s=0.0)
        self.runners = [Runner(service, self.bus, self.clock, run) for service in services]

    def send(self, message: Message) -> None:
        publish(self.bus.producer(), message, "test")
        self.settle()

    def settle(self) -> None:
        for _ in range(1000):
            if not sum(runner.step() for runner in self.runners):
                return
        raise AssertionError("the services do not come to rest")

    def read(self, kind: type[Any], end: datetime) -> list[Any]:
        """The messages of a kind up to a close, each once."""
        found = {one.encode(): one for one in all_messages(self.bus, kind)}
        return [one for one in found.values() if one.time <= end]


@pytest.fixture(scope="module")
def live() -> World:
    world = World()
    with capture_logs():
        world.send(
            LiveRequested(
                request_id="l",
                universe=world.universe,
                command="start",
                time=world.clock.now(),
                channels=("bars", "trades", "books"),
            )
        )
        while world.clock.now() < OPENS + (BARS + 1) * timedelta(minutes=1):
            world.clock.advance(1.0)
            world.settle()
    return world


END = OPENS + BARS * timedelta(minutes=1)


def stored(world: World) -> BarArrays:
    return world.bars.read(world.universe.ids, Timeframe.M1, to_us(OPENS), to_us(END))


def test_the_columns_are_those_of_the_trades_and_books_that_happened(live: World) -> None:
    """Polars and numpy, over the market itself, in the place of the stream and of the code that sums it up."""
    bars, market = stored(live), SimulatedMarket(SEED)
    assert len(bars) == BARS
    start_s, stop_s = to_us(OPENS) // SECOND, to_us(END) // SECOND
    for a, symbol in enumerate(SYMBOLS):
        traded = market.trades(symbol, start_s, stop_s)
        trades = pl.DataFrame(
            {"t": traded.time_us // MINUTE, "p": traded.price, "q": traded.lots * 0.001, "bought": traded.bought}
        )
        q = pl.col("q")
        summed = trades.group_by("t", maintain_order=True).agg(
            pl.len().cast(pl.Float64).alias("trade_count"),
            ((pl.col("p") * q).sum() / q.sum()).alias("vwap"),
            q.filter("bought").sum().alias("buy_volume"),
            q.filter(~pl.col("bought")).sum().alias("sell_volume"),
            (pl.col("p").log().diff() ** 2).sum().alias("realised_variance"),
        )
        expected: Series = {name: summed[name].to_numpy() for name in summed.columns if name != "t"}
        tops = [
            [*bids[0], *asks[0]]
            for bids, asks in (market.book(symbol, second) for second in range(start_s - 1, stop_s))
        ]
        bid, bid_size, ask, ask_size = np.array(tops).T
        rose, fell = np.sign(np.diff(bid)), np.sign(np.diff(ask))
        demand = np.select([rose > 0, rose < 0], [bid_size[1:], -bid_size[:-1]], np.diff(bid_size))
        supply = np.select([fell < 0, fell > 0], [ask_size[1:], -ask_size[:-1]], np.diff(ask_size))
        flow = (demand - supply).reshape(BARS, 60).sum(axis=1)
        # A book holds from the last microsecond of its second: the one before holds through almost all of a bar's
        # first second, the last of a bar for its last microsecond alone.
        held = np.tile(np.r_[SECOND - 1, np.full(59, SECOND), 1.0], (BARS, 1))
        rows = 60 * np.arange(BARS)[:, None] + np.arange(61)
        spreads = (ask - bid) / ((ask + bid) / 2)
        more = {"order_flow_imbalance": flow, "spread_mean": (spreads[rows] * held).sum(axis=1) / held.sum(axis=1)}
        for name, values in {**expected, **more}.items():
            # The stream began five seconds before the first bar, so that all bars are whole.
            np.testing.assert_allclose(bars.extra[name][:, a], values, rtol=1e-9, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(bars.extra["buy_volume"][:, a] + bars.extra["sell_volume"][:, a], bars.volume[:, a])
    before = live.bars.read(live.universe.ids, Timeframe.M1, 0, to_us(OPENS))
    assert len(before) == 1, "the bar that ran when the feed began went out"
    assert all(np.isnan(column).all() for column in before.extra.values()), "and nothing is known of its flow"


def test_the_flow_is_traded_live(live: World) -> None:
    decided = [one for one in live.read(SignalGenerated, END) if not one.hold]
    assert len(decided) > BARS - 15
    assert len(live.ledger.fills) > 20
    marks = live.read(PortfolioMarked, END)
    assert len(marks) == BARS + 1
    trades, books = list(all_messages(live.bus, MarketTrades)), list(all_messages(live.bus, MarketBooks))
    told = {(one.instrument, one.id) for message in trades for one in message.trades}
    assert len(told) == sum(len(message.trades) for message in trades) >= 2 * 60 * BARS
    assert sum(len(message.books) for message in books) == len(told)
    counted = next(runner for runner in live.runners if runner.service.name == "ingest").service.tallies()
    assert {event for event, _ in counted} <= {"flow_incomplete", "bar_doubted", "bar_filled", "history_asked"}


def test_a_replay_of_the_stored_bars_gives_the_same_features_orders_and_fills(live: World) -> None:
    replay = World(live.bars)
    replay.clock.advance((END - replay.clock.now()).total_seconds() + 3600.0)
    with capture_logs():
        span = TimeRange(start=OPENS - timedelta(minutes=1), end=END)
        replay.send(ReplayRequested(request_id="r", universe=replay.universe, range=span))
        for _ in range(10):
            replay.clock.advance(1.0)
            replay.settle()
    for kind in (FeaturesComputed, SignalGenerated, PortfolioMarked):
        mine, theirs = replay.read(kind, END), live.read(kind, END)
        assert len(theirs) == BARS + 1
        assert [plain(one) for one in mine] == [plain(one) for one in theirs], kind
    for book, when in (("orders", "decision_time"), ("fills", "time")):
        ours: Mapping[Any, Any] = getattr(replay.ledger, book)
        theirs = getattr(live.ledger, book)
        known = {key: one for key, one in theirs.items() if getattr(one, when) < END}
        assert len(known) > 20
        assert {key: one for key, one in ours.items() if key in known} == known, book
        assert all(getattr(one, when) >= END for key, one in ours.items() if key not in known), book
    assert live.bars.read(live.universe.ids, Timeframe.M5, 0, EVER_US).extra["order_flow_imbalance"].size


def plain(message: Any) -> dict[str, Any]:
    """A message without what tells a live frame from a replayed one."""
    told: dict[str, Any] = message.model_dump()
    for name in ("live", "deadline"):
        told.pop(name, None)
    return told
