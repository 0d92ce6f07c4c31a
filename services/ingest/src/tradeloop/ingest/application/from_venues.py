"""Bars of a backfill from venues: asked for beside the questions of live feeds, which go first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import structlog

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.common.market import EVER_US, Instrument, Series, TimeRange, Universe, align, from_us, to_us
from tradeloop.common.market.calendars import gaps
from tradeloop.common.market.events import resting
from tradeloop.common.messages import Message
from tradeloop.ingest.application.fetch import ATTEMPTS, missing, pause_s, sound
from tradeloop.ingest.application.live.history import Answer, Asks, Question
from tradeloop.ingest.application.live.renamed import RenamedAsker, Symbols
from tradeloop.ingest.application.repair import Range, around, taken, together
from tradeloop.ingest.application.stored import write
from tradeloop.ingest.ports import Fetched, FetchedSpan, SourceUnavailable

log = structlog.get_logger(__name__)

_COUNTED_BARS = 8192
_REMARKS = 5
_MENDED = 500
"""Lines about ranges that were mended."""

Action = Callable[[], Iterable[Message]]
"""A slice that is done again as it is when a store was away."""


class VenueGivenUp(Exception):
    """A venue did not answer in many attempts. Asking for the same backfill later is safe: it goes on there."""


@dataclass(slots=True)
class Found:
    """The bars that are stored now in the range of a backfill."""

    first_us: int = EVER_US
    """Open time of the first one."""
    end_us: int = -EVER_US
    """Close of the last one."""
    bars: int = 0
    gaps: int = 0
    left_out: int = 0
    """Bars that came and were none."""
    remarks: list[str] = field(default_factory=list)


class VenueBars:
    """Fetches the bars of a universe and a range that were not fetched before, each instrument from its venue."""

    def __init__(
        self,
        store: BarStore,
        fetched: Fetched,
        asker: Callable[[str], Asks],
        clock: Clock,
        universe: Universe,
        span: TimeRange,
        anew: Mapping[str, Sequence[TimeRange]],
    ) -> None:
        """`asker` finds who asks a venue, by its name. It raises `UserError` for a venue that there is not.

        With `anew`, these ranges alone are asked for, and mended.
        """
        self._anew = {name: [(to_us(one.start), to_us(one.end)) for one in ranges] for name, ranges in anew.items()}
        self._store, self._fetched, self._clock = store, fetched, clock
        self._universe, self._span = universe, span
        symbols = Symbols(universe)
        self._askers: dict[str, Asks] = {
            name: RenamedAsker(asker(_venue(name)), symbols, lambda: to_us(clock.now())) for name in universe.ids
        }
        self.rests = False
        """Whether nothing is to be done until a venue has answered."""

    def slices(self) -> Generator[Action, None, Found]:
        """Fetch, then count. Raises `UserError` for what a venue refuses, and `VenueGivenUp`."""
        found = Found()
        for instrument in self._universe.instruments:
            calendar = yield from self._one(instrument, found)
            yield from self._counted(with_calendar(instrument, calendar), found)
        return found

    def _one(self, instrument: Instrument, found: Found) -> Generator[Action, None, str]:
        """Fetch the bars of one instrument; the venue's calendar of it."""
        asker, timeframe, venue = self._askers[instrument.id], self._universe.timeframe, _venue(instrument.id)
        start_us = to_us(self._span.start)
        clock = yield from self._asked(asker, Question("clock", deque(), venue))
        now_us = to_us(self._clock.now()) + clock.offset_us
        if start_us >= now_us:
            raise UserError(
                f"{instrument.id}: the range begins at {self._span.start.isoformat()}, and at the venue it is "
                f"{from_us(now_us).isoformat(timespec='seconds')}: give an earlier start"
            )
        told = yield from self._asked(asker, Question("terms", deque(), venue, instrument))
        assert told.terms is not None
        if told.terms.id != instrument.id:
            raise UserError(f"{instrument.id}: its venue calls it {told.terms.id}: ask for that")
        yield partial(self._keep_terms, told.terms)
        if self._anew:
            yield from self._mended(asker, instrument, found)
            return told.terms.calendar
        parts = missing(self._fetched.spans(venue, instrument.id, timeframe), start_us, self._end_us(now_us))
        for at_us, last_us in parts:
            while at_us < last_us:
                answer = yield from self._asked(
                    asker, Question("backfill", deque(), venue, instrument, timeframe, at_us, last_us)
                )
                if answer.until_us <= at_us:
                    break  # the rest has not closed yet
                yield partial(self._keep, instrument, answer, at_us, found)
                at_us = answer.until_us
        return told.terms.calendar

    def _mended(self, asker: Asks, instrument: Instrument, found: Found) -> Generator[Action, None, None]:
        """Ask for the ranges to be mended, each with bars beside it."""
        timeframe, ranges = self._universe.timeframe, sorted(self._anew.get(instrument.id, ()))
        for group in together(ranges, timeframe):
            first_us, past_us = around(group, timeframe)
            parts = list[Series]()
            while first_us < past_us:
                answer = yield from self._asked(
                    asker,
                    Question("backfill", deque(), _venue(instrument.id), instrument, timeframe, first_us, past_us),
                )
                if answer.bars is not None:
                    parts.append(answer.bars)
                if answer.until_us <= first_us:
                    break  # the rest has not closed yet
                first_us = answer.until_us
            for within in group:
                yield partial(self._mend, instrument, within, parts, ranges, found)

    def _mend(
        self, instrument: Instrument, within: Range, parts: Sequence[Series], ranges: Sequence[Range], found: Found
    ) -> Iterable[Message]:
        mended = taken(self._store, instrument.id, self._universe.timeframe, within, parts, ranges)
        lines = mended.lines(self._universe.timeframe)
        for line in lines:
            log.info("a repair", instrument=instrument.id, what=line)
        found.left_out += len(mended.left_out)
        room = max(_MENDED - len(found.remarks), 0)
        found.remarks += [f"{instrument.id}, {line}" for line in lines[:room]]
        if 0 < room < len(lines):
            found.remarks.append("and more: see ingest's log")
        return ()

    def _end_us(self, now_us: int) -> int:
        return min(to_us(self._span.end), now_us)

    def _asked(self, asker: Asks, question: Question) -> Generator[Action, None, Answer]:
        """The answer to a question, which is asked again while the venue is away."""
        failures = 0
        while True:
            into: deque[Answer] = deque()
            asker.ask(replace(question, into=into))
            yield from self._resting(lambda into=into: bool(into))  # type: ignore[misc]
            answer = into.popleft()
            if answer.error is None:
                return answer
            if not isinstance(answer.error, SourceUnavailable):
                raise answer.error
            failures += 1
            if failures >= ATTEMPTS:
                raise VenueGivenUp(
                    f"backfill of {self._universe.name}: {question.venue} did not answer in {failures} attempts: "
                    f"{answer.error}: ask for it again later, it goes on where it was"
                ) from answer.error
            again_s = pause_s(failures, answer.error)
            log.warning(
                "a backfill waits for its venue",
                universe=self._universe.name,
                venue=question.venue,
                wait_s=round(again_s, 1),
                error=str(answer.error),
            )
            due_s = self._clock.monotonic() + again_s
            yield from self._resting(lambda due_s=due_s: self._clock.monotonic() >= due_s)  # type: ignore[misc]

    def _resting(self, over: Callable[[], bool]) -> Generator[Action, None, None]:
        while not over():
            self.rests = True
            yield tuple
        self.rests = False

    def _keep_terms(self, terms: Instrument) -> Iterable[Message]:
        self._fetched.add_terms(terms)
        return ()

    def _keep(self, instrument: Instrument, answer: Answer, at_us: int, found: Found) -> Iterable[Message]:
        """Store bars, then record them: whoever is killed in between fetches them again, and stores the same."""
        timeframe, left_out = self._universe.timeframe, tuple[str, ...]()
        if answer.bars is not None:
            kept, left_out = sound(answer.bars)
            if len(kept["open_us"]):
                write(self._store, timeframe, align((instrument.id,), timeframe, [kept]))
        span = FetchedSpan(at_us, answer.until_us, len(left_out))
        self._fetched.add(_venue(instrument.id), instrument.id, timeframe, span)
        found.left_out += len(left_out)
        for line in left_out:
            log.warning("a bar that is none was left out", instrument=instrument.id, bar=line)
        found.remarks += [f"{instrument.id}: left out {line}" for line in left_out[: _REMARKS - len(found.remarks)]]
        return ()

    def _counted(self, instrument: Instrument, found: Found) -> Generator[Action, None, None]:
        timeframe, window_us = self._universe.timeframe, _COUNTED_BARS * self._universe.timeframe.us
        spans = self._fetched.spans(_venue(instrument.id), instrument.id, timeframe)
        start_us = max(to_us(self._span.start), spans[0].start_us) if spans else EVER_US
        end_us = min(to_us(self._span.end), spans[-1].end_us) if spans else -EVER_US
        if self._anew:
            start_us, end_us = to_us(self._span.start), to_us(self._span.end)
        before = np.empty(0, np.int64)
        for at_us in range(start_us, end_us, window_us):
            open_us = self._store.read([instrument.id], timeframe, at_us, min(at_us + window_us, end_us)).open_us
            if len(open_us):
                found.bars += len(open_us)
                resting_us = resting(self._universe.events.get(instrument.id, ()))
                joined_us = np.concatenate([before, open_us])
                found.gaps += len(gaps(joined_us, timeframe, instrument.calendar, resting_us))
                found.first_us = min(found.first_us, int(open_us[0]))
                found.end_us = max(found.end_us, int(open_us[-1]) + timeframe.us)
                before = open_us[-1:]
            yield tuple


def with_calendar(instrument: Instrument, calendar: str) -> Instrument:
    """The instrument with the venue's calendar, unless it has one of its own."""
    own = instrument.calendar != "continuous"
    return instrument if own else instrument.model_copy(update={"calendar": calendar})


def _venue(instrument: str) -> str:
    return instrument.partition(":")[0]
