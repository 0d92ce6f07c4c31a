"""The promises to readers without a group: what is read back, and what is followed."""

from __future__ import annotations

from contextlib import closing

from tradeloop.common.bus.port import Bus, Partition
from tradeloop.common.contracts.bus.steps import key_in, new_topic, reading, refuses, send, take, texts
from tradeloop.common.contracts.steps import fresh


def a_partition_is_read_back_without_a_group(bus: Bus) -> None:
    topic = new_topic(bus, partitions=2)
    here, other = Partition(topic, 0), Partition(topic, 1)
    assert not bus.read(here, 0, 10), "an empty partition holds records"
    send(bus, topic, *(f"a{n}" for n in range(5)), key=key_in(0, 2))
    send(bus, topic, *(f"b{n}" for n in range(5)), key=key_in(1, 2))
    with reading(bus, topic) as consumer:
        delivered = {Partition(r.topic, r.partition): r for r in take(consumer, 10)}
        records = bus.read(here, 1, 4)
        assert [r.offset for r in records] == [1, 2, 3], "what is read back is not what was asked for"
        assert texts(records) == ["a1", "a2", "a3"], "what is read back is another record"
        assert [*bus.read(here, 4, 5)] == [delivered[here]], "a record read back differs from the one delivered"
        assert not consumer.committed(consumer.assignment()), "reading back moved a group"
    assert texts(bus.read(other, 3, 100)) == ["b3", "b4"], "what is not there yet is not left out"
    assert not bus.read(here, 5, 100), "records are read that do not exist"
    assert not bus.read(here, 3, 3), "an empty range holds records"
    refuses(lambda: bus.read(Partition(topic, 7), 0, 1), "reading a partition that does not exist")
    refuses(lambda: bus.read(Partition(fresh("missing"), 0), 0, 1), "reading a missing topic")


def partitions_are_followed_without_a_group(bus: Bus) -> None:
    topic, second = new_topic(bus, partitions=2), new_topic(bus)
    here, other = Partition(topic, 0), Partition(second, 0)
    send(bus, topic, "a0", "a1", "a2", key=key_in(0, 2))
    send(bus, topic, "apart", key=key_in(1, 2))
    with closing(bus.follow({here: 1, other: 0})) as reader:
        assert texts(take(reader, 2)) == ["a1", "a2"], "it does not begin where it was told to"
        assert not reader.poll(timeout_s=0.2), "it reads what is not there, or was not asked for"
        send(bus, second, "b0")
        send(bus, topic, "a3", key=key_in(0, 2))
        assert sorted(texts(take(reader, 2))) == ["a3", "b0"], "what comes later does not arrive"
    refuses(lambda: bus.follow({Partition(topic, 7): 0}), "following a partition that does not exist")
    refuses(lambda: bus.follow({Partition(fresh("missing"), 0): 0}), "following a missing topic")
