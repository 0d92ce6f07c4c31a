"""The client of a running stack, over a bus in memory: answers, refusals, silence, interruption."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

from libs.cli.tests.stacks import World
from tradeloop.cli.client.client import Client, Failed
from tradeloop.common.bus.memory import MemoryBus, MemoryReader
from tradeloop.common.bus.port import BusUnavailable
from tradeloop.common.errors import UserError
from tradeloop.common.market import EPOCH, Instrument, Timeframe, TimeRange, Universe
from tradeloop.common.messages import (
    BackfillCompleted,
    BackfillRequested,
    Message,
    ModelActivated,
    ModelReady,
    TrainingProgressed,
    TrainingRequested,
)
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.model_store.port import ModelNotFound
from tradeloop.common.runtime.readback import Contradiction, Tail, backwards, forwards
from tradeloop.common.strategy import StrategyError

UNIVERSE = Universe(name="gold", instruments=(Instrument(id="file:gold"),), timeframe=Timeframe.H1)
RANGE = TimeRange(start=EPOCH, end=EPOCH + timedelta(hours=9))
BACKFILL = BackfillRequested(request_id="b1", universe=UNIVERSE, files={"file:gold": "gold.csv"})
TRAIN = TrainingRequested(request_id="t1", strategy="example", universe=UNIVERSE, range=RANGE, steps=10)


def completed(request_id: str) -> BackfillCompleted:
    return BackfillCompleted(request_id=request_id, universe=UNIVERSE, range=RANGE, bars=9, gaps=0)


def ready(request_id: str) -> ModelReady:
    return ModelReady(
        request_id=request_id,
        strategy="example",
        universe="gold",
        model="example-gold",
        version="3",
        alias="champion",
        model_id="c0ffee",
        feature_set="f",
    )


@pytest.fixture
def world() -> World:
    return World()


def test_it_takes_the_answer_to_its_own_request_and_none_that_was_there_before(world: World) -> None:
    world.publish(completed("b1").model_copy(update={"bars": 1}))
    world.serve("ingest", BackfillRequested, lambda asked: [completed("another"), completed(asked.request_id)])
    assert world.stack.ask(BACKFILL, BackfillCompleted).bars == 9
    assert world.said == []


def test_it_shows_the_progress_of_its_own_training(world: World) -> None:
    def train(asked: TrainingRequested) -> Iterable[Message]:
        for run in ("t0", asked.request_id):
            yield TrainingProgressed(run_id=run, strategy="example", step=5, total=10)
        yield ready(asked.request_id)

    world.serve("training", TrainingRequested, train)
    shown: list[TrainingProgressed] = []
    assert world.stack.ask(TRAIN, ModelReady, shown.append) == ready("t1")
    assert [progress.run_id for progress in shown] == ["t1"]


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (UserError("gold.csv: line 3: no price"), UserError, "^gold.csv: line 3: no price$"),
        (StrategyError("strategy mine is not installed"), UserError, "^strategy mine is not installed$"),
        (ModelNotFound("no model: train one"), UserError, "^no model: train one$"),
        (RuntimeError("UserError: not really"), Failed, "RuntimeError: UserError: not really$"),
        (RuntimeError("out of memory"), Failed, "^ingest gave up on ingest.backfill_requested.v1/.*out of memory$"),
    ],
)
def test_it_raises_what_made_the_service_give_up(
    world: World, error: Exception, kind: type[Exception], says: str
) -> None:
    def refuse(asked: BackfillRequested) -> Iterable[Message]:
        raise error

    world.serve("ingest", BackfillRequested, refuse)
    with pytest.raises(kind, match=says):
        world.stack.ask(BACKFILL, BackfillCompleted)


def test_dead_letters_of_others_and_of_earlier_do_not_count(world: World) -> None:
    def choosy(asked: BackfillRequested) -> Iterable[Message]:
        if asked.request_id != "b1":
            raise UserError("not this one")
        return [completed("b1")]

    world.serve("ingest", BackfillRequested, choosy)
    world.publish(BACKFILL.model_copy(update={"request_id": "b0"}))
    assert world.stack.ask(BACKFILL, BackfillCompleted).request_id == "b1"
    world.publish(BACKFILL.model_copy(update={"request_id": "b0"}))
    assert world.stack.ask(BACKFILL, BackfillCompleted).request_id == "b1"


def test_it_waits_for_the_given_time(world: World) -> None:
    with pytest.raises(Failed, match=r"^ingest: no BackfillCompleted within 20 s$"):
        world.stack.ask(BACKFILL, BackfillCompleted, timeout_s=20)
    assert 20 <= world.clock.monotonic() < 21


def test_every_message_is_read_once_and_contradictions_are_refused(world: World) -> None:
    world.publish(completed("b1"), completed("b2"), completed("b1"))
    assert [message.request_id for message in world.stack.read(BackfillCompleted)] == ["b1", "b2"]
    world.publish(completed("b2").model_copy(update={"bars": 10}))
    with pytest.raises(Contradiction, match=r"^ingest\.backfill_completed\.v1 has two versions of "):
        world.stack.read(BackfillCompleted)


def test_what_was_given_up_on_is_counted(world: World) -> None:
    def broken(_: BackfillRequested) -> Iterable[Message]:
        raise RuntimeError("no disk")

    world.serve("ingest", BackfillRequested, broken)
    assert world.stack.count_dead_letters() == 0
    with pytest.raises(Failed):
        world.stack.ask(BACKFILL, BackfillCompleted)
    assert world.stack.count_dead_letters() == 1


def test_it_says_once_whose_answer_does_not_come(world: World) -> None:
    def late() -> None:
        if world.clock.monotonic() > 40 and not world.runners:
            world.serve("ingest", BackfillRequested, lambda asked: [completed("b1")])

    world.on_wait = late
    assert world.stack.ask(BACKFILL, BackfillCompleted).bars == 9
    assert world.said == ["still waiting for ingest, silent for 15 s: is it running?"]


def test_it_waits_for_a_kafka_that_went_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = MemoryReader.poll

    def away(reader: MemoryReader, *arguments: Any) -> Any:
        if world.clock.monotonic() < 5:
            raise BusUnavailable("Kafka: nobody answers")
        return whole(reader, *arguments)

    monkeypatch.setattr(MemoryReader, "poll", away)
    world.serve("ingest", BackfillRequested, lambda asked: [completed("b1")])
    assert world.stack.ask(BACKFILL, BackfillCompleted).bars == 9
    assert world.said == ["still waiting: Kafka: nobody answers"]


def test_an_interruption_says_that_the_service_goes_on(world: World) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    world.on_wait = interrupt
    with pytest.raises(KeyboardInterrupt, match=r"^interrupted; training goes on with what it was asked for$"):
        world.stack.ask(TRAIN, ModelReady)
    embedded = Client(world.bus, world.clock, world.said.append, world.wait, outlived=False)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        embedded.ask(TRAIN, ModelReady)


def test_a_kafka_without_topics_is_a_line_with_the_remedy(world: World) -> None:
    stack = Client(MemoryBus(), world.clock, world.said.append)
    with pytest.raises(UserError, match=r"^topic .* does not exist: .*tradeloop topics apply"):
        stack.ask(BACKFILL, BackfillCompleted)


def activations(universe: str, count: int) -> list[ModelActivated]:
    return [
        ModelActivated(
            universe=universe,
            portfolio="book",
            time=EPOCH + timedelta(hours=hour),
            model="m",
            version=str(hour),
            model_id="id",
        )
        for hour in range(count)
    ]


def test_it_reads_a_universe_from_both_ends_past_what_cannot_be_decoded(world: World) -> None:
    mine, others = activations("gold", 5000), activations("silver", 10)
    world.publish(*mine[:100], *others, *mine[100:])
    world.bus.producer().publish(topic_of(ModelActivated).name, "gold", b"?", {})
    assert [message for _, message in forwards(world.bus, ModelActivated, "gold")] == mine
    assert list(backwards(world.bus, ModelActivated, "gold")) == mine[::-1]
    assert world.stack.newest(ModelActivated, "gold", lambda one: one.version < "2") == mine[1999]
    assert world.stack.newest(ModelActivated, "copper") is None
    offsets = [record.offset for record, _ in forwards(world.bus, ModelActivated, "gold")]
    assert offsets == sorted(offsets)


def test_a_tail_begins_at_the_end_and_keeps_to_its_key(world: World) -> None:
    name = topic_of(ModelActivated).name
    world.publish(*activations("gold", 3))
    with closing(Tail(world.bus, {name: "gold"})) as tail:
        assert tail.new() == []
        world.publish(*activations("gold", 4), *activations("silver", 4))
        assert [record.key for record in tail.new()] == ["gold"] * 4
        assert tail.new() == []
