"""The promises about topics: which exist, and where they end."""

from __future__ import annotations

from contextlib import closing

from tradeloop.common.bus.port import Bus, Partition, TopicSpec
from tradeloop.common.contracts.bus.steps import key_in, new_topic, refuses, send
from tradeloop.common.contracts.steps import fresh


def a_missing_topic_is_an_error(bus: Bus) -> None:
    topic = fresh("missing")
    assert bus.partitions(topic) == 0, "a missing topic has partitions"
    refuses(lambda: bus.begin_offsets(topic), "the begin of a missing topic")
    refuses(lambda: bus.end_offsets(topic), "the end of a missing topic")
    refuses(lambda: bus.consumer(fresh("group"), [topic]), "a consumer of a missing topic")
    with closing(bus.producer()) as producer:
        refuses(lambda: producer.publish(topic, "k", b"", {}), "a message to a missing topic")
    assert bus.partitions(topic) == 0, "a topic was created by being asked for"


def topics_are_created_once(bus: Bus) -> None:
    old, new = new_topic(bus, partitions=3), fresh("topic")
    send(bus, old, "a")
    bus.create_topics([TopicSpec(old, 5), TopicSpec(new, 2)])
    bus.create_topics([])
    assert bus.partitions(old) == 3, "an existing topic changed"
    assert bus.partitions(new) == 2, "a new topic did not appear"
    assert sum(bus.end_offsets(old).values()) == 1, "creating a topic again emptied it"


def the_end_is_the_next_offset(bus: Bus) -> None:
    topic = new_topic(bus, partitions=2)
    assert bus.end_offsets(topic) == {Partition(topic, 0): 0, Partition(topic, 1): 0}, "a new topic has an end"
    send(bus, topic, "a", "b", key=key_in(1, 2))
    assert bus.end_offsets(topic) == {Partition(topic, 0): 0, Partition(topic, 1): 2}, "the end is not the next offset"
    assert bus.begin_offsets(topic) == {Partition(topic, 0): 0, Partition(topic, 1): 0}, "writing moved the begin"


def a_topic_has_an_identity_of_its_own(bus: Bus) -> None:
    one, other = new_topic(bus), new_topic(bus)
    names = [bus.identity(topic) for topic in (one, other)]
    send(bus, one, "a")
    assert [bus.identity(topic) for topic in (one, other)] == names, "the identity of a topic is another now"
    assert names[0] != names[1], "two topics have one identity"
    assert all(0 < len(name) <= 120 for name in names), f"an identity is empty or too long: {names}"
    refuses(lambda: bus.identity(fresh("missing")), "the identity of a missing topic")
