"""`BusFrames`: which frames were published, read back from their topic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tradeloop.common.bus.port import Bus, LogPosition, Record
from tradeloop.common.market import Timeframe, Universe, to_us
from tradeloop.common.messages import BarFrame, LiveRequested, PortfolioMarked
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.runtime.readback import (
    Tail,
    all_records,
    backwards,
    blocks_backwards,
    decoded,
    of_kind,
    partition_of,
)

_BLOCK = 512
"""Records of which those of a universe are decoded at once."""


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

    def frames(self, universe: Universe, place: int) -> tuple[Sequence[BarFrame], int | None]:
        partition = partition_of(self._bus, topic_of(BarFrame).name, universe.name)
        start = max(place, self._bus.begin_offsets(partition.topic)[partition])
        stop = min(start + _BLOCK, self._bus.end_offsets(partition.topic)[partition])
        if start >= stop:
            return (), None
        mine = (record for record in self._bus.read(partition, start, stop) if record.key == universe.name)
        return tuple(of_kind(mine, BarFrame)), stop

    def marks(self, universe: Universe) -> BusMarks:
        return BusMarks(self._bus, universe)

    def recent(self, universe: Universe, base_frames: int) -> Sequence[BarFrame]:
        found: list[BarFrame] = []
        for frame in backwards(self._bus, BarFrame, universe.name):
            if frame.live:
                found.append(frame)
                base_frames -= frame.timeframe is universe.timeframe and not frame.revision
            if base_frames <= 0:
                break
        return found[::-1]

    def revision(self, universe: Universe, timeframe: Timeframe, open_us: int) -> int:
        newest = -1
        for frame in backwards(self._bus, BarFrame, universe.name):
            if frame.timeframe is timeframe and to_us(frame.open_time) == open_us:
                newest = max(newest, frame.revision)
                if not frame.revision:
                    break
        return newest

    def live_requests(self, owns: Callable[[str], bool]) -> Sequence[tuple[LiveRequested, LogPosition]]:
        newest = {record.key: record for record in all_records(self._bus, topic_of(LiveRequested).name)}
        found = ((record, decoded(record, LiveRequested)) for key, record in newest.items() if owns(key))
        return [(request, record.position) for record, request in found if request is not None]


class BusMarks:
    """Marks from the topic of portfolios."""

    def __init__(self, bus: Bus, universe: Universe) -> None:
        self._tail = Tail(bus, {topic_of(PortfolioMarked).name: universe.name})

    def new(self) -> Mapping[str, int]:
        return {mark.portfolio: to_us(mark.time) for mark in of_kind(self._tail.new(), PortfolioMarked)}

    def close(self) -> None:
        self._tail.close()


def _base_open_us(record: Record, universe: Universe) -> int | None:
    if record.key != universe.name:
        return None
    frame = decoded(record, BarFrame)
    if frame is None or frame.timeframe is not universe.timeframe or frame.revision:
        return None
    return to_us(frame.open_time)
