"""The base of all messages: a frozen model, JSON on the wire, with a key and an identity."""

from __future__ import annotations

import hashlib
import uuid
from datetime import datetime
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict

from tradeloop.common.market import Name, Universe, spoken

_ENCODED, _EVENT_ID = "encoded", "event id"
"""Where a message keeps its own encoding and its id; no field has these names."""


_NAMESPACE = hashlib.sha1(uuid.uuid5(uuid.NAMESPACE_URL, "https://tradeloop.dev/events").bytes, usedforsecurity=False)
"""The hash of what all names begin with."""


def uuid5(name: str) -> str:
    """The UUIDv5 of a name among Tradeloop's events, in a third of `uuid.uuid5`'s time: every message has one."""
    hashed = _NAMESPACE.copy()
    hashed.update(name.encode())
    digest = bytearray(hashed.digest())
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:32]}"


class Message(BaseModel):
    """The base of all messages. NaN and infinities are refused in both directions."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    sparse: ClassVar[bool] = False
    """Whether fields at their defaults are left out on the wire: for messages of which there are many, and which are
    kept long."""

    @property
    def key(self) -> str:
        """The partition key."""
        raise NotImplementedError(type(self).__name__)

    @property
    def identity(self) -> str:
        """The text that identifies this message: equal for every computation of the same fact."""
        raise NotImplementedError(type(self).__name__)

    @property
    def trace(self) -> str:
        """The trace of this message: all messages about one bar of a universe share it, up to the reward."""
        return self.identity

    @property
    def occurred(self) -> datetime | None:
        """The event time, or None for requests and reports, which have none."""
        return None

    def encode(self) -> bytes:
        """The message as JSON, UTF-8. Floats keep full precision. Computed once: messages do not change."""
        encoded: bytes | None = self.__dict__.get(_ENCODED)
        if encoded is None:
            encoded = self.__dict__[_ENCODED] = self.__pydantic_serializer__.to_json(self, exclude_defaults=self.sparse)
        return encoded

    def event_id(self, topic: str) -> str:
        """The UUIDv5 of the topic and the message's identity. Computed once: a message has one topic."""
        known: str | None = self.__dict__.get(_EVENT_ID)
        if known is None:
            known = self.__dict__[_EVENT_ID] = uuid5(f"{topic}|{self.identity}")
        return known

    def __copy__(self) -> Self:
        copy = super().__copy__()
        copy.__dict__.pop(_ENCODED, None)
        copy.__dict__.pop(_EVENT_ID, None)
        return copy


def bar_trace(universe: str, close: datetime | None) -> str:
    """The trace of all messages about one bar of a universe, the one that closed then."""
    return f"{universe}|{None if close is None else spoken(close)}"


class UniverseMessage(Message):
    """A message of one universe; its name is the partition key."""

    universe: Name

    @property
    def key(self) -> str:
        return self.universe

    @property
    def trace(self) -> str:
        return bar_trace(self.universe, self.occurred)


class UniverseRequest(Message):
    """A request about a universe, or its answer: both carry the same `request_id`."""

    request_id: str
    universe: Universe

    @property
    def key(self) -> str:
        return self.universe.name

    @property
    def identity(self) -> str:
        return self.request_id
