"""Features from stored bars: over a range, and the bars that a stream is opened on."""

from __future__ import annotations

import numpy as np

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.errors import UserError
from tradeloop.common.feature_store.port import FeatureRows
from tradeloop.common.features.feature_set import FeatureSet
from tradeloop.common.market import BAR_COLUMNS, BarArrays, Series, Timeframe, Universe, align, from_us


def compute_stored(
    store: BarStore, feature_set: FeatureSet, universe: Universe, start_us: int, end_us: int
) -> FeatureRows:
    """The features of the base bars that opened in `[start_us, end_us)`.

    Raises `UserError` when there are no such bars, `BarStoreUnavailable`.
    """
    base = universe.timeframe
    bars = {base: bars_with_history(store, feature_set, universe, base, start_us, end_us)}
    first = int(np.searchsorted(bars[base].open_us, start_us))
    if first == len(bars[base]):
        raise UserError(
            f"no {base} bars of {universe.name} are stored from {from_us(start_us).isoformat()} to "
            f"{from_us(end_us).isoformat()}: backfill them first"
        )
    for higher in feature_set.timeframes:
        closed_us = start_us + base.us - higher.us + 1  # what opens before has closed at the first base close
        bars[higher] = bars_with_history(store, feature_set, universe, higher, closed_us, max(closed_us, end_us))
    computed = feature_set.compute(bars, base)
    return FeatureRows(computed.instruments, computed.names, computed.time_us[first:], computed.values[first:])


def bars_with_history(
    store: BarStore, feature_set: FeatureSet, universe: Universe, timeframe: Timeframe, start_us: int, end_us: int
) -> BarArrays:
    """Bars that opened in `[start_us, end_us)`, and before them what of each instrument the features need.

    Instruments are read one by one: in frames of all of them, one that trades seldom would have too few bars.
    """
    return align(
        universe.ids,
        timeframe,
        [
            _series(store, instrument, timeframe, start_us, end_us, feature_set.history(timeframe))
            for instrument in universe.ids
        ],
    )


def _series(store: BarStore, instrument: str, timeframe: Timeframe, start_us: int, end_us: int, history: int) -> Series:
    parts = [store.read_before([instrument], timeframe, start_us, history)]
    if start_us < end_us:
        parts.append(store.read([instrument], timeframe, start_us, end_us))
    columns = {name: np.concatenate([getattr(part, name)[:, 0] for part in parts]) for name in BAR_COLUMNS}
    return {"open_us": np.concatenate([part.open_us for part in parts]), **columns}
