"""The end of a service by a signal: SIGTERM or SIGINT ask it to drain, in a thread that says so and tells the run loop.

A handler of signals runs in the middle of whatever the main thread does, such as a line of the log or a look at the
event, each of which holds a lock: it would wait for itself. So it only notes the signal.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import structlog

log = structlog.get_logger(__name__)

_END = 0


@contextmanager
def stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """Set `stop` when a signal asks for the end, within the context; afterwards such signals are ignored."""
    came: SimpleQueue[int] = SimpleQueue()  # its `put` may interrupt another one, of the same thread too
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda number, _: came.put(number))
    thread = threading.Thread(target=_stop, args=(came, stop), name="stopping", daemon=True)
    thread.start()
    try:
        yield
    finally:
        came.put(_END)
        thread.join()


def _stop(came: SimpleQueue[int], stop: threading.Event) -> None:
    while (signum := came.get()) != _END:
        stop.set()
        log.info("stopping", signal=signal.Signals(signum).name)
