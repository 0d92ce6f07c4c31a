"""The promises to a consumer group: where it begins, goes on, seeks and pauses."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing

from tradeloop.common.bus.port import Bus, Partition
from tradeloop.common.contracts.bus.steps import (
    after,
    key_in,
    new_topic,
    reading,
    refuses,
    send,
    settle,
    take,
    texts,
    writing,
)
from tradeloop.common.contracts.steps import fresh


def groups_are_independent(bus: Bus) -> None:
    topic = new_topic(bus)
    send(bus, topic, "a", "b", "c")
    with reading(bus, topic) as one, reading(bus, topic) as other:
        records = take(one, 3)
        one.commit(after(records))
        assert texts(records) == ["a", "b", "c"], "a new group does not start at the beginning"
        assert texts(take(other, 3)) == ["a", "b", "c"], "one group's reading moved another"
        assert not other.committed(other.assignment()), "one group's commit shows in another"


def a_group_goes_on_after_its_commit(bus: Bus) -> None:
    topic, group = new_topic(bus), fresh("group")
    send(bus, topic, "a", "b", "c", "d")
    with reading(bus, topic, group=group) as consumer:
        records = take(consumer, 4)
        assert not consumer.committed([Partition(topic, 0)]), "a position is committed that nobody committed"
        consumer.commit(after(records[:2]))
        assert consumer.committed([Partition(topic, 0)]) == {Partition(topic, 0): 2}, "the commit does not show"
    with reading(bus, topic, group=group) as consumer:
        assert texts(take(consumer, 2)) == ["c", "d"], "the group does not resume after its commit"


def a_note_stays_until_the_next_commit(bus: Bus) -> None:
    topic, group = new_topic(bus, partitions=2), fresh("group")
    here, other = Partition(topic, 0), Partition(topic, 1)
    with reading(bus, topic, group=group) as consumer:
        settle(consumer, consumer, lambda: len(consumer.assignment()) == 2)
        assert not consumer.notes([here, other]), "there is a note that nobody left"
        consumer.commit({here: 0, other: 0}, {here: "a note, Ω" + "." * 900})
        assert consumer.notes([here, other]) == {here: "a note, Ω" + "." * 900}, "a note is not kept as it was left"
    with reading(bus, topic, group=group) as heir:
        settle(heir, heir, lambda: len(heir.assignment()) == 2)
        assert set(heir.notes([here, other])) == {here}, "a note is not there for the next member"
        heir.commit({here: 0}, {here: "another"})
        assert heir.notes([here]) == {here: "another"}, "a note is not replaced"
        heir.commit({here: 0})
        assert not heir.notes([here]), "a commit without a note keeps the old one"


def what_was_not_committed_comes_again(bus: Bus) -> None:
    topic, group = new_topic(bus), fresh("group")
    send(bus, topic, "a", "b")
    for _ in range(2):
        with reading(bus, topic, group=group) as consumer:
            assert texts(take(consumer, 2)) == ["a", "b"], "uncommitted records are not delivered again"


def a_seek_replays(bus: Bus) -> None:
    topic = new_topic(bus)
    send(bus, topic, "a", "b", "c")
    with reading(bus, topic) as consumer:
        take(consumer, 3)
        consumer.seek(Partition(topic, 0), 1)
        assert texts(take(consumer, 2)) == ["b", "c"], "a seek back does not replay"
        consumer.seek(Partition(topic, 0), 0)
        consumer.seek(Partition(topic, 0), 2)
        assert texts(take(consumer, 1)) == ["c"], "the last of two seeks does not count"
        refuses(lambda: consumer.seek(Partition(topic, 7), 0), "a seek in a partition that is not assigned")


def a_seek_during_assignment_sets_the_start(bus: Bus) -> None:
    topic = new_topic(bus)
    send(bus, topic, "a", "b", "c")

    def assigned(partitions: Collection[Partition]) -> None:
        for partition in partitions:
            consumer.seek(partition, 2)

    with closing(bus.consumer(fresh("group"), [topic], on_assigned=assigned)) as consumer:
        assert texts(take(consumer, 1)) == ["c"], "a seek in on_assigned does not set the start"


def a_paused_partition_delivers_nothing(bus: Bus) -> None:
    topic = new_topic(bus, partitions=2)
    paused, other = Partition(topic, 0), Partition(topic, 1)
    keys = {number: key_in(number, 2) for number in range(2)}
    with reading(bus, topic) as consumer, writing(bus) as producer:
        for n in range(4):
            producer.publish(topic, keys[0], f"a{n}".encode(), {})
        producer.flush()
        first = take(consumer, 1, max_records=1)
        consumer.pause([paused])
        for n in range(4):
            producer.publish(topic, keys[1], f"b{n}".encode(), {})
        producer.flush()
        meanwhile = [*take(consumer, 4), *consumer.poll(timeout_s=0.3)]
        assert {r.partition for r in meanwhile} == {other.number}, "a paused partition delivers"
        consumer.resume([paused])
        rest = take(consumer, 3)
        assert texts([*first, *rest]) == ["a0", "a1", "a2", "a3"], "a pause lost or repeated records"


def a_failed_assignment_is_tried_again(bus: Bus) -> None:
    topic = new_topic(bus)
    send(bus, topic, "a")
    outcomes = iter([KeyError("not ready"), None])

    def assigned(partitions: Collection[Partition]) -> None:
        if failure := next(outcomes):
            raise failure

    with closing(bus.consumer(fresh("group"), [topic], on_assigned=assigned)) as consumer:
        try:
            take(consumer, 1)
        except KeyError:
            assert not consumer.assignment(), "a partition is owned that on_assigned did not accept"
        else:
            raise AssertionError("an error in on_assigned is swallowed")
        assert texts(take(consumer, 1)) == ["a"], "a partition is never offered again after on_assigned failed"
