"""What inference remembers: read back from the bus, and from stored bars where records have expired."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import LogPosition, Partition, partition_for
from tradeloop.common.clock import ManualClock
from tradeloop.common.features import FeatureSet, compute_stored, log_return, talib
from tradeloop.common.market import EPOCH, Instrument, Series, Timeframe, Universe, align, from_us
from tradeloop.common.messages import FeaturesComputed, Message, ModelActivated, SignalGenerated
from tradeloop.common.messages.topics import specs, topic_of
from tradeloop.inference.adapters.bus_history import BusHistory

M1 = Timeframe.M1
UNIVERSE = Universe(name="pair", instruments=(Instrument(id="x:A"), Instrument(id="x:B")), timeframe=M1)
OTHER = Universe(name="other", instruments=(Instrument(id="x:A"),), timeframe=M1)
SET = FeatureSet([log_return(1), talib("RSI", timeperiod=5)])
START_US = 1_767_571_200_000_000
BARS = 1500
TOPIC = topic_of(FeaturesComputed).name


@pytest.fixture(scope="module")
def bars() -> MemoryBarStore:
    generator = np.random.default_rng(0)
    series: list[Series] = []
    for _ in UNIVERSE.ids:
        open_us = START_US + M1.us * np.flatnonzero(generator.random(BARS) < 0.9)
        close = 100.0 * np.exp(np.cumsum(generator.normal(0.0, 1e-3, len(open_us))))
        series.append({"open_us": open_us, "open": close, "high": close, "low": close, "close": close})
    store = MemoryBarStore(ManualClock(EPOCH))
    store.write(M1, align(UNIVERSE.ids, M1, series))
    return store


@pytest.fixture(scope="module")
def computed(bars: MemoryBarStore) -> list[FeaturesComputed]:
    """All features, as they would have been published."""
    rows = compute_stored(bars, SET, UNIVERSE, START_US, START_US + BARS * M1.us)
    return [
        FeaturesComputed.of(UNIVERSE, SET.id, SET.names, from_us(time_us), values)
        for time_us, values in zip(rows.time_us.tolist(), rows.values.tolist(), strict=True)
    ]


@pytest.fixture
def bus() -> MemoryBus:
    bus = MemoryBus()
    bus.create_topics(specs({}))
    return bus


def publish(bus: MemoryBus, messages: Sequence[Message]) -> list[LogPosition]:
    """Publish messages, and tell where they stand."""
    positions = []
    for message in messages:
        topic = topic_of(type(message)).name
        partition = Partition(topic, partition_for(message.key, bus.partitions(topic)))
        positions.append(LogPosition(partition, bus.end_offsets(topic)[partition]))
        bus.producer().publish(topic, message.key, message.encode(), {})
    return positions


@pytest.mark.parametrize("rows", [0, 1, 31, 700])
def test_the_features_before_a_message(bus: MemoryBus, computed: list[FeaturesComputed], rows: int) -> None:
    positions = publish(bus, computed)
    for at in (0, 1, 30, 900):
        got = BusHistory(bus).features_before(computed[at], positions[at], UNIVERSE, SET, rows)
        assert list(got) == computed[max(0, at - rows) : at]


def test_what_comes_twice_is_foreign_or_broken_counts_for_nothing(
    bus: MemoryBus, computed: list[FeaturesComputed]
) -> None:
    foreign = [one.model_copy(update={"feature_set": "fs_other"}) for one in computed[:60]]
    publish(bus, computed[:50])
    bus.producer().publish(TOPIC, UNIVERSE.name, b"\xff not JSON", {})
    publish(bus, [*foreign, *computed[20:60]])
    elsewhere = LogPosition(Partition(f"{TOPIC}.retry.inference", 0), 3)
    got = BusHistory(bus).features_before(computed[60], elsewhere, UNIVERSE, SET, 40)
    assert list(got) == computed[20:60]


@pytest.mark.parametrize("kept", [0, 5, 31])
def test_what_has_expired_is_computed_from_bars_to_the_last_bit(
    bus: MemoryBus, bars: MemoryBarStore, computed: list[FeaturesComputed], kept: int
) -> None:
    positions = publish(bus, computed[:1000])
    first = 990
    bus.drop_before(positions[0].partition, positions[first - kept].offset)
    got = BusHistory(bus, bars).features_before(computed[first], positions[first], UNIVERSE, SET, 31)
    assert [one.encode() for one in got] == [one.encode() for one in computed[first - 31 : first]]
    without = BusHistory(bus).features_before(computed[first], positions[first], UNIVERSE, SET, 31)
    assert list(without) == computed[first - kept : first]


def test_a_log_that_is_whole_is_not_filled_up_from_bars(
    bus: MemoryBus, bars: MemoryBarStore, computed: list[FeaturesComputed]
) -> None:
    positions = publish(bus, computed[100:120])
    got = BusHistory(bus, bars).features_before(computed[110], positions[10], UNIVERSE, SET, 31)
    assert list(got) == computed[100:110]


def test_activations_are_those_of_the_portfolio_in_order(bus: MemoryBus) -> None:
    def activated(portfolio: str, minute: int, version: str) -> ModelActivated:
        time = from_us(START_US + minute * M1.us)
        return ModelActivated(
            universe="pair", portfolio=portfolio, time=time, model="m", version=version, model_id=version
        )

    log = [activated("a", 1, "1"), activated("b", 2, "9"), activated("a", 5, "2"), activated("a", 1, "1")]
    publish(bus, log)
    assert list(BusHistory(bus).activations(UNIVERSE, "a")) == [log[0], log[2]]
    assert list(BusHistory(bus).activations(OTHER, "a")) == []


def test_the_last_decision_of_a_portfolio(bus: MemoryBus) -> None:
    def decided(portfolio: str, minute: int) -> SignalGenerated:
        return SignalGenerated(
            universe=UNIVERSE.name,
            portfolio=portfolio,
            time=from_us(START_US + minute * M1.us),
            instruments=UNIVERSE.ids,
            targets=(0.0, 0.0),
            feature_set=SET.id,
        )

    assert BusHistory(bus).decided_us(UNIVERSE, "one") == -1
    others = [decided("another", minute) for minute in range(600)]
    publish(bus, [decided("one", 1), decided("one", 2), decided("one", 1), *others])
    assert BusHistory(bus).decided_us(UNIVERSE, "one") == START_US + 2 * M1.us
