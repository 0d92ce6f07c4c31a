"""`BusSent`: the frames that went out, read back from their topic."""

from __future__ import annotations

from collections.abc import Iterator

from tradeloop.common.bus.port import Bus, LogPosition
from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.common.market import Universe, to_us
from tradeloop.common.messages import BarFrame
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.runtime.readback import blocks_backwards, of_kind, partition_of

_RECORDS = 32_768
"""Records that are looked through: those of a partition, of all its universes."""


class BusSent:
    """The frames on a bus, but for those that are refused for their times."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus, self._clock = bus, clock

    def before(self, position: LogPosition, universe: Universe, open_us: int) -> Iterator[BarFrame]:
        topic = topic_of(BarFrame).name
        passed = position.partition.topic == topic
        partition = partition_of(self._bus, topic, universe.name)
        seen = 0
        for block in blocks_backwards(self._bus, partition, position.offset if passed else None):
            mine = (record for record in reversed(block) if record.key == universe.name)
            for frame in of_kind(mine, BarFrame):
                if not self._counts(frame):
                    continue
                if passed:
                    yield frame
                elif frame.timeframe is universe.timeframe and not frame.revision:
                    passed = to_us(frame.open_time) == open_us
            seen += len(block)
            if seen >= _RECORDS:
                return

    def _counts(self, frame: BarFrame) -> bool:
        try:
            frame.check(self._clock)
        except UserError:
            return False
        return True
