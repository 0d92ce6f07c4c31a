"""The run loop of every service: consume, handle, publish, flush, commit; retry, dead-letter, drain.

A service is a deterministic function of its input topics. The `Runner` steps it: one call of `step` takes a
batch in and sends its outputs out, so that a pump can step many services in turn in one process, and a
process can step one for ever.

What happens to a record whose handling fails:

- `Unavailable` (a store, the bus): nothing is skipped. The record waits at the head of the line and is tried
  again after a pause; no later record overtakes it and no offset passes it.
- anything else (it cannot be decoded, the handler raises): it goes to `<topic>.retry.<group>`, is tried again
  after a delay, and after the last attempt goes to `<topic>.dlq.<group>` with its error, attempts and original
  position in headers. The partition goes on.
"""

from __future__ import annotations

import signal
import threading
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from types import FrameType
from typing import NamedTuple, Protocol

import structlog

from tradeloop.common.bus import Bus, Consumer, MessageTooLarge, Partition, Record
from tradeloop.common.clock import Clock
from tradeloop.common.errors import Unavailable
from tradeloop.common.messages import Message
from tradeloop.common.topics import CATALOGUE, Topic, dead_letter_topic, event_id, retry_topic, specs, topic_of

log = structlog.get_logger(__name__)

ORIGIN = "tl_origin"
"""Header: topic, partition and offset at which the record first stood, as `topic/partition/offset`."""
ATTEMPT = "tl_attempt"
"""Header: how often it was tried."""
ERROR = "tl_error"
"""Header: the last error, one line."""
NOT_BEFORE = "tl_not_before_ms"
"""Header: when to try again, wall-clock milliseconds since the epoch."""


class Position(NamedTuple):
    """Where a record stands."""

    partition: Partition
    offset: int


class Service(Protocol):
    """What a runner needs of a service. Handling the same message again must give the same outputs again."""

    @property
    def name(self) -> str:
        """Also the consumer group."""
        ...

    @property
    def consumes(self) -> tuple[type[Message], ...]:
        """The message types it reads."""
        ...

    def handle(self, message: Message, position: Position) -> Iterable[Message]:
        """React to one message; what comes back is published, in order.

        Raise `Unavailable` to be called again later with the same message and unchanged state.
        """
        ...

    def advance(self) -> Iterable[Message]:
        """Work that no message starts, such as the next frame of a feed. Called once a step."""
        ...

    def waiting(self) -> bool:
        """Whether `advance` has work left that only time will free, such as a replay at a given speed."""
        ...

    def held(self) -> Collection[Position]:
        """Messages that were taken in but wait for others; their offsets are not committed."""
        ...

    def assigned(self, committed: Mapping[Partition, int]) -> Mapping[Partition, int]:
        """Partitions arrive. `committed` has the position from which each goes on, where there is one.

        Gives back the positions that must be earlier, because what the service stores is older than what the
        group committed: a database restored from a backup. May raise `Unavailable`, to be asked again.
        """
        ...

    def revoked(self) -> None:
        """All partitions are gone, perhaps to another process: forget everything that was kept of their messages.

        What comes back comes with the messages that were not committed.
        """
        ...

    def before_commit(self, offsets: Mapping[Partition, int]) -> None:
        """Make every effect durable that the messages handled so far have; `offsets` are committed next.

        May raise `Unavailable`.
        """
        ...

    def close(self) -> None:
        """Release what the service holds."""
        ...


class Handler:
    """A service without held messages, feeds or buffered effects: subclasses say `name`, `consumes`, `handle`."""

    def advance(self) -> Iterable[Message]:
        return ()

    def waiting(self) -> bool:
        return False

    def held(self) -> Collection[Position]:
        return ()

    def assigned(self, committed: Mapping[Partition, int]) -> Mapping[Partition, int]:
        return {}

    def revoked(self) -> None:
        """Nothing is kept."""

    def before_commit(self, offsets: Mapping[Partition, int]) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """Nothing is held open."""


@dataclass(frozen=True, slots=True)
class RunPolicy:
    """How a runner batches, commits and retries."""

    max_records: int = 500
    """Records of one poll."""
    max_held: int = 1000
    """Messages of one partition that may wait, for others or for their next attempt, before it is paused."""
    commit_interval_s: float = 0.5
    attempts: int = 3
    """How often a message is handled before it is dead-lettered."""
    retry_delay_s: float = 1.0
    """Before the second attempt; doubles with each further one."""
    unavailable_delay_s: float = 0.5
    """Pause before a call that found something unavailable is tried again."""


@dataclass(slots=True)
class Counters:
    """What a runner did so far."""

    handled: int = 0
    published: int = 0
    retried: int = 0
    dead_letters: int = 0


class Runner:
    """Steps one service over one bus. Not shared between threads."""

    def __init__(self, service: Service, bus: Bus, clock: Clock, policy: RunPolicy | None = None) -> None:
        self.service, self._clock, self._policy = service, clock, policy or RunPolicy()
        self.counters = Counters()
        topics = [topic_of(message).name for message in service.consumes]
        retries = [retry_topic(topic, service.name) for topic in topics]
        self._origin_of = dict(zip(retries, topics, strict=True))
        bus.create_topics(specs({service.name: topics}))
        self._producer = bus.producer()
        self._consumer: Consumer | None = None
        if topics:
            self._consumer = bus.consumer(
                service.name, [*topics, *retries], on_assigned=self._assigned, on_revoked=self._revoked
            )
        self._backlog: deque[Record] = deque()
        self._delayed: list[tuple[int, Record]] = []
        self._next_offset: dict[Partition, int] = {}
        self._committed: dict[Partition, int] = {}
        self._commit_due = 0.0
        self._blocked_until = 0.0
        self._paused: set[Partition] = set()

    @property
    def waiting(self) -> bool:
        """Whether there is work that only time will free: a retry not yet due, a slow feed, something unavailable."""
        return bool(self._backlog or self._delayed) or self.service.waiting()

    def step(self, timeout_s: float = 0.0) -> int:
        """One turn: take a batch, handle it, publish, commit when due. Returns how many messages went in or out.

        Raises only what is nobody's message's fault: `BusError` from a misconfigured bus, programming errors of
        the runner itself.
        """
        before = self.counters.handled + self.counters.published
        if self._clock.monotonic() < self._blocked_until:
            return 0
        try:
            self._requeue_due()
            if self._consumer is not None and not self._backlog:
                self._backlog.extend(self._consumer.poll(self._policy.max_records, timeout_s))
            while self._backlog:
                self._take(self._backlog[0])
                self._backlog.popleft()
            self._publish(self.service.advance())
            self._regulate()
            if self._clock.monotonic() >= self._commit_due:
                self.commit()
        except Unavailable as error:
            self._blocked_until = self._clock.monotonic() + self._policy.unavailable_delay_s
            log.warning(
                "unavailable", service=self.service.name, error=str(error), retry_s=self._policy.unavailable_delay_s
            )
        return self.counters.handled + self.counters.published - before

    def commit(self) -> None:
        """Flush outputs, make effects durable, then commit the offsets of everything settled.

        Raises `Unavailable`; then nothing is committed, and the next call tries again.
        """
        self._commit_due = self._clock.monotonic() + self._policy.commit_interval_s
        self._producer.flush()
        news = {p: offset for p, offset in self._settled().items() if self._committed.get(p) != offset}
        self.service.before_commit(news)
        if self._consumer is not None and news:
            self._consumer.commit(news)
            self._committed.update(news)

    def run(self, stop: threading.Event) -> None:
        """Step until told to stop, then finish what was taken, commit and leave."""
        log.info("started", service=self.service.name)
        while not stop.is_set():
            self.step(timeout_s=0.1)
        self.close()
        log.info("stopped", service=self.service.name, handled=self.counters.handled)

    def close(self) -> None:
        """Commit and leave the group. What is unavailable now is redelivered to the next owner."""
        try:
            self.commit()
        except Unavailable as error:
            log.warning("not committed at close", service=self.service.name, error=str(error))
        if self._consumer is not None:
            self._consumer.close()
        self._producer.close()
        self.service.close()

    def _take(self, record: Record) -> None:
        partition = Partition(record.topic, record.partition)
        self._next_offset[partition] = max(self._next_offset.get(partition, 0), record.offset + 1)
        not_before_ms = int(record.headers.get(NOT_BEFORE, "0"))
        if not_before_ms > self._now_ms():
            self._delayed.append((not_before_ms, record))
            return
        topic = self._origin_of.get(record.topic, record.topic)
        try:
            message = CATALOGUE[topic].message.model_validate_json(record.value)
            outputs = list(self.service.handle(message, _position(record)))
            self._publish(outputs)
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001  whatever a message does to its handler, the partition goes on
            self._set_aside(topic, record, error)
        self.counters.handled += 1

    def _publish(self, outputs: Iterable[Message]) -> None:
        for message in outputs:
            topic = topic_of(type(message))
            self._producer.publish(
                topic.name, message.key, message.encode(), headers_of(message, topic, self.service.name)
            )
            self.counters.published += 1

    def _set_aside(self, topic: str, record: Record, error: Exception) -> None:
        attempt = int(record.headers.get(ATTEMPT, "0")) + 1
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        headers = {
            **record.headers,
            ORIGIN: record.headers.get(ORIGIN, f"{topic}/{record.partition}/{record.offset}"),
            ATTEMPT: str(attempt),
            ERROR: cause,
        }
        if attempt < self._policy.attempts:
            delay_s = self._policy.retry_delay_s * 2 ** (attempt - 1)
            headers[NOT_BEFORE] = str(int(self._now_ms() + delay_s * 1000))
            target = retry_topic(topic, self.service.name)
            self.counters.retried += 1
        else:
            target = dead_letter_topic(topic, self.service.name)
            self.counters.dead_letters += 1
        log.error(
            "message failed", service=self.service.name, origin=headers[ORIGIN], attempt=attempt, to=target, error=cause
        )
        self._send_aside(target, record, headers)

    def _send_aside(self, target: str, record: Record, headers: Mapping[str, str]) -> None:
        try:
            self._producer.publish(target, record.key, record.value, headers)
        except MessageTooLarge:
            # Its headers pushed it over the limit. What it was and where it stands must not be lost with it.
            self._producer.publish(
                target, record.key, b"", {**headers, ERROR: f"{headers[ERROR]} (body too large, see origin)"}
            )
        self._producer.flush()

    def _requeue_due(self) -> None:
        """Move records of the retry topics whose delay has passed to the line."""
        if not self._delayed:
            return
        now_ms = self._now_ms()
        due = [record for at, record in self._delayed if at <= now_ms]
        if due:
            self._delayed = [(at, record) for at, record in self._delayed if at > now_ms]
            self._backlog.extend(due)

    def _now_ms(self) -> float:
        return self._clock.now().timestamp() * 1000

    def _regulate(self) -> None:
        """Pause each partition of which too much waits, and go on with it when half of that is settled."""
        held = self.service.held()
        if self._consumer is None or not (self._paused or len(held) + len(self._delayed) >= self._policy.max_held):
            return
        waiting = Counter(position.partition for position in held)
        waiting.update(_position(record).partition for _, record in self._delayed)
        full, half = self._policy.max_held, self._policy.max_held // 2
        paused = {p for p, count in waiting.items() if count >= full or (count > half and p in self._paused)}
        self._consumer.pause(paused - self._paused)
        self._consumer.resume(self._paused - paused)
        self._paused = paused

    def _settled(self) -> dict[Partition, int]:
        """Per partition the offset before which everything is settled."""
        offsets = dict(self._next_offset)
        waiting = [_position(record) for record in self._backlog]
        waiting += [_position(record) for _, record in self._delayed]
        for position in (*self.service.held(), *waiting):
            if position.offset < offsets.get(position.partition, 0):
                offsets[position.partition] = position.offset
        return offsets

    def _assigned(self, partitions: Collection[Partition]) -> None:
        if self._consumer is None:
            raise AssertionError("partitions came before their consumer")
        committed = self._consumer.committed(partitions)
        for partition, offset in self.service.assigned(committed).items():
            log.warning(
                "reads again what was committed: the store is older",
                service=self.service.name,
                partition=f"{partition.topic}/{partition.number}",
                committed=committed.get(partition),
                reads_from=offset,
            )
            self._consumer.seek(partition, offset)

    def _revoked(self, partitions: Collection[Partition]) -> None:
        """Let go of everything: a rebalance revokes all that a member has, even what it is given again."""
        try:
            self.commit()
        except Unavailable as error:
            log.warning("not committed, the next owner repeats it", service=self.service.name, error=str(error))
        self.service.revoked()
        self._backlog.clear()
        self._delayed.clear()
        self._paused.clear()
        self._next_offset.clear()
        self._committed.clear()


def pump(runners: Sequence[Runner], stop: threading.Event | None = None) -> None:
    """Step the runners in turn until none has anything left to do, or told to stop."""
    while stop is None or not stop.is_set():
        if not sum(runner.step() for runner in runners):
            if not any(runner.waiting for runner in runners):
                return
            threading.Event().wait(0.01)


def serve(runner: Runner, stop: threading.Event | None = None) -> None:
    """Run until SIGTERM or SIGINT, then drain: finish what was taken, flush, commit, leave the group.

    The signals set `stop`, for a service that can cut short what it is doing.
    """
    stop = stop or threading.Event()

    def request_stop(signum: int, frame: FrameType | None) -> None:
        log.info("stopping", signal=signal.Signals(signum).name)
        stop.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, request_stop)
    runner.run(stop)


def headers_of(message: Message, topic: Topic[Message], source: str) -> dict[str, str]:
    """CloudEvents attributes in binary mode, and a W3C trace context that follows from the event.

    All messages about one bar of one universe share a trace id, so the chain from bar to reward is one trace.
    """
    identity = event_id(message)
    headers = {
        "ce_specversion": "1.0",
        "ce_id": identity,
        "ce_type": topic.name,
        "ce_source": f"/tradeloop/{source}",
        "content-type": "application/json",
        "traceparent": f"00-{_trace_id(message.trace)}-{identity[:8]}{identity[9:13]}{identity[14:18]}-01",
    }
    if (occurred := message.occurred) is not None:
        headers["ce_time"] = occurred.isoformat()
    return headers


@lru_cache(maxsize=4096)
def _trace_id(trace: str) -> str:
    return blake2b(trace.encode(), digest_size=16).hexdigest()


def _position(record: Record) -> Position:
    return Position(Partition(record.topic, record.partition), record.offset)


class Held:
    """The positions of messages that wait, counted: several may wait for the same message."""

    def __init__(self) -> None:
        self._count: dict[Position, int] = {}

    def hold(self, position: Position) -> None:
        self._count[position] = self._count.get(position, 0) + 1

    def release(self, position: Position) -> None:
        left = self._count[position] - 1
        if left:
            self._count[position] = left
        else:
            del self._count[position]

    def positions(self) -> Collection[Position]:
        """What is held now, as a view."""
        return self._count.keys()
