"""What is kept for long takes few bytes an item: packed lists, the bus in memory, messages that are read back."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import Partition, partition_for
from tradeloop.common.messages import SignalGenerated
from tradeloop.common.messages.topics import CATALOGUE, topic_of
from tradeloop.common.packed import Packed
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.readback import Messages, all_messages

TOPIC = topic_of(SignalGenerated).name
HERE = Partition(TOPIC, partition_for("gold", CATALOGUE[TOPIC].partitions))
VALUES = np.random.default_rng(0).normal(size=100_000).astype(np.float32).tolist()


def decision(t: int) -> SignalGenerated:
    """A decision on a window of 32 bars, eight of whose values are new."""
    return SignalGenerated(
        universe="gold",
        portfolio="gold",
        time=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=t),
        instruments=("file:gold",),
        targets=(VALUES[t],),
        model="example-gold",
        features=(tuple(VALUES[8 * t : 8 * t + 8]),),
        observation=tuple(VALUES[8 * t : 8 * t + 256]),
        action=(VALUES[t],),
    )


def decided(count: int) -> MemoryBus:
    """A bus with these many decisions."""
    bus = MemoryBus()
    bus.create_topics([CATALOGUE[TOPIC].spec])
    producer = bus.producer()
    for t in range(count):
        publish(producer, decision(t), "inference")
    return bus


def bytes_an_item(grow: Callable[[int], object], first: int, second: int) -> float:
    """How many bytes what `grow` makes of more items takes for each of them."""
    taken = []
    for count in (first, second):
        gc.collect()
        tracemalloc.start()
        kept = grow(count)
        gc.collect()
        taken.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        del kept
    return (taken[1] - taken[0]) / (second - first)


def peak_bytes(use: Callable[[], object]) -> int:
    tracemalloc.start()
    use()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@given(st.lists(st.one_of(st.integers(1, 300), st.tuples(st.integers(-1, 400))), max_size=8), st.data())
def test_a_packed_list_is_a_list(steps: Sequence[int | tuple[int]], data: st.DataObject) -> None:
    packed, plain, appended = Packed[tuple[int, bytes]](), list[tuple[int, bytes]](), 0
    for step in steps:
        if isinstance(step, tuple):
            packed.drop(step[0])
            plain = plain[max(step[0], 0) :]
            continue
        for n in range(appended, appended + step):
            packed.append((n, b"%d" % n))
            plain.append((n, b"%d" % n))
        appended += step
    assert len(packed) == len(plain)
    assert list(packed) == plain
    place = st.integers(-500, 1500)
    start, stop = data.draw(place), data.draw(place)
    assert packed[start:stop] == plain[start:stop]
    if -len(plain) <= start < len(plain):
        assert packed[start] == plain[start]
    else:
        with pytest.raises(IndexError):
            packed[start]


def test_a_packed_list_is_read_in_no_other_steps() -> None:
    with pytest.raises(ValueError, match="not in steps of -1"):
        Packed[int]()[::-1]


def test_a_bus_in_memory_holds_few_bytes_a_record() -> None:
    assert len(decision(0).encode()) > 5000
    # Beside the records themselves: what is remembered of times and traces, up to a bound.
    assert bytes_an_item(decided, 600, 2400) < 1200
    bus = decided(1000)
    assert 0 < bus.held_bytes(TOPIC) < 900 * 1000
    bus.drop_before(HERE, 1000)
    assert bus.held_bytes(TOPIC) == 0


def test_records_come_back_as_they_were_however_far_back() -> None:
    bus, sent = decided(700), [decision(t).encode() for t in range(700)]
    for start, end in ((0, 700), (100, 300), (699, 900), (127, 129), (0, 1)):
        records = bus.read(HERE, start, end)
        assert [record.value for record in records] == sent[start:end]
        assert [record.offset for record in records] == list(range(start, min(end, 700)))
    first, last = bus.read(HERE, 0, 1)[0], bus.read(HERE, 699, 700)[0]
    assert (first.key, first.topic, first.partition) == (last.key, last.topic, last.partition) == ("gold", *HERE)
    assert first.headers.keys() == last.headers.keys() > {"ce_id", "traceparent"}


def test_messages_read_back_are_those_of_a_list_and_stay_packed() -> None:
    bus = decided(2400)
    messages = Messages(bus, SignalGenerated)
    assert len(messages) == 2400
    assert list(messages) == list(messages) == all_messages(bus, SignalGenerated)
    assert (messages[0], messages[-1], messages[5:7]) == (decision(0), decision(2399), [decision(5), decision(6)])
    bus.drop_before(HERE, 2400)
    assert bus.held_bytes(TOPIC) == 0
    assert messages[2399] == decision(2399), "what was read back needs the bus no more"
    assert peak_bytes(lambda: sum(not signal.hold for signal in messages)) < 4_000_000  # a third of what is encoded
    assert bytes_an_item(lambda count: Messages(decided(count), SignalGenerated), 600, 2400) < 900


def test_messages_may_be_read_without_their_vectors() -> None:
    brief = Messages(decided(300), SignalGenerated, without=("observation", "features"))
    assert [*brief] == [decision(t).model_copy(update={"observation": (), "features": ()}) for t in range(300)]
