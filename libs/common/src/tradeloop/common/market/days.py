"""Where the days and weeks of a market begin, in whose buckets longer bars are made.

A day is the date of an exchange in its own time zone, from midnight on, or from the evening before where its session
begins then. That of foreign exchange turns at 17:00 in New York, and its week on Sunday. All others are dates of UTC,
and weeks begin on Monday. So a day has 23 or 25 hours where clocks change, and a bar of one closes by its name 24 hours
after it opened: what comes in the hour behind that is the next day's, since nobody may know it by then.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import TypeVar
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.market.instants import from_us, to_us

Times = TypeVar("Times", int, NDArray[np.int64])

DAY_US, WEEK_US = 86_400_000_000, 7 * 86_400_000_000
_MONDAY_US = -3 * DAY_US
"""Monday 29 December 1969. Every timeframe up to a day divides it, so its buckets are those of the epoch."""
_SUNDAY, _MONDAY = 6, 0

EXCHANGE_ZONES = {
    **{"AIXK": "Asia/Almaty", "ASEX": "Europe/Athens", "BVMF": "America/Sao_Paulo", "CMES": "America/Chicago"},
    **{"IEPA": "America/New_York", "XAMS": "Europe/Amsterdam", "XASX": "Australia/Sydney", "XBDA": "Atlantic/Bermuda"},
    **{"XBEL": "Europe/Belgrade", "XBKK": "Asia/Bangkok", "XBOG": "America/New_York", "XBOM": "Asia/Kolkata"},
    **{"XBRA": "Europe/Bratislava", "XBRU": "Europe/Brussels", "XBSE": "Europe/Bucharest", "XBUD": "Europe/Budapest"},
    **{"XBUE": "America/Argentina/Buenos_Aires", "XCBF": "America/Chicago", "XCSE": "Europe/Copenhagen"},
    **{"XCYS": "Asia/Nicosia", "XDUB": "Europe/Dublin", "XDUS": "Europe/Brussels", "XEEE": "Europe/Berlin"},
    **{"XETR": "Europe/Berlin", "XEUR": "Europe/Berlin", "XFRA": "Europe/Berlin", "XHAM": "Europe/Brussels"},
    **{"XHEL": "Europe/Helsinki", "XHKG": "Asia/Hong_Kong", "XICE": "Atlantic/Reykjavik", "XIDX": "Asia/Jakarta"},
    **{"XIST": "Europe/Istanbul", "XJSE": "Africa/Johannesburg", "XKAR": "Asia/Karachi", "XKLS": "Asia/Kuala_Lumpur"},
    **{"XKRX": "Asia/Seoul", "XLIM": "America/Lima", "XLIS": "Europe/Lisbon", "XLIT": "Europe/Vilnius"},
    **{"XLJU": "Europe/Ljubljana", "XLON": "Europe/London", "XLUX": "Europe/Luxembourg", "XMAD": "Europe/Madrid"},
    **{"XMEX": "America/Mexico_City", "XMIL": "Europe/Rome", "XMOS": "Europe/Moscow", "XNYS": "America/New_York"},
    **{"XNZE": "Pacific/Auckland", "XOSL": "Europe/Oslo", "XPAR": "Europe/Paris", "XPHS": "Asia/Manila"},
    **{"XPRA": "Europe/Prague", "XRIS": "Europe/Riga", "XSAU": "Asia/Riyadh", "XSES": "Asia/Singapore"},
    **{"XSGO": "America/Santiago", "XSHG": "Asia/Shanghai", "XSTO": "Europe/Stockholm", "XSTU": "Europe/Berlin"},
    **{"XSWX": "Europe/Zurich", "XTAE": "Asia/Tel_Aviv", "XTAI": "Asia/Taipei", "XTAL": "Europe/Tallinn"},
    **{"XTKS": "Asia/Tokyo", "XTSE": "America/Toronto", "XWAR": "Europe/Warsaw", "XWBO": "Europe/Vienna"},
    "XZAG": "Europe/Zagreb",
}
"""The exchanges of the package exchange_calendars, and their time zones. They stand here since every service reads
calendars, and few have that package."""
_EVENINGS = {"CMES": 17, "IEPA": 20}
"""Exchanges whose session begins on the evening before, and the hour."""
_FROM_SUNDAY = ("XSAU", "XTAE")
"""Exchanges that trade from Sunday to Thursday."""


@dataclass(frozen=True, slots=True)
class Days:
    """When days begin."""

    zone: str = "UTC"
    evening: int | None = None
    """The hour at which a day begins on the evening before its date; midnight of the date for None."""
    first: int = _MONDAY
    """The weekday whose date a week begins with, 0 for Monday."""

    @property
    def is_utc(self) -> bool:
        return self == UTC_DAYS

    def bucket_us(self, close_us: Times, length_us: int) -> Times:
        """Where the bucket begins that holds what closes then."""
        if length_us < DAY_US or self.is_utc:
            return (close_us - 1 - _MONDAY_US) // length_us * length_us + _MONDAY_US
        if isinstance(close_us, np.ndarray):
            return self._buckets(close_us, length_us)
        year = from_us(close_us).year
        starts = _starts(self, length_us, year, year)[1]
        at = bisect_left(starts, close_us) - 1
        return starts[at + (close_us > starts[at] + length_us)]

    def _buckets(self, close_us: NDArray[np.int64], length_us: int) -> NDArray[np.int64]:
        if not len(close_us):
            return close_us
        starts = _starts(self, length_us, from_us(close_us.min()).year, from_us(close_us.max()).year)[0]
        at = np.searchsorted(starts, close_us, side="left") - 1
        found: NDArray[np.int64] = starts[at + (close_us > starts[at] + length_us)]
        return found

    def open_us(self, close_us: int, length_us: int) -> int:
        """Where the first bucket begins that holds what closes then, or that began before and closes later."""
        start_us = self.bucket_us(close_us, length_us)
        if length_us < DAY_US or self.is_utc:
            return start_us
        before_us = self.bucket_us(start_us, length_us)
        return before_us if before_us + length_us > close_us else start_us


UTC_DAYS = Days()


def days_of(calendars: Iterable[str]) -> Days:
    """The days of a market with these calendars; those of UTC where they differ.

    Time zones of two names whose clocks agree from 2000 to 2037, such as those of Paris and Amsterdam, are one.
    """
    found = sorted({_days(calendar) for calendar in calendars}, key=lambda days: days.zone)
    first = found[0]
    agree = all(one == first or _starts_alike(one, first) for one in found)
    return first if agree else UTC_DAYS


def _starts_alike(one: Days, other: Days) -> bool:
    spans = [_starts(days, WEEK_US, 2000, 2037)[1] for days in (one, other)]
    return spans[0] == spans[1]


def _days(calendar: str) -> Days:
    if calendar == "fx":
        return Days("America/New_York", 17)
    if calendar not in EXCHANGE_ZONES:
        return UTC_DAYS
    first = _SUNDAY if calendar in _FROM_SUNDAY else _MONDAY
    return Days(EXCHANGE_ZONES[calendar], _EVENINGS.get(calendar), first)


@lru_cache(maxsize=256)
def _starts(days: Days, length_us: int, first_year: int, last_year: int) -> tuple[NDArray[np.int64], list[int]]:
    """When days or weeks begin, from before some year to after another; as an array, and as numbers."""
    zone, day = ZoneInfo(days.zone), date(first_year, 1, 1) - timedelta(days=15)
    found = []
    while day < date(last_year + 1, 1, 15):
        if length_us == DAY_US or day.weekday() == days.first:
            turns = datetime(day.year, day.month, day.day, tzinfo=zone)
            if days.evening is not None:
                turns = turns - timedelta(hours=24 - days.evening)  # by the clock on the wall
            found.append(to_us(turns.astimezone(UTC)))
        day += timedelta(days=1)
    return np.array(found, dtype=np.int64), found
