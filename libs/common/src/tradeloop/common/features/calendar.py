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
from tradeloop.common.features.feature import TIME, Feature, FeatureError, FeatureState, Row, canonical


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


def _turns(part: str, zone: str) -> tuple[Feature, Feature]:
    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, TypeError, OSError):  # ZoneInfoNotFoundError is a KeyError
        raise FeatureError(
            f"{part}: this machine knows no time zone {zone!r}: write a name of the IANA database, such as "
            "America/New_York, and install the package tzdata if the system brings no time zones"
        ) from None
    word = "" if zone == "UTC" else "_" + re.sub(r"[^a-z0-9]+", "_", zone.lower().replace("+", "_plus_")).strip("_")
    sine, cosine = (
        _OfTime(
            name=f"{part}{word}_{axis}",
            definition=canonical(calendar=part, zone=zone, axis=axis),
            history=0,
            inputs=("time",),
            part=part,
            zone=zone,
            axis=axis,
        )
        for axis in ("sin", "cos")
    )
    return sine, cosine


def _share_of_day(local: datetime) -> float:
    return (local.hour * 3600 + local.minute * 60 + local.second) / 86400


def _share_of_week(local: datetime) -> float:
    return local.weekday() / 7


_SHARES: dict[str, Callable[[datetime], float]] = {"time_of_day": _share_of_day, "day_of_week": _share_of_week}
_AXES: dict[str, Callable[[float], float]] = {"sin": math.sin, "cos": math.cos}


@dataclass(frozen=True, kw_only=True)
class _OfTime(Feature):
    part: str
    zone: str
    axis: str

    def batch(self, columns: Floats, blocks: Sequence[int]) -> Floats:
        value = _Clock(self).value
        return np.array([value(time) for time in columns[TIME].tolist()], dtype=np.float64)

    def state(self) -> FeatureState:
        return _Clock(self)


class _Clock:
    def __init__(self, feature: _OfTime) -> None:
        self._zone, self._share, self._axis = ZoneInfo(feature.zone), _SHARES[feature.part], _AXES[feature.axis]

    def open(self, columns: Floats) -> float:
        return self.value(columns[TIME, -1].item()) if columns.shape[1] else math.nan

    def update(self, row: Row) -> float:
        return self.value(row[TIME])

    def value(self, time: float) -> float:
        return self._axis(2.0 * math.pi * self._share(datetime.fromtimestamp(time, self._zone)))
