"""Events of instruments: halts of trading, their ends, delistings, new symbols; and what of them is in force when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from tradeloop.common.market.instants import EVER_US, spoken, to_us

EventKind = Literal["halt", "resume", "delisting", "rename"]

SYMBOL = r"[A-Za-z0-9_./\-]{1,64}"


def _is_none(value: object) -> bool:
    return value is None


class InstrumentEvent(BaseModel):
    """Something that happens to an instrument itself, whatever its price does."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    time: AwareDatetime
    """From then on it is in force."""
    kind: EventKind
    """`halt`: trading in it rests. `resume`: it goes on. `delisting`: it ends for good. `rename`: it goes on under
    another symbol."""
    proceeds: float | None = Field(default=None, ge=0, exclude_if=_is_none)
    """The amount that a holder gets for each unit at a delisting, in quote currency."""
    symbol_before: str | None = Field(default=None, pattern=f"^{SYMBOL}$", exclude_if=_is_none)
    """The symbol up to a rename."""
    symbol: str | None = Field(default=None, pattern=f"^{SYMBOL}$", exclude_if=_is_none)
    """The symbol from a rename on."""

    @model_validator(mode="after")
    def _whole(self) -> InstrumentEvent:
        if (self.proceeds is None) is (self.kind == "delisting"):
            raise ValueError(
                "a delisting needs its proceeds for each unit: give a number of at least 0"
                if self.kind == "delisting"
                else f"proceeds are of a delisting, and this is a {self.kind}: leave them out"
            )
        symbols = {self.symbol_before, self.symbol}
        if self.kind == "rename":
            if None in symbols:
                raise ValueError("a rename needs the symbol before it and the one from then on")
            if len(symbols) == 1:
                raise ValueError(f"a rename from {self.symbol} to {self.symbol} changes nothing: leave it out")
        elif symbols != {None}:
            raise ValueError(f"a symbol is of a rename, and this is a {self.kind}: leave it out")
        return self

    @property
    def words(self) -> str:
        """The event in words, without its time."""
        if self.kind == "delisting":
            return f"delisted at {self.proceeds:g} a unit"
        if self.kind == "rename":
            return f"{self.symbol_before} becomes {self.symbol}"
        return "trading is halted" if self.kind == "halt" else "trading resumes"


Events = Mapping[str, tuple[InstrumentEvent, ...]]
"""The events of instruments by their ids, in the order of time."""


class Delisted(BaseModel):
    """A delisting that is in force."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    instrument: str
    time: AwareDatetime
    proceeds: float = Field(ge=0)
    """The amount that a holder gets for each unit, in quote currency."""


def check_sequence(name: str, events: Sequence[InstrumentEvent]) -> None:
    """Raise `EventFault` for events of one instrument that cannot follow each other."""
    halted = False
    before: InstrumentEvent | None = None
    symbol: str | None = None
    for place, one in enumerate(events):
        at = f"{name}, {spoken(one.time)}"
        if before is not None:
            if before.kind == "delisting":
                raise EventFault(place, f"{at}: a {one.kind} after its delisting at {spoken(before.time)}")
            if one.time < before.time:
                raise EventFault(place, f"{at}: comes after an event of {spoken(before.time)}: put them in order")
            if one.time == before.time and "rename" not in (one.kind, before.kind):
                raise EventFault(place, f"{at}: a {before.kind} and a {one.kind} at one time: which of them holds?")
        if one.kind == "halt" and halted:
            raise EventFault(place, f"{at}: a halt, and trading is halted already: give its resume before")
        if one.kind == "resume" and not halted:
            raise EventFault(place, f"{at}: a resume without a halt before it")
        if one.kind == "rename":
            if symbol not in (None, one.symbol_before):
                raise EventFault(place, f"{at}: a rename of {one.symbol_before}, and the symbol is {symbol} by then")
            symbol = one.symbol
        halted = one.kind == "halt" or (halted and one.kind != "resume")
        before = one


class EventFault(ValueError):
    """An event that cannot be; `place` is its place among those of its instrument."""

    def __init__(self, place: int, what: str) -> None:
        super().__init__(what)
        self.place = place


def check_events(events: Events, ids: Sequence[str]) -> None:
    """Raise `ValueError` for events of an instrument that is not among these, or that cannot follow each other, and for
    a symbol that two instruments would have."""
    if strangers := [name for name in events if name not in ids]:
        raise ValueError(f"events of {', '.join(strangers[:3])}, which is no instrument of the universe")
    if empty := [name for name, ones in events.items() if not ones]:
        raise ValueError(f"{empty[0]} has an empty list of events: leave it out")
    for name, ones in events.items():
        check_sequence(name, ones)
        called = set(symbols(ones))
        for other in ids if called else ():
            taken = {symbol_of(other), *symbols(events.get(other, ()))}
            if other != name and venue_of(other) == venue_of(name) and (both := called & taken):
                raise ValueError(f"{name} is renamed onto {min(both)}, a symbol that {other} has already")


def symbols(events: Sequence[InstrumentEvent]) -> list[str]:
    """The symbols that renames speak of, in the order of time."""
    renames = [one for one in events if one.kind == "rename"]
    return [str(one.symbol_before) for one in renames[:1]] + [str(one.symbol) for one in renames]


def symbol_of(id_: str) -> str:
    """The symbol of an instrument's id."""
    return id_.partition(":")[2]


def venue_of(id_: str) -> str:
    return id_.partition(":")[0]


class InForce:
    """Says what is in force of the events of some instruments at a time, or at many."""

    def __init__(self, ids: Sequence[str], events: Events) -> None:
        self._ids, self._events = tuple(ids), events
        self._halts = [list(_halts(events.get(name, ()))) for name in ids]
        self._ends: list[tuple[int, InstrumentEvent] | None] = [
            next(((to_us(one.time), one) for one in events.get(name, ()) if one.kind == "delisting"), None)
            for name in ids
        ]
        self.proceeds = np.array([0.0 if end is None else float(end[1].proceeds or 0.0) for end in self._ends])
        """The proceeds of each instrument's delisting for a unit, (A,); 0 where it has none."""

    @property
    def is_empty(self) -> bool:
        """Whether there are no events at all."""
        return not self._events

    def end_us(self, name: str) -> int:
        """When an instrument is delisted; `EVER_US` where it is not."""
        end = self._ends[self._ids.index(name)]
        return EVER_US if end is None else end[0]

    def halted(self, time_us: int) -> tuple[str, ...]:
        """The instruments in which trading rests at a time."""
        return tuple(
            name
            for name, halts in zip(self._ids, self._halts, strict=True)
            if any(start_us <= time_us < end_us for start_us, end_us in halts)
        )

    def delisted(self, time_us: int) -> tuple[Delisted, ...]:
        """The delistings that are in force at a time."""
        return tuple(
            Delisted(instrument=name, time=end[1].time, proceeds=end[1].proceeds or 0.0)
            for name, end in zip(self._ids, self._ends, strict=True)
            if end is not None and end[0] <= time_us
        )

    def halted_at(self, time_us: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The instruments in which trading rests at times (T,), as (T, A)."""
        rests = np.zeros((len(time_us), len(self._ids)), dtype=np.bool_)
        for a, halts in enumerate(self._halts):
            for start_us, end_us in halts:
                rests[:, a] |= (start_us <= time_us) & (time_us < end_us)
        return rests

    def delisted_at(self, time_us: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The instruments that are delisted at times (T,), as (T, A)."""
        ends_us = np.array([EVER_US if end is None else end[0] for end in self._ends], dtype=np.int64)
        over: NDArray[np.bool_] = ends_us <= time_us[:, None]
        return over

    def symbol(self, name: str, time_us: int) -> str:
        """The symbol of an instrument at a time."""
        symbol = symbol_of(name)
        renames = [one for one in self._events.get(name, ()) if one.kind == "rename"]
        if renames:
            symbol = str(renames[0].symbol_before)
        for one in renames:
            symbol = str(one.symbol) if to_us(one.time) <= time_us else symbol
        return symbol

    def between(self, after_us: int, until_us: int) -> list[tuple[str, InstrumentEvent]]:
        """The events that come into force after a time and up to another, in their order."""
        found = [
            (name, one)
            for name in self._ids
            for one in self._events.get(name, ())
            if after_us < to_us(one.time) <= until_us
        ]
        return sorted(found, key=lambda each: each[1].time)

    def lasting(self, time_us: int) -> list[tuple[str, InstrumentEvent]]:
        """The events up to a time that are in force still: halts without an end, delistings, and all renames."""
        return [
            (name, one)
            for name, one in self.between(-EVER_US, time_us)
            if one.kind in ("delisting", "rename") or (one.kind == "halt" and self._rests(name, one, time_us))
        ]

    def _rests(self, name: str, halt: InstrumentEvent, time_us: int) -> bool:
        at_us = to_us(halt.time)
        return any(start_us == at_us and time_us < end_us for start_us, end_us in self._halts[self._ids.index(name)])


def _halts(events: Sequence[InstrumentEvent]) -> Iterator[tuple[int, int]]:
    """The times `[start, end)` of halts; one that a delisting ends lasts until then."""
    start_us: int | None = None
    for one in events:
        if one.kind == "halt":
            start_us = to_us(one.time)
        elif one.kind in ("resume", "delisting") and start_us is not None:
            yield start_us, to_us(one.time)
            start_us = None
    if start_us is not None:
        yield start_us, EVER_US


def resting(events: Sequence[InstrumentEvent]) -> list[tuple[int, int]]:
    """The times `[start, end)` of one instrument in which no bars are due: halts, and all that follows a delisting."""
    found = list(_halts(events))
    found += [(to_us(one.time), EVER_US) for one in events if one.kind == "delisting"]
    return found
