"""`tradeloop dlq`: what was given up on is counted, shown safely, and handled once more: by whom it concerns, once."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime

import pytest

from tests.waiting import until
from tradeloop.cli.commands.dlq import REPLAYED, DeadLetters, place_of
from tradeloop.cli.main import main
from tradeloop.common.bus.kafka import KafkaBus, KafkaSettings
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import Bus, LogPosition, Partition
from tradeloop.common.clock import ManualClock, SystemClock
from tradeloop.common.errors import UserError
from tradeloop.common.messages import Message, SignalGenerated
from tradeloop.common.messages.topics import SERVICE_TOPICS, dead_letter_topic, retry_topic, specs, topic_of
from tradeloop.common.runtime.headers import ATTEMPT, BODY, ERROR, ORIGIN
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.runtime.service import ServiceDefaults

SOURCE = topic_of(SignalGenerated).name
DLQ, RETRY = dead_letter_topic(SOURCE, "execution"), retry_topic(SOURCE, "execution")
T0 = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = RunPolicy(commit_interval_s=0.0, attempts=1)


class Fussy(ServiceDefaults):
    """A service under another's name, that handles nothing as long as it is told so."""

    consumes: tuple[type[Message], ...] = (SignalGenerated,)

    def __init__(self, name: str = "execution") -> None:
        self.name, self.broken, self.seen = name, True, list[str]()

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        assert isinstance(message, SignalGenerated)
        if self.broken:
            raise ValueError(f"no {message.portfolio}")
        self.seen.append(message.portfolio)
        return ()

    def answers(self, message: Message) -> bool:
        return False


def signal(portfolio: str) -> bytes:
    return SignalGenerated(universe="u", portfolio=portfolio, time=T0, instruments=("x:Y",), targets=(0.5,)).encode()


def send(bus: Bus, *bodies: bytes, topic: str = SOURCE, **headers: str) -> None:
    with closing(bus.producer()) as producer:
        for body in bodies:
            producer.publish(topic, "u", body, headers)
        producer.flush()


@pytest.fixture
def bus() -> MemoryBus:
    bus = MemoryBus()
    bus.create_topics(specs(SERVICE_TOPICS))
    return bus


@pytest.fixture
def service(bus: MemoryBus) -> Fussy:
    """A service that gave up on three signals: a, b, c."""
    service = Fussy()
    send(bus, signal("a"), signal("b"), signal("c"))
    handle(bus, service)
    assert DeadLetters(bus, DLQ).count() == 3
    service.broken = False
    return service


def handle(bus: MemoryBus, *services: Fussy) -> None:
    for one in services:
        runner = Runner(one, bus, ManualClock(T0), POLICY)
        for _ in range(3):
            runner.step()
        runner.close()


def test_a_replay_reaches_the_service_that_failed_in_order_and_once(bus: MemoryBus, service: Fussy) -> None:
    other = Fussy("inference")
    bus.create_topics(specs({"inference": [SOURCE]}))
    dead = DeadLetters(bus, DLQ)
    assert (dead.replay(None, again=False).replayed, dead.replay(None, again=False).before) == (3, 3)
    other.broken = False
    handle(bus, service, other)
    assert service.seen == ["a", "b", "c"]
    assert other.seen == ["a", "b", "c"], "from the topic, where it did not fail, and not a second time"
    assert dead.replay(None, again=True).replayed == 3
    handle(bus, service, other)
    assert service.seen == [*"abcabc"]
    assert other.seen == [*"abc"]


def test_chosen_letters_are_replayed_in_the_order_of_their_partition(bus: MemoryBus, service: Fussy) -> None:
    dead = DeadLetters(bus, DLQ)
    a, _, c = map(place_of, dead.newest(10))
    assert dead.replay([c, a, c], again=False).replayed == 2
    handle(bus, service)
    assert service.seen == ["a", "c"]
    result = dead.replay(None, again=False)
    assert (result.replayed, result.before) == (1, 2)
    handle(bus, service)
    assert service.seen == ["a", "c", "b"]


def test_what_fails_again_is_a_new_letter_with_its_old_origin(bus: MemoryBus, service: Fussy) -> None:
    dead = DeadLetters(bus, DLQ)
    first = dead.newest(3)[0]
    service.broken = True
    dead.replay([place_of(first)], again=False)
    runner = Runner(service, bus, ManualClock(T0), RunPolicy(commit_interval_s=0.0, attempts=2, retry_delay_s=0.0))
    for _ in range(4):
        runner.step()
    second = dead.newest(1)[0]
    assert second.value == first.value
    assert second.headers[ORIGIN] == first.headers[ORIGIN]
    assert second.headers[ATTEMPT] == "2", "it is tried as often as a new message"
    assert second.headers[REPLAYED] == place_of(first)
    assert dead.replayed() == {place_of(first)}
    result = dead.replay(None, again=False)
    assert (result.replayed, result.before) == (3, 1)


def test_a_body_that_was_too_large_comes_from_its_origin(bus: MemoryBus) -> None:
    send(bus, signal("large"))
    [(place, _)] = [item for item in bus.end_offsets(SOURCE).items() if item[1]]
    send(bus, b"", topic=DLQ, **{BODY: f"{SOURCE}/{place.number}/0", ORIGIN: f"{SOURCE}/{place.number}/0"})
    dead = DeadLetters(bus, DLQ)
    assert dead.body(dead.newest(1)[0]) == signal("large")
    assert dead.replay(None, again=False).replayed == 1
    [(retry, end)] = [item for item in bus.end_offsets(RETRY).items() if item[1]]
    [record] = bus.read(retry, 0, end)
    assert record.value == signal("large")
    assert not {BODY, ATTEMPT, ERROR} & record.headers.keys()

    bus.drop_before(place, 1)
    assert dead.body(dead.newest(1)[0]) is None
    result = dead.replay(None, again=True)
    assert result.failed == {place_of(dead.newest(1)[0]): "its body is gone, which was too large for a dead letter "
                             f"and stood at {SOURCE}/{place.number}/0"}  # fmt: skip


@pytest.mark.parametrize(
    ("topic", "places", "says"),
    [
        (SOURCE, [], f"{SOURCE} is no topic of dead letters; see `tradeloop dlq list`"),
        ("no.such.v1.dlq.execution", [], "no.such.v1.dlq.execution is no topic of dead letters"),
        (DLQ, ["first"], "'first' is no place of a letter: give partition/offset, such as 0/17"),
        (DLQ, ["99/0"], f"{DLQ} has no partition 99"),
        (DLQ, ["0/77"], f"{DLQ} holds no letter 0/77"),
    ],
)
def test_wrong_input_is_one_line(bus: MemoryBus, topic: str, places: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says.replace("(", r"\(")):
        DeadLetters(bus, topic).replay(places, again=False)


@pytest.fixture
def cluster(kafka: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[KafkaBus]:
    """A Kafka of its own, by its prefix, with the topics of one service."""
    prefix = f"{secrets.token_hex(4)}."
    monkeypatch.setenv("TRADELOOP_KAFKA__BOOTSTRAP_SERVERS", kafka)
    monkeypatch.setenv("TRADELOOP_KAFKA__PREFIX", prefix)
    with closing(KafkaBus(KafkaSettings(bootstrap_servers=kafka, prefix=prefix))) as bus:
        bus.create_topics([spec for spec in specs({"execution": [SOURCE]}) if spec.name.startswith(SOURCE)])
        yield bus


def test_the_command_on_a_real_kafka(cluster: KafkaBus, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dlq", "list"]) == 0
    assert capsys.readouterr().out == "no dead letters\n"

    nasty = b"\x1b]0;owned\x07\xff\x00"
    send(cluster, nasty, topic=DLQ, **{ORIGIN: f"{SOURCE}/3/5", ATTEMPT: "3", ERROR: "ValueError: \x1b[2J gone"})
    send(cluster, signal("late"), topic=DLQ, **{ORIGIN: f"{SOURCE}/3/6", ATTEMPT: "3", ERROR: "KeyError: 'late'"})
    number = next(place.number for place, end in cluster.end_offsets(DLQ).items() if end)

    assert main(["dlq", "list"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{DLQ}  2 letters, 0 of them replayed\n  newest {number}/1 at 20")
    assert said.endswith(": KeyError: 'late'\n")
    assert main(["dlq", "list", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["topic"], row["service"], row["letters"], row["newest"]) == (DLQ, "execution", 2, f"{number}/1")

    assert main(["dlq", "show", DLQ]) == 0
    said = capsys.readouterr().out
    assert said.isascii()
    assert "\x1b" not in said
    assert "\x07" not in said
    assert f"  origin   {SOURCE}/3/5, 3 attempts\n" in said
    assert r"  error    ValueError: \x1b[2J gone" in said
    assert rf"{len(nasty)} bytes: not text: b'\x1b]0;owned\x07\xff\x00'" in said
    assert '"portfolio":"late"' in said

    assert main(["dlq", "show", DLQ, f"{number}/0", "--json"]) == 0
    letter = json.loads(capsys.readouterr().out)
    assert bytes.fromhex(letter["body_hex"]) == nasty
    assert letter["error"] == "ValueError: \x1b[2J gone"
    assert not letter["replayed"]

    assert main(["dlq", "replay", DLQ, f"{number}/1"]) == 0
    assert main(["dlq", "replay", DLQ]) == 0
    assert main(["dlq", "replay", DLQ]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "1 letters replayed; 0 had been before",
        "1 letters replayed; 1 had been before",
        "0 letters replayed; 2 had been before",
    ]
    retries = cluster.read(Partition(RETRY, number), 0, 10)
    assert [(record.value, record.headers[REPLAYED]) for record in retries] == [
        (signal("late"), f"{number}/1"),
        (nasty, f"{number}/0"),
    ]
    assert main(["dlq", "show", DLQ, "--limit", "1"]) == 0
    assert "(replayed)" in capsys.readouterr().out
    assert main(["dlq", "show", "bars"]) == 2
    assert capsys.readouterr().err == "tradeloop: bars is no topic of dead letters; see `tradeloop dlq list`\n"


def test_a_replayed_letter_is_handled_on_a_real_kafka(cluster: KafkaBus) -> None:
    send(cluster, signal("late"), topic=DLQ, **{ORIGIN: f"{SOURCE}/3/6", ATTEMPT: "3", ERROR: "KeyError: 'late'"})
    assert main(["dlq", "replay", DLQ]) == 0
    service = Fussy()
    service.broken = False
    with closing(Runner(service, cluster, SystemClock(), POLICY)) as runner:
        until(lambda: runner.step(timeout_s=0.1) >= 0 and service.seen)
    assert service.seen == ["late"]
