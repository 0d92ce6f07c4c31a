"""`Handling`: what a runner tells of the message at hand, to the log and to traces, if there are any."""

from __future__ import annotations

import structlog

from tradeloop.common.bus.port import Record
from tradeloop.common.clock import Clock
from tradeloop.common.messages import Message
from tradeloop.common.runtime import context
from tradeloop.common.runtime.traces import Tracer

log = structlog.get_logger(__name__)


class Handling:
    """The message that one service handles. Without a tracer it costs next to nothing."""

    def __init__(self, service: str, clock: Clock) -> None:
        self.service, self._clock = service, clock
        self.record: Record | None = None
        """The record at hand."""
        self.message: Message | None = None
        """Its message, once that is decoded."""
        self.tracer: Tracer | None = None
        self.manifest = ""
        """Names what runs here, in the headers of records; empty where nobody asked."""

    def enters(self) -> None:
        """Let lines of the log say what is at hand here, from now on."""
        context.enter(self)

    def takes(self, record: Record, message: Message) -> None:
        """Note that the message is handled from now on."""
        self.message = message
        if self.tracer is not None:
            self.tracer.takes(record, message)

    def failed(self, error: Exception) -> None:
        """Note that it failed."""
        if self.tracer is not None:
            self.tracer.took(error)

    def ends(self, since: float) -> None:
        """Note that it is over; it began at `since`, on the monotonic clock."""
        if self.tracer is not None:
            self.tracer.took()
        if context.every_message:
            log.debug("handled", seconds=round(self._clock.monotonic() - since, 6))
        self.record = self.message = None

    def works(self) -> None:
        """Note that work begins that no message at hand started."""
        if self.tracer is not None:
            self.tracer.works()
