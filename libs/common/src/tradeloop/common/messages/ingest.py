"""Messages of the market data: bars loaded, bars replayed, and the bars themselves."""

from __future__ import annotations

from datetime import datetime

from pydantic import AwareDatetime, Field

from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.common.market import Bar, Timeframe, TimeRange, check_not_ahead, iso
from tradeloop.common.messages.base import UniverseMessage, UniverseRequest


class BackfillRequested(UniverseRequest):
    """Load a file of bars into the store."""

    files: dict[str, str]
    """Path of the bars of each instrument of the universe, by instrument id."""


class BackfillCompleted(UniverseRequest):
    """Bars of a range are in the store (the claim-check pattern: the bars themselves are not sent)."""

    range: TimeRange
    bars: int
    gaps: int
    """Places where the calendar expected bars and there were none."""


class ReplayRequested(UniverseRequest):
    """Publish stored bars of a range as if they closed now."""

    range: TimeRange
    speed: float | None = Field(default=None, gt=0)
    """Bar time per wall time, e.g. 60 for an hour a minute; None for as fast as the loop settles."""


class BarFrame(UniverseMessage):
    """All bars of a universe at one open time and one timeframe, closed."""

    timeframe: Timeframe
    open_time: AwareDatetime
    close_time: AwareDatetime
    bars: tuple[Bar, ...]
    missing: tuple[str, ...] = ()
    """Instruments of the universe that have no bar here."""
    revision: int = Field(default=0, ge=0)
    """Raised when a bar that went out is corrected; a decision that was made is never re-made."""
    live: bool = False
    """Whether the bars closed just now, and the market goes on: a decision on them has a deadline. That on a replayed
    frame has none."""

    @property
    def occurred(self) -> datetime:
        return self.close_time

    @property
    def identity(self) -> str:
        return f"{self.universe}|{self.timeframe}|{iso(self.open_time)}|{self.revision}"

    def check(self, clock: Clock) -> None:
        """Raise `UserError` unless the frame has its timeframe's length, and opened at a whole second by now."""
        what = f"the {self.timeframe} frame of {self.universe}"
        if self.close_time - self.open_time != self.timeframe.delta or self.open_time.microsecond:
            raise UserError(
                f"{what} from {self.open_time.isoformat()} to {self.close_time.isoformat()} is not {self.timeframe} "
                "from a whole second on: correct its source"
            )
        check_not_ahead(self.open_time, clock, what)
