"""The bars that a replay begins with: as live had them when it took the first of them.

Bars may have been corrected since. What was decided is never re-made, so a replay sees the corrections where live saw
them: ingest sends them again from the record of live.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tradeloop.cli.client.client import Client
from tradeloop.common.bar_store.sql import SqlBarStore
from tradeloop.common.clock import SystemClock
from tradeloop.common.features import FeatureSet
from tradeloop.common.market import BAR_COLUMNS, EVER_US, BarArrays, Timeframe, Universe, cycle_us, to_us
from tradeloop.common.market.days import DAY_US
from tradeloop.common.messages import BarFrame
from tradeloop.common.runtime.readback import forwards


@dataclass
class Recording:
    """The record of some base frames that live sent, as far as Kafka holds it."""

    opens: set[int] = field(default_factory=set)
    """The opens of the base frames that were decided on."""
    before: dict[Timeframe, dict[int, BarFrame]] = field(default_factory=dict)
    """The frames that went out before the first of them, each as it went out last, by their open."""
    as_known_us: int = EVER_US
    """When the first of them went out."""
    revisions: int = 0
    """Corrections of base frames that went out between the first and the last of them."""


def recording_of(live: Client, universe: Universe, feature_sets: Sequence[FeatureSet], bars: BarArrays) -> Recording:
    """Look up what live sent of the base frames `bars`, and before the first of them as much as features need."""
    base, wanted, needed = universe.timeframe, set(bars.open_us.tolist()), _needed(universe, feature_sets)
    found, since = Recording(before={timeframe: {} for timeframe in needed}), 0
    for record, frame in forwards(live.bus, BarFrame, universe.name):
        open_us = to_us(frame.open_time)
        if frame.timeframe is base and not frame.revision and open_us in wanted:
            if not found.opens:
                found.as_known_us = (record.timestamp_ms + 1) * 1000
            if open_us not in found.opens:  # what came again was decided on when it came first
                found.revisions, since = found.revisions + since, 0
            found.opens.add(open_us)
        elif found.opens:
            since += frame.revision > 0 and frame.timeframe is base
        elif (of_it := found.before.get(frame.timeframe)) is not None:
            of_it[open_us] = frame
            if len(of_it) > needed[frame.timeframe]:
                del of_it[next(iter(of_it))]
    return found


def write_bars_as_live_saw_them(
    live: Client,
    stored: SqlBarStore,
    universe: Universe,
    feature_sets: Sequence[FeatureSet],
    bars: BarArrays,
    recording: Recording,
    file: Path,
) -> BarArrays:
    """Write a new bar store, a SQLite file, with what features need before the base frames `bars`, as live had it.

    Of the frames themselves it has those that did not go out, or of which Kafka no longer holds that, which is said:
    ingest stores the others as it sends them again. Gives the frames that live decided on.
    """
    opens = np.isin(bars.open_us, np.fromiter(recording.opens, np.int64, len(recording.opens)))
    expired = int(np.argmax(opens)) if opens.any() else len(bars)
    if expired:
        live.say(
            f"Kafka no longer holds {expired:,} of the frames that live traded: these are taken as "
            "they are stored now, with corrections that live may not have had"
        )
    with closing(SqlBarStore(f"sqlite:///{file}", SystemClock())) as target:
        for timeframe, needed in _needed(universe, feature_sets).items():
            for instrument in universe.ids:
                history = stored.read_before(
                    [instrument], timeframe, int(bars.open_us[0]), needed, as_known_us=recording.as_known_us
                )
                target.write(timeframe, _with(history, recording.before[timeframe]))
        target.write(universe.timeframe, bars.frames(~opens))
    return bars.frames(opens | (np.arange(len(bars)) < expired))


def _needed(universe: Universe, feature_sets: Sequence[FeatureSet]) -> dict[Timeframe, int]:
    """How many frames before the first one are needed."""
    base = universe.timeframe
    timeframes = (base, *universe.higher_timeframes)
    needed = {one: max(features.history(one) for features in feature_sets) + 1 for one in timeframes}
    # Longer bars go on in a bucket's middle. Where days do not begin in UTC, it may have begun up to a day earlier.
    cycle = cycle_us(timeframes) + (0 if universe.days.is_utc else DAY_US)
    needed[base] = max(needed[base], cycle // base.us + 1)
    return needed


def _with(bars: BarArrays, frames: Mapping[int, BarFrame]) -> BarArrays:
    """The bars of one instrument, with those of frames in their places."""
    (instrument,) = bars.instruments
    columns: dict[str, Any] = {name: column.copy() for name, column in bars.columns().items()}
    present = bars.present.copy()
    for row, open_us in enumerate(bars.open_us.tolist()):
        if (frame := frames.get(open_us)) is None:
            continue
        present[row] &= instrument not in frame.missing
        for bar in frame.bars:
            if bar.instrument == instrument:
                for name, column in columns.items():
                    value = getattr(bar, name) if name in BAR_COLUMNS else bar.extra.get(name)
                    column[row] = np.nan if value is None else value
    extra = {name: columns.pop(name) for name in bars.extra}
    return replace(bars, present=present, extra=extra, **columns)
