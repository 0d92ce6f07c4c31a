"""The history of a replay beside the stack: the contract of the port, and where each kind of record comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pytest

from tradeloop.cli.replay.side_by_side import HistoryAsRecorded
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import LogPosition, Partition, partition_for
from tradeloop.common.market import Instrument, Timeframe, Universe
from tradeloop.common.messages import Message, ModelActivated, SignalGenerated
from tradeloop.common.messages.topics import specs, topic_of
from tradeloop.inference.adapters.bus_history import BusHistory
from tradeloop.inference.contracts import HISTORY_CHECKS, MakeHistory, Publish

TIME = datetime(2026, 1, 5, tzinfo=UTC)
UNIVERSE = Universe(name="u", instruments=(Instrument(id="x:A"),), timeframe=Timeframe.M1)


class Replay:
    """The buses of a live stack and of a replay, and the history that the replay reads."""

    def __init__(self) -> None:
        self.live, self.own = MemoryBus(), MemoryBus()
        for bus in (self.live, self.own):
            bus.create_topics(specs({}))

    def history(self) -> HistoryAsRecorded:
        return HistoryAsRecorded(BusHistory(self.live), BusHistory(self.own))

    def publish(self, messages: Sequence[Message]) -> Sequence[LogPosition]:
        """Publish activations where live has them, all else where the replay has it."""
        return [put(self.live if isinstance(one, ModelActivated) else self.own, one) for one in messages]


def put(bus: MemoryBus, message: Message) -> LogPosition:
    topic = topic_of(type(message)).name
    partition = Partition(topic, partition_for(message.key, bus.partitions(topic)))
    bus.producer().publish(topic, message.key, message.encode(), {})
    return LogPosition(partition, bus.end_offsets(topic)[partition] - 1)


@pytest.mark.parametrize("check", HISTORY_CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Callable[[MakeHistory, Publish], None]) -> None:
    replay = Replay()
    check(replay.history, replay.publish)


def test_models_are_those_of_live_and_decisions_the_replays_own() -> None:
    replay = Replay()
    live, own = (
        ModelActivated(universe="u", portfolio="p", time=TIME, model="m", version=version, model_id=version)
        for version in ("1", "2")
    )
    put(replay.live, live)
    put(replay.own, own)
    decided = SignalGenerated(universe="u", portfolio="p", time=TIME, instruments=UNIVERSE.ids, targets=(0.0,))
    put(replay.live, decided)
    history = replay.history()
    assert list(history.activations(UNIVERSE, "p")) == [live]
    assert history.decided(UNIVERSE, "p") is None
