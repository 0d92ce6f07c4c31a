"""The fake venue as the real client libraries see it: ccxt, ccxt.pro, alpaca-py and massive."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ccxt
import ccxt.pro
import pytest
from alpaca.common.exceptions import APIError
from alpaca.data.enums import DataFeed
from alpaca.data.historical import CryptoHistoricalDataClient, NewsClient, StockHistoricalDataClient
from alpaca.data.live import CryptoDataStream, NewsDataStream, StockDataStream
from alpaca.data.models import BarSet, NewsSet, TradeSet
from alpaca.data.requests import (
    CryptoBarsRequest,
    CryptoLatestOrderbookRequest,
    NewsRequest,
    StockBarsRequest,
    StockLatestBarRequest,
    StockTradesRequest,
)
from alpaca.data.timeframe import TimeFrame, TimeFrameUnit
from alpaca.trading.client import TradingClient
from massive import RESTClient, WebSocketClient
from massive.exceptions import BadResponse
from massive.websocket.models import Market as Sort

from tradeloop.common.market import from_us, to_us
from tradeloop.ingest.contracts.fake_venue import Bars, FakeVenue, Listing, Market, Recording, VenueClock
from tradeloop.ingest.contracts.fake_venue.market import BOOK_US, DEFAULT, US

NOW = datetime(2024, 3, 1, 12, 0, 30, tzinfo=UTC)
START = datetime(2024, 2, 20, tzinfo=UTC)
GONE = Listing("GONE/USDT", 5.0, ends=datetime(2024, 2, 21, tzinfo=UTC))


def market(**options: Any) -> Market:
    return Market((*DEFAULT, GONE), seed=3, clock=VenueClock(NOW, speed=0.0), **options)


@pytest.fixture
def venue() -> Iterator[FakeVenue]:
    with FakeVenue(market()) as venue:
        yield venue


def pointed(exchange: Any, venue: FakeVenue) -> Any:
    """An exchange of ccxt that asks the fake venue, path by path."""
    api = exchange.urls["api"]
    for name, address in api.items():
        if isinstance(address, str):
            api[name] = "/".join([venue.url, *address.split("/")[3:]])
    if exchange.id == "binance" and "ws" in api:
        api["ws"] |= {"spot": f"{venue.ws_url}/stream/ws", "linear": f"{venue.ws_url}/fstream/ws"}
    elif "ws" in api:
        api["ws"] |= {"public": venue.ws_url, "publicV2": f"{venue.ws_url}/v2"}
    return exchange


def rows_of(bars: Bars) -> list[list[float]]:
    columns = (bars.open_us // 1000, bars.open, bars.high, bars.low, bars.close, bars.volume)
    return [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]


@pytest.mark.parametrize("symbol", ["BTC/USDT", "BTC/USDT:USDT"])
@pytest.mark.parametrize("timeframe", ["1s", "1m", "1h", "1d"])
def test_ccxt_reads_history_page_by_page(venue: FakeVenue, symbol: str, timeframe: str) -> None:
    binance = pointed(ccxt.binance({"enableRateLimit": False}), venue)
    seconds = binance.parse_timeframe(timeframe)
    end_us = min(to_us(START) + 2500 * seconds * US, to_us(NOW) + 60 * US)
    found: list[list[float]] = []
    since = to_us(START) // 1000
    while page := binance.fetch_ohlcv(symbol, timeframe, since=since, limit=1000, params={"until": end_us // 1000 - 1}):
        found += page
        since = page[-1][0] + seconds * 1000
    truth = rows_of(venue.market.bars("BTC/USDT", timeframe, to_us(START), end_us))
    closed = [row for row in truth if row[0] + seconds * 1000 <= to_us(NOW) / 1000]
    assert len(closed) > 5
    assert found[: len(closed)] == closed
    assert len(found) - len(closed) in {0, 1}
    assert venue.served["klines rows"] == len(found)


def test_ccxt_gets_the_newest_bars_and_the_open_one(venue: FakeVenue) -> None:
    binance = pointed(ccxt.binance(), venue)
    rows = binance.fetch_ohlcv("ETH/USDT", "1m", limit=3)
    assert [row[0] for row in rows] == [to_us(NOW) // 1000 - 30_000 - 60_000 * back for back in (2, 1, 0)]
    trades = venue.market.trades("ETH/USDT", to_us(NOW) - 30 * US, to_us(NOW))
    assert rows[-1][2] == max(trade.price for trade in trades)
    assert rows[-1][4] == trades[-1].price
    assert binance.fetch_time() == to_us(NOW) // 1000
    assert binance.fetch_status()["status"] == "ok"


def test_ccxt_reads_terms_trades_and_books(venue: FakeVenue) -> None:
    binance = pointed(ccxt.binance(), venue)
    markets = binance.load_markets()
    assert {"BTC/USDT", "BTC/USDT:USDT", "ETH/USDT", "GONE/USDT"} <= markets.keys()
    assert "AAPL" not in str(list(markets))
    assert markets["BTC/USDT"]["precision"]["price"] == 0.01
    assert markets["BTC/USDT:USDT"]["precision"]["amount"] == 1e-5
    assert markets["BTC/USDT"]["limits"]["cost"]["min"] == 5.0
    assert markets["BTC/USDT"]["active"]
    assert not markets["GONE/USDT"]["active"]
    since_us = to_us(START)
    trades = binance.fetch_trades("BTC/USDT", since=since_us // 1000, limit=50)
    truth = venue.market.trades("BTC/USDT", since_us, since_us + 60 * US)[:50]
    assert [(trade["id"], trade["price"], trade["amount"], trade["side"] == "buy") for trade in trades] == [
        (str(trade.id), trade.price, trade.size, trade.buy) for trade in truth
    ]
    book = binance.fetch_order_book("BTC/USDT:USDT", 5)
    true_book = venue.market.book("BTC/USDT", to_us(NOW) // BOOK_US - 1, 5)
    assert [tuple(level) for level in book["bids"]] == list(true_book.bids)
    assert [tuple(level) for level in book["asks"]] == list(true_book.asks)


def test_symbols_that_are_not_there_and_that_are_gone(venue: FakeVenue) -> None:
    binance = pointed(ccxt.binance(), venue)
    binance.load_markets()
    with pytest.raises(ccxt.BadSymbol):
        binance.public_get_klines({"symbol": "NOPEUSDT", "interval": "1m"})
    with pytest.raises(ccxt.BadRequest):
        binance.public_get_klines({"symbol": "BTCUSDT", "interval": "7m"})
    rows = binance.fetch_ohlcv("GONE/USDT", "1h", since=to_us(START) // 1000)
    assert len(rows) == 24
    assert binance.fetch_ohlcv("GONE/USDT", "1h", since=to_us(START) // 1000 + 86_400_000) == []


async def watched(venue: FakeVenue, wanted: Callable[[], Awaitable[Any]], seconds: float = 1.0) -> Any:
    """The answer that a client gets while the venue's clock goes on."""
    task = asyncio.ensure_future(wanted())
    deadline = asyncio.get_running_loop().time() + 20.0
    while not task.done() and asyncio.get_running_loop().time() < deadline:
        await asyncio.wait({task}, timeout=0.05)
        await asyncio.to_thread(venue.advance, seconds)
    return await asyncio.wait_for(task, 5.0)


@pytest.mark.parametrize("symbol", ["BTC/USDT", "BTC/USDT:USDT"])
def test_ccxt_pro_watches_bars_trades_and_books(venue: FakeVenue, symbol: str) -> None:
    async def watch() -> None:
        binance = pointed(ccxt.pro.binance({"options": {"OHLCVLimit": 10}}), venue)
        try:
            await binance.load_markets()
            first = await watched(venue, lambda: binance.watch_ohlcv(symbol, "1m"))
            seen = first[-1]
            until_us = venue.market.now_us()
            bars = venue.market.bar("BTC/USDT", "1m", seen[0] * 1000, until_us)
            assert seen[0] * 1000 <= until_us
            assert seen[1] == bars.open[0]
            trades = await watched(venue, lambda: binance.watch_trades(symbol))
            truth = venue.market.trades("BTC/USDT", to_us(NOW), venue.market.now_us() + 1)
            every = {str(trade.id): (trade.price, trade.size, trade.buy) for trade in truth}
            assert len(trades) > 0
            for trade in trades:
                assert every[trade["id"]] == (trade["price"], trade["amount"], trade["side"] == "buy")
            for _ in range(3):
                book = await watched(venue, lambda: binance.watch_order_book(symbol), 0.3)
                true_book = venue.market.book("BTC/USDT", book["nonce"])
                assert [tuple(level) for level in book["bids"]] == list(true_book.bids)
                assert [tuple(level) for level in book["asks"]] == list(true_book.asks)
        finally:
            await binance.close()

    asyncio.run(watch())
    assert venue.served["SUBSCRIBE"] == 3


def test_kraken_never_says_that_a_bar_is_closed(venue: FakeVenue) -> None:
    async def watch() -> None:
        kraken = pointed(ccxt.pro.kraken(), venue)
        try:
            markets = await kraken.load_markets()
            assert {"BTC/USDT", "ETH/USDT"} <= markets.keys()
            rows = await kraken.fetch_ohlcv("BTC/USDT", "1m")
            assert len(rows) == 720
            truth = rows_of(venue.market.bars("BTC/USDT", "1m", int(rows[0][0]) * 1000, to_us(NOW) - 30 * US))
            assert rows[:-1] == truth
            bars = await watched(venue, lambda: kraken.watch_ohlcv("BTC/USDT", "1m"))
            assert bars[-1][1] == venue.market.bar("BTC/USDT", "1m", bars[-1][0] * 1000, venue.market.now_us()).open[0]
            trades = await watched(venue, lambda: kraken.watch_trades("BTC/USDT"))
            ids = {str(one.id) for one in venue.market.trades("BTC/USDT", to_us(NOW), venue.market.now_us() + 1)}
            assert {trade["id"] for trade in trades} <= ids
        finally:
            await kraken.close()

    asyncio.run(watch())
    assert venue.served["heartbeat"] > 0


def alpaca_rows(bars: Bars) -> list[tuple[Any, ...]]:
    columns = (bars.open, bars.high, bars.low, bars.close, bars.volume, bars.trades)
    numbers = zip(*(column.tolist() for column in columns), strict=True)
    return [(from_us(time_us), *row) for time_us, row in zip(bars.open_us.tolist(), numbers, strict=True)]


@pytest.mark.parametrize("page_limit", [None, 7, 60])
def test_alpaca_reads_stocks_page_by_page(venue: FakeVenue, page_limit: int | None) -> None:
    venue.faults.page_limit = page_limit
    client = StockHistoricalDataClient("key", "secret", url_override=venue.url)
    end = START + timedelta(minutes=89)
    request = StockBarsRequest(
        symbol_or_symbols=["MSFT", "AAPL", "NOPE"], timeframe=TimeFrame.Minute, start=START, end=end
    )
    found = client.get_stock_bars(request)
    assert isinstance(found, BarSet)
    assert found.data.keys() == {"AAPL", "MSFT"}
    for symbol, bars in found.data.items():
        truth = alpaca_rows(venue.market.bars(symbol, "1m", to_us(START), to_us(end) + 1))
        said = [(bar.timestamp, bar.open, bar.high, bar.low, bar.close, bar.volume, bar.trade_count) for bar in bars]
        assert said == truth
    assert venue.served["bars rows"] == 180
    assert venue.served["bars"] == (1 if page_limit is None else -(-180 // page_limit))


def test_alpaca_reads_crypto_instruments_news_and_the_clock(venue: FakeVenue) -> None:
    crypto = CryptoHistoricalDataClient("key", "secret", url_override=venue.url)
    bars = crypto.get_crypto_bars(
        CryptoBarsRequest(symbol_or_symbols="BTC/USDT", timeframe=TimeFrame(4, TimeFrameUnit.Hour), start=START)
    )
    assert isinstance(bars, BarSet)
    truth = alpaca_rows(venue.market.bars("BTC/USDT", "4h", to_us(START), to_us(NOW)))
    assert [bar.close for bar in bars.data["BTC/USDT"]][:-1] == [row[4] for row in truth][:-1]
    books = crypto.get_crypto_latest_orderbook(CryptoLatestOrderbookRequest(symbol_or_symbols="BTC/USDT"))
    best = venue.market.book("BTC/USDT", to_us(NOW) // BOOK_US - 1).bids[0]
    assert (books["BTC/USDT"].bids[0].price, books["BTC/USDT"].bids[0].size) == best
    stocks = StockHistoricalDataClient("key", "secret", url_override=venue.url)
    latest = stocks.get_stock_latest_bar(StockLatestBarRequest(symbol_or_symbols="AAPL"))
    assert latest["AAPL"].timestamp == NOW - timedelta(seconds=90)
    trades = stocks.get_stock_trades(
        StockTradesRequest(symbol_or_symbols="AAPL", start=START, end=START + timedelta(minutes=1))
    )
    assert isinstance(trades, TradeSet)
    sold = venue.market.trades("AAPL", to_us(START), to_us(START) + 60 * US)
    assert [(one.price, one.size) for one in trades.data["AAPL"]] == [(one.price, one.size) for one in sold]
    trading = TradingClient("key", "secret", url_override=venue.url)
    assert {asset.symbol for asset in trading.get_all_assets()} == {"AAPL", "MSFT"}  # type: ignore[union-attr]
    assert trading.get_asset("BTC/USDT").price_increment == 0.01  # type: ignore[union-attr]
    with pytest.raises(APIError, match="asset not found"):
        trading.get_asset("NOPE")
    assert trading.get_clock().timestamp == NOW  # type: ignore[union-attr]
    venue.faults.page_limit = 5
    news = NewsClient("key", "secret", url_override=venue.url).get_news(
        NewsRequest(symbols="AAPL", start=START, end=NOW)
    )
    assert isinstance(news, NewsSet)
    pieces = venue.market.news("AAPL", to_us(START), to_us(NOW))
    assert len(pieces) > 100
    assert [one.headline for one in news.data["news"]] == [piece.headline for piece in pieces]


@contextmanager
def running(stream: Any) -> Iterator[None]:
    """A stream of alpaca-py, in a thread of its own."""
    thread = threading.Thread(target=stream.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stream.stop()
        thread.join(10.0)
        assert not thread.is_alive()


def until(venue: FakeVenue, done: Callable[[], bool], seconds: float = 0.0, limit_s: float = 20.0) -> None:
    """Let the venue's clock go on until something is so."""
    waited = threading.Event()
    for _ in range(int(limit_s / 0.02)):
        if done():
            return
        waited.wait(0.02)
        if seconds:
            venue.advance(seconds)
    raise AssertionError(f"it did not come about; served: {dict(venue.served)}")


def test_alpaca_streams_bars_corrections_trades_and_quotes() -> None:
    with FakeVenue(market(corrections=0.4, correction_delay_s=90.0)) as venue:
        stream = StockDataStream("key", "secret", feed=DataFeed.IEX, url_override=f"{venue.ws_url}/v2/iex")
        seen: dict[str, list[Any]] = {kind: [] for kind in ("bars", "updated", "trades", "quotes", "days")}

        def into(kind: str) -> Callable[[Any], Awaitable[None]]:
            async def handle(one: Any) -> None:
                seen[kind].append(one)

            return handle

        stream.subscribe_bars(into("bars"), "AAPL", "MSFT")
        stream.subscribe_updated_bars(into("updated"), "AAPL")
        stream.subscribe_daily_bars(into("days"), "AAPL")
        stream.subscribe_trades(into("trades"), "AAPL")
        stream.subscribe_quotes(into("quotes"), "MSFT")
        with running(stream):
            until(venue, lambda: venue.served["subscribe"] == 1)
            until(venue, lambda: len(seen["updated"]) >= 3 and len(seen["bars"]) >= 12, 30.0)
            until(venue, lambda: len(seen["days"]) >= 6 and len(seen["trades"]) > 100 and len(seen["quotes"]) > 10)
        minute = to_us(NOW) - 30 * US
        corrected = set(venue.market.corrected("AAPL", to_us(NOW), venue.market.now_us() + 1).tolist())
        known = {one.timestamp: one.volume for one in seen["bars"] if one.symbol == "AAPL"}
        final = venue.market.bars("AAPL", "1m", minute, minute + 60 * US * len(known))
        assert list(known) == [from_us(time_us) for time_us in final.open_us.tolist()]
        late = set(venue.market.corrected("AAPL", minute, minute + 86_400 * US).tolist())
        for time_us, volume in zip(final.open_us.tolist(), final.volume.tolist(), strict=True):
            assert (known[from_us(time_us)] == volume) == (time_us not in late)
        assert {to_us(one.timestamp) for one in seen["updated"]} <= corrected
        for one in seen["updated"]:
            bars = venue.market.bars("AAPL", "1m", to_us(one.timestamp), to_us(one.timestamp) + 1)
            assert (one.open, one.high, one.low, one.close) == (bars.open, bars.high, bars.low, bars.close)
            assert one.volume == bars.volume
        sold = {trade.id: trade.price for trade in venue.market.trades("AAPL", to_us(NOW), venue.market.now_us() + 1)}
        assert all(sold[trade.id] == trade.price for trade in seen["trades"])
        assert all(quote.bid_price < quote.ask_price for quote in seen["quotes"])


def test_alpaca_streams_news_and_books_of_crypto(venue: FakeVenue) -> None:
    seen: list[Any] = []

    async def handle(one: Any) -> None:
        seen.append(one)

    news = NewsDataStream("key", "secret", url_override=f"{venue.ws_url}/v1beta1/news")
    news.subscribe_news(handle, "*")
    with running(news):
        until(venue, lambda: venue.served["subscribe"] == 1)
        until(venue, lambda: len(seen) >= 3, 3600.0)
    every = [
        piece
        for symbol in venue.market.listings
        for piece in venue.market.news(symbol, to_us(NOW), venue.market.now_us() + 1)
    ]
    assert {one.headline for one in seen} <= {piece.headline for piece in every}
    seen.clear()
    crypto = CryptoDataStream("key", "secret", url_override=f"{venue.ws_url}/v1beta3/crypto/us")
    crypto.subscribe_orderbooks(handle, "BTC/USDT")
    with running(crypto):
        until(venue, lambda: venue.served["subscribe"] == 2)
        until(venue, lambda: len(seen) >= 20, 0.5)
    assert [one.reset for one in seen] == [True] + [False] * (len(seen) - 1)
    bids: dict[float, float] = {}
    for one in seen:
        bids |= {level.price: level.size for level in one.bids}
        bids = {price: size for price, size in bids.items() if size}
        assert bids == dict(venue.market.book("BTC/USDT", to_us(one.timestamp) // BOOK_US - 1).bids)


def massive_client(venue: FakeVenue, key: str = "key") -> RESTClient:
    return RESTClient(key, base=venue.url, retries=0)


@pytest.mark.parametrize("limit", [50, 5000])
def test_massive_reads_aggregates_page_by_page(venue: FakeVenue, limit: int) -> None:
    end_us = to_us(START) + 400 * 60 * US
    found = list(
        massive_client(venue).list_aggs(
            "X:BTCUSDT", 1, "minute", to_us(START) // 1000, end_us // 1000 - 1, limit=limit, sort="asc"
        )
    )
    truth = venue.market.bars("BTC/USDT", "1m", to_us(START), end_us)
    said = [[bar.timestamp, bar.open, bar.high, bar.low, bar.close, bar.volume] for bar in found]
    assert said == rows_of(truth)
    assert [bar.transactions for bar in found] == truth.trades.tolist()
    assert venue.served["bars"] == (8 if limit == 50 else 1)
    # Pages of hours are measured in minutes.
    venue.served.clear()
    hours = list(massive_client(venue).list_aggs("AAPL", 1, "hour", "2024-02-20", "2024-02-20", limit=240))
    assert len(hours) == 24
    assert venue.served["bars"] == 6
    assert list(massive_client(venue).list_aggs("NOPE", 1, "hour", "2024-02-20", "2024-02-21")) == []
    with pytest.raises(BadResponse, match="timespan"):
        list(massive_client(venue).list_aggs("AAPL", 1, "fortnight", "2024-02-20", "2024-02-21"))


def test_massive_reads_tickers_trades_news_and_the_clock(venue: FakeVenue) -> None:
    client = massive_client(venue)
    venue.faults.page_limit = 2
    assert [one.ticker for one in client.list_tickers()] == ["AAPL", "MSFT", "X:BTCUSDT", "X:ETHUSDT"]
    assert [one.ticker for one in client.list_tickers(active=False)] == ["X:GONEUSDT"]
    venue.faults.page_limit = 30
    assert client.get_ticker_details("AAPL").market == "stocks"
    with pytest.raises(BadResponse, match="not found"):
        client.get_ticker_details("NOPE")
    bounds = (to_us(START) * 1000, (to_us(START) + 60 * US) * 1000)
    trades = list(client.list_trades("AAPL", timestamp_gte=bounds[0], timestamp_lt=bounds[1], order="asc", limit=50))
    truth = venue.market.trades("AAPL", to_us(START), to_us(START) + 60 * US)
    assert [(one.id, one.price, one.size) for one in trades] == [(str(one.id), one.price, one.size) for one in truth]
    assert venue.served["trades"] == -(-len(truth) // 30)
    assert client.get_market_status().server_time == "2024-03-01T12:00:30Z"
    news = list(client.list_ticker_news("AAPL", published_utc_gte="2024-02-28", order="asc", limit=10))
    pieces = venue.market.news("AAPL", to_us(datetime(2024, 2, 28, tzinfo=UTC)), to_us(NOW))
    assert [one.title for one in news] == [piece.headline for piece in pieces]
    moods = {one.insights[0].sentiment for one in news}
    assert moods == {"positive", "negative", "neutral"}


@pytest.mark.parametrize(
    ("sort", "wanted", "symbol"),
    [
        (Sort.Stocks, ["AM.AAPL", "A.AAPL", "T.AAPL", "Q.AAPL"], "AAPL"),
        (Sort.Crypto, ["XA.BTC-USDT", "XAS.BTC-USDT", "XT.BTC-USDT", "XQ.BTC-USDT"], "BTC/USDT"),
    ],
)
def test_massive_streams_minutes_seconds_trades_and_quotes(
    venue: FakeVenue, sort: Sort, wanted: list[str], symbol: str
) -> None:
    seen: list[Any] = []

    async def handle(events: Any) -> None:
        seen.extend(events)

    async def listen() -> None:
        client = WebSocketClient("key", feed=venue.address, market=sort, secure=False, subscriptions=wanted)
        task = asyncio.ensure_future(client.connect(handle))
        try:
            kinds = {name.split(".")[0] for name in wanted}
            for _ in range(200):
                await asyncio.to_thread(venue.advance, 10.0 if venue.served["subscribe"] else 0.0)
                await asyncio.sleep(0.02)
                counts = {kind: sum(one.event_type == kind for one in seen) for kind in kinds}
                if counts[wanted[0].split(".")[0]] >= 3 and min(counts.values()) > 0:
                    break
        finally:
            await client.close()
            await asyncio.wait({task}, timeout=5.0)

    asyncio.run(listen())
    minutes = [one for one in seen if one.event_type == wanted[0].split(".")[0]]
    assert len(minutes) >= 3
    for timeframe, name in (("1m", wanted[0]), ("1s", wanted[1])):
        for one in (one for one in seen if one.event_type == name.split(".")[0]):
            bars = venue.market.bars(symbol, timeframe, one.start_timestamp * 1000, one.end_timestamp * 1000)
            assert (one.open, one.high, one.low, one.close, one.volume) == (
                *(bars.open, bars.high, bars.low, bars.close),
                bars.volume,
            )
    truth = {str(one.id): one.price for one in venue.market.trades(symbol, to_us(NOW), venue.market.now_us() + 1)}
    sold = [one for one in seen if one.event_type == wanted[2].split(".")[0]]
    assert sold
    assert all(truth[one.id] == one.price for one in sold)


def write_recording(path: Path) -> list[dict[str, Any]]:
    """A small recording: trades and changes of a book, 100 ms apart."""
    frames: list[dict[str, Any]] = []
    for number in range(40):
        trade = {"e": "trade", "E": number, "T": number, "s": "BTCUSDT", "t": number, "p": "61800.30", "q": "0.006"}
        frames.append({"stream": "btcusdt@trade", "data": {**trade, "X": "MARKET", "m": False}})
        change = {"e": "depthUpdate", "E": number, "T": number, "s": "BTCUSDT", "U": number * 10 + 1}
        sides = {"b": [[f"{61000 + number}.00", "1.000"], [f"{60999 + number}.00", "0.000"]], "a": [["62000.00", "2"]]}
        data = {**change, "u": number * 10 + 10, "pu": number * 10, **sides}
        frames.append({"stream": "btcusdt@depth@0ms", "data": data})
    lines = [f"{1_723_161_255_000_000_000 + index * 100_000_000} {json.dumps(frame, separators=(',', ':'))}\n"
             for index, frame in enumerate(frames)]  # fmt: skip
    path.write_bytes(gzip.compress("".join(lines).encode()))
    return frames


def test_recorded_frames_are_served_at_their_pace(tmp_path: Path) -> None:
    frames = write_recording(tmp_path / "frames.gz")
    recording = Recording(tmp_path / "frames.gz", speed=2.0)
    assert recording.length_us == (len(frames) - 1) * 50_000
    with FakeVenue(market(), recording=recording) as venue:

        async def watch() -> None:
            binance = pointed(ccxt.pro.binance(), venue)
            try:
                await binance.load_markets()
                trades = await watched(venue, lambda: binance.watch_trades("BTC/USDT:USDT"), 0.05)
                assert trades[-1]["price"] == 61800.3
                book = await watched(venue, lambda: binance.watch_order_book("BTC/USDT:USDT"), 0.05)
                number = book["nonce"] // 10 - 1
                assert list(map(list, book["bids"])) == [[61000.0 + number, 1.0]]
                assert list(map(list, book["asks"])) == [[62000.0, 2.0]]
            finally:
                await binance.close()

        asyncio.run(watch())
        before = venue.served["trade"]
        venue.advance(recording.length_us / 1e6)
        assert venue.served["trade"] == before


def test_recordings_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("17 {}\n")
    with pytest.raises(ValueError, match="line 1"):
        Recording(tmp_path / "broken")
    (tmp_path / "empty").write_text("")
    with pytest.raises(ValueError, match="holds frames"):
        Recording(tmp_path / "empty")


RECORDED = Path(__file__).resolve().parents[4] / "shared/data/l2/binance-usdm-btcusdt-20240808.gz"


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded frames of Binance are not beside this checkout")
def test_frames_of_binance_come_back_to_the_letter() -> None:
    recording = Recording(RECORDED)
    recording.play_from(0)
    names = ["btcusdt@trade", "btcusdt@depth@100ms", "btcusdt@bookTicker"]
    played = [text for _, _, text in recording.frames(names, 0, recording.length_us + 1, combined=True)]
    with gzip.open(RECORDED, "rt") as lines:
        frames = [line.rstrip("\n").split(" ", 1)[1] for line in lines]
    assert played == [frame for frame in frames if frame.startswith('{"stream"')]
    book = recording.book("BTCUSDT", recording.length_us + 1)
    assert book is not None
    quote = json.loads(next(frame for frame in reversed(frames) if "@bookTicker" in frame))["data"]
    assert (book["bids"][0], book["asks"][0]) == ([quote["b"], quote["B"]], [quote["a"], quote["A"]])
