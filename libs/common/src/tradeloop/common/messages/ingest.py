"""Messages of the market data: bars loaded, bars replayed, and the bars themselves."""

from __future__ import annotations

import operator
from datetime import datetime
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.common.market import Bar, Delisted, InstrumentEvent, Timeframe, TimeRange, check_not_ahead, iso, spoken
from tradeloop.common.market.columns import checked as check_extra
from tradeloop.common.messages.base import UniverseMessage, UniverseRequest


class Reading(BaseModel):
    """How files of bars are to be read, where that is not left to what they show themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: dict[str, str] = Field(default_factory=dict)
    """The file's name of `time`, `clock` (the time of day, where `time` is the date), a price, `volume`,
    `funding_rate` or `symbol`; or the column's number, from 1."""
    zone: str | None = None
    """The IANA time zone of times that name none, such as `America/New_York`."""
    time_unit: Literal["s", "ms", "us", "ns"] | None = None
    """The unit of times that are numbers."""
    timeframe: Timeframe | None = None
    """The length of bars, where nothing else says it."""
    dates: Literal["day-first", "month-first"] | None = None
    decimal: Literal[".", ","] | None = None
    """The decimal sign of numbers."""
    separator: Literal[",", ";", "|", "tab", "space"] | None = None
    """The sign between the cells of a text file."""
    repair: tuple[Literal["zero-opens"], ...] = ()
    """The faults that are repaired: for an open of 0 the close before it is taken."""
    keep: dict[str, str] = Field(default_factory=dict)
    """Columns of numbers that become further columns of the bars: the file's name of each, or its number."""
    more: tuple[str, ...] = ()
    """Paths of further files of the same instrument."""

    @field_validator("keep")
    @classmethod
    def _may_be_kept(cls, keep: dict[str, str]) -> dict[str, str]:
        check_extra(keep)
        return keep

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str | None) -> str | None:
        if zone is not None:
            try:
                ZoneInfo(zone)
            except (ZoneInfoNotFoundError, ValueError, OSError):
                raise ValueError("there is no such time zone, give one such as America/New_York") from None
        return zone


class BackfillRequested(UniverseRequest):
    """Load bars into the store: those of files, or of a range from the venues that the instruments' ids name."""

    files: dict[str, str] = Field(default_factory=dict)
    """Path of the bars of each instrument of the universe, by instrument id."""
    range: TimeRange | None = None
    """Without files: the open times of the bars that are fetched, as far as they were not fetched before."""
    anew: dict[str, tuple[TimeRange, ...]] = Field(default_factory=dict)
    """The ranges of each instrument, by its id, that are asked of its venue whatever was fetched before, to mend them:
    then nothing else of `range` is. Bars are taken where those beside them agree with what is stored."""
    readings: dict[str, Reading] = Field(default_factory=dict)
    """How the files of an instrument are to be read, by instrument id; as they show themselves where it lacks one."""


class BackfillCompleted(UniverseRequest):
    """Bars of a range are in the store (the claim-check pattern: the bars themselves are not sent)."""

    range: TimeRange
    bars: int
    gaps: int
    """Places where the calendar expected bars and there were none."""
    left_out: int = 0
    """Bars that a venue sent and that are none, such as one with a price of 0."""
    remarks: tuple[str, ...] = ()
    """Lines for people about the first of them."""


class ReplayRequested(UniverseRequest):
    """Publish stored bars of a range as if they closed now."""

    range: TimeRange
    speed: float | None = Field(default=None, gt=0)
    """Bar time per wall time, e.g. 60 for an hour a minute; None for as fast as the loop settles."""


Channel = Literal["bars", "trades", "books", "news"]
"""The kinds of live data."""


class LiveRequested(UniverseRequest):
    """Begin a universe's live feed, or end it. The newest request of a universe holds, over restarts too."""

    command: Literal["start", "stop"]
    time: AwareDatetime
    """When it was asked for."""
    channels: tuple[Channel, ...] = ("bars",)
    since: AwareDatetime | None = None
    """Frames that open from then on go out, as far as none newer did. Without it: those behind the newest one that went
    out live, or those that close after `time` where none did."""


class LiveReported(UniverseRequest):
    """The outcome of a request for a live feed."""

    state: Literal["started", "stopped", "failed"]
    reason: str = ""
    """Why it failed, in words."""

    @property
    def identity(self) -> str:
        return "|".join(filter(None, (self.request_id, self.state, self.reason)))


def _is_none(value: object) -> bool:
    return value is None


class BarFrame(UniverseMessage):
    """All bars of a universe at one open time and one timeframe, closed."""

    timeframe: Timeframe
    open_time: AwareDatetime
    close_time: AwareDatetime
    bars: tuple[Bar, ...]
    missing: tuple[str, ...] = ()
    """Instruments of the universe that have no bar here, but for those outside, and those in which trading rests at the
    open or at the close."""
    outside: tuple[str, ...] | None = Field(default=None, exclude_if=_is_none)
    """Instruments that do not belong to the universe at the close; they may have a bar nevertheless. None where all
    instruments always belong."""
    halted: tuple[str, ...] = Field(default=(), exclude_if=operator.not_)
    """Instruments in which trading is halted at the close: no order is sent."""
    shut: tuple[str, ...] = Field(default=(), exclude_if=operator.not_)
    """Instruments in which trading is halted at the open: no order fills, and each has expired."""
    delisted: tuple[Delisted, ...] = Field(default=(), exclude_if=operator.not_)
    """Delistings that are in force at the close, of instruments that are all outside. What is held at the first open
    from then on is closed at the proceeds."""
    revision: int = Field(default=0, ge=0)
    """Raised when a bar that went out is corrected; a decision that was made is never re-made."""
    live: bool = False
    """Whether the bars closed just now, and the market goes on: a decision on them has a deadline. That on a replayed
    frame has none."""
    catches_up: bool = False
    """Whether newer bars had closed when a live frame went out, because it fills a hole: it is booked, and nothing is
    decided on it any more."""
    begins: bool = Field(default=False, exclude_if=operator.not_)
    """Whether a run of frames begins with it: bars before it may be stored without having gone out. Within a run, who
    computes on frames sees those alone that went out, as they went out last."""

    @property
    def occurred(self) -> datetime:
        return self.close_time

    @property
    def identity(self) -> str:
        return f"{self.universe}|{self.timeframe}|{iso(self.open_time)}|{self.revision}"

    @property
    def bars_and_gaps(self) -> tuple[tuple[Bar, ...], frozenset[str]]:
        """The bars, and who lacks one, whoever belongs to the universe."""
        away = {*self.missing, *(self.outside or ()), *self.halted, *self.shut}
        lacking = away - {bar.instrument for bar in self.bars}
        return self.bars, frozenset(lacking)

    def check(self, clock: Clock) -> None:
        """Raise `UserError` unless the frame has its timeframe's length, and opened at a whole second by now."""
        what = f"the {self.timeframe} frame of {self.universe}"
        if self.close_time - self.open_time != self.timeframe.delta or self.open_time.microsecond:
            raise UserError(
                f"{what} from {self.open_time.isoformat()} to {self.close_time.isoformat()} is not {self.timeframe} "
                "from a whole second on: correct its source"
            )
        check_not_ahead(self.open_time, clock, what)


class InstrumentChanged(UniverseMessage):
    """A halt, its end, a delisting or a new symbol came into force: it goes out before the first frame that knows it.

    Frames say themselves what is in force at them. It may come again, as the same message, after a crash.
    """

    instrument: str
    event: InstrumentEvent

    @property
    def occurred(self) -> datetime:
        return self.event.time

    @property
    def identity(self) -> str:
        return f"{self.universe}|{self.instrument}|{spoken(self.event.time)}|{self.event.kind}|{self.event.words}"
