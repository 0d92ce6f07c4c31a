"""The contract of the event store: `check_event_store`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Literal

from tradeloop.common.contracts.steps import fresh
from tradeloop.common.event_store.port import EventStore, MarketItem
from tradeloop.common.market import EVER_US, from_us
from tradeloop.common.messages import MarketBook, MarketNewsItem, MarketTrade

MakeEventStore = Callable[[], EventStore]
"""Opens the same storage at every call, as another process does; one that lives in an object gives that object."""

_NOON_US = 1_700_000_000_000_000
_EARLY_US = -1_000_000_000_000
"""A time before those of all other events, whose pruning harms no other check."""


def check_event_store(make_store: MakeEventStore) -> None:
    """Run all of `EVENT_STORE_CHECKS`, on one storage: instruments get new names at every run."""
    for check in EVENT_STORE_CHECKS:
        check(make_store)


def what_was_written_is_read_by_another(make_store: MakeEventStore) -> None:
    a, b = _instrument(), _instrument()
    trades = [_trade(a, _NOON_US, "1"), _trade(a, _NOON_US + 1, "2", None)]
    books = [_book(a, _NOON_US, 0.1), _book(a, _NOON_US + 1, 1 / 3)]
    rated, unrated = _news(a, _NOON_US, 0.5), _news(a, _NOON_US + 1, None)
    with closing(make_store()) as store:
        store.write([trades[1], books[1], unrated, _trade(b, _NOON_US, "1")])
        store.write([trades[0], rated, books[0]])
        store.write([])
    with closing(make_store()) as other:
        assert list(other.trades(a, -EVER_US, EVER_US)) == trades, "trades are lost, changed or not in order"
        assert list(other.books(a, -EVER_US, EVER_US)) == books, "order books are lost, changed or not in order"
        assert list(other.news(a, -EVER_US, EVER_US)) == [rated, unrated], "news are lost, changed or not in order"
        assert list(other.trades(b, -EVER_US, EVER_US)) == [_trade(b, _NOON_US, "1")], "instruments are mixed up"


def a_range_has_its_start_and_not_its_end(make_store: MakeEventStore) -> None:
    a = _instrument()
    with closing(make_store()) as store:
        for n in range(4):
            store.write([_trade(a, _NOON_US + n, str(n)), _book(a, _NOON_US + n, n + 1.0), _news(a, _NOON_US + n, 0.0)])
        span = a, _NOON_US + 1, _NOON_US + 3
        assert [one.id for one in store.trades(*span)] == ["1", "2"], "trades of another range"
        assert [one.bids[0][0] for one in store.books(*span)] == [2.0, 3.0], "books of another range"
        assert len(store.news(*span)) == 2, "news of another range"


def what_comes_again_is_stored_once(make_store: MakeEventStore) -> None:
    a = _instrument()
    items: Sequence[MarketItem] = [
        _trade(a, _NOON_US, "1"),
        _book(a, _NOON_US, 1.0),
        _book(a, _NOON_US, 2.0),
        _news(a, _NOON_US, 0.0),
    ]
    with closing(make_store()) as store:
        store.write([*items, *items])
        store.write(items)
        counts = [len(read(a, -EVER_US, EVER_US)) for read in (store.trades, store.books, store.news)]
    assert counts == [1, 2, 1], f"of 1 trade, 2 books of one time and 1 piece of news {counts} are stored"


def news_are_found_by_each_instrument_that_they_name(make_store: MakeEventStore) -> None:
    a, b = _instrument(), _instrument()
    with closing(make_store()) as store:
        store.write([_news(a, _NOON_US, 0.25).model_copy(update={"instruments": (a, b)})])
        for name in (a, b):
            assert list(store.news(name, -EVER_US, EVER_US)) == [_news(name, _NOON_US, 0.25)], f"{name} has no news"


def pruning_deletes_what_is_old_and_counts_it(make_store: MakeEventStore) -> None:
    a, b = _instrument(), _instrument()
    hour_us = 3_600_000_000
    with closing(make_store()) as store:
        store.prune(_EARLY_US + 6 * hour_us)  # of earlier runs
        for n in range(6):
            time_us = _EARLY_US + n * hour_us
            store.write(
                [_trade(a, time_us, "1"), _book(a, time_us, 1.0), _news(a, time_us, 0.0), _trade(b, time_us, "1")]
            )
        found = store.prune(_EARLY_US + 4 * hour_us)
        assert tuple(found) == (8, 4, 4), f"8 trades, 4 books and 4 pieces of news are old: {found} were deleted"
        assert [len(read(a, -EVER_US, EVER_US)) for read in (store.trades, store.books, store.news)] == [2, 2, 2]
        assert tuple(store.prune(_EARLY_US + 4 * hour_us)) == (0, 0, 0), "what is deleted is deleted again"
        store.check()


EVENT_STORE_CHECKS: Sequence[Callable[[MakeEventStore], None]] = (
    what_was_written_is_read_by_another,
    a_range_has_its_start_and_not_its_end,
    what_comes_again_is_stored_once,
    news_are_found_by_each_instrument_that_they_name,
    pruning_deletes_what_is_old_and_counts_it,
)
"""The contract, promise by promise: for test runners that want to name each one."""


def _instrument() -> str:
    return f"check:{fresh('events')}"


def _trade(instrument: str, time_us: int, id: str, side: Literal["buy"] | None = "buy") -> MarketTrade:
    return MarketTrade(instrument=instrument, id=id, time=from_us(time_us), price=1 / 3, size=0.1, side=side)


def _book(instrument: str, time_us: int, bid: float) -> MarketBook:
    return MarketBook(instrument=instrument, time=from_us(time_us), bids=((bid, 1.0), (0.05, 2.5)), asks=((9.1, 3.0),))


def _news(instrument: str, time_us: int, sentiment: float | None) -> MarketNewsItem:
    return MarketNewsItem(
        instruments=(instrument,),
        id=f"{time_us}",
        time=from_us(time_us),
        headline="It “happened”",
        source="wire",
        sentiment=sentiment,
    )
