"""What inference remembers: read back from the bus, and from stored bars where records have expired."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest

from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import BusError, LogPosition, Partition, partition_for
from tradeloop.common.clock import ManualClock
from tradeloop.common.features import FeatureSet, compute_stored, log_return, talib
from tradeloop.common.market import EPOCH, Instrument, Series, Timeframe, Universe, align, from_us, to_us
from tradeloop.common.messages import FeaturesComputed, Message, ModelActivated, SignalGenerated
from tradeloop.common.messages.topics import specs, topic_of
from tradeloop.common.runtime.readback import forwards
from tradeloop.inference.adapters.bus_history import BusHistory
from tradeloop.inference.contracts import HISTORY_CHECKS, MakeHistory, Publish, check_history

M1 = Timeframe.M1
UNIVERSE = Universe(name="pair", instruments=(Instrument(id="x:A"), Instrument(id="x:B")), timeframe=M1)
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


@pytest.mark.parametrize("check", HISTORY_CHECKS, ids=lambda check: check.__name__)
def test_contract(bus: MemoryBus, check: Callable[[MakeHistory, Publish], None]) -> None:
    check(partial(BusHistory, bus), partial(publish, bus))


class Unsorted(BusHistory):
    """Gives activations as they were published."""

    def activations(self, universe: Universe, portfolio: str) -> Sequence[ModelActivated]:
        return [*super().activations(universe, portfolio)][::-1]


class OneTooMany(BusHistory):
    """Gives a row more than was asked for."""

    def features_before(
        self, time_us: int, position: LogPosition | None, universe: Universe, feature_set: FeatureSet, rows: int
    ) -> Sequence[FeaturesComputed]:
        return super().features_before(time_us, position, universe, feature_set, rows + 1)


class Blind(BusHistory):
    """Finds nothing before a message that stands on another topic."""

    def features_before(
        self, time_us: int, position: LogPosition | None, universe: Universe, feature_set: FeatureSet, rows: int
    ) -> Sequence[FeaturesComputed]:
        found = super().features_before(time_us, position, universe, feature_set, rows)
        return found if position is not None and position.partition.topic == TOPIC else []


class OnePortfolio(BusHistory):
    """Takes the decisions of all portfolios for one's own."""

    def decided(self, universe: Universe, portfolio: str) -> SignalGenerated | None:
        signals = forwards(self._bus, SignalGenerated, universe.name)
        return max((signal for _, signal in signals), default=None, key=lambda signal: signal.time)


class Doubtful(BusHistory):
    """Takes a value that is not known for zero."""

    def features_before(
        self, time_us: int, position: LogPosition | None, universe: Universe, feature_set: FeatureSet, rows: int
    ) -> Sequence[FeaturesComputed]:
        found = super().features_before(time_us, position, universe, feature_set, rows)
        known = [tuple(tuple(value or 0.0 for value in row) for row in one.values) for one in found]
        return [one.model_copy(update={"values": values}) for one, values in zip(found, known, strict=True)]


@pytest.mark.parametrize("defect", [Unsorted, OneTooMany, Blind, OnePortfolio, Doubtful])
def test_the_contract_finds_defects(bus: MemoryBus, defect: type[BusHistory]) -> None:
    with pytest.raises(AssertionError):
        check_history(partial(defect, bus), partial(publish, bus))


def test_the_contract_finds_a_history_that_forgets(bus: MemoryBus) -> None:
    other = MemoryBus()
    other.create_topics(specs({}))
    with pytest.raises(AssertionError):
        check_history(partial(BusHistory, other), partial(publish, bus))


def test_a_missing_topic_is_no_message_s_fault() -> None:
    """A run loop stops for a `BusError`; anything else would be dead-lettered, message by message."""
    with pytest.raises(BusError, match=r"^topic inference\.signals\.v1 does not exist: .*tradeloop topics apply"):
        BusHistory(MemoryBus()).decided(UNIVERSE, "book")


def test_what_cannot_be_read_counts_for_nothing(bus: MemoryBus, computed: list[FeaturesComputed]) -> None:
    publish(bus, computed[:50])
    bus.producer().publish(TOPIC, UNIVERSE.name, b"\xff not JSON", {})
    *_, position = publish(bus, computed[50:61])
    got = BusHistory(bus).features_before(to_us(computed[60].time), position, UNIVERSE, SET, 40)
    assert list(got) == computed[20:60]


@pytest.mark.parametrize("kept", [0, 5, 31])
def test_what_has_expired_is_computed_from_bars_to_the_last_bit(
    bus: MemoryBus, bars: MemoryBarStore, computed: list[FeaturesComputed], kept: int
) -> None:
    positions = publish(bus, computed[:1000])
    first = 990
    bus.drop_before(positions[0].partition, positions[first - kept].offset)
    got = BusHistory(bus, bars).features_before(to_us(computed[first].time), positions[first], UNIVERSE, SET, 31)
    assert [one.encode() for one in got] == [one.encode() for one in computed[first - 31 : first]]
    without = BusHistory(bus).features_before(to_us(computed[first].time), positions[first], UNIVERSE, SET, 31)
    assert list(without) == computed[first - kept : first]


def test_a_log_that_is_whole_is_not_filled_up_from_bars(
    bus: MemoryBus, bars: MemoryBarStore, computed: list[FeaturesComputed]
) -> None:
    positions = publish(bus, computed[100:120])
    got = BusHistory(bus, bars).features_before(to_us(computed[110].time), positions[10], UNIVERSE, SET, 31)
    assert list(got) == computed[100:110]


def test_M2_features_that_came_late_are_in_no_window(bus: MemoryBus, computed: list[FeaturesComputed]) -> None:
    """Those of bar 50 were tried again and came after bar 54: a desk that ran dropped them, and so must a new one."""
    publish(bus, [*computed[:50], *computed[51:55], computed[50], *computed[55:60]])
    [position] = publish(bus, computed[60:61])
    got = BusHistory(bus).features_before(to_us(computed[60].time), position, UNIVERSE, SET, 20)
    assert list(got) == [*computed[39:50], *computed[51:60]][-20:]
