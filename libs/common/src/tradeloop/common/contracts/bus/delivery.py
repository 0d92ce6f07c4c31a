"""The promises of a producer: where messages go, in which order and form, and when they are stored."""

from __future__ import annotations

import secrets
from contextlib import closing

from tradeloop.common.bus.port import Bus, MessageTooLarge, Partition, partition_for
from tradeloop.common.contracts.bus.steps import new_topic, reading, take, texts, writing


def keys_choose_their_partition(bus: Bus) -> None:
    topic = new_topic(bus, partitions=5)
    keys = ["", "a", "crypto-majors", "binance:BTC/USDT", "Ω", *(f"universe-{n}" for n in range(40))]
    with writing(bus) as producer:
        for key in keys:
            producer.publish(topic, key, b"", {})
    with reading(bus, topic) as consumer:
        records = take(consumer, len(keys))
    assert sorted(r.key for r in records) == sorted(keys), "keys do not arrive as they were sent"
    for record in records:
        expected = partition_for(record.key, 5)
        assert record.partition == expected, f"key {record.key!r} is in {record.partition}, not {expected}"


def a_partition_keeps_its_order(bus: Bus) -> None:
    topic = new_topic(bus, partitions=3)
    with writing(bus) as producer:
        for n in range(300):
            producer.publish(topic, f"key-{n % 7}", str(n).encode(), {})
    with reading(bus, topic) as consumer:
        records = take(consumer, 300, max_records=7)
    assert len(records) == 300, "more arrived than was sent"
    for number in range(3):
        mine = [r for r in records if r.partition == number]
        assert [r.offset for r in mine] == list(range(len(mine))), "offsets do not count from zero by one"
        values = [int(r.value) for r in mine]
        assert values == sorted(values), "a partition is out of order"


def headers_and_values_arrive_as_sent(bus: Bus) -> None:
    topic = new_topic(bus)
    sent: list[tuple[bytes, dict[str, str]]] = [
        (b"", {}),
        (b"{}", {"ce_id": "1", "traceparent": "00-ab-cd-01", "empty": "", "text": "Ωμέγα"}),
        (bytes(range(256)), {"ce_id": "2"}),
        (secrets.token_bytes(500_000), {}),
    ]
    with writing(bus) as producer:
        for value, headers in sent:
            producer.publish(topic, "k", value, headers)
    with reading(bus, topic) as consumer:
        records = take(consumer, len(sent))
    assert [r.value for r in records] == [value for value, _ in sent], "values changed on the way"
    assert [dict(r.headers) for r in records] == [headers for _, headers in sent], "headers changed on the way"


def a_message_too_large_spares_the_others(bus: Bus) -> None:
    topic = new_topic(bus)
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
    with reading(bus, topic) as consumer:
        assert texts(take(consumer, 2)) == ["before", "after"], "a refused message took others with it"


def what_is_hastened_needs_no_flush(bus: Bus) -> None:
    topic = new_topic(bus)
    with closing(bus.producer()) as producer:
        producer.hasten()
        for n in range(100):
            producer.publish(topic, "k", str(n).encode(), {})
        producer.hasten()
        with reading(bus, topic) as consumer:
            assert texts(take(consumer, 100)) == [str(n) for n in range(100)], "a hastened message stayed behind"


def a_flush_stores_everything(bus: Bus) -> None:
    topic = new_topic(bus)
    with closing(bus.producer()) as producer:
        producer.flush()
        for _ in range(2):
            for _ in range(1000):
                producer.publish(topic, "k", b"x", {})
            producer.flush()
        assert bus.end_offsets(topic) == {Partition(topic, 0): 2000}, "a flush left something behind"
