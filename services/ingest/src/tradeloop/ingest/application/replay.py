"""Replay: from the store onto the bus, frame by frame, no further ahead of who trades them than a window."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import structlog

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.bus.port import LogPosition
from tradeloop.common.market import Universe, from_us, to_us
from tradeloop.common.messages import BarFrame, Message, ReplayRequested
from tradeloop.ingest.application.announced import Announced, Count, uncounted
from tradeloop.ingest.application.recorded import Recorded
from tradeloop.ingest.application.stored import bucket_before
from tradeloop.ingest.domain import Facts, Resampler, frames
from tradeloop.ingest.ports import Marks, Published

log = structlog.get_logger(__name__)

_BLOCK_FRAMES = 4096
"""How many frames' time a replay reads from the store at once."""
_SILENCE_S = 1.0
"""How long a replay waits for a mark."""


class Replay:
    """A replay under way. One that was begun before a crash goes on behind what it published.

    Where another run is on record, its frames go out as they did there, and stored ones only before the first of them.
    """

    def __init__(
        self,
        store: BarStore,
        published: Published,
        request: ReplayRequested,
        position: LogPosition,
        window: int,
        record: Published | None = None,
        count: Count = uncounted,
    ) -> None:
        self._store, self._published, self.request, self.position = store, published, request, position
        self._universe, self._facts = request.universe, Facts(request.universe)
        self._announced = Announced(request.universe, count)
        self._next_us, self._end_us = to_us(request.range.start), to_us(request.range.end)
        self._recorded: Recorded | None = None
        if record is not None:
            self._recorded = Recorded(record, store, self._universe, self._next_us, self._end_us)
        self._resampler: Resampler | None = None
        self._begins = True
        """Whether the next base frame is the first one."""
        self._read: deque[BarFrame] = deque()
        """Base frames in their order, not yet due."""
        self._due: deque[BarFrame] = deque()
        """Frames to be published."""
        self._began: tuple[float, BarFrame] | None = None
        self._window = _Window(published, self._universe, window)
        self.rests = False
        """Whether only time, or a mark, lets it go on."""

    @property
    def finished(self) -> bool:
        return not self._due and not self._read and self._next_us >= self._end_us and self._recorded is None

    def close(self) -> None:
        """Look for marks no more."""
        self._window.close()

    def step(self, now_s: float, base_frames: int) -> Iterator[Message]:
        """The next frames, at most so many base frames with what closes before each, and events of instruments.

        What is not consumed, or raises on its way out, comes again.
        """
        self.rests = not self._due and not self._window.has_room(now_s, base_frames)
        if self.rests:
            return
        for _ in range(base_frames):
            if not self._due:
                self._take_next(now_s)
            if not self._due:
                self.rests = True
                return
            while self._due:
                frame = self._due[0]
                yield from self._announced.before(frame)
                yield frame
                self._announced.sent(frame)
                if frame.timeframe is self._universe.timeframe and not frame.revision:
                    self._window.sent(to_us(frame.close_time), now_s)
                self._due.popleft()

    def _take_next(self, now_s: float) -> None:
        """Make the next base frame due, unless it is too early or there is none."""
        if self._resampler is None:
            self._resume()
        assert self._resampler is not None
        while not self._read and self._next_us < self._end_us:
            until_us = min(self._next_us + _BLOCK_FRAMES * self._universe.timeframe.us, self._end_us)
            bars = self._store.read(self._universe.ids, self._universe.timeframe, self._next_us, until_us)
            self._read.extend(frames(self._universe.name, self._universe.timeframe, bars, self._facts))
            self._next_us = until_us
        if self._read:
            if self._is_due(self._read[0], now_s):
                frame = self._read.popleft()
                self._make_due((*self._resampler.feed(frame), frame))
        elif self._recorded is not None:
            group = self._recorded.next()
            if group is None:
                self._recorded = None
            elif group[-1].revision or self._is_due(group[-1], now_s):
                self._make_due(group)
                self._recorded.taken()

    def _make_due(self, frames: Sequence[BarFrame]) -> None:
        """Let frames go out as those of a replay, whose decisions have no deadline."""
        for frame in frames:
            begins = frame.begins
            if self._begins and frame.timeframe is self._universe.timeframe and not frame.revision:
                begins, self._begins = True, False
            told = {"live": False, "catches_up": False, "begins": begins}
            self._due.append(frame.model_copy(update=told) if frame.live or begins else frame)

    def _resume(self) -> None:
        """Find where to begin, or to go on. May raise `Unavailable`."""
        newest_us = self._published.newest_since(self.position, self._universe)
        if newest_us is not None and to_us(self.request.range.start) <= newest_us < to_us(self.request.range.end):
            if self._recorded is not None and self._begins:
                self._recorded.skip(newest_us)
            self._next_us, self._begins = newest_us + 1, False
            self._announced.behind(newest_us + self._universe.timeframe.us)
            log.info("goes on", universe=self._universe.name, behind=from_us(newest_us).isoformat())
        if self._recorded is not None and (group := self._recorded.next()) is not None:
            self._end_us = min(self._end_us, to_us(group[-1].open_time))
        self._resampler = resumed(self._store, self._universe, self._next_us)

    def _is_due(self, frame: BarFrame, now_s: float) -> bool:
        if self._began is None:
            self._began = now_s, frame
        began_s, first = self._began
        speed = self.request.speed
        return speed is None or (frame.close_time - first.close_time).total_seconds() <= (now_s - began_s) * speed


class _Window:
    """The base frames of a replay that went out and that the slowest portfolio has not marked yet.

    Without it a replay would fill its partition, and a live bar of another universe would wait for all of it. Where
    nobody answers, because no portfolio trades the universe or one stands still, the replay goes on by a window a
    second, and says so once.
    """

    def __init__(self, published: Published, universe: Universe, size: int) -> None:
        self._published, self._universe, self._size = published, universe, size
        self._marks: Marks | None = None
        self._open: deque[int] = deque()
        """Closes of the frames, in their order."""
        self._first_us = 0
        self._marked_us: dict[str, int] = {}
        """The newest frame of this replay that each portfolio has marked."""
        self._moved_s = 0.0
        """When a frame last went out, or was marked by all."""
        self._warned = False

    def sent(self, close_us: int, now_s: float) -> None:
        """A base frame went out."""
        self._first_us = self._first_us or close_us
        self._open.append(close_us)
        self._moved_s = now_s

    def has_room(self, now_s: float, frames: int) -> bool:
        """Whether so many more frames may go out, or a whole window. May raise `Unavailable`."""
        if self._marks is None:
            self._marks = self._published.marks(self._universe)  # before the first frame goes out
        full = max(self._size - frames, 0)
        if len(self._open) > full:
            for portfolio, close_us in self._marks.new().items():
                if self._first_us <= close_us <= self._open[-1]:
                    self._marked_us[portfolio] = close_us
            if self._settle():
                self._moved_s = now_s
            elif now_s - self._moved_s >= _SILENCE_S:
                self._pass_over()
                self._moved_s = now_s
        return len(self._open) <= full

    def _settle(self) -> bool:
        """Let go of frames that all have marked; whether there were any."""
        marked_us, before = min(self._marked_us.values(), default=0), len(self._open)
        while self._open and self._open[0] <= marked_us:
            self._open.popleft()
        return len(self._open) < before

    def _pass_over(self) -> None:
        """Wait no more for the slowest portfolio, until it marks again; for none, where there is no other."""
        slowest_us = min(self._marked_us.values(), default=0)
        silent = sorted(name for name, close_us in self._marked_us.items() if close_us == slowest_us)
        if not self._warned:
            self._warned = True
            log.warning(
                "nobody marks the frames of a replay: it goes on by a window a second",
                universe=self._universe.name,
                silent=silent or "no portfolio has marked a frame of it",
                window=self._size,
            )
        for name in silent:
            del self._marked_us[name]
        if not self._marked_us:
            self._open.clear()
        self._settle()

    def close(self) -> None:
        if self._marks is not None:
            self._marks.close()
            self._marks = None


def resumed(store: BarStore, universe: Universe, at_us: int) -> Resampler:
    """A resampler in the state that the stored base bars before `at_us` leave it in. Raises `BarStoreUnavailable`."""
    resampler = Resampler(universe)
    closed_us = bucket_before(store, universe, at_us)
    bars = store.read(universe.ids, universe.timeframe, closed_us - universe.timeframe.us + 1, at_us)
    for frame in frames(universe.name, universe.timeframe, bars):
        resampler.feed(frame)
    return resampler
