"""Reads partitions of Kafka without being a member of a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, Message

from tradeloop.common.bus.kafka.errors import RECOVERING, as_bus_error, log, translated
from tradeloop.common.bus.kafka.settings import FETCHING, KafkaSettings
from tradeloop.common.bus.kafka.wire import Names, record_of
from tradeloop.common.bus.port import Partition, Record

_READING_ON = {*RECOVERING, KafkaError.GROUP_AUTHORIZATION_FAILED}
"""Errors that keep no partition from being read: the client also looks for its group, which it never joins."""


class KafkaReader:
    """It only assigns itself, and the group that the client asks for never is."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings, self._names = settings, Names(settings.prefix)
        self._partitions: dict[tuple[str, int], Partition] = {}
        self._trouble: KafkaError | None = None
        own = {**FETCHING, "group.id": self._names.outer(settings.client_id), "enable.partition.eof": True}
        self._client = Consumer(settings.client(own), error_cb=self._complained, logger=log)

    def start(self, starts: Mapping[Partition, int]) -> None:
        """Read these partitions from now on, each from an offset that is not behind its end."""
        self._partitions = {(self._names.outer(each.topic), each.number): each for each in starts}
        self._client.assign(self._names.offsets(starts))

    def poll(self, max_records: int = 500, timeout_s: float = 0.0) -> Sequence[Record]:
        doing = f"cannot read from {self._settings.bootstrap_servers}"
        with translated(doing):
            messages = self._messages(max_records, timeout_s)
        records = []
        for message in messages:
            if (error := message.error()) is None:
                partition = self._partitions[message.topic() or "", message.partition() or 0]
                records.append(record_of(message, partition, message.offset() or 0))
            elif error.code() != KafkaError._PARTITION_EOF:
                self._complained(error)
        if self._trouble and not records:
            trouble, self._trouble = self._trouble, None
            raise as_bus_error(doing, trouble)
        return records

    def range(self, partition: Partition, start: int, end: int) -> Sequence[Record]:
        """The records that a range of a partition holds. Nothing that is yet to come is waited for."""
        doing = f"cannot read {partition.topic}[{partition.number}] from {start} to {end}"
        timeout_s = self._settings.request_timeout_s
        records: list[Record] = []
        with translated(doing):
            low, high = self._client.get_watermark_offsets(self._names.place(partition), timeout_s)
            reached, end = max(start, low), min(end, high)
            if reached < end:
                self.start({partition: reached})
            while reached < end:
                if not (messages := self._messages(1000, timeout_s)):
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
                for message in messages:
                    error, offset = message.error(), message.offset() or 0
                    if error is None:
                        records.append(record_of(message, partition, offset))
                        reached = offset + 1
                    elif error.code() == KafkaError._PARTITION_EOF:
                        reached = end  # the range's last records may be missing: compaction, aborted transactions
                    elif error.code() not in _READING_ON:
                        raise KafkaException(error)
        return [record for record in records if record.offset < end]

    def close(self) -> None:
        self._client.close()

    def _messages(self, count: int, timeout_s: float) -> list[Message]:
        # `consume` alone would wait the whole timeout for a full batch.
        first = self._client.poll(timeout_s)
        return [] if first is None else [first, *self._client.consume(count - 1, 0)]

    def _complained(self, error: KafkaError) -> None:
        if error.code() not in _READING_ON:
            self._trouble = error
