"""`BusHistory`: what was published, read back from its topics; what the bus no longer holds, from stored bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TypeVar

import structlog
from pydantic import ValidationError

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.bus.port import Bus, LogPosition, Partition, partition_for
from tradeloop.common.features import FeatureSet, compute_stored
from tradeloop.common.market import Universe, from_us, to_us
from tradeloop.common.messages import FeaturesComputed, Message, ModelActivated, SignalGenerated
from tradeloop.common.messages.topics import topic_of

log = structlog.get_logger(__name__)

M = TypeVar("M", bound=Message)

_BLOCK = 512
"""Records that are read back at once, at first; each further block is twice as long."""


class BusHistory:
    """The history of universes on a bus. `bars` makes up for features whose records have expired, where it is given."""

    def __init__(self, bus: Bus, bars: BarStore | None = None) -> None:
        self._bus, self._bars = bus, bars

    def features_before(
        self, first: FeaturesComputed, position: LogPosition, universe: Universe, feature_set: FeatureSet, rows: int
    ) -> Sequence[FeaturesComputed]:
        """As `History.features_before`.

        Stored bars step in only where records have expired: a log that is whole shows that no more was published.
        """
        topic = topic_of(FeaturesComputed).name
        partition = self._partition(topic, universe)
        begin = self._bus.begin_offsets(topic)[partition]
        end = position.offset if position.partition == partition else self._bus.end_offsets(topic)[partition]
        found: dict[datetime, FeaturesComputed] = {}
        for block in self._backwards(partition, begin, end, FeaturesComputed, universe):
            for message in block:
                if message.feature_set == feature_set.id and message.time < first.time:
                    found[message.time] = message
            if len(found) >= rows:
                break
        if len(found) < rows and begin > 0:
            for message in self._from_bars(universe, feature_set, to_us(first.time), rows):
                found.setdefault(message.time, message)
        return [found[time] for time in sorted(found)[-rows:]] if rows else []

    def activations(self, universe: Universe, portfolio: str) -> Sequence[ModelActivated]:
        """As `History.activations`; one that is repeated on the topic counts once."""
        topic = topic_of(ModelActivated).name
        partition = self._partition(topic, universe)
        begin, end = self._bus.begin_offsets(topic)[partition], self._bus.end_offsets(topic)[partition]
        found = {
            message.time: message
            for message in self._read(partition, begin, end, ModelActivated, universe)
            if message.portfolio == portfolio
        }
        return [found[time] for time in sorted(found)]

    def decided_us(self, universe: Universe, portfolio: str) -> int:
        """As `History.decided_us`, as far as the bus still holds decisions."""
        topic = topic_of(SignalGenerated).name
        partition = self._partition(topic, universe)
        begin, end = self._bus.begin_offsets(topic)[partition], self._bus.end_offsets(topic)[partition]
        for block in self._backwards(partition, begin, end, SignalGenerated, universe):
            if times := [to_us(message.time) for message in block if message.portfolio == portfolio]:
                return max(times)
        return -1

    def close(self) -> None:
        if self._bars is not None:
            self._bars.close()

    def _partition(self, topic: str, universe: Universe) -> Partition:
        return Partition(topic, partition_for(universe.name, self._bus.partitions(topic)))

    def _backwards(
        self, partition: Partition, begin: int, end: int, kind: type[M], universe: Universe
    ) -> Iterator[list[M]]:
        """The messages of a universe in blocks, the last block first; in order within each."""
        block = _BLOCK
        while end > begin:
            start = max(begin, end - block)
            yield list(self._read(partition, start, end, kind, universe))
            end, block = start, 2 * block

    def _read(self, partition: Partition, start: int, end: int, kind: type[M], universe: Universe) -> Iterator[M]:
        for record in self._bus.read(partition, start, end):
            if record.key == universe.name:
                try:
                    yield kind.model_validate_json(record.value)
                except ValidationError:
                    # Its consumers dead-letter it; nothing was decided on it.
                    log.warning("not readable", topic=record.topic, partition=record.partition, offset=record.offset)

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
