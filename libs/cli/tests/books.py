"""Execution on a bus in memory, with the client that commands it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from structlog.testing import capture_logs

from tradeloop.cli.client.books import BookState, book_states, obeyed
from tradeloop.cli.client.client import Client
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.clock import ManualClock
from tradeloop.common.market import Bar, Instrument, Timeframe, Universe, from_us
from tradeloop.common.messages import BarFrame, Message, SignalGenerated
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.pump import pump
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.strategy import RewardContext, Strategy, TargetPosition, log_return, reward
from tradeloop.execution.adapters.bus_history import BusHistory
from tradeloop.execution.adapters.memory_ledger import MemoryLedger
from tradeloop.execution.adapters.paper import PaperVenue
from tradeloop.execution.application import Execution

START_US = 1_700_000_040_000_000
UNIVERSE = Universe(name="pair", instruments=(Instrument(id="x:A"),), timeframe=Timeframe.M1)


@reward(version="1")
class Growth:
    def __call__(self, c: RewardContext) -> Any:
        return c.equity / c.equity_prev - 1.0


STRATEGY = Strategy("test", [log_return(1)], Growth(), window=1, actions=TargetPosition())


class Stack:
    """Execution on a bus in memory, which works while its client waits."""

    def __init__(self, *names: str) -> None:
        self.bus, self.clock = MemoryBus(), ManualClock(from_us(START_US) + timedelta(days=1))
        self.ledger = MemoryLedger()
        portfolios = [Portfolio(name=name, universe=UNIVERSE, strategy="test") for name in names]
        execution = Execution(portfolios, lambda _: STRATEGY, PaperVenue, self.ledger, BusHistory(self.bus), self.clock)
        self.runner = Runner(execution, self.bus, self.clock)
        self.client = Client(self.bus, self.clock, lambda _: None, wait=self.work)

    def work(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.runner.step()

    def send(self, *messages: Message) -> None:
        producer = self.bus.producer()
        for message in messages:
            publish(producer, message, "test")
        with capture_logs():
            pump([self.runner])

    @property
    def books(self) -> dict[str, BookState]:
        return book_states(self.bus)

    def command(self, command: Any, name: str, reason: str) -> Any:
        with capture_logs():
            return obeyed(self.client, self.books[name], command, reason, 5.0)


def frame(t: int) -> BarFrame:
    bar = Bar(instrument="x:A", open=100.0, high=101.0, low=99.0, close=100.0)
    opens = [from_us(START_US + (t + n) * Timeframe.M1.us) for n in (0, 1)]
    return BarFrame(universe="pair", timeframe=Timeframe.M1, open_time=opens[0], close_time=opens[1], bars=(bar,))


def signal(t: int, name: str, **changes: Any) -> SignalGenerated:
    fields: dict[str, Any] = {"universe": "pair", "portfolio": name, "time": frame(t).close_time}
    fields |= {"instruments": UNIVERSE.ids, "targets": (0.5,), "features": ((0.1,),), "action": (0.5,)}
    return SignalGenerated(**{**fields, **changes})
