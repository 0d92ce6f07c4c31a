"""Attempts at one piece of work: how often it failed, when it is tried again, when it is given up."""

from __future__ import annotations

from dataclasses import dataclass

from tradeloop.common.addresses import address
from tradeloop.common.clock import Clock


@dataclass(frozen=True, slots=True)
class Patience:
    """How often something is tried before it is given up."""

    attempts: int = 3
    delay_s: float = 1.0
    """Before the second attempt; doubles with each further one, up to 64 times that."""


class Attempts:
    """The attempts at whatever comes next in one line of work."""

    def __init__(self, clock: Clock, patience: Patience) -> None:
        self._clock, self._patience = clock, patience
        self._failures = 0
        self._again_s = 0.0
        self.error = ""
        """The last failure, in words; empty when the last attempt was none."""

    @property
    def waiting(self) -> bool:
        """Whether a failed attempt will be repeated."""
        return bool(self.error)

    @property
    def due(self) -> bool:
        """Whether the time of the next attempt has come."""
        return not self.error or self._clock.monotonic() >= self._again_s

    def failed(self, error: BaseException) -> bool:
        """Count a failure; whether that was the last attempt."""
        self._failures += 1
        self._wait(error, self._patience.delay_s * 2 ** min(self._failures - 1, 6))
        return self._failures >= self._patience.attempts

    def held_up(self, error: BaseException, delay_s: float | None = None) -> None:
        """Note that something was unavailable, which is no failure of the work: it is tried for ever.

        `delay_s` is the time until then, for what is expected at any moment.
        """
        self._wait(error, self._patience.delay_s if delay_s is None else delay_s)

    def passed(self) -> None:
        """Begin anew: the work is done, or given up."""
        self._failures, self.error = 0, ""

    def _wait(self, error: BaseException, delay_s: float) -> None:
        self.error = words(error)
        self._again_s = self._clock.monotonic() + delay_s


def words(error: BaseException) -> str:
    """An error in one line of at most 500 characters, with its class in front and without a secret.

    It becomes part of messages and pages, and an error of a library may quote whatever the library was given.
    """
    return address(" ".join(f"{type(error).__name__}: {error}".split()))[:500]
