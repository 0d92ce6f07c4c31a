"""The promises to members of one consumer group: who reads which partition, and how one is handed over."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing

from tradeloop.common.bus.port import Bus, Consumer, Partition, Record
from tradeloop.common.contracts.bus.steps import after, key_in, new_topic, reading, send, settle, take, texts
from tradeloop.common.contracts.steps import fresh


def members_share_partitions_by_number(bus: Bus) -> None:
    bars, features = new_topic(bus, partitions=4), new_topic(bus, partitions=4)
    group = fresh("group")
    with reading(bus, bars, features, group=group) as one, reading(bus, bars, features, group=group) as other:
        got = settle(one, other, lambda: len(one.assignment()) == len(other.assignment()) == 4)
        everything = {Partition(topic, n) for topic in (bars, features) for n in range(4)}
        assert one.assignment() | other.assignment() == everything, "a partition is read by nobody"
        for member in (one, other):
            numbers = {topic: {p.number for p in member.assignment() if p.topic == topic} for topic in (bars, features)}
            assert numbers[bars] == numbers[features], "topics are not co-partitioned"
        for number in range(4):
            send(bus, bars, "bar", key=key_in(number, 4))
            send(bus, features, "features", key=key_in(number, 4))
        got = settle(one, other, lambda: sum(map(len, got)) == 8, got)
        for member, records in zip((one, other), got, strict=True):
            places = {Partition(r.topic, r.partition) for r in records}
            assert places == member.assignment(), "a record went to a member that does not own its partition"


def a_member_that_gets_nothing_is_told_so(bus: Bus) -> None:
    topic, group = new_topic(bus), fresh("group")
    told: dict[int, frozenset[Partition]] = {}

    def member(number: int) -> Consumer:
        def assigned(partitions: Collection[Partition]) -> None:
            told[number] = frozenset(partitions)

        def revoked(_: Collection[Partition]) -> None:
            del told[number]  # what it is told next counts: the group may change once more

        return bus.consumer(group, [topic], on_assigned=assigned, on_revoked=revoked)

    with closing(member(0)) as one, closing(member(1)) as other:
        settle(one, other, lambda: sorted(map(len, told.values())) == [0, 1])
        assert told == {0: one.assignment(), 1: other.assignment()}, "on_assigned does not tell what is assigned"


def members_with_other_topics_take_no_part(bus: Bus) -> None:
    bars, features = new_topic(bus, partitions=2), new_topic(bus, partitions=2)
    group = fresh("group")
    with reading(bus, bars, group=group) as one, reading(bus, features, group=group) as other:
        settle(one, other, lambda: len(one.assignment()) == len(other.assignment()) == 2)
        assert {p.topic for p in one.assignment()} == {bars}, "a member got a topic that it does not read"
        assert {p.topic for p in other.assignment()} == {features}, "a member got a topic that it does not read"


def revocation_lets_a_member_commit(bus: Bus) -> None:
    topic, group = new_topic(bus, partitions=2), fresh("group")
    keys = [key_in(number, 2) for number in range(2)]
    for key in keys:
        send(bus, topic, "old", key=key)
    handled: list[Record] = []
    owned: set[Partition] = set()

    def revoked(partitions: Collection[Partition]) -> None:
        assert set(partitions) <= set(one.assignment()), "on_revoked comes when the partitions are gone already"
        owned.difference_update(partitions)
        one.commit(after(handled))
        handled.clear()

    one = bus.consumer(group, [topic], on_assigned=owned.update, on_revoked=revoked)
    with closing(one):
        handled += take(one, 2)
        assert owned == one.assignment(), "on_assigned does not tell what is assigned"
        with reading(bus, topic, group=group) as other:
            got = settle(one, other, lambda: len(one.assignment()) == len(other.assignment()) == 1)
            assert owned == one.assignment(), "the callbacks do not add up to the assignment"
            handed_over = next(iter(other.assignment()))
            one.commit({handed_over: 0})
            assert other.committed([handed_over]) == {handed_over: 1}, "a commit for a lost partition counts"
            for key in keys:
                send(bus, topic, "new", key=key)
            got = settle(one, other, lambda: sum(map(len, got)) == 2, got)
            assert texts(got[0]) == texts(got[1]) == ["new"], "what was committed in on_revoked comes again"
            handled += got[0]
            other.commit(after(got[1]))
        settle(one, one, lambda: len(one.assignment()) == 2)
        for key in keys:
            send(bus, topic, "newer", key=key)
        handled += take(one, 2)
    assert not owned, "closing does not revoke"
    for key in keys:
        send(bus, topic, "last", key=key)
    with reading(bus, topic, group=group) as heir:
        assert texts(take(heir, 2)) == ["last", "last"], "what was committed while closing comes again"


def a_pause_ends_with_the_assignment(bus: Bus) -> None:
    topic, group = new_topic(bus, partitions=2), fresh("group")
    with reading(bus, topic, group=group) as one:
        settle(one, one, lambda: len(one.assignment()) == 2)
        one.pause(one.assignment())
        with reading(bus, topic, group=group) as other:
            settle(one, other, lambda: len(one.assignment()) == len(other.assignment()) == 1)
            returning = next(iter(other.assignment()))
        settle(one, one, lambda: len(one.assignment()) == 2)
        send(bus, topic, "a", key=key_in(returning.number, 2))
        assert texts(take(one, 1)) == ["a"], "a partition that left and came back is still paused"
