"""When a market trades, and the gaps in a history of bars: places where its calendar expected bars and there are none.

The hours of an exchange, with its holidays, early closes and breaks, are those of the package exchange_calendars.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from importlib.util import find_spec
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.errors import UserError
from tradeloop.common.market.instants import from_us, to_us
from tradeloop.common.market.instruments import Calendar, Timeframe, known_calendar

Ints = NDArray[np.int64]

_WEEK_US = Timeframe.W1.us
_WEEKEND_US = 2 * Timeframe.D1.us
_FIRST_WEEKEND_US = 46 * Timeframe.H1.us
"""Friday 2 January 1970, 22:00 UTC, when the week of foreign exchange ends in New York's winter."""
_FX_ZONE, _FX_TURNS = "America/New_York", time(17)
_FX_HOLIDAYS = ((12, 25), (1, 1))
_FX_EDGE_US = Timeframe.H1.us
"""How much of a week's first or last trading may be missing: feeds of foreign exchange begin late and end early."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A place where bars were expected and there are none."""

    start_us: int
    """The open time of the first bar that is missing."""
    end_us: int
    """The open time of the next bar that is there."""
    bars: int
    """How many bars are missing."""


def gaps(open_us: Ints, timeframe: Timeframe, calendar: Calendar, resting: Sequence[tuple[int, int]] = ()) -> list[Gap]:
    """The gaps between bars, which are in the order of time.

    `continuous`: every bar is expected. `weekdays`: none from Friday 22:00 to Sunday 22:00 UTC, and what is missing
    next to that, such as a Friday's early close, counts as part of it. `sessions`: when a session begins and ends only
    the venue knows, so only what is missing between two bars of one UTC day counts. `fx`: bars are expected from Sunday
    to Friday, 17:00 in New York, but for 25 December and 1 January, and for an hour next to where trading rests. The
    name of an exchange, such as `XNYS`: a bar is expected wherever trading falls into it; a bar of a day or more where
    the middle of a session does. Of times before 1970 the package knows no holidays, so there nothing is a gap.
    No bar is expected that overlaps one of the times `resting`, such as a halt.

    Raises `UserError` for bars from before or after the exchange's calendar is known.
    """
    missing_us, next_us = open_us[:-1] + timeframe.us, open_us[1:]
    found = np.flatnonzero(next_us > missing_us)
    missing_us, next_us = missing_us[found], next_us[found]
    if not len(found):
        return []
    if calendar in ("continuous", "weekdays", "sessions"):
        due = np.ones(len(found), np.bool_)
        if calendar == "weekdays":
            since_friday = (missing_us - _FIRST_WEEKEND_US) % _WEEK_US
            due = (since_friday >= _WEEKEND_US) & (since_friday + (next_us - missing_us) <= _WEEK_US)
        elif calendar == "sessions":
            due = open_us[found] // Timeframe.D1.us == next_us // Timeframe.D1.us
        counts = -(-(next_us - missing_us) // timeframe.us)
        for at in _touched(missing_us, next_us, due, resting):
            slots = np.arange(missing_us[at], next_us[at], timeframe.us)
            counts[at] = _awake(slots, timeframe, resting).sum()
    else:
        trading = _Trading(calendar, int(open_us[0]), int(open_us[-1]) + timeframe.us, timeframe)
        lost_us = trading.within(missing_us, next_us)
        due = lost_us > 0
        if calendar == "fx" and timeframe.us < Timeframe.D1.us:
            due &= (lost_us > _FX_EDGE_US) | (lost_us == next_us - missing_us)
        elif calendar != "fx":
            due &= missing_us >= 0
        counts = np.zeros(len(found), np.int64)
        for row in np.flatnonzero(due):
            slots = np.arange(missing_us[row], next_us[row], timeframe.us)
            expected = trading.within(slots, np.minimum(slots + timeframe.us, next_us[row])) > 0
            counts[row] = (expected & _awake(slots, timeframe, resting)).sum()
    due &= counts > 0
    columns = (missing_us[due].tolist(), next_us[due].tolist(), counts[due].tolist())
    return [Gap(*row) for row in zip(*columns, strict=True)]


def _touched(start_us: Ints, end_us: Ints, due: NDArray[np.bool_], resting: Sequence[tuple[int, int]]) -> list[int]:
    """The places of what is due and overlaps a time in which trading rests."""
    found = np.zeros(len(start_us), np.bool_)
    for from_time_us, until_us in resting:
        found |= (start_us < until_us) & (from_time_us < end_us)
    return [int(row) for row in np.flatnonzero(found & due)]


def _awake(slots_us: Ints, timeframe: Timeframe, resting: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """The bars that overlap no time in which trading rests."""
    awake = np.ones(len(slots_us), np.bool_)
    for start_us, end_us in resting:
        awake &= (end_us <= slots_us) | (slots_us + timeframe.us <= start_us)
    return awake


def check_has_sessions(calendar: str) -> None:
    """Raise `UserError` for a calendar that is none, or that has no sessions of its own."""
    try:
        known_calendar(calendar)
    except ValueError as error:
        raise UserError(str(error)) from None
    if calendar in ("continuous", "weekdays", "sessions"):
        raise UserError("it has no sessions of its own: give fx, or an exchange by its code, such as XNYS")


def planned_sessions(calendar: Calendar, start_us: int, end_us: int) -> tuple[Ints, Ints]:
    """When the sessions around some times open and close, as they were planned; a break at noon does not end one.

    Raises `UserError` for times from before or after the exchange's calendar is known, and where the package lacks.
    """
    if calendar != "fx":
        if find_spec("exchange_calendars") is None:
            raise UserError(f"calendar {calendar}: install the package exchange-calendars, tradeloop-common[calendars]")
        _check_known(calendar, start_us, end_us)
    first, last = from_us(start_us).year, from_us(end_us).year + 1
    return _planned(calendar, first // 10 * 10, last // 10 * 10 + 9)


@lru_cache(maxsize=64)
def _planned(calendar: Calendar, first_year: int, last_year: int) -> tuple[Ints, Ints]:
    if calendar == "fx":
        return _sessions(calendar, first_year, last_year)
    from exchange_calendars import get_calendar

    whole = type(get_calendar(calendar))
    # What was closed or opened at another hour for a reason of that day alone, nobody could know before.
    unforeseen = dict.fromkeys(("special_closes_adhoc", "special_opens_adhoc"), property(lambda _: []))
    planned = type(whole.__name__, (whole,), unforeseen)
    start, end = _within_known(calendar, first_year, last_year)
    schedule = planned(start=start, end=end).schedule
    opens, closes = (schedule[name].to_numpy(dtype="datetime64[us]").astype(np.int64) for name in ("open", "close"))
    return opens, closes


class _Trading:
    """The times at which a market trades, some years of them."""

    def __init__(self, calendar: Calendar, start_us: int, end_us: int, timeframe: Timeframe) -> None:
        if calendar != "fx":
            _check_known(calendar, start_us, end_us)
        first, last = from_us(start_us).year, from_us(end_us).year + 1
        opens, closes = _sessions(calendar, first // 10 * 10, last // 10 * 10 + 9)
        if timeframe.us >= Timeframe.D1.us:  # the day of a session is that in which most of it lies
            opens = (opens + closes) // 2
            closes = opens + 1
        self._opens, self._lengths = opens, closes - opens
        self._before = np.concatenate([[0], np.cumsum(self._lengths)])

    def within(self, start_us: Ints, end_us: Ints) -> Ints:
        """How much trading falls between two times, in microseconds; in sessions for bars of a day or more."""
        return self._until(end_us) - self._until(start_us)

    def _until(self, time_us: Ints) -> Ints:
        at = np.maximum(np.searchsorted(self._opens, time_us, side="right") - 1, 0)
        inside = np.clip(time_us - self._opens[at], 0, self._lengths[at])
        return np.asarray(self._before[at] + inside, dtype=np.int64)


@lru_cache(maxsize=64)
def _sessions(calendar: Calendar, first_year: int, last_year: int) -> tuple[Ints, Ints]:
    """When trading begins and ends, in the order of time, from some year to another."""
    if calendar == "fx":
        times = np.array(list(_fx_days(first_year, last_year)), dtype=np.int64)
        return times[:, 0], times[:, 1]
    return _exchange_sessions(calendar, first_year, last_year)


def _fx_days(first_year: int, last_year: int) -> Iterator[tuple[int, int]]:
    zone = ZoneInfo(_FX_ZONE)

    def turn_us(day: date) -> int:
        return to_us(datetime.combine(day, _FX_TURNS, zone).astimezone(UTC))

    day = date(first_year, 1, 1)
    while day.year <= last_year:
        if day.weekday() < 5 and (day.month, day.day) not in _FX_HOLIDAYS:
            yield turn_us(day - timedelta(days=1)), turn_us(day)
        day += timedelta(days=1)


@lru_cache(maxsize=64)
def _known(calendar: Calendar) -> tuple[str, str]:
    """The first and the last day of which an exchange's calendar is known."""
    from exchange_calendars import get_calendar

    default = get_calendar(calendar)
    lower, upper = default.bound_min(), default.bound_max()
    return (
        "1900-01-01" if lower is None else f"{lower:%Y-%m-%d}",
        "2199-12-31" if upper is None else f"{upper:%Y-%m-%d}",
    )


def _check_known(calendar: Calendar, start_us: int, end_us: int) -> None:
    first, last = _known(calendar)
    start, end = from_us(start_us), from_us(end_us)
    if f"{start + Timeframe.D1.delta:%Y-%m-%d}" < first or f"{end - Timeframe.D1.delta:%Y-%m-%d}" > last:
        raise UserError(
            f"calendar {calendar} is known from {first} to {last}, and the bars are from {start:%Y-%m-%d} to "
            f"{end:%Y-%m-%d}: give the calendar sessions, or other bars"
        )


def _within_known(calendar: Calendar, first_year: int, last_year: int) -> tuple[str, str]:
    """The days from some year to another, as far as they are known."""
    first, last = _known(calendar)
    start, end = (min(max(day, first), last) for day in (f"{first_year:04}-01-01", f"{last_year:04}-12-31"))
    return start, end


def _exchange_sessions(calendar: Calendar, first_year: int, last_year: int) -> tuple[Ints, Ints]:
    from exchange_calendars import get_calendar  # it brings pandas, and takes a second

    start, end = _within_known(calendar, first_year, last_year)
    schedule = get_calendar(calendar, start=start, end=end).schedule
    edges = [schedule[name].to_numpy(dtype="datetime64[us]") for name in ("open", "break_start", "break_end", "close")]
    opens, breaks, goes_on, closes = edges
    halved = ~np.isnat(breaks)
    begins = np.sort(np.concatenate([opens, goes_on[halved]])).astype(np.int64)
    ends = np.sort(np.concatenate([closes, breaks[halved]])).astype(np.int64)
    return begins, ends
