"""Long requests in slices: batch work beside live work, in one process and one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

from tradeloop.common.bus.port import LogPosition
from tradeloop.common.errors import Unavailable
from tradeloop.common.messages import Message
from tradeloop.common.runtime.pending import Pending
from tradeloop.common.runtime.service import RequestFailed


class Task(Protocol):
    """A long request under way."""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        ...

    def step(self) -> Iterable[Message]:
        """The next slice: some fifty milliseconds of work, and the messages that come of it.

        Raises `Unavailable` with the slice still to be done; anything else ends the request.
        """
        ...


@runtime_checkable
class Resting(Protocol):
    """A task that may wait for others."""

    @property
    def rests(self) -> bool:
        """Whether its next slice has nothing to do yet."""
        ...


class Slices:
    """Requests in the order in which they came, one slice of one of them a call, each in its turn.

    A request's message stays pending until its last slice is done: after a crash it comes again.
    """

    def __init__(self) -> None:
        self._tasks: deque[tuple[LogPosition, Task, str]] = deque()

    def begin(self, position: LogPosition, task: Task, key: str) -> None:
        """Take in the request of a key that stands at a position."""
        self._tasks.append((position, task, key))

    def advance(self) -> Iterator[Message]:
        """Do one slice. Raises `Unavailable`, to be called again, and `RequestFailed`."""
        if not self._tasks:
            return
        position, task, _ = self._tasks[0]
        try:
            yield from task.step()
        except Unavailable:
            raise
        except Exception as error:
            self._tasks.popleft()
            raise RequestFailed(position, error) from error
        self._tasks.rotate(-1)
        if task.finished:
            self._tasks.pop()

    @property
    def busy(self) -> bool:
        """Whether a task can go on at once."""
        return any(not (isinstance(task, Resting) and task.rests) for _, task, _ in self._tasks)

    @property
    def keys(self) -> frozenset[str]:
        """The keys of the requests that are not finished."""
        return frozenset(key for _, _, key in self._tasks)

    def pending(self) -> Pending:
        """The positions of the requests that are not finished."""
        return Pending(position for position, _, _ in self._tasks)

    def forget(self) -> None:
        """Drop all requests: they come again to whoever gets their partition."""
        self._tasks.clear()
