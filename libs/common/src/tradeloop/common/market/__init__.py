"""Instruments, timeframes, universes, bars: the words of the market side.

Times are UTC. Inside arrays they are int64 microseconds since the epoch (`_us`), on the wire ISO 8601.
A bar covers the half-open interval `[open_time, close_time)`.
"""

from __future__ import annotations

from tradeloop.common.market.bars import (
    BAR_COLUMNS,
    BAR_PRICES,
    Bar,
    BarArrays,
    Series,
    TimeRange,
    align,
    extra_names,
    joined,
    overlaps,
    series_of,
)
from tradeloop.common.market.columns import MOST_EXTRA, is_extra
from tradeloop.common.market.days import UTC_DAYS, Days, days_of
from tradeloop.common.market.events import Delisted, InForce, InstrumentEvent
from tradeloop.common.market.instants import EPOCH, EVER_US, GRACE, check_not_ahead, from_us, iso, spoken, to_us
from tradeloop.common.market.instruments import Calendar, Instrument, InstrumentId, ModelName, Name, Timeframe, Universe
from tradeloop.common.market.members import Members, Membership, Roster
from tradeloop.common.market.resample import begins_us, bucket_us, cycle_us, resample, whole_us

__all__ = [
    "BAR_COLUMNS",
    "BAR_PRICES",
    "EPOCH",
    "EVER_US",
    "GRACE",
    "MOST_EXTRA",
    "UTC_DAYS",
    "Bar",
    "BarArrays",
    "Calendar",
    "Days",
    "Delisted",
    "InForce",
    "Instrument",
    "InstrumentEvent",
    "InstrumentId",
    "Members",
    "Membership",
    "ModelName",
    "Name",
    "Roster",
    "Series",
    "TimeRange",
    "Timeframe",
    "Universe",
    "align",
    "begins_us",
    "bucket_us",
    "check_not_ahead",
    "cycle_us",
    "days_of",
    "extra_names",
    "from_us",
    "is_extra",
    "iso",
    "joined",
    "overlaps",
    "resample",
    "series_of",
    "spoken",
    "to_us",
    "whole_us",
]
