"""Reads messages from Kafka as a member of a consumer group."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NoReturn

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from tradeloop.common.bus.kafka.errors import NOT_A_MEMBER, RECOVERING, as_bus_error, log, translated
from tradeloop.common.bus.kafka.settings import FETCHING, KafkaSettings
from tradeloop.common.bus.kafka.wire import Names, record_of
from tradeloop.common.bus.port import NO_NOTES, BusError, BusUnavailable, Partition, Record

_Callback = Callable[[Collection[Partition]], None]
_Begins = Callable[[Collection[Partition]], Mapping[Partition, int]]
_FENCED = frozenset({KafkaError.FENCED_INSTANCE_ID, KafkaError._FATAL})
"""The static name was given to another member: the one error that is fatal to a consumer, and the client may not say
which fatal error it was."""
_STATIC_SESSION_S, _SESSION_S = 45.0, 10.0
_FENCED_AGAIN_S = 60.0
"""A static name that is taken away twice within this time belongs to two processes."""


class KafkaConsumer:
    """A group member. It keeps positions and pauses itself: librdkafka's own would outlive a rebalance."""

    def __init__(
        self,
        settings: KafkaSettings,
        group: str,
        topics: Sequence[str],
        on_assigned: _Callback | None,
        on_revoked: _Callback | None,
        begins: _Begins,
    ) -> None:
        self._settings, self._names, self._begins = settings, Names(settings.prefix), begins
        self._on_assigned, self._on_revoked = on_assigned, on_revoked
        self._positions: dict[Partition, int] = {}
        """The offset at which each owned partition goes on. The client is always told it: the answer to its own
        question for the first offset, when the partition has been assigned anew meanwhile, sends it back to the first
        one half a second later (librdkafka 2.16, `rd_kafka_toppar_handle_Offset`)."""
        self._paused: set[Partition] = set()
        self._arriving: list[Partition] = []
        """Partitions that the group gave and `on_assigned` has not yet accepted."""
        self._sought = False
        self._trouble: KafkaError | None = None
        self._fenced_at = -_FENCED_AGAIN_S
        self._too_long = False
        """Whether a step took longer than the group allows, since partitions came last."""
        static = {"group.instance.id": settings.group_instance_id} if settings.group_instance_id else {}
        session_s = settings.session_timeout_s or (_STATIC_SESSION_S if static else _SESSION_S)
        self._properties = settings.client(
            {
                **static,
                **FETCHING,
                "group.id": self._names.outer(group),
                "partition.assignment.strategy": "range",
                "max.poll.interval.ms": round(settings.longest_step_s * 1000),
                "session.timeout.ms": round(min(session_s, settings.longest_step_s) * 1000),  # no longer, or it refuses
                "heartbeat.interval.ms": 1000,  # how late a member learns of a rebalance, while its partitions wait
            }
        )
        self._topics = [self._names.outer(topic) for topic in topics]
        self._client = self._member()

    def poll(self, max_records: int = 500, timeout_s: float = 0.0) -> Sequence[Record]:
        if self._arriving:
            self._accept()
        elif self._sought:
            self._start()
        # `consume` alone would wait the whole timeout for a full batch.
        doing = f"cannot read from {self._settings.bootstrap_servers}"
        with translated(doing):
            first = self._client.poll(timeout_s)
            messages = [] if first is None else [first, *self._client.consume(max_records - 1, 0)]
        records = self._records(messages) if messages else []
        if self._trouble and not records:
            trouble, self._trouble = self._trouble, None
            if trouble.code() in _FENCED and self._settings.group_instance_id:
                self._join_again()
            raise as_bus_error(doing, trouble)
        return records

    def commit(self, offsets: Mapping[Partition, int], notes: Mapping[Partition, str] = NO_NOTES) -> None:
        owned = {partition: offset for partition, offset in offsets.items() if partition in self._positions}
        if not owned:
            return
        # Asked first because it gives up in time. The client's commit does not, and would keep `close` waiting too: it
        # waits for as long as the group's coordinator is gone.
        self.committed(owned)
        with translated("cannot commit", ignore=NOT_A_MEMBER, level=logging.WARNING):
            for place in self._client.commit(offsets=self._names.offsets(owned, notes), asynchronous=False):
                if place.error is not None:
                    raise KafkaException(place.error)

    def committed(self, partitions: Collection[Partition]) -> Mapping[Partition, int]:
        return {self._names.partition(each): each.offset for each in self._stored(partitions)}

    def notes(self, partitions: Collection[Partition]) -> Mapping[Partition, str]:
        return {self._names.partition(each): each.metadata for each in self._stored(partitions) if each.metadata}

    def _stored(self, partitions: Collection[Partition]) -> list[TopicPartition]:
        """The places at which the group committed something."""
        with translated("cannot read committed offsets"):
            found = self._client.committed(self._names.places(partitions), timeout=self._settings.request_timeout_s)
            for place in found:
                if place.error is not None:
                    raise KafkaException(place.error)
        return [each for each in found if each.offset >= 0]

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
            self._client.pause(self._names.places(fresh))

    def resume(self, partitions: Collection[Partition]) -> None:
        paused = self._paused.intersection(partitions)
        self._paused -= paused
        if not self._arriving:
            self._client.resume(self._names.places(paused))

    def close(self) -> None:
        try:
            # Not left to the client: once it closes, it answers no questions any more and so no commit succeeds.
            if self._positions:
                self._give_up()
        finally:
            self._client.close()

    def _member(self) -> Consumer:
        client = Consumer(self._properties, error_cb=self._complained, logger=log)
        with translated(f"cannot join group {self._properties['group.id']}"):
            client.subscribe(self._topics, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
        return client

    def _join_again(self) -> NoReturn:
        """Become a new member under the same static name, which Kafka has given to another one. That other is this
        process itself when the answer to its joining was lost on the way, as happens when Kafka restarts.

        Raises `BusUnavailable`, so that the caller comes again; `BusError` when another process has the name.
        """
        name, fenced_before, self._fenced_at = self._settings.group_instance_id, self._fenced_at, time.monotonic()
        self._lost(self._client, [])
        if self._too_long:
            self._fenced_at = -_FENCED_AGAIN_S  # nobody else took the name
        elif self._fenced_at - fenced_before < _FENCED_AGAIN_S:
            raise BusError(f"Kafka: two processes join as group instance {name}: give each a name of its own")
        self._client.close()
        self._client = self._member()
        raise BusUnavailable(f"Kafka: group instance {name} was given to another member: joining again")

    def _records(self, messages: Iterable[Message]) -> list[Record]:
        owned = {(self._names.outer(p.topic), p.number): p for p in self._positions}
        records: list[Record] = []
        ends: dict[Partition, int] = {}
        for message in messages:
            if (error := message.error()) is not None:
                self._complained(error)
                continue
            # A batch is taken in two calls, and a rebalance may come with the second.
            if partition := owned.get((message.topic() or "", message.partition() or 0)):
                offset = message.offset() or 0
                records.append(record_of(message, partition, offset))
                ends[partition] = offset + 1
        self._positions.update(ends)
        return records

    def _assigned(self, client: Consumer, places: list[TopicPartition]) -> None:
        self._arriving = sorted(map(self._names.partition, places))
        self._accept()

    def _accept(self) -> None:
        """Ask `on_assigned`; when it fails nothing is owned, and the next poll asks again."""
        try:
            self._positions = self._starts(self._arriving)
            if self._on_assigned:
                self._on_assigned(self._arriving)
        except BaseException:
            self._positions.clear()
            self._paused.clear()
            self._client.assign([])
            raise
        self._arriving, self._too_long = [], False
        self._start()

    def _starts(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        """The committed offset, or else that of the first record there is."""
        if not partitions:
            return {}
        committed, begins = self.committed(partitions), self._begins(partitions)
        return {each: max(committed.get(each, 0), begins[each]) for each in partitions}

    def _start(self) -> None:
        """Read from the positions held here. A pause outlives an assignment inside the client, hence the dance."""
        self._client.resume(self._names.places(self._paused))
        self._client.assign(self._names.offsets(self._positions))
        self._client.pause(self._names.places(self._paused))
        self._sought = False

    def _revoked(self, client: Consumer, places: list[TopicPartition]) -> None:
        self._give_up()

    def _give_up(self) -> None:
        revoked = sorted(self._positions)
        try:
            if self._on_revoked and revoked:
                self._on_revoked(revoked)
        finally:
            self._release()

    def _lost(self, client: Consumer, places: list[TopicPartition]) -> None:
        lost = sorted(self._positions)
        self._release()  # first, so that a commit in the callback is dropped: another member may be ahead already
        if self._on_revoked and lost:
            self._on_revoked(lost)

    def _release(self) -> None:
        self._client.resume(self._names.places(self._paused))
        self._client.unassign()
        self._positions.clear()
        self._paused.clear()
        self._arriving = []
        self._sought = False

    def _complained(self, error: KafkaError) -> None:
        if error.code() == KafkaError._MAX_POLL_EXCEEDED and not self._too_long:
            self._too_long = True
            log.error(
                "Kafka: a step took longer than %g s, so the partitions went to other members, which handle again what "
                "was not committed: raise KAFKA__LONGEST_STEP_S",
                self._settings.longest_step_s,
            )
        fenced = self._trouble is not None and self._trouble.code() in _FENCED  # the rest then only follows from it
        if error.code() not in RECOVERING and not fenced:
            self._trouble = error
