"""`Assembler`: the bars of a universe's lines into frames, in the order of time. No I/O, no clock."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tradeloop.common.market import Bar, Timeframe
from tradeloop.ingest.application.live.line import Line
from tradeloop.ingest.domain import Facts


@dataclass(frozen=True, slots=True)
class Ready:
    """A frame that may go out."""

    open_us: int
    bars: Mapping[str, Bar]
    """The closed bars by instrument; at least one."""
    catches_up: bool
    """Whether newer bars had closed by then."""


class Assembler:
    """Frames go out when all lines have settled them, or when grace ends."""

    def __init__(
        self, timeframe: Timeframe, lines: Sequence[Line], next_us: int, wait_us: int = 0, facts: Facts | None = None
    ) -> None:
        """No frame goes out sooner than `wait_us` after its close, nor waits for what the `facts` have away then."""
        self._facts = facts
        self.lines = {line.instrument.id: line for line in lines}
        self.next_us = next_us
        """Frames that open from then on are still to come."""
        self.late: list[tuple[int, Bar]] = []
        """Bars, by their open, whose frames are gone: they are revisions. Whoever takes them clears it."""
        self._length_us, self._wait_us = timeframe.us, wait_us
        self._opens: list[int] = []
        self._waits: set[int] = set()

    def collect(self, line: Line) -> None:
        """Look at what closed in a line."""
        for open_us in line.fresh:
            if open_us < self.next_us:
                if (bar := line.closed.pop(open_us, None)) is not None:
                    self.late.append((open_us, bar))
            elif open_us not in self._waits:
                self._waits.add(open_us)
                heapq.heappush(self._opens, open_us)
        line.fresh.clear()

    @property
    def waited_us(self) -> int | None:
        """The open of the frame that waits; None where none does."""
        return self._opens[0] if self._opens else None

    def release(self, now_us: Mapping[str, int]) -> Ready | None:
        """Take out the next frame, if it may go out. `now_us` has the clock of each venue."""
        if not self._opens:
            return None
        open_us = self._opens[0]
        if self._wait_us and min(now_us.values()) < open_us + self._length_us + self._wait_us:
            return None
        away = frozenset[str]() if self._facts is None else self._facts.away(open_us, open_us + self._length_us)
        if any(line.holds_up(open_us, now_us[line.venue]) for name, line in self.lines.items() if name not in away):
            return None
        heapq.heappop(self._opens)
        self._waits.discard(open_us)
        self.next_us = open_us + 1
        bars = {name: line.closed.pop(open_us) for name, line in self.lines.items() if open_us in line.closed}
        return Ready(open_us, bars, max(now_us.values()) >= open_us + 2 * self._length_us)

    def stale_since_us(self, now_us: Mapping[str, int]) -> int | None:
        """Since when an expected bar is overdue; None where none is. No bar of who is away now is expected."""
        newest_us = max(now_us.values())
        away = frozenset[str]() if self._facts is None else self._facts.away(newest_us - self._length_us, newest_us)
        overdue = (line.stale_since_us(now_us[line.venue]) for name, line in self.lines.items() if name not in away)
        return min((each for each in overdue if each is not None), default=None)
