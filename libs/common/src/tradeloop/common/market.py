"""Instruments, timeframes, universes, bars: the words of the market side.

Times are UTC. Inside arrays they are int64 microseconds since the epoch (`_us`), on the wire ISO 8601.
A bar covers the half-open interval `[open_time, close_time)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EVER_US = 2**63 - 1
"""After all times."""
_MICROSECOND = timedelta(microseconds=1)

InstrumentId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_\-]{1,32}:[A-Za-z0-9_./\-]{1,64}$")]
"""`venue:symbol`, e.g. `binance:BTC/USDT`."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_\-]{0,62}$")]
"""A name that is safe in topics, paths, tables and URLs: lower case, digits, `-` and `_`."""


def to_us(time: datetime) -> int:
    """Microseconds since the epoch of an aware datetime."""
    return (time - EPOCH) // _MICROSECOND


def from_us(time_us: int) -> datetime:
    """The UTC datetime of microseconds since the epoch."""
    return EPOCH + timedelta(microseconds=int(time_us))


class Timeframe(StrEnum):
    """The length of a bar."""

    M1 = "1m"
    M5 = "5m"
    M15 = "15m"
    H1 = "1h"
    H4 = "4h"
    D1 = "1d"

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


_SECONDS = {
    Timeframe.M1: 60,
    Timeframe.M5: 300,
    Timeframe.M15: 900,
    Timeframe.H1: 3600,
    Timeframe.H4: 14_400,
    Timeframe.D1: 86_400,
}


Calendar = Literal["continuous", "weekdays", "sessions"]
"""When bars are due: always; Monday to Friday; or in sessions that only the venue knows."""


class Instrument(BaseModel):
    """What is traded, and the venue's rules for it. Zero for a step or a minimum means the venue sets none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: InstrumentId
    tick_size: float = Field(default=0.0, ge=0)
    """Price step, in quote currency."""
    lot_size: float = Field(default=0.0, ge=0)
    """Quantity step, in base units."""
    min_notional: float = Field(default=0.0, ge=0)
    """Smallest order value, in quote currency."""
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

    @model_validator(mode="after")
    def _consistent(self) -> Universe:
        ids = self.ids
        if len(set(ids)) != len(ids):
            raise ValueError(f"universe {self.name}: an instrument is listed twice")
        for higher in self.higher_timeframes:
            if higher.seconds <= self.timeframe.seconds or higher.seconds % self.timeframe.seconds:
                raise ValueError(f"universe {self.name}: {higher} is no multiple of its base {self.timeframe}")
        return self

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(instrument.id for instrument in self.instruments)


class Bar(BaseModel):
    """One closed bar of one instrument. Prices in quote currency, volume in the source's own unit, or None."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    instrument: str
    open: float = Field(gt=0)
    high: float = Field(gt=0)
    low: float = Field(gt=0)
    close: float = Field(gt=0)
    volume: float | None = Field(default=None, ge=0)
    funding_rate: float = 0.0
    """Share of the position's value that longs pay shorts at this bar's close (perpetual futures)."""


class TimeRange(BaseModel):
    """A half-open interval `[start, end)` of bar open times, UTC."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: AwareDatetime
    end: AwareDatetime

    @model_validator(mode="after")
    def _ordered(self) -> TimeRange:
        if self.end < self.start:
            raise ValueError(f"the range ends ({self.end}) before it starts ({self.start})")
        return self


@dataclass(frozen=True, slots=True)
class BarArrays:
    """Bars of one universe and timeframe on their common time grid: T frames by A instruments.

    `open_us` and `close_us` are (T,) int64, strictly increasing. Prices, `volume` and `funding_rate` are
    (T, A) float64. Where `present` is False the instrument had no bar: its prices repeat the last close
    (NaN before the first bar). `volume` is NaN where the source gives none.
    """

    instruments: tuple[str, ...]
    open_us: NDArray[np.int64]
    close_us: NDArray[np.int64]
    open: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    close: NDArray[np.float64]
    volume: NDArray[np.float64]
    funding_rate: NDArray[np.float64]
    present: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.open_us)

    def slice(self, start: int, stop: int) -> BarArrays:
        """Frames `start` to `stop` (exclusive), as views."""
        arrays = {f.name: getattr(self, f.name)[start:stop] for f in fields(self) if f.name != "instruments"}
        return replace(self, **arrays)


_PRICES = ("open", "high", "low", "close")


Series = Mapping[str, NDArray[np.float64] | NDArray[np.int64]]
"""Bars of one instrument: `open_us` (int64, strictly increasing), the four prices, and optionally `volume` and
`funding_rate`, all of one length."""


def align(
    instruments: Sequence[str],
    timeframe: Timeframe,
    series: Sequence[Series],
    last_closes: Sequence[float] | None = None,
) -> BarArrays:
    """Put one series per instrument on the union of their open times.

    `last_closes` are the closes before the first frame, NaN where there is none: what an instrument's prices
    repeat until its first bar here, so that a part of a history equals the same part of the whole.
    """
    grid = np.unique(np.concatenate([np.empty(0, np.int64), *(one["open_us"] for one in series)]))
    shape = (len(grid), len(instruments))
    columns = {name: np.full(shape, np.nan) for name in (*_PRICES, "volume")}
    funding = np.zeros(shape)
    present = np.zeros(shape, dtype=np.bool_)
    for a, one in enumerate(series):
        rows = np.searchsorted(grid, one["open_us"])
        present[rows, a] = True
        for name in _PRICES:
            columns[name][rows, a] = one[name]
        if "volume" in one:
            columns["volume"][rows, a] = one["volume"]
        if "funding_rate" in one:
            funding[rows, a] = one["funding_rate"]
        if not present[:, a].all():
            _carry_close_forward(columns, present[:, a], a, math.nan if last_closes is None else last_closes[a])
    return BarArrays(tuple(instruments), grid, grid + timeframe.us, **columns, funding_rate=funding, present=present)


def _carry_close_forward(
    columns: dict[str, NDArray[np.float64]], present: NDArray[np.bool_], a: int, before: float
) -> None:
    """Where an instrument has no bar, its prices repeat its last close."""
    last = np.maximum.accumulate(np.where(present, np.arange(len(present)), -1))
    carried = np.where(last >= 0, columns["close"][last, a], before)
    for name in _PRICES:
        columns[name][~present, a] = carried[~present]


def resample(bars: BarArrays, base: Timeframe, target: Timeframe, closed_us: int | None = None) -> BarArrays:
    """Aggregate bars to a longer timeframe, by buckets aligned to the epoch.

    A bucket holds the bars that opened in it; gaps make a bucket shorter, never wrong. The last bucket is left
    out unless it is closed: no bar that opens before `closed_us` is still to come. By default that is the last
    bar's close. Sums run in the order of time, so that a running sum has the same bits. Raises `ValueError`
    when `target` is no multiple of `base`.
    """
    if target.us % base.us:
        raise ValueError(f"{target} is no multiple of {base}")
    bucket = bars.open_us // target.us * target.us
    if len(bars):
        closed = bucket + target.us <= (bars.close_us[-1] if closed_us is None else closed_us)
        bars, bucket = bars.slice(0, int(closed.sum())), bucket[closed]
    return align(bars.instruments, target, [_buckets(bars, bucket, a) for a in range(len(bars.instruments))])


def _buckets(bars: BarArrays, bucket: NDArray[np.int64], a: int) -> Series:
    """One instrument's bars, aggregated by the bucket that each frame opened in."""
    rows = np.flatnonzero(bars.present[:, a])
    opens, first, group = np.unique(bucket[rows], return_index=True, return_inverse=True)
    if not len(rows):
        return {"open_us": opens, **{name: np.empty(0) for name in _PRICES}}
    last = np.r_[first[1:], len(rows)] - 1
    return {
        "open_us": opens,
        "open": bars.open[rows[first], a],
        "high": np.maximum.reduceat(bars.high[rows, a], first),
        "low": np.minimum.reduceat(bars.low[rows, a], first),
        "close": bars.close[rows[last], a],
        # bincount adds one by one, unlike reduceat, whose pairwise sums differ in the last bits.
        "volume": np.bincount(group, bars.volume[rows, a]),
        "funding_rate": np.bincount(group, bars.funding_rate[rows, a]),
    }
