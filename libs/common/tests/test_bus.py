"""The bus contract for every adapter, and what each adapter promises beyond it."""

from __future__ import annotations

import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Producer as RawProducer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from pydantic import SecretStr

from deploy.native.server import free_ports
from tests.retention import delete_records
from tests.waiting import PATIENCE_S
from tradeloop.common.bus.kafka import KafkaBus, KafkaSettings
from tradeloop.common.bus.kafka.errors import translated
from tradeloop.common.bus.kafka.producer import KafkaProducer
from tradeloop.common.bus.memory import MemoryBus, MemoryConsumer
from tradeloop.common.bus.port import Bus, BusUnavailable, MessageTooLarge, Partition, Record, TopicSpec, murmur2
from tradeloop.common.contracts.bus.retention import Expire
from tradeloop.common.testing import BUS_CHECKS, RETENTION_CHECKS, check_bus

FAST = {"heartbeat.interval.ms": "100"}
"""Members learn of a rebalance sooner than production needs."""


@pytest.fixture
def kafka_bus(kafka: str) -> Iterator[KafkaBus]:
    with closing(KafkaBus(KafkaSettings(bootstrap_servers=kafka, extra=FAST))) as bus:
        yield bus


@pytest.fixture
def memory_bus() -> Iterator[MemoryBus]:
    with closing(MemoryBus()) as bus:
        yield bus


@pytest.fixture
def handing_bus() -> Iterator[MemoryBus]:
    with closing(MemoryBus(hands_over=True)) as bus:
        yield bus


@pytest.mark.parametrize("check", BUS_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("adapter", ["memory_bus", "handing_bus", "kafka_bus"])
def test_contract(adapter: str, check: Callable[[Bus], None], request: pytest.FixtureRequest) -> None:
    check(request.getfixturevalue(adapter))


def test_objects_are_handed_over_while_they_are_new_and_to_nobody_else(
    memory_bus: MemoryBus, handing_bus: MemoryBus
) -> None:
    published = [SimpleNamespace(n=n) for n in range(600)]
    for bus in (memory_bus, handing_bus):
        bus.create_topics([TopicSpec("t", 1)])
        for n, each in enumerate(published):
            bus.producer().publish("t", "k", str(n).encode(), {}, each)
        bus.producer().publish("t", "k", b"600", {})
    plain, handed = (bus.read(Partition("t", 0), 0, 601) for bus in (memory_bus, handing_bus))
    assert [record.value for record in plain] == [record.value for record in handed]
    assert all(record.message is None for record in plain)
    known = [record for record in handed if record.message is not None]
    assert all(record.message is published[record.offset] for record in known)
    assert [record.offset for record in known] == list(range(600 - len(known), 600))
    assert len(known) > 10
    handing_bus.drop_before(Partition("t", 0), 590)
    left = handing_bus.read(Partition("t", 0), 0, 601)
    assert [record.message for record in left] == [*published[590:], None]


@pytest.mark.parametrize("check", RETENTION_CHECKS, ids=lambda check: check.__name__)
def test_contract_of_retention_in_memory(check: Callable[[Bus, Expire], None], memory_bus: MemoryBus) -> None:
    check(memory_bus, memory_bus.drop_before)


@pytest.mark.parametrize("check", RETENTION_CHECKS, ids=lambda check: check.__name__)
def test_contract_of_retention_on_kafka(check: Callable[[Bus, Expire], None], kafka_bus: KafkaBus, kafka: str) -> None:
    check(kafka_bus, partial(delete_records, kafka))


def test_M6_a_topic_made_anew_has_another_identity(kafka_bus: KafkaBus, kafka: str) -> None:
    spec = TopicSpec(f"anew-{secrets.token_hex(4)}", 1)
    kafka_bus.create_topics([spec])
    before = kafka_bus.identity(spec.name)
    with closing(KafkaBus(KafkaSettings(bootstrap_servers=kafka))) as another:
        assert another.identity(spec.name) == before
    kafka_bus.delete_topics([spec.name])
    kafka_bus.create_topics([spec])
    assert kafka_bus.identity(spec.name) != before
    buses = [MemoryBus() for _ in range(2)]
    for bus in buses:
        bus.create_topics([spec])
    assert buses[0].identity(spec.name) != buses[1].identity(spec.name)


def test_check_bus_runs_every_check() -> None:
    made: list[MemoryBus] = []

    def make_bus() -> MemoryBus:
        made.append(MemoryBus())
        return made[-1]

    check_bus(make_bus)
    assert len(made) == len(BUS_CHECKS)
    check_bus(make_bus, MemoryBus.drop_before)
    assert len(made) == 2 * len(BUS_CHECKS) + len(RETENTION_CHECKS)


def forget_commits(self: MemoryConsumer, offsets: Mapping[Partition, int]) -> None: ...


def never_pause(self: MemoryConsumer, partitions: Collection[Partition]) -> None: ...


def stay_put(self: MemoryConsumer, partition: Partition, offset: int) -> None:
    self._positions[partition] = self._logs[partition].end


def read_everything(self: MemoryConsumer, topic: str, number: int) -> bool:
    return True


@pytest.mark.parametrize(
    ("method", "defect"),
    [
        ("commit", forget_commits),
        ("pause", never_pause),
        ("seek", stay_put),
        ("_reads", read_everything),
        ("close", lambda self: None),
    ],
)
def test_check_bus_finds_defects(method: str, defect: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryConsumer, method, defect)
    monkeypatch.setattr("tradeloop.common.contracts.bus.steps.PATIENCE_S", 0.5)
    with pytest.raises(AssertionError):
        check_bus(MemoryBus)


def keep_everything(bus: MemoryBus, partition: Partition, offset: int) -> None: ...


def count_anew(bus: MemoryBus, partition: Partition, offset: int) -> None:
    bus.drop_before(partition, offset)
    bus._log(partition).begin = 0


def forget_the_partition(bus: MemoryBus, partition: Partition, offset: int) -> None:
    bus.drop_before(partition, bus.end_offsets(partition.topic)[partition])


@pytest.mark.parametrize("expire", [keep_everything, count_anew, forget_the_partition])
def test_check_bus_finds_defects_of_retention(
    expire: Callable[[MemoryBus, Partition, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tradeloop.common.contracts.bus.steps.PATIENCE_S", 0.5)
    with pytest.raises(AssertionError):
        check_bus(MemoryBus, expire)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
def test_murmur2_is_that_of_the_java_client(key: str, expected: int) -> None:
    """The vectors of Apache Kafka's own `UtilsTest`, which are signed."""
    assert murmur2(key.encode()) == expected % 2**32


def test_a_waiting_poll_wakes_for_its_own_records_only(memory_bus: MemoryBus) -> None:
    memory_bus.create_topics([TopicSpec("bars"), TopicSpec("noise")])
    consumer = memory_bus.consumer("g", ["bars"])
    assert consumer.poll() == []

    def write() -> None:
        producer = memory_bus.producer()
        for topic in ("noise", "noise", "bars"):
            producer.publish(topic, "k", topic.encode(), {})

    writer = threading.Thread(target=write)
    writer.start()
    records = consumer.poll(timeout_s=PATIENCE_S)
    writer.join()
    assert [record.value for record in records] == [b"bars"]


def test_the_password_shows_nowhere(kafka: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = KafkaSettings(
        bootstrap_servers=kafka,
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        sasl_username="ingest",
        sasl_password=SecretStr("hunter2"),
        extra={"ssl.key.password": "hunter3"},
        request_timeout_s=1.0,
    )
    assert settings.client()["sasl.password"] == "hunter2"
    with pytest.raises(BusUnavailable) as refused:
        KafkaBus(settings).partitions("market.bars.v1")
    assert kafka in str(refused.value)
    assert "SASL" in caplog.text, "the log does not tell why"
    assert "hunter" not in f"{settings!r} {refused.value!r} {caplog.text}"


def test_the_log_does_not_repeat_every_attempt_to_connect(caplog: pytest.LogCaptureFixture) -> None:
    bus = KafkaBus(KafkaSettings(bootstrap_servers="127.0.0.1:1", request_timeout_s=1.5))
    for _ in range(2):
        with pytest.raises(BusUnavailable):
            bus.partitions("market.bars.v1")
    assert [record.getMessage().count("Connection refused") for record in caplog.records] == [1]


def test_an_unreachable_kafka_is_unavailable() -> None:
    bus = KafkaBus(KafkaSettings(bootstrap_servers="127.0.0.1:1", request_timeout_s=0.5))
    with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:1"):
        bus.partitions("market.bars.v1")
    with pytest.raises(BusUnavailable):
        bus.create_topics([TopicSpec("market.bars.v1")])
    with pytest.raises(BusUnavailable):
        bus.consumer("g", ["market.bars.v1"])
    with closing(bus.producer()) as producer, pytest.raises(BusUnavailable):
        producer.publish("market.bars.v1", "k", b"", {})


def test_a_broker_that_leads_nothing_yet_is_unavailable() -> None:
    """As one that starts says of every partition."""
    with pytest.raises(BusUnavailable, match="No leaders found"), translated("cannot read the bounds of topics"):
        raise KafkaException(KafkaError(KafkaError._NOENT, "Failed to query partition leaders: No leaders found"))


@contextmanager
def relayed(server: str, port: int) -> Iterator[None]:
    """Lets a client that knows only this port find the server."""
    host, _, own = server.rpartition(":")

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while some := source.recv(65_536):
                sink.sendall(some)

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((host, int(own))) as upstream:
                threading.Thread(target=pump, args=(upstream, self.request), daemon=True).start()
                pump(self.request, upstream)

    with socketserver.ThreadingTCPServer(("127.0.0.1", port), Relay) as relay:
        relay.daemon_threads = True
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            relay.shutdown()


def test_what_was_not_confirmed_in_time_does_not_arrive_later(kafka: str, kafka_bus: KafkaBus) -> None:
    topic, port = fresh_topic(kafka_bus), free_ports(1)[0]
    # Nothing is under way before anybody answers there: what a broker has, nobody can take back.
    settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{port}")
    with closing(KafkaProducer(settings, exists=lambda _: True)) as producer:
        for count in (1, 2):
            for _ in range(count):
                producer.publish(topic, "k", b"early", {})
            with pytest.raises(BusUnavailable, match=f"{count} messages within 0.1 s"):
                producer.flush(timeout_s=0.1)
        with relayed(kafka, port):
            producer.publish(topic, "k", b"late", {})
            producer.flush()
    assert [record.value for record in read(kafka_bus, topic, 1)] == [b"late"]
    assert kafka_bus.end_offsets(topic) == {Partition(topic, 0): 1}


class Purging:
    """A client that is told to purge, and does so when it comes to it, with all that it has by then."""

    def __init__(self, *_: object, **__: object) -> None:
        self.has: list[Callable[..., None]] = []
        self.purges = self.closed = False

    def produce(self, topic: str, value: bytes, key: str, *, on_delivery: Callable[..., None], **_: object) -> None:
        assert not self.closed
        self.has.append(on_delivery)

    def flush(self, timeout_s: float) -> int:
        if self.purges:
            for report in self.has:
                report(KafkaError(KafkaError._PURGE_QUEUE), SimpleNamespace(topic=lambda: "bars"))
            self.has.clear()
        return len(self.has) if timeout_s == 0.0 else 0

    def purge(self) -> None:
        self.purges = True

    def close(self) -> None:
        self.flush(60.0)
        self.closed = True


def test_what_is_published_after_a_purge_is_not_purged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own `purge` returns before its threads have purged, also where it is told to wait for them."""
    monkeypatch.setattr("tradeloop.common.bus.kafka.producer.Producer", Purging)
    producer = KafkaProducer(KafkaSettings(), exists=lambda _: True)
    producer.publish("bars", "k", b"first", {})
    with pytest.raises(BusUnavailable, match="1 messages within 0 s"):
        producer.flush(timeout_s=0.0)
    producer.publish("bars", "k", b"first", {})
    producer.flush()


def test_what_the_broker_refuses_is_reported_once(kafka: str, kafka_bus: KafkaBus) -> None:
    topic = f"small-{secrets.token_hex(6)}"
    admin = AdminClient({"bootstrap.servers": kafka})
    for future in admin.create_topics([NewTopic(topic, 1, config={"max.message.bytes": "1000"})]).values():
        future.result()
    with closing(kafka_bus.producer()) as producer:
        producer.publish(topic, "k", secrets.token_bytes(2000), {})
        with pytest.raises(MessageTooLarge):
            producer.flush()
        producer.publish(topic, "k", b"small", {})
        producer.flush()
    assert kafka_bus.end_offsets(topic) == {Partition(topic, 0): 1}


def test_a_full_queue_waits_instead_of_failing(kafka: str) -> None:
    settings = KafkaSettings(bootstrap_servers=kafka, extra={"queue.buffering.max.messages": "10"})
    with closing(KafkaBus(settings)) as bus, closing(bus.producer()) as producer:
        topic = fresh_topic(bus)
        for _ in range(100):
            producer.publish(topic, "k", b"x", {})
        producer.flush()
        assert bus.end_offsets(topic) == {Partition(topic, 0): 100}


class Full:
    """A client whose queue is full at its third message, and whose broker then refuses the first."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self._refuses = True

    def produce(self, topic: str, value: bytes, key: str, *, on_delivery: Callable[..., None], **_: object) -> None:
        if len(self.taken) == 2 and self._refuses:
            self._on_delivery = on_delivery
            raise BufferError
        self.taken.append(value)

    def flush(self, timeout_s: float) -> int:
        if self._refuses:
            self._refuses = False
            self._on_delivery(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), SimpleNamespace(topic=lambda: "bars"))
        return 0


def test_what_waits_stays_when_another_message_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    producer = KafkaProducer(KafkaSettings(), exists=lambda _: True)
    monkeypatch.setattr(producer, "_client", client := Full())
    monkeypatch.setattr("tradeloop.common.bus.kafka.producer._TOGETHER_S", 3600.0)
    monkeypatch.setattr(producer, "_sent_at", time.monotonic())
    for n in range(5):
        producer.publish("bars", "k", str(n).encode(), {})
    assert not client.taken, "they follow each other"
    producer.hasten()
    assert client.taken == [b"0", b"1", b"2", b"3", b"4"]
    with pytest.raises(MessageTooLarge):
        producer.flush()
    producer.flush()


def test_messages_of_other_programs_become_readable(kafka: str, kafka_bus: KafkaBus) -> None:
    topic = fresh_topic(kafka_bus)
    other = RawProducer({"bootstrap.servers": kafka})
    other.produce(topic, None, None)
    other.produce(
        topic, b"\xff", b"k\xff", headers=[("bytes", b"\xfe"), ("nothing", None), ("twice", "1"), ("twice", "2")]
    )
    other.flush()
    records = read(kafka_bus, topic, 2)
    assert [(r.key, r.value, dict(r.headers)) for r in records] == [
        ("", b"", {}),
        ("k\\xff", b"\xff", {"bytes": "\\xfe", "nothing": "", "twice": "2"}),
    ]
    assert all(r.timestamp_ms > 1_700_000_000_000 for r in records)


def test_a_static_member_that_restarts_takes_its_place_again(kafka: str) -> None:
    settings = KafkaSettings(bootstrap_servers=kafka, group_instance_id="inference-0", extra=FAST)
    with closing(KafkaBus(settings)) as bus:
        topic = fresh_topic(bus)
        with closing(bus.producer()) as producer:
            producer.publish(topic, "k", b"x", {})
            producer.flush()
        # It never leaves, so a dynamic successor would wait out the session time-out of 45 s.
        for _ in range(2):
            assert len(read(bus, topic, 1, group=f"{topic}-group", deadline_polls=150)) == 1


def fresh_topic(bus: Bus) -> str:
    topic = f"topic-{secrets.token_hex(6)}"
    bus.create_topics([TopicSpec(topic, partitions=1)])
    return topic


def read(bus: Bus, topic: str, count: int, group: str | None = None, deadline_polls: int = 600) -> list[Record]:
    records: list[Record] = []
    with closing(bus.consumer(group or f"{topic}-group", [topic])) as consumer:
        for _ in range(deadline_polls):
            records += consumer.poll(timeout_s=0.2)
            if len(records) >= count:
                break
    return records
