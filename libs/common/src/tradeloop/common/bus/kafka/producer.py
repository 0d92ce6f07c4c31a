"""Sends messages to Kafka."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tradeloop.common.bus.kafka.errors import as_bus_error, log, no_topic
from tradeloop.common.bus.kafka.settings import KafkaSettings
from tradeloop.common.bus.kafka.wire import Names
from tradeloop.common.bus.port import BusUnavailable

_LARGEST = 1_000_000
"""Bytes of a message, unless the settings say otherwise: the client's own limit."""
_TOGETHER_S = 0.002
"""How long messages that follow each other are kept, to go out together. Of those that are handed over one by one the
client makes a request each, which costs it and the broker more than the messages do; its own linger would also keep the
single ones."""


class KafkaProducer:
    """An idempotent producer: what is stored is stored once and in order, by all in-sync replicas."""

    def __init__(self, settings: KafkaSettings, exists: Callable[[str], object]) -> None:
        self._names, self._exists, self._servers = Names(settings.prefix), exists, settings.bootstrap_servers
        self._known: set[str] = set()
        self._kept: deque[tuple[str, str, bytes, Mapping[str, str]]] = deque()
        self._sent_at = 0.0
        self._keeps_below = int(settings.extra.get("message.max.bytes", _LARGEST)) // 5
        """A message that may be too large is refused at once, and not kept. A character has up to 4 bytes."""
        self._refused: list[tuple[str, KafkaError]] = []
        self._complaint = ""
        self._settings = settings
        self._client = self._connected()

    def _connected(self) -> Producer:
        return Producer(
            self._settings.client(
                {
                    "enable.idempotence": True,  # includes acks=all
                    "partitioner": "murmur2_random",  # for keyed messages it is `partition_for`
                    # Half of what lz4 leaves, which takes hexadecimal ids as they are; both cost less than the request.
                    "compression.type": "zstd",
                    "linger.ms": 0,  # what is queued while a request is under way makes the next batch
                    "queue.buffering.max.kbytes": 65_536,  # of the client's own 1 GB
                    "delivery.report.only.error": True,  # nobody counts what went well
                }
            ),
            error_cb=self._complained,
            logger=log,
        )

    def publish(
        self, topic: str, key: str, value: bytes, headers: Mapping[str, str], message: object | None = None
    ) -> None:
        if topic not in self._known:
            # Asked once: the client itself would hold messages for half a minute before it says so.
            if not self._exists(topic):
                raise no_topic(topic)
            self._known.add(topic)
        self._kept.append((topic, key, value, headers))
        size = len(key) + len(value) + sum(map(len, headers.values()))
        if size >= self._keeps_below or time.monotonic() - self._sent_at >= _TOGETHER_S:
            self.hasten()

    def hasten(self) -> None:
        if not self._kept:
            return
        while self._kept:
            one = self._kept.popleft()
            try:
                self._produce(*one)
            except BufferError:  # the client's queue is full
                self._kept.appendleft(one)
                self._wait()  # what was refused meanwhile are others: the next flush says so
        self._sent_at = time.monotonic()

    def _produce(self, topic: str, key: str, value: bytes, headers: Mapping[str, str]) -> None:
        try:
            self._client.produce(
                self._names.outer(topic), value, key, headers=dict(headers), on_delivery=self._delivered
            )
        except KafkaException as exception:
            raise as_bus_error(f"cannot publish {len(value)} bytes to {topic}", exception.args[0]) from exception

    def flush(self, timeout_s: float = 30.0) -> None:
        self.hasten()
        self._wait(timeout_s)
        if self._refused:
            counts = Counter(topic for topic, _ in self._refused)
            errors = [as_bus_error(f"{counts[t]} messages to {t} were not stored", each) for t, each in self._refused]
            self._refused.clear()
            # What can be tried again goes first: what cannot will be refused again, and then be alone.
            raise min(errors, key=lambda error: not isinstance(error, BusUnavailable))

    def _wait(self, timeout_s: float = 30.0) -> None:
        """Until Kafka has answered for everything that was sent."""
        pending = self._client.flush(timeout_s)
        if pending:
            # They will be published again, so they must not also arrive later by themselves.
            self._kept.clear()
            self.close()
            # Another client, since the threads of this one purge in their own time, and a message that it takes
            # meanwhile would be purged with the others.
            self._client = self._connected()
            self._refused.clear()
            cause = f": {self._complaint}" if self._complaint else ""
            raise BusUnavailable(
                f"Kafka at {self._servers} did not confirm {pending} messages within {timeout_s:g} s{cause}"
            )

    def close(self) -> None:
        self._client.purge()
        self._client.close()

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._refused.append((message.topic() or "", error))

    def _complained(self, error: KafkaError) -> None:
        self._complaint = error.str()
