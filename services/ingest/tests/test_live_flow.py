"""Trades, order books and news of live feeds: columns of the bars that go out, and messages of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pytest

from services.ingest.tests.scripted import M1, START, START_US, Stand, truth, universe
from tradeloop.common.clock import ManualClock
from tradeloop.common.errors import Unavailable
from tradeloop.common.event_store.memory import MemoryEventStore
from tradeloop.common.event_store.port import EventStore, MarketItem
from tradeloop.common.market import EVER_US, from_us, to_us
from tradeloop.common.messages import Channel, LiveRequested, MarketBooks, MarketNews, MarketTrade, MarketTrades
from tradeloop.common.runtime.readback import all_messages
from tradeloop.ingest.application.live.flows import Flows
from tradeloop.ingest.application.live.recorder import Recorder
from tradeloop.ingest.ports import Connected, Malformed, StreamedBook, StreamedNews, StreamedTrade

FLOW: tuple[Channel, ...] = ("bars", "trades", "books", "news")


def ask(stand: Stand, channels: tuple[Channel, ...] = FLOW) -> None:
    request = LiveRequested(
        request_id="r", universe=stand.universe, command="start", time=stand.clock.now(), channels=channels
    )
    stand.send(request)
    stand.settle()


def trade(stand: Stand, at_s: float, size: float = 1.0, side: Literal["buy", "sell"] = "buy", to: str = "x:A") -> None:
    time_us = START_US + round(at_s * 1e6)
    stand.source.events.append(StreamedTrade(to, f"{at_s}", time_us, 100.0, size, side, to_us(stand.clock.now())))


def at(stand: Stand, minute: float, step_s: float = 5.0) -> None:
    """Let the venue's clock come to a minute after the start."""
    stand.until(minute - stand.source.ahead_us / 60e6, step_s)


def minutes(stand: Stand, first: int, last: int) -> None:
    """Minutes with two trades each: one of the minute's number and 1 bought, one of 1 sold; then the closed bar."""
    for minute in range(first, last):
        for name in stand.universe.ids:
            at(stand, minute + 0.1)
            trade(stand, minute * 60 + 1, minute + 1.0, to=name)
            at(stand, minute + 0.6)
            stand.source.put(minute, *stand.universe.ids, closed=False, part=0.5)
        at(stand, minute + 0.9)
        for name in stand.universe.ids:
            trade(stand, minute * 60 + 50, 1.0, "sell", to=name)
        at(stand, minute + 1)
        stand.source.put(minute, *stand.universe.ids)
        at(stand, minute + 1 + 1 / 60, step_s=0.25)


def extras(stand: Stand) -> list[dict[str, float]]:
    """The columns of the first instrument's bars as they went out."""
    return [one.bars[0].extra for one in stand.frames()]


def sums(stand: Stand) -> list[tuple[float, float] | None]:
    return [(one["trade_count"], one["buy_volume"]) if one else None for one in extras(stand)]


def test_columns_go_out_with_their_bar_and_are_stored() -> None:
    stand = Stand(universe(2))
    ask(stand)
    minutes(stand, 0, 5)
    assert sums(stand) == [None, *((2.0, minute + 1.0) for minute in range(1, 5))], "the stream began within the first"
    stored = stand.stored(0, 5)
    assert stored == [bar for one in stand.frames() for bar in one.bars]
    assert [bar.extra.get("buy_volume") for bar in stored if bar.instrument == "x:B"] == [None, 2.0, 3.0, 4.0, 5.0]
    assert stand.count("flow_incomplete") == 2


def test_a_feed_of_bars_alone_waits_for_nothing_and_has_no_columns() -> None:
    stand = Stand(universe())
    ask(stand, ("bars",))
    stand.until(1)
    stand.source.put(0, "x:A")
    trade(stand, 1.0)
    stand.settle()
    for part in range(1, 12):
        stand.until(1 + part / 12)
        stand.source.put(1, "x:A", closed=False, part=0.5)
    stand.until(2)
    stand.source.put(1, "x:A")
    stand.settle()
    assert extras(stand) == [{}, {}]
    assert stand.count("stream_stray") == 1, "what nobody asked for is counted"
    assert not list(all_messages(stand.bus, MarketTrades))


def test_a_frame_waits_for_the_last_trades_and_later_ones_are_counted() -> None:
    stand = Stand(universe())
    ask(stand)
    minutes(stand, 0, 1)
    for part in range(1, 12):
        stand.until(1 + part / 12)
        stand.source.put(1, "x:A", closed=False, part=0.5)
    stand.until(2)
    stand.source.put(1, "x:A")
    stand.settle()
    assert len(stand.frames()) == 1, "the bar is there, and its last trades may come"
    trade(stand, 119.9)
    stand.until(2 + 1 / 60, step_s=0.25)
    assert sums(stand) == [None, (1.0, 1.0)]
    trade(stand, 119.95)
    stand.until(2.1)
    assert stand.count("flow_late") == 1


@pytest.mark.parametrize("how", ["reconnection", "malformed"])
def test_a_bar_of_which_something_may_be_missing_has_no_columns(how: str) -> None:
    stand = Stand(universe())
    ask(stand)
    minutes(stand, 0, 3)
    stand.until(3.3)
    trade(stand, 190.0)
    if how == "reconnection":
        stand.source.disconnect()
        stand.until(3.5)
        stand.source.connect()
    else:
        stand.source.events.append(Malformed(to_us(stand.clock.now()), "what is that"))
    stand.until(3.9)
    trade(stand, 230.0)
    stand.until(4)
    stand.source.put(3, "x:A")
    stand.until(4.02, step_s=0.25)
    stand.until(4.05)
    minutes(stand, 4, 6)
    assert sums(stand) == [None, (2.0, 2.0), (2.0, 3.0), None, (2.0, 5.0), (2.0, 6.0)]
    assert [one.bars[0].close for one in stand.frames()] == [truth("x:A", minute).close for minute in range(6)]


def test_what_the_history_says_of_prices_leaves_the_columns() -> None:
    stand = Stand(universe())
    ask(stand)
    minutes(stand, 0, 4)
    before = extras(stand)
    stand.source.corrected["x:A", 2] = truth("x:A", 2).model_copy(update={"volume": 7.25})
    stand.source.put(2, "x:A")
    stand.until(5)
    [revised] = stand.revisions()
    assert revised.bars[0].volume == 7.25
    assert revised.bars[0].extra == before[2] != {}
    assert [bar.extra for bar in stand.stored(0, 4)] == before


def test_a_restart_keeps_columns_and_makes_none_of_half_a_bar() -> None:
    stand = Stand(universe())
    ask(stand)
    minutes(stand, 0, 3)
    stand.until(3.5)
    trade(stand, 200.0)
    stand.start()
    stand.until(3.6)
    trade(stand, 214.0)
    stand.source.put(3, "x:A", closed=False, part=0.5)
    stand.until(4)
    stand.source.put(3, "x:A")
    stand.until(4.05, step_s=0.25)
    minutes(stand, 4, 6)
    assert sums(stand) == [None, (2.0, 2.0), (2.0, 3.0), None, (2.0, 5.0), (2.0, 6.0)]


def test_trades_books_and_news_are_published() -> None:
    stand = Stand(universe())
    ask(stand)
    stand.until(0.5)
    now_us = to_us(stand.clock.now())
    trade(stand, 29.0)
    stand.source.events += [
        StreamedBook("x:A", now_us, ((99.0, 1.0),), ((101.0, 1.0),), now_us),
        StreamedNews(("x:A", "x:Z"), "n", now_us, "It happened", "wire", 0.5, now_us),
    ]
    stand.until(0.6)
    [trades], [books], [news] = (
        list(all_messages(stand.bus, kind)) for kind in (MarketTrades, MarketBooks, MarketNews)
    )
    assert isinstance(trades, MarketTrades)
    assert isinstance(books, MarketBooks)
    assert isinstance(news, MarketNews)
    assert [one.size for one in trades.trades] == [1.0]
    assert [one.bids for one in books.books] == [((99.0, 1.0),)]
    assert [one.instruments for one in news.news] == [("x:A",)]
    minutes(stand, 1, 2)
    assert len(list(all_messages(stand.bus, MarketTrades))) == 3, "each once"


@pytest.mark.parametrize("ahead_s", [0.0, 120.0])
def test_the_venues_clock_says_which_bar_a_reconnection_spoils(ahead_s: float) -> None:
    stand = Stand(universe(), ahead_s=ahead_s)
    ask(stand)
    first = int(ahead_s) // 60
    minutes(stand, first, first + 3)
    at(stand, first + 3.4)
    stand.source.disconnect()
    stand.source.connect()
    minutes(stand, first + 3, first + 6)
    assert [bool(one) for one in extras(stand)][-6:] == [False, True, True, False, True, True]


@pytest.mark.parametrize("price", [float("inf"), float("nan")])
def test_a_trade_that_cannot_be_leaves_its_bar_without_columns_and_the_feed_alive(price: float) -> None:
    stand = Stand(universe())
    ask(stand)
    minutes(stand, 0, 1)
    time_us = START_US + M1.us + 5
    stand.source.events.append(StreamedTrade("x:A", "odd", time_us, price, 1.0, "buy", time_us))
    minutes(stand, 1, 3)
    assert sums(stand) == [None, None, (2.0, 3.0)]
    assert stand.count("flow_refused") == 1
    assert stand.reports() == [("started", "")]


class Moody(MemoryEventStore):
    """A store that is away, or refuses, when a test says so."""

    error: Exception | None = None

    def write(self, items: Sequence[MarketItem]) -> None:
        if self.error is not None:
            raise self.error
        super().write(items)


def stored(store: EventStore) -> list[str]:
    return [one.id for one in store.trades("x:A", -EVER_US, EVER_US)]


def test_events_are_stored_and_a_store_that_is_away_holds_up_no_frame() -> None:
    store = Moody()
    stand = Stand(universe(), events=store)
    ask(stand)
    minutes(stand, 0, 1)
    assert stored(store) == ["1", "50"]
    store.error = Unavailable("maintenance")
    minutes(stand, 1, 3)
    assert len(stand.frames()) == 3
    assert stored(store) == ["1", "50"]
    store.error = None
    minutes(stand, 3, 4)
    assert len(stored(store)) == 8, "what waited is stored when the store is back"
    store.error = ValueError("no such text")
    minutes(stand, 4, 5)
    stand.until(5.5)
    assert stand.count("flow_unstored") == 2
    store.error = None
    minutes(stand, 6, 7)
    assert len(stored(store)) == 10, "and others go on"


def test_a_thread_stores_in_batches_and_the_end_waits_for_it() -> None:
    store = Moody()
    recorder = Recorder(store)
    items = [
        MarketTrade(instrument="x:A", id=f"{n}", time=from_us(START_US + n), price=1.0, size=1.0) for n in range(5_000)
    ]
    recorder.put("u", items)
    recorder.close()
    assert len(stored(store)) == 5_000
    assert not recorder.lost()


def test_events_that_wait_are_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tradeloop.ingest.application.live.recorder._MOST_WAITING", 10)
    store = Moody()
    store.error = Unavailable("maintenance")
    recorder = Recorder(store, threaded=False)
    items = [
        MarketTrade(instrument="x:A", id=f"{n}", time=from_us(START_US + n), price=1.0, size=1.0) for n in range(16)
    ]
    for n in range(0, 16, 4):
        recorder.put("u", items[n : n + 4])
    assert recorder.lost() == {"u": 6}
    store.error = None
    recorder.put("u", [])
    assert stored(store) == [f"{n}" for n in range(10)]


def test_columns_that_a_bar_has_already_stay() -> None:
    flows = Flows(universe(), FLOW, ManualClock(START), lambda event, number: None)
    flows.take("x", Connected(START_US - M1.us), 0)
    bar = truth("x:A", 0).model_copy(update={"extra": {"open_interest": 5.0}})
    extra = flows.extended(bar, START_US, START_US + M1.us).extra
    assert (extra["open_interest"], extra["trade_count"]) == (5.0, 0.0)


def test_bars_carry_the_others() -> None:
    stand = Stand(universe())
    ask(stand, ("trades",))
    assert stand.reports() == [("failed", "the live feed of u was asked for without bars: they carry the others")]
