"""What the commands ask of a stack, be it embedded in the command or running elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from tradeloop.common.bus.port import Record
from tradeloop.common.errors import UserError
from tradeloop.common.messages import (
    BackfillRequested,
    Message,
    PreprocessRequested,
    ReplayRequested,
    TrainingProgressed,
    TrainingRequested,
)
from tradeloop.common.runtime.headers import ERROR, ORIGIN

M = TypeVar("M", bound=Message)
Request = BackfillRequested | PreprocessRequested | TrainingRequested | ReplayRequested
OnProgress = Callable[[TrainingProgressed], None]

_USERS_FAULT = ("UserError: ", "RewardError: ", "FeatureError: ", "ModelNotFound: ")


class Failed(Exception):
    """A service gave up on a message, and it is nobody's input that is wrong."""


class Stack(Protocol):
    """Services that answer."""

    def ask(self, request: Request, answer: type[M], on_progress: OnProgress | None = None) -> M:
        """Send a request and wait for its answer.

        Raises `UserError` when a service refused the request, `Failed` when it could not do it.
        """
        ...


def given_up(service: str, record: Record) -> UserError | Failed:
    """What to raise for a record of a service's dead-letter topic: whether its sender is to blame is its type."""
    error, origin = record.headers.get(ERROR, "no reason given"), record.headers.get(ORIGIN, record.topic)
    for prefix in _USERS_FAULT:
        if error.startswith(prefix):
            return UserError(error.removeprefix(prefix))
    return Failed(f"{service} gave up on {origin}: {error}")
