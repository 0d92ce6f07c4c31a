"""Events of instruments on their way out: each before the first base frame that knows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import structlog

from tradeloop.common.market import EVER_US, Universe, to_us
from tradeloop.common.messages import BarFrame, InstrumentChanged

log = structlog.get_logger(__name__)

Count = Callable[[str, str, int], None]
"""Counts so many events of a name, of a universe."""


def uncounted(event: str, universe: str, number: int) -> None:
    """Counts nothing."""


class Announced:
    """The events of a universe that went out.

    Before the first frame of a run go those that are still in force at its open. They follow from the frame alone, and
    come again with it after a crash, as the same messages.
    """

    def __init__(self, universe: Universe, count: Count = uncounted) -> None:
        self._universe, self._force, self._count = universe, universe.in_force, count
        self._until_us: int | None = None

    def behind(self, close_us: int) -> None:
        """Go on behind a frame that went out."""
        self._until_us = close_us

    def before(self, frame: BarFrame) -> Iterator[InstrumentChanged]:
        """The events that a base frame is the first to know, in their order. `behind` notes that they went out."""
        if self._force.is_empty or frame.revision or frame.timeframe is not self._universe.timeframe:
            return
        new, until_us = [], self._until_us
        if until_us is None:
            until_us = to_us(frame.open_time)
            new += self._force.lasting(until_us)
        for name, event in (*new, *self._force.between(until_us, to_us(frame.close_time))):
            yield InstrumentChanged(universe=self._universe.name, instrument=name, event=event)

    def sent(self, frame: BarFrame) -> None:
        """A frame went out, and before it what `before` gave."""
        if self._force.is_empty or frame.revision or frame.timeframe is not self._universe.timeframe:
            return
        for one in self.before(frame):
            self._count(f"instrument_{one.event.kind}", self._universe.name, 1)
            log.info(
                "an event of an instrument",
                what=one.event.words,
                universe=self._universe.name,
                instrument=one.instrument,
                time=one.event.time.isoformat(),
            )
        self.behind(max(to_us(frame.close_time), -EVER_US if self._until_us is None else self._until_us))
