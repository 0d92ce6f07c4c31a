"""The ports of ingest, besides `tradeloop.common.bar_store.port.BarStore`."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol, runtime_checkable

from tradeloop.common.bus.port import LogPosition
from tradeloop.common.errors import Unavailable
from tradeloop.common.market import EVER_US, BarArrays, Instrument, Series, Timeframe, Universe, align, joined
from tradeloop.common.messages import BarFrame, LiveRequested
from tradeloop.common.messages import Channel as Channel
from tradeloop.common.messages.ingest import Reading


@dataclass(frozen=True, slots=True)
class FileReport:
    """The findings in a file of bars."""

    path: str
    columns: dict[str, str]
    """The file's own name of `time`, `open`, `high`, `low`, `close` and, where found, `volume` and `funding_rate`;
    and of the further columns that are kept."""
    ignored: tuple[str, ...]
    """Columns that were not read, such as `Adj Close`."""
    time_format: str
    """Such as `ISO 8601`, `DD.MM.YYYY`, `date`, `epoch s`, `epoch ms`, `epoch us`, `epoch ns`, `Parquet timestamp`."""
    zone: str
    """The zone that the times are in; `none, read as UTC` where they say none."""
    timeframe: Timeframe
    rows: int
    gaps: int
    """Places where the instrument's calendar expected bars and there were none."""
    first: datetime
    last: datetime
    """Open times of the first and the last bar, UTC."""
    first_open: float = math.nan
    last_close: float = math.nan
    volume: float | None = None
    """The sum of all bars' volumes; None where there is none."""
    remarks: tuple[str, ...] = ()
    """Lines for people about what could be understood otherwise, or was repaired, or looks wrong."""


class BarSource(Protocol):
    """Bars of one instrument from a file. Adapter: `files.read_blocks`, which passes `contracts.check_bar_source`."""

    def __call__(
        self,
        path: str,
        instrument: Instrument,
        timeframe: Timeframe | None = None,
        *,
        reading: Reading | None = None,
        until_us: int = EVER_US,
    ) -> Generator[Series, None, FileReport]:
        """The bars of the file, checked block by block; of one instrument of it where the path is FILE#SYMBOL.

        Where `reading` says how it is to be read, that is not detected.

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


class SourceUnavailable(Unavailable):
    """A source of market data cannot answer now: its network, its rate limit, its maintenance. Asking again is safe."""

    def __init__(self, why: str, retry_after_s: float | None = None) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s
        """How long the source asks to be left alone; None where it does not say."""


@dataclass(frozen=True, slots=True)
class Page:
    """Part of the history of an instrument."""

    bars: Series
    """Closed bars in the order of time, maybe none, as the source gives them."""
    until_us: int
    """All bars that open before this time, and not before the page's start, are in the page, or do not exist."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The stream begins, or begins again: what happened since `Disconnected` may be missing from it for ever."""

    time_us: int
    """Microseconds on this machine's clock, as in all that follows, unless said otherwise."""
    only_closed: bool = False
    """Whether the venue promises bars that have closed alone: silence while one grows then says nothing."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The stream is interrupted. It connects again by itself, with growing pauses."""

    time_us: int
    reason: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The connection lives, which says nothing of whether all data come through it."""

    time_us: int
    venue_time_us: int | None = None
    """The venue's own clock, where it tells it."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """The stream brought a frame that cannot be read; it was left out."""

    time_us: int
    reason: str
    """One line, with the beginning of the frame."""


@dataclass(frozen=True, slots=True)
class StreamedBar:
    """A bar as it is now; the same bar comes again as it grows, and once more where the venue corrects it."""

    instrument: str
    timeframe: Timeframe
    open_us: int
    open: float
    high: float
    low: float
    close: float
    volume: float | None
    closed: bool | None
    """Whether the venue says that the bar is closed; None where it never says so."""
    received_us: int


@dataclass(frozen=True, slots=True)
class StreamedTrade:
    """A trade of others."""

    instrument: str
    id: str
    """The venue's own; unique for the instrument."""
    time_us: int
    """The venue's clock."""
    price: float
    size: float
    """The unit is that of the bars' volumes."""
    side: Literal["buy", "sell"] | None
    """The side of whoever took liquidity; None where the venue does not say."""
    received_us: int


@dataclass(frozen=True, slots=True)
class StreamedBook:
    """The best levels of an order book, as a whole."""

    instrument: str
    time_us: int
    """The venue's clock."""
    bids: tuple[tuple[float, float], ...]
    """Price and size of each level, the best first."""
    asks: tuple[tuple[float, float], ...]
    received_us: int


@dataclass(frozen=True, slots=True)
class StreamedNews:
    """A piece of news."""

    instruments: tuple[str, ...]
    """The instruments that it names, by id."""
    id: str
    time_us: int
    """The source's clock."""
    headline: str
    source: str
    sentiment: float | None
    """From -1 to 1, where the source gives one."""
    received_us: int


MarketEvent = (
    Connected | Disconnected | Heartbeat | Malformed | StreamedBar | StreamedTrade | StreamedBook | StreamedNews
)


class MarketStream(Protocol):
    """A live stream, which a thread of its own keeps connected: heartbeat, reconnection, subscription anew."""

    def poll(self, timeout_s: float) -> Sequence[MarketEvent]:
        """The events since the last call, in their order; waits for the first so long at most.

        Raises `UserError` for what no reconnection heals: wrong credentials, no permission, an unknown symbol.
        """
        ...

    def close(self) -> None:
        """End the stream and its thread."""
        ...


class MarketSource(Protocol):
    """The market data of one venue. Every adapter passes `contracts.check_market_source`."""

    venue: str
    """The venue in the ids of its instruments, such as `binance`."""

    def instruments(self, symbols: Sequence[str]) -> Sequence[Instrument]:
        """The terms of instruments as they are now: tick, lot, minimum, fees, calendar.

        Raises `SourceUnavailable`; `UserError` for a symbol that the venue does not have, naming those like it.
        """
        ...

    def history(self, instrument: Instrument, timeframe: Timeframe, start_us: int, end_us: int) -> Iterator[Page]:
        """The closed bars that open in `[start_us, end_us)`, page by page, oldest first, within the rate limits.

        Raises `SourceUnavailable`; `UserError` for a symbol or timeframe that the venue does not have, wrong
        credentials, no permission.
        """
        ...

    def stream(
        self, instruments: Sequence[Instrument], timeframe: Timeframe, channels: frozenset[Channel]
    ) -> MarketStream:
        """Begin a live stream. Raises `UserError` for a channel or timeframe that the venue does not have."""
        ...

    def time_us(self) -> int:
        """The venue's clock. Raises `SourceUnavailable`."""
        ...

    def close(self) -> None:
        """Release connections."""
        ...


@runtime_checkable
class BatchSource(MarketSource, Protocol):
    """A source that one request asks for the history of many instruments, which live feeds make use of."""

    at_once: int
    """The most instruments of one request."""

    def histories(
        self, instruments: Sequence[Instrument], timeframe: Timeframe, start_us: int, end_us: int
    ) -> Mapping[str, Page]:
        """All bars that `history` gives of each of them, by the instrument's id. It is meant for few bars of each.

        Raises as `history` does, for any of them.
        """
        ...


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

    def recent(self, universe: Universe, base_frames: int) -> Sequence[BarFrame]:
        """The newest live frames of a universe in order, as many base frames as there are among them at most.

        May raise `Unavailable`.
        """
        ...

    def revision(self, universe: Universe, timeframe: Timeframe, open_us: int) -> int:
        """The revision in which a frame went out last; -1 where it did not. May raise `Unavailable`."""
        ...

    def live_requests(self, owns: Callable[[str], bool]) -> Sequence[tuple[LiveRequested, LogPosition]]:
        """The newest request for a live feed of each universe that is owned. May raise `Unavailable`."""
        ...


@dataclass(frozen=True, slots=True)
class FetchedSpan:
    """A range of open times, `[start_us, end_us)`, all of whose bars were fetched from a source and stored."""

    start_us: int
    end_us: int
    left_out: int = 0
    """How many bars of it the data gate did not let in."""


def merged(spans: Iterable[FetchedSpan]) -> list[FetchedSpan]:
    """Ranges in order; those that meet or overlap are one. What was left out of them adds up."""
    found: list[FetchedSpan] = []
    for span in sorted(spans, key=lambda one: (one.start_us, one.end_us)):
        if found and span.start_us <= found[-1].end_us:
            last = found.pop()
            span = FetchedSpan(last.start_us, max(last.end_us, span.end_us), last.left_out + span.left_out)
        found.append(span)
    return found


class Fetched(Protocol):
    """The record of what was fetched from sources; rows are only ever added. Adapter: `sql_fetched.SqlFetched`."""

    def spans(self, source: str, instrument: str, timeframe: Timeframe) -> Sequence[FetchedSpan]:
        """The ranges that were fetched, in order; those that meet or overlap are one. May raise `Unavailable`."""
        ...

    def add(self, source: str, instrument: str, timeframe: Timeframe, span: FetchedSpan) -> None:
        """Record a range, after its bars were stored. Recording it again changes nothing. May raise `Unavailable`."""
        ...

    def terms(self, instrument: str) -> Sequence[tuple[int, Instrument]]:
        """The terms of an instrument, each with the time in microseconds at which it became known, oldest first.

        May raise `Unavailable`.
        """
        ...

    def add_terms(self, instrument: Instrument) -> None:
        """Record the terms of an instrument, where they are not those known last. May raise `Unavailable`."""
        ...

    def close(self) -> None:
        """Release connections."""
        ...
