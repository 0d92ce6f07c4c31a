"""`Flows`: the trades, order books and news of a live feed into columns of its bars, and onto their topics."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import structlog

from tradeloop.common.clock import Clock
from tradeloop.common.event_store.port import MarketItem
from tradeloop.common.market import Bar, Universe
from tradeloop.common.messages import MarketBooks, MarketNews, MarketTrades
from tradeloop.ingest.application.flow import Flow
from tradeloop.ingest.ports import (
    Channel,
    Connected,
    Disconnected,
    Malformed,
    MarketEvent,
    StreamedBook,
    StreamedNews,
    StreamedTrade,
)

log = structlog.get_logger(__name__)

_PUBLISH_EVERY_S = 0.5
"""Events wait so long for others to share their message."""
_TELL_EVERY_S = 60.0
"""The pause between two lines of the log about what was left out."""
_CHANNELS: Mapping[type[MarketEvent], Channel] = {
    StreamedTrade: "trades",
    StreamedBook: "books",
    StreamedNews: "news",
}


class Flows:
    """The flow of each venue of a universe, as far as the feed was asked for it."""

    def __init__(
        self,
        universe: Universe,
        channels: Collection[Channel],
        clock: Clock,
        count: Callable[[str, int], None],
        record: Callable[[str, Sequence[MarketItem]], None] | None = None,
    ) -> None:
        """`count` counts what is left out, `record` takes what was published of a universe."""
        self._channels = frozenset(channels) - {"bars"}
        self._clock, self._count, self._universe = clock, count, universe.name
        self._flows: dict[str, Flow] = {}
        if self._channels:
            for venue in sorted({_venue(one.id) for one in universe.instruments}):
                mine = tuple(one for one in universe.instruments if _venue(one.id) == venue)
                self._flows[venue] = Flow(universe.model_copy(update={"instruments": mine}), self._channels)
        self._record = record
        self._unsent: deque[MarketTrades | MarketBooks | MarketNews] = deque()
        self._publish_due_s = self._tell_due_s = 0.0
        self._untold: Counter[str] = Counter()

    def __bool__(self) -> bool:
        """Whether the feed brings more than bars."""
        return bool(self._flows)

    def take(self, venue: str, event: MarketEvent, offset_us: int) -> bool:
        """Take what the stream of a venue brought, whose clock is so far ahead; whether it was asked for."""
        if type(event) in _CHANNELS and _CHANNELS[type(event)] not in self._channels:
            return False
        if isinstance(event, Connected | Disconnected | Malformed):
            event = replace(event, time_us=event.time_us + offset_us)
        if venue in self._flows:
            self._flows[venue].take(event)
        return True

    def extended(self, bar: Bar, open_us: int, close_us: int) -> Bar:
        """A bar that goes out now, with the columns that are known of it. What it has already stays."""
        flow = self._flows.get(_venue(bar.instrument))
        columns = {} if flow is None else flow.columns(bar.instrument, open_us, close_us)
        return bar.model_copy(update={"extra": {**bar.extra, **columns}}) if columns else bar

    def send(self) -> Iterator[MarketTrades | MarketBooks | MarketNews]:
        """Publish what came. What is not consumed comes again."""
        now_s = self._clock.monotonic()
        if not self._unsent and now_s >= self._publish_due_s:
            self._publish_due_s = now_s + _PUBLISH_EVERY_S
            for flow in self._flows.values():
                self._unsent.extend(flow.messages())
        self._tell(now_s)
        while self._unsent:
            yield self._unsent[0]
            message = self._unsent.popleft()
            if self._record is not None:
                self._record(self._universe, _items(message))

    def _tell(self, now_s: float) -> None:
        """Count what was left out, by what it means, and name it in the log."""
        for flow in self._flows.values():
            left_out, flow.dropped = +flow.dropped, Counter()
            self._untold.update(left_out)
            for name, number in left_out.items():
                kind = name.partition("_")[0]
                if kind == "late":
                    self._count("flow_late", number)
                elif kind in ("unsound", "ahead", "too"):
                    self._count("flow_refused", number)
                elif kind == "unsent":
                    self._count("flow_unsent", number)
                elif kind == "incomplete":
                    self._count("flow_incomplete", number)
                else:
                    self._count("flow_ignored", number)
        if self._untold and now_s >= self._tell_due_s:
            log.warning("left out of trades, order books and news", universe=self._universe, **self._untold)
            self._untold.clear()
            self._tell_due_s = now_s + _TELL_EVERY_S


def _items(message: MarketTrades | MarketBooks | MarketNews) -> Sequence[MarketItem]:
    if isinstance(message, MarketTrades):
        return message.trades
    return message.books if isinstance(message, MarketBooks) else message.news


def _venue(instrument: str) -> str:
    return instrument.partition(":")[0]
