"""The bars that a stream is opened on: those that went out, as they went out last, and before them stored ones.

What is stored is ahead of what went out: corrections are stored before they are announced, and a frame that is handled
once more after a crash finds corrections of later. Features must not depend on when they are computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.features import FeatureSet, bars_with_history
from tradeloop.common.market import Bar, BarArrays, Series, Timeframe, Universe, align, joined, series_of, to_us
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


def bars_before(
    frame: BarFrame, known: WentOut, store: BarStore, feature_set: FeatureSet, universe: Universe
) -> Mapping[Timeframe, BarArrays]:
    """The bars that a stream is opened on before it takes a base frame: of each timeframe what the features need.

    Those that opened since the run began, or closed after its first base frame, are those that went out, and no
    others. Earlier ones are those that are stored, where none went out. May raise `BarStoreUnavailable`.
    """
    base, close_us = universe.timeframe, to_us(frame.close_time)
    first_close_us = known.since_us + base.us if known.since_us < to_us(frame.open_time) else close_us
    bars = {}
    for timeframe, frames in known.frames.items():
        # A longer bar that closes with the run's first base frame went out before it.
        end_us = known.since_us if timeframe is base else first_close_us - timeframe.us + 1
        stored = bars_with_history(store, feature_set, universe, timeframe, end_us, end_us)
        bars[timeframe] = _standing(stored, timeframe, frames) if frames else stored
    return bars


def _standing(stored: BarArrays, timeframe: Timeframe, frames: Mapping[int, BarFrame]) -> BarArrays:
    """The bars that went out, and the stored ones of which no frame is known."""
    sent: dict[str, dict[int, Bar]] = {name: {} for name in stored.instruments}
    for open_us, one in frames.items():
        for bar in one.bars:
            if bar.instrument in sent:
                sent[bar.instrument][open_us] = bar
    silent = stored.frames(np.flatnonzero(~np.isin(stored.open_us, np.fromiter(frames, np.int64, len(frames)))))
    series: list[Series] = []
    for a, name in enumerate(stored.instruments):
        parts = joined([silent.series(a), series_of(sent[name])])
        order = np.argsort(parts["open_us"])
        series.append({column: values[order] for column, values in parts.items()})
    return align(stored.instruments, timeframe, series)
