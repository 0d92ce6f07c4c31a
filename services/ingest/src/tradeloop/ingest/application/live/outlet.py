"""`Outlet`: frames and corrections of a live feed into the store, then onto the bus."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import structlog
from pydantic import ValidationError

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.market import (
    BAR_COLUMNS,
    Bar,
    BarArrays,
    Series,
    Timeframe,
    Universe,
    bucket_us,
    extra_names,
    from_us,
    resample,
    to_us,
)
from tradeloop.common.messages import BarFrame, Message
from tradeloop.ingest.application.announced import Announced
from tradeloop.ingest.application.live.assembler import Ready
from tradeloop.ingest.application.replay import resumed
from tradeloop.ingest.application.stored import Bars, arrays, write
from tradeloop.ingest.domain import Facts, Resampler, additions, corrections, frames
from tradeloop.ingest.ports import Published

log = structlog.get_logger(__name__)

_RECENT = 256
"""Base frames that are looked at when a feed begins: what was stored and did not go out is among them."""
_REMEMBERED = 4096
"""Frames whose revisions are kept in memory; those of older ones are looked up."""


class Outlet:
    """The findings of a feed on their way out: stored first, then published, each once.

    Whatever raises leaves it as it was, but for what is stored already: storing twice changes nothing.
    """

    def __init__(
        self, universe: Universe, store: BarStore, published: Published, count: Callable[[str, int], None]
    ) -> None:
        self._universe, self._base, self._store, self._published = universe, universe.timeframe, store, published
        self._facts = Facts(universe)
        self._announced = Announced(universe, lambda event, _, number: count(event, number))
        self.newest_us: int | None = None
        """The open of the newest base frame that went out."""
        self.first_us = 0
        """Frames that open before it never were live: their bars are stored, and nothing goes out."""
        self._begins = False
        """Whether the next frame begins a run: what is stored before it may never have gone out."""
        self._resampler: Resampler | None = None
        self._ready: list[Ready] = []
        self._wrong: dict[str, dict[int, Bar]] = {}
        """Bars to be stored whose frames are gone, by instrument and open."""
        self._revise: dict[tuple[Timeframe, int], None] = {}
        """Frames to be sent again, by their open, once their bars are stored."""
        self._revisions: dict[tuple[Timeframe, int], int] = {}
        """The revision in which each frame went out last."""
        self._due: deque[BarFrame] = deque()

    def begin(self) -> int | None:
        """See what went out, and find what is stored otherwise; gives the open of the newest base frame, if any.

        May raise `Unavailable`.
        """
        recent = self._published.recent(self._universe, _RECENT)
        sent: dict[tuple[Timeframe, int], BarFrame] = {}
        for frame in recent:
            key = frame.timeframe, to_us(frame.open_time)
            if key not in sent or sent[key].revision <= frame.revision:
                sent[key] = frame
        opens = [open_us for timeframe, open_us in sent if timeframe is self._base]
        revise: dict[tuple[Timeframe, int], None] = {}
        for timeframe in (self._base, *self._universe.higher_timeframes) if opens else ():
            of_it = {open_us: one for (its, open_us), one in sent.items() if its is timeframe}
            if not of_it:
                continue
            for open_us, now in self._stored(timeframe, min(of_it), max(of_it) + 1).items():
                one = of_it.get(open_us)
                if (one is None and timeframe is self._base) or (
                    one is not None and now.bars_and_gaps != one.bars_and_gaps
                ):
                    revise[timeframe, open_us] = None
        self._revisions = {key: one.revision for key, one in sent.items()}
        self._revise = revise
        self._resampler = None
        self.newest_us = max(opens, default=None)
        if self.newest_us is not None:
            self._announced.behind(self.newest_us + self._base.us)
        self.first_us = min(opens, default=0)
        return self.newest_us

    def begin_at(self, first_us: int) -> None:
        """Begin a run of frames: those that open from then on are live."""
        self.first_us, self._begins = first_us, True

    def room(self, frames_at_once: int) -> bool:
        """Whether another frame may be put."""
        return len(self._ready) < frames_at_once and len(self._due) < frames_at_once

    def put(self, ready: Ready) -> None:
        """Take in a frame, to be stored and sent."""
        self._ready.append(ready)

    def late(self, bars: Iterable[tuple[int, Bar]]) -> None:
        """Take in bars whose frames are gone."""
        for open_us, bar in bars:
            self._wrong.setdefault(bar.instrument, {})[open_us] = bar

    def compare(self, instrument: str, bars: Bars) -> int:
        """Find the stored bars that a history has otherwise, or alone; how many. May raise `Unavailable`."""
        if not bars:
            return 0
        ours = arrays((instrument,), self._base, {instrument: bars})
        stored = self._store.read((instrument,), self._base, int(ours.open_us[0]), int(ours.open_us[-1]) + 1)
        differ = [*bars_in(corrections(ours, stored))[instrument], *bars_in(additions(ours, stored))[instrument]]
        if differ:
            log.error(
                "the history has bars otherwise than they went out: it is believed",
                universe=self._universe.name,
                instrument=instrument,
                times=[from_us(open_us).isoformat() for open_us in sorted(differ)[:4]],
                bars=len(differ),
            )
            self.late((open_us, bars[open_us]) for open_us in differ)
        return len(differ)

    def store(self) -> bool:
        """Store the frames, and make them due, with the higher ones that close. May raise `Unavailable`."""
        if not self._ready:
            return False
        by_instrument: dict[str, dict[int, Bar]] = {}
        for ready in self._ready:
            for name, bar in ready.bars.items():
                by_instrument.setdefault(name, {})[ready.open_us] = bar
        ids = tuple(by_instrument)
        write(self._store, self._base, arrays(ids, self._base, by_instrument))
        resampler, self._resampler = self._resampler, None  # should anything fail
        if resampler is None:
            resampler = resumed(self._store, self._universe, self._ready[0].open_us)
        due: list[BarFrame] = []
        higher: dict[Timeframe, dict[str, dict[int, Bar]]] = {}
        for place, ready in enumerate(self._ready):
            base = self._frame(ready, self._begins and not place)
            for frame in resampler.feed(base):
                open_us = to_us(frame.open_time)
                for bar in frame.bars:
                    higher.setdefault(frame.timeframe, {}).setdefault(bar.instrument, {})[open_us] = bar
                if (frame.timeframe, open_us) not in self._revisions:
                    due.append(frame.model_copy(update={"live": True}))
            due.append(base)
        for timeframe, of_it in higher.items():
            write(self._store, timeframe, arrays(tuple(of_it), timeframe, of_it))
        self._due.extend(due)
        self._resampler, self._ready, self._begins = resampler, [], False
        return True

    def correct(self) -> int:
        """Store what was wrong or late, and make the revisions due; how many. May raise `Unavailable`."""
        if self._wrong:
            opens = sorted({open_us for bars in self._wrong.values() for open_us in bars})
            write(self._store, self._base, arrays(tuple(self._wrong), self._base, self._wrong))
            self._revise |= {(self._base, open_us): None for open_us in opens if open_us >= self.first_us}
            self._revise |= self._write_higher(opens)
            self._wrong = {}
            self._resampler = None  # it has summed up what was wrong
        if not self._revise:
            return 0
        due = []
        for timeframe, open_us in sorted(self._revise, key=lambda key: (key[1] + key[0].us, key[0].us)):
            frame = self._stored(timeframe, open_us, open_us + 1).get(open_us)
            if frame is not None:
                revision = max(self._revision(timeframe, open_us), 0) + 1
                due.append(frame.model_copy(update={"revision": revision, "live": True}))
        self._due.extend(due)
        for frame in due:
            self._revisions[frame.timeframe, to_us(frame.open_time)] = frame.revision
        self._revise = {}
        return len(due)

    def send(self) -> Iterator[Message]:
        """Publish what is stored, and events of instruments. What is not consumed comes again."""
        while self._due:
            frame = self._due[0]
            yield from self._announced.before(frame)
            yield frame
            self._announced.sent(frame)
            self._due.popleft()
            open_us = to_us(frame.open_time)
            key = frame.timeframe, open_us
            self._revisions[key] = max(self._revisions.get(key, 0), frame.revision)
            if len(self._revisions) > _REMEMBERED:
                del self._revisions[next(iter(self._revisions))]
            if frame.timeframe is self._base and not frame.revision:
                self.newest_us = open_us

    def _frame(self, ready: Ready, begins: bool) -> BarFrame:
        ids = self._universe.ids
        open_time = from_us(ready.open_us)
        told = self._facts.at(ready.open_us, ready.open_us + self._base.us)
        return BarFrame(
            universe=self._universe.name,
            timeframe=self._base,
            open_time=open_time,
            close_time=open_time + self._base.delta,
            bars=tuple(ready.bars[name] for name in ids if name in ready.bars),
            missing=tuple(name for name in ids if name not in ready.bars and name not in told.away),
            live=True,
            catches_up=ready.catches_up,
            begins=begins,
            **told.fields,
        )

    def _stored(self, timeframe: Timeframe, start_us: int, end_us: int) -> dict[int, BarFrame]:
        """Stored frames by their open."""
        bars = self._store.read(self._universe.ids, timeframe, start_us, end_us)
        return {to_us(one.open_time): one for one in frames(self._universe.name, timeframe, bars, self._facts)}

    def _write_higher(self, opens: Sequence[int]) -> dict[tuple[Timeframe, int], None]:
        """Sum up the buckets anew that hold these base bars, as far as they are closed; gives those that went out."""
        newest_us = -1 if self.newest_us is None else self.newest_us
        last_us = max(opens[-1], newest_us)
        if not self._universe.higher_timeframes:
            return {}
        days, higher = self._universe.days, self._universe.higher_timeframes
        went_out: dict[tuple[Timeframe, int], None] = {}
        touched = {
            timeframe: {bucket_us(at_us, self._base, timeframe, days) for at_us in opens} for timeframe in higher
        }
        start_us = min(min(buckets) for buckets in touched.values()) - self._base.us + 1
        past_us = max(max(buckets) + timeframe.us for timeframe, buckets in touched.items())
        bars = self._store.read(self._universe.ids, self._base, start_us, past_us)
        for timeframe in higher:
            summed = resample(bars, self._base, timeframe, last_us + self._base.us, days)
            summed = summed.frames(summed.open_us >= min(touched[timeframe]))
            summed = summed.frames(summed.open_us <= max(touched[timeframe]))
            write(self._store, timeframe, summed)
            for open_us in summed.open_us.tolist():
                if (
                    open_us in touched[timeframe]
                    and open_us >= self.first_us
                    and open_us + timeframe.us <= newest_us + self._base.us
                ):
                    went_out[timeframe, open_us] = None
        return went_out

    def _revision(self, timeframe: Timeframe, open_us: int) -> int:
        """The revision in which a frame went out last; -1 where it never did."""
        known = self._revisions.get((timeframe, open_us))
        return self._published.revision(self._universe, timeframe, open_us) if known is None else known


def bars_in(bars: BarArrays) -> dict[str, dict[int, Bar]]:
    """Bars out of arrays, by instrument and open."""
    found: dict[str, dict[int, Bar]] = {name: {} for name in bars.instruments}
    for frame in frames("none", Timeframe.M1, bars):
        for bar in frame.bars:
            found[bar.instrument][to_us(frame.open_time)] = bar
    return found


def bars_of(instrument: str, series: Series) -> tuple[dict[int, Bar], int]:
    """The bars of a source's answer by their open, and how many were left out, since no bar can be so."""
    found: dict[int, Bar] = {}
    unsound = 0
    columns = {name: series[name].tolist() for name in BAR_COLUMNS if name in series}
    further = {name: series[name].tolist() for name in extra_names([series])}
    for row, open_us in enumerate(series["open_us"].tolist()):
        values = {name: column[row] for name, column in columns.items()}
        if (volume := values.get("volume")) is not None and math.isnan(volume):
            values["volume"] = None
        try:
            extra = {name: column[row] for name, column in further.items() if not math.isnan(column[row])}
            bar = Bar(instrument=instrument, extra=extra, **values)
        except ValidationError:
            unsound += 1
            continue
        if bar.low <= min(bar.open, bar.close) and max(bar.open, bar.close) <= bar.high:
            found[open_us] = bar
        else:
            unsound += 1
    return found, unsound
