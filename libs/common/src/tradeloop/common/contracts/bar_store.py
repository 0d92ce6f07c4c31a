"""The contract of the bar store: `check_bar_store`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial

import numpy as np

from tradeloop.common.bar_store.port import BarStore, Census, StoredSeries
from tradeloop.common.contracts.steps import fresh
from tradeloop.common.market import BAR_COLUMNS, EVER_US, BarArrays, Series, Timeframe, align

MakeBarStore = Callable[[], BarStore]
"""Opens the same storage at every call, as another process does; one that lives in an object gives that object."""

_MINUTE = Timeframe.M1.us


def check_bar_store(make_store: MakeBarStore) -> None:
    """Run all of `BAR_STORE_CHECKS`, on one storage: instruments get new names at every run."""
    for check in BAR_STORE_CHECKS:
        check(make_store)


def what_was_written_is_read_to_the_bit(make_store: MakeBarStore) -> None:
    with closing(make_store()) as store:
        a, b = _instruments()
        written = bars_at({a: [-3, 0, 1, 2, 5], b: [1, 2, 3]})
        store.write(Timeframe.M1, written)
        _same(store.read([a, b], Timeframe.M1, -EVER_US, EVER_US), written, "what was written is read otherwise")
        turned = store.read([b, a], Timeframe.M1, -EVER_US, EVER_US).instruments
        assert turned == (b, a), "instruments do not come in the order in which they were asked for"


def a_census_tells_of_every_bar_that_comes(make_store: MakeBarStore) -> None:
    with closing(make_store()) as store:
        a, b = _instruments()

        def counted(start: int = 0, end: int = 9) -> Census:
            return store.census([a, b], Timeframe.M1, start * _MINUTE, end * _MINUTE)

        assert counted() == Census(), "bars are counted that nobody wrote"
        store.write(Timeframe.M1, bars_at({a: [0, 1, 2], b: [2, 3]}))
        first = counted()
        assert first[:3] == (4, 5, 0), f"4 frames of 5 bars are counted as {first}"
        assert first.known_us > 0, "a census does not say when its bars became known"
        assert counted(1, 3)[:3] == (2, 3, 0), "a census counts bars of other times"
        store.write(Timeframe.M1, bars_at({a: [0, 1, 2]}, price=7.0))
        assert counted() == first, "bars that were refused are counted"
        store.write(Timeframe.M1, bars_at({a: [1]}, price=7.0), 2)
        assert counted()[:3] == (4, 6, 2), "a bar that was corrected is not counted"
        assert store.census([a], Timeframe.M5, 0, 9 * _MINUTE) == Census(), "bars of another timeframe are counted"


def a_list_names_every_series(make_store: MakeBarStore) -> None:
    with closing(make_store()) as store:
        a, b = _instruments()

        def listed() -> list[StoredSeries]:
            return [one for one in store.series() if one.instrument in (a, b)]

        assert not listed(), "series are listed that nobody wrote"
        store.write(Timeframe.H1, bars_at({b: [120]}))
        store.write(Timeframe.M1, bars_at({b: [2, 5], a: [-3, 0, 1]}))
        store.write(Timeframe.M1, bars_at({b: [5]}, price=7.0), 1)
        store.write(Timeframe.M5, bars_at({a: []}))
        expected = [
            StoredSeries(a, Timeframe.M1, 3, 3, -3 * _MINUTE, _MINUTE),
            StoredSeries(b, Timeframe.M1, 2, 3, 2 * _MINUTE, 5 * _MINUTE),
            StoredSeries(b, Timeframe.H1, 1, 1, 120 * _MINUTE, 120 * _MINUTE),
        ]
        assert listed() == expected, f"stored are {expected}, and listed are {listed()}"


def another_opening_finds_everything(make_store: MakeBarStore) -> None:
    a, _ = _instruments()
    whole = bars_at({a: [0, 1]})
    with closing(make_store()) as one, closing(make_store()) as two:
        two.check()
        two.check(writes=True)
        one.write(Timeframe.M1, whole.slice(0, 1))
        two.write(Timeframe.M1, whole.slice(1, 2))
        _same(one.read([a], Timeframe.M1, 0, EVER_US), whole, "what another opening wrote is not there")
    with closing(make_store()) as heir:
        _same(heir.read([a], Timeframe.M1, 0, EVER_US), whole, "what was written is gone when the store was closed")


def openings_that_write_at_once_lose_nothing(make_store: MakeBarStore) -> None:
    a, b = _instruments()
    with _openings(make_store, 4) as stores:

        def write(n: int) -> None:
            for minute in range(n, 80, 4):
                stores[n].write(Timeframe.M1, bars_at({a: [minute], b: [minute]}))

        _at_once([partial(write, n) for n in range(4)])
        whole = bars_at({a: list(range(80)), b: list(range(80))})
        _same(stores[0].read([a, b], Timeframe.M1, 0, EVER_US), whole, "of those that wrote at once some lost bars")


def many_bars_written_by_many_at_once_are_each_there_once(make_store: MakeBarStore) -> None:
    """As many as a database loads in bulk; of some the volume is not known."""
    a, b = _instruments()
    written = bars_at({a: list(range(0, 3000, 2)), b: list(range(1000, 2500))})
    written.volume[::7] = np.nan
    corrected = bars_at({a: list(range(0, 3000, 2))}, price=7.0)
    with closing(make_store()) as store:
        _at_once(
            [
                *(lambda: store.write(Timeframe.M1, written) for _ in range(3)),
                lambda: store.write(Timeframe.M1, corrected, 1),
            ]
        )
        found = store.read([a, b], Timeframe.M1, -EVER_US, EVER_US)
        assert found.open_us.tolist() == written.open_us.tolist(), "of those that wrote at once some lost bars"
        assert found.present.tolist() == written.present.tolist(), "a bar is there that nobody wrote, or one is not"
        is_corrected = np.array_equal(found.close[found.present[:, 0], 0], corrected.close[:, 0])
        assert is_corrected, "a higher revision lost against a lower one that was written at once"
        one = store.read([b], Timeframe.M1, -EVER_US, EVER_US)
        there = written.present[:, 1]
        for name in BAR_COLUMNS:
            same = np.array_equal(getattr(one, name)[:, 0], getattr(written, name)[there, 1], equal_nan=True)
            assert same, f"{name} changed in the store"
        _same(store.read_before([b], Timeframe.M1, EVER_US, 1500), one, "the last frames are not those of the whole")


def a_volume_that_is_not_known_stays_so(make_store: MakeBarStore) -> None:
    with closing(make_store()) as store:
        a, _ = _instruments()
        store.write(Timeframe.M1, bars_at({a: [0, 1]}, volume=False))
        volume = store.read([a], Timeframe.M1, 0, EVER_US).volume
        assert np.isnan(volume).all(), f"a volume that nobody knows is read as {volume[:, 0]}"


def further_columns_are_there_where_they_were_known(make_store: MakeBarStore) -> None:
    """Few bars, and as many as a database loads in bulk; of some the volume is not known."""
    for count in (7, 2500):
        a, b = _instruments()
        minutes = np.arange(count)
        chance = np.random.default_rng(count).normal(size=(2, count)) * 10.0 ** np.linspace(-12, 12, count)
        odd = {"book_imbalance_mean": chance[0], "trade_count": np.abs(chance[1])}
        odd["book_imbalance_mean"][::3] = np.nan
        odd["trade_count"][(minutes % 3 == 0) | (minutes % 5 == 1)] = np.nan  # every third bar has neither
        plain = bars_at({a: list(minutes), b: list(minutes[::2])})
        columns = {name: np.column_stack([column, np.full(count, np.nan)]) for name, column in odd.items()}
        written = replace(plain, extra=columns)
        written.volume[::7] = np.nan
        with closing(make_store()) as store:
            store.write(Timeframe.M1, written)
            _same(store.read([a, b], Timeframe.M1, 0, EVER_US), written, "further columns are read otherwise")
            last = store.read_before([a, b], Timeframe.M1, EVER_US, 5)
            _same(last, written.slice(count - 5, count), "further columns of the last bars are read otherwise")
            names = store.extra_columns([b, a], Timeframe.M1, 0, EVER_US)
            assert names == set(odd), f"there are {sorted(odd)}, and the store knows of {sorted(names)}"
            nothing = store.extra_columns([b], Timeframe.M1, 0, EVER_US)
            assert nothing == frozenset(), f"bars without further columns are said to have {sorted(nothing)}"
            empty = store.extra_columns([a], Timeframe.M1, 0, _MINUTE)
            assert empty == frozenset(), "a range ends after its end"


def a_revision_may_bring_further_columns_or_take_them(make_store: MakeBarStore) -> None:
    with closing(make_store()) as store:
        a, _ = _instruments()
        plain = bars_at({a: [0, 1, 2]})
        more = replace(plain, extra={"x": np.array([[1.5], [np.nan], [2.5]])})
        store.write(Timeframe.M1, plain)
        store.write(Timeframe.M1, more.slice(0, 2), revision=1)
        found = store.read([a], Timeframe.M1, 0, EVER_US)
        expected = replace(plain, extra={"x": np.array([[1.5], [np.nan], [np.nan]])})
        _same(found, expected, "a revision does not bring its further columns")
        store.write(Timeframe.M1, plain, revision=2)
        _same(store.read([a], Timeframe.M1, 0, EVER_US), plain, "a further column outlives its revision")


def the_end_of_a_range_is_left_out(make_store: MakeBarStore) -> None:
    with closing(make_store()) as store:
        a, _ = _instruments()
        store.write(Timeframe.M1, bars_at({a: [0, 1, 2, 3]}))
        minutes = _minutes(store.read([a], Timeframe.M1, _MINUTE, 3 * _MINUTE))
        assert minutes == [1, 2], f"from minute 1 up to minute 3 there are the minutes {minutes}"


def a_range_equals_that_part_of_the_whole(make_store: MakeBarStore) -> None:
    with closing(make_store()) as store:
        a, b = _instruments()
        whole = bars_at({a: [-3, 0, 1, 4, 5], b: [1, 2, 3]})
        store.write(Timeframe.M1, whole)
        for start in range(-4, 8):
            first = int(np.searchsorted(whole.open_us, start * _MINUTE))
            part = store.read([a, b], Timeframe.M1, start * _MINUTE, EVER_US)
            _same(part, whole.slice(first, len(whole)), f"from minute {start} on, a range differs from the whole")


def nothing_stored_is_zero_frames(make_store: MakeBarStore) -> None:
    with closing(make_store()) as store:
        a, b = _instruments()
        store.write(Timeframe.M1, bars_at({a: [0]}))
        for nothing in (
            store.read([b], Timeframe.M1, 0, EVER_US),
            store.read([a], Timeframe.M5, 0, EVER_US),
            store.read([a], Timeframe.M1, _MINUTE, EVER_US),
            store.read([a], Timeframe.M1, _MINUTE, 0),
            store.read_before([a], Timeframe.M1, 0, 5),
            store.read_before([a], Timeframe.M1, EVER_US, 0),
        ):
            assert len(nothing) == 0, "frames are read that nobody wrote"
            assert nothing.close.shape == (0, 1), f"nothing has the shape {nothing.close.shape}, and not (0, 1)"
        store.write(Timeframe.M1, bars_at({b: []}))
        assert len(store.read([b], Timeframe.M1, 0, EVER_US)) == 0, "writing nothing left something"


def the_last_frames_are_those_of_the_common_grid(make_store: MakeBarStore) -> None:
    with closing(make_store()) as store:
        a, b = _instruments()
        whole = bars_at({a: [0, 1, 2, 6], b: [1, 3, 4]})
        store.write(Timeframe.M1, whole)
        for end_us, frames, expected in (
            (6 * _MINUTE, 3, whole.slice(2, 5)),
            (EVER_US, 4, whole.slice(2, 6)),
            (EVER_US, 99, whole),
        ):
            found = store.read_before([a, b], Timeframe.M1, end_us, frames)
            _same(found, expected, f"the last {frames} frames are not those of the common grid")


def writing_again_changes_nothing(make_store: MakeBarStore) -> None:
    with closing(make_store()) as store:
        a, _ = _instruments()
        first = bars_at({a: [0, 1]})
        for written in (first, first, bars_at({a: [0, 1]}, price=5.0)):
            store.write(Timeframe.M1, written)
            found = store.read([a], Timeframe.M1, 0, EVER_US)
            _same(found, first, "a bar that was there was replaced by one of no higher revision")


def a_higher_revision_replaces_whenever_it_comes(make_store: MakeBarStore) -> None:
    with closing(make_store()) as store:
        a, b = _instruments()
        corrected = bars_at({a: [1]}, price=7.0)
        store.write(Timeframe.M1, corrected, revision=2)
        store.write(Timeframe.M1, bars_at({a: [0, 1, 2]}))
        store.write(Timeframe.M1, bars_at({a: [1]}, price=9.0), revision=1)
        found = store.read([a], Timeframe.M1, 0, EVER_US)
        assert _minutes(found) == [0, 1, 2], "a bar of several revisions is not there once"
        assert found.close[1] == corrected.close[0], "a bar is not read in its highest revision"
        last = _minutes(store.read_before([a], Timeframe.M1, EVER_US, 2))
        assert last == [1, 2], "a bar of several revisions counts as several frames"
        # Also where it is only carried forward.
        store.write(Timeframe.M1, bars_at({b: [2]}))
        both = store.read([a, b], Timeframe.M1, 2 * _MINUTE, EVER_US)
        assert both.present.tolist() == [[True, True]], "a bar that is there is not present"
        nothing = store.read([b, a], Timeframe.M1, 2 * _MINUTE, 2 * _MINUTE)
        assert nothing.instruments == (b, a), "an empty range has other instruments than those asked for"


def a_carried_close_is_that_of_the_highest_revision(make_store: MakeBarStore) -> None:
    with closing(make_store()) as store:
        a, b = _instruments()
        store.write(Timeframe.M1, bars_at({a: [1], b: [2]}))
        corrected = bars_at({a: [1]}, price=7.0)
        store.write(Timeframe.M1, corrected, revision=1)
        found = store.read([a, b], Timeframe.M1, 2 * _MINUTE, EVER_US)
        assert found.present.tolist() == [[False, True]], "a bar before the range is present in it"
        assert found.close[0, 0] == corrected.close[0, 0], "a close is carried forward that was corrected"


def only_present_bars_are_stored(make_store: MakeBarStore) -> None:
    with closing(make_store()) as store:
        a, b = _instruments()
        store.write(Timeframe.M1, bars_at({a: [0, 1], b: [1]}))
        minutes = _minutes(store.read([b], Timeframe.M1, -EVER_US, EVER_US))
        assert minutes == [1], f"a bar at minute 1 was written, and there are bars at {minutes}"


BAR_STORE_CHECKS: Sequence[Callable[[MakeBarStore], None]] = (
    what_was_written_is_read_to_the_bit,
    a_census_tells_of_every_bar_that_comes,
    a_list_names_every_series,
    another_opening_finds_everything,
    openings_that_write_at_once_lose_nothing,
    many_bars_written_by_many_at_once_are_each_there_once,
    a_volume_that_is_not_known_stays_so,
    further_columns_are_there_where_they_were_known,
    a_revision_may_bring_further_columns_or_take_them,
    the_end_of_a_range_is_left_out,
    a_range_equals_that_part_of_the_whole,
    nothing_stored_is_zero_frames,
    the_last_frames_are_those_of_the_common_grid,
    writing_again_changes_nothing,
    a_higher_revision_replaces_whenever_it_comes,
    a_carried_close_is_that_of_the_highest_revision,
    only_present_bars_are_stored,
)
"""The contract of a bar store, promise by promise: for test runners that want to name each one."""


def bars_at(minutes: Mapping[str, Sequence[int]], price: float = 100.0, volume: bool = True) -> BarArrays:
    """One-minute bars whose prices and volumes all differ, by instrument and minute since the epoch."""
    series: list[Series] = []
    for a, times in enumerate(minutes.values()):
        base = price + 1000.0 * a + np.array(times, dtype=np.float64) / 3
        columns = {"open": base, "high": base + 0.7, "low": base - 0.7, "close": base + 0.1, "funding_rate": base / 1e7}
        series.append(
            {"open_us": np.array(times, dtype=np.int64) * _MINUTE, **columns, **({"volume": base} if volume else {})}
        )
    return align(tuple(minutes), Timeframe.M1, series)


def _instruments() -> tuple[str, str]:
    venue = fresh("venue")
    return f"{venue}:A", f"{venue}:B"


def _minutes(bars: BarArrays) -> list[int]:
    return [int(open_us) // _MINUTE for open_us in bars.open_us]


def _same(found: BarArrays, expected: BarArrays, otherwise: str) -> None:
    """Raise `AssertionError` with the message `otherwise` unless both are equal to the last bit."""
    for name in ("instruments", "open_us", "close_us", "present"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), f"{otherwise}: {name} differs"
    ours, theirs, nothing = expected.columns(), found.columns(), np.full(found.present.shape, np.nan)
    for name in ours.keys() | theirs.keys():
        is_equal = np.array_equal(ours.get(name, nothing), theirs.get(name, nothing), equal_nan=True)
        assert is_equal, f"{otherwise}: {name} differs"


@contextmanager
def _openings(make_store: MakeBarStore, count: int) -> Iterator[list[BarStore]]:
    with ExitStack() as opened:
        yield [opened.enter_context(closing(make_store())) for _ in range(count)]


def _at_once(calls: Sequence[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(len(calls)) as pool:
        for done in [pool.submit(call) for call in calls]:
            done.result()
