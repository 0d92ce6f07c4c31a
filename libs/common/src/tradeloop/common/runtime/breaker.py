"""Failures that are no message's fault: many different messages fail alike, one after the other."""

from __future__ import annotations

import structlog
from pydantic import ValidationError

from tradeloop.common.bus.port import MessageTooLarge, Record
from tradeloop.common.clock import Clock
from tradeloop.common.errors import Unavailable, UserError
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.retries import NoEffect

log = structlog.get_logger(__name__)

_ITS_OWN = (MessageTooLarge, NoEffect, UserError, ValidationError)
"""Errors that always are the fault of the message at which they occur, or of what was sent because of it."""


class Systemic(Unavailable):
    """Every message fails in the same way: something outside is wrong that nobody named yet."""


class Breaker:
    """Opens when so many different messages in a row failed with errors of one type that it is not their fault.

    While it is open the message at the head of the line waits, as for something unavailable. One that passes closes
    it. One that waited for `RunPolicy.systemic_patience_s` is put aside after all, so that a row of bad messages ends.
    """

    def __init__(self, service: str, clock: Clock, policy: RunPolicy) -> None:
        self._service, self._clock, self._policy = service, clock, policy
        self._kind: type[Exception] | None = None
        self._failed: dict[str, None] = {}
        """The messages of the row, by the place where each first stood."""
        self._head: str = ""
        self._head_since = 0.0

    def passed(self) -> None:
        """Note a message that was handled."""
        if self._kind is None:
            return
        if self._is_open:
            log.warning("messages pass again", service=self._service, failed=len(self._failed))
        self._kind = None
        self._failed.clear()
        self._head = ""

    def failed(self, origin: str, record: Record, error: Exception) -> None:
        """Note a message that failed. Raises `Systemic` when it must wait instead of being put aside."""
        if isinstance(error, _ITS_OWN):
            return
        if type(error) is not self._kind:
            self.passed()
            self._kind = type(error)
        was_open = self._is_open
        here = f"{record.topic}/{record.partition}/{record.offset}"
        if not was_open or here != self._head:
            self._head, self._head_since = here, self._clock.monotonic()
        self._failed[origin] = None
        if not self._is_open:
            return
        words = f"{len(self._failed)} messages in a row failed with {self._kind.__name__}, the last one with: {error}"
        if not was_open:
            log.error(
                "every message fails in the same way: they wait; look at the cause, then at the dead letters",
                service=self._service,
                failed=list(self._failed),
                error=f"{type(error).__name__}: {error}",
                exc_info=error,
            )
        if self._clock.monotonic() - self._head_since < self._policy.systemic_patience_s:
            raise Systemic(words) from error

    @property
    def _is_open(self) -> bool:
        return len(self._failed) >= self._policy.systemic_failures
