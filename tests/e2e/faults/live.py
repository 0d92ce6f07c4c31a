"""The same for live feeds: simulated venues trade on, whatever fails, and what went out is held against them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from tests.e2e.faults import matrix
from tests.e2e.faults.house import START_US, VICTIM, Growth, House, Left, names
from tests.e2e.taps import Fault, Life, Point, Seen
from tradeloop.common.clock import ManualClock
from tradeloop.common.event_store.memory import MemoryEventStore
from tradeloop.common.market import Bar, Instrument, Timeframe, TimeRange, Universe, from_us, to_us
from tradeloop.common.messages import (
    BarFrame,
    Channel,
    LiveReported,
    LiveRequested,
    PreprocessRequested,
)
from tradeloop.common.messages.topics import CATALOGUE, dead_letter_topic, topic_of
from tradeloop.common.portfolio import Portfolio, RiskLimits
from tradeloop.common.runtime.readback import all_messages, all_records
from tradeloop.common.strategy import Strategy, TargetPosition, buy_pressure, log_return
from tradeloop.ingest.adapters.simulated_source import SimulatedSource, SimulatedStream
from tradeloop.ingest.application.live import LivePolicy
from tradeloop.ingest.application.live.outlet import bars_in, bars_of
from tradeloop.ingest.ports import MarketEvent, Page, StreamedBar

MINUTE = Timeframe.M1
SEED = 3
FILLED, FED = 2, 4
"""Minutes that a feed fills from the history when it begins, and that it hears."""
STEP_S, PHASE_S = 5.0, 2.0
"""The steps of the clock, and when they are: bars close two seconds before one, and there is another in their grace."""
LATE_US, LATE_UNTIL_US = START_US + MINUTE.us, START_US + 3 * MINUTE.us + 20_000_000
"""The open of the bars that a venue keeps back, and until when."""
LATE_VENUE = "near"
PASSES = 6
"""Turns of all services between two steps of the clock."""
ALSO = ("bus.consumer().poll", "published.live_requests", "service.advance", "service.advance() next")
"""Calls of ingest about nobody that are tried while it feeds; the others are the runner's, which replays show."""
SETTLED_S = 50.0
"""How long the feeds go on behind the last minute that is compared."""


def _universe(name: str, venue: str, *symbols: str) -> Universe:
    source = SimulatedSource(ManualClock(from_us(START_US)), SEED, venue=venue)
    return Universe(name=name, instruments=tuple(source.instruments(symbols)), timeframe=MINUTE)


NEAR = _universe("pair", "near", "BTC/USDT", "ETH/USDT")
FAR = _universe(House.portfolios[-1].universe.name, "far", "SOL/USDT")
UNIVERSES = (NEAR, FAR)
CHANNELS: Mapping[str, tuple[Channel, ...]] = {NEAR.name: ("bars", "trades"), FAR.name: ("bars",)}


def _portfolio(name: str, universe: Universe, strategy: str) -> Portfolio:
    return Portfolio(name=name, universe=universe, strategy=strategy, limits=RiskLimits(max_drawdown=1.0))


PORTFOLIOS = (
    _portfolio(VICTIM, NEAR, "bold"),
    _portfolio("calm", NEAR, "flow"),
    _portfolio("remote", FAR, "far"),
)
FEATURES = {"bold": [log_return(1)], "flow": [log_return(2), buy_pressure(1)], "far": [log_return(3)]}


def strategy_of(name: str) -> Strategy:
    return Strategy(name, FEATURES[name], Growth(), window=1, actions=TargetPosition(no_trade_band=0.0))


class Venue(SimulatedSource):
    """A simulated venue; one keeps the bars of a minute back, as if nothing had been traded, and tells them late."""

    def history(self, instrument: Instrument, timeframe: Timeframe, start_us: int, end_us: int) -> Iterator[Page]:
        for page in super().history(instrument, timeframe, start_us, end_us):
            keep = page.bars["open_us"] != (LATE_US if self.keeps_back else -1)
            yield Page({name: column[keep] for name, column in page.bars.items()}, page.until_us)

    def stream(self, *arguments: Any) -> Any:
        return _Stream(self, super().stream(*arguments))

    @property
    def keeps_back(self) -> bool:
        return self.venue == LATE_VENUE and self.time_us() < LATE_UNTIL_US


class _Stream:
    def __init__(self, venue: Venue, inner: SimulatedStream) -> None:
        self._venue, self._inner = venue, inner
        self._late: list[MarketEvent] = []

    def poll(self, timeout_s: float) -> Sequence[MarketEvent]:
        told: list[MarketEvent] = []
        for event in self._inner.poll(timeout_s):
            is_late = isinstance(event, StreamedBar) and event.open_us == LATE_US and self._venue.keeps_back
            (self._late if is_late else told).append(event)
        if not self._venue.keeps_back:
            told, self._late = [*self._late, *told], []
        return told

    def close(self) -> None:
        self._inner.close()


class LiveHouse(House):
    """Ingest feeds two universes live, and three portfolios trade them."""

    services = ("ingest", "preprocess", "inference", "execution")
    portfolios = PORTFOLIOS
    names = names(PORTFOLIOS, strategy_of, venues=True)
    last_us = START_US + FED * MINUTE.us
    steady = frozenset((VICTIM, "remote"))
    market_goes_on = True

    def __init__(self, fault: Fault | None = None, seen: Seen | None = None) -> None:
        self._events = MemoryEventStore()
        super().__init__(fault, seen)

    def begins(self) -> datetime:
        return from_us(START_US) - timedelta(seconds=55)

    def strategy(self, name: str) -> Strategy:
        return strategy_of(name)

    def _arguments(self, name: str, life: Life, bus: Any) -> dict[str, Any]:
        arguments = super()._arguments(name, life, bus)
        if name == "ingest":
            arguments["open_source"] = lambda venue: Venue(self.clock, SEED, venue=venue)
            arguments["events"] = self._events
            arguments["threaded"] = False
            # The venue tells of a bar every quarter of a minute, and that is no stall.
            arguments["live"] = LivePolicy(stall_s=20.0)
        return arguments

    def run(self) -> Left:
        self.settle("start")
        self.clock.advance((PHASE_S - self.clock.now().second) % STEP_S)
        since = from_us(START_US - FILLED * MINUTE.us)
        self.send(*(self._request(one, "start", since) for one in UNIVERSES))
        end = from_us(self.last_us) + timedelta(seconds=SETTLED_S)
        while self.clock.now() < end:
            for _ in range(PASSES):
                if not sum(self._turn(name) for name in self.services):
                    break
            self._note_outage()
            self.clock.advance(STEP_S)
        self.send(*(self._request(one, "stop") for one in UNIVERSES))
        self.settle("stop")
        fault = self.probe.fault
        if fault is None or fault.point.service == "preprocess":  # what it reads is what the feed has stored
            span = TimeRange(start=since, end=from_us(self.last_us))
            self.send(PreprocessRequested(request_id="p", universe=NEAR, strategy="flow", range=span))
            self.settle("preprocess")
        left = self._left()
        reports = list(all_messages(self.bus, LiveReported))
        failed = {one.universe.name for one in reports if one.state == "failed" and one.reason}
        left.given_up = {one.name for one in PORTFOLIOS if one.universe.name in failed}
        # What is missing is with the dead letters, or counted.
        topic = dead_letter_topic(topic_of(LiveRequested).name, "ingest")
        failed |= {record.key for record in all_records(self.bus, topic)}
        unsound = {name for event, name in left.tallies if event in ("stream_malformed", "history_unsound")}
        excused = failed | unsound
        left.wrong = [text for one in UNIVERSES for text in self._wrong(one, one.name in excused, bool(left.dropped))]
        return left

    def _request(self, universe: Universe, command: Any, since: datetime | None = None) -> LiveRequested:
        return LiveRequested(
            request_id=f"{command}-{universe.name}",
            universe=universe,
            command=command,
            time=self.clock.now(),
            since=since,
            channels=CHANNELS[universe.name],
        )

    def _lasting(self, topic: str, value: bytes) -> bytes | None:
        if not topic.startswith(("execution.", "inference.", "experience.")):
            return None  # bars are held against the venue, and trades come in parts of any size
        occurred = CATALOGUE[topic].message.model_validate_json(value).occurred
        if occurred is None or to_us(occurred) >= self.last_us:
            return None
        told = json.loads(value)
        for name in ("live", "deadline", "catches_up"):
            told.pop(name, None)
        return json.dumps(told).encode()

    def _books(self) -> Mapping[str, object]:
        orders = [one for one in self.ledger.orders.values() if to_us(one.decision_time) < self.last_us]
        fills = [one for one in self.ledger.fills.values() if to_us(one.time) < self.last_us]
        return {
            name: (
                sorted((one for one in orders if one.portfolio == name), key=lambda one: one.order_id),
                sorted((one for one in fills if one.portfolio == name), key=lambda one: one.fill_id),
            )
            for name in (one.name for one in PORTFOLIOS)
        }

    def _wrong(self, universe: Universe, excused: bool, dropped: bool) -> Iterator[str]:
        """Where the bars that are stored, or that went out, are not the venue's."""
        start_us = START_US - FILLED * MINUTE.us
        sent: dict[tuple[str, int], Bar] = {}
        for frame in sorted(all_messages(self.bus, BarFrame), key=lambda one: one.revision):
            sent |= {(bar.instrument, to_us(frame.open_time)): bar for bar in frame.bars}
        stored = bars_in(self._bars.read(universe.ids, MINUTE, start_us, self.last_us))
        source = SimulatedSource(self.clock, SEED, venue=universe.ids[0].partition(":")[0])
        for instrument in universe.instruments:
            [page] = source.history(instrument, MINUTE, start_us, self.last_us)
            true, _ = bars_of(instrument.id, page.bars)
            for open_us, bar in true.items():
                for what, found, may_lack in (
                    ("stored", stored[instrument.id].get(open_us), excused),
                    ("sent", sent.get((instrument.id, open_us)), excused or dropped),
                ):
                    if (found is None and not may_lack) or (found is not None and _plain(found) != _plain(bar)):
                        yield f"{instrument.id} of {from_us(open_us):%H:%M} is not {what} as it was: {found}"


def _plain(bar: Bar) -> Bar:
    """A bar without the columns that come of trades."""
    return bar.model_copy(update={"extra": {}})


def undisturbed(known: Mapping[Point, Seen]) -> tuple[Left, dict[Point, Seen]]:
    """What is left without a fault, and the calls to try: all that no run of replays makes, and the work on feeds."""
    left, seen = matrix.undisturbed(LiveHouse)
    assert not left.wrong, left.wrong
    assert not left.stuck, left.stuck
    tried = {
        point: what
        for point, what in seen.items()
        if point not in known or (point.service == "ingest" and (what.victims or point.call in ALSO))
    }
    return left, tried


def cases(known: Mapping[Point, Seen]) -> matrix.Matrix:
    """Run every case of the live feeds. It takes a minute."""
    expected, seen = undisturbed(known)
    return matrix.Matrix(seen, list(matrix.tried(expected, seen, LiveHouse)))
