"""Features of time: when a bar closed, on the clock and in the week of a time zone.

Time is the bar's close, which is when a decision about it is made. Where an instrument has no bar, it is the close of
its last one, as for every feature. The rules of a time zone come from the machine's database (`zoneinfo`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np

from tradeloop.common.arrays import Floats
from tradeloop.common.errors import UserError
from tradeloop.common.features.feature import TIME, Feature, FeatureError, FeatureState, Row, Span, canonical
from tradeloop.common.market.calendars import check_has_sessions, planned_sessions


def time_of_day(zone: str = "UTC") -> tuple[Feature, Feature]:
    """Sine and cosine of the time of day in a time zone, a full turn a day: `*time_of_day("America/New_York")`.

    Midnight is (0, 1), 06:00 is (1, 0), 12:00 is (0, -1). Raises `FeatureError` for a zone that is not known.
    """
    return _turns("time_of_day", zone)


def day_of_week(zone: str = "UTC") -> tuple[Feature, Feature]:
    """Sine and cosine of the day of the week in a time zone, a full turn a week in seven steps from Monday on.

    Raises `FeatureError` for a zone that is not known.
    """
    return _turns("day_of_week", zone)


def month_of_year(zone: str = "UTC") -> tuple[Feature, Feature]:
    """Sine and cosine of the month in a time zone, a full turn a year in twelve steps from January on."""
    return _turns("month_of_year", zone)


def quarter_of_year(zone: str = "UTC") -> tuple[Feature, Feature]:
    """Sine and cosine of the quarter in a time zone, a full turn a year in four steps from January on."""
    return _turns("quarter_of_year", zone)


def session(
    opens: str | None = None, closes: str | None = None, zone: str = "UTC", *, calendar: str | None = None
) -> tuple[Feature, Feature]:
    """Minutes since a trading session opened, and until it closes: `*session("09:30", "16:00", "America/New_York")`, or
    of a calendar, as instruments have it: `*session(calendar="XNYS")`.

    Both are 0 outside of it. By the clock, sessions open on Mondays to Fridays, and may run over midnight; one that
    closes when it opens takes a day; a clock on the wall knows no holidays and no early closes. An exchange's calendar
    does, by the package exchange_calendars: those that were planned, for one that nobody could foresee is no part of
    it, and a bar on such a day has the usual hours. A break at noon does not end a session. The days of `fx` begin at
    17:00 in New York. Raises `FeatureError`.
    """
    if calendar is not None:
        if opens is not None or closes is not None or zone != "UTC":
            raise FeatureError("session: give either a calendar, or when it opens and closes, and the time zone")
        return _of_calendar(calendar)
    if opens is None or closes is None:
        raise FeatureError("session: say when it opens and closes, or give the calendar of an exchange")
    _check_zone("session", zone)
    minutes = []
    for text in (opens, closes):
        if not isinstance(text, str) or not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", text):
            raise FeatureError(f"session({opens!r}, {closes!r}): write a time of day as 09:30, from 00:00 to 23:59")
        minutes.append(int(text[:2]) * 60 + int(text[3:]))
    length = (minutes[1] - minutes[0]) % _DAY or _DAY
    words = f"{opens}_{closes}".replace(":", "") + _word(zone)
    since, until = (
        _OfTime(
            name=f"session_{words}_{part}",
            definition=canonical(calendar="session", opens=minutes[0], length=length, zone=zone, part=part),
            history=0,
            inputs=("time",),
            anchored=False,
            zone=zone,
            of=_Session(minutes[0], length, part),
        )
        for part in ("since", "until")
    )
    return since, until


def _of_calendar(calendar: str) -> tuple[Feature, Feature]:
    try:
        check_has_sessions(calendar)
    except UserError as error:
        raise FeatureError(f"session(calendar={calendar!r}): {error}") from None
    since, until = (
        _OfSessions(
            name=f"session_{calendar.lower()}_{part}",
            definition=canonical(calendar="session", exchange=calendar, part=part),
            history=0,
            inputs=("time",),
            anchored=False,
            exchange=calendar,
            part=part,
        )
        for part in ("since", "until")
    )
    return since, until


_DAY = 24 * 60


def _check_zone(owner: str, zone: str) -> None:
    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, TypeError, OSError):  # ZoneInfoNotFoundError is a KeyError
        raise FeatureError(
            f"{owner}: this machine knows no time zone {zone!r}: write a name of the IANA database, such as "
            "America/New_York, and install the package tzdata if the system brings no time zones"
        ) from None


def _word(zone: str) -> str:
    """A time zone inside a name: nothing for UTC."""
    return "" if zone == "UTC" else "_" + re.sub(r"[^a-z0-9]+", "_", zone.lower().replace("+", "_plus_")).strip("_")


def _turns(part: str, zone: str) -> tuple[Feature, Feature]:
    _check_zone(part, zone)
    sine, cosine = (
        _OfTime(
            name=f"{part}{_word(zone)}_{axis}",
            definition=canonical(calendar=part, zone=zone, axis=axis),
            history=0,
            inputs=("time",),
            anchored=False,
            zone=zone,
            of=_Turn(part, axis),
        )
        for axis in ("sin", "cos")
    )
    return sine, cosine


def _share_of_day(local: datetime) -> float:
    return (local.hour * 3600 + local.minute * 60 + local.second) / 86400


def _share_of_week(local: datetime) -> float:
    return local.weekday() / 7


def _share_of_year(local: datetime) -> float:
    return (local.month - 1) / 12


def _share_of_quarters(local: datetime) -> float:
    return (local.month - 1) // 3 / 4


_SHARES: dict[str, Callable[[datetime], float]] = {
    "time_of_day": _share_of_day,
    "day_of_week": _share_of_week,
    "month_of_year": _share_of_year,
    "quarter_of_year": _share_of_quarters,
}


@dataclass(frozen=True)
class _Turn:
    """The sine or cosine of a part of time."""

    part: str
    axis: str

    def __call__(self, local: datetime) -> float:
        angle = 2.0 * math.pi * _SHARES[self.part](local)
        return math.sin(angle) if self.axis == "sin" else math.cos(angle)


@dataclass(frozen=True)
class _Session:
    """Minutes within a session."""

    opens: int
    length: int
    part: str

    def __call__(self, local: datetime) -> float:
        minute = local.hour * 60 + local.minute + local.second / 60
        since = (minute - self.opens) % _DAY
        day = local.weekday() - (since > minute - self.opens)  # the day on which it opened
        if since > self.length or day % 7 > _FRIDAY:
            return 0.0
        return since if self.part == "since" else self.length - since


_FRIDAY = 4


@dataclass(frozen=True, kw_only=True)
class _OfTime(Feature):
    zone: str
    of: Callable[[datetime], float]

    def batch(self, columns: Floats, spans: Sequence[Span]) -> Floats:
        value = _Clock(self).value
        return np.fromiter(map(value, columns[TIME].tolist()), np.float64, columns.shape[1])

    def state(self) -> FeatureState:
        return _Clock(self)


class _Clock:
    def __init__(self, feature: _OfTime) -> None:
        self._zone, self._of = ZoneInfo(feature.zone), feature.of

    def open(self, columns: Floats) -> float:
        return self.value(columns[TIME, -1].item()) if columns.shape[1] else math.nan

    def update(self, row: Row) -> float:
        return self.value(row[TIME])

    def value(self, time: float) -> float:
        return self._of(datetime.fromtimestamp(time, self._zone))


@dataclass(frozen=True, kw_only=True)
class _OfSessions(Feature):
    exchange: str
    part: str

    def batch(self, columns: Floats, spans: Sequence[Span]) -> Floats:
        return _minutes(self.exchange, self.part, columns[TIME])

    def state(self) -> FeatureState:
        return _SessionState(self)


class _SessionState:
    def __init__(self, feature: _OfSessions) -> None:
        self._exchange, self._part = feature.exchange, feature.part

    def open(self, columns: Floats) -> float:
        return self._value(columns[TIME, -1:]) if columns.shape[1] else math.nan

    def update(self, row: Row) -> float:
        return self._value(np.array([row[TIME]]))

    def _value(self, time: Floats) -> float:
        return float(_minutes(self._exchange, self._part, time)[0])


def _minutes(calendar: str, part: str, time: Floats) -> Floats:
    """Minutes of the session that holds each time; where one closes and the next opens, of the one that closes."""
    if not len(time):
        return np.empty(0)
    time_us = np.round(time * 1e6).astype(np.int64)
    opens, closes = planned_sessions(calendar, int(time_us.min()), int(time_us.max()))
    at = np.maximum(np.searchsorted(opens, time_us, side="right") - 1, 0)
    at -= (at > 0) & (closes[at - 1] == time_us)
    inside = (opens[at] <= time_us) & (time_us <= closes[at])
    minutes: Floats = np.where(inside, time_us - opens[at] if part == "since" else closes[at] - time_us, 0) / 60e6
    return minutes
