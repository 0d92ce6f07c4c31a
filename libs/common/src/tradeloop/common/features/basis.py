"""The stored bars that features of a range stand on, as a digest: whether what was computed once still holds."""

from __future__ import annotations

import hashlib
from collections.abc import Generator

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.features.feature_set import FeatureSet
from tradeloop.common.market import Universe


def basis_in_steps(
    store: BarStore, feature_set: FeatureSet, universe: Universe, start_us: int, end_us: int
) -> Generator[None, None, str]:
    """A digest of all bars that the features of the base bars opening in `[start_us, end_us)` depend on.

    An instrument a step. It is another one when any of these bars was corrected, or a bar came among them, or before
    them where there were too few; later bars change nothing, nor do memberships outside of the range. Bars are counted,
    not read. Raises `BarStoreUnavailable`.
    """
    base = universe.timeframe
    digest = hashlib.sha256(feature_set.id.encode())
    digest.update(_members(universe, start_us + base.us, end_us + base.us).encode())
    for instrument in universe.ids:
        for timeframe in (base, *feature_set.timeframes):
            from_time_us, until_us = start_us, end_us
            if timeframe is not base:  # those that have closed at the first base close, and at the last there may be
                from_time_us = start_us + base.us - timeframe.us + 1
                until_us = max(from_time_us, end_us + base.us - timeframe.us)
            before = store.read_before([instrument], timeframe, from_time_us, feature_set.history(timeframe))
            first_us = int(before.open_us[0]) if len(before) else from_time_us
            census = store.census([instrument], timeframe, first_us, until_us)
            digest.update(f"{instrument} {timeframe} {first_us} {tuple(census)}\n".encode())
        yield
    return digest.hexdigest()


def _members(universe: Universe, start_us: int, end_us: int) -> str:
    """The members at closes in `[start_us, end_us)`, as text; empty where all instruments always do."""
    roster = universe.roster
    spans = (
        (name, max(one_us, start_us), min(other_us, end_us))
        for name in universe.ids
        for one_us, other_us in roster.stays(name)
    )
    told = [f"{name} {first_us} {last_us}\n" for name, first_us, last_us in spans if first_us < last_us]
    return "".join(("members\n", *told)) if universe.changes else ""
