"""The fault matrix: whatever fails, at whatever call, one portfolio at most is the worse for it, and says so."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import getmembers, isfunction
from pathlib import Path

import pytest

from tests.e2e.faults import Case, Matrix, markdown, matrix
from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.bus.port import Bus, Consumer, Producer, Reader
from tradeloop.common.feature_store.port import FeatureStore
from tradeloop.common.messages.topics import CATALOGUE, SERVICE_TOPICS
from tradeloop.common.model_store.port import Actor, ModelStore
from tradeloop.common.runtime.service import Service
from tradeloop.execution.ports import History as ExecutionHistory
from tradeloop.execution.ports import Ledger, Venue
from tradeloop.inference.ports import History
from tradeloop.ingest.ports import Marks, Published
from tradeloop.preprocess.ports import Sent
from tradeloop.training.ports import Trainer

PAGE = Path(__file__).parents[2] / "docs/failures.md"
SHUTDOWN = {"close", "drop_before"}
"""Methods that a service calls when it ends."""
PORTS: Mapping[type, set[str]] = {
    BarStore: {"extra_columns", "series"},  # features of further columns, and `tradeloop bars list`
    FeatureStore: {"read_online"},  # for others: a decision reads features from the bus
    ModelStore: set(),
    Actor: set(),
    Bus: {"identity"},  # asked by a ledger on disk
    Producer: set(),
    Consumer: {"seek", "assignment"},  # after a restored backup, and after outputs were lost
    Reader: {"poll"},  # a replay that is ahead of its window
    Service: {"substitutes", "revoked", "answers"},  # after another failure, and when there are more replicas
    Ledger: {"outputs"},  # for tools
    ExecutionHistory: set(),
    Venue: set(),
    History: set(),
    Published: {"recent", "revision"},  # live feeds
    Marks: {"new"},
    Sent: set(),
    Trainer: set(),
}
"""The ports, and those of their methods that the run has no use for."""


@pytest.fixture(scope="module")
def measured() -> Matrix:
    return matrix()


def of(service: str, measured: Matrix) -> list[Case]:
    return [case for case in measured.cases if case.fault.point.service == service]


@pytest.mark.parametrize("service", SERVICE_TOPICS)
def test_whatever_fails_the_others_go_on_and_it_says_so(measured: Matrix, service: str) -> None:
    found = {str(case.fault): case.complaints for case in of(service, measured) if case.complaints}
    assert found == {}


@pytest.mark.parametrize("service", SERVICE_TOPICS)
def test_every_handler_is_in_the_matrix(measured: Matrix, service: str) -> None:
    """Each of its messages was being worked on at some call that failed, and so were its handlers themselves."""
    calls = {case.fault.point.call for case in of(service, measured)}
    worked_on = set[str]().union(*(measured.seen[case.fault.point].messages for case in of(service, measured)))
    kinds = {CATALOGUE[topic].message.__name__ for topic in SERVICE_TOPICS[service]}
    kinds -= {"LiveRequested"}  # a feed that fails has tests of its own: its bars come from outside of this run
    assert kinds <= worked_on
    handled = {f"service.handle {kind}" for kind in kinds if kind != "PortfolioCommanded"}  # it is about another one
    assert handled <= calls


def test_every_method_of_every_port_is_in_the_matrix(measured: Matrix) -> None:
    """A new method of a port is a new row, unless nothing calls it: then it has to be said here, and why."""
    called = {case.fault.point.call.split()[0].rsplit(".", 1)[-1] for case in measured.cases}
    called |= {point.call.split()[0].rsplit(".", 1)[-1] for point in measured.seen}
    missing = {
        port.__name__: lacking
        for port, unused in PORTS.items()
        if (
            lacking := {name for name, _ in getmembers(port, isfunction) if name[0] != "_"} - called - unused - SHUTDOWN
        )
    }
    assert missing == {}


def test_the_page_says_what_was_measured(measured: Matrix) -> None:
    """`python -m tests.e2e.faults --markdown > docs/failures.md` writes it anew."""
    assert PAGE.read_text() == markdown(measured.cases)
