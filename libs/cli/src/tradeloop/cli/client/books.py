"""How far each portfolio is, as its messages on the bus tell: without asking the services, which may be away."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from tradeloop.cli.client.client import Client
from tradeloop.common.bus.port import Bus, Partition, Record
from tradeloop.common.errors import UserError
from tradeloop.common.market import InstrumentEvent, from_us
from tradeloop.common.messages import (
    InstrumentChanged,
    ModelActivated,
    PortfolioCommanded,
    PortfolioEvent,
    PortfolioMarked,
    SignalGenerated,
)
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.runtime.readback import Tail, all_records, blocks_backwards, decoded, of_kind

Command = Literal["skip", "release"]

_LOOKED_AT = 20_000
"""Records of each partition in which the last mark and the last decision of a portfolio are looked for."""


@dataclass(slots=True)
class BookState:
    """The state of one portfolio, as far as it is known."""

    portfolio: str
    universe: str = ""
    mark: PortfolioMarked | None = None
    marked_at: datetime | None = None
    """When the last mark was published, by the bus's clock."""
    decided: datetime | None = None
    """Close of the last bar whose decision is published, or on record as missed."""
    quarantine: PortfolioEvent | None = None
    """The event that its decisions are not taken since; None when they are."""
    killed: PortfolioEvent | None = None
    """The last kill; None where none is in force."""
    model: ModelActivated | None = None
    """The model in force."""
    events: dict[str, int] = field(default_factory=dict)
    """How many events of each kind are on record."""
    instruments: dict[str, list[str]] = field(default_factory=dict)
    """The halts, delistings and new symbols that are in force, in words, by instrument."""

    @property
    def awaits(self) -> datetime | None:
        """The close of the bar whose decision is open; None where none is."""
        if self.mark is None or self.quarantine is not None or self.killed is not None:
            return None
        return self.mark.time if self.decided is None or self.decided < self.mark.time else None

    @property
    def words(self) -> str:
        """The thing that it waits for or suffers from; `active` or `halted` where it goes on."""
        if self.killed is not None:
            since = "before its first bar" if self.mark is None else f"since the bar of {_minute(self.killed.time)}"
            return f"killed {since}, {self.killed.reason}"
        if self.quarantine is not None:
            return f"quarantined since the bar of {_minute(self.quarantine.time)}: {self.quarantine.reason}"
        if self.awaits is not None:
            since = f", for {_ago(self.marked_at)}" if self.marked_at is not None else ""
            return f"awaits the decision on the bar of {_minute(self.awaits)}{since}"
        return "never marked" if self.mark is None else self.mark.state


def book_states(bus: Bus) -> dict[str, BookState]:
    """Every portfolio of which the bus knows something, by name. Raises `BusUnavailable`."""
    found: dict[str, BookState] = {}

    def state(name: str, universe: str) -> BookState:
        book = found.setdefault(name, BookState(name))
        book.universe = universe
        return book

    for record in _last(bus, topic_of(PortfolioMarked).name):
        mark = decoded(record, PortfolioMarked)
        if mark is not None:
            book = state(mark.portfolio, mark.universe)
            if book.mark is None or mark.time > book.mark.time:
                book.mark = mark
                book.marked_at = from_us(record.timestamp_ms * 1000) if record.timestamp_ms else None
    for record in _last(bus, topic_of(SignalGenerated).name):
        signal = decoded(record, SignalGenerated)
        if signal is not None:
            book = state(signal.portfolio, signal.universe)
            book.decided = max(book.decided or signal.time, signal.time)
    seen: set[str] = set()
    for event in of_kind(all_records(bus, topic_of(PortfolioEvent).name), PortfolioEvent):
        if event.identity in seen:
            continue
        seen.add(event.identity)
        book = state(event.portfolio, event.universe)
        book.events[event.kind] = book.events.get(event.kind, 0) + 1
        if event.kind == "decision_missed":
            book.decided = max(book.decided or event.time, event.time)
        elif event.kind == "quarantined":
            book.quarantine = event
        elif event.kind == "released":
            book.quarantine = None
        elif event.kind in ("killed", "resumed"):
            book.killed = event if event.kind == "killed" else None
    for active in of_kind(all_records(bus, topic_of(ModelActivated).name), ModelActivated):
        book = state(active.portfolio, active.universe)
        if book.model is None or active.time >= book.model.time:
            book.model = active
    in_force = _in_force(bus)
    for book in found.values():
        book.instruments = in_force.get(book.universe, {})
    return dict(sorted(found.items()))


def _in_force(bus: Bus) -> dict[str, dict[str, list[str]]]:
    """The events that went out and are in force, in words, by universe and instrument."""
    events: dict[tuple[str, str], dict[str, InstrumentEvent]] = {}
    for one in of_kind(all_records(bus, topic_of(InstrumentChanged).name), InstrumentChanged):
        events.setdefault((one.universe, one.instrument), {})[one.identity] = one.event
    found: dict[str, dict[str, list[str]]] = {}
    for (universe, instrument), known in events.items():
        lasting: list[InstrumentEvent] = []
        for event in sorted(known.values(), key=lambda each: each.time):
            if event.kind in ("resume", "delisting"):
                lasting = [each for each in lasting if each.kind != "halt"]
            if event.kind != "resume":
                lasting.append(event)
        if lasting:
            words = [f"{each.words} since {_minute(each.time)}" for each in lasting]
            found.setdefault(universe, {})[instrument] = words
    return found


def obeyed(client: Client, book: BookState, command: Command, reason: str, timeout_s: float) -> PortfolioEvent | None:
    """Send a command about what a portfolio waits for now; the event that execution recorded of it, or None in time.

    Raises `UserError` where there is nothing to command.
    """
    time = _about(command, book)
    with closing(Tail(client.bus, {topic_of(PortfolioEvent).name: book.universe})) as tail:
        client.send(
            PortfolioCommanded(
                universe=book.universe,
                request_id=str(uuid.uuid4()),
                portfolio=book.portfolio,
                command=command,
                time=time,
                reason=reason,
            )
        )
        until_s = client.clock.monotonic() + timeout_s
        while client.clock.monotonic() < until_s:
            for event in of_kind(tail.new(), PortfolioEvent):
                if event.portfolio == book.portfolio and reason in event.reason:
                    return event
            client.wait(0.1)
    return None


def _about(command: Command, book: BookState) -> datetime:
    if command == "skip":
        if book.awaits is None:
            raise UserError(f"portfolio {book.portfolio} waits for no decision: it is {book.words}")
        return book.awaits
    if book.quarantine is None:
        raise UserError(f"portfolio {book.portfolio} is not in quarantine: it is {book.words}")
    return book.quarantine.time


def _last(bus: Bus, topic: str) -> Iterator[Record]:
    """The last records of each partition of a topic."""
    for number in range(bus.partitions(topic)):
        left = _LOOKED_AT
        for block in blocks_backwards(bus, Partition(topic, number)):
            yield from block
            left -= len(block)
            if left <= 0:
                break


def _minute(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _ago(time: datetime) -> str:
    seconds = max((datetime.now(UTC) - time).total_seconds(), 0.0)
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
