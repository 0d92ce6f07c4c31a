"""The standing of a portfolio or a live feed: how far it is, what it waits for, whether it is set aside."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a portfolio stands, for all to see. Times are aware of their zone."""

    universe: str
    portfolio: str
    marked: datetime | None
    """Event time of the last bar that its book was valued at."""
    decided: datetime | None
    """Event time of the last bar that was decided on."""
    awaiting_since: datetime | None
    """Wall clock since when it waits for its decision; None when it waits for none."""
    quarantined_since: datetime | None
    """Event time since when it is in quarantine; None when it is not."""
    cause: str = ""
    """Why it is in quarantine, or cannot go on."""
    killed_since: datetime | None = None
    """Event time since when an operator's kill is in force; None where none is."""
    killed: str = ""
    """The reason, and who gave it."""

    @property
    def trouble(self) -> str:
        """The thing that it waits for or suffers from, in words; nothing when it goes on."""
        if self.killed_since is not None:
            return f"killed since its bar of {self.killed_since.isoformat()}: {self.killed}"
        if self.quarantined_since is not None:
            return f"in quarantine since its bar of {self.quarantined_since.isoformat()}: {self.cause}"
        if self.awaiting_since is not None:
            bar = "" if self.marked is None else f" on its bar of {self.marked.isoformat()}"
            return f"waits for the decision{bar} since {self.awaiting_since.isoformat()}"
        return f"cannot go on: {self.cause}" if self.cause else ""


@dataclass(frozen=True, slots=True)
class FeedStanding:
    """Where a universe's live feed stands, for all to see. Times are aware of their zone."""

    universe: str
    connected: bool
    """Whether all of its streams are."""
    published: datetime | None
    """Close of the newest base frame that went out."""
    stale_since: datetime | None
    """Since when a bar is overdue that the calendar expects; None where none is."""
    clock_offset_s: float
    """How far the venue's clock is ahead of this machine's; of several the one that is furthest off."""
    failed: bool = False
    """Whether it is given up, until somebody starts it again."""
    cause: str = ""
    """Why it is given up, or cannot go on."""

    @property
    def trouble(self) -> str:
        """The thing that it suffers from, in words; nothing when it goes on."""
        if self.failed:
            return f"given up: {self.cause}"
        stale = "" if self.stale_since is None else f"no bar closed since {self.stale_since.isoformat()}, though due"
        away = "" if self.connected else "not connected"
        return "; ".join(filter(None, (stale, away, self.cause)))
