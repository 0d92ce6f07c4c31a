"""Backfill: files into the store. Replay: from the store onto the bus, frame by frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import structlog

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.bus.port import LogPosition
from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.common.market import EVER_US, BarArrays, Timeframe, TimeRange, Universe, from_us, resample, to_us
from tradeloop.common.messages import BackfillCompleted, BackfillRequested, BarFrame, Message, ReplayRequested
from tradeloop.common.runtime.pending import Pending
from tradeloop.common.runtime.service import ServiceDefaults
from tradeloop.ingest.domain import Resampler, corrections, frames, together
from tradeloop.ingest.ports import BarSource, Published

log = structlog.get_logger(__name__)

_BLOCK_FRAMES = 4096
"""How many frames' time a replay reads from the store at once."""


class Ingest(ServiceDefaults):
    """The ingest service. `chunk_frames` is how many base frames of a replay one step publishes at most."""

    name = "ingest"
    consumes: tuple[type[Message], ...] = (BackfillRequested, ReplayRequested)

    def __init__(
        self, store: BarStore, read_bars: BarSource, published: Published, clock: Clock, chunk_frames: int = 64
    ) -> None:
        self._store, self._read_bars, self._published = store, read_bars, published
        self._clock, self._chunk_frames = clock, chunk_frames
        self._replays: dict[str, deque[_Replay]] = {}
        """Replays by universe, in the order of their requests: one universe's frames must not be mixed."""

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        if isinstance(message, BackfillRequested):
            return (self._backfill(message),)
        if isinstance(message, ReplayRequested):
            self._request(message, position)
            return ()
        raise TypeError(f"ingest does not read {type(message).__name__}")

    def advance(self) -> Iterator[Message]:
        for universe, waiting in list(self._replays.items()):
            replay = waiting[0]
            yield from replay.step(self._clock.monotonic(), self._chunk_frames)
            if replay.finished:
                log.info("replayed", universe=universe, request=replay.request.request_id)
                waiting.popleft()
                if not waiting:
                    del self._replays[universe]

    def waiting(self) -> bool:
        return bool(self._replays)

    def pending(self) -> Pending:
        """A replay's request is finished with its last frame: a crash before that repeats it."""
        return Pending(replay.position for waiting in self._replays.values() for replay in waiting)

    def revoked(self) -> None:
        """Replays end; their requests come again to whoever gets the partition."""
        self._replays.clear()

    def not_ready(self) -> Iterable[str]:
        self._store.check(writes=True)
        return ()

    def close(self) -> None:
        self._store.close()

    def _backfill(self, request: BackfillRequested) -> BackfillCompleted:
        universe = request.universe
        if set(request.files) != set(universe.ids):
            wrong = ", ".join(sorted(set(request.files) ^ set(universe.ids)))
            raise UserError(f"backfill of {universe.name}: give one file for each of its instruments, see {wrong}")
        read = [self._read_bars(request.files[one.id], one, universe.timeframe) for one in universe.instruments]
        bars = together(universe.timeframe, [part for part, _ in read])
        self._write(universe.timeframe, bars)
        self._write_higher(universe, int(bars.open_us[0]), int(bars.close_us[-1]))
        completed = BackfillCompleted(
            request_id=request.request_id,
            universe=universe,
            range=TimeRange(start=from_us(bars.open_us[0]), end=from_us(bars.close_us[-1])),
            bars=int(bars.present.sum()),
            gaps=sum(report.gaps for _, report in read),
        )
        log.info("backfilled", universe=universe.name, bars=completed.bars, gaps=completed.gaps)
        return completed

    def _write(self, timeframe: Timeframe, bars: BarArrays) -> None:
        """Store bars; those that are stored with other values become their next revision."""
        revision = 0
        while len(bars):
            self._store.write(timeframe, bars, revision)
            start_us, end_us = int(bars.open_us[0]), int(bars.close_us[-1])
            bars = corrections(bars, self._store.read(bars.instruments, timeframe, start_us, end_us))
            revision += 1

    def _write_higher(self, universe: Universe, start_us: int, end_us: int) -> None:
        """Resample what new base bars touch: from all stored ones, as other files may hold the rest of a bucket."""
        if not universe.higher_timeframes:
            return
        longest_us = max(timeframe.us for timeframe in universe.higher_timeframes)
        base = universe.timeframe
        first_us = _bucket_before(self._store, universe, start_us)
        past_us = -(-end_us // longest_us) * longest_us
        bars = self._store.read(universe.ids, base, first_us, past_us)
        closed_us = int(self._store.read_before(universe.ids, base, EVER_US, 1).close_us[-1])
        for timeframe in universe.higher_timeframes:
            self._write(timeframe, resample(bars, base, timeframe, closed_us))

    def _request(self, request: ReplayRequested, position: LogPosition) -> None:
        universe, start_us, end_us = request.universe, to_us(request.range.start), to_us(request.range.end)
        last = self._store.read_before(universe.ids, universe.timeframe, end_us, 1)
        if not len(last) or last.open_us[0] < start_us:
            raise UserError(
                f"replay of {universe.name}: no {universe.timeframe} bars are stored between "
                f"{request.range.start.isoformat()} and {request.range.end.isoformat()}: backfill them first"
            )
        self._replays.setdefault(universe.name, deque()).append(
            _Replay(self._store, self._published, request, position)
        )


class _Replay:
    """A replay under way. One that was begun before a crash goes on behind what it published."""

    def __init__(self, store: BarStore, published: Published, request: ReplayRequested, position: LogPosition) -> None:
        self._store, self._published, self.request, self.position = store, published, request, position
        self._universe = request.universe
        self._next_us, self._end_us = to_us(request.range.start), to_us(request.range.end)
        self._resampler: Resampler | None = None
        self._read: deque[BarFrame] = deque()
        """Base frames in their order, not yet due."""
        self._due: deque[BarFrame] = deque()
        """Frames to be published."""
        self._began: tuple[float, BarFrame] | None = None

    @property
    def finished(self) -> bool:
        return not self._due and not self._read and self._next_us >= self._end_us

    def step(self, now_s: float, base_frames: int) -> Iterator[BarFrame]:
        """The next frames, at most so many base frames with what closes before each.

        What is not consumed, or raises on its way out, comes again.
        """
        for _ in range(base_frames):
            if not self._due:
                self._take_next(now_s)
            if not self._due:
                return
            while self._due:
                yield self._due[0]
                self._due.popleft()

    def _take_next(self, now_s: float) -> None:
        """Make the next base frame due, unless it is too early or there is none."""
        if self._resampler is None:
            newest_us = self._published.newest_since(self.position, self._universe)
            if newest_us is not None and self._next_us <= newest_us < self._end_us:
                self._next_us = newest_us + 1
                log.info("goes on", universe=self._universe.name, behind=from_us(newest_us).isoformat())
            self._resampler = resumed(self._store, self._universe, self._next_us)
        while not self._read and self._next_us < self._end_us:
            until_us = min(self._next_us + _BLOCK_FRAMES * self._universe.timeframe.us, self._end_us)
            bars = self._store.read(self._universe.ids, self._universe.timeframe, self._next_us, until_us)
            self._read.extend(frames(self._universe.name, self._universe.timeframe, bars))
            self._next_us = until_us
        if self._read and self._is_due(self._read[0], now_s):
            frame = self._read.popleft()
            self._due.extend((*self._resampler.feed(frame), frame))

    def _is_due(self, frame: BarFrame, now_s: float) -> bool:
        if self._began is None:
            self._began = now_s, frame
        began_s, first = self._began
        speed = self.request.speed
        return speed is None or (frame.close_time - first.close_time).total_seconds() <= (now_s - began_s) * speed


def resumed(store: BarStore, universe: Universe, at_us: int) -> Resampler:
    """A resampler in the state that the stored base bars before `at_us` leave it in. Raises `BarStoreUnavailable`."""
    resampler = Resampler(universe)
    bars = store.read(universe.ids, universe.timeframe, _bucket_before(store, universe, at_us), at_us)
    for frame in frames(universe.name, universe.timeframe, bars):
        resampler.feed(frame)
    return resampler


def _bucket_before(store: BarStore, universe: Universe, at_us: int) -> int:
    """Where the longest bucket begins that holds the last base frame before `at_us`, or `at_us` itself if earlier."""
    longest_us = max(timeframe.us for timeframe in (universe.timeframe, *universe.higher_timeframes))
    before = store.read_before(universe.ids, universe.timeframe, at_us, 1)
    return (int(before.open_us[0]) if len(before) else at_us) // longest_us * longest_us
