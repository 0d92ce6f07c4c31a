"""What a runner sends: outputs with what replaces them, and whether any of it was lost on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog

from tradeloop.common.bus.port import Bus, BusUnavailable, MessageTooLarge
from tradeloop.common.messages import Message
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.runtime.counters import Counters
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.service import Service

log = structlog.get_logger(__name__)


class Outgoing:
    """The producer of one service. Every call may raise what the bus raises."""

    def __init__(self, service: Service, bus: Bus, counters: Counters) -> None:
        self._service, self._producer, self._counters = service, bus.producer(), counters
        self.lost = False
        """Whether the bus gave up on something published: the messages that led to it must be handled again."""

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
        """Publish what was encoded before."""
        self._out(self._producer.publish, topic, key, value, headers)

    def hasten(self) -> None:
        self._out(self._producer.hasten)

    def flush(self) -> None:
        """Wait until everything is stored."""
        self._out(self._producer.flush)

    def close(self) -> None:
        self._producer.close()

    def _publish(self, message: Message) -> None:
        self._out(publish, self._producer, message, self._service.name)
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
