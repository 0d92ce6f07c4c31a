"""A service as a job: it does what waits for it, and ends."""

from __future__ import annotations

import threading

import structlog

from tradeloop.common.bus.port import Bus
from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.runtime.service import Service

log = structlog.get_logger(__name__)


class Job(Runner):
    """A runner that ends by itself once nothing has been there to do for `idle_s`: then it sets `stop`."""

    def __init__(
        self,
        service: Service,
        bus: Bus,
        clock: Clock,
        idle_s: float,
        stop: threading.Event,
        policy: RunPolicy | None = None,
    ) -> None:
        super().__init__(service, bus, clock, policy)
        self._idle_s, self._stop, self._busy_at = idle_s, stop, clock.monotonic()
        self._ended = False

    def step(self, timeout_s: float = 0.0) -> int:
        """One turn, as of any runner."""
        done = super().step(timeout_s)
        if done or self.waiting or self.pending or self.not_ready():
            self._busy_at = self.clock.monotonic()
        elif self.clock.monotonic() - self._busy_at >= self._idle_s:
            log.info("ends: nothing is left to do", service=self.service.name, idle_s=self._idle_s)
            self._ended = True
            self._stop.set()
        return done

    def check(self) -> None:
        """Raises `UserError` where it was stopped before its work was done, or gave up on some of it."""
        if not self._ended:
            raise UserError(f"{self.service.name} was stopped before its work was done: what was under way is repeated")
        if given_up := self.counters.dead_letters:
            raise UserError(f"{self.service.name} gave up on {given_up} of its messages: `tradeloop dlq list` says why")
