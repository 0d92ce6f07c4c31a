"""Backfill: files, or the history of venues, into the store, in slices, and the news of what it corrected."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from datetime import timedelta
from functools import partial

import numpy as np
import structlog

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.clock import Clock
from tradeloop.common.errors import Unavailable, UserError
from tradeloop.common.market import (
    EVER_US,
    GRACE,
    Instrument,
    Series,
    Timeframe,
    TimeRange,
    Universe,
    align,
    cycle_us,
    days_of,
    from_us,
    resample,
    to_us,
    whole_us,
)
from tradeloop.common.messages import BackfillCompleted, BackfillRequested, BarFrame, Message
from tradeloop.ingest.application.from_venues import Action, Found, VenueBars
from tradeloop.ingest.application.live.history import Asks
from tradeloop.ingest.application.stored import bucket_before, write
from tradeloop.ingest.domain import Facts, frames, runs
from tradeloop.ingest.ports import BarSource, Fetched, FileReport, Published

log = structlog.get_logger(__name__)

_WINDOW_BARS = 8192
"""Base bars of one instrument that are resampled at once, or those of one bucket where it is longer."""
_REVISED_AT_ONCE = 64
_RUN_FRAMES = 512
"""Frames that went out which are compared with the store at once, unless fewer follow each other."""


class Backfill:
    """A backfill under way: every file is checked as a whole before anything of one is stored.

    One that begins again after a crash reads what is stored already, and writes the rest.
    """

    def __init__(
        self,
        store: BarStore,
        source: BarSource,
        published: Published,
        clock: Clock,
        request: BackfillRequested,
        fetched: Fetched | None,
        asker: Callable[[str], Asks],
    ) -> None:
        """`asker` finds who asks a venue, and `fetched` is the record of what came from there.

        Raises `UserError` for a request that names neither a file for each instrument nor venues that there are.
        """
        universe = request.universe
        self._venues: VenueBars | None = None
        if request.range is not None:
            if request.files:
                raise UserError(f"backfill of {universe.name}: bars are from files or of a range from venues, not both")
            if fetched is None:
                raise UserError(f"backfill of {universe.name}: this ingest keeps no record of what it fetches")
            if unknown := request.anew.keys() - set(universe.ids):
                raise UserError(f"backfill of {universe.name}: it lacks {', '.join(sorted(unknown))}, to be mended")
            self._venues = VenueBars(store, fetched, asker, clock, universe, request.range, request.anew)
        elif set(request.files) != set(universe.ids):
            wrong = ", ".join(sorted(set(request.files) ^ set(universe.ids)))
            raise UserError(f"backfill of {universe.name}: give one file for each of its instruments, see {wrong}")
        if unknown := request.readings.keys() - request.files.keys():
            raise UserError(f"backfill of {universe.name}: readings name {', '.join(sorted(unknown))}, which it lacks")
        self._store, self._source, self._published = store, source, published
        self._request, self._universe = request, universe
        self._until_us = to_us(clock.now() + GRACE)
        self._first_us = self._closed_us = 0
        """Where the first bucket begins that is resampled, and the close of the last stored base frame."""
        self._place: int | None = 0
        """The place from which on it looks for frames that went out; None at the end."""
        self._corrected: dict[tuple[int, Timeframe], int] = {}
        """The revision in which each frame went out that is stored otherwise, by close and timeframe."""
        self._action: Action | None = tuple
        self._plan = self._slices()

    @property
    def finished(self) -> bool:
        return self._action is None

    @property
    def rests(self) -> bool:
        """Whether nothing is to be done until a venue has answered."""
        return self._venues is not None and self._venues.rests

    def step(self) -> Iterator[Message]:
        if self._action is not None:
            yield from self._action()
        try:
            self._action = next(self._plan, None)
        except Unavailable:
            self._plan, self._place = self._slices(), 0  # a plan that was broken off begins anew
            self._corrected.clear()
            raise

    def _slices(self) -> Iterator[Action]:
        universe, base = self._universe, self._universe.timeframe
        found = yield from (self._from_files() if self._venues is None else self._venues.slices())
        start_us, end_us = found.first_us, found.end_us
        if universe.higher_timeframes and found.bars:
            if universe.days.is_utc and any(not days_of([one.calendar]).is_utc for one in universe.instruments):
                found.remarks.append("days of the instruments differ, so those of longer bars begin at 00:00 UTC")
            cycle = cycle_us(universe.higher_timeframes)
            yield partial(self._look_around, start_us)
            window_us = max(_WINDOW_BARS * base.us // cycle, 1) * cycle
            past_us = max(self._bucket_us(end_us, one) for one in universe.higher_timeframes) + 1
            for name in universe.ids:
                for at_us in range(whole_us(self._first_us, cycle), past_us, window_us):
                    yield partial(self._write_higher, name, at_us, at_us + window_us)
        while found.bars and self._place is not None:
            yield partial(self._compare, start_us, end_us)
        revised = sorted(self._corrected.items())
        for at in range(0, len(revised), _REVISED_AT_ONCE):
            yield partial(self._revised, revised[at : at + _REVISED_AT_ONCE])
        completed = BackfillCompleted(
            request_id=self._request.request_id,
            universe=universe,
            range=TimeRange(start=from_us(start_us), end=from_us(end_us)) if found.bars else _range(self._request),
            bars=found.bars,
            gaps=found.gaps,
            left_out=found.left_out,
            remarks=tuple(found.remarks),
        )
        yield lambda: (completed,)
        log.info("backfilled", universe=universe.name, bars=completed.bars, gaps=completed.gaps, revised=len(revised))

    def _from_files(self) -> Generator[Action, None, Found]:
        """Check every file, then store the bars of all."""
        universe, base = self._universe, self._universe.timeframe
        reports = []
        grids: dict[str, set[int]] = {}
        for instrument in universe.instruments:
            reports.append((yield from self._checked(instrument, grids.setdefault(instrument.id, set()))))
        _check_grids(universe, grids)
        for instrument in universe.instruments:
            for bars in self._read(instrument):
                yield partial(write, self._store, base, align((instrument.id,), base, [bars]))
        return Found(
            to_us(min(report.first for report in reports)),
            to_us(max(report.last for report in reports)) + base.us,
            bars=sum(report.rows for report in reports),
            gaps=sum(report.gaps for report in reports),
        )

    def _read(self, instrument: Instrument) -> Generator[Series, None, FileReport]:
        path, timeframe = self._request.files[instrument.id], self._universe.timeframe
        reading = self._request.readings.get(instrument.id)
        return self._source(path, instrument, timeframe, reading=reading, until_us=self._until_us)

    def _checked(self, instrument: Instrument, grids: set[int]) -> Generator[Action, None, FileReport]:
        """Check a file; `grids` gets how long after a multiple of the timeframe its bars open."""
        blocks = self._read(instrument)
        while True:
            try:
                open_us = next(blocks)["open_us"].astype(np.int64)
            except StopIteration as end:
                report: FileReport = end.value
                return report
            grids.update(np.unique(open_us % self._universe.timeframe.us).tolist())
            yield tuple

    def _look_around(self, start_us: int) -> Iterable[Message]:
        """See which buckets the new base bars touch, as other files may hold the rest of one."""
        base = self._universe.timeframe
        self._first_us = bucket_before(self._store, self._universe, start_us)
        self._closed_us = int(self._store.read_before(self._universe.ids, base, EVER_US, 1).close_us[-1])
        return ()

    def _write_higher(self, instrument: str, start_us: int, end_us: int) -> Iterable[Message]:
        """Resample all stored base bars of the buckets that begin in a range."""
        base, higher = self._universe.timeframe, self._universe.higher_timeframes
        late_us = base.us - 1  # a bar belongs to the bucket in which it closes
        past_us = max(self._bucket_us(end_us, one) + one.us for one in higher)
        bars = self._store.read([instrument], base, start_us - late_us, past_us - late_us)
        for timeframe in higher:
            longer = resample(bars, base, timeframe, self._closed_us, self._universe.days)
            whole = (longer.open_us >= start_us) & (longer.open_us < end_us)
            write(self._store, timeframe, longer if whole.all() else longer.frames(whole))
        return ()

    def _bucket_us(self, close_us: int, timeframe: Timeframe) -> int:
        return self._universe.days.bucket_us(close_us, timeframe.us)

    def _compare(self, start_us: int, end_us: int) -> Iterable[Message]:
        """Find frames of the backfilled range that went out otherwise than they are stored now."""
        assert self._place is not None
        sent, place = self._published.frames(self._universe, self._place)
        for timeframe in (self._universe.timeframe, *self._universe.higher_timeframes):
            touched = {
                (to_us(one.open_time), one.revision): one
                for one in sent
                if one.timeframe is timeframe and to_us(one.open_time) < end_us and start_us < to_us(one.close_time)
            }
            for first_us, last_us in runs([open_us for open_us, _ in touched], timeframe, _RUN_FRAMES):
                stored = self._frames(timeframe, first_us, last_us + 1)
                for (open_us, revision), one in sorted(touched.items()):
                    if (now := stored.get(open_us)) is not None and first_us <= open_us <= last_us:
                        key = open_us + timeframe.us, timeframe
                        if now.bars_and_gaps == one.bars_and_gaps:
                            self._corrected.pop(key, None)
                        else:
                            self._corrected[key] = revision
        self._place = place
        return ()

    def _revised(self, corrected: Iterable[tuple[tuple[int, Timeframe], int]]) -> Iterator[Message]:
        for (close_us, timeframe), revision in corrected:
            open_us = close_us - timeframe.us
            frame = self._frames(timeframe, open_us, open_us + 1)[open_us]
            yield frame.model_copy(update={"revision": revision + 1})

    def _frames(self, timeframe: Timeframe, start_us: int, end_us: int) -> dict[int, BarFrame]:
        """Stored frames by their open."""
        bars, facts = self._store.read(self._universe.ids, timeframe, start_us, end_us), Facts(self._universe)
        return {to_us(one.open_time): one for one in frames(self._universe.name, timeframe, bars, facts)}


def _range(request: BackfillRequested) -> TimeRange:
    """The range that venues had no bars of."""
    assert request.range is not None
    return request.range


def _check_grids(universe: Universe, grids: Mapping[str, set[int]]) -> None:
    """Raise `UserError` where two instruments never have a bar at the same time: no decision would see both."""
    first, *others = universe.ids
    for other in others:
        if not grids[first] & grids[other]:
            after = [timedelta(microseconds=min(grids[one])) for one in (first, other)]
            raise UserError(
                f"backfill of {universe.name}: bars of {first} open {after[0]} after a whole {universe.timeframe}, "
                f"those of {other} {after[1]}, so they never share an open time: put them in two universes"
            )
