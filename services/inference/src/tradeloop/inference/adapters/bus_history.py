"""`BusHistory`: what was published, read back from its topics; what the bus no longer holds, from stored bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TypeVar

import structlog

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.bus.port import Bus, LogPosition, Record
from tradeloop.common.features import FeatureSet, compute_stored
from tradeloop.common.market import Universe, from_us, to_us
from tradeloop.common.messages import FeaturesComputed, Message, ModelActivated, SignalGenerated
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.runtime.readback import blocks_backwards, forwards, of_kind, partition_of

log = structlog.get_logger(__name__)

M = TypeVar("M", bound=Message)


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
        partition = partition_of(self._bus, topic_of(FeaturesComputed).name, universe.name)
        begin = self._bus.begin_offsets(partition.topic)[partition]
        end = position.offset if position.partition == partition else None
        found: dict[datetime, FeaturesComputed] = {}
        for block in blocks_backwards(self._bus, partition, end):
            for message in _of(universe, block, FeaturesComputed):
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
        found = {
            message.time: message
            for _, message in forwards(self._bus, ModelActivated, universe.name)
            if message.portfolio == portfolio
        }
        return [found[time] for time in sorted(found)]

    def decided_us(self, universe: Universe, portfolio: str) -> int:
        """As `History.decided_us`, as far as the bus still holds decisions."""
        partition = partition_of(self._bus, topic_of(SignalGenerated).name, universe.name)
        for block in blocks_backwards(self._bus, partition):
            signals = _of(universe, block, SignalGenerated)
            if times := [to_us(message.time) for message in signals if message.portfolio == portfolio]:
                return max(times)
        return -1

    def close(self) -> None:
        if self._bars is not None:
            self._bars.close()

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


def _of(universe: Universe, records: Sequence[Record], kind: type[M]) -> Iterator[M]:
    return of_kind((record for record in records if record.key == universe.name), kind)
