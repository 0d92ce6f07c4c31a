"""The decision that an id, or a portfolio and a time, is about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from tradeloop.cli.explain.evidence import Evidence, everywhere
from tradeloop.common.bus.port import Record
from tradeloop.common.errors import UserError
from tradeloop.common.market import from_us
from tradeloop.common.messages import (
    BarFrame,
    FeaturesComputed,
    OrderFilled,
    OrderUpdated,
    PortfolioEvent,
    PortfolioMarked,
    SignalGenerated,
)
from tradeloop.common.messages.base import UniverseMessage
from tradeloop.common.messages.topics import CATALOGUE, derived_id, topic_of
from tradeloop.common.runtime.headers import ID, TRACE
from tradeloop.common.runtime.readback import decoded

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}")
_NAMED_WITHIN = (topic_of(OrderFilled).name, topic_of(OrderUpdated).name)
"""Topics whose messages have ids beside their own."""
_ABOUT_BARS = [
    *_NAMED_WITHIN,
    *(
        name
        for name, topic in CATALOGUE.items()
        if issubclass(topic.message, UniverseMessage) and name not in _NAMED_WITHIN and not name.startswith("control.")
    ),
]


_EVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Subject:
    """One decision: of a portfolio, at the close of a bar."""

    universe: str
    portfolio: str
    """Empty where the id is about a bar and not about a portfolio."""
    time: datetime
    asked: str
    """The thing that was asked about, in words."""
    instrument: str = ""
    """The instrument of an order or a fill that was asked about."""
    remark: str = ""


def owner(message: UniverseMessage) -> str:
    """The portfolio that a message is about; empty for one about a bar."""
    return str(getattr(message, "portfolio", ""))


def subject_of_id(evidence: Evidence, wanted: str) -> Subject:
    """The decision that led to the message or the order of an id. Raises `UserError` for an id that is not known."""
    wanted = wanted.strip().lower()
    if not _ID.fullmatch(wanted):
        raise UserError(
            f"{wanted} is no id: give one of an order or a fill, a decision_id, an event_id or a trace_id of the logs; "
            "or ask by --portfolio and --time"
        )
    for topic in _ABOUT_BARS:
        for record in everywhere(evidence.bus, topic):
            if (message := _named(record, topic, wanted)) is not None:
                return _subject(message, wanted, record)
    if (decision := _undecided(evidence, wanted)) is not None:
        return decision
    raise UserError(
        f"nothing on the bus has the id {wanted}: it may be of another stack (--bootstrap-servers, "
        "TRADELOOP_KAFKA__PREFIX), of an embedded run (--run FOLDER), or too old: orders and fills are kept 365 days, "
        "what led to them 7; with --portfolio and --time all is told that is still known"
    )


def _named(record: Record, topic: str, wanted: str) -> UniverseMessage | None:
    here = (
        record.headers.get(ID) == wanted
        or (len(wanted) == 32 and wanted in record.headers.get(TRACE, ""))
        or (topic in _NAMED_WITHIN and wanted.encode() in record.value)
    )
    message = decoded(record, CATALOGUE[topic].message) if here else None
    return message if isinstance(message, UniverseMessage) and message.occurred is not None else None


def _subject(message: UniverseMessage, wanted: str, record: Record) -> Subject:
    assert message.occurred is not None
    asked = f"{record.topic} {wanted}"
    instrument = ""
    if isinstance(message, OrderUpdated | OrderFilled):
        instrument = message.instrument
        asked = f"fill {wanted}" if wanted == getattr(message, "fill_id", "") else f"order {message.order_id}"
    elif isinstance(message, SignalGenerated):
        asked = f"decision {wanted}"
    if len(wanted) == 32:
        asked = f"trace {wanted}"
        return Subject(message.universe, "", message.occurred, asked)
    return Subject(message.universe, owner(message), message.occurred, asked, instrument)


def _undecided(evidence: Evidence, wanted: str) -> Subject | None:
    """The decision of an id of which there is no signal: it follows from portfolio and bar."""
    kinds: tuple[type[UniverseMessage], ...] = (PortfolioMarked, PortfolioEvent)
    for kind in kinds:
        for record in everywhere(evidence.bus, topic_of(kind).name):
            message = decoded(record, kind)
            if message is None or message.occurred is None:
                continue
            portfolio = owner(message)
            if derived_id(topic_of(SignalGenerated).name, portfolio, message.occurred.isoformat()) == wanted:
                return Subject(message.universe, portfolio, message.occurred, f"decision {wanted}")
    return None


def with_portfolio(evidence: Evidence, subject: Subject, named: str | None) -> Subject:
    """The subject as that of one portfolio. Raises `UserError` where it is not clear which one."""
    if subject.portfolio:
        if named not in (None, subject.portfolio):
            raise UserError(f"{subject.asked} is of portfolio {subject.portfolio}, and not of {named}")
        return subject
    kinds: tuple[type[UniverseMessage], ...] = (PortfolioMarked, SignalGenerated, PortfolioEvent)
    there = {owner(one.message) for kind in kinds for one in evidence.of(kind, subject.universe, subject.time)}
    if named is None and len(there) == 1:
        return replace(subject, portfolio=there.pop())
    if named is None or (there and named not in there):
        who = ", ".join(sorted(there)) or "none that is still on the bus"
        raise UserError(
            f"{subject.asked} is about a bar of universe {subject.universe}, which several portfolios or none may "
            f"have decided on: name one with --portfolio; there is {who}"
        )
    return replace(subject, portfolio=named)


def subject_at(evidence: Evidence, portfolio: str, time: datetime) -> Subject:
    """The decision of a portfolio at a time: at the last bar that closed by then. Raises `UserError`."""
    universe = _universe_of(evidence, portfolio)
    asked = f"portfolio {portfolio} at {time.isoformat()}"
    closes = sorted(set(_closes(evidence, universe, portfolio, time)))
    before = [close for close in closes if close <= time]
    after = next((close for close in closes if close > time), None)
    if not before:
        then = f"the first that is known closed at {after.isoformat()}" if after else "none is known after it either"
        raise UserError(
            f"no bar of universe {universe} that closed by {time.isoformat()} is on the bus: {then}; "
            f"{evidence.why_none(BarFrame, universe)}"
        )
    remark = ""
    if before[-1] != time:
        then = f"the next at {after.isoformat()}" if after else "none is known after it"
        remark = f"no bar closed at {time.isoformat()}: the last before it at {before[-1].isoformat()}, {then}"
    return Subject(universe, portfolio, before[-1], asked, remark=remark)


def _closes(evidence: Evidence, universe: str, portfolio: str, time: datetime) -> Iterator[datetime]:
    """The closes of bars around a time, of which anything is known."""
    for frame in evidence.of(BarFrame, universe, time):
        yield frame.message.close_time
    if any(owner(one.message) == portfolio for one in evidence.of(PortfolioMarked, universe, time)):
        yield time
        return
    kinds: tuple[type[UniverseMessage], ...] = (
        BarFrame,
        FeaturesComputed,
        PortfolioMarked,
        OrderUpdated,
        PortfolioEvent,
    )
    for kind in kinds:
        for one in evidence.of(kind, universe, from_us(0), _EVER):
            if one.message.occurred is not None and owner(one.message) in ("", portfolio):
                yield one.message.occurred


def _universe_of(evidence: Evidence, portfolio: str) -> str:
    """The universe that a portfolio trades, by the newest of its messages."""
    wanted, others = f'"portfolio":"{portfolio}"'.encode(), set[str]()
    kinds: tuple[type[UniverseMessage], ...] = (PortfolioMarked, SignalGenerated, OrderUpdated, PortfolioEvent)
    for kind in kinds:
        for record in everywhere(evidence.bus, topic_of(kind).name):
            if wanted in record.value and (message := decoded(record, kind)) is not None:
                return message.universe
            if len(others) < 10 and (message := decoded(record, kind)) is not None:
                others.add(owner(message))
    there = ", ".join(sorted(others)) or "none at all"
    raise UserError(f"no portfolio {portfolio} is known to the bus; there is {there}")
