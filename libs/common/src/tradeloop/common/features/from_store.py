"""Features from stored bars: over a range, and the bars that a stream is opened on."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.arrays import Floats
from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.errors import UserError
from tradeloop.common.feature_store.port import FeatureRows
from tradeloop.common.features.feature_set import FeatureSet, columns_of
from tradeloop.common.market import EVER_US, BarArrays, Series, Timeframe, Universe, align, from_us, joined


def compute_stored(
    store: BarStore, feature_set: FeatureSet, universe: Universe, start_us: int, end_us: int
) -> FeatureRows:
    """The features of the base bars that opened in `[start_us, end_us)`.

    Raises `UserError` when there are no such bars, `BarStoreUnavailable`.
    """
    steps = compute_in_steps(store, feature_set, universe, start_us, end_us)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            rows: FeatureRows = end.value
            if not len(rows.time_us):
                raise no_bars(universe, start_us, end_us) from None
            return rows


def check_columns(store: BarStore, feature_set: FeatureSet, universe: Universe, start_us: int, end_us: int) -> None:
    """Raise `FeatureError` when a feature reads a further column that none of the stored bars has.

    What a range lacks, where other bars do not, is unknown there: no news came, for example.
    """
    if not feature_set.extras:
        return
    for timeframe in (universe.timeframe, *feature_set.timeframes):
        first_us = start_us - timeframe.us
        last = store.read_before(universe.ids, timeframe, end_us, 1)
        if len(last) and last.open_us[0] >= first_us:
            there = store.extra_columns(universe.ids, timeframe, first_us, end_us)
            if not there.issuperset(feature_set.extras):
                there |= store.extra_columns(universe.ids, timeframe, -EVER_US, EVER_US)
            feature_set.check_extras(timeframe, there)


def no_bars(universe: Universe, start_us: int, end_us: int) -> UserError:
    """The error of a range in which nothing is stored."""
    return UserError(
        f"no {universe.timeframe} bars of {universe.name} are stored from {from_us(start_us).isoformat()} to "
        f"{from_us(end_us).isoformat()}: backfill them first"
    )


def compute_in_steps(
    store: BarStore, feature_set: FeatureSet, universe: Universe, start_us: int, end_us: int
) -> Generator[None, None, FeatureRows]:
    """As `compute_stored`, an instrument a step; zero rows when there are no such bars.

    The rows of a part of a range are those of the whole, to the bit.
    """
    base = universe.timeframe
    feature_set.check_base(base)
    feature_set.check_instruments(universe.ids)
    opens: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    own: list[dict[int, tuple[NDArray[np.int64], Floats]]] = []
    for instrument in universe.ids:
        values: dict[int, tuple[NDArray[np.int64], Floats]] = {}
        for timeframe in (base, *feature_set.timeframes):
            from_time_us, until_us = start_us, end_us
            if timeframe is not base:  # what opens before has closed at the first base close
                from_time_us = start_us + base.us - timeframe.us + 1
                until_us = max(from_time_us, end_us)
            history = feature_set.history(timeframe)
            series = _series(store, instrument, timeframe, from_time_us, until_us, history)
            open_us = series["open_us"].astype(np.int64)
            close_us = open_us + timeframe.us
            if timeframe is base:
                opens.append(open_us[open_us >= start_us])
            columns = columns_of(series, close_us, feature_set.extras)
            for place, _ in feature_set.of(timeframe):
                values[place] = close_us, np.full(len(close_us) + 1, np.nan)  # nothing is known before the first bar
            for start, stop, some in feature_set.own_values(timeframe, instrument, open_us, columns):
                for place, one in some:
                    values[place][1][start:stop] = one
        own.append(values)
        yield
    close_us = np.unique(np.concatenate(opens)) + base.us
    rows = np.empty((len(close_us), len(universe.ids), len(feature_set.features)))
    for a, values in enumerate(own):
        for place, (known_us, one) in values.items():
            rows[:, a, place] = np.append(one, np.nan)[np.searchsorted(known_us, close_us, side="right") - 1]
    feature_set.combine(rows, universe.ids, universe.roster.inside(close_us) if universe.changes else None)
    return FeatureRows(universe.ids, feature_set.names, close_us, rows)


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
    return joined([part.series(0) for part in parts])
