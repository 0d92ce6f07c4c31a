"""The log of something that is unavailable: once when it begins, now and then while it lasts, once when it is over."""

from __future__ import annotations

import structlog

from tradeloop.common.clock import Clock

log = structlog.get_logger(__name__)

_MOST_CAUSES = 10


class Outage:
    """The time in which a service cannot reach something."""

    def __init__(self, service: str, clock: Clock, reminder_s: float) -> None:
        self._service, self._clock, self._reminder_s = service, clock, reminder_s
        self._since: float | None = None
        self._said_at = 0.0
        self._causes: set[str] = set()

    def goes_on(self, error: Exception) -> None:
        """Note a call that found something unavailable. A cause that was not named yet is logged at once."""
        now, cause = self._clock.monotonic(), str(error)
        if self._since is None:
            self._since = now
        is_new = cause not in self._causes and len(self._causes) < _MOST_CAUSES
        if not is_new and now - self._said_at < self._reminder_s:
            return
        self._said_at = now
        self._causes.add(cause)
        log.warning("unavailable", service=self._service, error=cause, for_s=round(now - self._since, 1))

    def is_over(self) -> None:
        """Note that all is there, as it mostly is."""
        if self._since is not None:
            log.warning(
                "available again", service=self._service, after_s=round(self._clock.monotonic() - self._since, 1)
            )
        self._since = None
        self._causes.clear()
