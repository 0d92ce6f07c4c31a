"""A hop with confluent-kafka alone, in a process of its own: the bound of what a service over Kafka can do."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import NoReturn

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

CONSUMING = {"enable.auto.commit": False, "enable.auto.offset.store": False, "fetch.wait.max.ms": 50}
PRODUCING = {"enable.idempotence": True, "compression.type": "lz4", "linger.ms": 0, "partitioner": "murmur2_random"}


def relay(server: str, source: str, target: str) -> NoReturn:
    """Publish to one topic what comes on another, with its key; commit once a second what was stored.

    It commits without waiting, neither for what is on its way nor for the answer: a relay that stops for that once a
    second has a p99 that flatters whoever is compared with it.
    """
    consumer = Consumer({**CONSUMING, "bootstrap.servers": server, "group.id": source, "auto.offset.reset": "earliest"})
    producer = Producer({**PRODUCING, "bootstrap.servers": server})
    consumer.subscribe([source])
    try:
        _pass_on(consumer, producer, target)
    finally:
        consumer.close()  # otherwise the relays of the next turn would wait until this member is given up on


def _pass_on(consumer: Consumer, producer: Producer, target: str) -> NoReturn:
    commit_due, news = time.monotonic() + 1.0, False

    def delivered(source: Message, error: KafkaError | None, _: Message) -> None:
        nonlocal news
        if error is not None:
            raise KafkaException(error)
        consumer.store_offsets(source)
        news = True

    while True:
        message = consumer.poll(0.1)
        if message is not None:
            if (error := message.error()) is not None:
                raise KafkaException(error)
            producer.produce(target, message.value(), message.key(), on_delivery=partial(delivered, message))
        producer.poll(0)
        if news and time.monotonic() >= commit_due:
            consumer.commit(asynchronous=True)
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
