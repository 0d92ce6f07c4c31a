"""Replicas of a service on a real Kafka: who handles what, before, while and after the group changes."""

from __future__ import annotations

import json
import secrets
import threading
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing

import pytest
from confluent_kafka import Consumer as Client

from tests.retention import delete_records
from tests.waiting import until
from tradeloop.common.bus.kafka import KafkaBus, KafkaSettings
from tradeloop.common.bus.kafka.consumer import KafkaConsumer
from tradeloop.common.bus.kafka.settings import FETCHING
from tradeloop.common.bus.port import PARTITIONS, BusError, BusUnavailable, Partition, Record, TopicSpec, partition_for

FAST = {"heartbeat.interval.ms": "100"}
UNIVERSES = [f"universe-{n}" for n in range(40)]


def read_some(consumer: KafkaConsumer) -> Sequence[Record]:
    records: Sequence[Record] = ()

    def came() -> bool:
        nonlocal records
        records = consumer.poll(timeout_s=0.1)
        return bool(records)

    until(came)
    return records


class Replica:
    """A member of a group that commits what it handled, as a service does; it writes down every change."""

    def __init__(self, bus: KafkaBus, group: str, topics: list[str]) -> None:
        self.owned: set[Partition] = set()
        self.changes: list[tuple[str, frozenset[Partition]]] = []
        self.handled: list[tuple[int, Record]] = []
        """With how many changes there had been."""
        self.dropped: set[tuple[Partition, int]] = set()
        """Where it handled what it could not commit any more."""
        self._fresh: list[Record] = []
        self._consumer = bus.consumer(group, topics, on_assigned=self._assigned, on_revoked=self._revoked)

    def _assigned(self, partitions: Collection[Partition]) -> None:
        self.owned.update(partitions)
        self.changes.append(("assigned", frozenset(partitions)))

    def _revoked(self, partitions: Collection[Partition]) -> None:
        self._commit()
        self.owned.difference_update(partitions)
        self.changes.append(("revoked", frozenset(partitions)))

    def step(self) -> None:
        for record in self._consumer.poll(timeout_s=0.02):
            assert Partition(record.topic, record.partition) in self.owned
            self.handled.append((len(self.changes), record))
            self._fresh.append(record)
        self._commit()

    def _commit(self) -> None:
        if not self._fresh:
            return
        ends = {Partition(r.topic, r.partition): r.offset + 1 for r in self._fresh}
        self._consumer.commit(ends)
        stored = self._consumer.committed(ends)
        self.dropped.update(place(r) for r in self._fresh if r.offset >= stored.get(place(r)[0], 0))
        self._fresh.clear()

    def close(self) -> None:
        self._consumer.close()

    @property
    def numbers(self) -> dict[str, set[int]]:
        """The numbers of its partitions, by topic."""
        found: dict[str, set[int]] = defaultdict(set)
        for topic, number in self.owned:
            found[topic].add(number)
        return found


def place(record: Record) -> tuple[Partition, int]:
    return Partition(record.topic, record.partition), record.offset


@pytest.fixture
def bus(kafka: str) -> Iterator[KafkaBus]:
    settings = KafkaSettings(bootstrap_servers=kafka, prefix=f"{secrets.token_hex(4)}.", extra=FAST)
    with closing(KafkaBus(settings)) as bus:
        yield bus


def test_one_replica_at_a_time_handles_all_of_a_universe(bus: KafkaBus) -> None:
    """A join of three topics by universe finds all of its sides in one process, whoever leaves and comes."""
    topics = ["bars", "features", "portfolio"]
    bus.create_topics([TopicSpec(topic) for topic in topics])
    stop, sent = threading.Event(), 0

    def write() -> None:
        nonlocal sent
        with closing(bus.producer()) as producer:
            while not stop.is_set():
                for universe in UNIVERSES:
                    for topic in topics:
                        producer.publish(topic, universe, str(sent).encode(), {})
                producer.flush()
                sent += 1

    def owns_something(member: Replica) -> bool:
        member.step()
        return bool(member.owned)

    def settled(members: list[Replica]) -> bool:
        for each in members:
            each.step()
        everything = {Partition(topic, n) for topic in topics for n in range(PARTITIONS)}
        owned = [partition for each in members for partition in each.owned]
        return len(owned) == len(everything) and set(owned) == everything and all(each.owned for each in members)

    def alike(members: list[Replica]) -> None:
        for each in members:
            assert each.numbers["bars"] == each.numbers["features"] == each.numbers["portfolio"]
        reader = {u: [m for m in members if partition_for(u, PARTITIONS) in m.numbers["bars"]] for u in UNIVERSES}
        assert {len(readers) for readers in reader.values()} == {1}

    def handle_for_a_while(members: list[Replica], rounds: int = 5) -> None:
        target = sent + rounds
        until(lambda: (settled(members), sent > target)[1])

    members = [Replica(bus, "g", topics)]
    left: list[Replica] = []
    writer = threading.Thread(target=write)
    writer.start()
    try:
        # It loses partitions while it finds out where to begin, and is given some of them again later.
        until(lambda: owns_something(members[0]))
        members += [Replica(bus, "g", topics) for _ in range(2)]
        until(lambda: settled(members))
        alike(members)
        handle_for_a_while(members)

        left.append(members.pop(1))
        left[0].close()
        until(lambda: settled(members))
        alike(members)
        handle_for_a_while(members)

        members.append(Replica(bus, "g", topics))
        until(lambda: settled(members))
        alike(members)
        handle_for_a_while(members)
    finally:
        stop.set()
        writer.join()
    everyone = [*members, *left]
    total = sent * len(UNIVERSES) * len(topics)
    until(lambda: (settled(members), len({place(r) for each in everyone for _, r in each.handled}) >= total)[1])
    for each in members:
        each.close()

    handled = {place(record): record for each in everyone for _, record in each.handled}
    for topic in topics:
        for universe in UNIVERSES:
            mine = [(r.offset, int(r.value)) for r in handled.values() if (r.topic, r.key) == (topic, universe)]
            assert [value for _, value in sorted(mine)] == list(range(sent)), "handed over without a loss"
    counts = Counter(place(record) for each in everyone for _, record in each.handled)
    repeated = {where for where, count in counts.items() if count > 1}
    assert not repeated - {where for each in everyone for where in each.dropped}, "what was committed comes once"
    for each in everyone:
        # Between two changes a replica handles whole universes: all of their topics, or nothing of them.
        for _, owned in each.changes:
            numbers: dict[str, set[int]] = defaultdict(set)
            for topic, number in owned:
                numbers[topic].add(number)
            assert numbers["bars"] == numbers["features"] == numbers["portfolio"]


def test_a_static_member_keeps_its_partitions_over_a_restart(kafka: str, bus: KafkaBus) -> None:
    bus.create_topics([TopicSpec("bars"), TopicSpec("features")])

    def replica(name: str) -> Replica:
        settings = bus._settings.model_copy(update={"group_instance_id": name})
        return Replica(KafkaBus(settings), "g", ["bars", "features"])

    one, other = replica("execution-0"), replica("execution-1")

    def shared() -> bool:
        one.step()
        other.step()
        return len(one.owned) == len(other.owned) == PARTITIONS

    def handled_by_one() -> bool:
        return shared() and bool(one.handled)

    until(shared)
    before, seen = set(one.owned), len(other.changes)
    with closing(bus.producer()) as producer:
        for universe in UNIVERSES:
            producer.publish("bars", universe, b"1", {})
        producer.flush()
    until(lambda: (shared(), len(one.handled) + len(other.handled) == len(UNIVERSES))[1])

    for _ in range(2):
        one.close()
        with closing(bus.producer()) as producer:
            for universe in UNIVERSES:
                producer.publish("bars", universe, b"2", {})
            producer.flush()
        other.step()
        one = replica("execution-0")
        until(handled_by_one)
        assert one.owned == before
        assert {Partition(record.topic, record.partition) for _, record in one.handled} <= before
    assert other.changes[seen:] == [], "the other one is not disturbed"
    one.close()
    other.close()


def test_a_static_name_that_is_taken_once_is_taken_back(bus: KafkaBus) -> None:
    """Kafka may have lost track of whom it gave the name to. A second process with the name is told to go."""
    bus.create_topics([TopicSpec("bars")])
    named = KafkaBus(bus._settings.model_copy(update={"group_instance_id": "execution-0"}))

    def owns(replica: Replica) -> bool:
        replica.step()
        return len(replica.owned) == PARTITIONS

    def is_told(replica: Replica, error: type[BusError]) -> bool:
        try:
            replica.step()
        except error as trouble:
            return "execution-0" in str(trouble)
        return False

    one = Replica(named, "g", ["bars"])
    until(lambda: owns(one))
    other = Replica(named, "g", ["bars"])
    until(lambda: owns(other))
    until(lambda: is_told(one, BusUnavailable))
    assert not one.owned, "another member may be ahead already"
    until(lambda: owns(one))
    until(lambda: is_told(other, BusUnavailable))
    until(lambda: owns(other))
    until(lambda: is_told(one, BusError))
    one.close()
    assert owns(other)
    other.close()


def test_what_is_fetched_ahead_is_bounded(bus: KafkaBus) -> None:
    """A slow service with a backlog of 60 MB has a part of it in memory."""
    bus.create_topics([TopicSpec("bars", partitions=6)])
    with closing(bus.producer()) as producer:
        for n in range(24_000):
            producer.publish("bars", f"u{n}", secrets.token_bytes(2500), {})
        producer.flush()
    received: list[int] = []

    def count(statistics: str) -> None:
        topics = json.loads(statistics)["topics"].values()
        received.append(sum(each["rxbytes"] for topic in topics for each in topic["partitions"].values()))

    own = {**FETCHING, "group.id": "slow", "statistics.interval.ms": 100}
    client = Client({**bus._settings.client(own), "stats_cb": count})
    client.subscribe([bus._names.outer("bars")])
    until(lambda: client.poll(0.1))
    handling = threading.Event()

    def full() -> bool:
        client.poll(0.1)
        handling.wait(0.01)  # this slow: the little room that it makes tells when no more is fetched than that
        return len(received) > 20 and received[-1] - received[-20] < 2_000_000

    until(full)
    client.close()
    assert 5_000_000 < received[-1] < 20_000_000


def test_a_prefix_keeps_worlds_apart(kafka: str) -> None:
    name = f"t{secrets.token_hex(4)}"
    plain = KafkaBus(KafkaSettings(bootstrap_servers=kafka, extra=FAST))
    replay = KafkaBus(KafkaSettings(bootstrap_servers=kafka, prefix="replay-1.", extra=FAST))
    plain.create_topics([TopicSpec(name, partitions=2)])
    assert replay.partitions(name) == 0
    replay.create_topics([TopicSpec(name, partitions=3)])
    assert (plain.partitions(name), replay.partitions(name), plain.partitions(f"replay-1.{name}")) == (2, 3, 3)
    for bus, value in ((plain, b"live"), (replay, b"again")):
        with closing(bus.producer()) as producer:
            producer.publish(name, "u", value, {})
            producer.flush()
    for bus, value, prefix in ((plain, b"live", ""), (replay, b"again", "replay-1.")):
        with closing(bus.consumer("g", [name])) as consumer:
            [record] = read_some(consumer)
            assert (record.topic, record.value) == (name, value)
            place = Partition(name, record.partition)
            consumer.seek(place, 0)
            consumer.commit({place: 1})
            assert consumer.committed([place]) == {place: 1}
            assert {partition.topic for partition in consumer.assignment()} == {name}
        assert [each.topic for each in bus.read(place, 0, 9)] == [name]
        assert bus.end_offsets(name)[place] == 1
        delete_records(kafka, Partition(f"{prefix}{name}", place.number), 1)
        assert bus.begin_offsets(name)[place] == 1
    replay.delete_topics([name])
    assert (plain.partitions(name), replay.partitions(name)) == (2, 0)


@pytest.mark.parametrize("name", ["execution-0", None])
def test_H3_a_step_that_took_too_long_is_called_so(
    bus: KafkaBus, caplog: pytest.LogCaptureFixture, name: str | None
) -> None:
    """Kafka gives the partitions to others; with a static name, it takes the name away too. Nobody else has it."""
    bus.create_topics([TopicSpec("bars")])
    hasty = bus._settings.model_copy(
        update={"group_instance_id": name, "longest_step_s": 6.0, "session_timeout_s": 6.0}
    )
    replica = Replica(KafkaBus(hasty), "g", ["bars"])

    def owns() -> bool:
        try:
            replica.step()
        except BusUnavailable:
            return False
        return len(replica.owned) == PARTITIONS

    def said() -> int:
        return sum("a step took longer than 6 s" in record.getMessage() for record in caplog.records)

    def expelled_once_more() -> None:
        until(owns)
        changes, before = len(replica.changes), said()
        with closing(bus.producer()) as producer:
            producer.publish("bars", "u", b"1", {})
            producer.flush()
        handling = threading.Event()
        handling.wait(9.0)  # a step that is too long is the test
        until(lambda: (owns(), said() > before)[1])
        until(lambda: owns() and len(replica.changes) > changes)

    for _ in range(2):
        expelled_once_more()
    assert said() == 2
    replica.close()
