"""Features of a range: computed over stored bars, in slices, into the offline store; only those that are missing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.errors import Unavailable
from tradeloop.common.feature_store.port import Covered, FeatureRows, FeatureSetUnknown, FeatureStore
from tradeloop.common.features import FeatureSet, basis_in_steps, check_columns, compute_in_steps, no_bars
from tradeloop.common.market import to_us
from tradeloop.common.messages import PreprocessCompleted, PreprocessRequested

log = structlog.get_logger(__name__)

_SPAN_BARS = 2_048
"""Bars' time that is computed at once, an instrument a slice. Each span reads the history of its first bar anew, some
six hundred bars."""
_WRITTEN_ROWS = 32_768
"""Rows of features that are written at once: one file of the offline store."""

Steps = Generator[None, None, None]


@dataclass(slots=True)
class _Part:
    """The stretch that is being computed, and is written at once."""

    covers: Covered
    next_us: int
    """How far it is computed."""
    then_us: int
    """Where the next part begins: behind a gap in the market, perhaps."""
    computed: list[FeatureRows] = field(default_factory=list)


class Batch:
    """A request under way: what is stored and stands on the bars as they are is counted, the rest computed.

    What it computed is written part by part, and remembered as covered. After a crash it goes on behind the parts that
    it has written, and answers the same as without one. Parts lie on a grid of time, so that a range that is computed
    again takes the place of what was written before.
    """

    def __init__(
        self,
        bars: BarStore,
        features: FeatureStore,
        define: Callable[[FeatureSet], None],
        feature_set: FeatureSet,
        request: PreprocessRequested,
    ) -> None:
        self._bars, self._features, self._define = bars, features, define
        self._feature_set, self._request, self._universe = feature_set, request, request.universe
        self._start_us, self._end_us = to_us(request.range.start), to_us(request.range.end)
        base_us = self._universe.timeframe.us
        spans = max(_WRITTEN_ROWS // (_SPAN_BARS * len(self._universe.ids)), 1)
        self._span_us, self._part_us = _SPAN_BARS * base_us, spans * _SPAN_BARS * base_us
        self._steps: Steps | None = None
        """The piece of work that is under way; it changes nothing before its end."""
        self._known: deque[Covered] | None = None
        """Stretches that are stored and not yet held against their bars; None before they were asked for."""
        self._valid: list[Covered] = []
        self._missing: deque[tuple[int, int]] | None = None
        """Stretches to compute, in order of time; None before all that is known was looked at."""
        self._part: _Part | None = None
        self._computed = self._reused = 0
        self.finished = False

    def step(self) -> Iterator[PreprocessCompleted]:
        if self._steps is None:
            self._steps = self._next()
        if self._steps is None:
            yield self._completed()
            self.finished = True
            return
        try:
            next(self._steps)
        except Unavailable:
            self._steps = None  # that piece begins anew
            raise
        except StopIteration:
            self._steps = None

    def _next(self) -> Steps | None:
        if self._known is None:
            return self._look()
        if self._known:
            return self._hold_against_bars(self._known[0])
        if self._missing is None:
            self._missing = deque(_between(self._valid, self._start_us, self._end_us))
        part = self._part
        if part is not None:
            return self._compute(part) if part.next_us < part.covers.end_us else self._write(part)
        return self._begin_part(*self._missing[0]) if self._missing else None

    def _look(self) -> Steps:
        check_columns(self._bars, self._feature_set, self._universe, self._start_us, self._end_us)
        found: Sequence[Covered] = ()
        try:
            found = self._features.covered(self._feature_set.id, self._universe.name)
        except FeatureSetUnknown:
            log.info("nothing is covered", universe=self._universe.name, feature_set=self._feature_set.id)
        self._known = deque(one for one in found if one.start_us < self._end_us and self._start_us < one.end_us)
        yield

    def _hold_against_bars(self, one: Covered) -> Steps:
        """Count a stretch where it still holds. What this very request wrote before a crash is no reuse."""
        own = one.request == self._request.request_id
        if own or not self._request.force:
            basis = yield from self._basis(one.start_us, one.end_us)
            if basis == one.basis:
                first_us, last_us = max(one.start_us, self._start_us), min(one.end_us, self._end_us)
                census = self._bars.census(self._universe.ids, self._universe.timeframe, first_us, last_us)
                self._valid.append(one)
                self._computed += census.frames if own else 0
                self._reused += 0 if own else census.frames
            else:
                log.info(
                    "bars have changed: features are computed again",
                    universe=self._universe.name,
                    feature_set=self._feature_set.id,
                    start_us=one.start_us,
                    end_us=one.end_us,
                )
        assert self._known is not None
        self._known.popleft()

    def _begin_part(self, start_us: int, end_us: int) -> Steps:
        """Take the next stretch up, as far as the grid and the stored bars go."""
        assert self._missing is not None
        until_us = min((start_us // self._part_us + 1) * self._part_us, end_us)
        last = self._bars.read_before(self._universe.ids, self._universe.timeframe, until_us, 1)
        if not len(last) or int(last.open_us[0]) < start_us:
            self._go_on(self._next_bar_us(until_us, end_us))
            return
        # It ends with its last bar, so that the bars that come next do not make it out of date.
        covered_us = min(int(last.open_us[0]) + self._universe.timeframe.us, until_us)
        # Before anything is computed: a bar that is corrected meanwhile is then one that the digest does not know.
        basis = yield from self._basis(start_us, covered_us)
        covers = Covered(start_us, covered_us, basis, self._request.request_id)
        self._part = _Part(covers, start_us, until_us)

    def _compute(self, part: _Part) -> Steps:
        """A span of a part, an instrument a slice."""
        until_us = min((part.next_us // self._span_us + 1) * self._span_us, part.covers.end_us)
        rows = yield from compute_in_steps(self._bars, self._feature_set, self._universe, part.next_us, until_us)
        if len(rows.time_us):
            part.computed.append(rows)
        part.next_us = until_us

    def _write(self, part: _Part) -> Steps:
        first = part.computed[0]
        rows = FeatureRows(
            first.instruments,
            first.names,
            np.concatenate([one.time_us for one in part.computed]),
            np.concatenate([one.values for one in part.computed]),
        )
        self._define(self._feature_set)
        self._features.write_offline(self._feature_set.id, self._universe.name, rows, part.covers)
        self._computed += len(rows.time_us)
        self._part = None
        self._go_on(part.then_us)
        yield

    def _go_on(self, next_us: int) -> None:
        """The first of the missing stretches is done up to a time."""
        assert self._missing is not None
        _, end_us = self._missing.popleft()
        if next_us < end_us:
            self._missing.appendleft((next_us, end_us))

    def _basis(self, start_us: int, end_us: int) -> Generator[None, None, str]:
        return basis_in_steps(self._bars, self._feature_set, self._universe, start_us, end_us)

    def _next_bar_us(self, at_us: int, end_us: int) -> int:
        """Where the span begins that has the next stored bar; the end where there is none: gaps may be long."""
        low_us, high_us = at_us, end_us

        def is_any_before(time_us: int) -> bool:
            last = self._bars.read_before(self._universe.ids, self._universe.timeframe, time_us, 1)
            return len(last) > 0 and int(last.open_us[0]) >= at_us

        if not is_any_before(high_us):
            return high_us
        while high_us - low_us > self._span_us:
            middle_us = (low_us + high_us) // 2
            low_us, high_us = (low_us, middle_us) if is_any_before(middle_us) else (middle_us, high_us)
        return max(at_us, low_us // self._span_us * self._span_us)

    def _completed(self) -> PreprocessCompleted:
        request, rows = self._request, self._computed + self._reused
        if not rows:
            raise no_bars(self._universe, self._start_us, self._end_us)
        log.info(
            "preprocessed",
            universe=self._universe.name,
            strategy=request.strategy,
            computed=self._computed,
            reused=self._reused,
        )
        return PreprocessCompleted(
            request_id=request.request_id,
            universe=self._universe,
            strategy=request.strategy,
            feature_set=self._feature_set.id,
            range=request.range,
            rows=rows,
            reused=self._reused,
        )


def _between(valid: Sequence[Covered], start_us: int, end_us: int) -> Iterator[tuple[int, int]]:
    """The stretches of a range that are not covered; `valid` is in order of time."""
    for one in valid:
        if start_us < one.start_us:
            yield start_us, one.start_us
        start_us = max(start_us, one.end_us)
    if start_us < end_us:
        yield start_us, end_us
