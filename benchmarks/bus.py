"""Messages per second through a service over Kafka, against a loop of confluent-kafka and pydantic alone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, Producer

from benchmarks import scenario
from benchmarks.measure import Row, in_turns, report
from deploy.native.kafka import kafka
from deploy.native.server import Server, free_ports
from tradeloop.cli.progress import quiet_logs
from tradeloop.common.bus.kafka import KafkaBus, KafkaSettings
from tradeloop.common.bus.port import LogPosition
from tradeloop.common.clock import SystemClock
from tradeloop.common.messages import BarFrame, FeaturesComputed, Message
from tradeloop.common.messages.topics import specs, topic_of
from tradeloop.common.runtime.headers import headers_of
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.runtime.service import ServiceDefaults
from tradeloop.ingest.domain import frames

MESSAGES, ROUNDS = 40_000, 5
SOURCE, TARGET = topic_of(BarFrame), topic_of(FeaturesComputed)


def answer(frame: BarFrame) -> FeaturesComputed:
    """The answer of both to a frame: as much work as a handler has that computes nothing."""
    bars = frame.bars
    return FeaturesComputed(
        universe=frame.universe,
        time=frame.close_time,
        feature_set="fs_bench",
        names=("open", "close"),
        instruments=tuple(bar.instrument for bar in bars),
        values=tuple((bar.open, bar.close) for bar in bars),
    )


class Answers(ServiceDefaults):
    """The service that is measured."""

    name = "bench"
    consumes = (BarFrame,)

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        return (answer(message),) if isinstance(message, BarFrame) else ()


def ours(server: str, prefix: str) -> None:
    """A service's runner over `KafkaBus`, from the first message to the commit of the last."""
    with closing(KafkaBus(KafkaSettings(bootstrap_servers=server, prefix=prefix))) as bus:
        runner = Runner(Answers(), bus, SystemClock())
        while runner.counters.handled < MESSAGES:
            runner.step(timeout_s=0.1)
        runner.close()


def bare(server: str, prefix: str) -> None:
    """The same with the libraries alone: batches, a commit a second after a flush, the same producer's promises."""
    consumer = Consumer(
        {
            "bootstrap.servers": server,
            "group.id": f"{prefix}bare",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    properties = {"enable.idempotence": True, "compression.type": "lz4", "linger.ms": 1}
    producer = Producer({**properties, "bootstrap.servers": server})
    consumer.subscribe([f"{prefix}{SOURCE.name}"])
    handled, commit_due, target = 0, time.monotonic() + 1.0, f"{prefix}{TARGET.name}"
    while handled < MESSAGES:
        for message in consumer.consume(500, 0.1):
            if (error := message.error()) is not None:
                raise KafkaException(error)
            computed = answer(BarFrame.model_validate_json(message.value() or b""))
            headers = headers_of(computed, TARGET, "bench")
            producer.produce(target, computed.encode(), computed.key, headers=dict(headers))
            handled += 1
        producer.poll(0)
        if time.monotonic() >= commit_due:
            producer.flush()
            consumer.commit(asynchronous=False)
            commit_due = time.monotonic() + 1.0
    producer.flush()
    consumer.commit(asynchronous=False)
    consumer.close()


def fill(server: str, prefix: str) -> None:
    """The messages of a round, on topics of its own."""
    traded = scenario.universe()
    with closing(KafkaBus(KafkaSettings(bootstrap_servers=server, prefix=prefix))) as bus:
        wanted = {spec.name: spec for spec in specs({Answers.name: [SOURCE.name]})}
        bus.create_topics(wanted.values())
        with closing(bus.producer()) as producer:
            for frame in frames(traded.name, traded.timeframe, scenario.bars(traded, MESSAGES, 0)):
                publish(producer, frame, "bench")
            producer.flush()


def measure() -> None:
    quiet_logs()
    with tempfile.TemporaryDirectory(prefix="tradeloop-bench-") as folder:
        [port] = free_ports(1)
        with Server(kafka(Path(folder), port), Path(folder)) as server:
            turn = 0

            def fresh() -> None:
                nonlocal turn
                turn += 1
                fill(server.address, f"turn{turn}.")

            def block(run: Callable[[str, str], None]) -> Callable[[], None]:
                return lambda: run(server.address, f"turn{turn}.")

            compared = in_turns(
                {"ours": (block(ours), MESSAGES), "bare": (block(bare), MESSAGES)},
                ROUNDS,
                {"ours": fresh, "bare": fresh},
            )
    report(
        [
            Row(
                "KafkaBus: consume, validate, handle, produce",
                compared.rates["ours"],
                "messages/s",
                0.7,
                against="confluent-kafka and pydantic alone",
                against_measured=compared.rates["bare"],
                ratio=compared.ratio("ours", "bare"),
            )
        ],
        [
            f"{MESSAGES:,} frames of one bar, one message out for each, Apache Kafka on the same machine: a service's "
            "runner with retries, dead letters, counters and commits after a flush, against a loop that decodes, makes "
            "the same answer with the same headers and commits after a flush each second. Joining the group and "
            f"leaving it are timed in both. Median of {ROUNDS} rounds in turns, fresh topics each.",
        ],
    )


if __name__ == "__main__":
    measure()
