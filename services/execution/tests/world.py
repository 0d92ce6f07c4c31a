"""Execution with a book of two instruments, and what may fail about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

import numpy as np

from tradeloop.common.arrays import Floats
from tradeloop.common.bus.port import LogPosition, Partition
from tradeloop.common.clock import ManualClock
from tradeloop.common.errors import Unavailable
from tradeloop.common.market import Bar, Instrument, Timeframe, Universe, from_us, to_us
from tradeloop.common.messages import (
    BarFrame,
    Message,
    OrderUpdated,
    PortfolioCommanded,
    PortfolioEvent,
    SignalGenerated,
)
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.attempts import Patience
from tradeloop.common.runtime.held import ReadOn
from tradeloop.common.runtime.standing import Standing
from tradeloop.common.simulation import Market
from tradeloop.common.strategy import RewardContext, Strategy, TargetPosition, log_return, reward
from tradeloop.execution.adapters.memory_ledger import MemoryLedger
from tradeloop.execution.adapters.paper import PaperVenue
from tradeloop.execution.application import Execution
from tradeloop.execution.domain.inputs import VenueFill
from tradeloop.execution.ports import Venue

START_US = 1_700_000_040_000_000
A, B = (Instrument(id=f"x:{name}", lot_size=1e-4, tick_size=0.01, taker_bps=3.0) for name in "AB")
PAIR = Universe(name="pair", instruments=(A, B), timeframe=Timeframe.M1)


@reward(version="1")
class Growth:
    """The reward that a newcomer writes: nothing in it survives an equity of zero, or a bar on which it breaks."""

    broken: ClassVar[bool] = False
    initial_state = {"seen": 0.0}  # noqa: RUF012  a mapping of defaults, never written

    def __call__(self, c: RewardContext) -> Floats:
        c.state["seen"][:] = c.state["seen"] + 1.0
        if type(self).broken:
            raise ZeroDivisionError("of the author's own making")
        return np.log(c.equity / c.equity_prev) + 1e-9 * c.state["seen"]


STRATEGY = Strategy("test", [log_return(1)], Growth(), window=1, actions=TargetPosition(no_trade_band=0.02))


class Past:
    """What is on the bus: frames that came, and events that are on record."""

    def __init__(self, recorded: Sequence[PortfolioEvent]) -> None:
        self.recorded = recorded
        self.came: list[BarFrame] = []
        self.away = False

    def events(self, portfolios: Sequence[Portfolio]) -> Mapping[str, Sequence[PortfolioEvent]]:
        return {one.name: [event for event in self.recorded if event.portfolio == one.name] for one in portfolios}

    def frames(self, universe: Universe) -> ReadOn[BarFrame]:
        def read(position: LogPosition, limit: int) -> Sequence[tuple[int, BarFrame, LogPosition]]:
            if self.away:
                raise Unavailable("the bus is away")
            found = [(to_us(one.close_time), one, at(n)) for n, one in enumerate(self.came)]
            return found[position.offset :][:limit]

        return read


class World:
    """Execution with what it needs, and all that came out of it."""

    def __init__(
        self,
        *names: str,
        ledger: MemoryLedger | None = None,
        venue: Callable[[Portfolio], Venue] = PaperVenue,
        recorded: Sequence[PortfolioEvent] = (),
        universe: Universe = PAIR,
        **changes: Any,
    ) -> None:
        portfolios = [
            Portfolio(name=name, universe=universe, strategy="test", **changes) for name in names or ("book",)
        ]
        self.ledger = ledger or MemoryLedger()
        self.clock = ManualClock(from_us(START_US))
        self.past = Past(recorded)
        self.out: list[Message] = []
        patience = Patience(attempts=3, delay_s=1.0)
        self.execution = Execution(
            portfolios, lambda _: STRATEGY, venue, self.ledger, self.past, self.clock, patience, grace_s=1.0
        )
        self.execution.assigned({}, lambda _: True)

    def give(self, *messages: Message) -> list[Message]:
        """What comes of messages at once."""
        out: list[Message] = []
        for message in messages:
            where = LogPosition(Partition(topic_of(type(message)).name, 0), 0)
            if isinstance(message, BarFrame):
                self.clock.advance(max((message.close_time - self.clock.now()).total_seconds(), 0.0))
                self.past.came.append(message)
                where = at(len(self.past.came) - 1)
            assert not list(self.execution.handle(message, where))
            out += self.execution.advance()
        self.out += out
        return out

    def pass_time(self, seconds: float) -> list[Message]:
        """Let time go by, second after second."""
        out: list[Message] = []
        for _ in range(int(seconds)):
            self.clock.advance(1.0)
            out += self.execution.advance()
        self.out += out
        return out

    def said(self, kind: str, portfolio: str = "book") -> list[str]:
        """The reasons of a portfolio's events of one kind."""
        events = of(PortfolioEvent, self.out)
        return [event.reason for event in events if (event.kind, event.portfolio) == (kind, portfolio)]

    def of(self, portfolio: str) -> list[Message]:
        """All that was published about a portfolio."""
        return [message for message in self.out if getattr(message, "portfolio", "") == portfolio]

    @property
    def standing(self) -> Standing:
        return next(iter(self.execution.standings()))


def at(offset: int) -> LogPosition:
    return LogPosition(Partition("market.bars.v1", 0), offset)


def of(kind: type[Any], messages: Sequence[Message]) -> list[Any]:
    return [message for message in messages if isinstance(message, kind)]


def closes(t: int) -> datetime:
    return from_us(START_US + (t + 1) * Timeframe.M1.us)


def frame(t: int, price: float = 100.0, live: bool = False, universe: str = "pair") -> BarFrame:
    close = price * (1.0 + 0.001 * (t % 3))
    bar: dict[str, Any] = {"open": price, "high": price * 1.01, "low": price * 0.99, "close": close}
    return BarFrame(
        universe=universe,
        timeframe=Timeframe.M1,
        open_time=from_us(START_US + t * Timeframe.M1.us),
        close_time=closes(t),
        bars=tuple(Bar(instrument=one.id, **bar) for one in (A, B)),
        live=live,
    )


def signal(t: int, *targets: float, portfolio: str = "book", **changes: Any) -> SignalGenerated:
    fields: dict[str, Any] = {
        "universe": "pair",
        "portfolio": portfolio,
        "time": closes(t),
        "instruments": PAIR.ids,
        "targets": targets or (0.0, 0.0),
        "features": ((0.1,), (0.2,)),
        "observation": (float(t),),
        "action": targets or (0.0, 0.0),
        "model_version": "1",
    }
    return SignalGenerated(**{**fields, **changes})


def failed_decision(t: int, portfolio: str = "book") -> SignalGenerated:
    return signal(t, portfolio=portfolio, hold=True, reason="error", error="ValueError: the policy said NaN")


def command(name: Any, t: int, portfolio: str = "book", request: str = "r1") -> PortfolioCommanded:
    return PortfolioCommanded(
        universe="pair", portfolio=portfolio, request_id=request, command=name, time=closes(t), reason="looked at it"
    )


class FragileVenue(PaperVenue):
    """A venue whose code fails on some frames, for portfolios that are called so."""

    def __init__(self, portfolio: Portfolio) -> None:
        super().__init__(portfolio)
        self._fragile = portfolio.name.startswith("bad")

    fails: ClassVar[set[int]] = set()
    times: ClassVar[int] = 10**9

    def fills(self, bar: Market) -> Sequence[VenueFill]:
        if self._fragile and round(float(bar.open[0, 0])) in FragileVenue.fails and FragileVenue.times > 0:
            FragileVenue.times -= 1
            raise RuntimeError("what nobody thought of")
        return super().fills(bar)


class DistantVenue(PaperVenue):
    """A venue outside, which is sometimes away."""

    outside = True
    away: ClassVar[set[str]] = set()
    got: ClassVar[list[str]] = []
    emptied: ClassVar[list[str]] = []

    def __init__(self, portfolio: Portfolio) -> None:
        super().__init__(portfolio)
        self._name = portfolio.name

    def submit(self, orders: Sequence[OrderUpdated]) -> None:
        if self._name in DistantVenue.away:
            raise Unavailable("the venue does not answer")
        DistantVenue.got += [order.order_id for order in orders]
        DistantVenue.emptied += [] if orders else [self._name]
        super().submit(orders)
