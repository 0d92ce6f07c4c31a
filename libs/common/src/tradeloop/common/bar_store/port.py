"""The port to stored bars. Adapters: `sql.SqlBarStore` (PostgreSQL, SQLite) and `memory.MemoryBarStore`.

All pass `tradeloop.common.testing.check_bar_store`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tradeloop.common.errors import Unavailable
from tradeloop.common.market import BarArrays, Timeframe


class BarStoreUnavailable(Unavailable):
    """The store cannot be reached. Trying again is safe: writing a bar twice changes nothing."""


class Census(NamedTuple):
    """The bars of a range, counted: another census means other bars, since a stored bar never changes."""

    frames: int = 0
    """Different open times."""
    rows: int = 0
    """Bars, each revision counted."""
    revisions: int = 0
    """The sum of their revisions."""
    known_us: int = 0
    """When the last of them became known, microseconds since the epoch; 0 where there is none."""


class StoredSeries(NamedTuple):
    """The bars of one instrument and timeframe that a store holds."""

    instrument: str
    timeframe: Timeframe
    bars: int
    """Different open times."""
    rows: int
    """Bars, each revision counted."""
    first_us: int
    """Open time of the first bar, microseconds since the epoch."""
    last_us: int
    """Open time of the last bar."""


class BarStore(Protocol):
    """Closed bars by instrument, timeframe and open time. Writing is idempotent."""

    def write(self, timeframe: Timeframe, bars: BarArrays, revision: int = 0) -> None:
        """Store the present bars. A bar that is there is replaced only by a higher revision.

        All or nothing. Raises `BarStoreUnavailable`.
        """
        ...

    def read(self, instruments: Sequence[str], timeframe: Timeframe, start_us: int, end_us: int) -> BarArrays:
        """Bars with `start_us <= open time < end_us`, each in its highest revision, on their common grid.

        No bars gives zero frames. Raises `BarStoreUnavailable`.
        """
        ...

    def read_before(self, instruments: Sequence[str], timeframe: Timeframe, end_us: int, frames: int) -> BarArrays:
        """The last `frames` frames that opened before `end_us`; fewer when there are no more."""
        ...

    def census(self, instruments: Sequence[str], timeframe: Timeframe, start_us: int, end_us: int) -> Census:
        """The bars with `start_us <= open time < end_us`, counted without being read. Raises `BarStoreUnavailable`."""
        ...

    def series(self) -> Sequence[StoredSeries]:
        """All that is stored, by instrument, then from short timeframes to long. Counts bars: work for people to wait
        for. Raises `BarStoreUnavailable`."""
        ...

    def extra_columns(
        self, instruments: Sequence[str], timeframe: Timeframe, start_us: int, end_us: int
    ) -> frozenset[str]:
        """The further columns that any revision of any bar of a range has. Raises `BarStoreUnavailable`."""
        ...

    def check(self, *, writes: bool = False) -> None:
        """Find out whether it can be read now, or written to: reachable, its tables there.

        Raises `BarStoreUnavailable`.
        """
        ...

    def close(self) -> None:
        """Release connections."""
        ...
