"""Closed bars: one, a range of them, and many as arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from tradeloop.common.market.instruments import Timeframe


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


BAR_PRICES = ("open", "high", "low", "close")
BAR_COLUMNS = tuple(name for name in Bar.model_fields if name != "instrument")
"""The numbers of a bar, by the names that they have in `Bar`, `BarArrays`, `Series` and in tables: the prices first."""

Series = Mapping[str, NDArray[np.float64] | NDArray[np.int64]]
"""Bars of one instrument: `open_us` (int64, strictly increasing), the four prices, and optionally `volume` and
`funding_rate`, all of one length."""


def joined(parts: Sequence[Series]) -> Series:
    """Series that follow each other, as one; there is at least one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


_DAYLIGHT_SAVING_US = Timeframe.H1.us


def overlaps(steps_us: NDArray[np.int64], timeframe: Timeframe) -> NDArray[np.bool_]:
    """Which bars open while the one before them is still open, so many microseconds after it opened.

    A decision at the close of one would be filled before it was taken. Bars of four hours or more may overlap by one
    hour: where clocks go forward, a day is an hour shorter than its nominal length.
    """
    spared_us = _DAYLIGHT_SAVING_US if timeframe.us >= Timeframe.H4.us else 0
    return steps_us < timeframe.us - spared_us


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
    columns = {name: np.full(shape, np.nan) for name in (*BAR_PRICES, "volume")}
    funding = np.zeros(shape)
    present = np.zeros(shape, dtype=np.bool_)
    for a, one in enumerate(series):
        rows = np.searchsorted(grid, one["open_us"])
        present[rows, a] = True
        for name in BAR_PRICES:
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
    for name in BAR_PRICES:
        columns[name][~present, a] = carried[~present]
