"""Bars as TWS makes them of the fake market: by sessions in New York, with a first bar that may be short.

Stocks trade from 9:30 to 16:00, and from 4:00 to 20:00 with the hours around; pairs of currencies from 17:15 to 17:00
on the next day. Both do from Monday to Friday: this exchange has no holidays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import numpy as np

from tradeloop.common.market import from_us, to_us
from tradeloop.ingest.contracts.fake_venue.market import US, Listing, Market

ZONE = ZoneInfo("America/New_York")
SIZES = {
    **{"1 secs": 1, "5 secs": 5, "10 secs": 10, "15 secs": 15, "30 secs": 30, "1 min": 60, "2 mins": 120},
    **{"3 mins": 180, "5 mins": 300, "10 mins": 600, "15 mins": 900, "20 mins": 1200, "30 mins": 1800, "1 hour": 3600},
    "1 day": 86_400,
}
_UNITS = {"D": 1, "W": 5, "M": 21, "Y": 252}
"""Sessions of a duration."""


@dataclass(frozen=True, slots=True)
class TwsBar:
    """A bar as TWS writes it."""

    date: str
    """The day of a daily bar, else seconds since the epoch."""
    open: float
    high: float
    low: float
    close: float
    volume: float
    count: int


@dataclass(frozen=True, slots=True)
class _Session:
    day: date
    open_us: int
    close_us: int


def newest(
    market: Market, one: Listing, size: str, duration: str, end_us: int, *, regular: bool, open_bar: bool = True
) -> list[TwsBar]:
    """The bars of a duration before a time, as they are known then and now. Raises `ValueError` for what is no size."""
    length, known_us = SIZES[size], min(end_us, market.now_us())
    sessions = _sessions(one, regular, known_us)
    begins_us, ends_us = market.lifetime(one.symbol)
    number, _, unit = duration.partition(" ")
    if unit == "S":
        start_us = end_us - int(number) * US
        wanted = [next(sessions) for _ in range(int(number) // 86_400 + 4)]
    else:
        wanted = [next(sessions) for _ in range(int(number) * _UNITS[unit])]
        start_us = wanted[-1].open_us
    found: list[TwsBar] = []
    for session in reversed(wanted):
        first_us = max(session.open_us, begins_us)
        last_us = min(session.close_us, ends_us, known_us)
        if first_us < last_us:
            found += _bars(market, one, session.day, first_us, last_us, length, open_bar, session.close_us)
    return [bar for bar in found if length == 86_400 or int(bar.date) * US >= start_us]


def first_us(market: Market, one: Listing, *, regular: bool) -> int:
    """The time at which the data of an instrument begin."""
    begins_us, _ = market.lifetime(one.symbol)
    sessions = list(zip(range(6), _sessions(one, regular, begins_us + 6 * 86_400 * US), strict=False))
    return max(min(session.open_us for _, session in sessions if session.close_us > begins_us), begins_us)


def _sessions(one: Listing, regular: bool, end_us: int) -> Iterator[_Session]:
    """The sessions that begin before a time, the last one first."""
    opens, closes = (time(9, 30), time(16)) if regular else (time(4), time(20))
    day = from_us(end_us).astimezone(ZONE).date() + timedelta(days=1)
    while True:
        begins, ends = datetime.combine(day, opens, ZONE), datetime.combine(day, closes, ZONE)
        if one.crypto:
            begins = datetime.combine(day - timedelta(days=1), time(17, 15), ZONE)
            ends = datetime.combine(day, time(17), ZONE)
        if day.weekday() < 5 and to_us(begins) < end_us:
            yield _Session(day, to_us(begins), to_us(ends))
        day -= timedelta(days=1)


def _bars(
    market: Market, one: Listing, day: date, first_us: int, last_us: int, length: int, open_bar: bool, close_us: int
) -> list[TwsBar]:
    """The bars of a session, up to a time at which the last one may be cut off."""
    base = "1s" if length < 60 else "1m"
    parts = market.bars(one.symbol, base, first_us, last_us, known_us=last_us, part=True)
    if not len(parts):
        return []
    daily = length == 86_400
    slots = np.zeros(len(parts), np.int64) if daily else parts.open_us // (length * US)
    starts = np.flatnonzero(np.r_[True, slots[1:] != slots[:-1]])
    ends = np.r_[starts[1:], len(parts)] - 1
    high, low = np.maximum.reduceat(parts.high, starts), np.minimum.reduceat(parts.low, starts)
    volume, count = np.add.reduceat(parts.volume, starts), np.add.reduceat(parts.trades, starts)
    found = [
        TwsBar(
            f"{day:%Y%m%d}" if daily else str(int(parts.open_us[start]) // US),
            float(parts.open[start]),
            float(high[row]),
            float(low[row]),
            float(parts.close[end]),
            -1.0 if one.crypto else float(volume[row]),
            -1 if one.crypto else int(count[row]),
        )
        for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True))
    ]
    unfinished = last_us < close_us and (daily or last_us < (int(slots[-1]) + 1) * length * US)
    return found[:-1] if unfinished and not open_bar else found
