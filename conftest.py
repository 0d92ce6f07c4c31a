"""Fixtures that all tests of the workspace share: the servers and notes of `tests`, and logging that does not leak."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))  # `--import-mode=importlib` adds nothing to the path by itself

pytest_plugins = ["tests.notes", "tests.servers"]

# Speed is not asserted: on a busy machine any example may take long, and so may it to draw one.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

LEVELS = {name: logging.getLogger(name).level for name in ("", "tradeloop")}


@pytest.fixture(autouse=True)
def logging_stays_in_its_test() -> Iterator[None]:
    """The command sets up logging for its process; the next test is to find it as it was before all of them.

    What a fixture of a module did is undone too: it may have run before this one.
    """
    root = logging.getLogger()
    handlers = root.handlers[:]
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
    yield
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
    root.handlers[:] = handlers
    structlog.reset_defaults()
