"""The state of a portfolio's book that the ledger remembers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tradeloop.common.messages import OrderUpdated


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A portfolio whose decisions are not taken, until it is released."""

    since_us: int
    """Close of the first bar whose decision is not taken, microseconds since the epoch."""
    cause: str


@dataclass(frozen=True, slots=True)
class Kill:
    """An operator's word that nothing is sent any more, until somebody resumes."""

    since_us: int
    """When it came to count: the close of the first bar whose decision is not taken, or microseconds after the bar
    whose orders it cancelled."""
    said: str
    """The reason, and who gave it."""
    request: str
    """The command, by its id."""
    flatten: bool = False
    """Whether the positions are closed."""


@dataclass(frozen=True, slots=True)
class BookRecord:
    """The state of a portfolio's book that the ledger remembers."""

    revision: int = 0
    """The number of records of this book so far: each one is one above the record that it follows."""
    marked_us: int = -1
    """Close of the last frame that was processed, microseconds since the epoch; -1 for none."""
    decided_us: int = -1
    """Close of the bar whose decision was settled last; -1 for none."""
    book: Mapping[str, Any] = field(default_factory=dict)
    """The simulator's snapshot of the book."""
    reward_state: Mapping[str, float | Sequence[float]] = field(default_factory=dict)
    signal: bytes = b""
    """The last decision, as it was received."""
    working: tuple[OrderUpdated, ...] = ()
    """Orders that are meant for the venue and have not ended. Whoever takes the book over sends them again."""
    quarantine: Quarantine | None = None
    killed: Kill | None = None
    heeded_us: int = -1
    """The time of the last kill, or of its end, that came to count; each is above the one before. -1 for none."""
    live: bool = False
    """Whether the last frame was a live one, so that its decision has a deadline."""
    catches_up: bool = False
    """Whether it filled a hole, so that nothing is decided on it any more."""
    left_out_us: int = -1
    """Close of the last frame that was left out, since it could not be booked; -1 for none."""

    def stands_at(self, other: BookRecord) -> bool:
        """Whether both are the same record. Releases before revisions moved a book by its bars and decisions alone."""
        mine = (self.revision, self.marked_us, self.decided_us)
        return mine == (other.revision, other.marked_us, other.decided_us)
