"""When a calendar expects single bars."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from tradeloop.common.market import Calendar, Timeframe
from tradeloop.common.market.calendars import gaps

_LONGEST_REST_US = 14 * Timeframe.D1.us


def is_known(calendar: Calendar) -> bool:
    """Whether anybody but the venue knows when bars are due."""
    return calendar != "sessions"


@lru_cache(maxsize=65_536)
def is_due(calendar: Calendar, timeframe: Timeframe, open_us: int) -> bool:
    """Whether a bar that opens then may be expected. Raises `UserError` beyond the end of a calendar."""
    return not is_known(calendar) or _is_missed(calendar, timeframe, open_us, open_us + timeframe.us)


@lru_cache(maxsize=4096)
def next_due_us(calendar: Calendar, timeframe: Timeframe, open_us: int) -> int | None:
    """The open of the first bar that is expected, on the grid from `open_us` on; None where that is far away."""
    bars, longest = 1, _LONGEST_REST_US // timeframe.us + 1
    while not _is_missed(calendar, timeframe, open_us, open_us + bars * timeframe.us):
        if bars >= longest:
            return None
        bars *= 2
    fewest = bars // 2
    while bars - fewest > 1:
        middle = (bars + fewest) // 2
        if _is_missed(calendar, timeframe, open_us, open_us + middle * timeframe.us):
            bars = middle
        else:
            fewest = middle
    return open_us + (bars - 1) * timeframe.us


def _is_missed(calendar: Calendar, timeframe: Timeframe, start_us: int, end_us: int) -> bool:
    """Whether it is a gap where there is no bar from one time to another."""
    if calendar == "continuous":
        return True
    return bool(gaps(np.array([start_us - timeframe.us, end_us], dtype=np.int64), timeframe, calendar))
