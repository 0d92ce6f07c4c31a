"""Backfill: files, or the history of venues, into the store. Replay: from the store onto the bus, frame by frame. Live:
from venues onto the bus.

Backfills and replays go in slices.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping

import structlog

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.bus.port import LogPosition, Partition
from tradeloop.common.clock import Clock
from tradeloop.common.errors import Unavailable, UserError
from tradeloop.common.event_store.port import EventStore
from tradeloop.common.market import to_us
from tradeloop.common.messages import BackfillRequested, LiveRequested, Message, ReplayRequested
from tradeloop.common.runtime.pending import Pending
from tradeloop.common.runtime.service import RequestFailed, ServiceDefaults
from tradeloop.common.runtime.slices import Slices
from tradeloop.common.runtime.standing import FeedStanding
from tradeloop.ingest.application.backfill import Backfill
from tradeloop.ingest.application.live import Live, LivePolicy, OpenSource
from tradeloop.ingest.application.replay import Replay
from tradeloop.ingest.ports import BarSource, Fetched, MarketSource, Published

log = structlog.get_logger(__name__)


class Ingest(ServiceDefaults):
    """The ingest service."""

    name = "ingest"
    consumes: tuple[type[Message], ...] = (BackfillRequested, ReplayRequested, LiveRequested)

    def __init__(
        self,
        store: BarStore,
        source: BarSource,
        published: Published,
        clock: Clock,
        *,
        chunk_frames: int = 64,
        window_frames: int = 256,
        open_source: OpenSource | None = None,
        live: LivePolicy | None = None,
        events: EventStore | None = None,
        fetched: Fetched | None = None,
        threaded: bool = True,
        record: Published | None = None,
    ) -> None:
        """`open_source` opens the sources of live feeds and backfills, asked in threads of their own where they are
        `threaded`; `fetched` is the record of what backfills fetched from them; `events` stores the trades, order
        books and news of live feeds; `record` is what went out in another run, for replays that are to equal it.

        `chunk_frames` is how many base frames of a replay one step publishes at most, `window_frames` how many may be
        out that a portfolio of its universe has not marked.
        """
        self._store, self._source, self._published = store, source, published
        self._clock, self._chunk_frames, self._window_frames = clock, chunk_frames, window_frames
        self._live = Live(
            store,
            published,
            open_source or _no_source,
            clock,
            live or LivePolicy(),
            events=events,
            threaded=threaded,
        )
        self._fetched, self._record = fetched, record
        self._backfills = Slices()
        self._tallies: Counter[tuple[str, str]] = Counter()
        """Events of instruments that replays told."""
        self._replays: dict[str, deque[Replay]] = {}
        """Replays by universe, in the order of their requests: one universe's frames must not be mixed."""
        self._behind: deque[tuple[ReplayRequested, LogPosition]] = deque()
        """Requests for replays of universes that are being backfilled."""

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        if isinstance(message, BackfillRequested):
            backfill = Backfill(
                self._store,
                self._source,
                self._published,
                self._clock,
                message,
                self._fetched,
                lambda venue: self._live.venue(venue).asker,
            )
            self._backfills.begin(position, backfill, message.universe.name)
        elif isinstance(message, LiveRequested):
            return self._live.take(message, position)
        elif isinstance(message, ReplayRequested):
            if message.universe.name in self._backfills.keys:
                self._behind.append((message, position))
            else:
                self._request(message, position)
        else:
            raise TypeError(f"ingest does not read {type(message).__name__}")
        return ()

    def advance(self) -> Iterator[Message]:
        """The work on live feeds, a chunk of each universe's replay, then a slice of a backfill."""
        yield from self._live.advance()
        self._begin_behind()
        for universe in list(self._replays):
            replay = self._replays[universe][0]
            try:
                yield from replay.step(self._clock.monotonic(), self._chunk_frames)
            except Unavailable:
                raise
            except Exception as error:  # a universe whose bars cannot be read holds up no other
                self._end(universe)
                raise RequestFailed(replay.position, error) from error
            if replay.finished:
                log.info("replayed", universe=universe, request=replay.request.request_id)
                self._end(universe)
        yield from self._backfills.advance()

    def _end(self, universe: str) -> None:
        """Go on to the next replay of a universe."""
        waiting = self._replays[universe]
        replay = waiting.popleft()
        if not waiting:
            del self._replays[universe]
        try:
            replay.close()
        except Exception as error:  # noqa: BLE001  nothing depends on it
            log.warning("a reader was not closed", universe=universe, error=str(error))

    def _begin_behind(self) -> None:
        """Begin the replays whose backfills have ended."""
        for request, position in list(self._behind):
            if request.universe.name not in self._backfills.keys:
                try:
                    self._request(request, position)
                except UserError as error:
                    self._behind.remove((request, position))
                    raise RequestFailed(position, error) from error
                self._behind.remove((request, position))

    def answers(self, message: Message) -> bool:
        """A live feed begins and ends later, and an older request than the newest changes nothing."""
        return not isinstance(message, LiveRequested)

    def busy(self) -> bool:
        return (
            self._live.busy or self._backfills.busy or not all(waiting[0].rests for waiting in self._replays.values())
        )

    def waiting(self) -> bool:
        return bool(self._backfills.keys or self._replays or self._behind)

    def pending(self) -> Pending:
        """A request is finished with its last slice or frame: a crash before that repeats it."""
        pending = self._backfills.pending()
        for waiting in self._replays.values():
            for replay in waiting:
                pending.hold(replay.position)
        for _, position in self._behind:
            pending.hold(position)
        return pending

    def assigned(self, committed: Mapping[Partition, int], owns: Callable[[str], bool]) -> Mapping[Partition, int]:
        """Live feeds go on, whoever had them before."""
        self._live.restore(owns)
        return {}

    def feeds(self) -> Iterable[FeedStanding]:
        return self._live.feeds()

    def tallies(self) -> Mapping[tuple[str, str], int]:
        return self._tallies + Counter(self._live.tallies())

    def _count(self, event: str, universe: str, number: int) -> None:
        self._tallies[event, universe] += number

    def revoked(self) -> None:
        """Work in progress ends; its requests come again to whoever gets their partitions."""
        self._live.forget()
        self._backfills.forget()
        self._behind.clear()
        for waiting in self._replays.values():
            waiting[0].close()
        self._replays.clear()

    def not_ready(self) -> Iterable[str]:
        self._store.check(writes=True)
        return ()

    def close(self) -> None:
        self.revoked()
        self._live.close()
        self._store.close()
        if self._fetched is not None:
            self._fetched.close()

    def _request(self, request: ReplayRequested, position: LogPosition) -> None:
        universe, start_us, end_us = request.universe, to_us(request.range.start), to_us(request.range.end)
        if self._live.wants(universe.name):
            raise UserError(
                f"replay of {universe.name}: its live feed runs, whose frames must not be mixed with old ones: stop it "
                "first, or replay beside it with --prefix"
            )
        last = self._store.read_before(universe.ids, universe.timeframe, end_us, 1)
        if self._record is None and (not len(last) or last.open_us[0] < start_us):
            raise UserError(
                f"replay of {universe.name}: no {universe.timeframe} bars are stored between "
                f"{request.range.start.isoformat()} and {request.range.end.isoformat()}: backfill them first"
            )
        replay = Replay(self._store, self._published, request, position, self._window_frames, self._record, self._count)
        self._replays.setdefault(universe.name, deque()).append(replay)


def _no_source(venue: str) -> MarketSource:
    raise UserError(f"no source of live data is configured for the venue {venue}")
