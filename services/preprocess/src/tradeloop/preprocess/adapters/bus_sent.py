"""`BusSent`: the frames that went out, read back from their topic."""

from __future__ import annotations

from tradeloop.common.bus.port import Bus, LogPosition
from tradeloop.common.market import Universe, to_us
from tradeloop.common.messages import BarFrame
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.runtime.readback import blocks_backwards, of_kind

_BLOCKS = 6
"""Blocks of records that are looked through: some thirty thousand, the frames of hundreds of universes."""


class BusSent:
    """The frames on a bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def before(self, position: LogPosition, universe: Universe) -> int | None:
        partition, offset = position
        if partition.topic != topic_of(BarFrame).name:
            return None  # a frame that failed before: others went out since
        for _, block in zip(range(_BLOCKS), blocks_backwards(self._bus, partition, offset), strict=False):
            mine = (record for record in reversed(block) if record.key == universe.name)
            for frame in of_kind(mine, BarFrame):
                if frame.timeframe is universe.timeframe and not frame.revision:
                    return to_us(frame.open_time)
        return None
