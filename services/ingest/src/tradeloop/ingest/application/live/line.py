"""`Line`: the bars of one instrument, from what streams and from what its source's history says. No I/O, no clock.

A bar counts as closed when the venue says so and nothing speaks against it, or when the history holds it. Against it
speaks: it was called closed before its close by the venue's clock; a bar before it is missing; the connection broke off
or stalled while it grew; something else was said of it after that. Such a bar is in doubt, and the history decides.
Silence is a stall only in a stream that tells how bars grow: see `Manner`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from tradeloop.common.market import EVER_US, Bar, Instrument, Timeframe
from tradeloop.ingest.application.live.due import is_due, is_known, next_due_us
from tradeloop.ingest.ports import StreamedBar

_SILENT = 16
"""After so many bars that were told of once, and rightly, a stream is taken for one that does not tell how they grow.
"""
_REMEMBERED = 8
"""Closed bars whose values are kept, to know what comes again."""
_INTERRUPTIONS = 5
"""How often the wait for the history of a hole begins again with the stream."""
_HELD = 256
"""Streamed bars that wait for the history of what came before them: without them a history that takes longer to answer
than a bar to close would be asked for every bar."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a line waits for what, in microseconds of the venue's clock."""

    confirm_us: int
    """After the close of a bar that is in doubt: before its history is asked for."""
    poll_us: int
    """After the close of a bar that the stream does not close: the same."""
    stall_us: int
    """Between two updates of growing bars: a longer silence is a stall."""
    grace_us: int
    """After its close: how long a frame waits for a bar, and how long a history without it is not believed."""
    fill_us: int
    """Since the last progress: how long a frame waits for the history of a hole."""
    ahead_bars: int
    """How many bars a line may be ahead of the frames that went out."""
    always_confirm: bool
    """Whether every bar is in doubt."""
    flow_us: int = 0
    """After its close: how long a frame waits for the last trades, order books and news, where they are asked for."""


class Manner:
    """How the stream of a venue tells of bars: closed ones alone, or also how they grow. All of its lines learn it
    together, so that it is known after some bars, and not after so many of each instrument."""

    def __init__(self) -> None:
        self._only_closed, self._once = False, 0

    def begins(self, only_closed: bool) -> None:
        """The stream begins, and says whether it tells of closed bars alone; where it does not, that is learned."""
        self._only_closed = only_closed

    def grew(self) -> None:
        """A bar came that had not closed."""
        self._only_closed, self._once = False, 0

    def confirmed(self, rightly: bool) -> None:
        """The history has a bar that the stream called closed; so, or otherwise."""
        self._once = self._once + 1 if rightly else 0

    @property
    def tells_growth(self) -> bool:
        """Whether silence while a bar grows may be a stall: it is none where nothing else was to be expected."""
        return not self._only_closed and self._once < _SILENT


class Line:
    """One instrument's bars on their way into frames. Times are of the venue's clock, in microseconds."""

    def __init__(
        self,
        instrument: Instrument,
        timeframe: Timeframe,
        pace: Pace,
        manner: Manner,
        start_us: int,
        phase_us: int,
        now_us: int,
    ) -> None:
        """No bar that opens before `start_us` is asked for. Bars open `phase_us` after a multiple of their length.

        `manner` is that of the venue's stream, for all lines of it.
        """
        self.instrument, self._timeframe, self._length_us, self._pace = instrument, timeframe, timeframe.us, pace
        self._manner = manner
        self.settled_us = start_us
        """Every bar that opens before is known, or does not exist."""
        self.closed: dict[int, Bar] = {}
        """Closed bars by their open, until they are taken."""
        self.fresh: list[int] = []
        """Opens of bars that closed since somebody looked."""
        self.recheck_us: int | None = None
        """Since when stored bars are to be compared with the history at once; None where nothing speaks for it."""
        self.disagreed = self.doubts = self.filled = 0
        """Bars that the venue called closed and its history has otherwise; reasons for doubt; bars that only the
        history gave."""
        self._growing: dict[int, StreamedBar] = {}
        self._known: OrderedDict[int, tuple[float | None, ...]] = OrderedDict()
        self._phase_us = phase_us
        self._doubt_us = self._stalled_us = start_us
        """Bars that open before it count only through the history; those before the second after a silence, which is
        no stall where the stream turns out to tell of closed bars alone."""
        self._hole_us = now_us - timeframe.us + 1
        """A bar that opens before it fills a hole: frames wait longer for that."""
        self._moved_us = self._broke_us = now_us
        """When the hole last got smaller, or the stream changed; and when the hole began."""
        self._heard_us: int | None = None
        """When the stream last spoke of a bar."""
        self._asked = False
        """Whether the history was asked since the stream began."""

    @property
    def venue(self) -> str:
        return self.instrument.id.partition(":")[0]

    def interrupted(self, now_us: int, *, begins: bool = False) -> None:
        """The stream begins, breaks off or begins again: what grows now, and what closed meanwhile, is in doubt.

        Where it begins, both are a hole: only the history has all of the bar that grows.
        """
        self._doubt(now_us + 1)
        if self.settled_us >= self._hole_us:
            self._broke_us = now_us
        # A stream that comes and goes all the time does not hold frames up for ever.
        self._moved_us = max(self._moved_us, min(now_us, self._broke_us + _INTERRUPTIONS * self._pace.fill_us))
        self._hole_us = max(self._hole_us, now_us + 1 - (0 if begins else self._length_us))
        self._asked, self._heard_us = False, now_us

    def take(self, bar: StreamedBar, now_us: int, heard_us: int) -> bool:
        """Take in what the stream said, which came at `heard_us`. Returns whether it can be a bar at all."""
        open_us, close_us = bar.open_us, bar.open_us + self._length_us
        if not self._sound(bar, heard_us):
            self._doubt(heard_us + 1)
            return False
        self._notice_stall(close_us, heard_us)
        if open_us < self.settled_us:
            if self._known.get(open_us) != _values(bar):
                # Maybe a correction; maybe an update that was overtaken on its way; maybe the bar was not closed.
                self.recheck_us = min(EVER_US if self.recheck_us is None else self.recheck_us, open_us)
            return True
        before = self._growing.get(open_us)
        if bar.closed is not True:
            self._manner.grew()
        if before is not None and before.closed:
            if _values(before) != _values(bar):
                self._doubt(close_us)  # it was closed, and still it changes
            return True
        self._growing[open_us] = bar
        if len(self._growing) > _HELD:
            del self._growing[min(self._growing)]
        if bar.closed and heard_us < close_us:
            self._doubt(close_us)
        self._accept(now_us)
        return True

    def settle(self, bars: Mapping[int, Bar], start_us: int, until_us: int, now_us: int) -> bool:
        """Take in what the history has of `[start_us, until_us)`; whether it was news.

        What the venue's clock shows to be open is left out, whoever calls it closed. That a bar does not exist is
        believed only when the grace for it is over: a history may lag behind its stream.
        """
        self._asked = True
        until_us = self._believed(bars, min(until_us, now_us - self._length_us + 1), now_us)
        if start_us > self.settled_us or until_us <= self.settled_us:
            return False
        for open_us, bar in sorted(bars.items()):
            if self.settled_us <= open_us < until_us:
                streamed = self._growing.get(open_us)
                if streamed is not None and streamed.closed:
                    rightly = _values(streamed) == _of(bar)
                    self._manner.confirmed(rightly)
                    self.disagreed += not rightly
                self.filled += streamed is None
                self._phase_us = open_us % self._length_us
                self._close(open_us, bar)
        self.settled_us, self._moved_us = until_us, now_us
        self._growing = {open_us: bar for open_us, bar in self._growing.items() if open_us >= until_us}
        self._accept(now_us)
        return True

    def asks(self, now_us: int, framed_us: int, waited_us: int | None) -> tuple[int, int] | None:
        """The range that the history is to be asked for now, if any.

        Frames went out up to `framed_us`; the one that opens at `waited_us` waits.
        """
        pace, length_us = self._pace, self._length_us
        ahead_us = framed_us + pace.ahead_bars * length_us
        end_us = min(now_us - length_us + 1, ahead_us)
        if end_us <= self.settled_us:
            return None
        if not self._asked and self._hole_us > self.settled_us:
            return self.settled_us, end_us
        due_us = self._first_due_us()
        if due_us is None:  # nobody knows: looked for once in a bar's time
            due_us = self.settled_us + length_us if waited_us is None else max(waited_us, self.settled_us)
        growing = [open_us for open_us in self._growing if open_us >= self.settled_us]
        first_us = min([due_us, *growing])
        doubted = pace.always_confirm or first_us < self._doubted_us or any(one > first_us for one in growing)
        wait_us = pace.confirm_us if doubted else pace.poll_us
        return (self.settled_us, end_us) if now_us >= first_us + length_us + wait_us else None

    def holds_up(self, open_us: int, now_us: int) -> bool:
        """Whether a frame waits for this line's bar."""
        if self.settled_us > open_us:
            return False
        if open_us < self._hole_us or not self._asked:
            return now_us < self._moved_us + self._pace.fill_us
        if now_us >= open_us + self._length_us + self._pace.grace_us:
            return False
        return self._due(open_us) or open_us in self._growing

    def stale_since_us(self, now_us: int) -> int | None:
        """Since when an expected bar is overdue; None where none is, or the calendar cannot tell."""
        due_us = self._first_due_us()
        if due_us is None:
            return None
        overdue_us = due_us + self._length_us + self._pace.grace_us
        return overdue_us if now_us > overdue_us else None

    def offer(self, open_us: int, bar: Bar) -> None:
        """A closed bar that is stored already and that no frame holds."""
        if open_us >= self.settled_us:
            self._close(open_us, bar)

    def _due(self, open_us: int) -> bool:
        """Whether a bar that opens then may be expected. When sessions are, only the venue knows."""
        return is_due(self.instrument.calendar, self._timeframe, open_us)

    def _first_due_us(self) -> int | None:
        """The open of the first bar that is expected and not settled; None where the calendar cannot tell."""
        if not is_known(self.instrument.calendar):
            return None
        return next_due_us(self.instrument.calendar, self._timeframe, self._on_grid(self.settled_us))

    def _on_grid(self, time_us: int) -> int:
        """The first open of the grid from a time on."""
        return time_us + (self._phase_us - time_us) % self._length_us

    def _believed(self, bars: Mapping[int, Bar], until_us: int, now_us: int) -> int:
        """How far a history is believed that holds these bars."""
        for open_us in sorted(self._growing):
            waits = now_us < open_us + self._length_us + self._pace.fill_us
            if self.settled_us <= open_us < until_us and open_us not in bars and waits:
                until_us = open_us  # the stream has seen it: the history will
        at_us = self._on_grid(max(self.settled_us, now_us - self._length_us - self._pace.grace_us + 1))
        while at_us < until_us and (at_us in bars or not self._due(at_us)):
            at_us += self._length_us
        return min(until_us, at_us)

    def _accept(self, now_us: int) -> None:
        """Let the bars count that the venue closed, as far as nothing speaks against it."""
        while not self._pace.always_confirm and len(self.closed) < self._pace.ahead_bars:
            first_us = min((one for one in self._growing if one >= self.settled_us), default=None)
            if first_us is None:
                return
            due_us, bar, close_us = self._first_due_us(), self._growing[first_us], first_us + self._length_us
            if due_us is None and self._known:  # in a session, nobody knows what lies between bars
                due_us = next(reversed(self._known)) + self._length_us
            follows = due_us is not None and first_us <= due_us
            if not follows or not bar.closed or first_us < self._doubted_us or now_us < close_us:
                return
            del self._growing[first_us]
            self._close(first_us, _bar(bar))
            self.settled_us = close_us

    def _close(self, open_us: int, bar: Bar) -> None:
        self.closed[open_us] = bar
        self.fresh.append(open_us)
        self._known[open_us] = _of(bar)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def _notice_stall(self, close_us: int, heard_us: int) -> None:
        before_us, self._heard_us = self._heard_us, heard_us
        if before_us is None or not self._manner.tells_growth or heard_us - before_us <= self._pace.stall_us:
            return
        self.doubts += close_us > self._doubted_us
        self._stalled_us = max(self._stalled_us, close_us)

    @property
    def _doubted_us(self) -> int:
        return max(self._doubt_us, self._stalled_us) if self._manner.tells_growth else self._doubt_us

    def _doubt(self, until_us: int) -> None:
        if until_us > self._doubt_us:
            self._doubt_us = until_us
            self.doubts += 1

    def _sound(self, bar: StreamedBar, heard_us: int) -> bool:
        # NaN is in no order: it fails each of these.
        if not (0.0 < bar.low <= bar.open <= bar.high < math.inf and bar.low <= bar.close <= bar.high):
            return False
        if bar.volume is not None and not 0.0 <= bar.volume < math.inf:
            return False
        on_grid = self.instrument.calendar != "continuous" or bar.open_us == self._on_grid(bar.open_us)
        return on_grid and bar.open_us <= heard_us + self._length_us


def _of(bar: Bar) -> tuple[float | None, ...]:
    return bar.open, bar.high, bar.low, bar.close, bar.volume


def _values(bar: StreamedBar) -> tuple[float | None, ...]:
    return bar.open, bar.high, bar.low, bar.close, bar.volume


def _bar(bar: StreamedBar) -> Bar:
    return Bar(instrument=bar.instrument, open=bar.open, high=bar.high, low=bar.low, close=bar.close, volume=bar.volume)
