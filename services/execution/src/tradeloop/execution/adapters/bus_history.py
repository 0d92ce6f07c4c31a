"""`BusHistory`: what execution reads on the bus outside its group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tradeloop.common.bus.port import Bus, LogPosition
from tradeloop.common.market import Universe, to_us
from tradeloop.common.messages import BarFrame, PortfolioEvent
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.held import ReadOn
from tradeloop.common.runtime.readback import decoded, of_kind, partitions_of, read_on, records_of


class BusHistory:
    """Events that are on record, and frames that were let pass by while a portfolio waited."""

    def __init__(self, bus: Bus, recorded: Bus | None = None) -> None:
        """`recorded` has the events, where these are those of another run, which is replayed."""
        self._bus, self._recorded = bus, recorded or bus

    def events(self, portfolios: Sequence[Portfolio]) -> Mapping[str, Sequence[PortfolioEvent]]:
        """As `History.events`."""
        bus, topic = self._recorded, topic_of(PortfolioEvent).name
        found: dict[str, dict[str, PortfolioEvent]] = {portfolio.name: {} for portfolio in portfolios}
        universes = {portfolio.universe.name for portfolio in portfolios}
        for partition in set(partitions_of(bus, topic, universes).values()):
            for event in of_kind(records_of(bus, partition), PortfolioEvent):
                if event.portfolio in found:
                    found[event.portfolio].setdefault(event.identity, event)
        return {portfolio: list(events.values()) for portfolio, events in found.items()}

    def frames(self, universe: Universe) -> ReadOn[BarFrame]:
        """As `History.frames`."""

        def read(position: LogPosition, limit: int) -> Sequence[tuple[int, BarFrame, LogPosition]]:
            frames = (
                (to_us(frame.close_time), frame, where)
                for record, where in read_on(self._bus, position, universe.name)
                if (frame := decoded(record, BarFrame)) is not None and frame.timeframe is universe.timeframe
            )
            return [frame for frame, _ in zip(frames, range(limit), strict=False)]

        return read
