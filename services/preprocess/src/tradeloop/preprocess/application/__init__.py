"""Features of a range, in batch into the offline store; features of each closed frame, as messages and online."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import structlog

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.bus.port import LogPosition, MessageTooLarge, Partition
from tradeloop.common.clock import Clock
from tradeloop.common.errors import Unavailable, UserError
from tradeloop.common.feature_store.port import FeatureRows, FeatureStore
from tradeloop.common.features import FeatureSet
from tradeloop.common.market import Universe
from tradeloop.common.messages import BarFrame, FeaturesComputed, Message, PreprocessRequested
from tradeloop.common.runtime.attempts import words
from tradeloop.common.runtime.metrics import Figure
from tradeloop.common.runtime.pending import Pending
from tradeloop.common.runtime.service import ServiceDefaults
from tradeloop.common.runtime.slices import Slices
from tradeloop.common.strategy import Strategy
from tradeloop.preprocess.application.batch import Batch
from tradeloop.preprocess.application.feed import Feed
from tradeloop.preprocess.ports import Sent

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
        clock: Clock,
        sent: Sent,
        online_first: bool = False,
    ) -> None:
        """`pairs` are the universes and strategies whose features are computed frame by frame; `strategies` gives a
        strategy by name; `online_first` writes the features of each frame online before they are published. Raises
        `UserError` when a strategy needs a timeframe or an instrument that its universe does not have."""
        self._strategies, self._bars, self._features, self._clock = strategies, bars, features, clock
        self._online_first = online_first
        self._batches = Slices()
        self._behind: deque[tuple[str, Feed]] = deque()
        """Streams whose newest stored bar may not be online yet, with their universes."""
        self._defined: set[str] = set()
        self._refused: Counter[str] = Counter()
        """How often the online store refused features, by universe."""
        self._feeds: dict[str, dict[str, Feed]] = {}
        """Streams by universe and feature set: strategies of equal features share them."""
        for universe, strategy in pairs:
            feature_set = self._feature_set(universe, strategy)
            self._feeds.setdefault(universe.name, {})[feature_set.id] = Feed(universe, feature_set, bars, sent)

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        """Raises `Unavailable` when a store cannot be reached, `UserError` when bars cannot give the features."""
        if isinstance(message, PreprocessRequested):
            feature_set = self._feature_set(message.universe, message.strategy)
            batch = Batch(self._bars, self._features, self._define, feature_set, message)
            self._batches.begin(position, batch, message.universe.name)
            return ()
        if isinstance(message, BarFrame):
            message.check(self._clock)
            feeds = self._feeds.get(message.universe, {}).values()
            published = [computed for feed in feeds for computed in feed.take(message, position)]
            if self._online_first:
                self._write_newest(message.universe)
            return published
        raise TypeError(f"preprocess does not read {type(message).__name__}")

    def answers(self, message: Message) -> bool:
        """Corrections, and bars of higher timeframes, only change what later features are."""
        if not isinstance(message, BarFrame):
            return True
        feeds = self._feeds.get(message.universe, {}).values()
        return not message.revision and any(feed.is_base(message) for feed in feeds)

    def parts(self) -> Mapping[str, Sequence[str]]:
        return {"feature_sets": sorted({name for feeds in self._feeds.values() for name in feeds})}

    def tallies(self) -> Mapping[tuple[str, str], int]:
        failed: Counter[str] = Counter()
        for universe, feeds in self._feeds.items():
            failed[universe] += sum(feed.failed for feed in feeds.values())
        found = {("features_failed", universe): count for universe, count in failed.items() if count}
        return found | {("online_refused", universe): count for universe, count in self._refused.items()}

    def figures(self) -> Iterable[Figure]:
        for universe, feeds in self._feeds.items():
            for feature_set, feed in feeds.items():
                if feed.computed_us >= 0:
                    yield Figure(
                        "tradeloop_features_timestamp_seconds", feed.computed_us / 1e6, (universe, feature_set)
                    )

    def substitutes(self, refused: Message, error: MessageTooLarge) -> Iterable[Message] | None:
        """Features that the bus does not take are unknown ones, with the reason: whoever waits for them goes on."""
        if not isinstance(refused, FeaturesComputed) or refused.error:
            return None
        return (refused.unknown(words(error)),)

    def advance(self) -> Iterator[Message]:
        if self._behind:
            self._write_online(*self._behind[0], self._behind[0][1].stored_newest(self._features))
            self._behind.popleft()
            return iter(())
        return self._batches.advance()

    def busy(self) -> bool:
        return self._batches.busy or bool(self._behind)

    def assigned(self, committed: Mapping[Partition, int], owns: Callable[[str], bool]) -> Mapping[Partition, int]:
        """Have the newest stored bars of these partitions brought online: the next one may take a day to come."""
        self._behind.extend(
            (universe, feed) for universe, feeds in self._feeds.items() if owns(universe) for feed in feeds.values()
        )
        return {}

    def pending(self) -> Pending:
        """A request is finished with its last slice: a crash before that begins it anew."""
        return self._batches.pending()

    def revoked(self) -> None:
        """The streams read their bars anew: others may have gone on with them meanwhile."""
        self._batches.forget()
        self._behind.clear()
        for feeds in self._feeds.values():
            for feed in feeds.values():
                feed.forget()

    def before_commit(self, offsets: Mapping[Partition, int]) -> None:
        """Write the newest features online: values in between were never current by the time they could be read."""
        for universe in self._feeds:
            self._write_newest(universe)

    def _write_newest(self, universe: str) -> None:
        for feed in self._feeds.get(universe, {}).values():
            self._write_online(universe, feed, feed.newest)
            feed.forget_newest()

    def _write_online(self, universe: str, feed: Feed, rows: FeatureRows | None) -> None:
        if rows is None:
            return
        try:
            self._define(feed.feature_set)
            self._features.write_online(feed.feature_set.id, universe, rows)
        except Unavailable:
            raise
        except Exception:  # features that the store refuses hold up no others
            self._refused[universe] += 1
            log.exception("features not written online", universe=universe, feature_set=feed.feature_set.id)

    def not_ready(self) -> Iterable[str]:
        self._bars.check()
        self._features.check()
        return ()

    def close(self) -> None:
        self._bars.close()
        self._features.close()

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
