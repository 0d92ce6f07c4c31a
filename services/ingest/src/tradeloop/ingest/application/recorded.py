"""The frames of another run, once more in the order in which they went out, corrections among them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.market import Bar, Timeframe, Universe, to_us
from tradeloop.common.messages import BarFrame
from tradeloop.ingest.application.stored import arrays, write
from tradeloop.ingest.ports import Published


class Recorded:
    """The recorded frames from the first base frame of a range on, to the first one behind it.

    As in the run that is on record, bars are stored before their frames go out, and a correction becomes the next
    revision.
    """

    def __init__(self, record: Published, store: BarStore, universe: Universe, start_us: int, end_us: int) -> None:
        self._record, self._store, self._universe = record, store, universe
        self._start_us, self._end_us = start_us, end_us
        self._place: int | None = 0
        self._group: list[BarFrame] = []
        """The frames since the last base frame."""
        self._groups: deque[Sequence[BarFrame]] = deque()
        self._begun = False

    def next(self) -> Sequence[BarFrame] | None:
        """The frames that go out next: a base frame, and before it what went out since the one before it; at the end
        the corrections that are left. None when there is no more.

        It comes again until it is `taken`. May raise `Unavailable`.
        """
        while not self._groups and self._place is not None:
            frames, place = self._record.frames(self._universe, self._place)
            fresh, group, begun, ended = self._split(frames)
            self._keep([one for each in fresh for one in each] + (group if begun else []))
            self._groups.extend(fresh)
            self._group, self._begun, self._place = group, begun, None if ended else place
            left = [one for one in group if one.revision]
            if self._place is None and left and begun:
                self._groups.append(left)
        return self._groups[0] if self._groups else None

    def taken(self) -> None:
        """Go on to the next ones."""
        self._groups.popleft()

    def skip(self, newest_us: int) -> None:
        """Go on behind the base frame that opened then. May raise `Unavailable`."""
        while (group := self.next()) is not None:
            self.taken()
            if not group[-1].revision and to_us(group[-1].open_time) == newest_us:
                return

    def _split(self, frames: Sequence[BarFrame]) -> tuple[list[list[BarFrame]], list[BarFrame], bool, bool]:
        """The groups that end among these frames, what is left, whether the range has begun, and has ended."""
        groups, group, begun = list[list[BarFrame]](), list(self._group), self._begun
        for one in frames:
            if one.timeframe is not self._universe.timeframe or one.revision:
                group.append(one)
                continue
            open_us = to_us(one.open_time)
            if open_us >= self._end_us and begun:
                return groups, group, begun, True
            if begun or self._start_us <= open_us < self._end_us:
                # What was corrected before the range began is history, as who begins it has it stored.
                groups.append([*(each for each in group if begun or not each.revision), one])
                begun = True
            group = []
        return groups, group, begun, False

    def _keep(self, frames: Sequence[BarFrame]) -> None:
        """Store the bars of frames."""
        bars: dict[Timeframe, dict[str, dict[int, Bar]]] = {}
        for one in frames:
            for bar in one.bars:
                bars.setdefault(one.timeframe, {}).setdefault(bar.instrument, {})[to_us(one.open_time)] = bar
        for timeframe, of_it in bars.items():
            write(self._store, timeframe, arrays(tuple(of_it), timeframe, of_it))
