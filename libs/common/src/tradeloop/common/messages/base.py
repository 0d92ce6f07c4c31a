"""The base of all messages: a frozen model, JSON on the wire, with a key and an identity."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict

from tradeloop.common.market import Name, Universe

_ENCODED = "encoded"
"""Where a message keeps its own encoding; no field has this name."""


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

    def __copy__(self) -> Self:
        copy = super().__copy__()
        copy.__dict__.pop(_ENCODED, None)
        return copy


class UniverseMessage(Message):
    """A message of one universe; its name is the partition key."""

    universe: Name

    @property
    def key(self) -> str:
        return self.universe

    @property
    def trace(self) -> str:
        return f"{self.universe}|{self.occurred}"


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
