"""Instruments, timeframes, and the universes that are traded together."""

from __future__ import annotations

import hashlib
import operator
from datetime import timedelta
from difflib import get_close_matches
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from tradeloop.common.market.days import EXCHANGE_ZONES, Days, days_of
from tradeloop.common.market.events import InForce, InstrumentEvent, check_events
from tradeloop.common.market.instants import EVER_US
from tradeloop.common.market.members import Membership, Roster, check_members

InstrumentId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_\-]{1,32}:[A-Za-z0-9_./\-]{1,64}$")]
"""`venue:symbol`, e.g. `binance:BTC/USDT`."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_\-]{0,62}$")]
"""A name that is safe in topics, paths, tables and URLs: lower case, digits, `-` and `_`."""

ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.\-]{0,126}$")]
"""The name of the models that a strategy trains on a universe: the two names, joined by a `.`, which neither can hold.
Models from before have another name, without it."""


class Timeframe(StrEnum):
    """The nominal length of a bar, from the shortest to the longest."""

    S1 = "1s"
    S5 = "5s"
    S15 = "15s"
    S30 = "30s"
    M1 = "1m"
    M3 = "3m"
    M5 = "5m"
    M15 = "15m"
    M30 = "30m"
    H1 = "1h"
    H2 = "2h"
    H4 = "4h"
    H6 = "6h"
    H8 = "8h"
    H12 = "12h"
    D1 = "1d"
    W1 = "1w"

    @property
    def seconds(self) -> int:
        return _SECONDS[self]

    @property
    def us(self) -> int:
        """Length in microseconds."""
        return _SECONDS[self] * 1_000_000

    @property
    def delta(self) -> timedelta:
        return timedelta(seconds=_SECONDS[self])


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SECONDS = {timeframe: int(timeframe[:-1]) * _UNITS[timeframe[-1]] for timeframe in Timeframe}

_CALENDARS = ("continuous", "weekdays", "sessions", "fx")
EXCHANGES = tuple(EXCHANGE_ZONES)
_ALSO = {"24/7": "continuous", "crypto": "continuous", "NYSE": "XNYS", "NASDAQ": "XNYS", "XNAS": "XNYS", "LSE": "XLON"}


def known_calendar(name: str) -> str:
    """The name, if it is one of a calendar. Raises `ValueError` with names like it."""
    if name in _CALENDARS or name in EXCHANGES:
        return name
    like = _ALSO.get(name) or next(iter(get_close_matches(name.upper(), EXCHANGES, 1, 0.5)), "")
    meant = f", did you mean {like}?" if like else ":"
    raise ValueError(f"no calendar {name}{meant} there are {', '.join(_CALENDARS)} and exchanges by code, such as XNYS")


Calendar = Annotated[str, AfterValidator(known_calendar)]
"""When bars are due: always; Monday to Friday; in sessions that only the venue knows; in the week of foreign exchange;
or in the sessions of an exchange, by its code, such as `XNYS`. What each means: `market.calendars.gaps`."""


class Instrument(BaseModel):
    """A thing that is traded, and the venue's rules for it. Zero for a step or a minimum: the venue sets none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: InstrumentId
    tick_size: float = Field(default=0.0, ge=0)
    """Price step, in quote currency."""
    lot_size: float = Field(default=0.0, ge=0)
    """Quantity step, in base units. The position that a target asks for is rounded towards zero to whole steps."""
    min_notional: float = Field(default=0.0, ge=0)
    """Smallest order value, in quote currency; a smaller order is left out, unless it closes the
    position for a halt or a denied flip."""
    maker_bps: float = Field(default=2.0, ge=0)
    taker_bps: float = Field(default=5.0, ge=0)
    """Fee for taking liquidity, in basis points of the notional."""
    calendar: Calendar = "continuous"


class Universe(BaseModel):
    """Instruments that are traded together: one partition key, one frame per bar."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    instruments: tuple[Instrument, ...] = Field(min_length=1)
    timeframe: Timeframe
    """The timeframe that is decided on: the base of all others."""
    higher_timeframes: tuple[Timeframe, ...] = ()
    """Timeframes that ingest resamples from the base, for features declared with `on(...)`."""
    members: dict[InstrumentId, tuple[Membership, ...]] = Field(default_factory=dict, exclude_if=operator.not_)
    """The memberships of instruments by their ids; empty where all instruments always belong. A
    decision at a bar's close is held to who belongs at that very moment."""
    events: dict[InstrumentId, tuple[InstrumentEvent, ...]] = Field(default_factory=dict, exclude_if=operator.not_)
    """Halts, delistings and renames of instruments by their ids, each one's in the order of time. An instrument keeps
    its id whatever its symbol becomes."""

    @model_validator(mode="after")
    def _consistent(self) -> Universe:
        ids = self.ids
        if len(set(ids)) != len(ids):
            raise ValueError(f"universe {self.name}: an instrument is listed twice")
        for higher in self.higher_timeframes:
            if higher.seconds <= self.timeframe.seconds or higher.seconds % self.timeframe.seconds:
                raise ValueError(f"universe {self.name}: {higher} is no multiple of its base {self.timeframe}")
        try:
            check_members(self.members, ids)
            check_events(self.events, ids)
        except ValueError as error:
            raise ValueError(f"universe {self.name}: {error}") from None
        return self

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(instrument.id for instrument in self.instruments)

    @property
    def days(self) -> Days:
        """Where its days and weeks begin: as its calendar has it, in UTC where instruments differ in that."""
        return days_of(one.calendar for one in self.instruments)

    @property
    def roster(self) -> Roster:
        """Says who belongs at which moment; what is delisted does not any more."""
        force = self.in_force
        ends = {name: end for name in self.events if (end := force.end_us(name)) < EVER_US}
        return Roster(self.ids, self.members, ends)

    @property
    def changes(self) -> bool:
        """Whether it changes who belongs: by memberships, or by a delisting."""
        return bool(self.members) or any(one.kind == "delisting" for ones in self.events.values() for one in ones)

    @property
    def in_force(self) -> InForce:
        """Says which events of instruments are in force at which moment."""
        return InForce(self.ids, self.events)

    @property
    def members_id(self) -> str:
        """A digest of the memberships; empty where all instruments always belong."""
        if not self.members:
            return ""
        lines = [
            f"{name} {one.start.timestamp()} {one.end and one.end.timestamp()}"
            for name in self.ids
            for one in self.members.get(name, ())
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]

    @property
    def events_id(self) -> str:
        """A digest of the events; empty where there are none."""
        if not self.events:
            return ""
        lines = [
            f"{name} {one.time.timestamp()} {one.kind} {one.proceeds} {one.symbol_before} {one.symbol}"
            for name in self.ids
            for one in self.events.get(name, ())
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
