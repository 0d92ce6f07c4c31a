"""The promises about records that have expired, for a bus that can be told to let them expire."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from tradeloop.common.bus.port import Bus, Partition
from tradeloop.common.contracts.bus.steps import after, key_in, new_topic, reading, send, take, texts
from tradeloop.common.contracts.steps import fresh

Expire = Callable[[Partition, int], None]
"""Lets the records of a partition before an offset expire, as retention does in time."""


def what_has_expired_is_gone(bus: Bus, expire: Expire) -> None:
    topic, group = new_topic(bus, partitions=2), fresh("group")
    old, other = Partition(topic, 0), Partition(topic, 1)
    send(bus, topic, "a", "b", "c", "d", key=key_in(0, 2))
    with reading(bus, topic, group=group) as consumer:
        consumer.commit(after(take(consumer, 4)[:1]))
    expire(old, 3)
    assert bus.begin_offsets(topic) == {old: 3, other: 0}, "the begin is not the first offset still held"
    assert bus.end_offsets(topic) == {old: 4, other: 0}, "expiry moved the end"
    assert texts(bus.read(old, 0, 10)) == ["d"], "what has expired is read back"
    with reading(bus, topic, group=group) as consumer:
        assert texts(take(consumer, 1)) == ["d"], "a group whose next record has expired does not go on behind it"
    expire(old, 4)
    assert bus.begin_offsets(topic) == {old: 4, other: 0}, "the begin of what has all expired is not its end"
    send(bus, topic, "e", key=key_in(0, 2))
    assert [(r.offset, r.value) for r in bus.read(old, 0, 10)] == [(4, b"e")], "offsets start again"


def what_has_expired_is_passed_over(bus: Bus, expire: Expire) -> None:
    topic = new_topic(bus)
    here = Partition(topic, 0)
    send(bus, topic, "a", "b", "c", "d")
    expire(here, 3)
    with closing(bus.follow({here: 0})) as reader:
        assert texts(take(reader, 1)) == ["d"], "a reader that stands before what has expired does not go on behind it"
