"""The headers of a record: what every message carries, and what tells of one that was set aside."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from tradeloop.common.market import iso
from tradeloop.common.messages import Message
from tradeloop.common.messages.topics import Topic, event_id

ID = "ce_id"
"""The id of the message, `event_id`."""
TRACE = "traceparent"
"""The W3C trace context."""
MANIFEST = "tl_manifest"
"""The manifest of the process that published it, as in its `ServiceStarted`."""
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

_CONTEXT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


class TraceContext(NamedTuple):
    """A W3C trace context: the trace, the span that published a record, and whether that span is recorded."""

    trace_id: str
    span_id: str
    recorded: bool

    @property
    def header(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.recorded else '00'}"


def trace_context(headers: Mapping[str, str]) -> TraceContext | None:
    """The trace context among the headers of a record; None where there is none, or something else."""
    match = _CONTEXT.fullmatch(headers.get(TRACE, ""))
    return None if match is None else TraceContext(match[1], match[2], bool(int(match[3], 16) & 1))


def headers_of(
    message: Message, topic: Topic[Message], source: str, context: TraceContext | None = None, manifest: str = ""
) -> dict[str, str]:
    """CloudEvents attributes in binary mode, and a W3C trace context.

    All messages about one bar of one universe share a trace id, so the chain from bar to reward is one trace. Without
    a `context`, from a span that is recorded, all of it follows from the event. `manifest` names what published it.
    """
    identity = event_id(message)
    headers = {
        "ce_specversion": "1.0",
        ID: identity,
        "ce_type": topic.name,
        "ce_source": f"/tradeloop/{source}",
        "content-type": "application/json",
        TRACE: context.header
        if context is not None
        else f"00-{trace_id_of(message.trace)}-{identity[:8]}{identity[9:13]}{identity[14:18]}-00",
    }
    if manifest:
        headers[MANIFEST] = manifest
    if (occurred := message.occurred) is not None:
        headers["ce_time"] = iso(occurred)
    return headers


def trace_id(message: Message) -> str:
    """The id of the trace that a message belongs to, as in its header."""
    return trace_id_of(message.trace)


@lru_cache(maxsize=4096)
def trace_id_of(trace: str) -> str:
    """The id of a trace, for all its messages: 32 hexadecimal digits."""
    return blake2b(trace.encode(), digest_size=16).hexdigest()
