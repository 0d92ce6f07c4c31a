"""The questions that come with partitions: whose keys they hold, and what retention took before it was read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import structlog

from tradeloop.common.bus.port import Bus, Partition, partition_for
from tradeloop.common.errors import UserError

log = structlog.get_logger(__name__)


def check_counts(service: str, bus: Bus, topics: Sequence[str]) -> None:
    """Raise `UserError` unless the topics have equal numbers of partitions.

    Otherwise a key's messages on one topic would go to another process than those on the next.
    """
    counts = {topic: bus.partitions(topic) for topic in topics}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{topic} {count}" for topic, count in counts.items())
        raise UserError(
            f"{service} cannot start: the topics that it reads have different numbers of partitions ({found}); "
            "see `tradeloop topics diff`, delete those that differ, and make them with `tradeloop topics apply`"
        )


def owner(bus: Bus, topic: str, partitions: Collection[Partition]) -> Callable[[str], bool]:
    """Tells whether the messages of a key come to the process with these partitions. Raises `BusUnavailable`."""
    count = bus.partitions(topic)
    numbers = frozenset(partition.number for partition in partitions if partition.topic == topic)
    return lambda key: partition_for(key, count) in numbers


def bounds(ask: Callable[[str], Mapping[Partition, int]], partitions: Iterable[Partition]) -> dict[Partition, int]:
    """The begins or ends of partitions, whichever is asked for. Raises `BusUnavailable`."""
    found: dict[Partition, int] = {}
    for topic in {partition.topic for partition in partitions}:
        found |= ask(topic)
    return found


def overtaken(bus: Bus, committed: Mapping[Partition, int]) -> dict[Partition, int]:
    """How many messages of each partition were deleted by retention before their group had finished them.

    Raises `BusUnavailable`.
    """
    begins = bounds(bus.begin_offsets, committed)
    return {each: begins[each] - offset for each, offset in committed.items() if begins[each] > offset}


def tell_of_lost(
    service: str, bus: Bus, committed: Mapping[Partition, int], known: Mapping[Partition, int]
) -> Mapping[Partition, int]:
    """The messages `known` to be lost so, and those that were deleted since, which the log tells of.

    Raises `BusUnavailable`.
    """
    lost = dict(known)
    for partition, count in overtaken(bus, committed).items():
        if lost.get(partition, 0) < count:
            lost[partition] = count
            log.error(
                "lost: retention deleted messages that were not finished",
                service=service,
                partition=f"{partition.topic}/{partition.number}",
                messages=count,
                committed=committed[partition],
            )
    return lost
