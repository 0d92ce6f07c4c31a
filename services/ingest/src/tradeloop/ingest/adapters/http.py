"""Rate limits of venues, and the port's errors for what they answer through HTTP."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.ingest.ports import SourceUnavailable

_BURST_S = 6.0


class Throttle:
    """A token bucket: so many requests a second, and after a rest those of six seconds at once, one at least.

    It keeps to the generic cell rate algorithm (ITU-T I.371, annex A). Threads may share it.
    """

    def __init__(self, per_s: float, clock: Clock, wait: Callable[[float], object] | None = None) -> None:
        """`wait` passes seconds."""
        self._each_s, self._clock, self._wait = 1.0 / per_s, clock, wait or threading.Event().wait
        self._burst_s = max(_BURST_S, self._each_s)
        self._due_s = -math.inf
        self._lock = threading.Lock()

    def take(self) -> None:
        """Wait for the turn of a request."""
        with self._lock:
            now_s = self._clock.monotonic()
            self._due_s = max(self._due_s, now_s - self._burst_s) + self._each_s
            early_s = self._due_s - now_s
        if early_s > 0:
            self._wait(early_s)


def answered(venue: str, status: int, text: str, pause_s: float | None) -> SourceUnavailable | UserError:
    """The error for a status that is not 200."""
    told = f"{status} {' '.join(text.split())[:300]}"
    if status == 401:
        return UserError(f"{venue} refuses the credentials: {told}: correct its key and secret")
    if status == 403:
        return UserError(f"{venue} denies permission: {told}: ask it for this data, or take another feed")
    if status == 429:
        return SourceUnavailable(f"{venue} says that it is asked too often: {told}", pause_s)
    if status >= 500:
        return SourceUnavailable(f"{venue} does not answer: {told}", pause_s)
    return UserError(f"{venue} refuses the request: {told}")


def retry_after(headers: Any) -> float | None:
    """The seconds of a `Retry-After` header, where there is one."""
    for name, value in dict(headers or {}).items():
        if str(name).lower() == "retry-after":
            try:
                seconds = float(value)
            except ValueError:
                return None
            return seconds if math.isfinite(seconds) and seconds >= 0 else None
    return None
