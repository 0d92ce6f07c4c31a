"""The bars that a stream is opened on: those that went out, as they went out last, and before them stored ones.

What is stored is ahead of what went out: corrections are stored before they are announced, and a frame that is handled
once more after a crash finds corrections of later. Features must not depend on when they are computed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from tradeloop.common.arrays import Floats
from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.features import FeatureSet, bars_with_history
from tradeloop.common.market import BAR_COLUMNS, BarArrays, Series, Timeframe, Universe, align, joined, to_us
from tradeloop.common.messages import BarFrame


@dataclass
class WentOut:
    """The frames that went out before a base frame, as far as they were looked at."""

    since_us: int
    """The open of the oldest base frame of the run; that of the base frame itself, where there is none before it."""
    last_us: int | None = None
    """The open of the base frame that went out last before it; None where none is known."""
    frames: dict[Timeframe, dict[int, BarFrame]] = field(default_factory=dict)
    """Each frame as it went out last, by its open."""


def went_out(before: Iterable[BarFrame], frame: BarFrame, timeframes: Iterable[Timeframe], enough: int) -> WentOut:
    """Find what went out before a base frame: of its run, so many base frames at most, with the longer ones between.

    `before` has the frames, the last one first. A run ends where a frame begins it, where frames go back in time, where
    live ones follow replayed ones, or where the universe had other instruments.
    """
    base, open_us, close_us, ids = frame.timeframe, to_us(frame.open_time), to_us(frame.close_time), _ids(frame)
    found = WentOut(open_us, frames={base: {}, **{timeframe: {} for timeframe in timeframes}})
    is_complete = frame.begins
    for one in before:
        at_us = to_us(one.open_time)
        if one.timeframe is base and not one.revision:
            found.last_us = at_us if found.last_us is None else found.last_us
            if is_complete or at_us >= found.since_us or one.live is not frame.live or _ids(one) != ids:
                break
            found.since_us = at_us
            is_complete = one.begins or len(found.frames[base]) + 1 >= enough
        is_before = at_us < open_us if one.timeframe is base else to_us(one.close_time) <= close_us
        if is_before and one.timeframe in found.frames:
            found.frames[one.timeframe].setdefault(at_us, one)
    return found


def _ids(frame: BarFrame) -> set[str]:
    return {bar.instrument for bar in frame.bars}.union(frame.missing)


class Standing:
    """The bars that a stream stands on, kept as they go out: after a correction it is opened without looking back.

    Those that opened since the run began, or closed after its first base frame, are those that went out, and no
    others. Earlier ones are those that were stored when this was made, where none went out.
    """

    def __init__(
        self, frame: BarFrame, known: WentOut, store: BarStore, feature_set: FeatureSet, universe: Universe
    ) -> None:
        """The bars before a base frame. May raise `BarStoreUnavailable`."""
        base, close_us = universe.timeframe, to_us(frame.close_time)
        first_close_us = known.since_us + base.us if known.since_us < to_us(frame.open_time) else close_us
        self._extras = feature_set.extras
        self._ids = {name: a for a, name in enumerate(universe.ids)}
        self._stored: dict[Timeframe, BarArrays] = {}
        self._sent: dict[Timeframe, dict[int, Floats]] = {}
        """Whether each instrument has a bar, and its numbers, by the open of the frame as it went out last."""
        for timeframe, frames in known.frames.items():
            # A longer bar that closes with the run's first base frame went out before it.
            end_us = known.since_us if timeframe is base else first_close_us - timeframe.us + 1
            self._stored[timeframe] = bars_with_history(store, feature_set, universe, timeframe, end_us, end_us)
            self._sent[timeframe] = {open_us: self._numbers(one) for open_us, one in frames.items()}
        self._room = 2 * feature_set.history(base) - len(self._sent[base])

    def add(self, frame: BarFrame) -> bool:
        """Keep what goes out, in its order; whether there is room for more."""
        if (of_it := self._sent.get(frame.timeframe)) is not None:
            open_us = to_us(frame.open_time)
            self._room -= open_us not in of_it
            of_it[open_us] = self._numbers(frame)
        return self._room > 0

    def bars(self) -> Mapping[Timeframe, BarArrays]:
        """The bars of each timeframe."""
        return {timeframe: self._of(timeframe, stored) for timeframe, stored in self._stored.items()}

    def _of(self, timeframe: Timeframe, stored: BarArrays) -> BarArrays:
        sent = self._sent[timeframe]
        if not sent:
            return stored
        opens = np.array(sorted(sent), dtype=np.int64)
        numbers = np.stack([sent[open_us] for open_us in opens.tolist()])
        silent = stored.frames(np.flatnonzero(~np.isin(stored.open_us, opens)))
        series: list[Series] = []
        for a in range(len(self._ids)):
            there = numbers[:, a, 0] > 0.0
            columns = dict(zip((*BAR_COLUMNS, *self._extras), numbers[there, a, 1:].T, strict=True))
            parts = joined([silent.series(a), {"open_us": opens[there], **columns}])
            order = np.argsort(parts["open_us"])
            series.append({name: column[order] for name, column in parts.items()})
        return align(tuple(self._ids), timeframe, series)

    def _numbers(self, frame: BarFrame) -> Floats:
        numbers = np.zeros((len(self._ids), 1 + len(BAR_COLUMNS) + len(self._extras)))
        places = [a for bar in frame.bars if (a := self._ids.get(bar.instrument)) is not None]
        if places:
            numbers[places, 0] = 1.0
            bars = [bar for bar in frame.bars if bar.instrument in self._ids]
            numbers[places, 1 : 1 + len(BAR_COLUMNS)] = np.array(list(map(_NUMBERS, bars)), dtype=np.float64)
            for e, name in enumerate(self._extras, 1 + len(BAR_COLUMNS)):
                numbers[places, e] = [bar.extra.get(name, math.nan) for bar in bars]
        return numbers


_NUMBERS = operator.attrgetter(*BAR_COLUMNS)
"""The numbers of a bar; None becomes NaN in an array."""
