"""Bars beside those that are stored: the write of some that may be there with other values, and where to begin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.market import Bar, BarArrays, Timeframe, Universe, align, begins_us, series_of
from tradeloop.common.messages import Message
from tradeloop.ingest.domain import additions, corrections

Bars = Mapping[int, Bar]
"""Bars of one instrument by their open."""


def arrays(instruments: Sequence[str], timeframe: Timeframe, bars: Mapping[str, Bars]) -> BarArrays:
    """Bars on their common grid."""
    return align(instruments, timeframe, [series_of(bars[name]) for name in instruments])


def write(store: BarStore, timeframe: Timeframe, bars: BarArrays) -> Iterable[Message]:
    """Store bars; those that are stored with other values become their next revision."""
    if not len(bars):
        return ()
    span = bars.instruments, timeframe, int(bars.open_us[0]), int(bars.close_us[-1])
    stored = store.read(*span)
    new, changed = additions(bars, stored), corrections(bars, stored)
    if len(new):
        store.write(timeframe, new)
    revision = 1
    while len(changed):
        store.write(timeframe, changed, revision)
        changed = corrections(changed, store.read(*span))
        revision += 1
    return ()


def bucket_before(store: BarStore, universe: Universe, at_us: int) -> int:
    """Where the first of the buckets begins that hold the last base frame before `at_us`, or, where there is none, one
    that opens then. Their bars are those that close later."""
    base = universe.timeframe
    before = store.read_before(universe.ids, base, at_us, 1)
    last_us = int(before.open_us[0]) if len(before) else at_us
    return begins_us(last_us, base, (base, *universe.higher_timeframes), universe.days)
