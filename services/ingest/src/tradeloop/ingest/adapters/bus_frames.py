"""`BusFrames`: which frames were published, read back from their topic."""

from __future__ import annotations

from pydantic import ValidationError

from tradeloop.common.bus.port import Bus, LogPosition, Partition, Record, partition_for
from tradeloop.common.market import Universe, to_us
from tradeloop.common.messages import BarFrame
from tradeloop.common.messages.topics import topic_of

_BLOCK = 256
"""Records that are read back at once, from the end."""


class BusFrames:
    """The frames on a bus. One that keeps no time of its records has none that came after a request."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def newest_since(self, request: LogPosition, universe: Universe) -> int | None:
        asked = self._bus.read(request.partition, request.offset, request.offset + 1)
        if not asked:
            return None
        topic = topic_of(BarFrame).name
        partition = Partition(topic, partition_for(universe.name, self._bus.partitions(topic)))
        begin, end = self._bus.begin_offsets(topic)[partition], self._bus.end_offsets(topic)[partition]
        while end > begin:
            start = max(begin, end - _BLOCK)
            for record in reversed(self._bus.read(partition, start, end)):
                if record.timestamp_ms <= asked[0].timestamp_ms:
                    return None
                if (open_us := _base_open_us(record, universe)) is not None:
                    return open_us
            end = start
        return None


def _base_open_us(record: Record, universe: Universe) -> int | None:
    if record.key != universe.name:
        return None
    try:
        frame = BarFrame.model_validate_json(record.value)
    except ValidationError:
        return None  # its consumers dead-letter it
    return to_us(frame.open_time) if frame.timeframe is universe.timeframe and not frame.revision else None
