"""Features of a range, in batch into the offline store; features of each closed frame, as messages and online."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import structlog

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.bus.port import LogPosition, Partition
from tradeloop.common.errors import UserError
from tradeloop.common.feature_store.port import FeatureRows, FeatureStore
from tradeloop.common.features import BarValues, FeatureSet, FeatureStream, Values, bars_with_history, compute_stored
from tradeloop.common.market import Timeframe, Universe, to_us
from tradeloop.common.messages import BarFrame, FeaturesComputed, Message, PreprocessCompleted, PreprocessRequested
from tradeloop.common.runtime.service import ServiceDefaults
from tradeloop.common.strategy import Strategy

log = structlog.get_logger(__name__)


class Preprocess(ServiceDefaults):
    """The preprocess service."""

    name = "preprocess"
    consumes: tuple[type[Message], ...] = (PreprocessRequested, BarFrame)

    def __init__(
        self,
        pairs: Iterable[tuple[Universe, str]],
        strategies: Callable[[str], Strategy],
        bars: BarStore,
        features: FeatureStore,
    ) -> None:
        """`pairs` are the universes and strategies whose features are computed frame by frame; `strategies` gives a
        strategy by name. Raises `UserError` when a strategy needs a timeframe or an instrument that its universe does
        not have."""
        self._strategies, self._bars, self._features = strategies, bars, features
        self._defined: set[str] = set()
        self._feeds: dict[str, dict[str, _Feed]] = {}
        """Streams by universe and feature set: strategies of equal features share them."""
        for universe, strategy in pairs:
            feature_set = self._feature_set(universe, strategy)
            self._feeds.setdefault(universe.name, {})[feature_set.id] = _Feed(universe, feature_set, bars)

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        """Raises `Unavailable` when a store cannot be reached, `UserError` when bars cannot give the features."""
        if isinstance(message, PreprocessRequested):
            return (self._preprocess(message),)
        if isinstance(message, BarFrame):
            feeds = self._feeds.get(message.universe, {}).values()
            return [computed for feed in feeds for computed in feed.take(message)]
        raise TypeError(f"preprocess does not read {type(message).__name__}")

    def answers(self, message: Message) -> bool:
        """Corrections, and bars of higher timeframes, only change what later features are."""
        if not isinstance(message, BarFrame):
            return True
        feeds = self._feeds.get(message.universe, {}).values()
        return not message.revision and any(feed.is_base(message) for feed in feeds)

    def revoked(self) -> None:
        """The streams read their bars anew: others may have gone on with them meanwhile."""
        for feeds in self._feeds.values():
            for feed in feeds.values():
                feed.forget()

    def before_commit(self, offsets: Mapping[Partition, int]) -> None:
        """Write the newest features online: values in between were never current by the time they could be read."""
        for universe, feeds in self._feeds.items():
            for feature_set, feed in feeds.items():
                newest = feed.newest
                if newest is not None:
                    self._define(feed.feature_set)
                    self._features.write_online(feature_set, universe, newest)
                    feed.forget_newest()

    def not_ready(self) -> Iterable[str]:
        self._bars.check()
        self._features.check()
        return ()

    def close(self) -> None:
        self._bars.close()
        self._features.close()

    def _preprocess(self, request: PreprocessRequested) -> PreprocessCompleted:
        universe = request.universe
        feature_set = self._feature_set(universe, request.strategy)
        start_us, end_us = to_us(request.range.start), to_us(request.range.end)
        rows = compute_stored(self._bars, feature_set, universe, start_us, end_us)
        self._define(feature_set)
        self._features.write_offline(feature_set.id, universe.name, rows)
        log.info("preprocessed", universe=universe.name, strategy=request.strategy, rows=len(rows.time_us))
        return PreprocessCompleted(
            request_id=request.request_id,
            universe=universe,
            strategy=request.strategy,
            feature_set=feature_set.id,
            range=request.range,
            rows=len(rows.time_us),
        )

    def _feature_set(self, universe: Universe, strategy: str) -> FeatureSet:
        feature_set = self._strategies(strategy).feature_set
        feature_set.check_base(universe.timeframe)
        feature_set.check_instruments(universe.ids)
        for timeframe in feature_set.timeframes:
            if timeframe not in universe.higher_timeframes:
                raise UserError(
                    f"strategy {strategy} needs {timeframe} bars, which universe {universe.name} does not have: "
                    f"add {timeframe} to its higher_timeframes and backfill it"
                )
        return feature_set

    def _define(self, feature_set: FeatureSet) -> None:
        if feature_set.id not in self._defined:
            self._features.define(feature_set.id, feature_set.names)
            self._defined.add(feature_set.id)


class _Feed:
    """The features of one universe, frame by frame.

    The stream goes on only from the frame that it took last. After anything else (the first frame, one that comes
    again, a replay, a partition that was with another consumer meanwhile, an error) it is opened on stored bars.
    """

    def __init__(self, universe: Universe, feature_set: FeatureSet, store: BarStore) -> None:
        self.feature_set = feature_set
        self._universe, self._base, self._store = universe, universe.timeframe, store
        self._stream = FeatureStream(feature_set, universe.timeframe, universe.ids)
        self._last: tuple[int, int] | None = None
        """Open and close of the base frame that the stream took last; None when the stream must be opened."""
        self._higher: set[tuple[Timeframe, int]] = set()
        """Higher frames that the stream took since then, by their open."""
        self._newest: tuple[int, Values] | None = None
        """Close and values of the newest base frame that is not yet forgotten."""

    @property
    def newest(self) -> FeatureRows | None:
        """The newest features since they were forgotten."""
        if self._newest is None:
            return None
        close_us, values = self._newest
        return FeatureRows(self._universe.ids, self.feature_set.names, np.array([close_us]), np.array([values]))

    def is_base(self, frame: BarFrame) -> bool:
        """Whether a frame is one of those that features are computed on."""
        return frame.timeframe is self._base

    def forget_newest(self) -> None:
        self._newest = None

    def forget(self) -> None:
        """Begin as new."""
        self._last = self._newest = None

    def take(self, frame: BarFrame) -> Iterator[FeaturesComputed]:
        """Features as of a base frame; nothing for a higher frame or a correction."""
        open_us, close_us = to_us(frame.open_time), to_us(frame.close_time)
        if frame.revision:
            self._last = None  # what was published stands; later features come from corrected bars
        elif frame.timeframe is self._base:
            yield self._take_base(frame, open_us, close_us)
        elif frame.timeframe in self.feature_set.timeframes and self._last is not None:
            self._take_higher(frame, open_us, close_us)

    def _take_higher(self, frame: BarFrame, open_us: int, close_us: int) -> None:
        newest_us = self._stream.last_open_us(frame.timeframe)
        if newest_us is None or newest_us < open_us:
            last, self._last = self._last, None  # should the update fail
            self._stream.update_higher(frame.timeframe, open_us, close_us, self._rows(frame))
            self._last = last
            self._higher.add((frame.timeframe, open_us))

    def _take_base(self, frame: BarFrame, open_us: int, close_us: int) -> FeaturesComputed:
        if not self._follows(open_us, close_us):
            self._open(open_us, close_us)
        self._last = None  # should the update fail
        values = self._stream.update(open_us, close_us, self._rows(frame))
        self._last = open_us, close_us
        self._higher.clear()
        if self._newest is None or self._newest[0] <= close_us:
            self._newest = close_us, values
        features = self.feature_set
        return FeaturesComputed.of(self._universe, features.id, features.names, frame.close_time, values)

    def _rows(self, frame: BarFrame) -> list[BarValues | None]:
        rows: dict[str, BarValues] = {
            bar.instrument: (bar.open, bar.high, bar.low, bar.close, math.nan if bar.volume is None else bar.volume)
            for bar in frame.bars
        }
        return [rows.get(instrument) for instrument in self._universe.ids]

    def _follows(self, open_us: int, close_us: int) -> bool:
        """Whether the stream has taken all that precedes this base frame, and nothing else."""
        if self._last is None or open_us < self._last[1]:
            return False
        last_open_us, last_close_us = self._last
        if open_us > last_close_us:  # a gap in the market, or frames that this process did not see?
            before = self._store.read_before(self._universe.ids, self._base, open_us, 1)
            if not len(before) or before.open_us[0] != last_open_us:
                return False
        # A bucket that closed since then holds the frame before, or this one: there were no others.
        closed_since = {
            (timeframe, bucket_us)
            for timeframe in self.feature_set.timeframes
            for bucket_us in (last_open_us // timeframe.us * timeframe.us, open_us // timeframe.us * timeframe.us)
            if last_close_us < bucket_us + timeframe.us <= close_us
        }
        return self._higher == closed_since

    def _open(self, open_us: int, close_us: int) -> None:
        """Open the stream on stored bars: base bars before this frame, higher bars that it can see."""
        self._last = None
        self._higher.clear()
        before_us = {self._base: open_us} | {t: close_us - t.us + 1 for t in self.feature_set.timeframes}
        self._stream.open(
            {
                timeframe: bars_with_history(self._store, self.feature_set, self._universe, timeframe, end_us, end_us)
                for timeframe, end_us in before_us.items()
            }
        )
        log.info("opened", universe=self._universe.name, feature_set=self.feature_set.id, before=open_us)
