"""A list of features with an identity, and its values over many bars at once."""

from __future__ import annotations

import difflib
import hashlib
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.arrays import Bools, Floats
from tradeloop.common.feature_store.port import FeatureRows
from tradeloop.common.features.cross_section import CrossSection
from tradeloop.common.features.feature import ANCHOR_BARS, FIELDS, INPUTS, BarValues, Feature, FeatureError
from tradeloop.common.market import BarArrays, Roster, Series, Timeframe, from_us

_BARS, _FRAMES = 32768, 4096
"""Bars whose features are computed at once, frames whose values are written at once: they stay in a core's cache."""
_FORMAT = 1
"""Raised when the arithmetic of existing definitions changes: every identity then changes with it."""


@dataclass(frozen=True)
class FeatureSet:
    """Features in a fixed order. Raises `FeatureError` when two have one name."""

    features: tuple[Feature, ...]

    def __init__(self, features: Sequence[Feature]) -> None:
        object.__setattr__(self, "features", tuple(features))
        if not features:
            raise FeatureError("a feature set needs at least one feature")
        for name in self.names:
            if self.names.count(name) > 1:
                raise FeatureError(f"feature {name} is listed twice: leave one out, or name it differently")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Unique names of lower-case letters, digits and `_`."""
        return tuple(feature.name for feature in self.features)

    @cached_property
    def id(self) -> str:
        """`fs_` and 12 hexadecimal digits over everything that the values depend on."""
        lines = [f"format {_FORMAT}, anchors {ANCHOR_BARS}"]
        lines += [f"{feature.timeframe or 'base'} {feature.definition}" for feature in self.features]
        return f"fs_{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:12]}"

    @cached_property
    def timeframes(self) -> tuple[Timeframe, ...]:
        """The higher timeframes whose bars are needed, shortest first."""
        higher = {feature.timeframe for feature in self.features if feature.timeframe is not None}
        return tuple(sorted(higher, key=lambda timeframe: timeframe.seconds))

    @property
    def requires_volume(self) -> bool:
        return any("volume" in feature.inputs for feature in self.features)

    @cached_property
    def extras(self) -> tuple[str, ...]:
        """The further columns of bars that its features read, in the order of the alphabet."""
        return tuple(sorted({name for feature in self.features for name in feature.extras}))

    @cached_property
    def layout(self) -> tuple[str, ...]:
        """Names of what the columns and rows of bars hold for it, by place."""
        return INPUTS + self.extras

    def check_extras(self, timeframe: Timeframe, there: Collection[str]) -> None:
        """Raise `FeatureError` when a feature reads a further column that is not among those that bars have."""
        for _, feature in self.of(timeframe):
            for name in feature.extras:
                if name not in there:
                    raise _no_column(feature, name, timeframe, there)

    def frame(self, bars: BarArrays, t: int) -> list[BarValues | None]:
        """A frame as `FeatureStream` takes it."""
        columns = [getattr(bars, name)[t].tolist() for name in FIELDS]
        there = {name: column[t] for name, column in bars.extra.items()}
        columns += [column.tolist() for column in _further(there, self.extras, bars.present[t].shape)]
        return [row if has else None for row, has in zip(zip(*columns, strict=True), bars.present[t], strict=True)]

    def history(self, timeframe: Timeframe) -> int:
        """How many of an instrument's own bars, before a bar, fix the values at that bar and all later ones.

        An interval between anchors, and the bars before an anchor from which the slowest feature is restarted.
        """
        return ANCHOR_BARS + max((feature.history for _, feature in self.of(timeframe)), default=0)

    def of(self, timeframe: Timeframe) -> list[tuple[int, Feature]]:
        """The features that are computed on a timeframe, with their places; of the base for any that is not higher."""
        wanted = timeframe if timeframe in self.timeframes else None
        return [(place, feature) for place, feature in enumerate(self.features) if feature.timeframe is wanted]

    def check_base(self, base: Timeframe) -> None:
        """Raise `FeatureError` when a feature's timeframe is not a higher one of this base."""
        for feature in self.features:
            higher = feature.timeframe
            if higher is not None and (higher.seconds <= base.seconds or higher.seconds % base.seconds):
                raise FeatureError(f"feature {feature.name}: {higher} is no higher timeframe of the base {base}")

    @cached_property
    def cross_sections(self) -> tuple[tuple[int, CrossSection], ...]:
        """The features that look at other instruments, with their places."""
        return tuple((f, feature) for f, feature in enumerate(self.features) if isinstance(feature, CrossSection))

    def check_instruments(self, instruments: Sequence[str]) -> None:
        """Raise `FeatureError` when a feature is of an instrument that is not among these."""
        for _, feature in self.cross_sections:
            feature.check_instruments(instruments)

    def compute(
        self, bars: Mapping[Timeframe, BarArrays], base: Timeframe, roster: Roster | None = None
    ) -> FeatureRows:
        """Values (T, A, F) as of the closes of the base bars. What does not belong to the `roster` then has none.

        `bars` holds the base and every timeframe of `timeframes`, of the same instruments. A row's values are
        final when `history` bars of each instrument precede it, or all that there are. Where an instrument has
        no bar its values repeat. Raises `FeatureError` when bars are missing, when none of them has a further column
        that a feature reads, and when a value is infinite.
        """
        self.check_base(base)
        grid = bars[base]
        self.check_instruments(grid.instruments)
        values = np.empty((len(grid), len(grid.instruments), len(self.features)))
        for timeframe in (base, *self.timeframes):
            if timeframe not in bars:
                raise FeatureError(
                    f"feature {self.of(timeframe)[0][1].name} needs {timeframe} bars: "
                    f"add {timeframe} to the universe's higher_timeframes"
                )
            source = bars[timeframe]
            if len(source):
                self.check_extras(timeframe, source.extra)
            visible = np.searchsorted(source.close_us, grid.close_us, side="right") - 1
            for a, instrument in enumerate(grid.instruments):
                open_us, columns, last = own_bars(source, a, self.extras)
                rows = np.where(visible >= 0, last[visible], -1) if len(source) else visible
                values[: np.searchsorted(rows, 0), a, [place for place, _ in self.of(timeframe)]] = np.nan
                for start, stop, some in self.own_values(timeframe, instrument, open_us, columns):
                    first, end = np.searchsorted(rows, (start, stop))
                    _spread(values[first:end, a], some, rows[first:end] - start)
        self.combine(values, grid.instruments, None if roster is None else roster.inside(grid.close_us))
        return FeatureRows(grid.instruments, self.names, grid.close_us, values)

    def own_values(
        self, timeframe: Timeframe, instrument: str, open_us: NDArray[np.int64], columns: Floats
    ) -> Iterator[tuple[int, int, list[tuple[int, Floats]]]]:
        """The values of one timeframe's features at an instrument's own bars, part by part: the bars `start` to `stop`
        of a part, and the values of each feature at them, with its place in the set.

        `columns` (6 + E, n) are in the order of `layout`. Raises `FeatureError`.
        """
        check_volume(self.of(timeframe), instrument, open_us, columns)
        features = [(place, feature, feature.chosen(self.layout)) for place, feature in self.of(timeframe)]
        for blocks in _parts(open_us, timeframe):
            start, stop = blocks[0], blocks[-1]
            some = []
            for place, feature, chosen in features:
                first = max(0, start - feature.history)
                spans = feature.spans([block - first for block in blocks])
                part = columns[:, first:stop]
                own = feature.batch(part if chosen is None else part[list(chosen)], spans)[start - stop :]
                if len(infinite := np.flatnonzero(np.isinf(own))):
                    raise infinite_value(feature, instrument, int(open_us[start + infinite[0]]))
                some.append((place, own))
            yield start, stop, some

    def combine(self, values: Floats, instruments: Sequence[str], inside: Bools | None = None) -> None:
        """Let the features that look at other instruments see the values (T, A, F) of all, in place.

        `inside` (T, A) says which instruments belong to the universe; those that do not have no values then.
        """
        for place, feature in self.cross_sections:
            values[..., place] = feature.combine(values[..., place], instruments, inside)
        if inside is not None:
            values[~inside] = np.nan


def _spread(values: Floats, some: Sequence[tuple[int, NDArray[np.float64]]], rows: NDArray[np.int64]) -> None:
    """Put the values (n,) of some features into those of all, (T, F), in place: row by row those of `rows`."""
    for start in range(0, len(rows), _FRAMES):
        chosen = rows[start : start + _FRAMES]
        whole = bool((np.diff(chosen) == 1).all())  # mostly a frame has a bar of its own
        for place, own in some:
            values[start : start + _FRAMES, place] = own[chosen[0] : chosen[-1] + 1] if whole else own[chosen]


def own_bars(bars: BarArrays, a: int, extras: Sequence[str]) -> tuple[NDArray[np.int64], Floats, NDArray[np.int64]]:
    """The bars that instrument `a` really has: open times (n,), columns (6 + E, n) with these further ones, and for
    each frame the index of the last of them at or before it, -1 where there is none."""
    present = bars.present[:, a]
    return bars.open_us[present], columns_of(bars.series(a), bars.close_us[present], extras), np.cumsum(present) - 1


def columns_of(series: Series, close_us: NDArray[np.int64], extras: Sequence[str]) -> Floats:
    """Bars of one instrument as columns (6 + E, n): `INPUTS`, then these further ones, NaN where there are none."""
    return np.array([*(series[name] for name in FIELDS), close_us / 1e6, *_further(series, extras, close_us.shape)])


def _further(
    columns: Mapping[str, NDArray[Any]], extras: Sequence[str], shape: tuple[int, ...]
) -> Iterator[NDArray[Any]]:
    for name in extras:
        yield columns[name] if name in columns else np.full(shape, np.nan)


def check_volume(
    features: Sequence[tuple[int, Feature]], instrument: str, open_us: NDArray[np.int64], columns: Floats
) -> None:
    """Raise `FeatureError` when a feature reads volume and a bar has none."""
    for _, feature in features:
        if "volume" in feature.inputs and len(unknown := np.flatnonzero(np.isnan(columns[FIELDS.index("volume")]))):
            raise no_volume(feature, instrument, int(open_us[unknown[0]]))


def no_volume(feature: Feature, instrument: str, open_us: int) -> FeatureError:
    return FeatureError(
        f"feature {feature.name} needs volume, and the bar of {instrument} that opened {from_us(open_us)} has none: "
        "use a source that gives volume, or leave the feature out"
    )


def _no_column(feature: Feature, name: str, timeframe: Timeframe, there: Collection[str]) -> FeatureError:
    known = (*FIELDS, *sorted(there))
    hint = f"did you mean {close[0]}? " if (close := difflib.get_close_matches(name, known, n=1)) else ""
    return FeatureError(
        f"feature {feature.name} reads {name!r}, which no {timeframe} bar has here: {hint}they have "
        f"{', '.join(known)}; use a source that gives {name}, or leave the feature out"
    )


def infinite_value(feature: Feature, instrument: str, open_us: int) -> FeatureError:
    return FeatureError(
        f"feature {feature.name} of {instrument} is infinite at the bar that opened {from_us(open_us)}: "
        "define it so that it stays finite there, e.g. guard its division in windowed(...)"
    )


def _parts(open_us: NDArray[np.int64], timeframe: Timeframe) -> Iterator[list[int]]:
    """Bars in parts of whole blocks: the indices of the first bars after each anchor in it, then its end."""
    block = open_us // (ANCHOR_BARS * timeframe.us)
    blocks = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(open_us)]
    cuts = {bisect_left(blocks, bar) for bar in range(0, len(open_us), _BARS)}
    for first, last in pairwise(sorted(cuts | {len(blocks) - 1})):
        yield blocks[first : last + 1]
