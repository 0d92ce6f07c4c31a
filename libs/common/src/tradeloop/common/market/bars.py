"""Closed bars: one, a range of them, and many as arrays."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator

from tradeloop.common.market.columns import checked
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
    extra: dict[str, float] = Field(default_factory=dict, exclude_if=operator.not_)
    """Further columns that are known of this bar, by name; see `tradeloop.common.market.columns`."""

    @field_validator("extra")
    @classmethod
    def _named(cls, extra: dict[str, float]) -> dict[str, float]:
        checked(extra)
        return extra


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


Rows = slice | NDArray[np.bool_] | NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class BarArrays:
    """Bars of one universe and timeframe on their common time grid: T frames by A instruments.

    `open_us` and `close_us` are (T,) int64, strictly increasing. Prices, `volume` and `funding_rate` are
    (T, A) float64. Where `present` is False the instrument had no bar: its prices repeat the last close
    (NaN before the first bar). `volume` is NaN where the source gives none. `extra` are further columns, (T, A)
    float64 by name, NaN where a bar lacks one.
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
    extra: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.open_us)

    def slice(self, start: int, stop: int) -> BarArrays:
        """Frames `start` to `stop` (exclusive), as views."""
        return self.frames(slice(start, stop))

    def frames(self, which: Rows) -> BarArrays:
        """Some of the frames, in their order."""
        arrays = {name: getattr(self, name)[which] for name in _OF_FRAMES}
        return replace(self, **arrays, extra={name: column[which] for name, column in self.extra.items()})

    def columns(self) -> dict[str, NDArray[np.float64]]:
        """The numbers of the bars, (T, A) by name: `BAR_COLUMNS`, then the further ones."""
        return {name: getattr(self, name) for name in BAR_COLUMNS} | dict(self.extra)

    def series(self, a: int) -> Series:
        """The bars that instrument `a` has."""
        there = self.present[:, a]
        return {"open_us": self.open_us[there]} | {name: one[:, a][there] for name, one in self.columns().items()}


_OF_FRAMES = tuple(f.name for f in fields(BarArrays) if f.name not in {"instruments", "extra"})

BAR_PRICES = ("open", "high", "low", "close")
BAR_COLUMNS = tuple(name for name in Bar.model_fields if name not in {"instrument", "extra"})
"""The numbers that every bar has a place for, by the names that they have in `Bar`, `BarArrays`, `Series` and in
tables: the prices first."""

Series = Mapping[str, NDArray[np.float64] | NDArray[np.int64]]
"""Bars of one instrument: `open_us` (int64, strictly increasing), the four prices, and optionally `volume`,
`funding_rate` and further columns, all of one length. A number is NaN where it is not known."""


def extra_names(parts: Sequence[Series]) -> list[str]:
    """The further columns of series, in the order of the alphabet."""
    return sorted({name for part in parts for name in part}.difference(BAR_COLUMNS, ("open_us",)))


def joined(parts: Sequence[Series]) -> Series:
    """Series that follow each other, as one; there is at least one. They may have different further columns."""
    known = [name for name in parts[0] if name in ("open_us", *BAR_COLUMNS)]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in known}
    for name in extra_names(parts):
        nothing = [np.full(len(part["open_us"]), np.nan) if name not in part else part[name] for part in parts]
        whole[name] = np.concatenate(nothing)
    return whole


_NUMBERS = attrgetter(*BAR_COLUMNS)


def series_of(bars: Mapping[int, Bar]) -> Series:
    """Bars of one instrument by their open, as one."""
    opens = sorted(bars)
    rows = np.array([_NUMBERS(bars[open_us]) for open_us in opens], dtype=np.float64)  # None becomes NaN
    columns = dict(zip(BAR_COLUMNS, np.ascontiguousarray(rows.reshape(-1, len(BAR_COLUMNS)).T), strict=True))
    for name in sorted({name for bar in bars.values() for name in bar.extra}):
        columns[name] = np.array([bars[open_us].extra.get(name, math.nan) for open_us in opens], dtype=np.float64)
    return {"open_us": np.array(opens, dtype=np.int64), **columns}


_NUMBERS = operator.attrgetter(*BAR_COLUMNS)

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
    extra = {name: np.full(shape, np.nan) for name in extra_names(series)}
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
        for name in extra.keys() & one.keys():
            extra[name][rows, a] = one[name]
        if not present[:, a].all():
            _carry_close_forward(columns, present[:, a], a, math.nan if last_closes is None else last_closes[a])
    return BarArrays(
        tuple(instruments), grid, grid + timeframe.us, **columns, funding_rate=funding, present=present, extra=extra
    )


def _carry_close_forward(
    columns: dict[str, NDArray[np.float64]], present: NDArray[np.bool_], a: int, before: float
) -> None:
    """Where an instrument has no bar, its prices repeat its last close."""
    last = np.maximum.accumulate(np.where(present, np.arange(len(present)), -1))
    carried = np.where(last >= 0, columns["close"][last, a], before)
    for name in BAR_PRICES:
        columns[name][~present, a] = carried[~present]
