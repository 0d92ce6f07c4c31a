"""`MemoryBarStore`: bars in this process, for tests."""

from __future__ import annotations

from collections.abc import Sequence

from tradeloop.common.bar_store.port import Census, StoredSeries
from tradeloop.common.bar_store.rows import (
    StoredBar,
    before,
    between,
    columns_of,
    in_order,
    parsed,
    rows_of,
    with_extra,
)
from tradeloop.common.clock import Clock
from tradeloop.common.market import EVER_US, BarArrays, Series, Timeframe, to_us


class MemoryBarStore:
    """Bars in a dictionary."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._bars: dict[tuple[str, Timeframe], dict[int, dict[int, tuple[int, StoredBar]]]] = {}

    def write(self, timeframe: Timeframe, bars: BarArrays, revision: int = 0) -> None:
        known_us = to_us(self._clock.now())
        for a, instrument in enumerate(bars.instruments):
            stored = self._bars.setdefault((instrument, timeframe), {})
            for row in rows_of(bars, a):
                stored.setdefault(row[0], {}).setdefault(revision, (known_us, row))

    def read(
        self,
        instruments: Sequence[str],
        timeframe: Timeframe,
        start_us: int,
        end_us: int,
        *,
        as_known_us: int = EVER_US,
    ) -> BarArrays:
        """As `BarStore.read`, of what was stored until `as_known_us`."""
        histories = [self._history(instrument, timeframe, end_us, as_known_us) for instrument in instruments]
        return between(instruments, timeframe, histories, start_us)

    def read_before(
        self,
        instruments: Sequence[str],
        timeframe: Timeframe,
        end_us: int,
        frames: int,
        *,
        as_known_us: int = EVER_US,
    ) -> BarArrays:
        """As `BarStore.read_before`, of what was stored until `as_known_us`."""
        histories = [self._history(instrument, timeframe, end_us, as_known_us) for instrument in instruments]
        return before(instruments, timeframe, histories, end_us, frames)

    def census(self, instruments: Sequence[str], timeframe: Timeframe, start_us: int, end_us: int) -> Census:
        rows = [
            (open_us, revision, known_us)
            for instrument in instruments
            for open_us, revisions in self._bars.get((instrument, timeframe), {}).items()
            if start_us <= open_us < end_us
            for revision, (known_us, _) in revisions.items()
        ]
        opens, revised, known = zip(*rows, strict=True) if rows else ((), (), ())
        return Census(len(set(opens)), len(rows), sum(revised), max(known, default=0))

    def series(self) -> Sequence[StoredSeries]:
        return in_order(
            StoredSeries(instrument, timeframe, len(bars), sum(map(len, bars.values())), min(bars), max(bars))
            for (instrument, timeframe), bars in self._bars.items()
            if bars
        )

    def extra_columns(
        self, instruments: Sequence[str], timeframe: Timeframe, start_us: int, end_us: int
    ) -> frozenset[str]:
        texts = [
            row[-1]
            for instrument in instruments
            for open_us, revisions in self._bars.get((instrument, timeframe), {}).items()
            if start_us <= open_us < end_us
            for _, row in revisions.values()
        ]
        return frozenset(name for row in parsed(texts) if row for name in row)

    def check(self, *, writes: bool = False) -> None:
        """It is always there."""

    def close(self) -> None:
        """Nothing is held open."""

    def _history(self, instrument: str, timeframe: Timeframe, end_us: int, known_us: int) -> Series:
        """All bars before a time, each in the highest revision that was known."""
        rows = []
        for _, revisions in sorted(self._bars.get((instrument, timeframe), {}).items()):
            known = [row for _, (us, row) in sorted(revisions.items()) if us <= known_us and row[0] < end_us]
            rows += known[-1:]
        columns = list(zip(*rows, strict=True))
        return with_extra(columns_of(columns[:-1]), parsed(columns[-1])) if columns else columns_of(())
