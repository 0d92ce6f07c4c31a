"""The one way to publish a message of the catalogue."""

from __future__ import annotations

from tradeloop.common.bus.port import Producer
from tradeloop.common.messages import Message
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.runtime.headers import TraceContext, headers_of


def publish(
    producer: Producer, message: Message, source: str, context: TraceContext | None = None, manifest: str = ""
) -> None:
    """Hand a message to a producer, for its topic, under its key, with its headers; `source` names who says it, and
    `context` the span that does, where it is recorded, and `manifest` what runs there.

    Raises what `Producer.publish` raises. Delivery is certain only after `Producer.flush`.
    """
    topic = topic_of(type(message))
    producer.publish(
        topic.name, message.key, message.encode(), headers_of(message, topic, source, context, manifest), message
    )
