"""Offsets count in the log that they were read from: a topic that is made anew begins at nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import structlog

from tradeloop.common.bus.port import Partition

log = structlog.get_logger(__name__)


def nameless(topic: str) -> str:
    """The identity of a log that nobody can tell from another."""
    return ""


def is_same_log(one: str, other: str) -> bool:
    """Whether two identities are of one log; an unknown one, as earlier releases stored it, is taken for any."""
    return one == other or not one or not other


def offsets_that_count(
    found: Iterable[tuple[Partition, str, int]], identity: Callable[[str], str]
) -> Mapping[Partition, int]:
    """The offsets of (partition, log, offset) that are of the topics as they are now. The log tells of the others."""
    now: dict[str, str] = {}
    count: dict[Partition, int] = {}
    gone: dict[str, tuple[str, dict[int, int]]] = {}
    for partition, stored, offset in found:
        topic, number = partition
        if topic not in now:
            now[topic] = identity(topic)
        if is_same_log(stored, now[topic]):
            count[partition] = offset
        else:
            gone.setdefault(topic, (stored, {}))[1][number] = offset
    for topic, (stored, offsets) in gone.items():
        log.warning(
            "the topic was made anew since the ledger read it: it is read from its beginning, and what the ledger had"
            " not read of the old one is lost to it",
            topic=topic,
            was=stored,
            is_now=now[topic],
            had_read=offsets,
        )
    return count
