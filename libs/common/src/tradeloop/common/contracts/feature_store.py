"""The contract of the feature store: `check_feature_store`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.contracts.steps import fresh, kept, refused
from tradeloop.common.feature_store.port import Covered, FeatureRows, FeatureSetUnknown, FeaturesTooOld, FeatureStore

MakeFeatureStore = Callable[[], FeatureStore]
"""Opens the same storage at every call, as another process does; one that lives in an object gives that object."""

_MINUTE = 60_000_000
_NAMES = ("log_return(1)", "1h:EMA(20)", "rsi.14")
_INSTRUMENTS = ("binance:BTC/USDT", "binance:ETH/USDT")


def check_feature_store(make_store: MakeFeatureStore) -> None:
    """Run all of `FEATURE_STORE_CHECKS`, on one storage: feature sets and universes get new names at every run."""
    for check in FEATURE_STORE_CHECKS:
        check(make_store)


def history_comes_back_bit_by_bit(make_store: MakeFeatureStore) -> None:
    with closing(make_store()) as store:
        shelf = _shelf(store)
        values = np.random.default_rng(7).normal(size=(50, 2, 3))
        values[0, 0] = [np.nan, -0.0, np.inf]
        values[1, 1] = [5e-324, -np.inf, np.nextafter(1.0, 2.0)]
        values[:20, 1, 2] = np.nan
        written = rows_at(range(1, 51), values)
        store.write_offline(shelf.set, shelf.universe, written)
        found = store.read_offline(shelf.set, shelf.universe, _INSTRUMENTS, written.time_us)
        assert (found.instruments, found.names) == (_INSTRUMENTS, _NAMES), "history has other columns"
        assert found.time_us.tolist() == written.time_us.tolist(), "history has other times than those asked for"
        assert found.values.dtype == np.float64, f"history comes back as {found.values.dtype}"
        assert found.values.tobytes() == written.values.tobytes(), "history comes back with other bits"


def a_long_history_comes_back(make_store: MakeFeatureStore) -> None:
    with closing(make_store()) as store:
        shelf = _shelf(store)
        values = np.random.default_rng(0).normal(size=(22_500, 2, 3))
        written = rows_at(range(1, 22_501), values)
        store.write_offline(shelf.set, shelf.universe, written)
        found = store.read_offline(shelf.set, shelf.universe, _INSTRUMENTS, written.time_us)
        assert found.values.tobytes() == values.tobytes(), "a long history comes back with other bits"


def a_join_takes_the_row_of_that_very_time_and_never_a_later_one(make_store: MakeFeatureStore) -> None:
    with closing(make_store()) as store:
        shelf = _shelf(store)
        store.write_offline(shelf.set, shelf.universe, rows_at([10, 20, 30], _numbered(3)))
        asked = np.array(
            [10 * _MINUTE - 1, 10 * _MINUTE, 20 * _MINUTE - 1, 20 * _MINUTE, 20 * _MINUTE + 1, 99 * _MINUTE]
        )
        found = store.read_offline(shelf.set, shelf.universe, _INSTRUMENTS, asked).values
        _are(found, [np.nan, 1, 1, 2, 2, 3], "a join takes another row than the newest at or before its time")


def joins_are_those_of_a_plain_search(make_store: MakeFeatureStore) -> None:
    with closing(make_store()) as store:
        shelf, chance = _shelf(store), np.random.default_rng(11)
        written: dict[tuple[str, int], float] = {}
        for _ in range(12):
            minute, instrument = int(chance.integers(13)), str(chance.choice(_INSTRUMENTS))
            written[instrument, minute] = float(chance.normal())
            row = rows_at([minute], written[instrument, minute], (instrument,))
            store.write_offline(shelf.set, shelf.universe, row)
        found = shelf.read(range(-2, 15))
        for t, minute in enumerate(range(-2, 15)):
            for a, instrument in enumerate(_INSTRUMENTS):
                known = [time for name, time in written if name == instrument and time <= minute]
                expected = written[instrument, max(known)] if known else np.nan
                _are(found[t : t + 1, a : a + 1], [expected], f"{instrument} has other features at minute {minute}")


def a_row_of_nan_is_a_row(make_store: MakeFeatureStore) -> None:
    with closing(make_store()) as store:
        shelf = _shelf(store)
        values = np.array([1.0, np.nan, 3.0])[:, None, None]
        store.write_offline(shelf.set, shelf.universe, rows_at([1, 2, 3], values))
        _are(shelf.read([1, 2, 3]), [1, np.nan, 3], "a row of NaN is passed over")


def instruments_are_joined_each_on_its_own_in_the_asked_order(make_store: MakeFeatureStore) -> None:
    with closing(make_store()) as store:
        shelf = _shelf(store)
        store.write_offline(shelf.set, shelf.universe, rows_at([1, 2], np.array([[[1.0], [2.0]], [[3.0], [4.0]]])))
        store.write_offline(shelf.set, shelf.universe, rows_at([3], 5.0, _INSTRUMENTS[1:]))
        found = shelf.read([2, 3], (_INSTRUMENTS[1], "binance:NEW/USDT", _INSTRUMENTS[0]))[:, :, 0]
        same = np.array_equal(found, [[4, np.nan, 3], [5, np.nan, 3]], equal_nan=True)
        assert same, f"instruments are not joined each on its own, in the asked order: {found.tolist()}"


def universes_and_sets_do_not_mix(make_store: MakeFeatureStore) -> None:
    with closing(make_store()) as store:
        shelf, other = _shelf(store), _shelf(store)
        for feature_set, universe, value in ((shelf.set, other.universe, 1.0), (other.set, shelf.universe, 2.0)):
            store.write_offline(feature_set, universe, rows_at([1], value))
            store.write_online(feature_set, universe, rows_at([1], value))
        assert np.isnan(shelf.read([1])).all(), "history of another universe or feature set is read"
        assert not len(shelf.current().time_us), "current values of another universe or feature set are read"


def a_row_written_again_replaces_the_older_one(make_store: MakeFeatureStore) -> None:
    with closing(make_store()) as store:
        shelf = _shelf(store)
        store.write_offline(shelf.set, shelf.universe, rows_at([1, 2, 3], 1.0))
        store.write_offline(shelf.set, shelf.universe, rows_at([2], 2.0))
        store.write_offline(shelf.set, shelf.universe, rows_at([3, 4], np.nan))
        _are(shelf.read([1, 2, 3, 4]), [1, 2, np.nan, np.nan], "a row that was written again has its old values")


def nothing_asked_or_written_is_nothing(make_store: MakeFeatureStore) -> None:
    with closing(make_store()) as store:
        shelf = _shelf(store)
        store.write_offline(shelf.set, shelf.universe, rows_at([], 0.0))
        assert shelf.read([]).shape == (0, 2, 3), "no time asked for gives rows"
        assert np.isnan(shelf.read([1])).all(), "features are read that nobody wrote"


def the_last_row_is_served_bit_by_bit(make_store: MakeFeatureStore) -> None:
    with closing(make_store()) as store:
        shelf = _shelf(store)
        values = np.random.default_rng(3).normal(size=(3, 2, 3))
        values[2, 0, 1], values[2, 1, 0] = np.nan, -0.0
        store.write_online(shelf.set, shelf.universe, rows_at([1, 2, 3], values))
        turned = _INSTRUMENTS[::-1]
        found = store.read_online(shelf.set, shelf.universe, turned)
        assert (found.instruments, found.names) == (turned, _NAMES), "current values have other columns"
        assert found.time_us.tolist() == [3 * _MINUTE], "current values are not those of the last row"
        assert found.values.tobytes() == values[2:, ::-1].tobytes(), "current values come back with other bits"


def an_older_row_never_overwrites_a_newer_one(make_store: MakeFeatureStore) -> None:
    with closing(make_store()) as store:
        shelf = _shelf(store)
        store.write_online(shelf.set, shelf.universe, rows_at([5], 5.0))
        store.write_online(shelf.set, shelf.universe, rows_at([4], 4.0))
        _are(shelf.current().values, [5], "an older row took the place of a newer one")
        store.write_online(shelf.set, shelf.universe, rows_at([5], 5.5))  # a corrected bar
        _are(shelf.current().values, [5.5], "a row that was corrected has its old values")


def the_time_is_that_of_the_oldest_instrument(make_store: MakeFeatureStore) -> None:
    with closing(make_store()) as store:
        shelf = _shelf(store)
        store.write_online(shelf.set, shelf.universe, rows_at([6], 6.0, _INSTRUMENTS[:1]))
        store.write_online(shelf.set, shelf.universe, rows_at([5], 5.0))
        found = shelf.current()
        assert found.time_us.tolist() == [5 * _MINUTE], "the time of current values is not that of the oldest"
        assert found.values[0, :, 0].tolist() == [6, 5], "an instrument lost its newer values"
        assert found.mixed, "values of two bars pass for those of one"
        store.write_online(shelf.set, shelf.universe, rows_at([6], 6.0))
        assert not shelf.current().mixed, "values of one bar pass for those of two"


def part_of_a_universe_is_not_served(make_store: MakeFeatureStore) -> None:
    with closing(make_store()) as store:
        shelf = _shelf(store)
        assert shelf.current().values.shape == (0, 2, 3), "current values are read that nobody wrote"
        store.write_online(shelf.set, shelf.universe, rows_at([], 1.0))
        store.write_online(shelf.set, shelf.universe, rows_at([1], 1.0, _INSTRUMENTS[:1]))
        alone = store.read_online(shelf.set, shelf.universe, _INSTRUMENTS[:1])
        assert len(alone.time_us) == 1, "an instrument that has values is not served"
        assert not len(shelf.current().time_us), "part of a universe is served"


def values_older_than_asked_for_are_refused(make_store: MakeFeatureStore) -> None:
    with closing(make_store()) as store:
        shelf = _shelf(store)
        refused(FeaturesTooOld, lambda: shelf.current(since=5), "values that nobody wrote", "are none")
        store.write_online(shelf.set, shelf.universe, rows_at([6], 6.0, _INSTRUMENTS[:1]))
        store.write_online(shelf.set, shelf.universe, rows_at([5], 5.0))
        assert shelf.current(since=5).time_us.tolist() == [5 * _MINUTE], "values of that very bar are too old"
        refused(
            FeaturesTooOld, lambda: shelf.current(since=6), "values of which one is older", "closed 1970-01-01T00:05"
        )


def a_stretch_is_remembered_with_its_rows(make_store: MakeFeatureStore) -> None:
    with closing(make_store()) as store, closing(make_store()) as other:
        shelf = _shelf(store)
        assert not store.covered(shelf.set, shelf.universe), "a stretch is covered that nobody wrote"
        first, second = Covered(0, 9, "a", "r"), Covered(9, 12, "b", "r")
        store.write_offline(shelf.set, shelf.universe, rows_at([1], 1.0), second)
        store.write_offline(shelf.set, shelf.universe, rows_at([2], 1.0), first)
        store.write_offline(shelf.set, shelf.universe, rows_at([], 1.0), Covered(20, 30, "c", "r"))
        store.write_offline(shelf.set, shelf.universe, rows_at([3], 1.0))
        found = list(kept(lambda: other.covered(shelf.set, shelf.universe), "what was covered"))
        assert found == [first, second], f"other stretches are covered than were written: {found}"
        assert not store.covered(shelf.set, fresh("universe")), "a stretch of another universe is covered"
        store.write_offline(shelf.set, shelf.universe, rows_at([4], 2.0), Covered(8, 10, "d", "r"))
        found = list(store.covered(shelf.set, shelf.universe))
        assert found == [Covered(8, 10, "d", "r")], f"a stretch is covered that a later one overlaps: {found}"


def times_finer_than_a_second_are_kept(make_store: MakeFeatureStore) -> None:
    with closing(make_store()) as store:
        shelf = _shelf(store)
        times = np.array([1_000_001, 1_000_002], dtype=np.int64)
        written = FeatureRows(_INSTRUMENTS, _NAMES, times, np.broadcast_to(_numbered(2), (2, 2, 3)).copy())
        store.write_offline(shelf.set, shelf.universe, written)
        store.write_online(shelf.set, shelf.universe, written)
        found = store.read_offline(shelf.set, shelf.universe, _INSTRUMENTS, times).values
        _are(found, [1, 2], "two rows of one second are not kept apart")
        assert shelf.current().time_us.tolist() == [1_000_002], "the time of current values is rounded"


def defining_again_is_harmless_and_changing_is_refused(make_store: MakeFeatureStore) -> None:
    with closing(make_store()) as store:
        shelf = _shelf(store)
        store.write_offline(shelf.set, shelf.universe, rows_at([1], 1.0))
        store.define(shelf.set, _NAMES)
        _are(shelf.read([1]), [1], "defining a feature set again lost its rows")
        says = f"{shelf.set} has other features"
        refused(ValueError, lambda: store.define(shelf.set, _NAMES[::-1]), "another set under a known id", says)


def an_unknown_set_is_named(make_store: MakeFeatureStore) -> None:
    with closing(make_store()) as store:
        unknown, universe, row = fresh("set"), fresh("universe"), rows_at([1], 1.0)
        times, says = np.array([_MINUTE]), f"{unknown} is unknown: define it first"
        for what, call in (
            ("writing history", lambda: store.write_offline(unknown, universe, row)),
            ("reading history", lambda: store.read_offline(unknown, universe, _INSTRUMENTS, times)),
            ("writing current values", lambda: store.write_online(unknown, universe, row)),
            ("reading current values", lambda: store.read_online(unknown, universe, _INSTRUMENTS)),
            ("asking for stretches", lambda: store.covered(unknown, universe)),
        ):
            refused(FeatureSetUnknown, call, f"{what} of an unknown set", says)


def rows_of_other_features_are_refused(make_store: MakeFeatureStore) -> None:
    with closing(make_store()) as store:
        shelf = _shelf(store)
        wrong = FeatureRows(_INSTRUMENTS, _NAMES[::-1], np.array([_MINUTE]), np.zeros((1, 2, 3)))
        says = f"{shelf.set} has the features"
        for write in (store.write_offline, store.write_online):
            refused(ValueError, partial(write, shelf.set, shelf.universe, wrong), "a row of others", says)


def another_opening_finds_everything(make_store: MakeFeatureStore) -> None:
    with closing(make_store()) as first, closing(make_store()) as second:
        shelf, later = _shelf(first), fresh("set")
        first.write_offline(shelf.set, shelf.universe, rows_at([1], 1.0))
        first.write_online(shelf.set, shelf.universe, rows_at([1], 1.0))
        second.check()
        there = replace(shelf, store=second)
        history = kept(lambda: there.read([1]), "what another opening defined")
        _are(history, [1], "another opening does not find the history")
        _are(there.current().values, [1], "another opening does not find the current values")
        first.define(later, _NAMES[:1])  # after the second one has read what is defined
        late = partial(second.read_offline, later, shelf.universe, _INSTRUMENTS, np.array([1]))
        names = kept(late, "what another opening defined later").names
        assert names == _NAMES[:1], "a set that was defined later has other features in another opening"


def openings_that_define_at_once_lose_nothing(make_store: MakeFeatureStore) -> None:
    with ExitStack() as opened:
        stores = [opened.enter_context(closing(make_store())) for _ in range(4)]
        names = [fresh("set") for _ in range(4)]

        def define(store: FeatureStore) -> None:
            for name in names:
                store.define(name, ["a", "b"])

        with ThreadPoolExecutor(len(stores)) as pool:
            list(pool.map(define, stores))
        late = opened.enter_context(closing(make_store()))
        for name in names:
            refused(
                ValueError, partial(late.define, name, ["b", "a"]), "another set under a known id", "has other features"
            )


FEATURE_STORE_CHECKS: Sequence[Callable[[MakeFeatureStore], None]] = (
    history_comes_back_bit_by_bit,
    a_long_history_comes_back,
    a_join_takes_the_row_of_that_very_time_and_never_a_later_one,
    joins_are_those_of_a_plain_search,
    a_row_of_nan_is_a_row,
    instruments_are_joined_each_on_its_own_in_the_asked_order,
    universes_and_sets_do_not_mix,
    a_row_written_again_replaces_the_older_one,
    nothing_asked_or_written_is_nothing,
    the_last_row_is_served_bit_by_bit,
    an_older_row_never_overwrites_a_newer_one,
    the_time_is_that_of_the_oldest_instrument,
    part_of_a_universe_is_not_served,
    values_older_than_asked_for_are_refused,
    a_stretch_is_remembered_with_its_rows,
    times_finer_than_a_second_are_kept,
    defining_again_is_harmless_and_changing_is_refused,
    an_unknown_set_is_named,
    rows_of_other_features_are_refused,
    another_opening_finds_everything,
    openings_that_define_at_once_lose_nothing,
)
"""The contract of a feature store, promise by promise: for test runners that want to name each one."""


def rows_at(
    minutes: Sequence[int], values: NDArray[np.float64] | float, instruments: tuple[str, ...] = _INSTRUMENTS
) -> FeatureRows:
    """Rows of the three features at minutes since the epoch; `values` are broadcast to (T, A, 3)."""
    shape = (len(minutes), len(instruments), len(_NAMES))
    times = np.array(minutes, dtype=np.int64) * _MINUTE
    return FeatureRows(instruments, _NAMES, times, np.broadcast_to(values, shape).copy())


@dataclass(frozen=True, slots=True)
class _Shelf:
    """A feature set and a universe that nobody else uses, in a store."""

    store: FeatureStore
    set: str
    universe: str

    def read(self, minutes: Sequence[int], instruments: tuple[str, ...] = _INSTRUMENTS) -> NDArray[np.float64]:
        times = np.array(minutes, dtype=np.int64) * _MINUTE
        return self.store.read_offline(self.set, self.universe, instruments, times).values

    def current(self, since: int | None = None) -> FeatureRows:
        since_us = None if since is None else since * _MINUTE
        return self.store.read_online(self.set, self.universe, _INSTRUMENTS, since_us)


def _shelf(store: FeatureStore) -> _Shelf:
    shelf = _Shelf(store, fresh("set"), fresh("universe"))
    store.define(shelf.set, _NAMES)
    return shelf


def _numbered(count: int) -> NDArray[np.float64]:
    return np.arange(1.0, count + 1)[:, None, None]


def _are(values: NDArray[np.float64], expected: Sequence[float], otherwise: str) -> None:
    """Raise `AssertionError` with the message `otherwise` unless each row (A, F) repeats its one number."""
    rows = np.broadcast_to(np.array(expected, dtype=np.float64)[:, None, None], (len(expected), *values.shape[1:]))
    same = values.shape == rows.shape and np.array_equal(values, rows, equal_nan=True)
    assert same, f"{otherwise}: {values.tolist()}, and not {list(expected)}"
