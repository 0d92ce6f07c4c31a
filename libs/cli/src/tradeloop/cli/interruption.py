"""Ctrl-C, which ends a command once, whatever a library makes of it."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interruption:
    """Turns the first Ctrl-C into KeyboardInterrupt and remembers it, since a library may turn it into an error of
    its own; further ones are ignored, so that what was begun can be cleaned up."""

    def __init__(self) -> None:
        self._happened = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._on_signal)

    def __bool__(self) -> bool:
        return self._happened

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if not self._happened:
            self._happened = True
            raise KeyboardInterrupt


def last_words(error: BaseException | None) -> str:
    """The words of a command about its interruption, which Typer turns into an exit of its own."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt) and str(error):
            return str(error)
        error = error.__cause__ or error.__context__
    return ""
