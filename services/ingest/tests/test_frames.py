"""Which frames were published, read back from a real topic."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tradeloop.common.bus.kafka import KafkaBus, KafkaSettings
from tradeloop.common.bus.port import Bus, LogPosition, Partition, partition_for
from tradeloop.common.market import Instrument, Timeframe, TimeRange, Universe, to_us
from tradeloop.common.messages import BarFrame, Message, ReplayRequested
from tradeloop.common.messages.topics import specs, topic_of
from tradeloop.ingest.adapters.bus_frames import BusFrames

START = datetime(2026, 1, 5, tzinfo=UTC)
UNIVERSE = Universe(name="u", instruments=(Instrument(id="x:A"),), timeframe=Timeframe.M1)


@pytest.fixture
def bus(kafka: str, request: pytest.FixtureRequest) -> Bus:
    bus = KafkaBus(KafkaSettings(bootstrap_servers=kafka, prefix=f"{request.node.name}."))
    bus.create_topics(specs({}))
    return bus


def frame(minute: int, universe: str = "u", timeframe: Timeframe = Timeframe.M1, revision: int = 0) -> BarFrame:
    opened = START + timedelta(minutes=minute)
    close = opened + timedelta(seconds=timeframe.seconds)
    return BarFrame(
        universe=universe, timeframe=timeframe, open_time=opened, close_time=close, bars=(), revision=revision
    )


def publish(bus: Bus, *messages: Message) -> LogPosition:
    """Publish messages; where the last one stands."""
    producer = bus.producer()
    for message in messages:
        producer.publish(topic_of(type(message)).name, message.key, message.encode(), {})
    producer.flush()
    producer.close()
    last = topic_of(type(messages[-1])).name
    partition = Partition(last, partition_for(messages[-1].key, bus.partitions(last)))
    return LogPosition(partition, bus.end_offsets(last)[partition] - 1)


def ask(bus: Bus) -> LogPosition:
    span = TimeRange(start=START, end=START + timedelta(hours=1))
    return publish(bus, ReplayRequested(request_id="r", universe=UNIVERSE, range=span))


def test_the_newest_base_frame_since_a_request(bus: Bus) -> None:
    frames = BusFrames(bus)
    first = ask(bus)
    assert frames.newest_since(first, UNIVERSE) is None
    publish(bus, *(frame(minute) for minute in range(600)))
    assert frames.newest_since(first, UNIVERSE) == to_us(frame(599).open_time)
    others: list[Message] = [frame(700, universe="other"), frame(600, timeframe=Timeframe.H1), frame(3, revision=1)]
    publish(bus, *(200 * others))
    assert frames.newest_since(first, UNIVERSE) == to_us(frame(599).open_time)
    second = ask(bus)
    assert frames.newest_since(second, UNIVERSE) is None, "what was there before is another request's"
    publish(bus, frame(0), frame(1))
    assert frames.newest_since(second, UNIVERSE) == to_us(frame(1).open_time)
