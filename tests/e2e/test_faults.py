"""The fault matrix: whatever fails, at whatever call, one portfolio at most is the worse for it, and says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import getmembers, isfunction
from pathlib import Path

import pytest

from tests.e2e.faults import live
from tests.e2e.faults.matrix import Case, Matrix, matrix
from tests.e2e.faults.page import markdown
from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.bus.port import Bus, Consumer, Producer, Reader
from tradeloop.common.event_store.port import EventStore
from tradeloop.common.feature_store.port import FeatureStore
from tradeloop.common.messages.topics import CATALOGUE, SERVICE_TOPICS
from tradeloop.common.model_store.port import Actor, ModelStore
from tradeloop.common.runtime.service import Service
from tradeloop.execution.ports import History as ExecutionHistory
from tradeloop.execution.ports import Ledger, Venue
from tradeloop.inference.ports import History
from tradeloop.ingest.ports import MarketSource, MarketStream, Marks, Published
from tradeloop.preprocess.ports import Sent
from tradeloop.training.ports import Trainer

PAGE = Path(__file__).parents[2] / "docs/failures.md"
SHUTDOWN = {"close", "drop_before"}
"""Methods that a service calls when it ends."""
PORTS: Mapping[type, set[str]] = {
    BarStore: {"series"},  # `tradeloop bars list`
    FeatureStore: {"read_online"},  # for others: a decision reads features from the bus
    ModelStore: set(),
    Actor: set(),
    Bus: {"identity"},  # asked by a ledger on disk
    Producer: set(),
    Consumer: {"seek", "assignment"},  # after a restored backup, and after outputs were lost
    Reader: {"poll"},  # a replay that is ahead of its window
    # After another failure, when there are more replicas, and for the manifest of a process.
    Service: {"substitutes", "revoked", "answers", "parts"},
    Ledger: {"outputs"},  # for tools
    ExecutionHistory: set(),
    Venue: set(),
    History: set(),
    Published: set(),
    Marks: {"new"},
    MarketSource: {"instruments"},  # the terms of instruments, for backfills from venues
    MarketStream: set(),
    EventStore: {"trades", "books", "news", "prune", "check"},  # for tools
    Sent: set(),
    Trainer: set(),
}
"""The ports, and those of their methods that the runs have no use for."""


@pytest.fixture(scope="module")
def replayed() -> Matrix:
    return matrix()


@pytest.fixture(scope="module")
def fed(replayed: Matrix) -> Matrix:
    return live.cases(replayed.seen)


def complaints(cases: Iterable[Case], service: str) -> dict[str, list[str]]:
    return {
        str(case.fault): case.complaints for case in cases if case.complaints and case.fault.point.service == service
    }


@pytest.mark.parametrize("service", SERVICE_TOPICS)
def test_whatever_fails_the_others_go_on_and_it_says_so(replayed: Matrix, service: str) -> None:
    assert complaints(replayed.cases, service) == {}


@pytest.mark.parametrize("service", SERVICE_TOPICS)
def test_whatever_fails_bars_of_live_feeds_are_the_venues_or_it_says_so(fed: Matrix, service: str) -> None:
    assert complaints(fed.cases, service) == {}


@pytest.mark.parametrize("service", SERVICE_TOPICS)
def test_every_handler_is_in_the_matrix(replayed: Matrix, fed: Matrix, service: str) -> None:
    """Each of its messages was being worked on at some call that failed, and so were its handlers themselves."""
    calls, worked_on = set[str](), set[str]()
    for measured in (replayed, fed):
        for point in (case.fault.point for case in measured.cases if case.fault.point.service == service):
            calls.add(point.call)
            worked_on |= measured.seen[point].messages
    kinds = {CATALOGUE[topic].message.__name__ for topic in SERVICE_TOPICS[service]}
    assert kinds <= worked_on
    handled = {f"service.handle {kind}" for kind in kinds if kind != "PortfolioCommanded"}  # it is about another one
    assert handled <= calls


def test_every_method_of_every_port_is_in_the_matrix(replayed: Matrix, fed: Matrix) -> None:
    """A new method of a port is a new row, unless nothing calls it: then it has to be said here, and why."""
    points = [point for measured in (replayed, fed) for point in measured.seen]
    called = {point.call.split()[0].rsplit(".", 1)[-1] for point in points}
    missing = {
        port.__name__: lacking
        for port, unused in PORTS.items()
        if (
            lacking := {name for name, _ in getmembers(port, isfunction) if name[0] != "_"} - called - unused - SHUTDOWN
        )
    }
    assert missing == {}


def test_the_page_says_what_was_measured(replayed: Matrix, fed: Matrix) -> None:
    """`python -m tests.e2e.faults --markdown > docs/failures.md` writes it anew."""
    assert PAGE.read_text() == markdown(replayed.cases, fed.cases)
