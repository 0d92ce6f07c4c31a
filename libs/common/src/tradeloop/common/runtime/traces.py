"""Spans: what a service did with each message, and whom that made work. All about one bar of a universe is one trace.

The id of a trace follows from the bar, so that all services tell the same one without knowing of each other. The id of
a span is new each time: a message that is delivered again, or published again after a crash, makes another span with
the same parent.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from tradeloop.common.bus.port import Record
from tradeloop.common.clock import Clock
from tradeloop.common.messages import Message
from tradeloop.common.messages.topics import event_id, topic_of
from tradeloop.common.runtime.context import described
from tradeloop.common.runtime.headers import ATTEMPT, ID, TraceContext, trace_context, trace_id

_REMEMBERED = 1 << 16
"""The spans that an output may still be the consequence of."""
_IDS = (1 << 64) - 1


class TraceSettings(BaseModel):
    """Where spans go."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)

    endpoint: str | None = None
    """Address of a collector that takes OTLP over HTTP, such as `http://collector:4318`; no spans without one. Spans
    go to `/v1/traces` there, unless it has a path."""
    headers: SecretStr | None = None
    """Headers to send along, `name=value` by commas, such as a token."""
    share: float = Field(default=1.0, ge=0, le=1)
    """The share of traces that is recorded. It follows from the id of the trace: give all services the same."""
    timeout_s: float = Field(default=3.0, gt=0)
    """How long one batch may take, tries included; then its spans are lost."""
    most: int = Field(default=16_384, ge=1)
    """Spans that may wait to be sent; more are lost."""

    @field_validator("endpoint")
    @classmethod
    def _an_address(cls, endpoint: str | None) -> str | None:
        if not endpoint:  # as Compose passes on what is not set
            return None
        scheme, found, rest = endpoint.partition("://")
        if scheme not in ("http", "https") or not found or not rest:
            raise ValueError("an endpoint starts with http:// or https://")
        return endpoint if "/" in rest.rstrip("/") else f"{endpoint.rstrip('/')}/v1/traces"

    @field_validator("headers")
    @classmethod
    def _pairs(cls, headers: SecretStr | None) -> SecretStr | None:
        if headers is not None and not all("=" in each for each in _split(headers)):
            raise ValueError("headers are name=value, by commas")
        return headers

    @property
    def pairs(self) -> dict[str, str]:
        """The headers by name."""
        found = (each.partition("=") for each in _split(self.headers))
        return {name.strip(): value.strip() for name, _, value in found}


def _split(headers: SecretStr | None) -> list[str]:
    return [each for each in (headers.get_secret_value() if headers else "").split(",") if each.strip()]


class Span(NamedTuple):
    """A piece of work, from a time to a time in microseconds since the epoch."""

    name: str
    kind: Literal["consumer", "producer"]
    trace_id: str
    span_id: str
    parent_id: str
    """The span that caused it; empty where nobody did, or where that span is not known."""
    start_us: int
    end_us: int
    attributes: Mapping[str, str | int]
    error: str = ""


class _Open(NamedTuple):
    span_id: str
    context: TraceContext | None
    """The context that the record came with."""
    trace_id: str
    start_us: int
    record: Record
    message: Message


class Tracer:
    """Makes the spans of one service. Not shared between threads."""

    def __init__(
        self, service: str, clock: Clock, sink: Callable[[Span], object], share: float = 1.0, first: int | None = None
    ) -> None:
        """`sink` takes each span that has ended, and must not block. Ids of spans are counted on from `first`, a number
        of 64 bits, by default a random one."""
        self._service, self._clock, self._sink = service, clock, sink
        self._below = int(share * (1 << 64))
        self._id = secrets.randbits(64) if first is None else first
        self._handled: _Open | None = None
        self._since_us = 0
        self._published: tuple[Message, TraceContext] | None = None
        self._causes: dict[tuple[str, str], tuple[int, str]] = {}
        """The last span of each trace and portfolio, with its number: what is done later follows from it."""
        self._count = 0

    def takes(self, record: Record, message: Message) -> None:
        """A message is handled from now on."""
        came = trace_context(record.headers)
        trace = trace_id(message) if came is None else came.trace_id
        self._handled = None
        if not self._is_recorded(trace):
            return
        self.works()
        span = self._new_id()
        self._handled = _Open(span, came, trace, self._since_us, record, message)
        key, self._count = (trace, _portfolio(message)), self._count + 1
        self._causes.pop(key, None)
        self._causes[key] = self._count, span
        if len(self._causes) > _REMEMBERED:
            del self._causes[next(iter(self._causes))]

    def took(self, error: Exception | None = None) -> None:
        """The message is handled, or failed."""
        handled, self._handled = self._handled, None
        if handled is None:
            return
        record = handled.record
        attributes: dict[str, str | int] = {
            "messaging.operation.type": "process",
            "messaging.destination.name": record.topic,
            "messaging.destination.partition.id": str(record.partition),
            "messaging.kafka.offset": record.offset,
            "messaging.consumer.group.name": self._service,
            "messaging.message.id": record.headers.get(ID, ""),
        }
        if ATTEMPT in record.headers:
            attributes["tl.attempts_before"] = record.headers[ATTEMPT]
        self._sink(
            Span(
                f"handle {record.topic}",
                "consumer",
                handled.trace_id,
                handled.span_id,
                handled.context.span_id if handled.context is not None and handled.context.recorded else "",
                handled.start_us,
                self._now_us(),
                attributes | _about(record, handled.message),
                "" if error is None else f"{type(error).__name__}: {error}",
            )
        )

    def works(self) -> None:
        """The work begins of which the next output comes."""
        self._since_us = self._now_us()

    def publishes(self, message: Message) -> TraceContext | None:
        """The context to publish a message with; None where its trace is not recorded."""
        self._published = None
        trace = trace_id(message)
        if not self._is_recorded(trace):
            return None
        context = TraceContext(trace, self._new_id(), recorded=True)
        self._published = message, context
        return context

    def published(self) -> None:
        """The message was handed to the bus: it, and the work that it took, is a span."""
        made, self._published, start_us = self._published, None, self._since_us
        if made is None:
            return
        message, context = made
        self.works()
        topic = topic_of(type(message)).name
        attributes: dict[str, str | int] = {
            "messaging.operation.type": "send",
            "messaging.destination.name": topic,
            "messaging.message.id": event_id(message),
        }
        self._sink(
            Span(
                f"publish {topic}",
                "producer",
                context.trace_id,
                context.span_id,
                self._cause(context.trace_id, message),
                start_us,
                self._since_us,
                attributes | _about(None, message),
            )
        )

    def _cause(self, trace: str, message: Message) -> str:
        """The message that is handled now; else the last one of the same bar, of this portfolio or of all."""
        if self._handled is not None and self._handled.trace_id == trace:
            return self._handled.span_id
        of_all = self._causes.get((trace, ""), (0, ""))
        return max(of_all, self._causes.get((trace, _portfolio(message)), of_all))[1]

    def _is_recorded(self, trace: str) -> bool:
        return int(trace[16:], 16) < self._below

    def _new_id(self) -> str:
        self._id = (self._id + 1) & _IDS or 1
        return f"{self._id:016x}"

    def _now_us(self) -> int:
        return _us(self._clock.now())


def _us(time: datetime) -> int:
    return int(time.timestamp() * 1e6)


def _portfolio(message: Message) -> str:
    return str(getattr(message, "portfolio", ""))


def _about(record: Record | None, message: Message) -> dict[str, str | int]:
    said = described(record, message)
    found: dict[str, str | int] = {
        f"tl.{name}": said[name] for name in ("universe", "portfolio", "time") if name in said
    }
    if order := getattr(message, "order_id", ""):
        found["tl.order_id"] = order
    return {"messaging.system": "kafka", **found}
