"""Features of a range: only what is missing is computed, and what stands on other bars than before is missing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeloop.common.arrays import Floats
from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bus.port import LogPosition, Partition
from tradeloop.common.clock import ManualClock
from tradeloop.common.feature_store.feast.store import FeastFeatureStore
from tradeloop.common.feature_store.memory import MemoryFeatureStore
from tradeloop.common.feature_store.port import Covered, FeatureRows, FeatureStore
from tradeloop.common.features import FeatureSet, cross_rank, log_return, on, relative, talib
from tradeloop.common.market import (
    EVER_US,
    BarArrays,
    Instrument,
    Series,
    Timeframe,
    TimeRange,
    Universe,
    align,
    from_us,
    resample,
    to_us,
)
from tradeloop.common.messages import PreprocessCompleted, PreprocessRequested
from tradeloop.preprocess.application import batch
from tradeloop.preprocess.application.batch import Batch

M1, M5 = Timeframe.M1, Timeframe.M5
START_US = to_us(datetime(2024, 1, 1, 1, 20, tzinfo=UTC))
"""Where a part begins."""
UNIVERSE = Universe(
    name="u", instruments=(Instrument(id="x:A"), Instrument(id="x:B")), timeframe=M1, higher_timeframes=(M5,)
)
SET = FeatureSet([relative(talib("EMA", timeperiod=5)), on("5m", log_return(1)), cross_rank(log_return(3))])
POSITION = LogPosition(Partition("preprocess.requested.v1", 0), 0)


def minutes(opens: Mapping[str, list[int]], seed: int) -> BarArrays:
    """Bars of each instrument at some minutes, their prices from a seed."""
    rng = np.random.default_rng(seed)
    series: list[Series] = []
    for one in UNIVERSE.ids:
        open_us = START_US + np.array(sorted(opens.get(one, ())), dtype=np.int64) * M1.us
        close = 100.0 * np.exp(rng.normal(0, 1e-2, len(open_us)))
        prices = {"open": close, "high": close * 1.01, "low": close * 0.99, "close": close}
        series.append({"open_us": open_us, **prices, "volume": np.ones(len(close))})
    return align(UNIVERSE.ids, M1, series)


class Market:
    """Bars and features as they are stored, and requests."""

    def __init__(self, features: FeatureStore | None = None) -> None:
        self.clock = ManualClock(from_us(START_US) + timedelta(days=400))
        self.bars, self.features = MemoryBarStore(self.clock), features or MemoryFeatureStore()
        self.asked = self.written = 0

    def write(self, opens: Mapping[str, list[int]], seed: int = 0, revision: int = 0) -> None:
        self.written += 1
        self.clock.advance(1.0)
        self.bars.write(M1, minutes(opens, seed), revision)
        higher = resample(self.bars.read(UNIVERSE.ids, M1, -EVER_US, EVER_US), M1, M5)
        for n, open_us in enumerate(higher.open_us.tolist()):  # those that are new or corrected
            before = self.bars.read(UNIVERSE.ids, M5, open_us, open_us + 1)
            if not len(before) or before.close.tobytes() != higher.slice(n, n + 1).close.tobytes():
                self.bars.write(M5, higher.slice(n, n + 1), self.written)

    def batch(self, first: int, last: int, *, force: bool = False, same: bool = False) -> Batch:
        self.asked += not same
        span = TimeRange(start=from_us(START_US + first * M1.us), end=from_us(START_US + last * M1.us))
        request = PreprocessRequested(
            request_id=f"r{self.asked}", universe=UNIVERSE, strategy="s", range=span, force=force
        )

        def define(feature_set: FeatureSet) -> None:
            self.features.define(feature_set.id, feature_set.names)

        return Batch(self.bars, self.features, define, SET, request)

    def ask(self, first: int, last: int, *, force: bool = False, same: bool = False) -> tuple[int, int]:
        """How many rows were computed for a request, and how many were there."""
        completed = finished(self.batch(first, last, force=force, same=same))
        return completed.rows - completed.reused, completed.reused

    def expected(self, first: int, last: int) -> FeatureRows:
        """The features of a range, over all stored bars at once."""
        bars = {t: self.bars.read(UNIVERSE.ids, t, -EVER_US, EVER_US) for t in (M1, M5)}
        rows = SET.compute(bars, M1)
        opens = rows.time_us - M1.us
        inside = (opens >= START_US + first * M1.us) & (opens < START_US + last * M1.us)
        return FeatureRows(rows.instruments, rows.names, rows.time_us[inside], rows.values[inside])

    def check(self, first: int, last: int) -> None:
        wanted = self.expected(first, last)
        found = self.features.read_offline(SET.id, "u", UNIVERSE.ids, wanted.time_us)
        assert same(found.values, wanted.values)


def finished(work: Batch) -> PreprocessCompleted:
    messages: list[PreprocessCompleted] = []
    while not work.finished:
        messages += work.step()
    [completed] = messages
    return completed


def same(a: Floats, b: Floats) -> bool:
    """Equal to the last bit, where NaN equals NaN."""
    known = ~np.isnan(a)
    return a.shape == b.shape and np.array_equal(known, ~np.isnan(b)) and a[known].tobytes() == b[known].tobytes()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a hundred bars, so that a few hundred have some."""
    monkeypatch.setattr(batch, "_SPAN_BARS", 50)
    monkeypatch.setattr(batch, "_WRITTEN_ROWS", 200)


def both(first: int, last: int) -> dict[str, list[int]]:
    return {one: list(range(first, last)) for one in UNIVERSE.ids}


def test_a_range_is_computed_once() -> None:
    market = Market()
    market.write(both(0, 250))
    assert market.ask(0, 250) == (250, 0)
    assert market.ask(0, 250) == (0, 250)
    assert market.ask(30, 120) == (0, 90)
    market.check(0, 250)


def test_bars_that_came_since_are_computed_and_no_others() -> None:
    market = Market()
    market.write(both(0, 130))
    assert market.ask(0, 1000) == (130, 0)
    market.write(both(130, 135), 1)
    assert market.ask(0, 1000) == (5, 130)
    assert market.ask(0, 1000) == (0, 135)
    market.check(0, 1000)


def test_a_gap_between_what_is_stored_is_computed() -> None:
    market = Market()
    market.write(both(0, 400))
    assert market.ask(0, 100) == (100, 0)
    assert market.ask(300, 400) == (100, 0)
    assert market.ask(50, 350) == (200, 100)
    market.check(0, 400)


def test_a_corrected_bar_is_computed_again_with_what_follows_from_it() -> None:
    market = Market()
    market.write(both(0, 2000))
    assert market.ask(0, 2000) == (2000, 0)
    market.write({"x:B": [1234]}, 7, revision=1)
    computed, reused = market.ask(0, 2000)
    assert (computed, reused) == (800, 1200), "its part, and those that have it in their history"
    market.check(0, 2000)
    assert market.ask(0, 2000) == (0, 2000)


def test_a_bar_that_came_late_is_computed_with_what_follows_from_it() -> None:
    market = Market()
    market.write(both(0, 150))
    market.write(both(151, 300), 1)
    assert market.ask(0, 300) == (299, 0)
    market.write(both(150, 151), 2)
    assert market.ask(0, 300) == (200, 100)
    market.check(0, 300)


def test_history_before_what_is_stored_changes_what_was_short_of_it() -> None:
    market = Market()
    market.write(both(500, 700))
    assert market.ask(0, 1000) == (200, 0)
    market.write(both(0, 500), 1)
    assert market.ask(0, 1000) == (700, 0)
    market.check(0, 1000)


def test_force_computes_all_anew() -> None:
    market = Market()
    market.write(both(0, 250))
    market.ask(0, 250)
    rows = market.expected(0, 250)
    wrong = FeatureRows(rows.instruments, rows.names, rows.time_us, np.zeros_like(rows.values))
    market.features.write_offline(SET.id, "u", wrong)
    assert market.ask(0, 250) == (0, 250)
    assert market.ask(0, 250, force=True) == (250, 0)
    market.check(0, 250)


@pytest.mark.parametrize("force", [False, True])
def test_a_crash_repeats_no_part_and_changes_no_answer(small: None, force: bool) -> None:
    market, other = Market(), Market()
    for one in (market, other):
        one.write(both(0, 450))
        one.ask(0, 100)
    whole = finished(other.batch(0, 450, force=force))
    work = market.batch(0, 450, force=force)
    while len(market.features.covered(SET.id, "u")) < 3:
        list(work.step())
    again = market.batch(0, 450, force=force, same=True)
    written: list[Covered | None] = []
    write = market.features.write_offline

    def counted(feature_set: str, universe: str, rows: FeatureRows, covers: Covered | None = None) -> None:
        written.append(covers)
        write(feature_set, universe, rows, covers)

    market.features.write_offline = counted  # type: ignore[method-assign]
    assert finished(again) == whole
    assert len(written) == 2
    assert finished(market.batch(0, 450, force=force, same=True)) == whole
    market.check(0, 450)


def test_a_folder_of_feast_remembers_what_it_covers(tmp_path: Path) -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    market = Market(FeastFeatureStore(tmp_path, clock))
    market.write(both(0, 250))
    assert market.ask(0, 250) == (250, 0)
    market.features.close()
    market.features = FeastFeatureStore(tmp_path, clock)
    market.write(both(250, 260), 1)
    assert market.ask(0, 260) == (10, 250)
    market.check(0, 260)
    [newest] = [path for path in (tmp_path / "offline" / SET.id / "u").iterdir() if path.stem == max_stem(tmp_path)]
    newest.unlink()  # by hand, or from a backup: what it covered goes with it
    computed, reused = market.ask(0, 260)
    assert computed > 0
    assert computed + reused == 260
    market.check(0, 260)
    market.features.close()


def max_stem(folder: Path) -> str:
    return max(path.stem for path in (folder / "offline" / SET.id / "u").iterdir())


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from(["x:A", "x:B"]), st.integers(0, 280), st.integers(1, 40)),
        st.tuples(st.just("ask"), st.booleans(), st.integers(0, 280), st.integers(1, 300)),
    ),
    min_size=4,
    max_size=14,
)


@given(STEPS)
@settings(max_examples=40, deadline=None)
def test_whatever_comes_in_whatever_order_the_answer_is_that_of_all_bars_at_once(
    steps: list[tuple[str, str | bool, int, int]],
) -> None:
    """Late bars, corrections and requests of any range in any order; parts are as they are in production."""
    market = Market()
    for number, (what, which, first, count) in enumerate(steps):
        last = min(first + count, 300)
        if what == "write":
            market.write({str(which): list(range(first, last))}, number, revision=number)
        elif len(market.expected(first, last).time_us):
            computed, reused = market.ask(first, last, force=bool(which))
            assert computed + reused == len(market.expected(first, last).time_us)
            market.check(first, last)
            assert market.ask(first, last) == (0, computed + reused)
