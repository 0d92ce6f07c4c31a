"""What cannot be handled, on a real Kafka: it is tried again, then put away whole, and nothing waits for it."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.waiting import until
from tradeloop.common.bus.kafka import Difference, KafkaBus, KafkaSettings
from tradeloop.common.bus.port import LogPosition, Partition, Record
from tradeloop.common.clock import SystemClock
from tradeloop.common.messages import Message, ModelActivated, TrainingProgressed
from tradeloop.common.messages.topics import dead_letter_topic, retry_topic, specs, topic_of
from tradeloop.common.runtime.headers import ATTEMPT, BODY, ERROR, NOT_BEFORE, ORIGIN
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.runtime.service import ServiceDefaults

SOURCE, OUTPUT = topic_of(TrainingProgressed).name, topic_of(ModelActivated).name
T0 = datetime(2026, 1, 1, tzinfo=UTC)
CLOCK = SystemClock()
POLICY = RunPolicy(commit_interval_s=0.0, attempts=3, retry_delay_s=0.2, unavailable_delay_s=0.1)
PREFIX = f"{secrets.token_hex(4)}."
FAST = {"heartbeat.interval.ms": "100"}


@pytest.fixture(scope="module")
def bus(kafka: str) -> Iterator[KafkaBus]:
    with closing(KafkaBus(KafkaSettings(bootstrap_servers=kafka, prefix=PREFIX, extra=FAST))) as bus:
        bus.create_topics(specs({}))
        yield bus


def progress(step: int) -> TrainingProgressed:
    return TrainingProgressed(run_id="run", strategy="s", step=step, total=100)


@dataclass
class Picky(ServiceDefaults):
    """Answers each message with one; raises, or answers too much, as told."""

    name: str = field(default_factory=lambda: f"picky-{secrets.token_hex(4)}")
    consumes: tuple[type[Message], ...] = (TrainingProgressed,)
    handled: list[int] = field(default_factory=list)
    tried: list[tuple[int, float]] = field(default_factory=list)
    poison: int | None = None
    verbose: int | None = None
    much: int = 1_200_000

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        assert isinstance(message, TrainingProgressed)
        self.tried.append((message.step, CLOCK.now().timestamp()))
        if message.step == self.poison:
            raise ValueError(f"cannot stand {message.step}")
        self.handled.append(message.step)
        why = secrets.token_hex(self.much // 2) if message.step == self.verbose else ""
        return [
            ModelActivated(
                universe="u", portfolio="p", time=T0, model="m", version=str(message.step), model_id="x", cause=why
            )
        ]


def poll(runner: Runner) -> bool:
    return runner.step(timeout_s=0.05) >= 0


@contextmanager
def running(bus: KafkaBus, service: Picky, policy: RunPolicy = POLICY) -> Iterator[Runner]:
    """A runner whose group starts at the end of what other tests left."""
    with closing(bus.consumer(service.name, [SOURCE])) as member:
        until(lambda: bool(member.poll(timeout_s=0.1)) or bool(member.assignment()))
        member.commit(bus.end_offsets(SOURCE))
    with closing(Runner(service, bus, CLOCK, policy)) as runner:
        until(lambda: runner.step(timeout_s=0.05) == 0 and runner.assigned is not None)
        yield runner


def send(bus: KafkaBus, *values: bytes, headers: dict[str, str] | None = None) -> None:
    with closing(bus.producer()) as producer:
        for value in values:
            producer.publish(SOURCE, "run", value, headers or {})
        producer.flush()


def everything(bus: KafkaBus, topic: str) -> list[Record]:
    return [record for place, end in bus.end_offsets(topic).items() for record in bus.read(place, 0, end)]


def source_end(bus: KafkaBus) -> tuple[Partition, int]:
    """Where messages of the one key stand, and the offset that the next one gets."""
    return max(bus.end_offsets(SOURCE).items(), key=lambda item: item[1])


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\xff\xfe\x00 not text", id="bytes"),
        pytest.param(b"", id="nothing"),
        pytest.param(progress(9).encode()[:-7], id="cut off"),
        pytest.param(b'{"run_id": "r", "progress": {"step": 9}}', id="another version"),
        pytest.param(b"[" * 100_000, id="deep"),
    ],
)
def test_what_cannot_be_read_is_put_away_whole(bus: KafkaBus, body: bytes) -> None:
    service = Picky()
    with running(bus, service) as runner:
        send(bus, progress(1).encode())
        place, offset = source_end(bus)
        send(bus, body, progress(2).encode(), headers={"ce_id": "7"})
        until(lambda: runner.step(timeout_s=0.05) >= 0 and runner.counters.dead_letters)
        assert service.handled == [1, 2]
        assert runner.counters.retried == 2
        runner.commit()
        assert runner.committed[place] == offset + 2, "the partition goes on"
    [dead] = everything(bus, dead_letter_topic(SOURCE, service.name))
    assert (dead.value, dead.key, dead.partition) == (body, "run", place.number)
    assert dead.headers["ce_id"] == "7"
    assert dead.headers[ATTEMPT] == "3"
    assert dead.headers[ORIGIN] == f"{SOURCE}/{place.number}/{offset}"
    assert dead.headers[ERROR].startswith("ValidationError: ")
    assert "\n" not in dead.headers[ERROR]


def test_fields_that_were_added_later_do_no_harm(bus: KafkaBus) -> None:
    service = Picky()
    with running(bus, service) as runner:
        send(bus, progress(5).encode()[:-1] + b', "added": {"later": [1, 2]}}')
        until(lambda: runner.step(timeout_s=0.05) >= 0 and service.handled)
    assert service.handled == [5]
    assert not everything(bus, retry_topic(SOURCE, service.name))


def test_a_handler_that_raises_is_asked_again_when_the_delay_is_over(bus: KafkaBus) -> None:
    service = Picky(poison=2)
    with running(bus, service) as runner:
        send(bus, *(progress(n).encode() for n in (1, 2, 3)))
        until(lambda: runner.step(timeout_s=0.02) >= 0 and len(service.tried) == 4)
        service.poison = None
        until(lambda: runner.step(timeout_s=0.02) >= 0 and 2 in service.handled)
        assert runner.counters.dead_letters == 0
    assert service.handled == [1, 3, 2]
    retries = everything(bus, retry_topic(SOURCE, service.name))
    first, second, third = (at for step, at in service.tried if step == 2)
    assert [int(record.headers[ATTEMPT]) for record in retries] == [1, 2]
    due = [int(record.headers[NOT_BEFORE]) / 1000 for record in retries]
    assert second >= due[0] > first + 0.199
    assert third >= due[1] > second + 0.399, "the delay doubles"


def test_an_output_above_the_limit_is_its_inputs_fault(bus: KafkaBus) -> None:
    service = Picky(verbose=2)
    with running(bus, service) as runner:
        before = len(everything(bus, OUTPUT))
        send(bus, *(progress(n).encode() for n in (1, 2, 3)))
        until(lambda: runner.step(timeout_s=0.05) >= 0 and runner.counters.dead_letters)
    [dead] = everything(bus, dead_letter_topic(SOURCE, service.name))
    assert dead.value == progress(2).encode()
    assert dead.headers[ERROR].startswith("MessageTooLarge: ")
    assert len(everything(bus, OUTPUT)) == before + 2


def test_a_message_that_the_error_makes_too_large_leaves_its_place(bus: KafkaBus) -> None:
    """It fits, but not with its error beside it: the original still stands where the headers say."""
    service = Picky()
    with running(bus, service) as runner:
        _, offset = source_end(bus)
        send(bus, b"x" * 999_800, progress(2).encode())
        until(lambda: runner.step(timeout_s=0.05) >= 0 and runner.counters.dead_letters and service.handled)
        assert service.handled == [2]
    [dead] = everything(bus, dead_letter_topic(SOURCE, service.name))
    assert dead.value == b""
    assert dead.headers[BODY] == dead.headers[ORIGIN] == f"{SOURCE}/{dead.partition}/{offset}"
    assert "Invalid JSON: expected value" in dead.headers[ERROR]
    [original] = bus.read(Partition(SOURCE, dead.partition), offset, offset + 1)
    assert original.value == b"x" * 999_800


def test_headers_of_others_are_no_commands(bus: KafkaBus) -> None:
    """Neither does a message of somebody else wait for ever, nor does a number that is none stop the partition."""
    service = Picky()
    with running(bus, service) as runner:
        send(bus, progress(1).encode(), headers={NOT_BEFORE: "99999999999999", ATTEMPT: "many"})
        place, offset = source_end(bus)
        send(bus, b"?", headers={NOT_BEFORE: "soon", ATTEMPT: "-5", ORIGIN: "elsewhere"})
        until(lambda: runner.step(timeout_s=0.05) >= 0 and runner.counters.dead_letters)
    [dead] = everything(bus, dead_letter_topic(SOURCE, service.name))
    assert dead.headers[ORIGIN] == f"{SOURCE}/{place.number}/{offset}"
    assert service.handled == [1]
    assert runner.counters.retried == 2


@contextmanager
def limit(bus: KafkaBus, topic: str, size: int) -> Iterator[None]:
    """A server's limit of a topic's messages, below the client's."""
    bus.configure([Difference(topic, "max.message.bytes", str(size), None)])
    try:
        yield
    finally:
        bus.configure([Difference(topic, "max.message.bytes", "1048588", None)])


def test_H3_a_servers_limit_spares_small_messages_and_the_process(bus: KafkaBus) -> None:
    """The message that the server refuses is found and given up on; whatever went out beside it is stored."""
    service = Picky(verbose=3, much=200_000)
    with limit(bus, OUTPUT, 50_000), running(bus, service) as runner:
        before = len(everything(bus, OUTPUT))
        send(bus, *(progress(n).encode() for n in range(1, 7)))
        until(lambda: poll(runner) and runner.counters.dead_letters and not runner.waiting)
        until(lambda: poll(runner) and not runner.not_ready())
        runner.commit()
    [dead] = everything(bus, dead_letter_topic(SOURCE, service.name))
    assert dead.value == progress(3).encode()
    assert dead.headers[ERROR].startswith("MessageTooLarge: ")
    said = [ModelActivated.model_validate_json(each.value) for each in everything(bus, OUTPUT)[before:]]
    assert {each.version for each in said} == {"1", "2", "4", "5", "6"}


def live(settings: KafkaSettings, name: str, folder: Path) -> None:
    """A life of a process that dies at the fourth message, as it would of a fault in a library."""

    class Lethal(Picky):
        def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
            assert isinstance(message, TrainingProgressed)
            with (folder / "began").open("a") as file:
                file.write(f"{message.step} ")
            if message.step == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().handle(message, position)

    mine = KafkaBus(settings)
    with closing(Runner(Lethal(name=name), mine, CLOCK, POLICY)) as runner:
        until(lambda: poll(runner) and runner.counters.handled and not runner.waiting and lag(mine, runner) == 0)


def lag(bus: KafkaBus, runner: Runner) -> int:
    return sum(end - runner.committed.get(place, 0) for place, end in bus.end_offsets(SOURCE).items())


def test_H3_a_message_that_kills_the_process_is_set_aside(kafka: str, bus: KafkaBus, tmp_path: Path) -> None:
    service = Picky()
    with running(bus, service):
        pass  # where the group begins
    send(bus, *(progress(n).encode() for n in range(1, 9)))
    settings = KafkaSettings(bootstrap_servers=kafka, prefix=PREFIX, session_timeout_s=6.0, extra=FAST)
    codes: list[int | None] = []
    while not codes or codes[-1] != 0:
        process = multiprocessing.get_context("spawn").Process(target=live, args=(settings, service.name, tmp_path))
        process.start()
        process.join(120)
        codes.append(process.exitcode)
        assert len(codes) < 6, codes
    assert codes == [-signal.SIGKILL] * 4 + [0], "in its batch, and three times alone"
    [dead] = everything(bus, dead_letter_topic(SOURCE, service.name))
    assert dead.value == progress(4).encode()
    assert dead.headers[ERROR].startswith("Lethal: the process died at it")
    began = [int(step) for step in (tmp_path / "began").read_text().split()]
    assert began[:4] == [1, 2, 3, 4]
    assert began[-4:] == [5, 6, 7, 8]
    assert began.count(4) == 4
