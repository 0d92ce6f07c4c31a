"""A hop with confluent-kafka alone, in a process of its own: the bound of what a service over Kafka can do."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NoReturn

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

CONSUMING = {"enable.auto.commit": False, "fetch.wait.max.ms": 50}
PRODUCING = {"enable.idempotence": True, "compression.type": "lz4", "linger.ms": 0, "partitioner": "murmur2_random"}


def relay(server: str, source: str, target: str) -> NoReturn:
    """Publish to one topic what comes on another, with its key; commit once a second what was stored."""
    consumer = Consumer({**CONSUMING, "bootstrap.servers": server, "group.id": source, "auto.offset.reset": "earliest"})
    producer = Producer({**PRODUCING, "bootstrap.servers": server})
    consumer.subscribe([source])
    try:
        _pass_on(consumer, producer, target)
    finally:
        consumer.close()  # otherwise the relays of the next turn would wait until this member is given up on


def _pass_on(consumer: Consumer, producer: Producer, target: str) -> NoReturn:
    commit_due, news = time.monotonic() + 1.0, False
    while True:
        message = consumer.poll(0.1)
        if message is not None:
            if (error := message.error()) is not None:
                raise KafkaException(error)
            producer.produce(target, message.value(), message.key())
            producer.poll(0)
            news = True
        if news and time.monotonic() >= commit_due:
            producer.flush()
            try:
                consumer.commit(asynchronous=False)
            except KafkaException as exception:
                if exception.args[0].code() != KafkaError._NO_OFFSET:
                    raise
            commit_due, news = time.monotonic() + 1.0, False


@contextmanager
def relays(server: str, topics: Sequence[str]) -> Iterator[None]:
    """A process for each step from one topic to the next."""
    hops = [
        subprocess.Popen([sys.executable, "-m", "benchmarks.relay", server, source, target])
        for source, target in pairwise(topics)
    ]
    try:
        yield
    finally:
        for hop in hops:
            hop.terminate()
        for hop in hops:
            hop.wait()


def _stop(_: int, __: object) -> NoReturn:
    sys.exit()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    relay(*sys.argv[1:])
