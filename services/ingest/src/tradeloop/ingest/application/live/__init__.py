"""Live: the streams of universes into frames, as long as somebody wants them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import structlog

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.bus.port import LogPosition
from tradeloop.common.clock import Clock
from tradeloop.common.errors import Unavailable, UserError
from tradeloop.common.event_store.port import EventStore
from tradeloop.common.market import to_us
from tradeloop.common.messages import LiveReported, LiveRequested, Message
from tradeloop.common.runtime.attempts import words
from tradeloop.common.runtime.standing import FeedStanding
from tradeloop.ingest.application.live.flows import Flows
from tradeloop.ingest.application.live.history import Asker
from tradeloop.ingest.application.live.policy import LivePolicy
from tradeloop.ingest.application.live.recorder import Recorder
from tradeloop.ingest.application.live.renamed import RenamedAsker, RenamedSource, Symbols
from tradeloop.ingest.application.live.universe import LiveUniverse, Venue
from tradeloop.ingest.ports import MarketSource, Published

__all__ = ["Live", "LivePolicy", "OpenSource"]

log = structlog.get_logger(__name__)

OpenSource = Callable[[str], MarketSource]
"""Opens the source of a venue. Raises `UserError` for a venue that is not configured."""


class Live:
    """The live feeds of the universes whose messages come to this process, each with the newest request for it."""

    def __init__(
        self,
        store: BarStore,
        published: Published,
        open_source: OpenSource,
        clock: Clock,
        policy: LivePolicy,
        *,
        events: EventStore | None = None,
        threaded: bool = True,
    ) -> None:
        """`events` takes trades, order books and news. `threaded` says whether it is written to, and sources are
        asked, in threads of their own."""
        self._store, self._published, self._open_source = store, published, open_source
        self._clock, self._policy, self._threaded = clock, policy, threaded
        self._recorder = None if events is None else Recorder(events, threaded=threaded)
        self._venues: dict[str, Venue] = {}
        self._newest: dict[str, tuple[LiveRequested, LogPosition]] = {}
        """The newest request for each universe, and where it stands."""
        self._feeds: dict[str, LiveUniverse] = {}
        self._reported: dict[str, str] = {}
        """The request of each universe whose start was told."""
        self._failed: dict[str, str] = {}
        """Universes whose feed is given up, and why."""
        self._tallies: Counter[tuple[str, str]] = Counter()

    def wants(self, universe: str) -> bool:
        """Whether there is a live feed of the universe, or one that is given up."""
        newest = self._newest.get(universe)
        return newest is not None and newest[0].command == "start"

    def take(self, request: LiveRequested, position: LogPosition) -> Iterator[Message]:
        """Obey a request, unless there is a newer one of the universe; says what became of it.

        That a feed is there is said when it is.
        """
        name = request.universe.name
        newest = self._newest.get(name)
        if newest is not None and newest[1].partition == position.partition and position.offset < newest[1].offset:
            return
        if newest is None or newest[0].request_id != request.request_id or name in self._failed:
            self._end(name)
        self._newest[name] = request, position
        if request.command == "stop":
            yield LiveReported(request_id=request.request_id, universe=request.universe, state="stopped")
        else:
            self._reported.pop(name, None)

    def restore(self, owns: Callable[[str], bool]) -> None:
        """Take up the feeds of the universes that are owned. May raise `Unavailable`."""
        for request, position in self._published.live_requests(owns):
            self._newest[request.universe.name] = request, position

    def advance(self) -> Iterator[Message]:
        """A step of each feed. What one fails of for good stops that one alone."""
        for name, number in self._recorder.lost().items() if self._recorder is not None else ():
            self._tallies["flow_unstored", name] += number
        for name, (request, _) in list(self._newest.items()):
            if request.command != "start" or name in self._failed:
                continue
            try:
                feed = self._feeds.get(name) or self._begin(request)
                yield from feed.step()
                if feed.begun and self._reported.get(name) != request.request_id:
                    yield LiveReported(request_id=request.request_id, universe=request.universe, state="started")
                    self._reported[name] = request.request_id
            except Unavailable:
                raise
            except Exception as error:  # noqa: BLE001  whatever a source does is the failure of its universes alone
                yield self._give_up(request, error)

    @property
    def busy(self) -> bool:
        """Whether a feed can go on at once."""
        return any(feed.busy for feed in self._feeds.values())

    def feeds(self) -> Iterator[FeedStanding]:
        """Where each feed stands."""
        for name, cause in self._failed.items():
            yield FeedStanding(name, False, None, None, 0.0, failed=True, cause=cause)
        for feed in self._feeds.values():
            yield feed.standing()

    def tallies(self) -> Mapping[tuple[str, str], int]:
        """The counts of events, by event and universe."""
        return {key: count for key, count in self._tallies.items() if count}

    def forget(self) -> None:
        """End all feeds: they begin again with `restore`, wherever."""
        for name in list(self._feeds):
            self._end(name)
        self._newest.clear()
        self._reported.clear()
        self._failed.clear()

    def close(self) -> None:
        """End all feeds, and let go of the sources."""
        self.forget()
        if self._recorder is not None:
            self._recorder.close()
        for venue in self._venues.values():
            venue.asker.close()
            venue.source.close()
        self._venues.clear()

    def _begin(self, request: LiveRequested) -> LiveUniverse:
        universe = request.universe
        if "bars" not in request.channels:
            raise UserError(f"the live feed of {universe.name} was asked for without bars: they carry the others")
        names = sorted({one.partition(":")[0] for one in universe.ids})
        venues = {name: self.venue(name) for name in names}
        if symbols := Symbols(universe):

            def now_us() -> int:
                return to_us(self._clock.now())

            venues = {
                name: Venue(RenamedSource(one.source, symbols, now_us), RenamedAsker(one.asker, symbols, now_us))
                for name, one in venues.items()
            }

        def count(event: str, number: int) -> None:
            self._tallies[event, universe.name] += number

        record = None if self._recorder is None else self._recorder.put
        flows = Flows(universe, request.channels, self._clock, count, record)
        feed = LiveUniverse(request, venues, flows, self._store, self._published, self._clock, self._policy, count)
        self._feeds[universe.name] = feed
        return feed

    def venue(self, name: str) -> Venue:
        """The source of a venue, and who asks it. Raises `UserError` for one that is not configured."""
        if name not in self._venues:
            source = self._open_source(name)
            asker = Asker(source, lambda: to_us(self._clock.now()), threaded=self._threaded)
            self._venues[name] = Venue(source, asker)
        return self._venues[name]

    def _give_up(self, request: LiveRequested, error: Exception) -> LiveReported:
        """Stop a feed until somebody starts it again."""
        name = request.universe.name
        why = " ".join((str(error) if isinstance(error, UserError) else words(error)).split())
        log.error("a live feed is given up", universe=name, error=why, exc_info=error)
        self._end(name)
        self._failed[name] = why
        self._tallies["feed_failed", name] += 1
        return LiveReported(request_id=request.request_id, universe=request.universe, state="failed", reason=why)

    def _end(self, name: str) -> None:
        self._failed.pop(name, None)
        feed = self._feeds.pop(name, None)
        if feed is not None:
            feed.close()
