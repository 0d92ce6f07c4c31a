"""One trace from a bar to its fill and reward, over all services; and nothing that is decided depends on it."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from tests.collector import Collector, chain, collector
from tests.e2e.worlds import World
from tradeloop.cli.client.embedded import embedded
from tradeloop.common.clock import SystemClock
from tradeloop.common.messages import BackfillCompleted, BarFrame, OrderFilled, Transition
from tradeloop.common.messages.topics import CATALOGUE
from tradeloop.common.runtime.headers import TRACE, trace_id
from tradeloop.common.runtime.otlp import OtlpSpans
from tradeloop.common.runtime.readback import all_records
from tradeloop.common.runtime.traces import Tracer, TraceSettings

TRADED = 120


def run(world: World, home: Path, spans: Mapping[str, OtlpSpans]) -> tuple[list[tuple[str, bytes]], list[str]]:
    """Trade a world in one process; gives back all that was published, and the ledger."""
    with embedded(home, [world.portfolio]) as stack:
        for runner in stack.runners:
            name = runner.service.name
            if name in spans:
                runner.trace(Tracer(name, SystemClock(), spans[name].add))
        registered = stack.models.register(world.model, world.policy, metrics={}, parameters={})
        stack.models.set_alias(world.model, world.portfolio.model_alias, registered.version)
        stack.client.ask(world.backfill(), BackfillCompleted)
        stack.replay(world.replay(), lambda: None)
        published = [(topic, record.value) for topic in CATALOGUE for record in all_records(stack.bus, topic)]
        flags = {record.headers[TRACE][-2:] for record in all_records(stack.bus, "market.bars.v1")}
        assert flags == {"01" if spans else "00"}
    with closing(sqlite3.connect(home / "ledger.db")) as ledger:
        return published, [re.sub("memory-[0-9a-f]{16}", "memory", line) for line in ledger.iterdump()]


@pytest.fixture
def receiver() -> Iterator[Collector]:
    with collector() as server:
        yield server


def test_one_trace_from_bar_to_fill_and_reward(receiver: Collector, tmp_path: Path) -> None:
    world = World("solo", 1, TRADED, tmp_path / "bars")
    without, ledger = run(world, tmp_path / "off", {})
    settings = TraceSettings(endpoint=receiver.endpoint)
    services = ("ingest", "preprocess", "inference", "execution")
    spans = {name: OtlpSpans({"service": name, "version": "1", "commit": "c"}, settings) for name in services}
    traced, traced_ledger = run(world, tmp_path / "on", spans)
    for each in spans.values():
        each.close()
    assert without == traced, "what is published does not depend on traces"
    assert ledger == traced_ledger

    seen = {span.span_id: span for span in receiver.spans}
    assert len(seen) == len(receiver.spans) > 10 * TRADED
    fills = [OrderFilled.model_validate_json(value) for topic, value in traced if topic == "execution.fills.v1"]
    assert len(fills) > TRADED // 8
    bars = [
        "preprocess: publish preprocess.features.v1",
        "preprocess: handle market.bars.v1",
        "ingest: publish market.bars.v1",
    ]
    decided = [
        "execution: handle inference.signals.v1",
        "inference: publish inference.signals.v1",
        "inference: handle execution.portfolio.v1",
        "execution: publish execution.portfolio.v1",
        "execution: handle market.bars.v1",
        "ingest: publish market.bars.v1",
    ]
    for fill in fills:
        [span] = [
            span
            for span in seen.values()
            if span.attributes["messaging.message.id"] == fill.event_id("execution.fills.v1")
        ]
        assert span.trace_id == trace_id(fill)
        assert span.attributes["tl.order_id"] == fill.order_id
        assert chain(span, seen) in (
            ["execution: publish execution.fills.v1", *decided],
            ["execution: publish execution.fills.v1", *decided[:2], "inference: handle preprocess.features.v1", *bars],
        )
    rewards = [span for span in seen.values() if span.name == "publish experience.transitions.v1"]
    assert len(rewards) > TRADED // 2
    for span in rewards:
        assert chain(span, seen)[1:3] == decided[:2]
        assert chain(span, seen)[-1] == "ingest: publish market.bars.v1"
    of_bars = {trace_id(BarFrame.model_validate_json(value)) for topic, value in traced if topic == "market.bars.v1"}
    assert {span.trace_id for span in rewards} <= of_bars
    assert {span.kind for span in seen.values()} == {4, 5}, "producers and consumers"
    assert all(span.resource["service.version"] == "1" for span in seen.values())
    kinds = {Transition.model_validate_json(value).portfolio for topic, value in traced if "transitions" in topic}
    assert kinds == {world.portfolio.name}
