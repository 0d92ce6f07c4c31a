"""The contract of the record of what was fetched: `check_fetched`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

from tradeloop.common.contracts.steps import fresh
from tradeloop.common.market import Instrument, Timeframe
from tradeloop.ingest.ports import Fetched, FetchedSpan

MakeFetched = Callable[[], Fetched]
"""Opens the same record at every call, as another process does."""


def check_fetched(make: MakeFetched) -> None:
    """Run all of `FETCHED_CHECKS`, on one record: instruments get new names at every run."""
    for check in FETCHED_CHECKS:
        check(make)


def what_was_recorded_is_found_by_another(make: MakeFetched) -> None:
    name = _instrument()
    with closing(make()) as one:
        assert list(one.spans("s", name, Timeframe.M1)) == [], "what was never fetched is on record"
        one.add("s", name, Timeframe.M1, FetchedSpan(10, 20, 1))
    with closing(make()) as other:
        assert list(other.spans("s", name, Timeframe.M1)) == [FetchedSpan(10, 20, 1)], "a range is lost"


def ranges_that_meet_are_one(make: MakeFetched) -> None:
    name = _instrument()
    with closing(make()) as one:
        for span in (FetchedSpan(30, 40, 2), FetchedSpan(10, 20), FetchedSpan(20, 30, 1), FetchedSpan(50, 60)):
            one.add("s", name, Timeframe.M1, span)
        found = list(one.spans("s", name, Timeframe.M1))
    assert found == [FetchedSpan(10, 40, 3), FetchedSpan(50, 60)], f"ranges are joined as {found}"


def recording_again_changes_nothing(make: MakeFetched) -> None:
    name = _instrument()
    with closing(make()) as one:
        for _ in range(2):
            one.add("s", name, Timeframe.M1, FetchedSpan(10, 20, 1))
        found = list(one.spans("s", name, Timeframe.M1))
    assert found == [FetchedSpan(10, 20, 1)], f"a range that is recorded twice is {found}"


def sources_instruments_and_timeframes_are_apart(make: MakeFetched) -> None:
    name = _instrument()
    with closing(make()) as one:
        one.add("s", name, Timeframe.M1, FetchedSpan(10, 20))
        for other in (("t", name, Timeframe.M1), ("s", _instrument(), Timeframe.M1), ("s", name, Timeframe.H1)):
            assert not one.spans(*other), f"{other} has a range that is another's"


def terms_are_kept_with_the_time_of_each_change(make: MakeFetched) -> None:
    name = _instrument()
    first = Instrument(id=name, tick_size=0.1)
    second = Instrument(id=name, tick_size=0.01)
    with closing(make()) as one:
        assert not one.terms(name), "terms are known that were never recorded"
        for terms in (first, first, second):
            one.add_terms(terms)
        found = list(one.terms(name))
    assert [terms for _, terms in found] == [first, second], "terms are not those that were recorded, each once"
    assert found[0][0] < found[1][0], "terms do not come in the order in which they became known"


FETCHED_CHECKS: Sequence[Callable[[MakeFetched], None]] = (
    what_was_recorded_is_found_by_another,
    ranges_that_meet_are_one,
    recording_again_changes_nothing,
    sources_instruments_and_timeframes_are_apart,
    terms_are_kept_with_the_time_of_each_change,
)
"""The contract, promise by promise: for test runners that want to name each one."""


def _instrument() -> str:
    return f"check:{fresh('fetched')}"
