"""`tradeloop status` on a real Kafka: which services are there, and how far behind each one is."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from tests.waiting import PATIENCE_S, until
from tradeloop.cli.client.manifests import Runs, warnings_of
from tradeloop.cli.client.services import service_states
from tradeloop.cli.main import main
from tradeloop.common.bus.kafka import KafkaBus, KafkaSettings
from tradeloop.common.bus.port import Partition
from tradeloop.common.clock import SystemClock
from tradeloop.common.messages import ModelActivated, ServiceStarted
from tradeloop.common.messages.topics import SERVICE_TOPICS, retry_topic, specs
from tradeloop.common.runtime.publish import publish as publish_message

ASKED = "ingest.backfill_requested.v1"


@pytest.fixture
def bus(kafka: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[KafkaBus]:
    """A Kafka of a stack of its own, by its prefix."""
    prefix = f"{secrets.token_hex(4)}."
    monkeypatch.setenv("TRADELOOP_KAFKA__BOOTSTRAP_SERVERS", kafka)
    monkeypatch.setenv("TRADELOOP_KAFKA__PREFIX", prefix)
    with closing(KafkaBus(KafkaSettings(bootstrap_servers=kafka, prefix=prefix))) as bus:
        bus.create_topics(specs(SERVICE_TOPICS))
        yield bus


def publish(bus: KafkaBus, topic: str, count: int) -> None:
    with closing(bus.producer()) as producer:
        for n in range(count):
            producer.publish(topic, f"universe {n}", b"{}", {})
        producer.flush()


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    found = map(json.loads, capsys.readouterr().out.splitlines())
    return {line["service"]: line for line in found if "service" in line}


def test_a_stack_that_nobody_started_stands_still_when_something_waits(
    bus: KafkaBus, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status"]) == 0
    assert capsys.readouterr().out.splitlines()[:5] == [
        f"{service}: no process runs, nothing waits" for service in SERVICE_TOPICS
    ]
    publish(bus, ASKED, 3)
    publish(bus, retry_topic(ASKED, "ingest"), 1)
    assert main(["status"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == (
        f"ingest: no process runs, messages not finished: 3 on {ASKED}, 1 on {retry_topic(ASKED, 'ingest')}"
    )


def test_a_member_is_seen_and_what_it_committed_is_finished(bus: KafkaBus, capsys: pytest.CaptureFixture[str]) -> None:
    publish(bus, ASKED, 5)
    with closing(bus.consumer("ingest", [ASKED])) as consumer:
        seen: dict[Partition, int] = {}

        def read() -> bool:
            for record in consumer.poll(timeout_s=0.1):
                seen[record.position.partition] = record.offset + 1
            return sum(seen.values()) >= 5

        until(read)
        assert main(["status", "--json"]) == 0
        found = lines(capsys)["ingest"]
        assert (found["processes"], found["behind"]) == (1, {ASKED: 5})
        first = min(seen)
        consumer.commit({first: seen[first]})
        assert main(["status", "--json"]) == 0
        assert lines(capsys)["ingest"]["behind"] == {ASKED: 5 - seen[first]}
        consumer.commit(seen)
        assert main(["status", "--json"]) == 0
        assert lines(capsys)["ingest"]["behind"] == {}


def started(service: str, minute: int, pid: int, **more: str) -> ServiceStarted:
    known = {"manifest": "m", "version": "1.2.0", "commit": "c0ffee", "packages": "p", "settings": "5e77"} | more
    time = SystemClock().now() - timedelta(minutes=minute)
    return ServiceStarted(service=service, started=time, instance=f"h:{pid}", parts={}, **known)


def test_what_runs_is_told_and_what_differs_is_warned_of(bus: KafkaBus, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(bus.producer()) as producer, closing(bus.consumer("ingest", [ASKED])) as consumer:
        until(lambda: consumer.poll(timeout_s=0.1) or consumer.assignment())
        for one in (started("ingest", 90, 1), started("ingest", 80, 2, manifest="n", settings="5e78")):
            publish_message(producer, one, "test")
        activated = ModelActivated(
            universe="u", portfolio="p", time=datetime(2026, 1, 1, tzinfo=UTC), model="m.u", version="7", model_id="x"
        )
        publish_message(producer, activated, "test")
        producer.flush()
        assert main(["status"]) == 0
        said = capsys.readouterr().out
        assert said.startswith("ingest: 1 process, nothing waits; runs 1.2.0, commit c0ffee, settings 5e78, manifest n")
        assert "Warning" not in said
        assert "p (u): never marked; model m.u version 7, since 2026-01-01 00:00 UTC" in said
        with closing(bus.consumer("execution", [ASKED])) as other:
            until(lambda: other.poll(timeout_s=0.1) or other.assignment())
            for n in range(3):
                publish_message(producer, started("execution", 5 - n, n, commit="0ther"), "test")
            producer.flush()
            assert main(["status", "--json"]) == 0
    warnings = [line["warning"] for line in map(json.loads, capsys.readouterr().out.splitlines()) if "warning" in line]
    assert [each.partition(":")[0] for each in warnings] == [
        "execution started 3 times within the last hour, for 1 process now",
        "services run different sources",
    ]
    assert "ingest 1.2.0, commit c0ffee; execution 1.2.0, commit 0ther" in warnings[1]


def test_processes_of_one_service_that_differ_are_warned_of() -> None:
    runs = {"ingest": Runs(2, [started("ingest", 1, 1), started("ingest", 2, 2, manifest="n")], 2)}
    assert warnings_of(runs) == [
        "the processes of ingest differ in what they run (manifests m, n): wait for the upgrade to end, or start those "
        "anew that were left out"
    ]


def test_topics_that_are_missing_are_said(
    kafka: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = KafkaSettings(bootstrap_servers=kafka, prefix=f"{secrets.token_hex(4)}.")
    with closing(KafkaBus(settings)) as bus:
        [ingest, *_] = service_states(bus)
    assert (ingest.unknown, ingest.stands_still) == (f"there is no topic {ASKED}: tradeloop topics apply", False)
    assert ingest.words == f"ingest: {ingest.unknown}"


def test_watching_goes_on_until_it_is_interrupted(bus: KafkaBus) -> None:
    command = [sys.executable, "-m", "tradeloop.cli.main", "status", "--json", "--watch", "0.5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        rounds = 0
        for line in watching.stdout:
            rounds += line.startswith('{"dead_letters"')
            if rounds == 2:
                watching.send_signal(2)
                break
        _, said = watching.communicate(timeout=PATIENCE_S)
    assert watching.returncode == 130
    assert "interrupted" in said
