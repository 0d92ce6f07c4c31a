"""The ports of ingest, besides `tradeloop.common.bar_store.port.BarStore`."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from tradeloop.common.bus.port import LogPosition
from tradeloop.common.market import EVER_US, BarArrays, Instrument, Series, Timeframe, Universe, align, joined
from tradeloop.common.messages import BarFrame


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
    """Bars of one instrument from a file. Adapter: `files.read_blocks`, which passes `contracts.check_bar_source`."""

    def __call__(
        self, path: str, instrument: Instrument, timeframe: Timeframe | None = None, *, until_us: int = EVER_US
    ) -> Generator[Series, None, FileReport]:
        """The bars of the file, checked block by block; of one instrument of it where the path is FILE#SYMBOL.

        The report comes at the end. The timeframe is inferred where none is given. No bar opens after `until_us`. A
        block is some thousand bars: a slice of work.

        Raises `UserError`, one line that names the file, the row and the remedy; then nothing of it is usable.
        """
        ...


def whole(blocks: Generator[Series, None, FileReport], instrument: Instrument) -> tuple[BarArrays, FileReport]:
    """All bars of a source at once, and its report."""
    parts: list[Series] = []
    while True:
        try:
            parts.append(next(blocks))
        except StopIteration as end:
            report: FileReport = end.value
            return align((instrument.id,), report.timeframe, [joined(parts)]), report


class Marks(Protocol):
    """The marks of the portfolios that trade a universe, as they come."""

    def new(self) -> Mapping[str, int]:
        """The close, in microseconds since the epoch, that each portfolio marked last, of those that did since the
        last call. May raise `Unavailable`."""
        ...

    def close(self) -> None:
        """Release resources."""
        ...


class Published(Protocol):
    """The frames that have been published already, and what came of them. Adapter: `bus_frames.BusFrames`."""

    def newest_since(self, request: LogPosition, universe: Universe) -> int | None:
        """Open time, in microseconds since the epoch, of the newest base frame that was published after a request.

        None when there is none. May raise `Unavailable`.
        """
        ...

    def frames(self, universe: Universe, place: int) -> tuple[Sequence[BarFrame], int | None]:
        """The frames of a universe among some hundred from a place on, in order, and the place behind these.

        The first place is 0; behind the last frame there is none. May raise `Unavailable`.
        """
        ...

    def marks(self, universe: Universe) -> Marks:
        """The marks that come from now on. May raise `Unavailable`."""
        ...
