"""`KafkaBus`: the messaging port over Apache Kafka, by confluent-kafka's synchronous client.

Needs the extra `kafka`. One thread per producer or consumer. The client's own log goes to this module's logger.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from confluent_kafka import OFFSET_STORED, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka import Consumer as Client
from confluent_kafka import Producer as ProducerClient
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from tradeloop.common.bus import BusError, BusUnavailable, MessageTooLarge, Partition, Record

_Callback = Callable[[Collection[Partition]], None]

_log = logging.getLogger(__name__)

_NONE: Mapping[str, str] = MappingProxyType({})

_RECOVERING = frozenset({KafkaError._TRANSPORT, KafkaError._RESOLVE, KafkaError._MAX_POLL_EXCEEDED})
"""One connection, one name or one membership lost: the client repairs these, and says so when no broker is left."""

_UNAVAILABLE = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._MSG_TIMED_OUT,
        KafkaError._PURGE_INFLIGHT,
        KafkaError._PURGE_QUEUE,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._TRANSPORT,
        KafkaError._WAIT_COORD,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.NOT_CONTROLLER,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.UNKNOWN_LEADER_EPOCH,
    }
)
_NOT_A_MEMBER = frozenset(
    {
        KafkaError._ASSIGNMENT_LOST,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.UNKNOWN_MEMBER_ID,
    }
)


class KafkaSettings(BaseModel):
    """Where Kafka is and how to sign in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bootstrap_servers: str = "localhost:9092"
    """`host:port`, separated by commas."""
    client_id: str = "tradeloop"
    group_instance_id: str | None = None
    """A stable name of this process among its group (a StatefulSet's pod name): a restart within the session
    timeout then keeps its partitions. Such a member does not leave its group when it closes."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_ca_location: str | None = None
    """Path of the CA bundle; the system's own when absent."""
    ssl_certificate_location: str | None = None
    ssl_key_location: str | None = None
    request_timeout_s: float = Field(default=10.0, gt=0)
    """How long one question may go unanswered before Kafka counts as unavailable."""
    extra: dict[str, str] = Field(default={}, repr=False)
    """Further librdkafka properties by their own names; they win over everything that is set here."""

    def client(self, own: Mapping[str, str | int] = _NONE) -> dict[str, str | int | float | bool]:
        """The properties of one librdkafka client: the shared ones, its own, and `extra`. Secrets are in the clear."""
        shared = self.model_dump(
            exclude={"extra", "group_instance_id", "request_timeout_s", "sasl_password"}, exclude_none=True
        )
        properties: dict[str, str | int | float | bool] = {
            name.replace("_", "."): value for name, value in shared.items()
        }
        if self.sasl_password is not None:
            properties["sasl.password"] = self.sasl_password.get_secret_value()
        return {**properties, **own, **self.extra}


class KafkaBus:
    """Topics of a Kafka cluster.

    The `range` assignor is chosen over the cooperative one because only it co-partitions: partition n of every
    topic that a group reads goes to the same member, which the joins by universe rely on. The price is that
    every rebalance revokes everything first.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings

    def create_topics(self, partitions: Mapping[str, int]) -> None:
        missing = partitions.keys() - self._topics().keys()
        # The bus's own clock, as the port promises, and not the producer's.
        config = {"message.timestamp.type": "LogAppendTime"}
        topics = [NewTopic(topic, num_partitions=partitions[topic], config=config) for topic in sorted(missing)]
        if not topics:
            return
        with _translated("cannot create topics"):
            created = self._admin.create_topics(topics, request_timeout=self._settings.request_timeout_s)
        for topic, future in created.items():
            with _translated(f"cannot create topic {topic}", ignore=(KafkaError.TOPIC_ALREADY_EXISTS,)):
                future.result()
        # The controller has them; brokers learn of them, and take up their leadership, a moment later.
        for _ in range(100):
            try:
                if missing <= self._topics().keys():
                    self._bounds(Partition(topic, n) for topic in missing for n in range(partitions[topic]))
                    return
            except BusUnavailable:
                _log.info("Kafka: the leaders of new topics do not answer yet")
            self._admin.poll(0.1)
        raise BusUnavailable(
            f"Kafka: topics {', '.join(sorted(missing))} were created, but their leaders do not answer"
        )

    def partitions(self, topic: str) -> int:
        return self._topics().get(topic, 0)

    def end_offsets(self, topic: str) -> Mapping[Partition, int]:
        return self._bounds(self._all_of(topic))

    def begin_offsets(self, topic: str) -> Mapping[Partition, int]:
        return self._bounds(self._all_of(topic), latest=False)

    def read(self, partition: Partition, start: int, end: int) -> Sequence[Record]:
        doing = f"cannot read {partition.topic}[{partition.number}] from {start} to {end}"
        if partition not in self._all_of(partition.topic):
            raise BusError(f"Kafka: {doing}: there is no such partition")
        with _translated(doing), closing(self._reader()) as reader:
            return self._read(reader, partition, start, end)

    def _read(self, reader: Client, partition: Partition, start: int, end: int) -> list[Record]:
        timeout_s = self._settings.request_timeout_s
        place = TopicPartition(partition.topic, partition.number)
        low, high = reader.get_watermark_offsets(place, timeout_s)
        reached, end = max(start, low), min(end, high)
        records: list[Record] = []
        if reached < end:
            reader.assign([TopicPartition(partition.topic, partition.number, reached)])
        while reached < end:
            if (first := reader.poll(timeout_s)) is None:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            for message in (first, *reader.consume(1000, 0)):
                error, offset = message.error(), message.offset() or 0
                if error is None:
                    records.append(_record(message, partition.topic, partition.number, offset))
                    reached = offset + 1
                elif error.code() == KafkaError._PARTITION_EOF:
                    reached = end  # the last records of the range may be missing: compaction, aborted transactions
                elif error.code() not in _RECOVERING:
                    raise KafkaException(error)
        return [record for record in records if record.offset < end]

    def drop_before(self, partition: Partition, offset: int) -> None:
        place = TopicPartition(partition.topic, partition.number, offset)
        with _translated(f"cannot drop records of {partition.topic}[{partition.number}]"):
            dropped = self._admin.delete_records([place], request_timeout=self._settings.request_timeout_s)
            for future in dropped.values():
                future.result()

    def producer(self) -> KafkaProducer:
        return KafkaProducer(self, self._settings)

    def consumer(
        self,
        group: str,
        topics: Sequence[str],
        *,
        on_assigned: _Callback | None = None,
        on_revoked: _Callback | None = None,
    ) -> KafkaConsumer:
        existing = self._topics()
        for topic in topics:
            if topic not in existing:
                raise _no_topic(topic)
        return KafkaConsumer(self._settings, group, topics, on_assigned, on_revoked)

    def close(self) -> None:
        """Producers and consumers are closed by who asked for them; what the bus holds has nothing to lose."""

    def _all_of(self, topic: str) -> list[Partition]:
        count = self.partitions(topic)
        if not count:
            raise _no_topic(topic)
        return [Partition(topic, n) for n in range(count)]

    def _bounds(self, partitions: Iterable[Partition], *, latest: bool = True) -> dict[Partition, int]:
        which = OffsetSpec.latest() if latest else OffsetSpec.earliest()  # type: ignore[no-untyped-call]
        asked = dict.fromkeys(_places(partitions), which)
        with _translated("cannot read the bounds of topics"):
            bounds = self._admin.list_offsets(asked, request_timeout=self._settings.request_timeout_s)
            return {Partition(each.topic, each.partition): future.result().offset for each, future in bounds.items()}

    def _reader(self) -> Client:
        """Reads without being a member: it only assigns itself, and the group that the client asks for never is."""
        return Client(
            self._settings.client(
                {
                    "group.id": self._settings.client_id,
                    "auto.offset.reset": "earliest",  # should what it reads expire meanwhile
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "enable.partition.eof": True,
                    "allow.auto.create.topics": False,
                }
            ),
            logger=_log,
        )

    @cached_property
    def _admin(self) -> AdminClient:
        return AdminClient(self._settings.client(), logger=_log)

    def _topics(self) -> dict[str, int]:
        # All topics and never one by its name: a broker may create a topic that it is asked for.
        with _translated(f"cannot list the topics of {self._settings.bootstrap_servers}"):
            try:
                topics = self._admin.list_topics(timeout=self._settings.request_timeout_s).topics
            finally:
                self._admin.poll(0)  # lets the client log, and its log often names the cause
        return {name: len(topic.partitions) for name, topic in topics.items() if topic.error is None}


class KafkaProducer:
    """An idempotent producer: what is stored is stored once and in order, by all in-sync replicas."""

    def __init__(self, bus: KafkaBus, settings: KafkaSettings) -> None:
        self._bus, self._servers = bus, settings.bootstrap_servers
        self._known: set[str] = set()
        self._refused: list[KafkaError] = []
        self._complaint = ""
        self._client = ProducerClient(
            settings.client(
                {
                    "enable.idempotence": True,  # includes acks=all
                    "partitioner": "murmur2_random",  # for keyed messages it is `partition_for`
                    "compression.type": "lz4",
                    "linger.ms": 1,  # a flush does not wait for it
                }
            ),
            error_cb=self._complained,
            logger=_log,
        )

    def publish(self, topic: str, key: str, value: bytes, headers: Mapping[str, str]) -> None:
        if topic not in self._known:
            # Asked once: the client itself would hold messages for half a minute before it says so.
            if not self._bus.partitions(topic):
                raise _no_topic(topic)
            self._known.add(topic)
        try:
            self._produce(topic, key, value, headers)
        except BufferError:  # the client's queue is full
            self.flush()
            self._produce(topic, key, value, headers)

    def _produce(self, topic: str, key: str, value: bytes, headers: Mapping[str, str]) -> None:
        with _translated(f"cannot publish {len(value)} bytes to {topic}"):
            self._client.produce(topic, value, key, headers=dict(headers), on_delivery=self._delivered)

    def flush(self, timeout_s: float = 30.0) -> None:
        pending = self._client.flush(timeout_s)
        if pending:
            # They will be published again, so they must not also arrive later by themselves.
            self._client.purge()
            self._client.flush(timeout_s)
            self._refused.clear()
            cause = f": {self._complaint}" if self._complaint else ""
            raise BusUnavailable(
                f"Kafka at {self._servers} did not confirm {pending} messages within {timeout_s:g} s{cause}"
            )
        if self._refused:
            errors = [_error(f"{len(self._refused)} messages were not stored", each) for each in self._refused]
            self._refused.clear()
            # What can be tried again goes first: what cannot will be refused again, and then be alone.
            raise min(errors, key=lambda error: not isinstance(error, BusUnavailable))

    def close(self) -> None:
        self._client.purge()
        self._client.close()

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._refused.append(error)

    def _complained(self, error: KafkaError) -> None:
        self._complaint = error.str()


class KafkaConsumer:
    """A group member. It keeps positions and pauses itself: librdkafka's own would outlive a rebalance."""

    def __init__(
        self,
        settings: KafkaSettings,
        group: str,
        topics: Sequence[str],
        on_assigned: _Callback | None,
        on_revoked: _Callback | None,
    ) -> None:
        self._settings = settings
        self._on_assigned, self._on_revoked = on_assigned, on_revoked
        self._positions: dict[Partition, int] = {}
        """Where each owned partition goes on: `OFFSET_STORED` (the committed offset) until it was read or sought."""
        self._paused: set[Partition] = set()
        self._arriving: list[Partition] = []
        """What the group gave and `on_assigned` has not yet accepted."""
        self._sought = False
        self._trouble: KafkaError | None = None
        static = {"group.instance.id": settings.group_instance_id} if settings.group_instance_id else {}
        self._client = Client(
            settings.client(
                {
                    **static,
                    "group.id": group,
                    "partition.assignment.strategy": "range",
                    "auto.offset.reset": "earliest",
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "allow.auto.create.topics": False,
                    "heartbeat.interval.ms": 1000,  # how late a member learns of a rebalance, while its partitions wait
                    "fetch.wait.max.ms": 50,  # a partition that is resumed or sought waits for the fetch under way
                }
            ),
            error_cb=self._complained,
            logger=_log,
        )
        with _translated(f"cannot join group {group}"):
            self._client.subscribe(list(topics), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)

    def poll(self, max_records: int = 500, timeout_s: float = 0.0) -> Sequence[Record]:
        if self._arriving:
            self._accept()
        elif self._sought:
            self._start()
        # `consume` alone would wait the whole timeout for a full batch.
        doing = f"cannot read from {self._settings.bootstrap_servers}"
        with _translated(doing):
            first = self._client.poll(timeout_s)
            messages = [] if first is None else [first, *self._client.consume(max_records - 1, 0)]
        records = self._records(messages) if messages else []
        if self._trouble and not records:
            trouble, self._trouble = self._trouble, None
            raise _error(doing, trouble)
        return records

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        owned = {partition: offset for partition, offset in offsets.items() if partition in self._positions}
        if not owned:
            return
        # Asked first because it gives up in time. The client's commit does not, and would keep `close` waiting too: it
        # waits for as long as the group's coordinator is gone.
        self.committed(owned)
        with _translated("cannot commit", ignore=_NOT_A_MEMBER):
            for place in self._client.commit(offsets=_offsets(owned), asynchronous=False):
                if place.error is not None:
                    raise KafkaException(place.error)

    def committed(self, partitions: Collection[Partition]) -> Mapping[Partition, int]:
        with _translated("cannot read committed offsets"):
            found = self._client.committed(_places(partitions), timeout=self._settings.request_timeout_s)
            for place in found:
                if place.error is not None:
                    raise KafkaException(place.error)
        return {Partition(each.topic, each.partition): each.offset for each in found if each.offset >= 0}

    def assignment(self) -> frozenset[Partition]:
        return frozenset(self._positions)

    def seek(self, partition: Partition, offset: int) -> None:
        if partition not in self._positions:
            raise BusError(f"{partition.topic}[{partition.number}] is not assigned to this consumer")
        # Done by the next poll, by assigning anew: the client's own seek fails until a partition is being fetched.
        self._positions[partition] = offset
        self._sought = True

    def pause(self, partitions: Collection[Partition]) -> None:
        fresh = self._positions.keys() & set(partitions) - self._paused
        self._paused |= fresh
        if not self._arriving:
            self._client.pause(_places(fresh))

    def resume(self, partitions: Collection[Partition]) -> None:
        paused = self._paused.intersection(partitions)
        self._paused -= paused
        if not self._arriving:
            self._client.resume(_places(paused))

    def close(self) -> None:
        try:
            # Not left to the client: once it closes, it answers no questions any more and so no commit succeeds.
            if self._positions:
                self._give_up()
        finally:
            self._client.close()

    def _records(self, messages: Iterable[Message]) -> list[Record]:
        owned = {(p.topic, p.number) for p in self._positions}
        records: list[Record] = []
        ends: dict[tuple[str, int], int] = {}
        for message in messages:
            if (error := message.error()) is not None:
                self._complained(error)
                continue
            topic, number, offset = message.topic() or "", message.partition() or 0, message.offset() or 0
            # A batch is taken in two calls, and a rebalance may come with the second.
            if (topic, number) in owned:
                records.append(_record(message, topic, number, offset))
                ends[topic, number] = offset + 1
        for (topic, number), end in ends.items():
            self._positions[Partition(topic, number)] = end
        return records

    def _assigned(self, client: Client, places: list[TopicPartition]) -> None:
        self._arriving = sorted(Partition(each.topic, each.partition) for each in places)
        self._accept()

    def _accept(self) -> None:
        """Ask `on_assigned`; when it fails nothing is owned, and the next poll asks again."""
        self._positions = dict.fromkeys(self._arriving, OFFSET_STORED)
        try:
            if self._on_assigned and self._arriving:
                self._on_assigned(self._arriving)
        except BaseException:
            self._positions.clear()
            self._paused.clear()
            self._client.assign([])
            raise
        self._arriving = []
        self._start()

    def _start(self) -> None:
        """Read from the positions held here. A pause outlives an assignment inside the client, hence the dance."""
        self._client.resume(_places(self._paused))
        self._client.assign(_offsets(self._positions))
        self._client.pause(_places(self._paused))
        self._sought = False

    def _revoked(self, client: Client, places: list[TopicPartition]) -> None:
        self._give_up()

    def _give_up(self) -> None:
        revoked = sorted(self._positions)
        try:
            if self._on_revoked and revoked:
                self._on_revoked(revoked)
        finally:
            self._release()

    def _lost(self, client: Client, places: list[TopicPartition]) -> None:
        lost = sorted(self._positions)
        self._release()  # first, so that a commit in the callback is dropped: another member may be ahead already
        if self._on_revoked and lost:
            self._on_revoked(lost)

    def _release(self) -> None:
        self._client.resume(_places(self._paused))
        self._client.unassign()
        self._positions.clear()
        self._paused.clear()
        self._arriving = []
        self._sought = False

    def _complained(self, error: KafkaError) -> None:
        if error.code() not in _RECOVERING:
            self._trouble = error


def _record(message: Message, topic: str, partition: int, offset: int) -> Record:
    """What other programs may have written, bytes that are no text or nothing at all, becomes readable text."""
    pairs = message.headers()
    headers = {name: _text(value) for name, value in dict(pairs).items()} if pairs else _NONE
    value = message.value() or b""
    return Record(topic, partition, offset, _text(message.key()), value, headers, message.timestamp()[1])


def _text(raw: str | bytes | None) -> str:
    return raw.decode(errors="backslashreplace") if isinstance(raw, bytes) else raw or ""


def _places(partitions: Iterable[Partition]) -> list[TopicPartition]:
    return [TopicPartition(partition.topic, partition.number) for partition in partitions]


def _offsets(offsets: Mapping[Partition, int]) -> list[TopicPartition]:
    return [TopicPartition(partition.topic, partition.number, offset) for partition, offset in offsets.items()]


def _no_topic(topic: str) -> BusError:
    return BusError(f"topic {topic} does not exist")


@contextmanager
def _translated(doing: str, ignore: Collection[int] = ()) -> Iterator[None]:
    """The one place where the client's exceptions become the port's. Codes to ignore are logged."""
    try:
        yield
    except KafkaException as exception:
        error: KafkaError = exception.args[0]
        if error.code() not in ignore:
            raise _error(doing, error) from exception
        _log.info("Kafka: %s: %s", doing, error.str())


def _error(doing: str, error: KafkaError) -> BusError:
    kind: type[BusError] = BusError
    if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        kind = MessageTooLarge
    elif error.code() in _UNAVAILABLE and not error.fatal():
        kind = BusUnavailable
    return kind(f"Kafka: {doing}: {error.str()}")
