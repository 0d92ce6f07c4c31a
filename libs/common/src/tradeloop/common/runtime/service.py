"""`Service`: what a runner needs of a service, and `ServiceDefaults`, the part that most leave as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import structlog

from tradeloop.common.bus.port import Bus, LogPosition, MessageTooLarge, Partition, Record
from tradeloop.common.messages import Message
from tradeloop.common.runtime.metrics import Figure
from tradeloop.common.runtime.pending import Pending
from tradeloop.common.runtime.standing import FeedStanding, Standing

log = structlog.get_logger(__name__)

_NOTHING = Pending()


class RequestFailed(Exception):
    """Work that `Service.advance` did for a message failed for good, for a cause.

    The service waits with that message no more: its runner sets it aside, as if `handle` had raised the cause.
    """

    def __init__(self, position: LogPosition, cause: Exception) -> None:
        super().__init__(f"the request at {position} failed: {cause}")
        self.position, self.cause = position, cause

    def records(self, bus: Bus) -> Sequence[Record]:
        """The record of that message; none, with a line in the log, where the bus no longer holds it."""
        (partition, offset) = self.position
        found = bus.read(partition, offset, offset + 1)
        if not found:
            log.error("a request that is gone failed", position=self.position, error=str(self.cause))
        return found


class Service(Protocol):
    """A service as its runner needs it. Handling the same message again must give the same outputs again."""

    beat: Callable[[], None]
    """Set by the runner: to be called now and then within work that takes long, so that the process does not seem to
    hang. By the thread that does the work: the runner looks at figures then."""

    @property
    def name(self) -> str:
        """Also the consumer group."""
        ...

    @property
    def consumes(self) -> tuple[type[Message], ...]:
        """The message types it reads."""
        ...

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        """React to one message; what comes back is published, in order, one by one: a generator goes on when what it
        yielded was handed to the bus, and is closed when that failed.

        Raise `Unavailable` to be called again later with the same message and unchanged state.
        """
        ...

    def answers(self, message: Message) -> bool:
        """Whether handling this message always has outputs, or leaves its position pending.

        A second attempt at such a message that does neither had no effect, and counts as failed.
        """
        ...

    def substitutes(self, refused: Message, error: MessageTooLarge) -> Iterable[Message] | None:
        """The messages to publish instead of an output that the bus refuses for its size, such as one that says so.

        None makes it the failure of the message that is being handled; where none is, the output is dropped, counted
        and logged. What is refused of the substitutes has no substitute.
        """
        ...

    def advance(self) -> Iterable[Message]:
        """Work that no message starts, such as the next frame of a feed, or the next slice of a long request.

        Called once a step, so a live message waits for as long as one call takes. Published like outputs of `handle`,
        but that a generator goes on behind what was dropped. Raises `RequestFailed` for a request that failed for good.
        """
        ...

    def busy(self) -> bool:
        """Whether `advance` has work that it can go on with at once: its runner does not wait for messages then."""
        ...

    def waiting(self) -> bool:
        """Whether `advance` has work left that only time will free, such as a replay at a given speed."""
        ...

    def pending(self) -> Pending:
        """Messages that were taken in but wait for others; their offsets are not committed."""
        ...

    def assigned(self, committed: Mapping[Partition, int], owns: Callable[[str], bool]) -> Mapping[Partition, int]:
        """Partitions arrive. `committed` has the position from which each goes on, where there is one; `owns` tells
        whether the messages of a key, such as a universe, come to this process. It holds until `revoked`.

        Gives back the positions that must be earlier, because what the service stores is older than what the
        group committed: a database restored from a backup. May raise `Unavailable`, to be asked again.
        """
        ...

    def revoked(self) -> None:
        """All partitions are gone, perhaps to another process: forget everything that was kept of their messages.

        What comes back comes with the messages that were not committed.
        """
        ...

    def not_ready(self) -> Iterable[str]:
        """The things that it misses for its work, in words: a model, a migration. None when it is ready.

        Asked by the run loop every few seconds, so that an idle service, too, notices that a store is away: raise
        `Unavailable` then.
        """
        ...

    def standings(self) -> Iterable[Standing]:
        """Where each portfolio stands whose messages come to this process. From memory: asked every few seconds."""
        ...

    def feeds(self) -> Iterable[FeedStanding]:
        """Where each live feed of this process stands. From memory, as above."""
        ...

    def parts(self) -> Mapping[str, Sequence[str]]:
        """The names of what decides what it does, by kind, such as strategies and feature sets: for its manifest."""
        ...

    def tallies(self) -> Mapping[tuple[str, str], int]:
        """The counts of the service since it started, by event and portfolio, such as `("decision_missed", "p")`."""
        ...

    def figures(self) -> Iterable[Figure]:
        """The metrics of the service beside these, from memory, as above: all that is known of what comes to this
        process, and counts since it started, which never go back."""
        ...

    def before_commit(self, offsets: Mapping[Partition, int]) -> None:
        """Make every effect durable that the messages handled so far have; `offsets` are committed next.

        May raise `Unavailable`.
        """
        ...

    def close(self) -> None:
        """Release what the service holds."""
        ...


def _ignored() -> None:
    """Nobody runs the service yet."""


class ServiceDefaults:
    """A service without held messages, feeds or buffered effects: subclasses say `name`, `consumes`, `handle`."""

    beat: Callable[[], None] = staticmethod(_ignored)

    def answers(self, message: Message) -> bool:
        return True

    def substitutes(self, refused: Message, error: MessageTooLarge) -> Iterable[Message] | None:
        return None

    def advance(self) -> Iterable[Message]:
        return ()

    def busy(self) -> bool:
        return False

    def waiting(self) -> bool:
        return False

    def pending(self) -> Pending:
        return _NOTHING

    def assigned(self, committed: Mapping[Partition, int], owns: Callable[[str], bool]) -> Mapping[Partition, int]:
        return {}

    def revoked(self) -> None:
        """Nothing is kept."""

    def not_ready(self) -> Iterable[str]:
        return ()

    def standings(self) -> Iterable[Standing]:
        return ()

    def feeds(self) -> Iterable[FeedStanding]:
        return ()

    def parts(self) -> Mapping[str, Sequence[str]]:
        return {}

    def tallies(self) -> Mapping[tuple[str, str], int]:
        return {}

    def figures(self) -> Iterable[Figure]:
        return ()

    def before_commit(self, offsets: Mapping[Partition, int]) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """Nothing is held open."""
