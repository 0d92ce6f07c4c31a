"""Live feeds as the topics tell of them: which are wanted, what became of that, and how new their bars are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from tradeloop.common.bus.port import Bus
from tradeloop.common.clock import Clock
from tradeloop.common.messages import BarFrame, LiveReported, LiveRequested
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.runtime.readback import all_records, backwards, decoded

_LATE_BARS = 3
"""A feed whose newest bars are so many bars old shows itself late; whether bars are due, ingest knows."""


@dataclass(frozen=True, slots=True)
class FeedState:
    """A universe's live feed."""

    universe: str
    state: str
    """`asked for`, `started`, `stopped` or `failed`."""
    reason: str
    newest: datetime | None
    """Close of the newest bars that went out live."""
    missing: tuple[str, ...]
    """Instruments without a bar among these."""
    late: bool

    @property
    def stands_still(self) -> bool:
        return self.state == "failed"

    @property
    def words(self) -> str:
        """The feed in a line."""
        told = f"live feed of {self.universe}: {self.state}"
        if self.reason:
            told += f", {self.reason}"
        if self.newest is not None:
            told += f"; newest bars closed {self.newest:%Y-%m-%d %H:%M:%S} UTC"
            if self.missing:
                told += f", without {', '.join(self.missing)}"
            if self.late and self.state == "started":
                told += ", which is late where bars are due: see /ready of ingest"
        return told

    @property
    def described(self) -> dict[str, object]:
        return {
            "live_feed": self.universe,
            "state": self.state,
            "reason": self.reason or None,
            "newest": None if self.newest is None else self.newest.isoformat(),
            "missing": list(self.missing),
        }


def feed_states(bus: Bus, clock: Clock) -> list[FeedState]:
    """The feeds that were ever asked for, by universe. Raises `MissingTopic`, `BusUnavailable`."""
    newest = {record.key: record for record in all_records(bus, topic_of(LiveRequested).name)}
    found = []
    for _, record in sorted(newest.items()):
        request = decoded(record, LiveRequested)
        if request is not None:
            found.append(_state(bus, clock, request))
    return found


def _state(bus: Bus, clock: Clock, request: LiveRequested) -> FeedState:
    name, base = request.universe.name, request.universe.timeframe
    reports = (one for one in backwards(bus, LiveReported, name) if one.request_id == request.request_id)
    report = next(reports, None)
    frames = backwards(bus, BarFrame, name)
    frame = next((one for one in frames if one.live and one.timeframe is base and not one.revision), None)
    late = frame is None or clock.now() - frame.close_time > timedelta(seconds=_LATE_BARS * base.seconds)
    return FeedState(
        universe=name,
        state="asked for, and ingest has not answered" if report is None else report.state,
        reason="" if report is None else report.reason,
        newest=None if frame is None else frame.close_time,
        missing=() if frame is None else frame.missing,
        late=late,
    )
