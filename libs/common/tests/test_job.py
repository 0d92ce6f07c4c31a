"""A runner that ends by itself, and says whether its work was done."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from datetime import UTC, datetime

import pytest

from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import LogPosition
from tradeloop.common.clock import ManualClock, SystemClock
from tradeloop.common.errors import Unavailable, UserError
from tradeloop.common.messages import Message, TrainingProgressed
from tradeloop.common.messages.topics import specs
from tradeloop.common.runtime.job import Job
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.service import ServiceDefaults

POLICY = RunPolicy(commit_interval_s=0.0, attempts=2, retry_delay_s=1.0)


class Worker(ServiceDefaults):
    name, consumes = "worker", (TrainingProgressed,)

    def __init__(self) -> None:
        self.done: list[int] = []
        self.poison = self.down = False

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        assert isinstance(message, TrainingProgressed)
        if self.down:
            raise Unavailable("the store is away")
        if self.poison:
            raise ValueError("cannot be learnt")
        self.done.append(message.step)
        return ()

    def answers(self, message: Message) -> bool:
        return False


class World:
    def __init__(self, idle_s: float = 60.0) -> None:
        self.clock, self.bus, self.stop, self.worker = (
            ManualClock(datetime(2026, 1, 1, tzinfo=UTC)),
            MemoryBus(),
            threading.Event(),
            Worker(),
        )
        self.bus.create_topics(specs({}))
        self.job = Job(self.worker, self.bus, self.clock, idle_s, self.stop, POLICY)

    def ask(self, step: int) -> None:
        publish(self.bus.producer(), TrainingProgressed(run_id="r", strategy="s", step=step, total=9), "test")

    def turns(self, count: int, seconds: float) -> None:
        for _ in range(count):
            self.job.step()
            self.clock.advance(seconds)


def test_it_ends_once_nothing_has_come_for_a_while() -> None:
    world = World()
    world.ask(1)
    world.turns(3, 25.0)
    world.ask(2)
    world.turns(3, 25.0)
    assert not world.stop.is_set()
    world.turns(2, 25.0)
    assert world.stop.is_set()
    assert world.worker.done == [1, 2]
    world.job.check()
    world.job.close()


def test_it_does_not_end_while_something_is_away_and_then_does_all() -> None:
    world = World()
    world.worker.down = True
    world.ask(1)
    world.turns(20, 25.0)
    assert not world.stop.is_set()
    world.worker.down = False
    world.turns(5, 25.0)
    assert world.stop.is_set()
    assert world.worker.done == [1]
    world.job.check()
    world.job.close()


def test_it_does_not_end_before_the_last_attempt_and_tells_of_what_it_gave_up_on() -> None:
    world = World(idle_s=0.5)
    world.worker.poison = True
    world.ask(1)
    world.turns(100, 0.25)
    assert world.stop.is_set()
    with pytest.raises(UserError, match=r"gave up on 1 of its messages: `tradeloop dlq list`"):
        world.job.check()
    world.job.close()


def test_a_job_that_is_stopped_has_not_done_its_work() -> None:
    world = World()
    world.stop.set()
    world.job.run(world.stop)
    with pytest.raises(UserError, match="stopped before its work was done"):
        world.job.check()


def test_run_ends_by_itself() -> None:
    world = World()
    world.ask(1)
    job = Job(world.worker, world.bus, SystemClock(), 0.05, world.stop, POLICY)
    job.run(world.stop)
    assert world.worker.done == [1]
    job.check()
