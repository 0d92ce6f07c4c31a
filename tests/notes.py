"""What a run says at its end about what it ran on: by which road each server came, which seed was tried."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

PREFIX = "note: "
"""The beginning of each such line of pytest's summary."""
Note = Callable[[str, str], None]

_NOTES = pytest.StashKey[dict[str, str]]()


def take_note(config: pytest.Config, subject: str, text: str) -> None:
    config.stash.setdefault(_NOTES, {})[subject] = text


@pytest.fixture(scope="session")
def note(pytestconfig: pytest.Config) -> Note:
    """Takes a subject and what is to be said of it; the last word on a subject counts."""
    return partial(take_note, pytestconfig)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for subject, text in config.stash.get(_NOTES, {}).items():
        terminalreporter.write_line(f"{PREFIX}{subject}: {text}")
