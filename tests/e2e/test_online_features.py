"""Decisions on features of the online store, in the embedded stack: the same orders as on published ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.test_five_processes import COMPARED, by_identity, register
from tests.e2e.worlds import World
from tradeloop.cli.client.embedded import embedded
from tradeloop.common.feature_store.port import FeatureRows
from tradeloop.common.market import TimeRange, from_us, to_us
from tradeloop.common.messages import BackfillCompleted, FeaturesComputed, Message
from tradeloop.inference.application import online


def run(world: World, home: Path, features: str) -> tuple[dict[type[Message], dict[str, Message]], dict[str, int]]:
    """All that was decided and done, and what inference counted."""
    with embedded(home, [world.portfolio], features=features) as stack:
        stack.step()  # preprocess has its partitions before there are bars, the last of which it would bring online
        register(stack.models, [world])
        stack.client.ask(world.backfill(), BackfillCompleted)
        whole = world.replay()
        opens = world.bars.open_us[world.bars.open_us >= to_us(whole.range.start)].tolist()
        for open_us in opens if features == "online" else []:  # bar by bar, as live: a replay runs ahead of decisions
            span = TimeRange(start=from_us(open_us), end=from_us(open_us + 1))
            update = {"request_id": f"bar {open_us}", "range": span}
            stack.replay(whole.model_copy(update=update), lambda: None)
        if features == "topic":
            stack.replay(whole, lambda: None)
        [inference] = [runner.service for runner in stack.runners if runner.service.name == "inference"]
        tallies = {event: count for (event, _), count in inference.tallies().items()}
        return {kind: by_identity(stack, kind) for kind in COMPARED}, tallies


def test_the_orders_are_those_on_published_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World("quartet", 4, 300, tmp_path / "bars")
    topic, none = run(world, tmp_path / "topic", "topic")
    read: set[str] = set()
    same = online._same

    def noted(found: FeatureRows, published: FeaturesComputed) -> bool:
        read.add(str(published.time))
        return same(found, published)

    monkeypatch.setattr(online, "_same", noted)
    values, tallies = run(world, tmp_path / "online", "online")
    assert values == topic
    assert not none
    overtaken = tallies.pop("features_overtaken_online", 0)
    assert not tallies, "no decision was held for the store"
    assert len(read) > 200, "nearly nothing was read online"
    assert len(read) + overtaken >= 300
