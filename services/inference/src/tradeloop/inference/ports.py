"""The ports of inference beside models: the messages that were published before it started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tradeloop.common.bus.port import LogPosition
from tradeloop.common.features import FeatureSet
from tradeloop.common.market import Universe
from tradeloop.common.messages import FeaturesComputed, ModelActivated


class History(Protocol):
    """The messages about a universe to go on from after a restart. Each call may raise `Unavailable`.

    Every adapter passes `contracts.check_history`.
    """

    def features_before(
        self, first: FeaturesComputed, position: LogPosition, universe: Universe, feature_set: FeatureSet, rows: int
    ) -> Sequence[FeaturesComputed]:
        """The last features, so many at most, of bars before that of `first`, which stands at `position`.

        One message for each bar, in the order of time. Fewer when so many were never published.
        """
        ...

    def activations(self, universe: Universe, portfolio: str) -> Sequence[ModelActivated]:
        """Every recorded activation for a portfolio, in the order of time."""
        ...

    def decided_us(self, universe: Universe, portfolio: str) -> int:
        """The bar of a portfolio's last decision, by its close in microseconds; -1 for none."""
        ...

    def close(self) -> None:
        """Release connections."""
        ...
