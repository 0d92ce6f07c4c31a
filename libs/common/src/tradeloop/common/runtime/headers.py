"""The headers of a record: what every message carries, and what tells of one that was set aside."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

from tradeloop.common.market import iso
from tradeloop.common.messages import Message
from tradeloop.common.messages.topics import Topic, event_id

ID = "ce_id"
"""The id of the message, `event_id`."""
TRACE = "traceparent"
"""The W3C trace context."""
ORIGIN = "tl_origin"
"""Topic, partition and offset at which the record first stood, as `topic/partition/offset`."""
ATTEMPT = "tl_attempt"
"""How often it was tried."""
ERROR = "tl_error"
"""The last error, one line; with its class in front unless somebody's input is wrong."""
KIND = "tl_kind"
"""Whose fault the last error is: `USER` or `INTERNAL`."""
USER, INTERNAL = "user", "internal"
"""Somebody's input is wrong, which its sender can mend; or anything else."""
BODY = "tl_body"
"""The place of a body that was too large for its dead letter, as `topic/partition/offset`."""
NOT_BEFORE = "tl_not_before_ms"
"""When to try again, wall-clock milliseconds since the epoch."""


def headers_of(message: Message, topic: Topic[Message], source: str) -> dict[str, str]:
    """CloudEvents attributes in binary mode, and a W3C trace context that follows from the event.

    All messages about one bar of one universe share a trace id, so the chain from bar to reward is one trace.
    """
    identity = event_id(message)
    headers = {
        "ce_specversion": "1.0",
        ID: identity,
        "ce_type": topic.name,
        "ce_source": f"/tradeloop/{source}",
        "content-type": "application/json",
        TRACE: f"00-{_trace_id(message.trace)}-{identity[:8]}{identity[9:13]}{identity[14:18]}-01",
    }
    if (occurred := message.occurred) is not None:
        headers["ce_time"] = iso(occurred)
    return headers


def trace_id(message: Message) -> str:
    """The id of the trace that a message belongs to, as in its header."""
    return _trace_id(message.trace)


@lru_cache(maxsize=4096)
def _trace_id(trace: str) -> str:
    return blake2b(trace.encode(), digest_size=16).hexdigest()
