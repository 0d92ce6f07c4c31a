"""Features of a decision from the online store, where the service is configured so."""

from __future__ import annotations

from collections import Counter

import numpy as np
import structlog

from tradeloop.common.clock import Clock
from tradeloop.common.errors import Unavailable
from tradeloop.common.feature_store.port import FeatureRows, FeatureSetUnknown, FeaturesTooOld, FeatureStore
from tradeloop.common.market import from_us, to_us
from tradeloop.common.messages import FeaturesComputed

log = structlog.get_logger(__name__)

POLL_S = 0.02
"""Between two looks at the store for a bar that is not there yet."""


class NotOnlineYet(Unavailable):
    """The online store does not have the features of this bar yet. They are looked for again."""


class OnlineFeatures:
    """The online store's features of the very bar that a portfolio decides on, for one portfolio.

    Only that bar counts. Where the store is behind, the decision waits; after `wait_s` it is to hold, with the reason.
    Where it is ahead, as in a replay of the past, the store cannot have that bar any more, and the published values
    decide: they are the same. Values that stay different from the published ones are decided on by nobody.
    """

    def __init__(
        self, store: FeatureStore, clock: Clock, portfolio: str, tallies: Counter[tuple[str, str]], wait_s: float
    ) -> None:
        self._store, self._clock, self._portfolio, self._wait_s = store, clock, portfolio, wait_s
        self._tallies = tallies
        self._asked: tuple[int, float] | None = None
        """The close of the bar that is waited for, and since when."""

    def of(self, published: FeaturesComputed) -> FeaturesComputed:
        """The features of a bar as the store has them; unknown ones, with the reason, where it has none to decide on.

        Raises `NotOnlineYet`, `FeatureStoreUnavailable`.
        """
        time_us = to_us(published.time)
        if published.error:
            return published
        try:
            found = self._store.read_online(
                published.feature_set, published.universe, published.instruments, since_us=time_us
            )
        except (FeaturesTooOld, FeatureSetUnknown) as error:
            return self._wait(published, time_us, "features_not_online", str(error))
        if found.time_us[0] > time_us:
            newest = from_us(int(found.time_us[0])).isoformat()
            self._count("features_overtaken_online", published, newest)
            return published
        if not _same(found, published):
            # A bar that is being written: some instruments have its values, others those of the one before.
            why = "the features of this bar in the online store are not the published ones"
            return self._wait(published, time_us, "features_differ_online", why)
        self._asked = None
        values = tuple(tuple(None if v != v else v for v in row) for row in found.values[0].tolist())
        return published.model_copy(update={"values": values})

    def _wait(self, published: FeaturesComputed, time_us: int, event: str, why: str) -> FeaturesComputed:
        now_s = self._clock.monotonic()
        if self._asked is None or self._asked[0] != time_us:
            self._asked = time_us, now_s
        if now_s - self._asked[1] < self._wait_s:
            raise NotOnlineYet(why)
        self._asked = None
        self._count(event, published, why)
        return published.unknown(f"{why}, for {self._wait_s:g} s")

    def _count(self, event: str, published: FeaturesComputed, why: str) -> None:
        self._tallies[event, self._portfolio] += 1
        if self._tallies[event, self._portfolio] == 1:
            log.warning(event, portfolio=self._portfolio, time=published.time.isoformat(), why=why)


def _same(found: FeatureRows, published: FeaturesComputed) -> bool:
    """Whether both are the same to the bit, where a value that is not known is none on either side."""
    wanted = np.array([[np.nan if v is None else v for v in row] for row in published.values], dtype=np.float64)
    stored = found.values[0]
    known = ~np.isnan(wanted)
    return (
        found.names == published.names
        and bool((known == ~np.isnan(stored)).all())
        and wanted[known].tobytes() == stored[known].tobytes()
    )
