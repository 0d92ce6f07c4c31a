"""The one client of a stack: it speaks to the five services by messages alone, wherever they run."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from itertools import chain
from typing import TypeVar

from tradeloop.cli.client.settings import kafka_bus
from tradeloop.common.bus.port import Bus, BusUnavailable, Record
from tradeloop.common.clock import Clock, SystemClock
from tradeloop.common.errors import UserError
from tradeloop.common.messages import (
    BackfillRequested,
    LiveRequested,
    Message,
    PreprocessRequested,
    ReplayRequested,
    TrainingProgressed,
    TrainingRequested,
)
from tradeloop.common.messages.topics import SERVICE_TOPICS, dead_letter_topic, topic_of
from tradeloop.common.runtime.headers import ERROR, KIND, ORIGIN, USER
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.readback import Messages, Tail, all_messages, backwards, decoded

M = TypeVar("M", bound=Message)
Request = BackfillRequested | LiveRequested | PreprocessRequested | TrainingRequested | ReplayRequested
OnProgress = Callable[[TrainingProgressed], None]
Say = Callable[[str], None]
"""Shows the user one line."""

SILENCE_S = 15.0
"""How long nothing is heard before the client says for whom it waits."""
_PAUSE_S = 0.2


class Failed(Exception):
    """A service gave up on a message or did not answer, and it is nobody's input that is wrong."""


class Client:
    """Asks a stack, and looks on. Not shared between threads."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        say: Say,
        wait: Callable[[float], None] = time.sleep,
        outlived: bool = True,
    ) -> None:
        """`wait` passes the seconds between two looks at the topics; an embedded stack works meanwhile.

        `outlived` says whether the stack goes on when this process ends.
        """
        self.bus, self.clock, self.say, self.wait, self._outlived = bus, clock, say, wait, outlived
        self._producer = bus.producer()

    def send(self, *messages: Message) -> None:
        """Publish messages. Raises `BusUnavailable` when they may not have arrived."""
        for message in messages:
            publish(self._producer, message, "cli")
        self._producer.flush()

    def ask(
        self,
        request: Request,
        answer: type[M],
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> M:
        """Send a request and wait for its answer, for as long as it takes where no time is given.

        Ctrl-C ends the waiting and not what was asked for. Raises `UserError` when a service refused the request,
        `Failed` when it could not do it or did not answer in time.
        """
        asked, answered = topic_of(type(request)), topic_of(answer).name
        progressed, service = topic_of(TrainingProgressed).name, asked.readers[0]
        refused = dead_letter_topic(asked.name, service)
        keys = {progressed: request.request_id, answered: request.universe.name, refused: request.key}
        began_s = self.clock.monotonic()
        with closing(Tail(self.bus, keys)) as tail:
            self.send(request)
            for record in chain.from_iterable(self._until(began_s, timeout_s, tail, service, answer)):
                if record.topic == answered:
                    message = decoded(record, answer)
                    if message is not None and getattr(message, "request_id", None) == request.request_id:
                        return message
                elif record.topic == refused:
                    if record.value == request.encode():
                        raise given_up(service, record)
                elif on_progress is not None and (progress := decoded(record, TrainingProgressed)) is not None:
                    on_progress(progress)
        raise AssertionError("listening does not end by itself")

    def listen(
        self, tail: Tail, asked: str, awaited: Callable[[], str], silence_s: float = SILENCE_S
    ) -> Iterator[list[Record]]:
        """The records that arrive, turn by turn and for ever; none in a turn of silence.

        Says once in each silence whose word it waits for, or that the bus is away. `asked` is who goes on alone after
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
            if not self._outlived:
                raise
            raise KeyboardInterrupt(f"interrupted; {asked} goes on with what it was asked for") from None

    def read(self, kind: type[M]) -> list[M]:
        """Every message of a type that the bus holds, each id once, in order for each key.

        Raises `Contradiction` for two of one id that differ.
        """
        return all_messages(self.bus, kind)

    def stored(self, kind: type[M], without: Collection[str] = ()) -> Messages[M]:
        """As `read`, for topics of any length: decoded while they are iterated over, without some of their vectors."""
        return Messages(self.bus, kind, without)

    def newest(self, kind: type[M], universe: str, wanted: Callable[[M], bool] = lambda _: True) -> M | None:
        """The last message of a universe that is wanted, as far as the bus still holds it."""
        return next(filter(wanted, backwards(self.bus, kind, universe)), None)

    def dead_letters(self, universe: str) -> Tail:
        """The messages of a universe that any service gives up on from now on."""
        return Tail(self.bus, dict.fromkeys(dead_letter_topics(), universe))

    def count_dead_letters(self) -> int:
        """How many messages the services have ever given up on."""
        return count_dead_letters(self.bus)

    def close(self) -> None:
        """Release the producer."""
        self._producer.close()

    def _until(
        self, began_s: float, timeout_s: float | None, tail: Tail, service: str, answer: type[Message]
    ) -> Iterator[list[Record]]:
        for records in self.listen(tail, service, lambda: service):
            yield records
            if timeout_s is not None and self.clock.monotonic() - began_s > timeout_s:
                raise Failed(f"{service}: no {answer.__name__} within {timeout_s:g} s")


def dead_letter_topics() -> list[str]:
    """Where the services put what they give up on."""
    return [dead_letter_topic(topic, service) for service, topics in SERVICE_TOPICS.items() for topic in topics]


def count_dead_letters(bus: Bus) -> int:
    """How many messages the services have ever given up on."""
    topics = (topic for topic in dead_letter_topics() if bus.partitions(topic))
    return sum(end for topic in topics for end in bus.end_offsets(topic).values())


def given_up(service: str, record: Record) -> UserError | Failed:
    """The error to raise for a record of a service's dead-letter topic: whether its sender is to blame is its type."""
    error, origin = record.headers.get(ERROR, "no reason given"), record.headers.get(ORIGIN, record.topic)
    if record.headers.get(KIND) == USER:
        return UserError(error)
    return Failed(f"{service} gave up on {origin}: {error}")


@contextmanager
def running(say: Say) -> Iterator[Client]:
    """A client of the stack on the Kafka of the settings. Raises `UserError` where that cannot be reached."""
    with kafka_bus() as bus, closing(Client(bus, SystemClock(), say)) as client:
        yield client
