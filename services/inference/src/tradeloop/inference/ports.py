"""The ports of inference beside models: the messages that were published before it started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tradeloop.common.bus.port import LogPosition
from tradeloop.common.features import FeatureSet
from tradeloop.common.market import Universe
from tradeloop.common.messages import FeaturesComputed, ModelActivated, PortfolioMarked, SignalGenerated
from tradeloop.common.runtime.held import ReadOn


class History(Protocol):
    """The messages about a universe to go on from after a restart. Each call may raise `Unavailable`.

    Every adapter passes `contracts.check_history`.
    """

    def features_before(
        self, time_us: int, position: LogPosition | None, universe: Universe, feature_set: FeatureSet, rows: int
    ) -> Sequence[FeaturesComputed]:
        """The last features, so many at most, of bars that closed before a time, microseconds since the epoch.

        Those that stand before `position`, where one is given. One message for each bar, in the order of time; what
        came after features of a later bar is left out, as whoever was there then left it out. Fewer when so many were
        never published.
        """
        ...

    def features_on(self, universe: Universe, feature_set: FeatureSet) -> ReadOn[FeaturesComputed]:
        """Reads features from a position on."""
        ...

    def activations(self, universe: Universe, portfolio: str) -> Sequence[ModelActivated]:
        """Every recorded activation for a portfolio, in the order of time."""
        ...

    def decided(self, universe: Universe, portfolio: str) -> SignalGenerated | None:
        """A portfolio's last decision, or None."""
        ...

    def marked(self, universe: Universe, portfolio: str) -> tuple[PortfolioMarked, LogPosition] | None:
        """A portfolio's last mark and where it stands, at its last place if it was repeated; or None."""
        ...

    def forget(self) -> None:
        """Look again at what may have changed: partitions were with another process meanwhile."""
        ...

    def close(self) -> None:
        """Release connections."""
        ...
