"""The run loop: order, commits, redelivery, retries, dead letters, holding back."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime

import numpy as np
import pytest
from structlog.testing import capture_logs

from tradeloop.common.bus.memory import MemoryBus, MemoryProducer
from tradeloop.common.bus.port import (
    BusError,
    BusUnavailable,
    LogPosition,
    MessageTooLarge,
    Partition,
    TopicSpec,
    partition_for,
)
from tradeloop.common.clock import ManualClock, SystemClock
from tradeloop.common.errors import Unavailable, UserError
from tradeloop.common.market import InstrumentEvent
from tradeloop.common.messages import InstrumentChanged, Message, ModelActivated, ServiceStarted, TrainingProgressed
from tradeloop.common.messages.topics import dead_letter_topic, event_id, retry_topic, specs, topic_of
from tradeloop.common.runtime.headers import ATTEMPT, BODY, ERROR, KIND, ORIGIN, trace_id
from tradeloop.common.runtime.manifest import manifest_of
from tradeloop.common.runtime.pending import Pending
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.pump import pump
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.runtime.service import ServiceDefaults

SOURCE = topic_of(TrainingProgressed).name
T0 = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = RunPolicy(commit_interval_s=0.0, attempts=3, retry_delay_s=1.0)


def progress(step: int, run: str = "run") -> TrainingProgressed:
    return TrainingProgressed(run_id=run, strategy="s", step=step, total=100)


class Recorder(ServiceDefaults):
    """Remembers what it handled; fails as told."""

    name = "recorder"
    consumes: tuple[type[Message], ...] = (TrainingProgressed,)

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.poison: set[int] = set()
        self.down = False
        self.committed = 0
        self.forgot = 0

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        assert isinstance(message, TrainingProgressed)
        if self.down:
            raise Unavailable("the store is away")
        if message.step in self.poison:
            raise ValueError(f"cannot stand {message.step}")
        self.steps.append(message.step)
        return [
            ModelActivated(universe="u", portfolio="p", time=T0, model="m", version=str(message.step), model_id="x")
        ]

    def before_commit(self, offsets: Mapping[Partition, int]) -> None:
        self.committed += 1

    def revoked(self) -> None:
        self.forgot += 1


@pytest.fixture
def bus() -> MemoryBus:
    bus = MemoryBus()
    bus.create_topics(specs({}))
    return bus


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(T0)


def send(bus: MemoryBus, *messages: Message) -> None:
    producer = bus.producer()
    for message in messages:
        publish(producer, message, "test")


def read(bus: MemoryBus, topic: str) -> list[tuple[bytes, dict[str, str]]]:
    with closing(bus.consumer(f"reader of {topic}", [topic])) as consumer:
        return [(record.value, dict(record.headers)) for record in consumer.poll()]


def test_handles_in_order_and_publishes_with_the_headers_of_an_event(bus: MemoryBus, clock: ManualClock) -> None:
    service = Recorder()
    runner = Runner(service, bus, clock, POLICY)
    send(bus, *(progress(i) for i in range(5)))
    assert runner.step() == 10
    assert service.steps == [0, 1, 2, 3, 4]
    published = read(bus, topic_of(ModelActivated).name)
    assert len(published) == 5
    first = ModelActivated.model_validate_json(published[0][0])
    headers = published[0][1]
    assert headers["ce_id"] == event_id(first)
    assert headers["ce_time"] == T0.isoformat()
    assert headers["ce_source"] == "/tradeloop/recorder"
    version, trace, span, flags = headers["traceparent"].split("-")
    assert (version, flags, len(trace), len(span)) == ("00", "00", 32, 16), "no span is recorded"
    assert len({h["traceparent"].split("-")[1] for _, h in published}) == 1, "one bar of one universe is one trace"


def test_what_was_committed_is_not_delivered_to_the_next_member(bus: MemoryBus, clock: ManualClock) -> None:
    first = Runner(Recorder(), bus, clock, POLICY)
    send(bus, progress(1), progress(2))
    first.step()
    first.close()
    send(bus, progress(3))
    second = Recorder()
    Runner(second, bus, clock, POLICY).step()
    assert second.steps == [3]


def test_without_a_commit_everything_is_delivered_again_with_the_same_outputs(
    bus: MemoryBus, clock: ManualClock
) -> None:
    class NeverDurable(Recorder):
        def before_commit(self, offsets: Mapping[Partition, int]) -> None:
            raise Unavailable("the store went away before the commit")

    crashed = Runner(NeverDurable(), bus, clock, POLICY)
    send(bus, progress(1), progress(2))
    crashed.step()
    crashed.close()
    again = Recorder()
    Runner(again, bus, clock, POLICY).step()
    assert again.steps == [1, 2]
    published = [value for value, _ in read(bus, topic_of(ModelActivated).name)]
    assert published[:2] == published[2:]


def test_unavailable_waits_in_place_and_loses_nothing(bus: MemoryBus, clock: ManualClock) -> None:
    service = Recorder()
    runner = Runner(service, bus, clock, POLICY)
    send(bus, progress(1), progress(2))
    service.down = True
    assert runner.step() == 0
    assert runner.waiting
    service.down = False
    assert runner.step() == 0, "the pause is honoured"
    clock.advance(POLICY.unavailable_delay_s)
    runner.step()
    assert service.steps == [1, 2]
    assert runner.counters.dead_letters == runner.counters.retried == 0


class Leaky(MemoryBus):
    """A bus that is away for a while: what was published since the last flush is then gone."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False

    def producer(self) -> MemoryProducer:
        return LeakyProducer(self)


class LeakyProducer(MemoryProducer):
    def __init__(self, bus: Leaky) -> None:
        super().__init__(bus)
        self._leaky = bus
        self._pending: list[tuple[str, str, bytes, Mapping[str, str]]] = []

    def publish(
        self, topic: str, key: str, value: bytes, headers: Mapping[str, str], message: object | None = None
    ) -> None:
        self._pending.append((topic, key, value, headers))

    def flush(self, timeout_s: float = 30.0) -> None:
        pending, self._pending = self._pending, []
        if pending and self._leaky.away:
            raise BusUnavailable("gone for lunch")
        for one in pending:
            super().publish(*one)


def test_what_the_next_message_implies_is_stored_before_it_goes_out(clock: ManualClock) -> None:
    """A process that dies in between published it, or neither."""
    bus = Leaky()
    bus.create_topics(specs({}))
    halt = InstrumentEvent(time=T0, kind="halt")

    class Ahead(Recorder):
        def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
            halts = (InstrumentChanged(universe="u", instrument=name, event=halt) for name in ("x:A", "x:B"))
            last = manifest_of("ingest", "", None, {}, clock)
            return [*halts, *super().handle(message, position), last]

    def stored() -> list[int]:
        return [len(read(bus, topic_of(kind).name)) for kind in (InstrumentChanged, ModelActivated, ServiceStarted)]

    runner = Runner(Ahead(), bus, clock, RunPolicy(commit_interval_s=1000.0))
    runner._commit_due = 1000.0
    MemoryProducer(bus).publish(SOURCE, "run", progress(1).encode(), {})
    bus.away = True
    runner.step()
    assert stored() == [0, 0, 0]
    bus.away = False
    clock.advance(10.0)
    runner.step()
    assert stored() == [2, 1, 0]
    runner.close()
    assert stored() == [2, 1, 1]


def test_what_was_published_to_a_bus_that_went_away_is_published_again(clock: ManualClock) -> None:
    bus = Leaky()
    bus.create_topics(specs({}))
    source = MemoryProducer(bus)
    runner = Runner(service := Recorder(), bus, clock, RunPolicy(commit_interval_s=2.5, unavailable_delay_s=1.0))
    for step in range(12):
        message = progress(step)
        publish(source, message, "test")
        bus.away = 4 <= step <= 8
        runner.step()
        clock.advance(1.0)
    runner.step()
    runner.close()
    published = [json.loads(value)["version"] for value, _ in read(bus, topic_of(ModelActivated).name)]
    assert sorted(set(map(int, published))) == list(range(12)), "nothing is lost"
    assert service.forgot >= 1
    again = Recorder()
    Runner(again, bus, clock, POLICY).step()
    assert again.steps == [], "all of it is committed"


def test_a_poisonous_message_is_retried_after_its_delay_then_dead_lettered(bus: MemoryBus, clock: ManualClock) -> None:
    service = Recorder()
    service.poison = {2}
    runner = Runner(service, bus, clock, POLICY)
    send(bus, progress(1), progress(2), progress(3))
    runner.step()
    assert service.steps == [1, 3], "the partition goes on"
    assert runner.step() == 0
    assert runner.waiting, "its delay has not passed"
    for _ in range(4):
        clock.advance(2.0)
        runner.step()
    dead = read(bus, dead_letter_topic(SOURCE, "recorder"))
    assert len(dead) == 1
    value, headers = dead[0]
    assert value == progress(2).encode()
    assert headers[ATTEMPT] == "3"
    assert headers[ERROR] == "ValueError: cannot stand 2"
    partition = next(iter(p.number for p, end in bus.end_offsets(SOURCE).items() if end))
    assert headers[ORIGIN] == f"{SOURCE}/{partition}/1"
    assert len(read(bus, retry_topic(SOURCE, "recorder"))) == 2
    assert (runner.counters.retried, runner.counters.dead_letters) == (2, 1)
    assert not runner.waiting


def test_a_retry_that_succeeds_goes_no_further(bus: MemoryBus, clock: ManualClock) -> None:
    service = Recorder()
    service.poison = {1}
    runner = Runner(service, bus, clock, POLICY)
    send(bus, progress(1))
    runner.step()
    service.poison = set()
    for _ in range(2):
        clock.advance(1.0)
        runner.step()
    assert service.steps == [1]
    assert not read(bus, dead_letter_topic(SOURCE, "recorder"))


def test_a_retry_topic_that_is_empty_is_looked_into_now_and_then(bus: MemoryBus, clock: ManualClock) -> None:
    service = Recorder()
    runner = Runner(service, bus, clock, POLICY)
    runner.step()
    for step in (1, 2):  # what another process put there
        bus.producer().publish(retry_topic(SOURCE, "recorder"), "run", progress(step).encode(), {})
        assert runner.step() == 0, "it is paused"
        clock.advance(POLICY.check_interval_s)
        runner.step()
        runner.step()
        assert service.steps[-1:] == [step]
        clock.advance(POLICY.check_interval_s)
        runner.step()
    service.poison.add(3)
    send(bus, progress(3))
    runner.step()
    service.poison.clear()
    clock.advance(POLICY.retry_delay_s)
    runner.step()
    assert service.steps == [1, 2, 3], "what it puts there itself is not late"


def test_a_retry_that_waits_is_not_committed(bus: MemoryBus, clock: ManualClock) -> None:
    service = Recorder()
    service.poison = {1}
    first = Runner(service, bus, clock, POLICY)
    send(bus, progress(1))
    first.step()
    first.step()
    assert first.waiting
    first.close()
    clock.advance(1.0)
    second = Recorder()
    Runner(second, bus, clock, POLICY).step()
    assert second.steps == [1]


@pytest.mark.parametrize("body", [b"", b"\xff\x00", b"[1, 2", b'{"run_id": 1}'])
def test_what_cannot_be_decoded_is_dead_lettered(bus: MemoryBus, clock: ManualClock, body: bytes) -> None:
    service = Recorder()
    runner = Runner(service, bus, clock, RunPolicy(commit_interval_s=0.0, attempts=1))
    bus.producer().publish(SOURCE, "run", body, {})
    send(bus, progress(7))
    runner.step()
    assert service.steps == [7]
    assert [value for value, _ in read(bus, dead_letter_topic(SOURCE, "recorder"))] == [body]


class Flaky(MemoryBus):
    """A bus that refuses what goes aside."""

    refusal: Exception | None = None

    def _append(self, topic: str, key: str, value: bytes, headers: Mapping[str, str], message: object | None) -> None:
        if self.refusal and (".retry." in topic or ".dlq." in topic):
            raise self.refusal
        super()._append(topic, key, value, headers, message)


@pytest.mark.parametrize("attempts", [1, 3])
def test_what_cannot_be_put_aside_stays_where_it_is(clock: ManualClock, attempts: int) -> None:
    bus, service = Flaky(), Recorder()
    runner = Runner(service, bus, clock, RunPolicy(commit_interval_s=0.0, attempts=attempts))
    send(bus, progress(1), progress(2), progress(3))
    service.poison, bus.refusal = {2}, BusUnavailable("no broker")
    for _ in range(3):
        clock.advance(1.0)
        runner.step()
        assert set(service.steps) == {1}, "nothing overtakes it"
        assert runner.not_ready() == ("no broker",)
        assert (runner.counters.retried, runner.counters.dead_letters) == (0, 0)
        assert not any(runner.committed.values())
    bus.refusal = None
    clock.advance(1.0)
    runner.step()
    assert service.steps[-2:] == [1, 3]
    assert (runner.counters.retried, runner.counters.dead_letters) == ((1, 0) if attempts > 1 else (0, 1))


@pytest.mark.parametrize("where", ["handler", "retry topic"])
def test_a_bus_that_refuses_for_good_is_not_the_messages_fault(clock: ManualClock, where: str) -> None:
    """Or else a missing permission would carry a whole topic to the dead letters."""

    class Forbidden(Recorder):
        def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
            raise BusError("not authorized") if where == "handler" else ValueError("poison")

    bus = Flaky()
    bus.refusal = BusError("not authorized")
    runner = Runner(Forbidden(), bus, clock, POLICY)
    send(bus, progress(1))
    for _ in range(2):
        with pytest.raises(BusError, match="not authorized"):
            runner.step()
    assert not runner.committed
    assert not read(bus, retry_topic(SOURCE, "recorder"))


def test_a_message_that_its_headers_make_too_large_leaves_its_origin(clock: ManualClock) -> None:
    class Small(MemoryBus):
        def _append(
            self, topic: str, key: str, value: bytes, headers: Mapping[str, str], message: object | None
        ) -> None:
            if ".dlq." in topic and value:
                from tradeloop.common.bus.port import MessageTooLarge

                raise MessageTooLarge(topic)
            super()._append(topic, key, value, headers, message)

    bus = Small()
    service = Recorder()
    service.poison = {1}
    runner = Runner(service, bus, clock, RunPolicy(attempts=1))
    send(bus, progress(1))
    runner.step()
    value, headers = read(bus, dead_letter_topic(SOURCE, "recorder"))[0]
    assert value == b""
    assert headers[ORIGIN].startswith(SOURCE)
    assert headers[BODY] == headers[ORIGIN]
    assert headers[ERROR] == "ValueError: cannot stand 1"


class Forgetful(Recorder):
    """Takes a message as handled before it has handled it: a second attempt finds it done."""

    name = "forgetful"

    def __init__(self) -> None:
        super().__init__()
        self.begun: set[int] = set()
        self.silent = False

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        assert isinstance(message, TrainingProgressed)
        if message.step in self.begun:
            return ()
        self.begun.add(message.step)
        return super().handle(message, position)

    def answers(self, message: Message) -> bool:
        return not self.silent


def after_its_retries(runner: Runner, clock: ManualClock) -> None:
    runner.step()
    for _ in range(4):
        clock.advance(2.0)
        runner.step()


def test_C1_a_retry_that_does_nothing_is_a_failure(bus: MemoryBus, clock: ManualClock) -> None:
    service = Forgetful()
    service.poison = {2}
    runner = Runner(service, bus, clock, POLICY)
    send(bus, progress(1), progress(2), progress(1))
    after_its_retries(runner, clock)
    [(value, headers)] = read(bus, dead_letter_topic(SOURCE, "forgetful"))
    assert value == progress(2).encode()
    assert headers[ERROR] == "NoEffect: the retry had no effect, although the attempt before it failed"
    assert service.steps == [1], "the second message of step 1 was no retry"


def test_a_retry_may_do_nothing_where_the_service_says_so_or_waits_with_it(bus: MemoryBus, clock: ManualClock) -> None:
    class Waits(Forgetful):
        name = "waits"
        held = Pending()

        def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
            outputs = super().handle(message, position)
            if not outputs:
                self.held.hold(position)
            return outputs

        def pending(self) -> Pending:
            return self.held

    silent, waits = Forgetful(), Waits()
    silent.silent = True
    for service in (silent, waits):
        service.poison = {2}
        runner = Runner(service, bus, clock, POLICY)
        send(bus, progress(2))
        after_its_retries(runner, clock)
        assert runner.counters.dead_letters == 0
        assert runner.counters.retried >= 1
        runner.close()


class Wordy(Recorder):
    """Says more than a bus takes, as an answer or by itself; counts what was handed over."""

    name = "wordy"

    def __init__(self) -> None:
        super().__init__()
        self.verbose: set[int] = set()
        self.short = True
        self.by_itself: list[int] = []
        self.uncommitted: list[int] = []
        self.handed_over: list[int] = []

    def handle(self, message: Message, position: LogPosition) -> Iterator[Message]:
        assert isinstance(message, TrainingProgressed)
        yield from self._say(message.step)

    def advance(self) -> Iterator[Message]:
        while self.by_itself:
            self.uncommitted.append(self.by_itself.pop(0))
            yield from self._say(self.uncommitted[-1])

    def before_commit(self, offsets: Mapping[Partition, int]) -> None:
        self.uncommitted.clear()

    def revoked(self) -> None:
        self.by_itself[:0], self.uncommitted = self.uncommitted, []

    def _say(self, step: int) -> Iterator[Message]:
        why = "because " * 20_000 if step in self.verbose else ""
        yield ModelActivated(
            universe="u", portfolio="p", time=T0, model="m", version=str(step), model_id="x", cause=why
        )
        self.handed_over.append(step)

    def substitutes(self, refused: Message, error: MessageTooLarge) -> Iterable[Message] | None:
        assert isinstance(refused, ModelActivated)
        return [refused.model_copy(update={"cause": str(error)})] if self.short else None


def said(bus: MemoryBus) -> list[tuple[int, bool]]:
    """The versions that were published, each with whether it has a cause."""
    found = [ModelActivated.model_validate_json(value) for value, _ in read(bus, topic_of(ModelActivated).name)]
    return [(int(each.version), bool(each.cause)) for each in found]


def test_M3_what_the_bus_refuses_for_its_size_is_replaced(clock: ManualClock) -> None:
    bus, service = MemoryBus(max_message_bytes=100_000), Wordy()
    service.verbose = {2, 5}
    runner = Runner(service, bus, clock, POLICY)
    send(bus, progress(1), progress(2), progress(3))
    service.by_itself = [4, 5, 6]
    runner.step()
    assert said(bus) == [(1, False), (2, True), (3, False), (4, False), (5, True), (6, False)]
    assert service.handed_over == [1, 2, 3, 4, 5, 6]
    assert runner.counters.retried == runner.counters.dropped == 0


def test_M3_without_a_substitute_the_message_is_given_up_on_or_the_output_counted(clock: ManualClock) -> None:
    bus, service = MemoryBus(max_message_bytes=100_000), Wordy()
    service.verbose, service.short = {2, 5}, False
    runner = Runner(service, bus, clock, POLICY)
    send(bus, progress(1), progress(2), progress(3))
    service.by_itself = [4, 5]
    after_its_retries(runner, clock)
    assert said(bus) == [(1, False), (3, False), (4, False)]
    assert service.handed_over == [1, 3, 4, 5], "an answer that was refused was not handed over"
    assert runner.counters.dead_letters == runner.counters.dropped == 1
    service.by_itself = [6]
    runner.step()
    assert service.handed_over[-1] == 6, "what comes by itself goes on"


def test_a_service_is_told_which_keys_come_to_it(bus: MemoryBus, clock: ManualClock) -> None:
    class Owner(Recorder):
        name = "owner"
        owns: Callable[[str], bool] | None = None

        def assigned(self, committed: Mapping[Partition, int], owns: Callable[[str], bool]) -> Mapping[Partition, int]:
            self.owns = owns
            return {}

    services = Owner(), Owner()
    runners = [Runner(service, bus, clock, POLICY) for service in services]
    for _ in range(3):
        for runner in runners:
            runner.step()
    keys = [f"run-{n}" for n in range(40)]
    for key in keys:
        owners = [service.owns is not None and service.owns(key) for service in services]
        assert sum(owners) == 1
        send(bus, progress(1, key))
        partition = partition_for(key, bus.partitions(SOURCE))
        assert Partition(SOURCE, partition) in (runners[owners.index(True)].assigned or ())


class Holder(Recorder):
    """Takes messages in without settling them."""

    name = "holder"

    def __init__(self) -> None:
        super().__init__()
        self.taken = Pending()
        self.positions: list[LogPosition] = []

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        self.taken.hold(position)
        self.positions.append(position)
        return super().handle(message, position)

    def pending(self) -> Pending:
        return self.taken


def test_held_messages_are_not_committed_and_too_many_pause_the_partition(bus: MemoryBus, clock: ManualClock) -> None:
    service = Holder()
    runner = Runner(service, bus, clock, RunPolicy(commit_interval_s=0.0, max_records=4, max_pending=4))
    send(bus, *(progress(i) for i in range(10)))
    runner.step()
    assert service.steps == [0, 1, 2, 3]
    assert runner.step() == 0, "four are held: paused"
    for position in service.positions[:3]:
        service.taken.release(position)
    runner.step()
    runner.step()
    assert service.steps[:8] == list(range(8))
    runner.close()
    again = Recorder()
    again.name = "holder"
    Runner(again, bus, clock, POLICY).step()
    assert again.steps[0] == 3, "everything from the oldest held message on comes again"


def test_bytes_that_wait_pause_a_partition_too(bus: MemoryBus, clock: ManualClock) -> None:
    service = Holder()
    policy = RunPolicy(commit_interval_s=0.0, max_records=2, max_pending_bytes=4 * len(progress(0).encode()))
    runner = Runner(service, bus, clock, policy)
    send(bus, *(progress(i) for i in range(10)))
    while runner.step():
        pass
    assert service.steps == [0, 1, 2, 3]
    for position in service.positions[:2]:
        service.taken.release(position)
    for _ in range(4):
        runner.step()
    assert service.steps == [0, 1, 2, 3, 4, 5], "as much again as was finished"


def test_H6_a_failure_says_which_universe_bar_and_trace_and_where_it_was_raised(
    bus: MemoryBus, clock: ManualClock
) -> None:
    class Activated(Recorder):
        name = "activated"
        consumes = (ModelActivated,)

        def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
            raise KeyError("lost")

    runner = Runner(Activated(), bus, clock, POLICY)
    message = ModelActivated(universe="u", portfolio="p", time=T0, model="m", version="1", model_id="x")
    with capture_logs() as logs:
        send(bus, message)
        after_its_retries(runner, clock)
    lines = [line for line in logs if line["event"] == "message failed"]
    assert [line["attempt"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert (line["universe"], line["portfolio"], line["time"]) == ("u", "p", T0.isoformat())
        assert line["trace_id"] == trace_id(message)
        assert line["exc_info"].__traceback__.tb_next is not None, "the traceback reaches into the handler"
        assert line["error"] == "KeyError: 'lost'"


def test_M5_topics_of_different_partition_counts_are_refused(clock: ManualClock) -> None:
    bus = MemoryBus()
    bus.create_topics([TopicSpec(SOURCE, 3)])
    with pytest.raises(UserError, match=rf"recorder cannot start: .*{SOURCE} 3, .*retry.recorder 12.*topics diff"):
        Runner(Recorder(), bus, clock, POLICY)


def test_L1_an_outage_is_logged_once_then_every_minute_and_when_it_is_over(bus: MemoryBus, clock: ManualClock) -> None:
    service = Recorder()
    runner = Runner(service, bus, clock, POLICY)
    send(bus, progress(1))
    service.down = True
    with capture_logs() as logs:
        for _ in range(150):
            runner.step()
            clock.advance(1.0)
        service.down = False
        runner.step()
    about = [(line["event"], line.get("for_s", line.get("after_s"))) for line in logs]
    assert about == [
        ("unavailable", 0.0),
        ("unavailable", 60.0),
        ("unavailable", 120.0),
        ("available again", 150.0),
    ]


def test_L1_what_is_unavailable_keeps_no_processor_busy(bus: MemoryBus) -> None:
    class Stopping(Recorder):
        tries = 0

        def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
            self.tries += 1
            if self.tries == 4:
                stop.set()
            raise Unavailable("the store is away")

    stop, service = threading.Event(), Stopping()
    runner = Runner(service, bus, SystemClock(), RunPolicy(unavailable_delay_s=0.05))
    steps = 0
    step = runner.step

    def counted(timeout_s: float = 0.0) -> int:
        nonlocal steps
        steps += 1
        return step(timeout_s)

    runner.step = counted  # type: ignore[method-assign]
    send(bus, progress(1))
    runner.run(stop)
    assert steps <= 2 * service.tries + 1


def test_L2_closing_asks_a_bus_that_is_away_once_and_not_for_long(clock: ManualClock) -> None:
    """A container is killed after half a minute; what was not committed comes again to the next one."""
    asked: list[float] = []

    class Silent(MemoryProducer):
        def flush(self, timeout_s: float = 30.0) -> None:
            asked.append(timeout_s)
            raise BusUnavailable("no answer")

    class Away(MemoryBus):
        def producer(self) -> MemoryProducer:
            return Silent(self)

    bus = Away()
    bus.create_topics(specs({}))
    runner = Runner(service := Recorder(), bus, clock, RunPolicy(commit_interval_s=1000.0))
    MemoryProducer(bus).publish(SOURCE, "run", progress(1).encode(), {})
    runner._commit_due = 1000.0
    runner.step()
    assert service.steps == [1]
    runner.close()
    assert asked == [5.0]


def test_M7_many_failures_in_a_row_are_nobodys_fault(bus: MemoryBus, clock: ManualClock) -> None:
    service = Recorder()
    service.poison = set(range(2, 40))
    runner = Runner(service, bus, clock, POLICY)
    send(bus, *(progress(i) for i in range(40)))
    with capture_logs() as logs:
        for _ in range(20):
            runner.step()
            clock.advance(1.0)
    assert service.steps == [0, 1]
    assert runner.counters.retried == 4
    assert runner.counters.dead_letters == 0, "not even those that failed first"
    [reason] = runner.not_ready()
    assert reason == "5 messages in a row failed with ValueError, the last one with: cannot stand 6"
    assert len([line for line in logs if line["event"].startswith("every message fails")]) == 1
    service.poison = set()
    for _ in range(4):
        clock.advance(1.0)
        runner.step()
    assert sorted(service.steps) == list(range(40))
    assert runner.counters.dead_letters == 0
    assert runner.not_ready() == ()


def test_M7_a_row_of_bad_messages_ends_all_the_same(bus: MemoryBus, clock: ManualClock) -> None:
    service = Recorder()
    service.poison = set(range(7))
    runner = Runner(service, bus, clock, RunPolicy(commit_interval_s=0.0, attempts=1, systemic_patience_s=60.0))
    send(bus, *(progress(i) for i in range(9)))
    for _ in range(59):
        runner.step()
        clock.advance(1.0)
    assert runner.counters.dead_letters == 4
    for _ in range(140):
        runner.step()
        clock.advance(1.0)
    assert service.steps == [7, 8]
    assert runner.counters.dead_letters == 7


def test_M7_different_errors_and_errors_of_the_messages_own_do_not_add_up(bus: MemoryBus, clock: ManualClock) -> None:
    class Various(Recorder):
        name = "various"

        def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
            assert isinstance(message, TrainingProgressed)
            raise (ValueError, KeyError)[message.step % 2](message.step) if message.step < 20 else UserError("yours")

    runner = Runner(Various(), bus, clock, RunPolicy(commit_interval_s=0.0, attempts=1))
    send(bus, *(progress(i) for i in range(40)))
    for _ in range(20):
        bus.producer().publish(SOURCE, "run", b"?", {})
    runner.step()
    assert runner.counters.dead_letters == 60
    assert runner.not_ready() == ()


class Killed(BaseException):
    """The end of a process: nothing after it is carried out."""


class Mortal(Recorder):
    """Dies at some messages, of nothing that anybody can catch."""

    name = "mortal"

    def __init__(self, *lethal: int) -> None:
        super().__init__()
        self.lethal = set(lethal)

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        assert isinstance(message, TrainingProgressed)
        if message.step in self.lethal:
            raise Killed
        return super().handle(message, position)


def lives(bus: MemoryBus, service: Mortal, clock: ManualClock, policy: RunPolicy = POLICY) -> Runner | None:
    """A life of a process: until nothing is left to do, or its end."""
    runner = Runner(service, bus, clock, policy)
    try:
        while runner.step():
            pass
    except Killed:
        # A server takes the partitions of a dead member away.
        group = bus._groups[service.name]
        group.members.clear()
        group.generation += 1
        return None
    return runner


def test_H3_a_message_at_which_the_process_dies_is_set_aside(bus: MemoryBus, clock: ManualClock) -> None:
    send(bus, *(progress(i, f"run-{i % 7}") for i in range(100)))
    services = [Mortal(40, 77) for _ in range(20)]
    ends = []
    for service in services:
        ends.append(lives(bus, service, clock))
        if ends[-1] is not None:
            break
    deaths = sum(end is None for end in ends)
    assert deaths <= 8, "four for each: in its batch, and three times alone"
    dead = read(bus, dead_letter_topic(SOURCE, "mortal"))
    assert {value for value, _ in dead} == {progress(n, f"run-{n % 7}").encode() for n in (40, 77)}
    for _, headers in dead:
        assert headers[ERROR] == "Lethal: the process died at it, or took longer than its group allows, 3 times"
        assert headers[KIND] == "internal"
    handled = {step for service in services for step in service.steps}
    assert handled == set(range(100)) - {40, 77}
    runner = ends[-1]
    assert runner is not None
    runner.close()
    assert not bus._groups["mortal"].notes.get(next(iter(bus.end_offsets(SOURCE)))), "who leaves takes the note away"


def test_H3_processes_that_are_killed_at_any_message_set_nothing_aside(bus: MemoryBus, clock: ManualClock) -> None:
    """Each life ends somewhere else: no message is to blame."""
    victims = np.random.default_rng(7).permutation(300)[:60]
    send(bus, *(progress(i, f"run-{i % 7}") for i in range(300)))
    steps: set[int] = set()
    policy = RunPolicy(commit_interval_s=0.0, attempts=3, max_records=20, max_uncommitted=20)
    for victim in (*victims.tolist(), -1):
        service = Mortal(victim)
        lives(bus, service, clock, policy)
        steps.update(service.steps)
    assert steps == set(range(300))
    assert not read(bus, dead_letter_topic(SOURCE, "mortal"))


def test_H3_errors_that_a_process_survives_are_not_its_death(bus: MemoryBus, clock: ManualClock) -> None:
    """A store that is away, a bus that refuses for good: however often the process is killed while it waits."""

    class Waits(Mortal):
        refusal: Exception = Unavailable("the store is away")

        def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
            raise self.refusal

    send(bus, progress(1))
    assert lives(bus, Mortal(1), clock) is None
    for refusal in (Unavailable("the store is away"), BusError("not authorized")) * 3:
        service = Waits()
        service.refusal = refusal
        runner = Runner(service, bus, clock, POLICY)
        with suppress(BusError):
            runner.step()
        bus._groups["mortal"].members.clear()
    runner = Runner(healthy := Mortal(), bus, clock, POLICY)
    runner.step()
    assert healthy.steps == [1]
    assert runner.counters.dead_letters == 0


def test_H3_after_a_death_few_messages_are_handled_alone(bus: MemoryBus, clock: ManualClock) -> None:
    """Only what may have been in hand: what the dead one is known to have survived, and what came later, is not."""
    policy = RunPolicy(commit_interval_s=0.0, max_records=10, max_uncommitted=10)
    send(bus, *(progress(i) for i in range(45)))
    assert lives(bus, Mortal(33), clock, policy) is None
    send(bus, *(progress(i) for i in range(45, 100)))
    service = Mortal()
    runner = lives(bus, service, clock, policy)
    assert runner is not None
    assert service.steps == list(range(30, 100))
    assert 15 <= service.committed <= 40, "a commit before each of 15, then one for each batch"


def test_a_death_within_what_waits_spares_those_that_wait(bus: MemoryBus, clock: ManualClock) -> None:
    class Waiting(Mortal):
        name = "waiting"

        def __init__(self, *lethal: int) -> None:
            super().__init__(*lethal)
            self.held = Pending()

        def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
            outputs = super().handle(message, position)
            if self.steps[-1] < 3:
                self.held.hold(position)
            return outputs

        def pending(self) -> Pending:
            return self.held

    send(bus, *(progress(i) for i in range(10)))
    lifes = [lives(bus, service := Waiting(6), clock) for _ in range(5)]
    assert [life is None for life in lifes] == [True, True, True, True, False]
    assert service.steps == [0, 1, 2, 3, 4, 5, 7, 8, 9]
    assert len(read(bus, dead_letter_topic(SOURCE, "waiting"))) == 1


def test_what_a_server_refuses_for_its_size_is_found_out_and_spares_the_others(clock: ManualClock) -> None:
    """A server's limit below the client's shows when the outputs are stored, not when they are published."""
    bus = Strict()
    bus.create_topics(specs({}))
    service = Wordy()
    service.verbose, service.short = {3, 6}, False
    runner = Runner(service, bus, clock, POLICY)
    for step in range(8):
        MemoryProducer(bus).publish(SOURCE, "run", progress(step).encode(), {})
    service.by_itself = [10, 11]
    for _ in range(30):
        runner.step()
        clock.advance(1.0)
    assert {step for step, _ in said(bus)} == {0, 1, 2, 4, 5, 7, 10, 11}
    dead = read(bus, dead_letter_topic(SOURCE, "wordy"))
    assert [value for value, _ in dead] == [progress(3).encode(), progress(6).encode()]
    assert runner.not_ready() == ()
    service.short = True
    service.by_itself, service.verbose = [20, 21, 22], {21}
    for _ in range(5):
        clock.advance(1.0)
        runner.step()
    assert {(20, False), (21, True), (22, False)} <= set(said(bus))


class Strict(MemoryBus):
    """A bus whose server refuses a whole batch when one of its messages is too large."""

    def producer(self) -> MemoryProducer:
        return StrictProducer(self)


class StrictProducer(MemoryProducer):
    def __init__(self, bus: Strict) -> None:
        super().__init__(bus)
        self._batch: list[tuple[str, str, bytes, Mapping[str, str]]] = []

    def publish(
        self, topic: str, key: str, value: bytes, headers: Mapping[str, str], message: object | None = None
    ) -> None:
        self._batch.append((topic, key, value, headers))

    def flush(self, timeout_s: float = 30.0) -> None:
        batch, self._batch = self._batch, []
        if any(len(value) > 100_000 for _, _, value, _ in batch):
            raise MessageTooLarge("the server's limit")
        for one in batch:
            super().publish(*one)


def test_pump_runs_services_until_all_are_quiet(bus: MemoryBus, clock: ManualClock) -> None:
    class Echo(ServiceDefaults):
        name = "echo"
        consumes = (ModelActivated,)
        seen = 0

        def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
            self.seen += 1
            return [progress(self.seen, "other")] if self.seen < 3 else ()

    recorder, echo = Recorder(), Echo()
    send(bus, progress(1))
    pump([Runner(echo, bus, clock, POLICY), Runner(recorder, bus, clock, POLICY)])
    assert echo.seen == 3
    assert recorder.steps == [1, 1, 2]
