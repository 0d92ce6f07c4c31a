"""The fate of a record whose handling failed: it is tried again after a delay, and given up on in the end."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from tradeloop.common.addresses import address
from tradeloop.common.bus.port import MessageTooLarge, Record
from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.common.messages import Message
from tradeloop.common.messages.topics import dead_letter_topic, retry_topic, topic_of
from tradeloop.common.runtime.attempts import words
from tradeloop.common.runtime.context import described
from tradeloop.common.runtime.counters import Counters
from tradeloop.common.runtime.headers import ATTEMPT, BODY, ERROR, INTERNAL, KIND, NOT_BEFORE, ORIGIN, USER
from tradeloop.common.runtime.outgoing import Outgoing
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.service import Service

log = structlog.get_logger(__name__)


class NoEffect(Exception):
    """A retry did nothing, although the attempt before it failed: the handler kept a part of what it had done."""


class Lethal(Exception):
    """The process died at this message, again and again."""


class Retries:
    """The retry and dead-letter topics of one service, and the retries that wait for their time."""

    def __init__(self, service: Service, out: Outgoing, clock: Clock, policy: RunPolicy, counters: Counters) -> None:
        self._name, self._out, self._clock, self._policy, self._counters = service.name, out, clock, policy, counters
        topics = [topic_of(message).name for message in service.consumes]
        self._origin_of = {retry_topic(topic, service.name): topic for topic in topics}
        self.topics: Sequence[str] = tuple(self._origin_of)
        self.dead_letter_topics: Sequence[str] = tuple(dead_letter_topic(topic, service.name) for topic in topics)
        self.delayed: list[tuple[int, Record]] = []
        """Records whose time has not come, each with that time."""

    def topic(self, record: Record) -> str:
        """The topic of the catalogue that a record first stood in."""
        return self._origin_of.get(record.topic, record.topic)

    def origin(self, record: Record) -> str:
        """The place at which a record first stood."""
        here = f"{record.topic}/{record.partition}/{record.offset}"
        return record.headers.get(ORIGIN, here) if self.is_retry(record) else here

    def is_retry(self, record: Record) -> bool:
        return record.topic in self._origin_of

    def early(self, record: Record) -> bool:
        """Whether a retry's time has not come. It is kept until then."""
        if (not_before_ms := _number(record, NOT_BEFORE)) <= self._now_ms():
            return False
        self.delayed.append((not_before_ms, record))
        return True

    def due(self) -> list[Record]:
        """The records whose time has come since; they are kept no longer."""
        if not self.delayed:
            return []
        now_ms = self._now_ms()
        due = [record for at, record in self.delayed if at <= now_ms]
        if due:
            self.delayed = [(at, record) for at, record in self.delayed if at > now_ms]
        return due

    def set_aside(self, record: Record, error: Exception, message: Message | None) -> str:
        """Store a record elsewhere, with what happened to it, before anything goes on. Gives back the topic."""
        topic, retried = self.topic(record), self.is_retry(record)
        attempt = _number(record, ATTEMPT) + 1 if retried else 1  # who else writes such headers gives no orders here
        users = isinstance(error, UserError)
        cause = address(" ".join(str(error).split()))[:500] if users else words(error)
        headers = {
            **record.headers,
            ORIGIN: self.origin(record),
            ATTEMPT: str(attempt),
            ERROR: cause,
            KIND: USER if users else INTERNAL,
        }
        again = attempt < self._policy.attempts and not isinstance(error, Lethal)
        if again:
            delay_s = self._policy.retry_delay_s * 2 ** (attempt - 1)
            headers[NOT_BEFORE] = str(int(self._now_ms() + delay_s * 1000))
        target = (retry_topic if again else dead_letter_topic)(topic, self._name)
        self._out.flush()  # what is refused below is then this record
        try:
            self._out.send(target, record.key, record.value, headers)
        except MessageTooLarge:
            # With these headers, that is. There is no use in trying it without its body, which still stands elsewhere.
            again, target = False, dead_letter_topic(topic, self._name)
            self._out.send(target, record.key, b"", {**headers, BODY: headers[ORIGIN]})
        if again:
            self._counters.retried += 1
        else:
            self._counters.dead_letters += 1
        log.error(
            "message failed",
            service=self._name,
            **described(record, message),
            origin=headers[ORIGIN],
            attempt=attempt,
            to=target,
            error=cause,
            exc_info=error,
        )
        return target

    def _now_ms(self) -> float:
        return self._clock.now().timestamp() * 1000


def _number(record: Record, header: str) -> int:
    """The number in one of a record's headers; 0 where there is none, or something else."""
    text = record.headers.get(header, "")
    return int(text) if text.isdecimal() and len(text) < 20 else 0
