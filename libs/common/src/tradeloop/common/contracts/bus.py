"""The contract of the messaging port: `check_bus`."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager

from tradeloop.common.bus.port import (
    Bus,
    BusError,
    Consumer,
    MessageTooLarge,
    Partition,
    Producer,
    Reader,
    Record,
    TopicSpec,
    partition_for,
)
from tradeloop.common.clock import SystemClock

_PATIENCE_S = 30.0
"""How long something that must happen may take: a bound for what hangs, not a measure of speed."""


def check_bus(make_bus: Callable[[], Bus]) -> None:
    """Run all of `BUS_CHECKS`, each on a bus of its own.

    The buses may well be one server: topics and groups get new names at every run.
    """
    for check in BUS_CHECKS:
        with closing(make_bus()) as bus:
            check(bus)


def _keys_choose_their_partition(bus: Bus) -> None:
    topic = _topic(bus, partitions=5)
    keys = ["", "a", "crypto-majors", "binance:BTC/USDT", "Ω", *(f"universe-{n}" for n in range(40))]
    with _writing(bus) as producer:
        for key in keys:
            producer.publish(topic, key, b"", {})
    with _reading(bus, topic) as consumer:
        records = _read(consumer, len(keys))
    assert sorted(r.key for r in records) == sorted(keys), "keys do not arrive as they were sent"
    for record in records:
        expected = partition_for(record.key, 5)
        assert record.partition == expected, f"key {record.key!r} is in {record.partition}, not {expected}"


def _a_partition_keeps_its_order(bus: Bus) -> None:
    topic = _topic(bus, partitions=3)
    with _writing(bus) as producer:
        for n in range(300):
            producer.publish(topic, f"key-{n % 7}", str(n).encode(), {})
    with _reading(bus, topic) as consumer:
        records = _read(consumer, 300, max_records=7)
    assert len(records) == 300, "more arrived than was sent"
    for number in range(3):
        mine = [r for r in records if r.partition == number]
        assert [r.offset for r in mine] == list(range(len(mine))), "offsets do not count from zero by one"
        values = [int(r.value) for r in mine]
        assert values == sorted(values), "a partition is out of order"


def _headers_and_values_arrive_as_sent(bus: Bus) -> None:
    topic = _topic(bus)
    sent: list[tuple[bytes, dict[str, str]]] = [
        (b"", {}),
        (b"{}", {"ce_id": "1", "traceparent": "00-ab-cd-01", "empty": "", "text": "Ωμέγα"}),
        (bytes(range(256)), {"ce_id": "2"}),
        (secrets.token_bytes(500_000), {}),
    ]
    with _writing(bus) as producer:
        for value, headers in sent:
            producer.publish(topic, "k", value, headers)
    with _reading(bus, topic) as consumer:
        records = _read(consumer, len(sent))
    assert [r.value for r in records] == [value for value, _ in sent], "values changed on the way"
    assert [dict(r.headers) for r in records] == [headers for _, headers in sent], "headers changed on the way"


def _groups_are_independent(bus: Bus) -> None:
    topic = _topic(bus)
    _publish(bus, topic, "a", "b", "c")
    with _reading(bus, topic) as one, _reading(bus, topic) as other:
        records = _read(one, 3)
        one.commit(_after(records))
        assert _values(records) == ["a", "b", "c"], "a new group does not start at the beginning"
        assert _values(_read(other, 3)) == ["a", "b", "c"], "one group's reading moved another"
        assert not other.committed(other.assignment()), "one group's commit shows in another"


def _a_group_goes_on_after_its_commit(bus: Bus) -> None:
    topic, group = _topic(bus), _fresh("group")
    _publish(bus, topic, "a", "b", "c", "d")
    with _reading(bus, topic, group=group) as consumer:
        records = _read(consumer, 4)
        assert not consumer.committed([Partition(topic, 0)]), "a position is committed that nobody committed"
        consumer.commit(_after(records[:2]))
        assert consumer.committed([Partition(topic, 0)]) == {Partition(topic, 0): 2}, "the commit does not show"
    with _reading(bus, topic, group=group) as consumer:
        assert _values(_read(consumer, 2)) == ["c", "d"], "the group does not resume after its commit"


def _what_was_not_committed_comes_again(bus: Bus) -> None:
    topic, group = _topic(bus), _fresh("group")
    _publish(bus, topic, "a", "b")
    for _ in range(2):
        with _reading(bus, topic, group=group) as consumer:
            assert _values(_read(consumer, 2)) == ["a", "b"], "uncommitted records are not delivered again"


def _a_seek_replays(bus: Bus) -> None:
    topic = _topic(bus)
    _publish(bus, topic, "a", "b", "c")
    with _reading(bus, topic) as consumer:
        _read(consumer, 3)
        consumer.seek(Partition(topic, 0), 1)
        assert _values(_read(consumer, 2)) == ["b", "c"], "a seek back does not replay"
        consumer.seek(Partition(topic, 0), 0)
        consumer.seek(Partition(topic, 0), 2)
        assert _values(_read(consumer, 1)) == ["c"], "the last of two seeks does not count"
        _refuses(lambda: consumer.seek(Partition(topic, 7), 0), "a seek in a partition that is not assigned")


def _a_seek_during_assignment_sets_the_start(bus: Bus) -> None:
    topic = _topic(bus)
    _publish(bus, topic, "a", "b", "c")

    def assigned(partitions: Collection[Partition]) -> None:
        for partition in partitions:
            consumer.seek(partition, 2)

    with closing(bus.consumer(_fresh("group"), [topic], on_assigned=assigned)) as consumer:
        assert _values(_read(consumer, 1)) == ["c"], "a seek in on_assigned does not set the start"


def _a_paused_partition_delivers_nothing(bus: Bus) -> None:
    topic = _topic(bus, partitions=2)
    paused, other = Partition(topic, 0), Partition(topic, 1)
    keys = {number: _key_in(number, 2) for number in range(2)}
    with _reading(bus, topic) as consumer, _writing(bus) as producer:
        for n in range(4):
            producer.publish(topic, keys[0], f"a{n}".encode(), {})
        producer.flush()
        first = _read(consumer, 1, max_records=1)
        consumer.pause([paused])
        for n in range(4):
            producer.publish(topic, keys[1], f"b{n}".encode(), {})
        producer.flush()
        meanwhile = [*_read(consumer, 4), *consumer.poll(timeout_s=0.3)]
        assert {r.partition for r in meanwhile} == {other.number}, "a paused partition delivers"
        consumer.resume([paused])
        rest = _read(consumer, 3)
        assert _values([*first, *rest]) == ["a0", "a1", "a2", "a3"], "a pause lost or repeated records"


def _members_share_partitions_by_number(bus: Bus) -> None:
    bars, features = _topic(bus, partitions=4), _topic(bus, partitions=4)
    group = _fresh("group")
    with _reading(bus, bars, features, group=group) as one, _reading(bus, bars, features, group=group) as other:
        got = _settle(one, other, lambda: len(one.assignment()) == len(other.assignment()) == 4)
        everything = {Partition(topic, n) for topic in (bars, features) for n in range(4)}
        assert one.assignment() | other.assignment() == everything, "a partition is read by nobody"
        for member in (one, other):
            numbers = {topic: {p.number for p in member.assignment() if p.topic == topic} for topic in (bars, features)}
            assert numbers[bars] == numbers[features], "topics are not co-partitioned"
        for number in range(4):
            _publish(bus, bars, "bar", key=_key_in(number, 4))
            _publish(bus, features, "features", key=_key_in(number, 4))
        got = _settle(one, other, lambda: sum(map(len, got)) == 8, got)
        for member, records in zip((one, other), got, strict=True):
            places = {Partition(r.topic, r.partition) for r in records}
            assert places == member.assignment(), "a record went to a member that does not own its partition"


def _a_member_that_gets_nothing_is_told_so(bus: Bus) -> None:
    topic, group = _topic(bus), _fresh("group")
    told: dict[int, frozenset[Partition]] = {}

    def member(number: int) -> Consumer:
        def assigned(partitions: Collection[Partition]) -> None:
            told[number] = frozenset(partitions)

        def revoked(_: Collection[Partition]) -> None:
            del told[number]  # what it is told next counts: the group may change once more

        return bus.consumer(group, [topic], on_assigned=assigned, on_revoked=revoked)

    with closing(member(0)) as one, closing(member(1)) as other:
        _settle(one, other, lambda: sorted(map(len, told.values())) == [0, 1])
        assert told == {0: one.assignment(), 1: other.assignment()}, "on_assigned does not tell what is assigned"


def _members_with_other_topics_take_no_part(bus: Bus) -> None:
    bars, features = _topic(bus, partitions=2), _topic(bus, partitions=2)
    group = _fresh("group")
    with _reading(bus, bars, group=group) as one, _reading(bus, features, group=group) as other:
        _settle(one, other, lambda: len(one.assignment()) == len(other.assignment()) == 2)
        assert {p.topic for p in one.assignment()} == {bars}, "a member got a topic that it does not read"
        assert {p.topic for p in other.assignment()} == {features}, "a member got a topic that it does not read"


def _revocation_lets_a_member_commit(bus: Bus) -> None:
    topic, group = _topic(bus, partitions=2), _fresh("group")
    keys = [_key_in(number, 2) for number in range(2)]
    for key in keys:
        _publish(bus, topic, "old", key=key)
    handled: list[Record] = []
    owned: set[Partition] = set()

    def revoked(partitions: Collection[Partition]) -> None:
        assert set(partitions) <= set(one.assignment()), "on_revoked comes when the partitions are gone already"
        owned.difference_update(partitions)
        one.commit(_after(handled))
        handled.clear()

    one = bus.consumer(group, [topic], on_assigned=owned.update, on_revoked=revoked)
    with closing(one):
        handled += _read(one, 2)
        assert owned == one.assignment(), "on_assigned does not tell what is assigned"
        with _reading(bus, topic, group=group) as other:
            got = _settle(one, other, lambda: len(one.assignment()) == len(other.assignment()) == 1)
            assert owned == one.assignment(), "the callbacks do not add up to the assignment"
            handed_over = next(iter(other.assignment()))
            one.commit({handed_over: 0})
            assert other.committed([handed_over]) == {handed_over: 1}, "a commit for a lost partition counts"
            for key in keys:
                _publish(bus, topic, "new", key=key)
            got = _settle(one, other, lambda: sum(map(len, got)) == 2, got)
            assert _values(got[0]) == _values(got[1]) == ["new"], "what was committed in on_revoked comes again"
            handled += got[0]
            other.commit(_after(got[1]))
        _settle(one, one, lambda: len(one.assignment()) == 2)
        for key in keys:
            _publish(bus, topic, "newer", key=key)
        handled += _read(one, 2)
    assert not owned, "closing does not revoke"
    for key in keys:
        _publish(bus, topic, "last", key=key)
    with _reading(bus, topic, group=group) as heir:
        assert _values(_read(heir, 2)) == ["last", "last"], "what was committed while closing comes again"


def _a_pause_ends_with_the_assignment(bus: Bus) -> None:
    topic, group = _topic(bus, partitions=2), _fresh("group")
    with _reading(bus, topic, group=group) as one:
        _settle(one, one, lambda: len(one.assignment()) == 2)
        one.pause(one.assignment())
        with _reading(bus, topic, group=group) as other:
            _settle(one, other, lambda: len(one.assignment()) == len(other.assignment()) == 1)
            returning = next(iter(other.assignment()))
        _settle(one, one, lambda: len(one.assignment()) == 2)
        _publish(bus, topic, "a", key=_key_in(returning.number, 2))
        assert _values(_read(one, 1)) == ["a"], "a partition that left and came back is still paused"


def _a_failed_assignment_is_tried_again(bus: Bus) -> None:
    topic = _topic(bus)
    _publish(bus, topic, "a")
    outcomes = iter([KeyError("not ready"), None])

    def assigned(partitions: Collection[Partition]) -> None:
        if failure := next(outcomes):
            raise failure

    with closing(bus.consumer(_fresh("group"), [topic], on_assigned=assigned)) as consumer:
        try:
            _read(consumer, 1)
        except KeyError:
            assert not consumer.assignment(), "a partition is owned that on_assigned did not accept"
        else:
            raise AssertionError("an error in on_assigned is swallowed")
        assert _values(_read(consumer, 1)) == ["a"], "a partition is never offered again after on_assigned failed"


def _a_missing_topic_is_an_error(bus: Bus) -> None:
    topic = _fresh("missing")
    assert bus.partitions(topic) == 0, "a missing topic has partitions"
    _refuses(lambda: bus.end_offsets(topic), "the end of a missing topic")
    _refuses(lambda: bus.consumer(_fresh("group"), [topic]), "a consumer of a missing topic")
    with closing(bus.producer()) as producer:
        _refuses(lambda: producer.publish(topic, "k", b"", {}), "a message to a missing topic")
    assert bus.partitions(topic) == 0, "a topic was created by being asked for"


def _topics_are_created_once(bus: Bus) -> None:
    old, new = _topic(bus, partitions=3), _fresh("topic")
    _publish(bus, old, "a")
    bus.create_topics([TopicSpec(old, 5), TopicSpec(new, 2)])
    bus.create_topics([])
    assert bus.partitions(old) == 3, "an existing topic changed"
    assert bus.partitions(new) == 2, "a new topic did not appear"
    assert sum(bus.end_offsets(old).values()) == 1, "creating a topic again emptied it"


def _a_message_too_large_spares_the_others(bus: Bus) -> None:
    topic = _topic(bus)
    with closing(bus.producer()) as producer:
        producer.publish(topic, "k", b"before", {})
        try:
            producer.publish(topic, "k", secrets.token_bytes(8_000_000), {})
            producer.flush()
        except MessageTooLarge:
            pass
        else:
            raise AssertionError("a message of 8 MB is taken")
        producer.publish(topic, "k", b"after", {})
        producer.flush()
    with _reading(bus, topic) as consumer:
        assert _values(_read(consumer, 2)) == ["before", "after"], "a refused message took others with it"


def _what_is_hastened_needs_no_flush(bus: Bus) -> None:
    topic = _topic(bus)
    with closing(bus.producer()) as producer:
        producer.hasten()
        for n in range(100):
            producer.publish(topic, "k", str(n).encode(), {})
        producer.hasten()
        with _reading(bus, topic) as consumer:
            assert _values(_read(consumer, 100)) == [str(n) for n in range(100)], "a hastened message stayed behind"


def _the_end_is_the_next_offset(bus: Bus) -> None:
    topic = _topic(bus, partitions=2)
    assert bus.end_offsets(topic) == {Partition(topic, 0): 0, Partition(topic, 1): 0}, "a new topic has an end"
    _publish(bus, topic, "a", "b", key=_key_in(1, 2))
    assert bus.end_offsets(topic) == {Partition(topic, 0): 0, Partition(topic, 1): 2}, "the end is not the next offset"


def _a_partition_is_read_back_without_a_group(bus: Bus) -> None:
    topic = _topic(bus, partitions=2)
    here, other = Partition(topic, 0), Partition(topic, 1)
    assert not bus.read(here, 0, 10), "an empty partition holds records"
    _publish(bus, topic, *(f"a{n}" for n in range(5)), key=_key_in(0, 2))
    _publish(bus, topic, *(f"b{n}" for n in range(5)), key=_key_in(1, 2))
    with _reading(bus, topic) as consumer:
        delivered = {Partition(r.topic, r.partition): r for r in _read(consumer, 10)}
        records = bus.read(here, 1, 4)
        assert [r.offset for r in records] == [1, 2, 3], "what is read back is not what was asked for"
        assert _values(records) == ["a1", "a2", "a3"], "what is read back is another record"
        assert [*bus.read(here, 4, 5)] == [delivered[here]], "a record read back differs from the one delivered"
        assert not consumer.committed(consumer.assignment()), "reading back moved a group"
    assert _values(bus.read(other, 3, 100)) == ["b3", "b4"], "what is not there yet is not left out"
    assert not bus.read(here, 5, 100), "records are read that do not exist"
    assert not bus.read(here, 3, 3), "an empty range holds records"
    _refuses(lambda: bus.read(Partition(topic, 7), 0, 1), "reading a partition that does not exist")
    _refuses(lambda: bus.read(Partition(_fresh("missing"), 0), 0, 1), "reading a missing topic")


def _partitions_are_followed_without_a_group(bus: Bus) -> None:
    topic, second = _topic(bus, partitions=2), _topic(bus)
    here, other = Partition(topic, 0), Partition(second, 0)
    _publish(bus, topic, "a0", "a1", "a2", key=_key_in(0, 2))
    _publish(bus, topic, "apart", key=_key_in(1, 2))
    with closing(bus.follow({here: 1, other: 0})) as reader:
        assert _values(_read(reader, 2)) == ["a1", "a2"], "it does not begin where it was told to"
        assert not reader.poll(timeout_s=0.2), "it reads what is not there, or was not asked for"
        _publish(bus, second, "b0")
        _publish(bus, topic, "a3", key=_key_in(0, 2))
        assert sorted(_values(_read(reader, 2))) == ["a3", "b0"], "what comes later does not arrive"
    bus.drop_before(here, 3)
    with closing(bus.follow({here: 0})) as reader:
        assert _values(_read(reader, 1)) == ["a3"], "what was dropped is not passed over"
    _refuses(lambda: bus.follow({Partition(topic, 7): 0}), "following a partition that does not exist")
    _refuses(lambda: bus.follow({Partition(_fresh("missing"), 0): 0}), "following a missing topic")


def _what_was_dropped_is_gone(bus: Bus) -> None:
    topic, group = _topic(bus, partitions=2), _fresh("group")
    old, other = Partition(topic, 0), Partition(topic, 1)
    _refuses(lambda: bus.begin_offsets(_fresh("missing")), "the begin of a missing topic")
    _publish(bus, topic, "a", "b", "c", "d", key=_key_in(0, 2))
    with _reading(bus, topic, group=group) as consumer:
        consumer.commit(_after(_read(consumer, 4)[:1]))
    bus.drop_before(old, 3)
    assert bus.begin_offsets(topic) == {old: 3, other: 0}, "the begin is not the first offset still held"
    assert bus.end_offsets(topic) == {old: 4, other: 0}, "dropping moved the end"
    assert _values(bus.read(old, 0, 10)) == ["d"], "what was dropped is read back"
    with _reading(bus, topic, group=group) as consumer:
        assert _values(_read(consumer, 1)) == ["d"], "a group whose next record was dropped does not go on behind it"
    bus.drop_before(old, 4)
    assert bus.begin_offsets(topic) == {old: 4, other: 0}, "the begin of what is all dropped is not its end"
    _publish(bus, topic, "e", key=_key_in(0, 2))
    assert [(r.offset, r.value) for r in bus.read(old, 0, 10)] == [(4, b"e")], "offsets start again"


def _a_flush_stores_everything(bus: Bus) -> None:
    topic = _topic(bus)
    with closing(bus.producer()) as producer:
        producer.flush()
        for _ in range(2):
            for _ in range(1000):
                producer.publish(topic, "k", b"x", {})
            producer.flush()
        assert bus.end_offsets(topic) == {Partition(topic, 0): 2000}, "a flush left something behind"


BUS_CHECKS: Sequence[Callable[[Bus], None]] = (
    _keys_choose_their_partition,
    _a_partition_keeps_its_order,
    _headers_and_values_arrive_as_sent,
    _groups_are_independent,
    _a_group_goes_on_after_its_commit,
    _what_was_not_committed_comes_again,
    _a_seek_replays,
    _a_seek_during_assignment_sets_the_start,
    _a_paused_partition_delivers_nothing,
    _members_share_partitions_by_number,
    _a_member_that_gets_nothing_is_told_so,
    _members_with_other_topics_take_no_part,
    _revocation_lets_a_member_commit,
    _a_pause_ends_with_the_assignment,
    _a_failed_assignment_is_tried_again,
    _a_missing_topic_is_an_error,
    _topics_are_created_once,
    _a_message_too_large_spares_the_others,
    _what_is_hastened_needs_no_flush,
    _the_end_is_the_next_offset,
    _a_partition_is_read_back_without_a_group,
    _partitions_are_followed_without_a_group,
    _what_was_dropped_is_gone,
    _a_flush_stores_everything,
)
"""The contract of a bus, promise by promise: for test runners that want to name each one."""


def _fresh(word: str) -> str:
    # A server that outlives the run still has the names of the last one.
    return f"{word}-{secrets.token_hex(6)}"


def _topic(bus: Bus, partitions: int = 1) -> str:
    topic = _fresh("topic")
    bus.create_topics([TopicSpec(topic, partitions)])
    return topic


def _key_in(number: int, partitions: int) -> str:
    return next(key for n in range(1000) if partition_for(key := f"key-{n}", partitions) == number)


@contextmanager
def _writing(bus: Bus) -> Iterator[Producer]:
    with closing(bus.producer()) as producer:
        yield producer
        producer.flush()


def _publish(bus: Bus, topic: str, *values: str, key: str = "k") -> None:
    with _writing(bus) as producer:
        for value in values:
            producer.publish(topic, key, value.encode(), {})


@contextmanager
def _reading(bus: Bus, *topics: str, group: str | None = None) -> Iterator[Consumer]:
    with closing(bus.consumer(group or _fresh("group"), topics)) as consumer:
        yield consumer


def _read(consumer: Consumer | Reader, count: int, max_records: int = 500) -> list[Record]:
    """At least `count` records."""
    clock = SystemClock()
    deadline = clock.monotonic() + _PATIENCE_S
    records: list[Record] = []
    while len(records) < count:
        batch = consumer.poll(max_records, timeout_s=0.2)
        assert len(batch) <= max_records, f"{len(batch)} records where {max_records} were asked for"
        records += batch
        assert clock.monotonic() < deadline, f"only {len(records)} of {count} records came within {_PATIENCE_S:g} s"
    return records


def _settle(
    one: Consumer, other: Consumer, settled: Callable[[], bool], got: tuple[list[Record], list[Record]] | None = None
) -> tuple[list[Record], list[Record]]:
    """Poll two members in turn until `settled`; what each of them read."""
    clock = SystemClock()
    deadline = clock.monotonic() + _PATIENCE_S
    got = got or ([], [])
    while not settled():
        for member, records in zip((one, other), got, strict=True):
            records += member.poll(timeout_s=0.05)
        assert clock.monotonic() < deadline, f"the group did not come to rest within {_PATIENCE_S:g} s"
    return got


def _values(records: Collection[Record]) -> list[str]:
    return [record.value.decode() for record in records]


def _after(records: Collection[Record]) -> Mapping[Partition, int]:
    """What to commit when these were handled."""
    return {Partition(r.topic, r.partition): r.offset + 1 for r in records}


def _refuses(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except BusError:
        return
    raise AssertionError(f"{what} is no error")
