"""Progress on standard error: bars in a terminal, a line for each finished stage elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from tradeloop.common.runtime.logs import configure_logging

Report = Callable[[int], None]
"""Says how much of a stage is done."""


class _Rate(ProgressColumn):
    """How much is done in a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


class Stages:
    """The stages of a command, one after the other."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    @contextmanager
    def stage(self, text: str, total: int | None = None) -> Iterator[Report]:
        """Show a stage while the block runs; the block reports how much of `total` is done."""
        started = time.monotonic()
        task = self._progress.add_task(text, total=total)
        self._progress.start()
        try:
            yield lambda done: self._progress.update(task, completed=done)
            self._progress.update(task, total=total or 1, completed=total or 1)
        finally:
            self._progress.stop_task(task)
            self._progress.stop()
        if not self._console.is_terminal:
            print(f"{text}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """One line, above the stage that is under way."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def warn(self, warnings: Iterable[str]) -> None:
        """A line for each."""
        for warning in warnings:
            self.say(f"Warning: {warning}")


def quiet_logs() -> None:
    """Log lines would tear the progress bars: only with `--debug`. What goes wrong is said in the end anyway."""
    debug = bool(os.environ.get("TRADELOOP_DEBUG"))
    configure_logging("plain", logging.INFO if debug else logging.CRITICAL)
    if not debug:
        # Libraries warn each other's authors, not this command's user; some set filters anew when they are imported.
        warnings.showwarning = lambda *_, **__: None
