"""The bars of a replay as live traded them: the frames that it published, and before them what was stored then.

Bars may have been corrected since. What was decided is never re-made, so a replay must not see the corrections.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tradeloop.cli.client.client import Client
from tradeloop.common.bar_store.sql import SqlBarStore
from tradeloop.common.clock import SystemClock
from tradeloop.common.features import FeatureSet
from tradeloop.common.market import BAR_COLUMNS, EVER_US, BarArrays, Universe, cycle_us, to_us
from tradeloop.common.market.days import DAY_US
from tradeloop.common.messages import BarFrame
from tradeloop.common.runtime.readback import forwards


def write_bars_as_live_saw_them(
    live: Client,
    stored: SqlBarStore,
    universe: Universe,
    feature_sets: Sequence[FeatureSet],
    bars: BarArrays,
    file: Path,
) -> None:
    """Write a new bar store, a SQLite file, with `bars` and what features need before them, as live saw them.

    `bars` are base frames as they are stored now. Those that Kafka no longer holds are left so, which is said.
    """
    base, first_us = universe.timeframe, int(bars.open_us[0])
    rows = {open_us: row for row, open_us in enumerate(bars.open_us.tolist())}
    frames: dict[int, BarFrame] = {}
    as_known_us = EVER_US
    for record, frame in forwards(live.bus, BarFrame, universe.name):
        row = rows.get(to_us(frame.open_time)) if frame.timeframe is base else None
        if row is None or row in frames:
            continue  # what came again was decided on when it came first
        frames[row] = frame
        if row == 0:
            as_known_us = (record.timestamp_ms + 1) * 1000
    if len(frames) < len(bars):
        live.say(
            f"Kafka no longer holds {len(bars) - len(frames):,} of the frames that live traded: these are taken as "
            "they are stored now, with corrections that live may not have had"
        )
    with closing(SqlBarStore(f"sqlite:///{file}", SystemClock())) as target:
        for timeframe in (base, *universe.higher_timeframes):
            frames_before = max(features.history(timeframe) for features in feature_sets)
            if timeframe is base:  # higher bars go on in the middle of a bucket
                cycle = cycle_us((base, *universe.higher_timeframes))
                # Where days do not begin in UTC, the buckets of a replay's first frame began up to a day earlier.
                frames_before = max(frames_before, (cycle + (0 if universe.days.is_utc else DAY_US)) // base.us)
            for instrument in universe.ids:
                history = stored.read_before(
                    [instrument], timeframe, first_us, frames_before + 1, as_known_us=as_known_us
                )
                target.write(timeframe, history)
        target.write(base, _with(bars, frames))


def _with(bars: BarArrays, frames: dict[int, BarFrame]) -> BarArrays:
    """The bars with the rows of frames in the places of their own."""
    columns: dict[str, Any] = {name: column.copy() for name, column in bars.columns().items()}
    present = bars.present.copy()
    places = {instrument: a for a, instrument in enumerate(bars.instruments)}
    for row, frame in frames.items():
        present[row] = False
        for bar in frame.bars:
            a = places[bar.instrument]
            present[row, a] = True
            for name, column in columns.items():
                value = getattr(bar, name) if name in BAR_COLUMNS else bar.extra.get(name)
                column[row, a] = np.nan if value is None else value
    extra = {name: columns.pop(name) for name in bars.extra}
    return replace(bars, present=present, extra=extra, **columns)
