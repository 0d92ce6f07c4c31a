"""Charts as inline SVG that stretches to the page: lines and areas scale with its width, text and markers do not.

The outer SVG has no view box, so that its own coordinates are pixels and percentages; curves lie in a nested SVG
whose view box stretches. All charts of a report share one time axis, on which every bar is equally wide. A curve
of many bars is drawn by its extremes in each column, so that no spike is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tradeloop.cli.report import text
from tradeloop.common.arrays import Floats

_WIDTH = 10_000
"""The height of the view box; one unit is a tenth of a pixel."""
_COLUMNS = 1000
_SAMPLES = 500
"""Points of the time axis that the crosshair can stand on."""
_LABELS = 22
"""Height of the strip below the plot, in pixels, that holds the labels of the time axis."""
_TICKS = 8
_DAY = 86_400_000_000
_STEPS = tuple(minutes * 60_000_000 for minutes in (1, 5, 15, 30, 60, 180, 360, 720, 1440, 2880, 10080, 20160))


@dataclass(frozen=True)
class TimeAxis:
    """The closes of T bars, in microseconds."""

    close_us: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.close_us)

    def x(self, bar: float) -> float:
        """Where a bar's middle is, as a share of the width."""
        return (bar + 0.5) / len(self)

    def samples(self) -> NDArray[np.int64]:
        """Bars that the crosshair can stand on, the last bar of each column."""
        return _edges(len(self), _SAMPLES)[1:] - 1

    def columns(self) -> NDArray[np.int64]:
        """Edges (C + 1,) of the columns that curves are drawn in."""
        return _edges(len(self), _COLUMNS)

    @cached_property
    def ticks(self) -> list[tuple[float, str]]:
        """Shares of the width and their labels, where days, hours or months begin."""
        return next(ticks for ticks in self._candidates() if ticks is not None)

    def _candidates(self) -> Iterable[list[tuple[float, str]] | None]:
        """Ticks by ever longer steps."""
        for step in _STEPS:
            begun = self.close_us // step
            yield self._where(begun, text.clock if step < _DAY else text.day)
        months = self.close_us.astype("datetime64[us]").astype("datetime64[M]").astype(np.int64)
        for length in (1, 3, 6, 12, 60, 120, 600):
            yield self._where(months // length, text.month if length < 12 else text.year)
        yield []

    def _where(self, begun: NDArray[np.int64], label: Callable[[int], str]) -> list[tuple[float, str]] | None:
        """A tick where a new step begins, unless that is too many; where a day begins, its date."""
        bars = np.flatnonzero(np.diff(begun)) + 1
        if len(bars) > _TICKS:
            return None
        times, new_days = self.close_us[bars], np.diff(self.close_us // _DAY)[bars - 1] > 0
        return [
            (self.x(float(bar)), text.day(time) if new and label is text.clock else label(time))
            for bar, time, new in zip(bars, times, new_days, strict=True)
        ]


@dataclass
class Chart:
    """One chart over the time axis, from `low` at its bottom to `high` at its top."""

    name: str
    axis: TimeAxis
    low: float
    high: float
    title: str
    note: str = ""
    percent: bool = False
    """Values are shares, and written as percentages."""
    height: int = 260
    strip: int = 0
    """Pixels at the bottom that curves leave free."""
    keys: list[tuple[str, str, Floats]] = field(default_factory=list)
    """Class, name and values (T,) of what the legend shows: the last, or those under the crosshair."""
    _curves: list[str] = field(default_factory=list)
    _marks: list[str] = field(default_factory=list)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return (self.height - self.strip) * (self.high - value) / (self.high - self.low)

    def line(self, kind: str, name: str, values: Floats) -> None:
        """A curve (T,) in the colour of the class `kind`; NaN where there is none."""
        self.keys.append((kind, name, values))
        if len(values) == 1:
            self.dot(kind, 0, float(values[0]))
        self._curves.append(f'<path class="line {kind}" d="{self._path(self._extremes(values), values)}"/>')

    def area(self, kind: str, name: str, values: Floats, base: float) -> None:
        """A curve, filled to `base`."""
        bars = self._extremes(values)
        left, right, bottom = self._x(bars[0]), self._x(bars[-1]), self._unit(base)
        outline = f"{self._path(bars, values)}L{right} {bottom}L{left} {bottom}z"
        self._curves.append(f'<path class="area {kind}" d="{outline}"/>')
        self.line(kind, name, values)

    def steps(self, kind: str, name: str, values: Floats) -> None:
        """The average of each column, over a band from its lowest to its highest value."""
        self.keys.append((kind, name, values))
        edges = self.axis.columns()
        top, bottom = np.maximum.reduceat(values, edges[:-1]), np.minimum.reduceat(values, edges[:-1])
        if (top > bottom).any():
            there, back = self._stairs(top), self._stairs(bottom)[::-1]
            self._curves.append(f'<path class="band {kind}" d="M{"L".join(there + back)}z"/>')
        mean = np.add.reduceat(values, edges[:-1]) / np.diff(edges)
        self._curves.append(f'<path class="line {kind}" d="M{"L".join(self._stairs(mean))}"/>')

    def shade(self, values: Floats, kinds: tuple[str, str]) -> None:
        """Fill the strip: class `kinds[0]` above zero and `kinds[1]` below, stronger in five steps to the largest."""
        edges = self.axis.columns()
        mean = np.add.reduceat(values, edges[:-1]) / np.diff(edges)
        largest = float(np.abs(mean).max())
        if largest == 0.0:
            return
        level = np.sign(mean) * np.ceil(np.abs(mean) / largest * 5.0 - 1e-9)
        top, bottom = 10 * (self.height - self.strip + 4), 10 * self.height
        starts = np.flatnonzero(np.diff(level, prepend=np.nan) != 0.0)
        for start, stop in zip(starts, np.append(starts[1:], len(level)), strict=True):
            if level[start] == 0.0:
                continue
            left, right = (round(_WIDTH * edges[i] / len(self.axis)) for i in (start, stop))
            kind = kinds[0] if level[start] > 0.0 else kinds[1]
            place = f"M{left} {top}H{right}V{bottom}H{left}z"
            self._curves.append(f'<path class="shade {kind}" opacity="{abs(level[start]) / 5:.1f}" d="{place}"/>')

    def marker(self, kind: str, bar: float, value: float, title: str) -> None:
        """A small triangle: above `value` for the class `sell`, below it otherwise."""
        symbol = "down" if kind == "sell" else "up"
        self._marks.append(
            f'<use class="{kind}" href="#{symbol}" x="{self._percent(bar)}" y="{self.y(value):.1f}">'
            f"<title>{escape(title)}</title></use>"
        )

    def dot(self, kind: str, bar: int, value: float) -> None:
        self._marks.append(f'<circle class="dot {kind}" cx="{self._percent(bar)}" cy="{self.y(value):.1f}" r="3"/>')

    def event(self, bar: int, label: str) -> None:
        """A dashed line across the plot, with a word beside its top."""
        x, left = self._percent(bar), self.axis.x(bar) > 0.7
        self._marks.append(
            f'<line class="event" x1="{x}" x2="{x}" y1="0" y2="{self.height}"/>'
            f'<text class="event" x="{x}" y="11" dx="{-5 if left else 5}"'
            f' text-anchor="{"end" if left else "start"}">{escape(label)}</text>'
        )

    def figure(self) -> str:
        """The chart under its title, note and legend, as HTML."""
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        keys = "".join(
            f'<span class="key {kind}"><i></i>{escape(name)} <b>{self.written(values[-1])}</b></span>'
            for kind, name, values in self.keys
        )
        return (
            f'<figure><figcaption><h2>{escape(self.title)}</h2>{note}<div class="legend" data-chart="{self.name}">'
            f"{keys}</div></figcaption>{self._plot()}</figure>"
        )

    def _plot(self) -> str:
        step = _round_step((self.high - self.low) * 45 / self.height)
        ticks = [i * step for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]
        decimals = self._decimals(step, exact=True)
        rules = (("grid" if tick else "zero", f"{self.y(tick):.1f}") for tick in ticks)
        grid = "".join(f'<line class="{kind}" x2="100%" y1="{y}" y2="{y}"/>' for kind, y in rules)
        values = "".join(
            f'<span style="top:{self.y(tick):.0f}px">{self._form(tick, decimals)}</span>' for tick in ticks
        )
        times = "".join(
            f'<line class="tick" x1="{100 * x:.2f}%" x2="{100 * x:.2f}%" y1="{self.height}" y2="{self.height + 4}"/>'
            f'<text class="{"more" if i % 2 else "each"}" x="{100 * x:.2f}%" y="{self.height + 17}"'
            f' text-anchor="{"start" if x < 0.03 else "end" if x > 0.97 else "middle"}">{text}</text>'
            for i, (x, text) in enumerate(self.axis.ticks)
        )
        return (
            f'<div class="plot"><svg class="outer" height="{self.height + _LABELS}" role="img"'
            f' aria-label="{escape(self.title)}">{grid}'
            f'<svg width="100%" height="{self.height}" viewBox="0 0 {_WIDTH} {10 * self.height}"'
            f' preserveAspectRatio="none">{"".join(self._curves)}</svg>'
            f'{"".join(self._marks)}{times}<line class="cross" y1="0" y2="{self.height}"/></svg>'
            f'<div class="values">{values}</div></div>'
        )

    def sampled(self) -> list[list[str]]:
        """The value of each key of the legend, at each sample of the time axis."""
        samples = self.axis.samples()
        return [[self.written(value) for value in values[samples]] for _, _, values in self.keys]

    def written(self, value: float) -> str:
        """A value as finely as the chart can show it; nothing for NaN."""
        return "" if math.isnan(value) else self._form(value, self._decimals((self.high - self.low) / self.height))

    def _form(self, value: float, decimals: int) -> str:
        return text.percent(value, decimals) if self.percent else text.number(value, decimals)

    def _decimals(self, step: float, exact: bool = False) -> int:
        """As many as it takes to tell values a step apart, or to write the step's own multiples exactly."""
        step *= 100 if self.percent else 1
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return decimals + (exact and abs(step * 10**decimals % 1.0 - 0.5) < 1e-6)

    def _extremes(self, values: Floats) -> list[int]:
        """Bars that hold the lowest or the highest value of their column, in the order of time."""
        bars = [0]
        floor, ceiling = np.where(np.isnan(values), [[np.inf], [-np.inf]], values)
        edges = self.axis.columns().tolist()
        for start, stop in pairwise(edges):
            bars += sorted({start + int(floor[start:stop].argmin()), start + int(ceiling[start:stop].argmax())})
        return [*bars, len(values) - 1]

    def _path(self, bars: Sequence[int], values: Floats) -> str:
        """Relative whole units, which keeps a long path short."""
        points = [(self._x(bar), self._unit(values[bar])) for bar in bars if not math.isnan(values[bar])]
        if not points:
            return ""
        moves = (f"{x - u} {y - v}" for (u, v), (x, y) in pairwise(points) if (u, v) != (x, y))
        return f"M{points[0][0]} {points[0][1]}l{' '.join(moves) or '0 0'}"

    def _stairs(self, heights: Floats) -> list[str]:
        """The outline of one step a column."""
        edges = (self.axis.columns() * _WIDTH / len(self.axis)).round().astype(int)
        return [f"{x} {self._unit(y)}" for y, sides in zip(heights, pairwise(edges), strict=True) for x in sides]

    def _x(self, bar: float) -> int:
        return round(_WIDTH * self.axis.x(bar))

    def _unit(self, value: float) -> int:
        """Points far outside the plot are moved to where a renderer can still draw them."""
        return round(10 * min(max(self.y(value), -1e4), 1e4))

    def _percent(self, bar: float) -> str:
        return f"{100 * self.axis.x(bar):.2f}%"


def _edges(length: int, most: int) -> NDArray[np.int64]:
    columns = min(length, most)
    return np.arange(columns + 1) * length // columns


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5 or 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= least * (1.0 - 1e-9))


def limits(curves: Iterable[Floats], room: float = 0.05) -> tuple[float, float]:
    """The range of some curves, with room around it; never empty."""
    values = np.concatenate([curve[np.isfinite(curve)] for curve in curves])
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    margin = room * (high - low) or 0.005 * abs(high) or 0.005
    return low - margin, high + margin
