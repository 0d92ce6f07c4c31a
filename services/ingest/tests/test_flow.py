"""Trades, order books and news into columns of bars."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradeloop.common.market import Instrument, Timeframe, Universe
from tradeloop.common.messages import MarketBooks, MarketNews, MarketTrades
from tradeloop.ingest.application.flow import Flow
from tradeloop.ingest.ports import (
    Channel,
    Connected,
    Disconnected,
    MarketEvent,
    StreamedBook,
    StreamedNews,
    StreamedTrade,
)

MINUTE = Timeframe.M1.us
A, B = "binance:BTCUSDT", "binance:ETHUSDT"
UNIVERSE = Universe(name="u", instruments=(Instrument(id=A), Instrument(id=B)), timeframe=Timeframe.M1)
CHANNELS: frozenset[Channel] = frozenset(("trades", "books", "news"))
RECORDED = Path(__file__).resolve().parents[4] / "shared" / "data" / "l2" / "binance-usdm-btcusdt-20240808.gz"
START = Connected(-10 * MINUTE)


def trade(
    time_us: int, price: float = 100.0, size: float = 1.0, side: Any = "buy", id: str = "", to: str = A
) -> StreamedTrade:
    return StreamedTrade(to, id or f"{time_us} {price} {size}", time_us, price, size, side, time_us)


def book(time_us: int, bid: tuple[float, float], ask: tuple[float, float]) -> StreamedBook:
    return StreamedBook(A, time_us, (bid,), (ask,), time_us)


def news(time_us: int, sentiment: float | None, *instruments: str) -> StreamedNews:
    return StreamedNews(instruments, f"{time_us}", time_us, "It happened", "wire", sentiment, time_us)


def flow_of(*events: MarketEvent) -> Flow:
    flow = Flow(UNIVERSE, CHANNELS)
    for event in (START, *events):
        flow.take(event)
    return flow


def test_a_bar_without_events_says_that_there_were_none() -> None:
    columns = flow_of().columns(A, 0, MINUTE)
    zero = ("trade_count", "trade_intensity", "realised_variance", "buy_volume", "sell_volume")
    assert columns == dict.fromkeys((*zero, "news_count", "news_rated_count", "news_sentiment_sum"), 0.0)
    assert Flow(UNIVERSE, frozenset()).columns(A, 0, MINUTE) == {}, "nothing is known before the stream connects"


def test_trades_books_and_news_become_columns() -> None:
    events: list[MarketEvent] = [
        trade(0, 100.0, 2.0, "buy"),
        trade(MINUTE // 2, 110.0, 1.0, "sell"),
        trade(MINUTE, 999.0),  # of the next bar
        book(-5, (99.0, 3.0), (101.0, 1.0)),
        book(MINUTE // 4, (100.0, 2.0), (101.0, 5.0)),  # a better bid: + 2; as good an ask, of 4 more: - 4
        book(MINUTE // 2, (100.0, 6.0), (101.0, 5.0)),  # as good a bid, of 4 more: + 4
        news(3, 0.5, A, "other:X"),
        news(4, None, A),
        news(5, -0.25, A, B),
    ]
    flow = flow_of(*events)
    columns = flow.columns(A, 0, MINUTE)
    expected = {
        "trade_count": 2.0,
        "trade_intensity": 2 / 60,
        "realised_variance": math.log(1.1) ** 2,
        "vwap": 310.0 / 3.0,
        "buy_volume": 2.0,
        "sell_volume": 1.0,
        "order_flow_imbalance": 2.0,
        "spread_mean": 0.25 * 2 / 100 + 0.75 * 1 / 100.5,
        "depth_mean": 0.25 * 2 + 0.25 * 3.5 + 0.5 * 5.5,
        "book_imbalance_mean": 0.25 * 0.5 - 0.25 * 3 / 7 + 0.5 / 11,
        "microprice_deviation_mean": 0.25 * 0.5 / 100 + (0.25 * (702 / 7 - 100.5) + 0.5 * (1106 / 11 - 100.5)) / 100.5,
        "news_count": 3.0,
        "news_rated_count": 2.0,
        "news_sentiment_sum": 0.25,
    }
    assert columns.keys() == expected.keys()
    for name, value in expected.items():
        assert columns[name] == pytest.approx(value, rel=1e-12), name
    assert flow.columns(B, 0, MINUTE)["news_count"] == 1.0
    assert flow.columns(A, MINUTE, 2 * MINUTE)["vwap"] == 999.0
    assert not flow.dropped


def test_what_is_left_out_is_counted_by_name() -> None:
    flow = flow_of(trade(5), trade(5), trade(6, price=0.0), trade(7, to="other:X"))
    flow.take(StreamedTrade(A, "early", 10 * MINUTE, 1.0, 1.0, "buy", 0))
    flow.take(book(7, (101.0, 1.0), (101.0, 1.0)))
    flow.take(StreamedBook(A, 7, (), ((1.0, 1.0),), 7))
    flow.take(news(7, 2.0, A))
    flow.take(news(7, 0.0, "other:X"))
    assert flow.columns(A, 0, MINUTE)["trade_count"] == 1.0
    flow.take(trade(8))
    flow.take(book(8, (1.0, 1.0), (2.0, 1.0)))
    assert flow.columns(A, MINUTE, 2 * MINUTE)["trade_count"] == 0.0
    assert flow.dropped == {
        "repeated_trades": 1,
        "unsound_trades": 1,
        "other_trades": 1,
        "ahead_trades": 1,
        "crossed_books": 1,
        "one_sided_books": 1,
        "unsound_news": 1,
        "other_news": 1,
        "late_trades": 1,
        "late_books": 1,
    }


def test_a_side_that_is_not_told_leaves_the_sides_unknown() -> None:
    columns = flow_of(trade(1), trade(2, side=None)).columns(A, 0, MINUTE)
    assert columns["trade_count"] == 2.0
    assert not {"buy_volume", "sell_volume"} & columns.keys()


def test_bars_during_which_the_connection_was_away_have_no_columns() -> None:
    flow = flow_of(
        book(30_000_000, (1.0, 1.0), (2.0, 1.0)),
        Disconnected(MINUTE + 30_000_000, "reset"),
        Connected(3 * MINUTE - 30_000_000),
        book(3 * MINUTE + 1, (1.5, 1.0), (2.0, 1.0)),
        trade(3 * MINUTE + 2),
    )
    found = [flow.columns(A, n * MINUTE, (n + 1) * MINUTE) for n in range(4)]
    assert [bool(columns) for columns in found] == [True, False, False, True]
    assert found[3]["order_flow_imbalance"] == 0.0, "a book leads over to the next connection"
    assert flow.dropped == {"incomplete_bars": 2}
    flow.take(Disconnected(5 * MINUTE, "reset"))
    assert flow.columns(A, 5 * MINUTE, 6 * MINUTE) == {}, "the connection is still away"


events = st.lists(
    st.one_of(
        st.builds(trade, st.integers(0, 2 * MINUTE - 1), st.floats(1, 1e5), st.floats(0, 1e3)),
        st.builds(
            lambda t, bid, wide, one, two: book(t, (bid, one), (bid + wide, two)),
            st.integers(0, 2 * MINUTE - 1),
            st.floats(1, 1e5),
            st.floats(0.1, 10),
            st.floats(0.1, 10),
            st.floats(0.1, 10),
        ),
    ),
    unique_by=lambda event: event.time_us,
    max_size=20,
)


@given(events, st.randoms())
def test_the_order_of_arrival_within_a_bar_changes_nothing(arrived: list[MarketEvent], chance: Any) -> None:
    one = flow_of(*arrived)
    chance.shuffle(arrived)
    other = flow_of(*arrived)
    for n in range(2):
        assert one.columns(A, n * MINUTE, (n + 1) * MINUTE) == other.columns(A, n * MINUTE, (n + 1) * MINUTE)


def test_messages_hold_all_that_came_in_bounded_batches() -> None:
    flow = flow_of(*(trade(n) for n in range(1200)), *(book(n, (1.0, 1.0), (2.0, 1.0)) for n in range(150)))
    flow.take(news(1, 0.5, A, "other:X"))
    messages = list(flow.messages())
    trades = [one for one in messages if isinstance(one, MarketTrades)]
    assert [len(one.trades) for one in trades] == [500, 500, 200]
    assert [len(one.books) for one in messages if isinstance(one, MarketBooks)] == [100, 50]
    [wire] = [one for one in messages if isinstance(one, MarketNews)]
    assert (wire.news[0].instruments, wire.news[0].sentiment) == ((A,), 0.5)
    assert len({one.identity for one in messages}) == len(messages)
    assert list(flow.messages()) == []
    assert all(MarketTrades.model_validate_json(one.encode()) == one for one in trades)


def recorded() -> Iterator[dict[str, Any]]:
    with gzip.open(RECORDED, "rt") as lines:
        for line in lines:
            if frame := json.loads(line.partition(" ")[2]).get("data"):
                yield frame


@pytest.mark.skipif(not RECORDED.exists(), reason="the recording lies beside the project, not in it")
def test_a_recorded_market_gives_what_polars_and_numpy_find_in_it() -> None:
    trades, books = [], []
    flow = Flow(UNIVERSE, frozenset(("trades", "books")))
    flow.take(Connected(0))
    for one in recorded():
        t = one.get("T", 0) * 1000
        if one["e"] == "trade" and float(one["p"]) > 0:
            trades.append((t, float(one["p"]), float(one["q"]), one["m"]))
            side = "sell" if one["m"] else "buy"
            flow.take(trade(t, float(one["p"]), float(one["q"]), side, str(one["t"])))
        elif one["e"] == "bookTicker":
            books.append((t, float(one["b"]), float(one["B"]), float(one["a"]), float(one["A"])))
            flow.take(book(t, books[-1][1:3], books[-1][3:5]))
        if len(books) % 1000 == 0:
            list(flow.messages())  # as whoever publishes them would
    assert not flow.dropped
    traded = pl.DataFrame(trades, ["t", "p", "q", "maker"], orient="row").sort("t", maintain_order=True)
    by_minute = {int(minute): part for (minute,), part in traded.group_by(pl.col("t") // MINUTE, maintain_order=True)}
    quoted = np.array(books)
    quoted = quoted[np.argsort(quoted[:, 0], kind="stable")]
    t, bid, bids, ask, asks = quoted.T
    demand = np.where(bid[1:] >= bid[:-1], bids[1:], 0) - np.where(bid[1:] <= bid[:-1], bids[:-1], 0)
    supply = np.where(ask[1:] <= ask[:-1], asks[1:], 0) - np.where(ask[1:] >= ask[:-1], asks[:-1], 0)
    flows = np.r_[0.0, demand - supply]
    mid = (bid + ask) / 2
    kinds = {
        "spread_mean": (ask - bid) / mid,
        "depth_mean": (bids + asks) / 2,
        "book_imbalance_mean": (bids - asks) / (bids + asks),
        "microprice_deviation_mean": ((ask * bids + bid * asks) / (bids + asks) - mid) / mid,
    }
    minutes = sorted(by_minute)
    assert len(minutes) >= 6
    for minute in minutes:
        opened, closed = minute * MINUTE, (minute + 1) * MINUTE
        found, part = flow.columns(A, opened, closed), by_minute[minute]
        steps = np.diff(np.log(part["p"].to_numpy()))
        own = np.flatnonzero((t >= opened) & (t < closed))
        states = np.r_[own[0] - 1, own] if own[0] else own
        weights = np.diff(np.r_[np.maximum(t[states], opened), closed])
        expected = {
            "trade_count": part.height,
            "trade_intensity": part.height / 60,
            "realised_variance": float((steps**2).sum()),
            "vwap": np.average(part["p"].to_numpy(), weights=part["q"].to_numpy()),
            "buy_volume": part.filter(~pl.col("maker"))["q"].sum(),
            "sell_volume": part.filter("maker")["q"].sum(),
            "order_flow_imbalance": flows[own].sum(),
            **{name: np.average(values[states], weights=weights) for name, values in kinds.items()},
        }
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12), (minute, name)
