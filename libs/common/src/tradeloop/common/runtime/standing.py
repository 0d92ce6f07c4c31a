"""The standing of a portfolio in a service: how far it is, what it waits for, whether it is set aside."""

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

    @property
    def trouble(self) -> str:
        """The thing that it waits for or suffers from, in words; nothing when it goes on."""
        if self.quarantined_since is not None:
            return f"in quarantine since its bar of {self.quarantined_since.isoformat()}: {self.cause}"
        if self.awaiting_since is not None:
            bar = "" if self.marked is None else f" on its bar of {self.marked.isoformat()}"
            return f"waits for the decision{bar} since {self.awaiting_since.isoformat()}"
        return f"cannot go on: {self.cause}" if self.cause else ""
