"""Findings, and checks that run side by side, none of them for longer than its time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tradeloop.common.addresses import address
from tradeloop.common.errors import Unavailable, UserError


class Level(StrEnum):
    """How it stands with something."""

    OK = "ok"
    UNUSED = "not used"
    """It is not there, and nothing that is configured here needs it."""
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line for people."""

    level: Level
    subject: str
    said: str
    remedy: str = ""


def ok(subject: str, said: str) -> Finding:
    return Finding(Level.OK, subject, said)


def unused(subject: str, said: str) -> Finding:
    return Finding(Level.UNUSED, subject, said)


def warning(subject: str, said: str, remedy: str) -> Finding:
    return Finding(Level.WARNING, subject, said, remedy)


def failed(subject: str, said: str, remedy: str) -> Finding:
    return Finding(Level.FAILED, subject, said, remedy)


@dataclass(frozen=True)
class Check:
    """A look at something. It may stop in the middle: what it found before counts."""

    subject: str
    run: Callable[[], Iterable[Finding]]
    remedy: str = ""
    """The thing to do where it does not end, or cannot be done."""


def examined(checks: Sequence[Check], within_s: float) -> Iterator[Finding]:
    """The findings of all checks, in their order; they run at the same time.

    One that is not done in time has failed, and is left behind: its thread ends with the process. No secret of the
    settings is in what is found, even where a driver quotes one.
    """
    running = [_Running(check) for check in checks]
    end_s = time.monotonic() + within_s
    for each in running:
        each.start()
    for each in running:
        each.join(max(end_s - time.monotonic(), 0.0))
        for found in each.findings(within_s):
            said, remedy = (" ".join(address(text).split()) for text in (found.said, found.remedy))
            yield Finding(found.level, found.subject, said, remedy)


class _Running(threading.Thread):
    def __init__(self, check: Check) -> None:
        super().__init__(name=f"doctor {check.subject}", daemon=True)
        self._check, self._found = check, list[Finding]()

    def run(self) -> None:
        check = self._check
        try:
            for finding in check.run():
                self._found.append(finding)
        except (UserError, Unavailable) as error:
            self._found.append(failed(check.subject, str(error), check.remedy))
        except Exception as error:  # noqa: BLE001  a look that fails is a finding, and no end of the others
            self._found.append(failed(check.subject, f"{type(error).__name__}: {error}", check.remedy))

    def findings(self, within_s: float) -> list[Finding]:
        hangs = self.is_alive()
        found = list(self._found)
        if hangs:
            found.append(failed(self._check.subject, f"no answer within {within_s:g} s", self._check.remedy))
        return found
