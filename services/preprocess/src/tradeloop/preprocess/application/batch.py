"""Features of a range: computed over stored bars, in slices, into the offline store."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import numpy as np
import structlog

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.errors import Unavailable
from tradeloop.common.feature_store.port import FeatureRows, FeatureStore
from tradeloop.common.features import FeatureSet, check_columns, compute_in_steps, no_bars
from tradeloop.common.market import to_us
from tradeloop.common.messages import PreprocessCompleted, PreprocessRequested

log = structlog.get_logger(__name__)

_SPAN_BARS = 2_048
"""Bars' time that is computed at once, an instrument a slice. Each span reads the history of its first bar anew, some
six hundred bars."""
_WRITTEN_ROWS = 32_768
"""Rows of features that are written at once: one file of the offline store."""


class Batch:
    """A request under way. What it computed is written part by part; after a crash it begins anew, and writes the same.

    Parts lie on a grid of time, so that a range that is computed again takes the place of what was written before.
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
        self._at_us, self._end_us = to_us(request.range.start), to_us(request.range.end)
        base_us = self._universe.timeframe.us
        spans = max(_WRITTEN_ROWS // (_SPAN_BARS * len(self._universe.ids)), 1)
        self._span_us, self._part_us = _SPAN_BARS * base_us, spans * _SPAN_BARS * base_us
        self._steps: Generator[None, None, FeatureRows] | None = None
        """The span that is being computed."""
        self._computed: list[FeatureRows] = []
        """Spans that are not written."""
        self._part, self._part_ends = 0, False
        self._rows = 0
        self._checked = False
        """Whether the bars of the range are known to have the further columns that the features read."""
        self.finished = False

    def step(self) -> Iterator[PreprocessCompleted]:
        if self._part_ends:
            self._write()
        elif self._at_us < self._end_us:
            self._compute()
        else:
            yield self._completed()
            self.finished = True

    def _compute(self) -> None:
        """One instrument of a span."""
        until_us = min((self._at_us // self._span_us + 1) * self._span_us, self._end_us)
        if not self._checked:
            check_columns(self._bars, self._feature_set, self._universe, self._at_us, self._end_us)
            self._checked = True
        if self._steps is None:
            self._steps = compute_in_steps(self._bars, self._feature_set, self._universe, self._at_us, until_us)
        try:
            next(self._steps)
        except Unavailable:
            self._steps = None  # the span begins anew
            raise
        except StopIteration as end:
            self._steps, span_us, self._at_us = None, self._at_us, until_us
            if len(end.value.time_us):
                self._computed.append(end.value)
                self._part = span_us // self._part_us
            else:
                self._at_us = self._next_bar_us()
            ends = self._at_us >= self._end_us or self._at_us // self._part_us != self._part
            self._part_ends = bool(self._computed) and ends

    def _next_bar_us(self) -> int:
        """Where the span begins that has the next stored bar; the end where there is none: gaps may be long."""
        at_us = low_us = self._at_us
        high_us = self._end_us

        def is_any_before(time_us: int) -> bool:
            last = self._bars.read_before(self._universe.ids, self._universe.timeframe, time_us, 1)
            return len(last) > 0 and int(last.open_us[0]) >= at_us

        if not is_any_before(high_us):
            return high_us
        while high_us - low_us > self._span_us:
            middle_us = (low_us + high_us) // 2
            low_us, high_us = (low_us, middle_us) if is_any_before(middle_us) else (middle_us, high_us)
        return max(at_us, low_us // self._span_us * self._span_us)

    def _write(self) -> None:
        first = self._computed[0]
        rows = FeatureRows(
            first.instruments,
            first.names,
            np.concatenate([one.time_us for one in self._computed]),
            np.concatenate([one.values for one in self._computed]),
        )
        if len(rows.time_us):
            self._define(self._feature_set)
            self._features.write_offline(self._feature_set.id, self._universe.name, rows)
        self._rows += len(rows.time_us)
        self._computed, self._part_ends = [], False

    def _completed(self) -> PreprocessCompleted:
        request = self._request
        if not self._rows:
            raise no_bars(self._universe, to_us(request.range.start), self._end_us)
        log.info("preprocessed", universe=self._universe.name, strategy=request.strategy, rows=self._rows)
        return PreprocessCompleted(
            request_id=request.request_id,
            universe=self._universe,
            strategy=request.strategy,
            feature_set=self._feature_set.id,
            range=request.range,
            rows=self._rows,
        )
