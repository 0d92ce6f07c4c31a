"""Features of each closed frame: a stream, carried forward or opened on the bars before."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import structlog

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.bus.port import LogPosition
from tradeloop.common.errors import Unavailable, UserError
from tradeloop.common.feature_store.port import FeatureRows, FeatureSetUnknown, FeaturesTooOld, FeatureStore
from tradeloop.common.features import (
    BarValues,
    FeatureSet,
    FeatureStream,
    Values,
    compute_stored,
)
from tradeloop.common.market import EVER_US, Timeframe, Universe, bucket_us, from_us, to_us
from tradeloop.common.messages import BarFrame, FeaturesComputed
from tradeloop.common.runtime.attempts import words
from tradeloop.preprocess.application.standing import Standing, went_out
from tradeloop.preprocess.ports import Sent

log = structlog.get_logger(__name__)


class Feed:
    """The features of one universe, frame by frame.

    The stream goes on only from the frame that it took last. After anything else (the first frame, one that comes
    again, a correction, a replay, a partition that was with another consumer meanwhile, an error) it is opened on the
    bars before.
    """

    def __init__(self, universe: Universe, feature_set: FeatureSet, store: BarStore, sent: Sent) -> None:
        self.feature_set = feature_set
        self.failed = 0
        """How many frames have no features since one of these failed."""
        self.computed_us = -1
        """Close of the newest bar whose features were given; -1 for none."""
        self._universe, self._base, self._store, self._sent = universe, universe.timeframe, store, sent
        self._stream = FeatureStream(feature_set, universe.timeframe, universe.ids)
        self._last: tuple[int, int] | None = None
        """Open and close of the base frame that the stream took last; None when the stream must be opened."""
        self._higher: set[tuple[Timeframe, int]] = set()
        """Higher frames that the stream took since then, by their open."""
        self._standing: Standing | None = None
        """The bars that went out until now; None where the stream is to be opened by looking back."""
        self._corrected = False
        """Whether a correction went out since the last base frame."""
        self._newest: tuple[int, Values] | None = None
        """Close and values of the newest base frame that is not yet forgotten."""

    @property
    def newest(self) -> FeatureRows | None:
        """The newest features since they were forgotten."""
        if self._newest is None:
            return None
        close_us, values = self._newest
        return FeatureRows(self._universe.ids, self.feature_set.names, np.array([close_us]), np.array([values]))

    def stored_newest(self, features: FeatureStore) -> FeatureRows | None:
        """The features of the newest stored bar; None where there is none, where they are online, or where one fails.

        May raise `Unavailable`.
        """
        universe, feature_set = self._universe, self.feature_set
        last = self._store.read_before(universe.ids, self._base, EVER_US, 1)
        if not len(last):
            return None
        open_us = int(last.open_us[0])
        try:
            with suppress(FeaturesTooOld, FeatureSetUnknown):
                features.read_online(feature_set.id, universe.name, universe.ids, since_us=open_us + self._base.us)
                return None
            rows = compute_stored(self._store, feature_set, universe, open_us, open_us + 1)
        except Unavailable:
            raise
        except Exception:  # whatever the code of a feature does: it is counted when the next bar comes
            log.exception("features failed", universe=universe.name, feature_set=feature_set.id, time=open_us)
            self.failed += 1
            return None
        log.info("caught up online", universe=universe.name, feature_set=feature_set.id, time=open_us)
        return rows

    def forget_newest(self) -> None:
        self._newest = None

    def forget(self) -> None:
        """Begin as new."""
        self._last = self._newest = self._standing = None
        self.computed_us = -1

    def take(self, frame: BarFrame, position: LogPosition) -> Iterator[FeaturesComputed]:
        """Features as of a base frame; nothing for a higher frame or a correction."""
        open_us, close_us = to_us(frame.open_time), to_us(frame.close_time)
        if frame.revision:
            self._corrected = True  # what was published stands; later features come from corrected bars
        elif frame.timeframe is self._base:
            yield self._take_base_or_say_why(frame, position, open_us, close_us)
        elif frame.timeframe in self.feature_set.timeframes and self._last is not None:
            self._take_higher(frame, open_us, close_us)
        if self._standing is not None and not self._standing.add(frame):
            self._standing = None

    def is_base(self, frame: BarFrame) -> bool:
        """Whether a frame is one of those that features are computed on."""
        return frame.timeframe is self._base

    def _take_base_or_say_why(
        self, frame: BarFrame, position: LogPosition, open_us: int, close_us: int
    ) -> FeaturesComputed:
        """Features as of a base frame; unknown ones, with the reason, where a feature fails.

        It is tried twice, the second time on a stream that was opened anew. Whoever waits for the features of this bar
        then knows that there are none, and goes on.
        """
        for _ in range(2):
            try:
                return self._take_base(frame, position, open_us, close_us)
            except (Unavailable, UserError):
                raise
            except Exception as failure:  # whatever the code of a feature does
                error = words(failure)
                log.exception(
                    "features failed",
                    universe=self._universe.name,
                    feature_set=self.feature_set.id,
                    time=frame.close_time.isoformat(),
                )
        self.failed += 1
        computed = FeaturesComputed.of(
            self._universe, self.feature_set.id, self.feature_set.names, frame.close_time, ()
        )
        return computed.unknown(error)

    def _take_higher(self, frame: BarFrame, open_us: int, close_us: int) -> None:
        newest_us = self._stream.last_open_us(frame.timeframe)
        if newest_us is None or newest_us < open_us:
            last, self._last = self._last, None  # should the update fail
            self._stream.update_higher(frame.timeframe, open_us, close_us, self._rows(frame))
            self._last = last
            self._higher.add((frame.timeframe, open_us))

    def _take_base(self, frame: BarFrame, position: LogPosition, open_us: int, close_us: int) -> FeaturesComputed:
        follows = self._is_next(frame, position, open_us) and self._has_higher(open_us, close_us)
        if not follows or self._corrected:
            self._open(frame, position, open_us, self._standing if follows else None)
        self._last = None  # should the update fail
        values = self._stream.update(open_us, close_us, self._rows(frame), frame.outside)
        self._last = open_us, close_us
        self._higher.clear()
        if self._newest is None or self._newest[0] <= close_us:
            self._newest = close_us, values
        self.computed_us = max(close_us, self.computed_us)
        features = self.feature_set
        return FeaturesComputed.of(self._universe, features.id, features.names, frame.close_time, values)

    def _rows(self, frame: BarFrame) -> list[BarValues | None]:
        rows: dict[str, BarValues] = {
            bar.instrument: (bar.open, bar.high, bar.low, bar.close, math.nan if bar.volume is None else bar.volume)
            for bar in frame.bars
        }
        if self.feature_set.extras:
            for bar in frame.bars:
                further = (bar.extra.get(name, math.nan) for name in self.feature_set.extras)
                rows[bar.instrument] = (*rows[bar.instrument], *further)
        return [rows.get(instrument) for instrument in self._universe.ids]

    def _is_next(self, frame: BarFrame, position: LogPosition, open_us: int) -> bool:
        """Whether no other base frame went out since the last one."""
        if self._last is None or frame.begins or open_us <= self._last[0]:
            return False
        last_open_us, last_close_us = self._last
        if open_us == last_close_us:
            return True
        # A gap in the market, or frames that this process did not see?
        before = self._sent.before(position, self._universe, open_us)
        return went_out(before, frame, (), 1).last_us == last_open_us

    def _has_higher(self, open_us: int, close_us: int) -> bool:
        """Whether the stream has taken the longer bars that closed since the last base frame, and nothing else."""
        assert self._last is not None
        last_open_us, last_close_us = self._last
        days = self._universe.days
        # A bucket that closed since then holds the frame before, or this one: there were no others.
        closed_since = {
            (timeframe, start_us)
            for timeframe in self.feature_set.timeframes
            for start_us in (bucket_us(us, self._base, timeframe, days) for us in (last_open_us, open_us))
            if last_close_us < start_us + timeframe.us <= close_us
        }
        return self._higher == closed_since

    def _open(self, frame: BarFrame, position: LogPosition, open_us: int, standing: Standing | None) -> None:
        """Open the stream on the bars before this base frame, and the longer bars that it can see."""
        self._last = self._standing = None
        self._higher.clear()
        features = self.feature_set
        if standing is None:
            before = self._sent.before(position, self._universe, open_us)
            known = went_out(before, frame, features.timeframes, features.history(self._base))
            self._check_stored(known.last_us, open_us)
            standing = Standing(frame, known, self._store, features, self._universe)
        self._stream.open(standing.bars())
        self._standing, self._corrected = standing, False
        log.info("opened", universe=self._universe.name, feature_set=features.id, before=open_us)

    def _check_stored(self, sent_us: int | None, open_us: int) -> None:
        """Refuse to compute over a hole: a store that was restored from a backup lacks frames that went out since."""
        if sent_us is None or sent_us >= open_us:
            return
        before = self._store.read_before(self._universe.ids, self._base, open_us, 1)
        stored_us = int(before.open_us[0]) if len(before) else None
        if stored_us is None or stored_us < sent_us:
            ends = "hold none" if stored_us is None else f"end at {from_us(stored_us).isoformat()}"
            raise UserError(
                f"bars of {self._universe.name} went out until {from_us(sent_us).isoformat()}, but the stored ones "
                f"{ends}: backfill what is missing, then `tradeloop dlq replay`"
            )
