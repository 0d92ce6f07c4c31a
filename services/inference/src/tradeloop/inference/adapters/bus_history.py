"""`BusHistory`: what was published, read back from its topics; what the bus no longer holds, from stored bars."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import structlog

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.bus.port import Bus, LogPosition, Partition, Record, partition_for
from tradeloop.common.features import FeatureSet, compute_stored
from tradeloop.common.market import Universe, from_us, to_us
from tradeloop.common.messages import FeaturesComputed, Message, ModelActivated, PortfolioMarked, SignalGenerated
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.runtime.held import ReadOn
from tradeloop.common.runtime.readback import blocks_backwards, decoded, of_kind, partition_of, read_on, records_of

log = structlog.get_logger(__name__)

P = TypeVar("P", SignalGenerated, PortfolioMarked)

_LOOKED_AT = 50_000
"""Records of a partition in which the last mark and the last decision of a portfolio are looked for."""
_BLOCK = 128
"""Records that are read at once to find the features of some bars."""
_KEPT_BYTES = 16 << 20
"""Records of features that are kept for the desks that start next."""


class BusHistory:
    """The history of universes on a bus. `bars` makes up for features whose records have expired, where it is given.

    What it finds of other portfolios on its way is kept until it is told to forget it, so that a thousand of them cost
    no more than one look at each partition.
    """

    def __init__(self, bus: Bus, bars: BarStore | None = None) -> None:
        self._bus, self._bars = bus, bars
        self.forget()

    def forget(self) -> None:
        """As `History.forget`."""
        self._counts: dict[str, int] = {}
        self._bounds: dict[str, tuple[Mapping[Partition, int], Mapping[Partition, int]]] = {}
        """Where the partitions of topics began and ended, as far as anybody had to know. Whoever takes partitions over
        looks for what is before that; the rest comes."""
        self._blocks = _Blocks(self._bus)
        self._activations: dict[Partition, dict[str, list[bytes]]] = {}
        """The activations of each portfolio as they stand on the bus: a year of them for a thousand portfolios is
        three times as large when it is decoded."""
        self._decided: dict[Partition, _Newest[SignalGenerated]] = {}
        self._marked: dict[Partition, _Newest[PortfolioMarked]] = {}

    def features_before(
        self, time_us: int, position: LogPosition | None, universe: Universe, feature_set: FeatureSet, rows: int
    ) -> Sequence[FeaturesComputed]:
        """As `History.features_before`.

        Stored bars step in only where records have expired: a log that is whole shows that no more was published.
        """
        partition = self._partition(FeaturesComputed, universe)
        offset = position.offset if position is not None and position.partition == partition else None
        begin, end = self._bounds_of(partition, -1 if offset is None else offset)
        end = end if offset is None else offset
        read: list[FeaturesComputed] = []
        found: dict[int, FeaturesComputed] = {}
        for block in self._blocks.backwards(partition, universe.name, begin, end):
            read[:0] = [one for one in of_kind(block, FeaturesComputed) if one.feature_set == feature_set.id]
            found = _in_time(read, time_us)
            if len(found) > rows:  # one more, which tells of the first of them that it did not come late
                break
        if len(found) < rows and begin > 0:
            for message in self._from_bars(universe, feature_set, time_us, rows):
                found.setdefault(to_us(message.time), message)
        return [found[time] for time in sorted(found)[-rows:]] if rows else []

    def features_on(self, universe: Universe, feature_set: FeatureSet) -> ReadOn[FeaturesComputed]:
        """As `History.features_on`."""

        def read(position: LogPosition, limit: int) -> Sequence[tuple[int, FeaturesComputed, LogPosition]]:
            features = (
                (to_us(one.time), one, where)
                for record, where in read_on(self._bus, position, universe.name)
                if (one := decoded(record, FeaturesComputed)) is not None and one.feature_set == feature_set.id
            )
            return [one for one, _ in zip(features, range(limit), strict=False)]

        return read

    def activations(self, universe: Universe, portfolio: str) -> Sequence[ModelActivated]:
        """As `History.activations`; one that is repeated on the topic counts once."""
        partition = self._partition(ModelActivated, universe)
        if partition not in self._activations:
            of_each: dict[str, list[bytes]] = {}
            for record in records_of(self._bus, partition):
                if (one := decoded(record, ModelActivated)) is not None:
                    of_each.setdefault(f"{one.universe}|{one.portfolio}", []).append(record.value)
            self._activations[partition] = of_each
        encoded = self._activations[partition].get(f"{universe.name}|{portfolio}", ())
        found = {one.time: one for one in map(ModelActivated.model_validate_json, encoded)}
        return [found[time] for time in sorted(found)]

    def decided(self, universe: Universe, portfolio: str) -> SignalGenerated | None:
        """As `History.decided`, as far as the bus still holds decisions."""
        partition = self._partition(SignalGenerated, universe)
        if partition not in self._decided:
            self._decided[partition] = _Newest(self._bus, partition, SignalGenerated)
        found = self._decided[partition].of(universe.name, portfolio)
        return None if found is None else found[0]

    def marked(self, universe: Universe, portfolio: str) -> tuple[PortfolioMarked, LogPosition] | None:
        """As `History.marked`, as far as the bus still holds marks."""
        partition = self._partition(PortfolioMarked, universe)
        if partition not in self._marked:
            self._marked[partition] = _Newest(self._bus, partition, PortfolioMarked)
        return self._marked[partition].of(universe.name, portfolio)

    def close(self) -> None:
        if self._bars is not None:
            self._bars.close()

    def _partition(self, kind: type[Message], universe: Universe) -> Partition:
        """The partition of a universe. A bus is asked once how many there are: a thousand desks start together."""
        topic = topic_of(kind).name
        if topic not in self._counts:
            partition_of(self._bus, topic, universe.name)  # it raises where there is no such topic
            self._counts[topic] = self._bus.partitions(topic)
        return Partition(topic, partition_for(universe.name, self._counts[topic]))

    def _bounds_of(self, partition: Partition, offset: int) -> tuple[int, int]:
        """Where a partition begins and ends, asked anew when somebody is beyond its end."""
        topic = partition.topic
        if topic not in self._bounds or self._bounds[topic][1][partition] <= offset:
            self._bounds[topic] = self._bus.begin_offsets(topic), self._bus.end_offsets(topic)
        begins, ends = self._bounds[topic]
        return begins[partition], ends[partition]

    def _from_bars(
        self, universe: Universe, feature_set: FeatureSet, before_us: int, rows: int
    ) -> Iterator[FeaturesComputed]:
        base = universe.timeframe
        last_open_us = before_us - base.us
        log.info("features have expired on the bus", universe=universe.name, from_bars=self._bars is not None)
        if self._bars is None:
            return
        frames = self._bars.read_before(universe.ids, base, last_open_us, rows)
        if not len(frames):
            return
        computed = compute_stored(self._bars, feature_set, universe, int(frames.open_us[0]), last_open_us)
        for time_us, values in zip(computed.time_us.tolist(), computed.values.tolist(), strict=True):
            yield FeaturesComputed.of(universe, feature_set.id, feature_set.names, from_us(time_us), values)


class _Block(NamedTuple):
    """Some records of a partition by their keys."""

    end: int
    """The offset up to which they were read."""
    of_key: Mapping[str, Sequence[Record]]
    size: int


class _Blocks:
    """Blocks of records, kept while they are not too large: desks of one partition look for their windows in the same.

    A block begins at a multiple of its length, wherever the desks begin.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._kept: OrderedDict[tuple[Partition, int], _Block] = OrderedDict()
        self._size = 0

    def backwards(self, partition: Partition, key: str, begin: int, end: int) -> Iterator[Sequence[Record]]:
        """The records of a key before `end`, the last block first, in order within each."""
        for number in range((end - 1) // _BLOCK, begin // _BLOCK - 1, -1):
            block = self._block(partition, number, min(end, (number + 1) * _BLOCK))
            yield [record for record in block.of_key.get(key, ()) if record.offset < end]

    def _block(self, partition: Partition, number: int, end: int) -> _Block:
        place = partition, number
        block = self._kept.pop(place, None)
        if block is not None:
            self._size -= block.size
        if block is None or block.end < end:
            of_key: dict[str, list[Record]] = {}
            size, read_to = 0, end
            for record in self._bus.read(partition, number * _BLOCK, (number + 1) * _BLOCK):
                of_key.setdefault(record.key, []).append(record)
                size, read_to = size + len(record.value), max(read_to, record.offset + 1)
            block = _Block(read_to, of_key, size)
        self._kept[place] = block
        self._size += block.size
        while self._size > _KEPT_BYTES and len(self._kept) > 1:
            self._size -= self._kept.popitem(last=False)[1].size
        return block


class _Newest(Generic[P]):
    """The newest message of each portfolio in a partition, as far back as somebody asked."""

    def __init__(self, bus: Bus, partition: Partition, kind: type[P]) -> None:
        self._partition = partition
        self._kind: type[P] = kind
        self._blocks = blocks_backwards(bus, partition)
        self._found: dict[tuple[str, str], tuple[P, LogPosition]] = {}
        self._left = _LOOKED_AT

    def of(self, universe: str, portfolio: str) -> tuple[P, LogPosition] | None:
        while (universe, portfolio) not in self._found and self._left > 0:
            block = next(self._blocks, None)
            if block is None:
                self._left = 0
                break
            self._left -= len(block)
            newest: dict[tuple[str, str], tuple[P, LogPosition]] = {}
            for record in block:
                if (message := decoded(record, self._kind)) is None:
                    continue
                known = newest.get((message.universe, message.portfolio))
                if known is None or known[0].time <= message.time:
                    position = LogPosition(self._partition, record.offset)
                    newest[message.universe, message.portfolio] = message, position
            self._found = newest | self._found
            if self._left <= 0:
                log.info("looked no further back", topic=self._partition.topic, partition=self._partition.number)
        return self._found.get((universe, portfolio))


def _in_time(read: Sequence[FeaturesComputed], before_us: int) -> dict[int, FeaturesComputed]:
    """Features by their bar, but for those that came after features of a later bar: nobody took them in."""
    found: dict[int, FeaturesComputed] = {}
    newest_us = -1
    for message in read:
        time_us = to_us(message.time)
        if time_us > newest_us:
            newest_us = time_us
            if time_us < before_us:
                found[time_us] = message
    return found
