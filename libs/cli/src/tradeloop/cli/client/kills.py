"""The kill switch: what is stopped by it, and what execution recorded of that."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

from tradeloop.cli.client.books import BookState, book_states
from tradeloop.cli.client.client import Client
from tradeloop.common.bus.port import Bus, Record
from tradeloop.common.errors import UserError
from tradeloop.common.messages import OrderUpdated, PortfolioCommanded, PortfolioEvent, PortfolioMarked, ServiceStarted
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.runtime.parts import Traded
from tradeloop.common.runtime.readback import all_records, of_kind

_BLOCK = 1000


@dataclass(frozen=True, slots=True)
class Target:
    """A portfolio that may be killed."""

    portfolio: str
    universe: str
    account: str
    """Empty where it is not known."""
    venues: Sequence[str]
    runs: bool
    """Whether the execution that started last trades it, so that its answer is waited for."""


@dataclass(slots=True)
class Answer:
    """The record of a command to one portfolio, as far as it was seen."""

    target: Target
    request: str
    mark: PortfolioMarked | None = None
    """The newest mark."""
    event: PortfolioEvent | None = None
    orders: dict[str, OrderUpdated] = field(default_factory=dict)
    """The newest states of the orders that the event names."""

    @property
    def whole(self) -> bool:
        """Whether all of it was seen."""
        return self.event is not None and self.orders.keys() >= set(self.event.orders)


@dataclass(frozen=True, slots=True)
class Scope:
    """The portfolios that are meant: by name, by account, by venue, or all."""

    portfolios: Sequence[str] = ()
    account: str | None = None
    venue: str | None = None
    every: bool = False

    def of(self, targets: Sequence[Target]) -> list[Target]:
        """The targets that are meant. Raises `UserError` where that is none, or not certain."""
        asked = [bool(self.portfolios), self.account is not None, self.venue is not None, self.every]
        if sum(asked) != 1:
            raise UserError("say what is meant by one of them: names of portfolios, --account, --venue or --all")
        if self.every:
            return list(targets)
        known = {target.portfolio: target for target in targets}
        if self.portfolios:
            if unknown := [name for name in self.portfolios if name not in known]:
                raise UserError(f"no portfolio {unknown[0]} is known to Kafka; there is {', '.join(known) or 'none'}")
            return [known[name] for name in dict.fromkeys(self.portfolios)]
        found = [one for one in targets if self.account == one.account or self.venue in one.venues]
        if not found:
            kind = "account" if self.venue is None else "venue"
            there = {one.account for one in targets} if self.venue is None else {v for t in targets for v in t.venues}
            raise UserError(
                f"no portfolio is known to trade on {kind} {self.account or self.venue}; there is "
                f"{', '.join(sorted(filter(None, there))) or 'none that execution has told of'}"
            )
        return found


def kill(client: Client, scope: Scope, by: str, reason: str, flatten: bool, timeout_s: float) -> list[Answer]:
    """Cancel all working orders of portfolios and stop sending; what execution recorded of it within a time.

    What executions have told of themselves as they started is enough to send it: to read all that Kafka knows of
    portfolios takes longer, and comes after. Raises `UserError` where nothing is meant, and `BusUnavailable`.
    """
    told = _told(client.bus)
    at_once = bool(told) and told.keys() >= set(scope.portfolios)
    books = {} if at_once else book_states(client.bus)
    with closing(_Commands(client, by, reason)) as commands:
        commands.send("kill", scope.of(_targets(told, books)), flatten=flatten)
        books = books or book_states(client.bus)
        if at_once and scope.every:
            commands.send("kill", [one for one in _targets(told, books) if one.portfolio not in told], flatten=flatten)
        return commands.answers(books, timeout_s)


def resume(client: Client, scope: Scope, by: str, reason: str, timeout_s: float) -> list[Answer]:
    """Lift the kills of portfolios. One that is not killed is left out, and refused where it was named."""
    books, killed = book_states(client.bus), []
    for target in scope.of(_targets(_told(client.bus), books)):
        book = books.get(target.portfolio)
        if book is not None and book.killed is not None:
            killed.append((target, book.killed.request))
        elif scope.portfolios:
            state = book.words if book is not None else "never marked"
            raise UserError(f"portfolio {target.portfolio} is not killed: it is {state}")
    with closing(_Commands(client, by, reason)) as commands:
        for target, request in killed:
            commands.send("resume", [target], about=request)
        return commands.answers(books, timeout_s)


def _told(bus: Bus) -> dict[str, Target]:
    """The portfolios of all executions that ever started, by name, as each was told of last.

    An execution of other portfolios may live beside the one that started last: its own are meant too, though nobody
    knows whether an answer will come.
    """
    starts = of_kind(all_records(bus, topic_of(ServiceStarted).name), ServiceStarted)
    ordered = sorted((one for one in starts if one.service == "execution"), key=lambda one: one.started)
    return {
        each.portfolio: Target(each.portfolio, each.universe, each.account, each.venues, one is ordered[-1])
        for one in ordered
        for each in map(Traded.read, one.parts.get("books", ()))
    }


def _targets(told: Mapping[str, Target], books: Mapping[str, BookState]) -> list[Target]:
    """The portfolios that executions told of, and whatever else Kafka knows."""
    found = dict(told)
    for name, book in books.items():
        found.setdefault(name, Target(name, book.universe, "", (), not told))
    return [found[name] for name in sorted(found)]


class _Commands:
    """Commands to portfolios, and what execution records of them."""

    def __init__(self, client: Client, by: str, reason: str) -> None:
        self._client, self._by, self._reason = client, by, reason
        self._answers: dict[str, Answer] = {}
        self._seen: dict[str, OrderUpdated] = {}
        bus, topics = client.bus, [topic_of(kind).name for kind in (PortfolioEvent, OrderUpdated, PortfolioMarked)]
        self._reader = bus.follow({place: end for one in topics for place, end in bus.end_offsets(one).items()})

    def send(
        self, command: Literal["kill", "resume"], targets: Sequence[Target], flatten: bool = False, about: str = ""
    ) -> None:
        commands = [
            PortfolioCommanded(
                universe=target.universe,
                request_id=str(uuid.uuid4()),
                portfolio=target.portfolio,
                command=command,
                time=self._client.clock.now(),
                reason=self._reason,
                by=self._by,
                flatten=flatten,
                about=about,
            )
            for target in targets
        ]
        if commands:
            self._client.send(*commands)
        for target, sent in zip(targets, commands, strict=True):
            self._answers[target.portfolio] = Answer(target, sent.request_id)

    def answers(self, books: Mapping[str, BookState], timeout_s: float) -> list[Answer]:
        """The records of all of them, as soon as they are whole, or when a time has gone by."""
        for name, answer in self._answers.items():
            answer.mark = books[name].mark if name in books else None
        client, until_s = self._client, self._client.clock.monotonic() + timeout_s
        while not all(answer.whole for answer in self._answers.values() if answer.target.runs):
            records = self._reader.poll(_BLOCK)
            self._take(records)
            if client.clock.monotonic() >= until_s:
                break
            if not records:
                client.wait(0.1)
        return list(self._answers.values())

    def _take(self, records: Sequence[Record]) -> None:
        for event in of_kind(records, PortfolioEvent):
            answer = self._answers.get(event.portfolio)
            if answer is not None and event.request == answer.request:
                answer.event = event
        self._seen |= {order.order_id: order for order in of_kind(records, OrderUpdated)}
        for mark in of_kind(records, PortfolioMarked):
            answer = self._answers.get(mark.portfolio)
            if answer is not None and (answer.mark is None or answer.mark.time <= mark.time):
                answer.mark = mark
        for answer in self._answers.values():
            if answer.event is not None:
                answer.orders = {id_: self._seen[id_] for id_ in answer.event.orders if id_ in self._seen}

    def close(self) -> None:
        """Release the reader."""
        self._reader.close()
