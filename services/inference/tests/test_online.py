"""Decisions on features of the online store: only on those of the very bar, to the bit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from structlog.testing import capture_logs

from tradeloop.common.clock import ManualClock
from tradeloop.common.feature_store.memory import MemoryFeatureStore
from tradeloop.common.feature_store.port import FeatureRows
from tradeloop.common.market import to_us
from tradeloop.common.messages import FeaturesComputed
from tradeloop.inference.application.online import NotOnlineYet, OnlineFeatures

START = datetime(2026, 1, 5, tzinfo=UTC)
IDS, NAMES, SET = ("x:A", "x:B"), ("a", "b"), "fs_1"
ODD = ((0.1 + 0.2, -0.0), (None, 5e-324))


def published(minute: int, values: Sequence[Sequence[float | None]] = ODD) -> FeaturesComputed:
    return FeaturesComputed(
        universe="u",
        feature_set=SET,
        time=START + timedelta(minutes=minute),
        instruments=IDS,
        names=NAMES,
        values=tuple(tuple(row) for row in values),
    )


class World:
    def __init__(self) -> None:
        self.store, self.clock = MemoryFeatureStore(), ManualClock(START)
        self.tallies: Counter[tuple[str, str]] = Counter()
        self.online = OnlineFeatures(self.store, self.clock, "book", self.tallies, 5.0)

    def write(self, minute: int, values: Sequence[Sequence[float | None]] = ODD, ids: tuple[str, ...] = IDS) -> None:
        self.store.define(SET, NAMES)
        numbers = [[math.nan if value is None else value for value in row] for row in values][: len(ids)]
        time_us = to_us(START + timedelta(minutes=minute))
        self.store.write_online(SET, "u", FeatureRows(ids, NAMES, np.array([time_us]), np.array([numbers])))


@pytest.fixture
def world() -> World:
    return World()


def test_the_features_of_that_very_bar_are_those_that_were_published(world: World) -> None:
    world.write(1)
    assert repr(world.online.of(published(1))) == repr(published(1))
    assert not world.tallies


def test_a_store_that_is_behind_is_waited_for_and_then_there_is_nothing_to_decide_on(world: World) -> None:
    world.write(0)
    with pytest.raises(NotOnlineYet, match="are of the bar that closed 2026-01-05T00:00:00"):
        world.online.of(published(1))
    world.clock.advance(4.9)
    with pytest.raises(NotOnlineYet):
        world.online.of(published(1))
    world.write(1)
    assert world.online.of(published(1)) == published(1)
    with pytest.raises(NotOnlineYet):
        world.online.of(published(2))
    world.clock.advance(5.0)
    with capture_logs() as logs:
        found = world.online.of(published(2))
    assert found.error.endswith("for 5 s")
    assert {value for row in found.values for value in row} == {None}
    assert world.tallies == {("features_not_online", "book"): 1}
    assert [line["event"] for line in logs] == ["features_not_online"]
    with pytest.raises(NotOnlineYet):
        world.online.of(published(3))  # the next bar has a wait of its own


def test_a_set_that_nobody_wrote_is_waited_for(world: World) -> None:
    with pytest.raises(NotOnlineYet, match="is unknown"):
        world.online.of(published(1))


def test_a_store_that_is_ahead_leaves_the_decision_to_what_was_published_and_counts_it(world: World) -> None:
    world.write(9, ((1.0, 1.0), (1.0, 1.0)))
    assert world.online.of(published(1)) == published(1)
    assert world.tallies == {("features_overtaken_online", "book"): 1}


@pytest.mark.parametrize(
    "wrong", [((0.3, -0.0), (None, 5e-324)), ((0.1 + 0.2, 0.0), (None, 5e-324)), ((0.1 + 0.2, -0.0), (1.0, 5e-324))]
)
def test_values_that_differ_in_a_bit_are_decided_on_by_nobody(
    world: World, wrong: Sequence[Sequence[float | None]]
) -> None:
    world.write(1, wrong)
    with pytest.raises(NotOnlineYet, match="are not the published ones"):
        world.online.of(published(1))
    world.clock.advance(5.0)
    assert "not the published ones" in world.online.of(published(1)).error
    assert world.tallies == {("features_differ_online", "book"): 1}


def test_a_bar_that_is_half_written_is_waited_for(world: World) -> None:
    world.write(1)
    world.write(2, ((7.0, 7.0),), IDS[:1])
    with pytest.raises(NotOnlineYet):
        world.online.of(published(1))
    world.write(2, ((7.0, 7.0), (7.0, 7.0)))
    assert world.online.of(published(1)) == published(1)
    assert world.tallies == {("features_overtaken_online", "book"): 1}


def test_features_that_failed_are_not_looked_for(world: World) -> None:
    failed = published(1).unknown("ZeroDivisionError")
    assert world.online.of(failed) == failed
