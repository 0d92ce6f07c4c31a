"""`tradeloop topics apply` and `diff` on a real Kafka: what they change, what they refuse, what they say."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.waiting import PATIENCE_S
from tradeloop.cli.main import main
from tradeloop.common.bus.kafka import Difference, KafkaBus, KafkaSettings
from tradeloop.common.messages.topics import CATALOGUE, SERVICE_TOPICS, specs

BARS = "market.bars.v1"
WEEK_MS = "604800000"


@pytest.fixture
def bus(kafka: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[KafkaBus]:
    """A Kafka that has no topics yet: all names are new ones, by their prefix."""
    prefix = f"{secrets.token_hex(4)}."
    monkeypatch.setenv("TRADELOOP_KAFKA__BOOTSTRAP_SERVERS", kafka)
    monkeypatch.setenv("TRADELOOP_KAFKA__PREFIX", prefix)
    with closing(KafkaBus(KafkaSettings(bootstrap_servers=kafka, prefix=prefix))) as bus:
        yield bus


def create(kafka: str, bus: KafkaBus, topic: str, partitions: int, **config: str) -> None:
    """A topic that somebody else created, their own way."""
    name = bus._names.outer(topic)
    admin = AdminClient({"bootstrap.servers": kafka})
    for future in admin.create_topics([NewTopic(name, partitions, config=config)]).values():
        future.result()


def test_apply_creates_everything_and_then_has_nothing_to_do(bus: KafkaBus, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topics", "diff"]) == 1
    missing = capsys.readouterr().out.splitlines()
    wanted = specs(SERVICE_TOPICS)
    assert missing == [f"{spec.name} was missing" for spec in wanted]
    assert {"market.bars.v1.retry.execution", "market.bars.v1.dlq.preprocess"} <= {spec.name for spec in wanted}

    assert main(["topics", "apply"]) == 0
    assert capsys.readouterr().out.splitlines() == [*missing, f"{len(wanted)} topics are as the catalogue says"]
    assert {name: bus.partitions(name) for name in CATALOGUE} == dict.fromkeys(CATALOGUE, 12)

    assert main(["topics", "diff"]) == 0
    assert main(["topics", "apply"]) == 0
    assert capsys.readouterr().out == f"{len(wanted)} topics are as the catalogue says\n"


def test_apply_runs_twice_at_once(bus: KafkaBus) -> None:
    command = [sys.executable, "-m", "tradeloop.cli.main", "topics", "apply"]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(one.communicate(timeout=PATIENCE_S)[1], one.returncode) for one in both] == [("", 0), ("", 0)]
    assert not bus.differences(specs(SERVICE_TOPICS))


def test_a_topic_that_is_configured_otherwise_is_set_right(
    kafka: str, bus: KafkaBus, capsys: pytest.CaptureFixture[str]
) -> None:
    create(kafka, bus, BARS, 12, **{"retention.ms": WEEK_MS, "cleanup.policy": "compact", "segment.ms": "60000"})
    with closing(bus.producer()) as producer:
        producer.publish(BARS, "u", b"{}", {})
        producer.flush()
    assert main(["topics", "diff"]) == 1
    said = capsys.readouterr().out
    assert f"{BARS}: retention.ms was {WEEK_MS}, is to be 2592000000\n" in said
    assert f"{BARS}: cleanup.policy was compact, is to be delete\n" in said
    assert f"{BARS}: message.timestamp.type was CreateTime, is to be LogAppendTime\n" in said
    assert main(["topics", "apply"]) == 0
    assert main(["topics", "diff"]) == 0
    assert sum(bus.end_offsets(BARS).values()) == 1
    assert bus._configurations([BARS])[BARS]["segment.ms"] == "60000", "what nobody specified stays"


def test_another_number_of_partitions_is_refused_and_nothing_changes(
    kafka: str, bus: KafkaBus, capsys: pytest.CaptureFixture[str]
) -> None:
    create(kafka, bus, BARS, 3)
    assert main(["topics", "apply"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"tradeloop: {BARS}: partitions was 3, is to be 12: another number would move keys")
    assert said.count("\n") == 1
    assert bus.partitions(BARS) == 3
    assert [name for name in CATALOGUE if bus.partitions(name)] == [BARS]
    assert Difference(BARS, "partitions", "12", "3") in bus.differences(specs({}))


def test_activations_never_expire(bus: KafkaBus) -> None:
    name = "inference.model_activated.v1"
    bus.create_topics([CATALOGUE[name].spec])
    assert bus._configurations([name])[name]["retention.ms"] == "-1"


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["--bootstrap-servers", "127.0.0.1:1"], {}, "--bootstrap-servers or TRADELOOP_KAFKA__BOOTSTRAP_SERVERS"),
        ([], {"TRADELOOP_KAFKA__SECURITY_PROTOCOL": "TLS"}, "variable TRADELOOP_KAFKA__SECURITY_PROTOCOL: Input"),
        ([], {"TRADELOOP_KAFKA__PREFIX": "a b"}, "variable TRADELOOP_KAFKA__PREFIX: String should match"),
    ],
)
def test_what_is_wrong_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    environment: dict[str, str],
    says: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["topics", "diff", *arguments]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
