"""A running stack in memory: a client, and services that do what a test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tradeloop.cli.client.client import Client
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import LogPosition
from tradeloop.common.clock import ManualClock
from tradeloop.common.market import EPOCH, BarArrays, Timeframe
from tradeloop.common.messages import Message
from tradeloop.common.messages.topics import SERVICE_TOPICS, specs
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.runtime.service import ServiceDefaults
from tradeloop.ingest.domain import frames


class Answering(ServiceDefaults):
    """A service that does what a test wants."""

    def __init__(self, name: str, kind: type[Message], answer: Callable[[Any], Iterable[Message]]) -> None:
        self.name, self.consumes, self._answer = name, (kind,), answer

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        return self._answer(message)


class World:
    """A bus with a client, and a service that is stepped whenever the client waits."""

    def __init__(self) -> None:
        self.bus, self.clock = MemoryBus(), ManualClock(EPOCH)
        self.bus.create_topics(specs(SERVICE_TOPICS))
        self.said: list[str] = []
        self.until_s = 100.0
        self.runners: list[Runner] = []
        self.on_wait: Callable[[], None] = lambda: None
        self.stack = Client(self.bus, self.clock, self.said.append, self.wait)

    def serve(self, name: str, kind: type[Message], answer: Callable[[Any], Iterable[Message]]) -> None:
        policy = RunPolicy(attempts=2, retry_delay_s=0.1)
        self.runners.append(Runner(Answering(name, kind, answer), self.bus, self.clock, policy))

    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.on_wait()
        for runner in self.runners:
            runner.step()
        assert self.clock.monotonic() < self.until_s, "it waits for ever"

    def publish(self, *messages: Message) -> None:
        producer = self.bus.producer()
        for message in messages:
            publish(producer, message, "test")

    def publish_frames(self, bars: BarArrays, universe: str, timeframe: Timeframe = Timeframe.M1) -> None:
        """What ingest would have published of these bars."""
        self.publish(*frames(universe, timeframe, bars))
