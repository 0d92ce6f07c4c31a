"""The ports of ingest, besides `tradeloop.common.bar_store.port.BarStore`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from tradeloop.common.bus.port import LogPosition
from tradeloop.common.market import BarArrays, Instrument, Timeframe, Universe


@dataclass(frozen=True, slots=True)
class FileReport:
    """The findings in a file of bars."""

    path: str
    columns: dict[str, str]
    """The file's own name of `time`, `open`, `high`, `low`, `close` and, where found, `volume` and `funding_rate`."""
    ignored: tuple[str, ...]
    """Columns that were not read, such as `Adj Close`."""
    time_format: str
    """`ISO 8601`, `DD.MM.YYYY`, `date`, `epoch s`, `epoch ms`, `epoch us`, `epoch ns` or `Parquet timestamp`."""
    zone: str
    """The zone that the times are in; `none, read as UTC` where they say none."""
    timeframe: Timeframe
    rows: int
    gaps: int
    """Places where the instrument's calendar expected bars and there were none."""
    first: datetime
    last: datetime
    """Open times of the first and the last bar, UTC."""


class BarSource(Protocol):
    """Bars of one instrument from a file. Adapter: `files.read_bars`, which passes `contracts.check_bar_source`."""

    def __call__(
        self, path: str, instrument: Instrument, timeframe: Timeframe | None = None
    ) -> tuple[BarArrays, FileReport]:
        """All bars of the file, checked; of one instrument of it where the path is FILE#SYMBOL.

        The timeframe is inferred where none is given.

        Raises `UserError`, one line that names the file, the row and the remedy; then nothing of it is usable.
        """
        ...


class Published(Protocol):
    """The frames that have been published already. Adapter: `bus_frames.BusFrames`."""

    def newest_since(self, request: LogPosition, universe: Universe) -> int | None:
        """Open time, in microseconds since the epoch, of the newest base frame that was published after a request.

        None when there is none. May raise `Unavailable`.
        """
        ...
