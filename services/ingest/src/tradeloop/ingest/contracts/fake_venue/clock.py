"""The clock of a fake venue: real time, scaled time, or time that stands until a test moves it."""

from __future__ import annotations

from datetime import datetime

from tradeloop.common.clock import Clock, SystemClock
from tradeloop.common.market import to_us


class VenueClock:
    """Time that starts at `origin` when the machine's clock shows `anchor`, and runs `speed` times as fast.

    Without an origin it is the machine's own time; without an anchor it starts now. A speed of 0 stands still. Two
    processes with the same origin, anchor and speed agree, so a venue that is killed and started again goes on.
    """

    def __init__(
        self,
        origin: datetime | None = None,
        *,
        speed: float = 1.0,
        anchor: datetime | None = None,
        machine: Clock | None = None,
    ) -> None:
        if not speed >= 0.0:
            raise ValueError(f"the speed of a venue's clock is {speed}: give 0 or more")
        self._machine = machine or SystemClock()
        self._anchor_us = to_us(anchor or origin or self._machine.now())
        if origin is not None and anchor is None:
            self._anchor_us = to_us(self._machine.now())
        self._origin_us = self._anchor_us if origin is None else to_us(origin)
        self._advanced_us = 0
        self.speed = speed

    def now_us(self) -> int:
        """Microseconds since the epoch."""
        passed = to_us(self._machine.now()) - self._anchor_us
        return self._origin_us + self._advanced_us + int(passed * self.speed)

    def advance(self, seconds: float) -> None:
        """Jump forward, whatever the speed is."""
        if not seconds >= 0.0:
            raise ValueError(f"the clock of a venue cannot go back by {seconds} s")
        self._advanced_us += round(seconds * 1e6)
