"""`BusFrames`: which frames were published, read back from their topic."""

from __future__ import annotations

from tradeloop.common.bus.port import Bus, LogPosition, Record
from tradeloop.common.market import Universe, to_us
from tradeloop.common.messages import BarFrame
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.runtime.readback import blocks_backwards, decoded, partition_of


class BusFrames:
    """The frames on a bus. One that keeps no time of its records has none that came after a request."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def newest_since(self, request: LogPosition, universe: Universe) -> int | None:
        asked = self._bus.read(request.partition, request.offset, request.offset + 1)
        if not asked:
            return None
        partition = partition_of(self._bus, topic_of(BarFrame).name, universe.name)
        for block in blocks_backwards(self._bus, partition):
            for record in reversed(block):
                if record.timestamp_ms <= asked[0].timestamp_ms:
                    return None
                if (open_us := _base_open_us(record, universe)) is not None:
                    return open_us
        return None


def _base_open_us(record: Record, universe: Universe) -> int | None:
    if record.key != universe.name:
        return None
    frame = decoded(record, BarFrame)
    if frame is None or frame.timeframe is not universe.timeframe or frame.revision:
        return None
    return to_us(frame.open_time)
