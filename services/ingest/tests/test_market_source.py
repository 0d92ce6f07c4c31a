from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.clock import ManualClock, SystemClock
from tradeloop.common.errors import Unavailable, UserError
from tradeloop.common.market import Instrument, Series, Timeframe, to_us
from tradeloop.common.sql.migrations import migrate
from tradeloop.ingest.adapters.fetched_versions import SCHEMA
from tradeloop.ingest.adapters.sections import AlpacaSection, CcxtSection, IbSection, MassiveSection, Sources
from tradeloop.ingest.adapters.simulated_market import SimulatedMarket
from tradeloop.ingest.adapters.simulated_source import SimulatedSource
from tradeloop.ingest.adapters.sources import open_source
from tradeloop.ingest.adapters.sql_fetched import SqlFetched
from tradeloop.ingest.application.fetch import fetch, missing, sound
from tradeloop.ingest.application.live.history import Answer, Asker, Question
from tradeloop.ingest.contracts import (
    FETCHED_CHECKS,
    MARKET_SOURCE_CHECKS,
    MakeFetched,
    MarketOnTrial,
    check_fetched,
    check_market_source,
)
from tradeloop.ingest.contracts.fake_venue.clock import VenueClock
from tradeloop.ingest.contracts.fake_venue.faults import Faults
from tradeloop.ingest.contracts.fake_venue.market import Listing, Market
from tradeloop.ingest.contracts.fake_venue.server import FakeVenue
from tradeloop.ingest.contracts.fake_venue.tws import FakeTws
from tradeloop.ingest.ports import (
    BatchSource,
    Channel,
    Connected,
    Disconnected,
    FetchedSpan,
    Malformed,
    MarketEvent,
    MarketSource,
    MarketStream,
    Page,
    SourceUnavailable,
    StreamedBar,
    StreamedBook,
    StreamedNews,
    StreamedTrade,
)

PATIENCE_S = 30.0
NOW = datetime(2024, 1, 4, 0, 0, 30, tzinfo=UTC)
START = datetime(2024, 1, 2, tzinfo=UTC)
FAST: Sources = {
    "binance": CcxtSection(requests_per_s=10_000),
    "alpaca": AlpacaSection(requests_per_s=10_000),
    "massive": MassiveSection(requests_per_s=10_000),
}
SOURCES = [
    ("binance", "BTC/USDT"),
    ("alpaca", "AAPL"),
    ("alpaca", "BTC/USDT"),
    ("massive", "AAPL"),
    ("massive", "BTC/USDT"),
]
"""Each source on a network that the fake venue speaks as, with an instrument of each of its protocols."""
CHANGED: dict[str, dict[str, object]] = {
    "none": {},
    "page_limit": {"page_limit": 7},
    "open_bar": {"open_bar": False},
    "slow_s": {"slow_s": 0.01},
    "rate_limited": {"rate_limited": 0.3, "retry_after_s": 0.0},
    "server_errors": {"server_errors": 0.3},
    "garbled_answers": {"garbled_answers": 0.3},
    "clock_ahead_s": {"clock_ahead_s": 20.0},
    "repeated": {"repeated": 0.5},
}
STORMS = {"a storm": 429, "a ban": 418, "maintenance": 503}
"""Refusals of the first requests, whatever they are, by their status."""
ELSEWHERE = {
    "requests_a_minute": "the answer is that of rate_limited, and a test would wait for a minute",
    "retry_after_s": "a part of rate_limited",
    "denied": "it is for good: test_brokers_say_that_credentials_or_a_permission_are_wrong, and that of ccxt",
    "connection_limit": "one connection reaches none: test_sockets_refuse_in_the_words_of_their_protocol",
    "symbol_limit": "one instrument reaches none: the same",
    "disconnects": "frames are lost, and the history decides: test_live_networks",
    "malformed": "the same; that they are told: test_malformed_frames_are_told_and_the_others_come_all_the_same",
    "missing": "the same",
    "reordered": "a bar may be on its way when the check ends: test_live_networks",
    "lying_closed": "the stream is the venue's word; the feed doubts it: test_live_networks",
}
"""The faults that the contract of a single source cannot meet, with the reason and where they are met."""


@contextmanager
def fake_venue(faults: Faults | None = None) -> Iterator[FakeVenue]:
    with FakeVenue(Market(clock=VenueClock(NOW, speed=0.0)), faults=faults) as venue:
        yield venue


def simulated() -> MarketOnTrial:
    clock = ManualClock(NOW)

    def truth(start_us: int, end_us: int) -> Series:
        length_us = Timeframe.M1.us
        open_us = np.arange(-(-start_us // length_us) * length_us, end_us, length_us)
        return SimulatedMarket(3).bars("BTC/USDT", Timeframe.M1, open_us)

    return MarketOnTrial(
        open=lambda: SimulatedSource(clock, 3),
        symbol="BTC/USDT",
        timeframe=Timeframe.M1,
        start_us=to_us(START),
        end_us=to_us(START + timedelta(hours=30)),
        truth=truth,
        now_us=lambda: to_us(clock.now()),
        advance=clock.advance,
    )


def ccxt(venue: FakeVenue, hours: int = 30) -> MarketOnTrial:
    return MarketOnTrial(
        open=lambda: open_source("binance", FAST, SystemClock(), url=venue.url),
        symbol="BTC/USDT",
        timeframe=Timeframe.M1,
        start_us=to_us(START),
        end_us=to_us(START + timedelta(hours=hours)),
        truth=lambda start_us, end_us: venue.market.bars("BTC/USDT", "1m", start_us, end_us).series(),
        now_us=venue.market.now_us,
        advance=venue.advance,
    )


@pytest.mark.parametrize("check", MARKET_SOURCE_CHECKS, ids=lambda check: check.__name__)
def test_the_simulated_source_keeps_the_contract(check: Callable[[MarketOnTrial], None]) -> None:
    check(simulated())


def test_every_fault_of_the_fake_venue_is_met_or_named() -> None:
    known = {one.name for one in fields(Faults) if one.init} - {"seed"}
    assert known == (CHANGED.keys() | STORMS.keys() | ELSEWHERE.keys()) - {"none", "a storm", "a ban"}


@pytest.mark.usefixtures("_credentials")
@pytest.mark.parametrize(
    ("name", "symbol", "fault"),
    # A ban is a word of Binance alone.
    [(*one, fault) for one in SOURCES for fault in (*CHANGED, *STORMS) if fault != "a ban" or one[0] == "binance"],
)
def test_sources_on_networks_keep_the_contract_whatever_the_venue_does(name: str, symbol: str, fault: str) -> None:
    with fake_venue() as venue:
        on_trial = broker(venue, name, symbol, hours=2 if fault == "page_limit" else 30)
        if fault in CHANGED:
            venue.faults.change(**CHANGED[fault])
            check_market_source(on_trial)
            return
        venue.faults.change(retry_after_s=0.0)
        for check in MARKET_SOURCE_CHECKS:
            venue.faults.storm(5, STORMS[fault])
            check(on_trial)
        assert venue.served[f"status {STORMS[fault]}"] >= 5 * len(MARKET_SOURCE_CHECKS) - 5


def broker(venue: FakeVenue, name: str, symbol: str, hours: int = 30) -> MarketOnTrial:
    return replace(
        ccxt(venue, hours),
        open=lambda: open_source(name, FAST, SystemClock(), url=venue.url),
        symbol=symbol,
        others=[other for other in ("BTC/USDT", "ETH/USDT", "AAPL") if other != symbol],
        truth=lambda start_us, end_us: venue.market.bars(symbol, "1m", start_us, end_us).series(),
    )


@pytest.mark.usefixtures("_credentials")
def test_a_live_feed_of_many_stocks_asks_for_them_together() -> None:
    """At 200 requests a minute, which a free account has, each one asked by itself would take minutes."""
    symbols = [f"S{n:03}" for n in range(250)]
    listings = [Listing(one, price=10.0 + n) for n, one in enumerate(symbols)]
    market = Market(listings, clock=VenueClock(NOW, speed=0.0))
    with FakeVenue(market) as venue, closing(open_source("alpaca", FAST, SystemClock(), url=venue.url)) as source:
        instruments = source.instruments(symbols)
        assert venue.served["requests"] == 1, "instruments are looked up one by one"
        held, answers = Held(source), deque[Answer]()
        asker = Asker(held, market.now_us)
        start_us = to_us(NOW - timedelta(minutes=30, seconds=30))
        asker.ask(Question("clock", answers, "alpaca"))
        held.asked.wait(PATIENCE_S)  # all others wait meanwhile
        for n, one in enumerate(instruments):
            span = start_us + n % 7 * Timeframe.M1.us, market.now_us() - n % 3 * Timeframe.M1.us
            asker.ask(Question("check", answers, "alpaca", one, Timeframe.M1, *span))
        held.go.set()
        until_there(answers, 251)
        asker.close()
        assert venue.served["requests"] == 2 + 2 * 3, "three requests for 250 histories, and the clock for each"
        for answer in list(answers)[1:]:
            question = answer.question
            assert answer.error is None
            assert question.instrument is not None
            assert answer.bars is not None
            assert question.end_us - Timeframe.M1.us < answer.until_us <= question.end_us or (
                answer.until_us > market.now_us() - Timeframe.M1.us
            )
            symbol = question.instrument.id.partition(":")[2]
            truth = market.bars(symbol, "1m", question.start_us, answer.until_us).series()
            for name in truth:
                assert answer.bars[name].tolist() == truth[name].tolist(), (symbol, name)


@pytest.mark.usefixtures("_credentials")
def test_a_wrong_symbol_among_many_is_told_to_whoever_asked_for_it() -> None:
    with fake_venue() as venue, closing(open_source("alpaca", FAST, SystemClock(), url=venue.url)) as source:
        held, answers = Held(source), deque[Answer]()
        asker = Asker(held, venue.market.now_us)
        asker.ask(Question("clock", answers, "alpaca"))
        held.asked.wait(PATIENCE_S)
        for symbol in ("AAPL", "NONE", "BTC/USDT"):
            span = to_us(NOW - timedelta(minutes=9)), to_us(NOW)
            asker.ask(Question("settle", answers, "alpaca", Instrument(id=f"alpaca:{symbol}"), Timeframe.M1, *span))
        held.go.set()
        until_there(answers, 4)
        asker.close()
        errors = [answer.error for answer in list(answers)[1:]]
        assert errors[0] is None
        assert isinstance(errors[1], UserError)
        assert "NONE" in str(errors[1])
        assert errors[2] is None


def until_there(answers: deque[Answer], count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while len(answers) < count:
        assert time.monotonic() < deadline, f"{len(answers)} of {count} answers"
        threading.Event().wait(0.01)


class Held:
    """A source that waits in its first answer until `go`."""

    def __init__(self, source: MarketSource) -> None:
        assert isinstance(source, BatchSource)
        self.venue, self.at_once = source.venue, source.at_once
        self.instruments, self.history, self.histories = source.instruments, source.history, source.histories
        self.stream, self.close, self._time_us = source.stream, source.close, source.time_us
        self.asked, self.go = threading.Event(), threading.Event()

    def time_us(self) -> int:
        self.asked.set()
        self.go.wait(PATIENCE_S)
        return self._time_us()


@pytest.fixture
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APCA_API_KEY_ID", "key")
    monkeypatch.setenv("APCA_API_SECRET_KEY", "secret")
    monkeypatch.setenv("MASSIVE_API_KEY", "key")


@pytest.mark.usefixtures("_credentials")
@pytest.mark.parametrize("name", ["alpaca", "massive"])
def test_brokers_say_that_credentials_or_a_permission_are_wrong(name: str) -> None:
    with (
        FakeVenue(Market(clock=VenueClock(NOW, speed=0.0)), credentials={"another": "secret"}) as venue,
        closing(open_source(name, {}, SystemClock(), url=venue.url)) as source,
        pytest.raises(UserError, match=f"{name} refuses the credentials"),
    ):
        source.instruments(["AAPL"])
    with fake_venue() as venue, closing(open_source(name, {}, SystemClock(), url=venue.url)) as source:
        venue.faults.change(denied=True)
        with pytest.raises(UserError, match=f"{name} denies permission"):
            source.instruments(["AAPL"])


@pytest.mark.usefixtures("_credentials")
@pytest.mark.parametrize(
    ("name", "channels"),
    [("alpaca", frozenset(["bars", "trades", "books", "news"])), ("massive", frozenset(["bars", "trades"]))],
)
def test_brokers_stream_stocks_beside_crypto_and_come_back(name: str, channels: frozenset[Channel]) -> None:
    market = Market(clock=VenueClock(NOW, speed=0.0), news_per_day=1440.0)
    with FakeVenue(market) as venue, closing(open_source(name, {}, SystemClock(), url=venue.url)) as source:
        instruments = source.instruments(["AAPL", "BTC/USDT"])
        kinds = {"bars": StreamedBar, "trades": StreamedTrade, "books": StreamedBook}
        wanted = {(kinds[one], of.id) for one in channels & kinds.keys() for of in instruments}
        with closing(source.stream(instruments, Timeframe.M1, channels)) as stream:
            for _ in range(2):
                events = polled(stream, has(Connected))
                for _ in range(100):
                    venue.advance(30.0)
                    events += stream.poll(0.1)
                    news = any(isinstance(one, StreamedNews) for one in events) or "news" not in channels
                    if news and wanted <= {(type(one), getattr(one, "instrument", "")) for one in events}:
                        break
                else:
                    raise AssertionError(f"of {wanted} not all came")
                venue.faults.disconnect_now()
                polled(stream, has(Disconnected))


IB_FAULTS = {**{name: CHANGED[name] for name in CHANGED if name != "page_limit"}, "disconnects": {"disconnects": 0.2}}
"""Those of a TWS: it has no pages that it could cut short."""


@pytest.mark.parametrize("faults", IB_FAULTS.values(), ids=IB_FAULTS)
def test_interactive_brokers_keeps_the_contract_whatever_the_venue_does(faults: dict[str, object]) -> None:
    now = datetime(2024, 1, 4, 16, 0, 30, tzinfo=UTC)  # while New York trades
    with FakeTws(Market(clock=VenueClock(now, speed=0.0))) as tws:
        tws.faults.change(**faults)

        def truth(start_us: int, end_us: int) -> Series:
            bars = tws.market.bars("AAPL", "1m", start_us, end_us).series()
            hours = (bars["open_us"] // 60_000_000) % 1440  # in winter, from 14:30 to 21:00 UTC
            return {name: column[(hours >= 870) & (hours < 1260)] for name, column in bars.items()}

        check_market_source(
            MarketOnTrial(
                open=lambda: open_source("ib", {"ib": IbSection(pace=0.001)}, SystemClock(), url=tws.url),
                symbol="AAPL",
                timeframe=Timeframe.M1,
                start_us=to_us(START),
                end_us=to_us(START + timedelta(hours=40)),
                truth=truth,
                now_us=tws.market.now_us,
                advance=tws.advance,
                streams=False,
            )
        )


def polled(stream: MarketStream, enough: Callable[[Sequence[MarketEvent]], bool]) -> list[MarketEvent]:
    """Events until there are enough of them; fails after a while."""
    events: list[MarketEvent] = []
    for _ in range(150):
        events += stream.poll(0.1)
        if enough(events):
            return events
    raise AssertionError(f"the stream did not bring what was awaited, but {events[-5:]}")


def has(*kinds: type) -> Callable[[Sequence[MarketEvent]], bool]:
    return lambda events: all(any(isinstance(event, kind) for event in events) for kind in kinds)


@contextmanager
def streaming(venue: FakeVenue) -> Iterator[MarketStream]:
    with closing(open_source("binance", FAST, SystemClock(), url=venue.url)) as source:
        instruments = source.instruments(["BTC/USDT", "ETH/USDT"])
        stream = source.stream(instruments, Timeframe.M1, frozenset(["bars", "trades", "books"]))
        with closing(stream):
            polled(stream, has(Connected))
            yield stream


def flow(venue: FakeVenue, stream: MarketStream) -> None:
    """Wait until bars, trades and books come: each has a connection of its own."""
    events: list[MarketEvent] = []
    for _ in range(100):
        venue.advance(2.0)
        events += stream.poll(0.1)
        if has(StreamedBar, StreamedTrade, StreamedBook)(events):
            return
    raise AssertionError("not all channels bring something")


def test_ccxt_streams_bars_trades_and_books_of_each_instrument() -> None:
    with fake_venue() as venue, streaming(venue) as stream:
        events: list[MarketEvent] = []
        for _ in range(100):
            venue.advance(5.0)
            events += stream.poll(0.1)
            kinds = {(type(one), getattr(one, "instrument", "")) for one in events}
            if len(kinds) >= 6 and any(isinstance(one, StreamedBar) and one.closed for one in events):
                break
        for kind in (StreamedBar, StreamedTrade, StreamedBook):
            for symbol in ("BTC/USDT", "ETH/USDT"):
                assert (kind, f"binance:{symbol}") in kinds
        truth = {trade.id: trade for trade in venue.market.trades("BTC/USDT", to_us(NOW), venue.market.now_us() + 1)}
        trades = [one for one in events if isinstance(one, StreamedTrade) and one.instrument == "binance:BTC/USDT"]
        for trade in trades:
            other = truth[int(trade.id)]
            assert (trade.price, trade.size, trade.side) == (other.price, other.size, "buy" if other.buy else "sell")
        assert len({trade.id for trade in trades}) == len(trades) > 10


def test_a_break_in_mid_frame_is_told_and_the_stream_comes_back() -> None:
    with fake_venue() as venue, streaming(venue) as stream:
        for _ in range(2):
            flow(venue, stream)
            venue.faults.disconnect_now()
            events = polled(stream, has(Disconnected, Connected))
            places = [type(one) for one in events if isinstance(one, (Connected, Disconnected))]
            assert places.index(Disconnected) < len(places) - 1 - places[::-1].index(Connected)
        flow(venue, stream)


def test_malformed_frames_are_told_and_the_others_come_all_the_same() -> None:
    with fake_venue() as venue, streaming(venue) as stream:
        venue.faults.change(malformed=0.5)
        events: list[MarketEvent] = []
        for _ in range(60):
            venue.advance(1.0)
            events += stream.poll(0.1)
        broken = [one for one in events if isinstance(one, Malformed)]
        assert broken
        assert all("\n" not in one.reason for one in broken)
        assert has(StreamedBar)(events)


def test_wrong_credentials_and_a_missing_permission_are_said_in_one_line() -> None:
    with fake_venue() as venue:
        source = open_source("binance", FAST, SystemClock(), url=venue.url)
        instrument = source.instruments(["BTC/USDT"])[0]
        venue.faults.change(denied=True)
        with pytest.raises((UserError, SourceUnavailable)) as raised:
            list(source.history(instrument, Timeframe.M1, to_us(START), to_us(NOW)))
        assert str(raised.value).startswith("binance ")
        venue.faults.change(denied=False, maintenance=True)
        with pytest.raises(SourceUnavailable):
            list(source.history(instrument, Timeframe.M1, to_us(START), to_us(NOW)))


def test_a_venue_that_is_away_is_unavailable() -> None:
    source = open_source("binance", FAST, SystemClock(), url="http://127.0.0.1:9")
    with pytest.raises(SourceUnavailable, match="binance does not answer"):
        source.instruments(["BTC/USDT"])


@pytest.fixture
def make_fetched(tmp_path: Path) -> MakeFetched:
    return lambda: SqlFetched(f"sqlite:///{tmp_path / 'bars.db'}", SystemClock())


@pytest.mark.parametrize("check", FETCHED_CHECKS, ids=lambda check: check.__name__)
def test_the_record_in_sqlite_keeps_the_contract(
    check: Callable[[MakeFetched], None], make_fetched: MakeFetched
) -> None:
    check(make_fetched)
    check_fetched(make_fetched)


@pytest.mark.parametrize("check", FETCHED_CHECKS, ids=lambda check: check.__name__)
def test_the_record_in_postgresql_keeps_the_contract(check: Callable[[MakeFetched], None], plain_database: str) -> None:
    with (
        closing(SqlFetched(plain_database, SystemClock())) as early,
        pytest.raises(Unavailable, match="it has no tables yet; run: tradeloop db migrate"),
    ):
        early.spans("s", "x:A", Timeframe.M1)
    migrate(plain_database, SCHEMA)
    check(lambda: SqlFetched(plain_database, SystemClock()))


def test_what_is_missing_is_what_no_range_covers() -> None:
    spans = [FetchedSpan(40, 50), FetchedSpan(10, 20), FetchedSpan(20, 30)]
    assert missing(spans, 0, 60) == [(0, 10), (30, 40), (50, 60)]
    assert missing(spans, 12, 28) == []
    assert missing(spans, 15, 45) == [(30, 40)]
    assert missing([], 5, 6) == [(5, 6)]
    assert missing(spans, 5, 5) == []


class Scripted:
    """A source that gives the same pages to everybody, and is unavailable as often as it is told."""

    venue = "x"

    def __init__(self, bars: Series, page: int, failures: int = 0) -> None:
        self._bars, self._page, self._failures = bars, page, failures
        self.served = 0

    def instruments(self, symbols: Sequence[str]) -> Sequence[Instrument]:
        return [Instrument(id=f"x:{symbol}") for symbol in symbols]

    def history(self, instrument: Instrument, timeframe: Timeframe, start_us: int, end_us: int) -> Iterator[Page]:
        rows = np.flatnonzero((self._bars["open_us"] >= start_us) & (self._bars["open_us"] < end_us))
        for at in range(0, len(rows), self._page):
            if self._failures:
                self._failures -= 1
                raise SourceUnavailable("x is away", 7.0)
            part = rows[at : at + self._page]
            self.served += len(part)
            last = at + self._page >= len(rows)
            yield Page(
                {name: column[part] for name, column in self._bars.items()},
                end_us if last else int(self._bars["open_us"][part[-1]]) + timeframe.us,
            )

    def stream(self, instruments: object, timeframe: object, channels: object) -> MarketStream:
        raise UserError("x has no stream")

    def time_us(self) -> int:
        return to_us(NOW)

    def close(self) -> None: ...


def minutes(count: int) -> dict[str, np.ndarray]:
    price = np.linspace(10.0, 20.0, count)
    return {
        "open_us": to_us(START) + np.arange(count, dtype=np.int64) * Timeframe.M1.us,
        **{name: price.copy() for name in ("open", "high", "low", "close", "volume")},
    }


def test_a_fetch_goes_on_where_it_ended_and_a_second_one_asks_for_nothing(make_fetched: MakeFetched) -> None:
    source: Scripted = Scripted(minutes(100), 10, failures=3)
    market: MarketSource = source
    store, fetched, waited = MemoryBarStore(SystemClock()), make_fetched(), list[float]()
    [instrument] = source.instruments(["A"])
    span = to_us(START), to_us(START) + 100 * Timeframe.M1.us

    def run() -> Iterator[object]:
        return fetch(market, "x", store, fetched, instrument, Timeframe.M1, *span, waited.append)

    first = run()
    for _ in range(7):
        next(first)
    del first  # as if it were killed
    assert waited == [7.0] * 3
    assert source.served == 40
    assert len(list(run())) == 6
    assert source.served == 100
    assert list(run()) == []
    assert source.served == 100
    assert np.array_equal(store.read(["x:A"], Timeframe.M1, *span).close[:, 0], minutes(100)["close"])


def test_bars_that_are_none_are_left_out_and_named(make_fetched: MakeFetched) -> None:
    bars = minutes(20)
    bars["low"][3], bars["high"][5], bars["close"][7], bars["volume"][9], bars["volume"][11] = 0, 1, np.nan, -1, np.nan
    source = Scripted(bars, 50)
    store, fetched = MemoryBarStore(SystemClock()), make_fetched()
    [instrument] = source.instruments(["A"])
    span = to_us(START), to_us(START) + 20 * Timeframe.M1.us
    [page] = fetch(source, "x", store, fetched, instrument, Timeframe.M1, *span, lambda _: None)
    assert page.bars == 16
    assert [line.split(": ")[1] for line in page.left_out] == [
        "low 0.0 is no price",
        "high 1.0 is below low 12.631578947368421",
        "close nan is no price",
        "volume -1.0 is no volume",
    ]
    assert list(fetched.spans("x", "x:A", Timeframe.M1)) == [FetchedSpan(*span, 4)]
    assert len(store.read(["x:A"], Timeframe.M1, *span)) == 16
    kept, none = sound({**minutes(2), "volume": np.full(2, np.nan)})
    assert ("volume" in kept, none) == (False, ())


def test_a_range_in_the_future_is_refused(make_fetched: MakeFetched) -> None:
    source = Scripted(minutes(2), 50)
    future = to_us(NOW) + 1
    progress = fetch(
        source, "x", MemoryBarStore(SystemClock()), make_fetched(), source.instruments(["A"])[0], Timeframe.M1,
        future, future + 10, lambda _: None,
    )  # fmt: skip
    with pytest.raises(UserError, match="give an earlier start"):
        next(progress)


def test_a_reader_that_is_too_slow_is_told() -> None:
    from tradeloop.ingest.adapters.streaming import Session, ThreadedStream

    began = threading.Event()

    async def run(session: Session) -> None:
        if not began.is_set():
            began.set()
            for _ in range(50):
                session.emit(Malformed(0, "x"))
        import asyncio

        await asyncio.sleep(60)

    stream = ThreadedStream("x", run, SystemClock(), capacity=10)
    began.wait(10)
    events = polled(stream, has(Disconnected))
    assert len([one for one in events if isinstance(one, Malformed)]) == 9
    [lost] = [one for one in events if isinstance(one, Disconnected)]
    assert lost.reason == "too slow: 10 events waited to be read, and 41 more were left out"
    stream.close()
