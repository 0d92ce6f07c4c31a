"""The messages on the bus about a decision, each with where it stands; and why one is not there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Generic, NamedTuple, TypeVar

from tradeloop.common.bus.port import Bus, Record
from tradeloop.common.market import from_us
from tradeloop.common.messages import Message
from tradeloop.common.messages.topics import event_id, topic_of
from tradeloop.common.runtime.headers import ID, MANIFEST, trace_context
from tradeloop.common.runtime.readback import blocks_backwards, decoded, partition_of

M = TypeVar("M", bound=Message)

_APART = timedelta(days=7)
"""How much older a message may be than one of the same key that was published before it: portfolios of one universe
need not be at the same bar."""
_EVER = datetime.max.replace(tzinfo=UTC)


class Found(NamedTuple, Generic[M]):
    """A message, and the record that holds it."""

    message: M
    record: Record

    @property
    def where(self) -> dict[str, object]:
        """Where it stands, by whom, and when the bus took it."""
        record, headers = self.record, self.record.headers
        context = trace_context(headers)
        return {
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "event_id": headers.get(ID) or event_id(self.message),
            "trace_id": context.trace_id if context else None,
            "manifest": headers.get(MANIFEST),
            "published": self.published.isoformat() if self.published else None,
        }

    @property
    def published(self) -> datetime | None:
        """When the bus took it; None where it does not say."""
        return from_us(self.record.timestamp_ms * 1000) if self.record.timestamp_ms else None


class _Reel:
    """The records of one key on one topic, read from the end as far back as they are asked for."""

    def __init__(self, bus: Bus, kind: type[Message], key: str) -> None:
        self._kind, self._key = kind, key
        self._blocks = blocks_backwards(bus, partition_of(bus, topic_of(kind).name, key))
        self._read: list[tuple[datetime, Record]] = []
        self._newest_of_block = _EVER
        self._whole = False

    def between(self, since: datetime, until: datetime, must: bool) -> Iterator[Record]:
        """The records of the times from `since` to `until`, both included, in the order of publication.

        Where some `must` be there, all is read until one is.
        """
        while not self._whole and (
            self._newest_of_block >= since - _APART
            or (must and not any(since <= time <= until for time, _ in self._read))
        ):
            self._read_on()
        return (record for time, record in reversed(self._read) if since <= time <= until)

    def after(self, time: datetime) -> Iterator[Record]:
        """The records of later times, in the order of these."""
        self.between(time, time, must=False)
        later = ((when, -place, record) for place, (when, record) in enumerate(self._read) if when > time)
        return (record for _, _, record in sorted(later, key=itemgetter(0, 1)))

    def _read_on(self) -> None:
        block = next(self._blocks, None)
        if block is None:
            self._whole = True
            return
        own = [(time, one) for one in reversed(block) if one.key == self._key and (time := self._time(one)) is not None]
        self._read += own
        if own:
            self._newest_of_block = max(time for time, _ in own)

    def _time(self, record: Record) -> datetime | None:
        if (text := record.headers.get("ce_time")) is not None:
            return datetime.fromisoformat(text)
        message = decoded(record, self._kind)
        return None if message is None else message.occurred


class Evidence:
    """The messages on a bus. Raises `BusUnavailable`, and `MissingTopic` for a stack that was never set up."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self._reels: dict[tuple[type[Message], str], _Reel] = {}

    def of(
        self, kind: type[M], universe: str, since: datetime, until: datetime | None = None, must: bool = False
    ) -> list[Found[M]]:
        """The messages of a universe whose times are from `since` to `until`, by default that one time.

        Each id comes once, in the order of publication. `must` says that there is one, unless it is gone.
        """
        reel = self._reel(kind, universe)
        found: dict[str, Found[M]] = {}
        for record in reel.between(since, since if until is None else until, must):
            if (message := decoded(record, kind)) is not None:
                found.setdefault(message.event_id(record.topic), Found(message, record))
        return list(found.values())

    def after(self, kind: type[M], universe: str, time: datetime) -> Iterator[Found[M]]:
        """The messages of a universe whose times are later, in the order of these; decoded one after the other."""
        for record in self._reel(kind, universe).after(time):
            if (message := decoded(record, kind)) is not None:
                yield Found(message, record)

    def _reel(self, kind: type[Message], universe: str) -> _Reel:
        if (kind, universe) not in self._reels:
            self._reels[kind, universe] = _Reel(self.bus, kind, universe)
        return self._reels[kind, universe]

    def why_none(self, kind: type[Message], universe: str) -> str:
        """Why nothing of a kind is there, in words: it is gone, or there never was any."""
        topic = topic_of(kind)
        place = partition_of(self.bus, topic.name, universe)
        if begin := self.bus.begin_offsets(topic.name)[place]:
            kept = "for ever" if topic.retention_days is None else f"{topic.retention_days} days"
            return (
                f"not on the bus: the first {begin:,} records of its partition of {topic.name}, kept {kept}, are gone"
            )
        return f"not on the bus, which holds all that {topic.name} ever had: it was not published"


def everywhere(bus: Bus, topic: str) -> Iterator[Record]:
    """All records of a topic, the newest ones of each partition first. Raises `MissingTopic`."""
    partition_of(bus, topic, "")  # raises where there is none
    for place in bus.end_offsets(topic):
        for block in blocks_backwards(bus, place):
            yield from reversed(block)
