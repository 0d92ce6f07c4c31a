"""The run loop of every service: consume, handle, publish, flush, commit; retry, dead-letter, drain.

The `Runner` steps a service: one call of `step` takes a batch in and sends its outputs out, so that a pump can step
many services in turn in one process, and a process can step one for ever.

What happens to a record whose handling fails:

- `Unavailable` (a store, the bus): nothing is skipped. The record waits at the head of the line and is tried again
  after a pause; no later record overtakes it and no offset passes it.
- anything else (it cannot be decoded, the handler raises, an output is too large): it goes to `<topic>.retry.<group>`,
  is tried again after a delay, and after the last attempt goes to `<topic>.dlq.<group>`, with its error, attempts and
  original position in headers. The partition goes on.
- many different records in a row fail alike: that is nobody's fault but as if something were unavailable (`Breaker`).
- the process dies at it: whoever goes on handles alone what may have been in hand, and dead-letters the record at
  which it dies again and again (`Progress`).
"""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress

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
)
from tradeloop.common.clock import Clock
from tradeloop.common.errors import Unavailable
from tradeloop.common.messages import Message
from tradeloop.common.messages.topics import CATALOGUE, specs, topic_of
from tradeloop.common.runtime.assignment import bounds, check_counts, owner, tell_of_lost
from tradeloop.common.runtime.breaker import Breaker
from tradeloop.common.runtime.counters import Counters
from tradeloop.common.runtime.flow import Flow
from tradeloop.common.runtime.handling import Handling
from tradeloop.common.runtime.metrics import Figure
from tradeloop.common.runtime.outage import Outage
from tradeloop.common.runtime.outgoing import Outgoing
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.progress import EMPTY_NOTE, Progress
from tradeloop.common.runtime.readback import message_of
from tradeloop.common.runtime.retries import Lethal, NoEffect, Retries
from tradeloop.common.runtime.service import RequestFailed, Service
from tradeloop.common.runtime.standing import FeedStanding, Standing
from tradeloop.common.runtime.traces import Tracer

log = structlog.get_logger(__name__)


class Runner:
    """Steps one service over one bus. Not shared between threads, but for what it tells of itself: the attributes
    without an underscore, each of which is replaced and never changed in place, and `not_ready`."""

    def __init__(self, service: Service, bus: Bus, clock: Clock, policy: RunPolicy | None = None) -> None:
        """Raises `UserError` when the topics of the service do not fit together."""
        self.service, self.bus, self.clock, self._policy = service, bus, clock, policy or RunPolicy()
        self.counters = Counters()
        self.active = clock.monotonic()
        """When the last step or message began, or a long one last said that it goes on, on the monotonic clock."""
        self.assigned: frozenset[Partition] | None = None if service.consumes else frozenset()
        """The partitions that it reads; None while it waits for the group to say."""
        self.pending = 0  # messages that the service waits with
        self.standings: Sequence[Standing] = ()
        self.feeds: Sequence[FeedStanding] = ()
        """Where the portfolios and the live feeds of this process stood at the last check."""
        self.tallies: Mapping[tuple[str, str], int] = {}
        self.figures: Sequence[Figure] = ()
        """The counts and other metrics of the service at the last check."""
        self.lost: Mapping[Partition, int] = {}
        """How many messages retention took before they were finished, since this process started."""
        self.last_message: Message | None = None
        self._trouble: tuple[str, ...] = ("it has not started",)
        topics = [topic_of(message).name for message in service.consumes]
        bus.create_topics(specs({service.name: topics}))
        self._handling = Handling(service.name, clock)
        self._out = Outgoing(service, bus, self.counters, self._handling)
        self._retries = Retries(service, self._out, clock, self._policy, self.counters)
        self.topics: Sequence[str] = (*topics, *self._retries.topics)
        self.dead_letter_topics = self._retries.dead_letter_topics
        check_counts(service.name, bus, self.topics)
        self._progress = Progress(self._policy.max_uncommitted + self._policy.max_records)
        self._breaker = Breaker(service.name, clock, self._policy)
        self._outage = Outage(service.name, clock, self._policy.reminder_s)
        self._consumer: Consumer | None = None
        self._flow: Flow | None = None
        if topics:
            self._consumer = bus.consumer(
                service.name, self.topics, on_assigned=self._assigned, on_revoked=self._revoked
            )
            self._flow = Flow(bus, self._consumer, self._policy)
        self._backlog: deque[Record] = deque()
        self._commit_due = self._check_due = self._look_due = self._blocked_until = 0.0
        self._closing = self._gave_up = False
        service.beat = self._beat

    @property
    def committed(self) -> Mapping[Partition, int]:
        """The offset at which each assigned partition would be read again; one never committed is left out."""
        return self._progress.committed

    @property
    def waiting(self) -> bool:
        """Whether there is work that only time will free: a retry not yet due, a slow feed, something unavailable."""
        return bool(self._backlog or self._retries.delayed) or self.service.waiting()

    def runs(self, manifest: str) -> None:
        """Name this manifest in each record from now on."""
        self._handling.manifest = manifest

    def trace(self, tracer: Tracer) -> None:
        """Record spans from now on."""
        self._handling.tracer = tracer

    def step(self, timeout_s: float = 0.0) -> int:
        """One turn: take a batch, handle it, publish, commit when due. Returns the messages in and out, 1 more if busy.

        Raises only what is no message's fault: `BusError` from a misconfigured bus, errors of the runner itself.
        """
        before = self.counters.messages
        self.active = self.clock.monotonic()
        self._look()
        if self.active < self._blocked_until:
            return 0
        try:
            try:
                self._turn(timeout_s)
            finally:
                self._out.hasten()  # whatever stops a message, what came of those before it does not wait
            self._regulate()
            if self._progress.stain or self.clock.monotonic() >= self._commit_due:
                self.commit()
            if self.clock.monotonic() >= self._check_due:
                self._check()
        except Exception as error:
            self._absolve()
            if not isinstance(error, Unavailable):
                raise
            self._trouble = (str(error),)
            self._check_due = 0.0  # what was unavailable is ready again only when the service has said so
            self._blocked_until = self.clock.monotonic() + self._policy.unavailable_delay_s
            self._outage.goes_on(error)
        return self.counters.messages - before + self.service.busy()

    def not_ready(self) -> Sequence[str]:
        """The obstacles to handling messages now, in words; none when it is ready."""
        return (*(("waits for its partitions",) if self.assigned is None else ()), *self._trouble)

    def commit(self, leaving: bool = False) -> None:
        """Flush outputs, make effects durable, then commit the offsets of everything that is finished.

        `leaving` says that this member ends in good order. Raises `Unavailable`; then nothing is committed, and the
        next call tries again.
        """
        self._commit_due = self.clock.monotonic() + self._policy.commit_interval_s
        if self._out.lost:
            raise BusUnavailable(f"{self.service.name}: outputs were not stored, their messages are handled again")
        self._out.flush(self._policy.closing_s if self._closing else self._policy.flush_s)
        waiting = [record.position for record in (*self._backlog, *(record for _, record in self._retries.delayed))]
        offsets, notes = self._progress.news((*self.service.pending(), *waiting), leaving)
        self.service.before_commit(offsets)
        if self._consumer is not None and offsets:
            self._consumer.commit(offsets, notes)
        self._progress.stored(offsets, notes)

    def run(self, stop: threading.Event) -> None:
        """Step until told to stop, then finish what was taken, commit and leave."""
        log.info("started", service=self.service.name)
        ready = False
        while not stop.is_set():
            self.step(timeout_s=0.1)
            if not ready and not self.not_ready():
                ready = True
                gc.freeze()  # what is there by now stays, and need not be looked through for garbage again and again
            if (pause_s := self._blocked_until - self.clock.monotonic()) > 0:
                stop.wait(min(pause_s, self._policy.unavailable_delay_s))
        self.close()
        log.info("stopped", service=self.service.name, handled=self.counters.handled)

    def close(self) -> None:
        """Commit and leave the group. What is unavailable now is redelivered to the next owner."""
        self._closing = True
        try:
            self.commit(leaving=True)
        except Unavailable as error:
            self._gave_up = True  # asked once more it would only take as long again
            log.warning("not committed at close", service=self.service.name, error=str(error))
        if self._consumer is not None:
            self._consumer.close()
        self._out.close()
        self.service.close()

    def _turn(self, timeout_s: float) -> None:
        self._handling.enters()
        if self._out.lost:
            self._rewind()
        if self._progress.uncommitted >= self._policy.max_uncommitted:
            self.commit()
        self._backlog.extend(self._retries.due())
        if self._consumer is not None and not self._backlog:
            timeout_s = 0.0 if self.service.busy() else timeout_s
            self._backlog.extend(self._consumer.poll(self._policy.max_records, timeout_s))
        self._mark()
        while self._backlog:
            self._take(self._backlog[0])
            self._backlog.popleft()
        self._out.alone = False
        self._advance()

    def _advance(self) -> None:
        self._handling.works()
        try:
            for message in self.service.advance():
                self._out.offer(message)
        except RequestFailed as failed:
            for record in failed.records(self.bus):
                self._set_aside(record, failed.cause, None)

    def _take(self, record: Record) -> None:
        position = record.position
        retried = self._retries.is_retry(record)
        if retried and self._retries.early(record):
            self._progress.take(position)
            return
        self.active = self.clock.monotonic()
        self._out.alone = retried
        if self._progress.cautious:
            if (deaths := self._progress.deaths_at(position)) >= self._policy.deaths:
                self._progress.take(position)
                words = f"the process died at it, or took longer than its group allows, {deaths} times"
                self._set_aside(record, Lethal(words), None)
                return
            if doubtful := self._progress.is_doubtful(position):
                self._progress.at(position)
                self.commit()
            self._out.alone = retried or doubtful or self._progress.is_alone(position)
        self._progress.take(position)
        message: Message | None = None
        self._handling.record = record
        try:
            self.last_message = message = message_of(record, CATALOGUE[self._retries.topic(record)].message)
            self._handling.takes(record, message)
            self._handle(message, record, position, retried)
            if self._progress.cautious:
                self._advance()  # so that it is this message at which it dies, if it does
            self._breaker.passed()
        except Exception as error:
            self._handling.failed(error)
            # Whatever a message does to its handler, the partition goes on. What is the fault of no message stops it.
            if isinstance(error, (Unavailable, BusError)) and not isinstance(error, MessageTooLarge):
                raise
            self._breaker.failed(self._retries.origin(record), record, error)
            self._set_aside(record, error, message)
        finally:
            self._handling.ends(self.active)
            self._progress.lived()
        self.counters.took(self.clock.monotonic() - self.active)

    def _handle(self, message: Message, record: Record, position: LogPosition, retried: bool) -> None:
        outputs = 0
        for output in self.service.handle(message, position):
            self._out.answer(output)
            outputs += 1
        held = position in self.service.pending()
        if held and self._flow is not None:
            self._flow.hold(record)
        if retried and not (outputs or held) and self.service.answers(message):
            raise NoEffect("the retry had no effect, although the attempt before it failed")

    def _set_aside(self, record: Record, error: Exception, message: Message | None) -> None:
        target = self._retries.set_aside(record, error, message)
        if self._flow is not None:
            self._flow.wake_topic(target)

    def _beat(self) -> None:
        self.active = self.clock.monotonic()
        self._look()

    def _mark(self) -> None:
        """Note at the group that partitions are worked on, before the first message of each."""
        if self._consumer is not None and (firsts := self._progress.unmarked(self._backlog)):
            self._consumer.commit(firsts, dict.fromkeys(firsts, EMPTY_NOTE))
            self._progress.marked(firsts)

    def _absolve(self) -> None:
        """Take the name of a message off that was handled alone and failed, but did no harm."""
        partition = self._progress.stain
        if partition is not None and self._consumer is not None:
            with suppress(BusError):
                self._consumer.commit(*self._progress.without_stain(partition))
            self._progress.stain = None

    def _check(self) -> None:
        if self._trouble and self.topics:
            self.bus.partitions(self.topics[0])  # an idle consumer cannot tell a bus that is away from a quiet one
        if self._flow is not None:
            retries = [partition for partition in self.assigned or () if partition.topic in self._retries.topics]
            self._flow.rest(retries, self._progress.reached)
        self._trouble = tuple(self.service.not_ready())
        self._check_due = self.clock.monotonic() + self._policy.check_interval_s
        self._outage.is_over()

    def _look(self) -> None:
        """See where all stand, whatever is unavailable, when it is time for that."""
        if self.active < self._look_due:
            return
        self._look_due = self.active + self._policy.check_interval_s
        service = self.service
        self.standings, self.feeds, self.tallies = (*service.standings(),), (*service.feeds(),), {**service.tallies()}
        self.figures = (*service.figures(),)

    def _regulate(self) -> None:
        pending = self.service.pending()
        self.pending = len(pending)
        if self._flow is not None:
            self._flow.regulate(pending, [record for _, record in self._retries.delayed])

    def _assigned(self, partitions: Collection[Partition]) -> None:
        self._accept(partitions)
        if self._consumer is None or not partitions:
            return
        notes = self._consumer.notes(partitions)
        ends = bounds(self.bus.end_offsets, notes)
        whole = [partition for partition in partitions if partition.topic in self._retries.topics]
        doubtful = self._progress.begin(self._progress.committed, notes, ends, whole)
        if doubtful:
            log.warning(
                "the process before did not stop in good order: what it may have had in hand is handled one by one",
                service=self.service.name,
                partitions=[f"{partition.topic}/{partition.number}" for partition in doubtful],
            )

    def _accept(self, partitions: Collection[Partition]) -> None:
        """Find out where each partition goes on, together with the service."""
        if self._consumer is None:
            raise AssertionError("partitions came before their consumer")
        self.assigned = frozenset(partitions)
        self._progress.committed = {}
        if not partitions:
            return  # other members have them all
        committed = self._consumer.committed(partitions)
        self.lost = tell_of_lost(self.service.name, self.bus, committed, self.lost)
        owns = owner(self.bus, self.topics[0], partitions)
        for partition, offset in self.service.assigned(committed, owns).items():
            log.warning(
                "reads again what was committed: the store is older",
                service=self.service.name,
                partition=f"{partition.topic}/{partition.number}",
                committed=committed.get(partition),
                reads_from=offset,
            )
            self._consumer.seek(partition, offset)
        self._progress.committed = committed

    def _revoked(self, partitions: Collection[Partition]) -> None:
        """Let go of everything: a rebalance revokes all that a member has, even what it is given again."""
        try:
            if not self._gave_up:
                self.commit(leaving=True)
        except Unavailable as error:
            log.warning("not committed, the next owner repeats it", service=self.service.name, error=str(error))
        self.assigned = None
        if self._flow is not None:
            self._flow.forget()
        self._forget(gone=True)
        self._out.lost = self._out.refused = False

    def _rewind(self) -> None:
        """Go back to what was committed, as after a crash: some of what was published since is lost."""
        if self._consumer is not None and self._flow is not None:
            partitions = self._consumer.assignment()
            committed = self._consumer.committed(partitions)
            begins = bounds(self.bus.begin_offsets, partitions)
            for partition in partitions:
                self._consumer.seek(partition, committed.get(partition, begins[partition]))
            self._flow.resume()
            if self._out.refused:
                self._progress.go_out_alone()
            self._forget(gone=False)
            if partitions:
                self._accept(partitions)
        self._out.lost = self._out.refused = False
        log.warning("handles again what was not committed", service=self.service.name)

    def _forget(self, gone: bool) -> None:
        """Return to the state of a new runner, in the same partitions unless they are gone."""
        self.service.revoked()
        self._backlog.clear()
        self._retries.delayed.clear()
        self._progress.forget(gone)
