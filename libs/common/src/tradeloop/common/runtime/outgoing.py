"""The way out of a runner: outputs, what replaces them, and whether any of it was lost on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog

from tradeloop.common.bus.port import Bus, BusUnavailable, MessageTooLarge
from tradeloop.common.messages import Message
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.runtime.counters import Counters
from tradeloop.common.runtime.handling import Handling
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.service import Service

log = structlog.get_logger(__name__)


class Outgoing:
    """The producer of one service. Every call may raise what the bus raises."""

    def __init__(self, service: Service, bus: Bus, counters: Counters, handling: Handling) -> None:
        self._service, self._producer, self._counters = service, bus.producer(), counters
        self._handling = handling
        self.lost = False
        """Whether the bus gave up on something published: the messages that led to it must be handled again."""
        self.refused = False
        """Whether that was for its size, by a server's own limit, so that nobody knows which message it was: each
        must then go out alone."""
        self.alone = False
        """Whether each output is stored before the next one goes out, so that what is refused is known."""
        self._unconfirmed = 0
        self._alone_for = 0
        self._first = False
        """Whether the last message is to be stored before the next one goes out."""

    def answer(self, message: Message) -> None:
        """Publish a message, or what stands for it where the bus refuses it for its size.

        Raises `MessageTooLarge` where nothing does.
        """
        try:
            self._publish(message)
        except MessageTooLarge as error:
            substitutes = self._service.substitutes(message, error)
            if substitutes is None:
                raise
            log.warning("output replaced: the bus refuses it for its size", **self._described(message, error))
            for substitute in substitutes:
                self._publish(substitute)

    def offer(self, message: Message) -> None:
        """Publish a message that answers none: one that is too large, and that nothing stands for, is dropped."""
        try:
            self.answer(message)
        except MessageTooLarge as error:
            self._counters.dropped += 1
            log.error("output dropped: the bus refuses it for its size", **self._described(message, error))

    def send(self, topic: str, key: str, value: bytes, headers: Mapping[str, str]) -> None:
        """Publish what was encoded before, and wait until it is stored."""
        self._out(self._producer.publish, topic, key, value, headers)
        self._out(self._producer.flush)

    def hasten(self) -> None:
        self._out(self._producer.hasten)

    def flush(self, timeout_s: float = 30.0) -> None:
        """Wait until everything is stored."""
        try:
            self._out(self._producer.flush, timeout_s)
        except MessageTooLarge as error:
            self.lost = self.refused = True
            self._alone_for = self._unconfirmed
            log.error(
                "a server's limit is below the client's: handles again, one by one, what was not committed; raise "
                "max.message.bytes of the topic",
                service=self._service.name,
                error=str(error),
            )
            raise BusUnavailable(f"outputs were refused for their size by the server's own limit: {error}") from error
        self._unconfirmed = 0

    def close(self) -> None:
        self._producer.close()

    def _publish(self, message: Message) -> None:
        stored_first = topic_of(type(message)).stored_first
        if self._first and not stored_first:
            # Kafka keeps the order within a partition alone: what goes out together may be stored in part.
            self.flush()
        self._first = stored_first
        tracer, manifest = self._handling.tracer, self._handling.manifest
        context = None if tracer is None else tracer.publishes(message)
        self._out(publish, self._producer, message, self._service.name, context, manifest)
        if tracer is not None:
            tracer.published()
        self._unconfirmed += 1
        if self.alone or self._alone_for:
            self._alone_for = max(self._alone_for - 1, 0)
            self._out(self._producer.flush)
            self._unconfirmed = 0
        self._counters.published += 1

    def _out(self, call: Callable[..., None], *what: object) -> None:
        try:
            call(*what)
        except BusUnavailable:
            self.lost = True
            raise

    def _described(self, message: Message, error: Exception) -> dict[str, str]:
        topic = topic_of(type(message)).name
        return {"service": self._service.name, "topic": topic, "key": message.key, "error": str(error)}
