"""The level of the log at run time, by signals: SIGUSR1 for more, for a while, and SIGUSR2 for no more than usual.

Whoever may send a process a signal may also stop it: no port, token or role is added for this, and Compose, Kubernetes
and a shell can each send one. The log says which signal it was, and which users may send one.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field

from tradeloop.common.runtime.logs import change_level

log = structlog.get_logger(__name__)

_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
_END = 0


class LogSettings(BaseModel):
    """How much a service logs."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level of its own lines. With `debug`, one for each message."""
    debug_s: float = Field(default=900.0, gt=0)
    """How long it logs at `debug` after a SIGUSR1."""


@contextmanager
def level_by_signals(settings: LogSettings) -> Iterator[None]:
    """Set the level of the log, and let signals change it for the time of the context. In the main thread."""
    usual = getattr(logging, settings.level.upper())
    change_level(usual)
    came: SimpleQueue[int] = SimpleQueue()
    # A signal may come while a line is written, whose lock the handler would wait for in vain.
    before = {signum: signal.signal(signum, lambda number, _: came.put(number)) for signum in _SIGNALS}
    changer = threading.Thread(target=_change, args=(came, usual, settings.debug_s), name="log level", daemon=True)
    changer.start()
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        came.put(_END)
        changer.join()


def _change(came: SimpleQueue[int], usual: int, debug_s: float) -> None:
    left_s: float | None = None
    while True:
        try:
            signum = came.get(timeout=left_s)
        except Empty:
            change_level(usual)
            log.warning("the level of the log is the usual one again", to=_name(usual), by=f"{debug_s:g} s went by")
            left_s = None
            continue
        if signum == _END:
            return
        more = signum == signal.SIGUSR1
        level, left_s = (logging.DEBUG, debug_s) if more else (usual, None)
        who = {"by": signal.Signals(signum).name, "may_send": f"user {os.getuid()} and root"}
        change_level(level)
        log.warning("the level of the log changes", to=_name(level), **who, **({"for_s": debug_s} if more else {}))


def _name(level: int) -> str:
    return logging.getLevelName(level).lower()
