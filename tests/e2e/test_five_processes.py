"""Five processes over real Kafka, PostgreSQL, Redis and MLflow do what the backtest and the embedded stack do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.native.server import Server, free_ports
from tests.collector import Seen, chain, collector
from tests.e2e import monitored
from tests.e2e.stack import Servers, Stack
from tests.e2e.worlds import HISTORY, World
from tests.prometheus import prometheus
from tradeloop.cli.client.deployment import SERVICES
from tradeloop.cli.client.embedded import EmbeddedStack, embedded
from tradeloop.cli.explain.chain import Explained
from tradeloop.cli.explain.evidence import Evidence
from tradeloop.cli.explain.subject import subject_of_id
from tradeloop.common.market import to_us
from tradeloop.common.messages import (
    BackfillCompleted,
    BarFrame,
    InstrumentChanged,
    Message,
    OrderFilled,
    OrderUpdated,
    PortfolioMarked,
    RiskVerdict,
    SignalGenerated,
    Transition,
)
from tradeloop.common.model_store.mlflow import MlflowModelStore
from tradeloop.common.model_store.port import ModelStore
from tradeloop.common.runtime.headers import trace_id

COMPARED = (SignalGenerated, OrderUpdated, OrderFilled, PortfolioMarked, RiskVerdict, Transition)
TRADED, EVENTFUL = 3_000, 1_250
"""Bars that are traded, and those of universes in which something happens."""
TRACED = 0.02
"""The share of bars whose traces are recorded."""


def register(models: ModelStore, worlds: Sequence[World]) -> None:
    """Make each world's policy the one that its portfolio asks for."""
    for world in worlds:
        registered = models.register(world.model, world.policy, metrics={}, parameters={})
        models.set_alias(world.model, world.portfolio.model_alias, registered.version)


def run_embedded(worlds: Sequence[World], home: Path) -> dict[type[Message], dict[str, Message]]:
    with embedded(home, [world.portfolio for world in worlds]) as stack:
        register(stack.models, worlds)
        for world in worlds:
            stack.client.ask(world.backfill(), BackfillCompleted)
            stack.replay(world.replay(), lambda: None)
        return {kind: by_identity(stack, kind) for kind in COMPARED}


def by_identity(stack: Stack | EmbeddedStack, kind: type[Message]) -> dict[str, Message]:
    """What was published, without the number that a registry gave the model: each registry counts for itself."""
    return {
        message.identity: message.model_copy(update={"model_version": ""})
        if isinstance(message, SignalGenerated | Transition)
        else message
        for message in stack.client.read(kind)
    }


def run_processes(stack: Stack, worlds: Sequence[World]) -> None:
    """Load and trade all bars of the worlds, side by side."""
    for world in worlds:
        stack.ask(world.backfill(), BackfillCompleted)
    stack.client.send(*(world.replay() for world in worlds))
    last = {world.portfolio.name: world.last_us for world in worlds}
    stack.eventually(lambda: stack.settled(last), "decision on the last bar", timeout_s=600)


@pytest.fixture
def worlds(tmp_path: Path) -> list[World]:
    bars = tmp_path / "bars"
    return [
        World("solo", 1, TRADED, bars),
        World("quartet", 4, TRADED, bars),
        World("index", 4, EVENTFUL, bars, members_change=True),
        World("listed", 3, EVENTFUL, bars, has_events=True),
    ]


def test_backtest_embedded_and_five_processes_are_one(servers: Servers, worlds: list[World], tmp_path: Path) -> None:
    register(MlflowModelStore(servers.mlflow), worlds)
    with servers.stack([world.portfolio for world in worlds], tmp_path) as stack, collector() as receiver:
        for service in SERVICES:
            stack.extra[service] = {"TRACES__ENDPOINT": receiver.endpoint, "TRACES__SHARE": str(TRACED)}
        ports, [port] = stack.serve_http(SERVICES), free_ports(1)
        stack.start()
        with Server(prometheus(tmp_path, port, ports), tmp_path) as seen:
            run_processes(stack, worlds)
            monitored.train(stack, worlds[0])
            monitored.check(seen.address, stack, ports, worlds)
        stack.stop()
        live = {kind: by_identity(stack, kind) for kind in COMPARED}
        marks, fills = stack.client.read(PortfolioMarked), stack.client.read(OrderFilled)
        verdicts, frames = stack.client.read(RiskVerdict), stack.client.read(BarFrame)
        told = stack.client.read(InstrumentChanged)
        assert stack.client.count_dead_letters() == 0
        assert_traced(fills, receiver.spans)
        assert_explained(stack, worlds, fills)
    in_process = run_embedded(worlds, tmp_path / "embedded")
    for kind in COMPARED:
        assert live[kind] == in_process[kind], kind.__name__
    for world in worlds:
        assert_as_expected(world, marks, fills)
    index, listed = worlds[2:]
    for world, codes in ((index, ("not_a_member",)), (listed, ("trading_halted", "delisted"))):
        for code in codes:
            denied = sum(one.code == code and one.universe == world.name for one in verdicts)
            assert denied == world.expected.denials[code] > 50
    assert {frame.universe for frame in frames if frame.outside} == {"index", "listed"}
    closed = [(fill.universe, fill.instrument, fill.price) for fill in fills if fill.reason]
    assert sorted(closed) == [("listed", "listed:B", 0.0), ("listed", "listed:C", 30.0)]
    events = listed.universe.events
    assert {(one.instrument, one.event) for one in told} == {(id_, one) for id_, ones in events.items() for one in ones}


def assert_traced(fills: Sequence[OrderFilled], spans: Sequence[Seen]) -> None:
    """The recorded traces lead from fills back to their bars, through the processes of four services.

    A collector may miss spans of a machine that is very busy, which trading does not wait for: most chains are whole.
    """
    seen = {span.span_id: span for span in spans}
    names = {fill.event_id("execution.fills.v1"): fill for fill in fills}
    ends = [span for span in seen.values() if span.attributes["messaging.message.id"] in names]
    assert len(ends) > len(fills) * TRACED / 4
    whole, traces = 0, set[str]()
    for span in ends:
        fill = names[span.attributes["messaging.message.id"]]
        assert (span.trace_id, span.attributes["tl.order_id"]) == (trace_id(fill), fill.order_id)
        try:
            links = chain(span, seen)
        except KeyError:
            continue
        if links[-1] == "ingest: publish market.bars.v1":
            whole += 1
            traces.add(span.trace_id)
            assert {link.partition(":")[0] for link in links} >= {"ingest", "inference", "execution"}
    assert whole > len(ends) // 2
    # Features come mostly before the mark that a decision waited for, which then is its cause.
    assert {"preprocess: publish preprocess.features.v1", "preprocess: handle market.bars.v1"} <= {
        f"{span.service}: {span.name}" for span in spans if span.trace_id in traces
    }


def assert_explained(stack: Stack, worlds: Sequence[World], fills: Sequence[OrderFilled]) -> None:
    """An order of each world is explained from Kafka's topics, by numbers that agree, and names what ran."""
    evidence = Evidence(stack.bus)
    for world in worlds:
        fill = [one for one in fills if one.portfolio == world.portfolio.name and not one.reason][-1]
        explained = Explained(evidence, subject_of_id(evidence, fill.order_id), world.portfolio)
        facts: Any = explained.described
        assert [row for row in facts["risk"]["sizing"] if not row["agrees"]] == []
        assert [one["fill_id"] for one in facts["fills"]["fills"] if one["order_id"] == fill.order_id] == [fill.fill_id]
        assert {one["service"] for one in facts["services"]} == {"ingest", "preprocess", "inference", "execution"}
        assert "configured_otherwise" not in facts["risk"]
        assert facts["decision"]["where"]["published"]
        assert facts["reward"]["reward"] is not None


def assert_as_expected(world: World, marks: Sequence[PortfolioMarked], fills: Sequence[OrderFilled]) -> None:
    """A world's book did what the backtest does: the same fills, and the same equity to one part in a billion."""
    expected, book = world.expected, world.portfolio.name
    own = sorted((mark for mark in marks if mark.portfolio == book), key=lambda mark: mark.time)
    equity = np.array([mark.equity for mark in own])
    np.testing.assert_allclose(equity, expected.equity, rtol=1e-9, atol=0.0, err_msg=book)
    filled = np.zeros_like(expected.fill_quantity)
    row_of = {open_us: row for row, open_us in enumerate(world.bars.open_us[HISTORY:].tolist())}
    for fill in fills:
        if fill.portfolio == book:
            cell = row_of[to_us(fill.time)], world.universe.ids.index(fill.instrument)
            assert filled[cell] == 0.0, "one fill for each order"
            filled[cell] = fill.quantity if fill.side == "buy" else -fill.quantity
    np.testing.assert_array_equal(filled, expected.fill_quantity, err_msg=book)
    assert np.count_nonzero(filled) > world.traded // 4, "it trades"
