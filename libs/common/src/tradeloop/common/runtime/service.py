"""`Service`: what a runner needs of a service, and `ServiceDefaults`, the part that most leave as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from tradeloop.common.bus.port import LogPosition, Partition
from tradeloop.common.messages import Message
from tradeloop.common.runtime.pending import Pending

_NOTHING = Pending()


class RequestFailed(Exception):
    """Work that `Service.advance` did for a message failed for good, for a cause.

    The service waits with that message no more: its runner sets it aside, as if `handle` had raised the cause.
    """

    def __init__(self, position: LogPosition, cause: Exception) -> None:
        super().__init__(f"the request at {position} failed: {cause}")
        self.position, self.cause = position, cause


class Service(Protocol):
    """A service as its runner needs it. Handling the same message again must give the same outputs again."""

    @property
    def name(self) -> str:
        """Also the consumer group."""
        ...

    @property
    def consumes(self) -> tuple[type[Message], ...]:
        """The message types it reads."""
        ...

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        """React to one message; what comes back is published, in order.

        Raise `Unavailable` to be called again later with the same message and unchanged state.
        """
        ...

    def advance(self) -> Iterable[Message]:
        """Work that no message starts, such as the next frame of a feed, or the next slice of a long request.

        Called once a step, so a live message waits for as long as one call takes. Raises `RequestFailed` for a
        request that failed for good.
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

    def assigned(self, committed: Mapping[Partition, int]) -> Mapping[Partition, int]:
        """Partitions arrive. `committed` has the position from which each goes on, where there is one.

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

    def before_commit(self, offsets: Mapping[Partition, int]) -> None:
        """Make every effect durable that the messages handled so far have; `offsets` are committed next.

        May raise `Unavailable`.
        """
        ...

    def close(self) -> None:
        """Release what the service holds."""
        ...


class ServiceDefaults:
    """A service without held messages, feeds or buffered effects: subclasses say `name`, `consumes`, `handle`."""

    def advance(self) -> Iterable[Message]:
        return ()

    def busy(self) -> bool:
        return False

    def waiting(self) -> bool:
        return False

    def pending(self) -> Pending:
        return _NOTHING

    def assigned(self, committed: Mapping[Partition, int]) -> Mapping[Partition, int]:
        return {}

    def revoked(self) -> None:
        """Nothing is kept."""

    def not_ready(self) -> Iterable[str]:
        return ()

    def before_commit(self, offsets: Mapping[Partition, int]) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """Nothing is held open."""
