"""The running stack: five services elsewhere, over Kafka. The command speaks to them by messages alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import chain

from pydantic import ValidationError

from tradeloop.cli.client.settings import kafka_bus
from tradeloop.cli.client.stack import M, OnProgress, Request, given_up
from tradeloop.common.bus.port import Bus, BusUnavailable, Partition, Record, partition_for
from tradeloop.common.clock import Clock, SystemClock
from tradeloop.common.errors import UserError
from tradeloop.common.messages import Message, TrainingProgressed
from tradeloop.common.messages.topics import SERVICE_TOPICS, dead_letter_topic, topic_of
from tradeloop.common.runtime.headers import headers_of

SILENCE_S = 15.0
"""How long nothing is heard before the command says for whom it waits."""
_PAUSE_S = 0.2
_BLOCK = 2000
"""Records that are read back at once."""

Say = Callable[[str], None]
"""Shows the user one line."""


class Tail:
    """The messages of one key on some topics, from the ends of the topics on.

    It reads without a group: whoever only looks on commits nothing, and does not share partitions with others who
    look on. Raises `UserError` for a topic that does not exist; every call may raise `BusUnavailable`.
    """

    def __init__(self, bus: Bus, keys: Mapping[str, str]) -> None:
        """`keys` gives the key to follow on each topic."""
        self._keys = keys
        partitions = [partition_of(bus, topic, key) for topic, key in keys.items()]
        self._reader = bus.follow({each: bus.end_offsets(each.topic)[each] for each in partitions})

    def new(self) -> list[Record]:
        """What arrived since the last call, at most a block, in order within each topic."""
        return [record for record in self._reader.poll(_BLOCK) if record.key == self._keys[record.topic]]

    def close(self) -> None:
        self._reader.close()


class RunningStack:
    """Services that run elsewhere. Use `running(...)`, which also lets go of Kafka."""

    def __init__(self, bus: Bus, clock: Clock, say: Say, wait: Callable[[float], None] = time.sleep) -> None:
        """`wait` passes the seconds between two looks at the topics."""
        self.bus, self.clock, self.say, self.wait = bus, clock, say, wait
        self._producer = bus.producer()

    def send(self, message: Message) -> None:
        """Publish a message as the CLI. Raises `BusUnavailable` when it may not have arrived."""
        topic = topic_of(type(message))
        self._producer.publish(topic.name, message.key, message.encode(), headers_of(message, topic, "cli"))
        self._producer.flush()

    def ask(self, request: Request, answer: type[M], on_progress: OnProgress | None = None) -> M:
        """As `Stack.ask`. Waits for as long as it takes; Ctrl-C ends the waiting and not what was asked for."""
        asked, answered = topic_of(type(request)), topic_of(answer).name
        progressed, service = topic_of(TrainingProgressed).name, asked.readers[0]
        refused = dead_letter_topic(asked.name, service)
        keys = {progressed: request.request_id, answered: request.universe.name, refused: request.key}
        with closing(Tail(self.bus, keys)) as tail:
            self.send(request)
            for record in chain.from_iterable(self.listen(tail, service, lambda: service)):
                if record.topic == answered:
                    message = _decoded(record, answer)
                    if message is not None and getattr(message, "request_id", None) == request.request_id:
                        return message
                elif record.topic == refused:
                    if record.value == request.encode():
                        raise given_up(service, record)
                elif on_progress is not None and (progress := _decoded(record, TrainingProgressed)) is not None:
                    on_progress(progress)
        raise AssertionError("listening does not end by itself")

    def listen(
        self, tail: Tail, asked: str, awaited: Callable[[], str], silence_s: float = SILENCE_S
    ) -> Iterator[list[Record]]:
        """What arrives, turn by turn and for ever; nothing in a turn of silence.

        Says once in each silence whose word it waits for, or that Kafka is away. `asked` is who goes on alone after
        a Ctrl-C, `awaited` tells who must speak next.
        """
        heard_s, said = self.clock.monotonic(), False
        try:
            while True:
                records: list[Record] = []
                try:
                    records = tail.new()
                    if records:
                        heard_s, said = self.clock.monotonic(), False
                    elif not said and self.clock.monotonic() - heard_s >= silence_s:
                        self.say(f"still waiting for {awaited()}, silent for {silence_s:.0f} s: is it running?")
                        said = True
                except BusUnavailable as error:
                    if not said:
                        self.say(f"still waiting: {error}")
                        said = True
                yield records
                if not records:
                    self.wait(_PAUSE_S)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; {asked} goes on with what it was asked for") from None

    def dead_letters(self, universe: str) -> Tail:
        """What any service gives up on from now on, of the messages of a universe."""
        names = [dead_letter_topic(topic, service) for service, topics in SERVICE_TOPICS.items() for topic in topics]
        return Tail(self.bus, dict.fromkeys(names, universe))

    def newest(self, kind: type[M], universe: str, wanted: Callable[[M], bool] = lambda _: True) -> M | None:
        """The last message of a universe that is wanted, as far as the bus still holds it."""
        return next(filter(wanted, backwards(self.bus, kind, universe)), None)

    def close(self) -> None:
        self._producer.close()


def partition_of(bus: Bus, topic: str, key: str) -> Partition:
    """Where the messages of a key stand. Raises `UserError` when the topic does not exist."""
    count = bus.partitions(topic)
    if not count:
        raise UserError(
            f"Kafka has no topic {topic}: create the topics with `tradeloop topics apply`, then start the services"
        )
    return Partition(topic, partition_for(key, count))


def backwards(bus: Bus, kind: type[M], universe: str) -> Iterator[M]:
    """The messages of a universe, the last one first. What cannot be decoded is left out."""
    partition = partition_of(bus, topic_of(kind).name, universe)
    begin, end = bus.begin_offsets(partition.topic)[partition], bus.end_offsets(partition.topic)[partition]
    block = 64
    while end > begin:
        start = max(begin, end - block)
        for record in reversed(bus.read(partition, start, end)):
            if record.key == universe and (message := _decoded(record, kind)) is not None:
                yield message
        end, block = start, _BLOCK


def forwards(bus: Bus, kind: type[M], universe: str) -> Iterator[tuple[Record, M]]:
    """The records and messages of a universe, the oldest first. What cannot be decoded is left out."""
    partition = partition_of(bus, topic_of(kind).name, universe)
    begin, end = bus.begin_offsets(partition.topic)[partition], bus.end_offsets(partition.topic)[partition]
    for start in range(begin, end, _BLOCK):
        for record in bus.read(partition, start, min(start + _BLOCK, end)):
            if record.key == universe and (message := _decoded(record, kind)) is not None:
                yield record, message


def decoded(records: Iterable[Record], kind: type[M]) -> Iterator[M]:
    """The messages of one type among records."""
    topic = topic_of(kind).name
    for record in records:
        if record.topic == topic and (message := _decoded(record, kind)) is not None:
            yield message


def _decoded(record: Record, kind: type[M]) -> M | None:
    try:
        return kind.model_validate_json(record.value)
    except ValidationError:
        return None  # its readers dead-letter it, and that is shown


@contextmanager
def running(say: Say) -> Iterator[RunningStack]:
    """The stack on the Kafka of the settings. Raises `UserError` where that cannot be reached."""
    with kafka_bus() as bus, closing(RunningStack(bus, SystemClock(), say)) as stack:
        yield stack
