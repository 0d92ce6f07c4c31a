"""How tests wait: they poll, until a deadline that only something broken reaches, on a busy machine too."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 120.0
"""The deadline of whatever comes in seconds where nothing is wrong."""


def until(happened: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Ask again and again until it has happened; what is asked may itself do a step."""
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, f"it did not happen within {timeout_s:g} s"
        time.sleep(0.002)
