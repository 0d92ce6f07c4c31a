"""Runners that are stepped in one thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from tradeloop.common.runtime.runner import Runner


def pump(runners: Sequence[Runner], stop: threading.Event | None = None) -> None:
    """Step the runners in turn until none has anything left to do, or told to stop."""
    while stop is None or not stop.is_set():
        if not sum(runner.step() for runner in runners):
            if not any(runner.waiting for runner in runners):
                return
            threading.Event().wait(0.01)
