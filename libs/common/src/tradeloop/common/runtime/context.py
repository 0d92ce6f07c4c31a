"""The message and the portfolio that are worked on: every line of the log within says so.

A note costs next to no time; the words are made when a line is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Protocol

from tradeloop.common.bus.port import Record
from tradeloop.common.messages import Message, SignalGenerated
from tradeloop.common.messages.base import UniverseMessage, UniverseRequest, bar_trace
from tradeloop.common.messages.topics import derived_id, topic_of
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.headers import ID, trace_context, trace_id, trace_id_of

_SIGNALS = topic_of(SignalGenerated).name


class AtHand(Protocol):
    """The message that a service handles."""

    service: str
    record: Record | None
    message: Message | None


class Working(Protocol):
    """The part of a service that works for one portfolio."""

    portfolio: Portfolio

    @property
    def bar(self) -> datetime | None:
        """The close of the bar that it works on, or None before the first."""
        ...


every_message = False
"""Whether a line is logged for each message: set by the level of the log."""

_at_hand: ContextVar[AtHand | None] = ContextVar("at_hand", default=None)
_working: ContextVar[Working | None] = ContextVar("working", default=None)


def enter(at_hand: AtHand) -> None:
    """Note whose messages are handled from now on."""
    _at_hand.set(at_hand)


@contextmanager
def working_for(working: Working) -> Iterator[None]:
    """Note for whom is worked."""
    token = _working.set(working)
    try:
        yield
    finally:
        _working.reset(token)


def words() -> dict[str, object]:
    """The fields of a line in the log that say what is worked on; none where nothing is."""
    found: dict[str, object] = {}
    if (working := _working.get()) is not None:
        found |= _of_portfolio(working)
    at_hand = _at_hand.get()
    if at_hand is not None and (record := at_hand.record) is not None:
        place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
        event = {"event_id": record.headers[ID]} if ID in record.headers else {}
        found = {"service": at_hand.service, **place, **event, **described(record, at_hand.message), **found}
    return found


def described(record: Record | None, message: Message | None) -> Mapping[str, str]:
    """The words of a log line about a record: its key and trace, and what its message is about."""
    said: dict[str, str] = {}
    if record is not None:
        context = trace_context(record.headers)
        said = {"key": record.key, "trace_id": context.trace_id if context else ""}
    if message is not None:
        said["trace_id"] = trace_id(message)
    if isinstance(message, UniverseMessage):
        said["universe"] = message.universe
        said["portfolio"] = str(getattr(message, "portfolio", ""))
    elif isinstance(message, UniverseRequest):
        said["universe"] = message.universe.name
    if message is not None and message.occurred is not None:
        said["time"] = message.occurred.isoformat()
    return {name: word for name, word in said.items() if word}


def _of_portfolio(working: Working) -> dict[str, object]:
    portfolio, bar = working.portfolio, working.bar
    found: dict[str, object] = {"universe": portfolio.universe.name, "portfolio": portfolio.name}
    if bar is not None:
        decision = derived_id(_SIGNALS, portfolio.name, bar.isoformat())
        found |= {"bar": bar.isoformat(), "decision_id": decision}
        found |= {"trace_id": trace_id_of(bar_trace(portfolio.universe.name, bar))}
    return found
