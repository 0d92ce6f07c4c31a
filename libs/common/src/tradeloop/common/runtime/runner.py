"""The run loop of every service: consume, handle, publish, flush, commit; retry, dead-letter, drain.

A service is a deterministic function of its input topics. The `Runner` steps it: one call of `step` takes a
batch in and sends its outputs out, so that a pump can step many services in turn in one process, and a
process can step one for ever.

What happens to a record whose handling fails:

- `Unavailable` (a store, the bus): nothing is skipped. The record waits at the head of the line and is tried
  again after a pause; no later record overtakes it and no offset passes it.
- anything else (it cannot be decoded, the handler raises, an output is too large): it goes to
  `<topic>.retry.<group>`, is tried again after a delay, and after the last attempt goes to `<topic>.dlq.<group>`
  with its error, attempts and original position in headers. The partition goes on.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence

import structlog

from tradeloop.common.bus.port import (
    Bus,
    BusError,
    BusUnavailable,
    Consumer,
    LogPosition,
    MessageTooLarge,
    Partition,
    Record,
    partition_for,
)
from tradeloop.common.clock import Clock
from tradeloop.common.errors import Unavailable, UserError
from tradeloop.common.messages import Message
from tradeloop.common.messages.topics import CATALOGUE, dead_letter_topic, retry_topic, specs, topic_of
from tradeloop.common.runtime.counters import Counters
from tradeloop.common.runtime.headers import ATTEMPT, BODY, ERROR, INTERNAL, KIND, NOT_BEFORE, ORIGIN, USER
from tradeloop.common.runtime.outgoing import Outgoing
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.readback import message_of
from tradeloop.common.runtime.service import RequestFailed, Service
from tradeloop.common.runtime.standing import Standing

log = structlog.get_logger(__name__)


class NoEffect(Exception):
    """A retry did nothing, although the first attempt failed: the handler kept a part of what it had done."""


class Runner:
    """Steps one service over one bus. Not shared between threads, but for what it tells of itself: the attributes
    without an underscore, each of which is replaced and never changed in place, and `not_ready`."""

    def __init__(self, service: Service, bus: Bus, clock: Clock, policy: RunPolicy | None = None) -> None:
        self.service, self.bus, self.clock, self._policy = service, bus, clock, policy or RunPolicy()
        self.counters = Counters()
        self.active = clock.monotonic()
        """When the last step or message began, on the monotonic clock."""
        self.assigned: frozenset[Partition] | None = None if service.consumes else frozenset()
        """The partitions that it reads; None while it waits for the group to say."""
        self.committed: Mapping[Partition, int] = {}
        """The offset at which each assigned partition would be read again; one never committed is left out."""
        self.pending = 0
        """How many messages the service waits with."""
        self.standings: Sequence[Standing] = ()
        """Where the portfolios of this process stood at the last check."""
        self.tallies: Mapping[tuple[str, str], int] = {}
        """What the service had counted at the last check."""
        self.last_message: Message | None = None
        self._trouble: tuple[str, ...] = ("it has not started",)
        topics = [topic_of(message).name for message in service.consumes]
        retries = [retry_topic(topic, service.name) for topic in topics]
        self.topics: Sequence[str] = (*topics, *retries)
        self._origin_of = dict(zip(retries, topics, strict=True))
        bus.create_topics(specs({service.name: topics}))
        self._consumer: Consumer | None = None
        if topics:
            self._consumer = bus.consumer(
                service.name, self.topics, on_assigned=self._assigned, on_revoked=self._revoked
            )
        self._out = Outgoing(service, bus, self.counters)
        self._backlog: deque[Record] = deque()
        self._delayed: list[tuple[int, Record]] = []
        self._next_offset: dict[Partition, int] = {}
        self._commit_due = 0.0
        self._check_due = 0.0
        self._look_due = 0.0
        self._blocked_until = 0.0
        self._paused: set[Partition] = set()
        """Partitions that are paused because too many of their messages are pending."""
        self._idle: set[Partition] = set()
        """Partitions of the retry topics that hold nothing, half of all: paused, since a broker looks into each one
        that is read whenever any of them has news."""

    @property
    def waiting(self) -> bool:
        """Whether there is work that only time will free: a retry not yet due, a slow feed, something unavailable."""
        return bool(self._backlog or self._delayed) or self.service.waiting()

    def step(self, timeout_s: float = 0.0) -> int:
        """One turn: take a batch, handle it, publish, commit when due. Returns how many messages went in or out, and
        one more where the service is busy with a long request.

        Raises only what is nobody's message's fault: `BusError` from a misconfigured bus, programming errors of
        the runner itself.
        """
        before = self.counters.messages
        self.active = self.clock.monotonic()
        if self.active >= self._look_due:
            self._look()
        if self.active < self._blocked_until:
            return 0
        try:
            try:
                self._turn(timeout_s)
            finally:
                self._out.hasten()  # whatever stops a message, what came of those before it does not wait
            self._regulate()
            if self.clock.monotonic() >= self._commit_due:
                self.commit()
            if self.clock.monotonic() >= self._check_due:
                self._check()
        except Unavailable as error:
            self._trouble = (str(error),)
            self._check_due = 0.0  # what was unavailable is ready again only when the service has said so
            self._blocked_until = self.clock.monotonic() + self._policy.unavailable_delay_s
            log.warning(
                "unavailable", service=self.service.name, error=str(error), retry_s=self._policy.unavailable_delay_s
            )
        return self.counters.messages - before + self.service.busy()

    def not_ready(self) -> Sequence[str]:
        """The obstacles to handling messages now, in words; none when it is ready."""
        joining = ("waits for its partitions",) if self.assigned is None else ()
        return (*joining, *self._trouble)

    def commit(self) -> None:
        """Flush outputs, make effects durable, then commit the offsets of everything that is finished.

        Raises `Unavailable`; then nothing is committed, and the next call tries again.
        """
        self._commit_due = self.clock.monotonic() + self._policy.commit_interval_s
        if self._out.lost:
            raise BusUnavailable(f"{self.service.name}: outputs were not stored, their messages are handled again")
        self._out.flush()
        news = {p: offset for p, offset in self._finished().items() if self.committed.get(p) != offset}
        self.service.before_commit(news)
        if self._consumer is not None and news:
            self._consumer.commit(news)
            self.committed = {**self.committed, **news}

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
        self._out.close()
        self.service.close()

    def _turn(self, timeout_s: float) -> None:
        if self._out.lost:
            self._rewind()
        self._requeue_due()
        if self._consumer is not None and not self._backlog:
            timeout_s = 0.0 if self.service.busy() else timeout_s
            self._backlog.extend(self._consumer.poll(self._policy.max_records, timeout_s))
        while self._backlog:
            self._take(self._backlog[0])
            self._backlog.popleft()
        try:
            for message in self.service.advance():
                self._out.offer(message)
        except RequestFailed as failed:
            self._give_up(failed)

    def _give_up(self, failed: RequestFailed) -> None:
        """Set a message aside whose work failed in slices, after it was handled."""
        (topic, number), offset = failed.position
        cause = failed.__cause__ if isinstance(failed.__cause__, Exception) else failed
        for record in self.bus.read(failed.position.partition, offset, offset + 1):
            self._set_aside(self._origin_of.get(topic, topic), record, cause)
            return
        log.error(
            "a request failed that the bus no longer holds", origin=f"{topic}/{number}/{offset}", error=str(cause)
        )

    def _take(self, record: Record) -> None:
        partition = Partition(record.topic, record.partition)
        self._next_offset[partition] = max(self._next_offset.get(partition, 0), record.offset + 1)
        topic = self._origin_of.get(record.topic, record.topic)
        if topic != record.topic and (not_before_ms := _number(record, NOT_BEFORE)) > self._now_ms():
            self._delayed.append((not_before_ms, record))
            return
        self.active = self.clock.monotonic()
        try:
            self.last_message = message = message_of(record, CATALOGUE[topic].message)
            outputs = 0
            for output in self.service.handle(message, _position(record)):
                self._out.answer(output)
                outputs += 1
            if topic != record.topic and not outputs and self._had_no_effect(message, _position(record)):
                raise NoEffect("the retry had no effect, although the attempt before it failed")
        except Exception as error:
            # Whatever a message does to its handler, the partition goes on. What is the fault of no message stops it.
            if isinstance(error, (Unavailable, BusError)) and not isinstance(error, MessageTooLarge):
                raise
            self._set_aside(topic, record, error)
        self.counters.took(self.clock.monotonic() - self.active)

    def _had_no_effect(self, message: Message, position: LogPosition) -> bool:
        return position not in self.service.pending() and self.service.answers(message)

    def _set_aside(self, topic: str, record: Record, error: Exception) -> None:
        retried = topic != record.topic  # who else writes such headers gives no orders here
        attempt = _number(record, ATTEMPT) + 1 if retried else 1
        users = isinstance(error, UserError)
        cause = " ".join((str(error) if users else f"{type(error).__name__}: {error}").split())[:500]
        here = f"{record.topic}/{record.partition}/{record.offset}"
        headers = {
            **record.headers,
            ORIGIN: record.headers.get(ORIGIN, here) if retried else here,
            ATTEMPT: str(attempt),
            ERROR: cause,
            KIND: USER if users else INTERNAL,
        }
        again = attempt < self._policy.attempts
        if again:
            delay_s = self._policy.retry_delay_s * 2 ** (attempt - 1)
            headers[NOT_BEFORE] = str(int(self._now_ms() + delay_s * 1000))
        target = (retry_topic if again else dead_letter_topic)(topic, self.service.name)
        self._out.flush()  # what it reports below is then about this message alone
        try:
            self._out.send(target, record.key, record.value, headers)
            self._out.flush()
        except MessageTooLarge:
            # With these headers, that is. There is no use in trying it without its body, which still stands elsewhere.
            again, target = False, dead_letter_topic(topic, self.service.name)
            self._out.send(target, record.key, b"", {**headers, BODY: headers[ORIGIN]})
            self._out.flush()
        if again:
            self.counters.retried += 1
            self._wake({partition for partition in self._idle if partition.topic == target})
        else:
            self.counters.dead_letters += 1
        log.error(
            "message failed", service=self.service.name, origin=headers[ORIGIN], attempt=attempt, to=target, error=cause
        )

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
        return self.clock.now().timestamp() * 1000

    def _check(self) -> None:
        if self._trouble and self.topics:
            self.bus.partitions(self.topics[0])  # an idle consumer cannot tell a bus that is away from a quiet one
        self._rest()
        self._trouble = tuple(self.service.not_ready())
        self._check_due = self.clock.monotonic() + self._policy.check_interval_s

    def _look(self) -> None:
        """See where the portfolios stand, whatever is unavailable."""
        self._look_due = self.active + self._policy.check_interval_s
        self.standings, self.tallies = tuple(self.service.standings()), dict(self.service.tallies())

    def _rest(self) -> None:
        """Pause the partitions of retry topics that hold nothing more, and go on with those that others wrote to."""
        if self._consumer is None:
            return
        mine = {partition for partition in self.assigned or () if partition.topic in self._origin_of}
        ends: dict[Partition, int] = {}
        for topic in {partition.topic for partition in mine}:
            ends |= self.bus.end_offsets(topic)
        done = {p for p in mine if self._next_offset.get(p, self.committed.get(p, 0)) >= ends[p]}
        self._wake(self._idle - done)
        self._consumer.pause(done - self._idle)
        self._idle |= done

    def _wake(self, partitions: Collection[Partition]) -> None:
        if self._consumer is not None:
            self._consumer.resume(self._idle.intersection(partitions) - self._paused)
        self._idle.difference_update(partitions)

    def _regulate(self) -> None:
        """Pause each partition with too many pending messages; resume it when half of them are finished."""
        pending = self.service.pending()
        self.pending = len(pending)
        if self._consumer is None or not (
            self._paused or len(pending) + len(self._delayed) >= self._policy.max_pending
        ):
            return
        waiting = pending.by_partition.copy()
        waiting.update(_position(record).partition for _, record in self._delayed)
        full, half = self._policy.max_pending, self._policy.max_pending // 2
        paused = {p for p, count in waiting.items() if count >= full or (count > half and p in self._paused)}
        self._consumer.pause(paused - self._paused)
        self._consumer.resume(self._paused - paused - self._idle)
        self._paused = paused

    def _finished(self) -> dict[Partition, int]:
        """The offset, per partition, before which everything is finished."""
        offsets = dict(self._next_offset)
        waiting = [_position(record) for record in self._backlog]
        waiting += [_position(record) for _, record in self._delayed]
        for position in (*self.service.pending(), *waiting):
            if position.offset < offsets.get(position.partition, 0):
                offsets[position.partition] = position.offset
        return offsets

    def _assigned(self, partitions: Collection[Partition]) -> None:
        if self._consumer is None:
            raise AssertionError("partitions came before their consumer")
        self.assigned, self.committed = frozenset(partitions), {}
        if not partitions:
            return  # other members have them all
        committed = self._consumer.committed(partitions)
        for partition, offset in self.service.assigned(committed, self._owner(partitions)).items():
            log.warning(
                "reads again what was committed: the store is older",
                service=self.service.name,
                partition=f"{partition.topic}/{partition.number}",
                committed=committed.get(partition),
                reads_from=offset,
            )
            self._consumer.seek(partition, offset)
        self.committed = committed

    def _owner(self, partitions: Collection[Partition]) -> Callable[[str], bool]:
        """Tells whether the messages of a key come to this process. Topics of equal keys have equal counts."""
        topic = self.topics[0]
        count = self.bus.partitions(topic)
        numbers = frozenset(partition.number for partition in partitions if partition.topic == topic)
        return lambda key: partition_for(key, count) in numbers

    def _revoked(self, partitions: Collection[Partition]) -> None:
        """Let go of everything: a rebalance revokes all that a member has, even what it is given again."""
        try:
            self.commit()
        except Unavailable as error:
            log.warning("not committed, the next owner repeats it", service=self.service.name, error=str(error))
        self.assigned, self.committed = None, {}
        self._paused.clear()
        self._idle.clear()
        self._forget()

    def _rewind(self) -> None:
        """Go back to what was committed, as after a crash: some of what was published since is lost."""
        if self._consumer is not None:
            partitions = self._consumer.assignment()
            committed = self._consumer.committed(partitions)
            begins: dict[Partition, int] = {}
            for topic in {partition.topic for partition in partitions}:
                begins |= self.bus.begin_offsets(topic)
            for partition in partitions:
                self._consumer.seek(partition, committed.get(partition, begins[partition]))
            self._consumer.resume(self._paused | self._idle)
            self._paused.clear()
            self._idle.clear()
            self._forget()
            if partitions:
                self._assigned(partitions)
        self._out.lost = False
        log.warning("handles again what was not committed", service=self.service.name)

    def _forget(self) -> None:
        """Return to the state of a new runner."""
        self.service.revoked()
        self._backlog.clear()
        self._delayed.clear()
        self._next_offset.clear()
        self._out.lost = False


def pump(runners: Sequence[Runner], stop: threading.Event | None = None) -> None:
    """Step the runners in turn until none has anything left to do, or told to stop."""
    while stop is None or not stop.is_set():
        if not sum(runner.step() for runner in runners):
            if not any(runner.waiting for runner in runners):
                return
            threading.Event().wait(0.01)


def _number(record: Record, header: str) -> int:
    """The number in one of a record's headers; 0 where there is none, or something else."""
    text = record.headers.get(header, "")
    return int(text) if text.isdecimal() and len(text) < 20 else 0


def _position(record: Record) -> LogPosition:
    return LogPosition(Partition(record.topic, record.partition), record.offset)
