"""Messages as they stood on the wire when their versions were published, one of each topic.

A change that makes one of these tests fail breaks whoever reads or replays old messages: it needs a new version of the
topic, not new files here.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from deploy.native.server import need
from tests.waiting import PATIENCE_S
from tradeloop.common.bus.kafka import KafkaBus, KafkaSettings
from tradeloop.common.messages import Message
from tradeloop.common.messages.topics import CATALOGUE, event_id, specs, topic_of
from tradeloop.common.runtime.headers import headers_of

GOLDEN = Path(__file__).parent / "golden"
IDS: Mapping[str, str] = json.loads((GOLDEN / "ids.json").read_text())


def golden(topic: str) -> tuple[bytes, Message]:
    """A topic's message as it stood on the wire, and decoded."""
    value = (GOLDEN / f"{topic}.json").read_bytes().rstrip()
    return value, CATALOGUE[topic].message.model_validate_json(value)


@pytest.mark.parametrize("topic", CATALOGUE)
def test_what_was_written_is_read_and_written_again_as_it_was(topic: str) -> None:
    value, message = golden(topic)
    fields: dict[str, Any] = json.loads(value)
    again: dict[str, Any] = json.loads(message.encode())
    assert {name: again.get(name) for name in fields} == fields
    # Whoever reads this version with an older release knows no other fields, and must not need them.
    added = again.keys() - fields.keys()
    assert not [name for name in added if type(message).model_fields[name].is_required()]


@pytest.mark.parametrize("topic", CATALOGUE)
def test_an_event_keeps_its_id(topic: str) -> None:
    assert event_id(golden(topic)[1]) == IDS[topic]


def test_kcat_reads_every_topic_as_json(kafka: str) -> None:
    """What a newcomer has at hand: keys, CloudEvents headers and values as text, with nothing of ours installed."""
    need(["kcat"], ["kcat"])
    prefix = "kcat-test."
    with closing(KafkaBus(KafkaSettings(bootstrap_servers=kafka, prefix=prefix))) as bus:
        bus.create_topics(specs({}))
        with closing(bus.producer()) as producer:
            for name in CATALOGUE:
                message = golden(name)[1]
                headers = headers_of(message, topic_of(type(message)), "test")
                producer.publish(name, message.key, message.encode(), headers)
            producer.flush()
    for name in CATALOGUE:
        message = golden(name)[1]
        command = ["kcat", "-b", kafka, "-C", "-t", f"{prefix}{name}", "-o", "beginning", "-e", "-q", "-J"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout
        [record] = [json.loads(line) for line in said.splitlines()]
        headers = dict(zip(record["headers"][::2], record["headers"][1::2], strict=True))
        assert json.loads(record["payload"]) == json.loads(message.encode())
        assert record["key"] == message.key
        assert (headers["ce_id"], headers["ce_type"]) == (IDS[name], name)
        assert headers["content-type"] == "application/json"
