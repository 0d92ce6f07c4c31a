"""Interactive Brokers through the real ib_async, against a fake TWS; what all sources promise is in the contract."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.waiting import until
from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.clock import ManualClock, SystemClock
from tradeloop.common.errors import UserError
from tradeloop.common.market import Instrument, Series, Timeframe, TimeRange, Universe, from_us, joined, to_us
from tradeloop.common.market.calendars import gaps
from tradeloop.common.messages import BackfillCompleted, BackfillRequested
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.readback import all_messages
from tradeloop.common.runtime.runner import Runner
from tradeloop.ingest.adapters.bus_frames import BusFrames
from tradeloop.ingest.adapters.files import read_blocks
from tradeloop.ingest.adapters.ib_gateway import NoData, NoDefinition, translated
from tradeloop.ingest.adapters.ib_pacing import Pacing
from tradeloop.ingest.adapters.ib_source import IbSource
from tradeloop.ingest.adapters.ib_symbols import Security, listed, security, written
from tradeloop.ingest.adapters.sections import IbSection, Sources
from tradeloop.ingest.adapters.sources import load_sources, open_source
from tradeloop.ingest.adapters.sql_fetched import SqlFetched
from tradeloop.ingest.application import Ingest
from tradeloop.ingest.application.fetch import sound
from tradeloop.ingest.contracts.fake_venue.clock import VenueClock
from tradeloop.ingest.contracts.fake_venue.market import Listing, Market
from tradeloop.ingest.contracts.fake_venue.tws import FakeTws
from tradeloop.ingest.ports import MarketSource, SourceUnavailable

NEW_YORK = ZoneInfo("America/New_York")
NOW = datetime(2024, 3, 14, 18, 0, 30, tzinfo=UTC)
"""A Thursday in New York, while it trades; clocks went forward on the Sunday before."""
START = datetime(2024, 3, 5, tzinfo=UTC)
SYMBOLS = [Listing("AAPL", 190.0, 2, 0), Listing("MSFT", 420.0, 2, 0), Listing("EUR/USD", 1.08, 5, 0)]


@contextmanager
def tws(now: datetime = NOW, pacing: float = 0.0) -> Iterator[FakeTws]:
    market = Market(SYMBOLS, begins=datetime(2024, 3, 1, tzinfo=UTC), clock=VenueClock(now, speed=0.0))
    with FakeTws(market, pacing=pacing) as venue:
        yield venue


@contextmanager
def source(venue: FakeTws, **section: object) -> Iterator[IbSource]:
    given = IbSection.model_validate({"url": venue.url, "pace": 0.0, "timeout_s": 60.0, **section})
    with closing(IbSource("ib", given, SystemClock())) as found:
        yield found


def history(
    source: MarketSource,
    symbol: str,
    timeframe: Timeframe,
    start: datetime = START,
    end: datetime = NOW + timedelta(days=3),
) -> Series:
    [instrument] = source.instruments([symbol])
    return joined([page.bars for page in source.history(instrument, timeframe, to_us(start), to_us(end))])


def minutes(market: Market, symbol: str, opens: time, closes: time) -> Iterator[tuple[datetime, tuple[float, ...]]]:
    """The minutes of New York's weekdays between two times, which have closed, with prices and volume."""
    bars = market.bars(symbol, "1m", to_us(START), market.now_us(), known_us=market.now_us())
    columns = (bars.open_us.tolist(), *(getattr(bars, name).tolist() for name in (*PRICES, "volume")))
    for open_us, *values in zip(*columns, strict=True):
        local = from_us(open_us).astimezone(NEW_YORK)
        if local.weekday() < 5 and opens <= local.time() < closes:
            yield local, tuple(values)


PRICES = ("open", "high", "low", "close")


def grouped(
    rows: Iterator[tuple[datetime, tuple[float, ...]]], key: Callable[[datetime], datetime]
) -> dict[int, list[float]]:
    """Bars made of minutes in plain Python."""
    found: dict[int, list[float]] = {}
    for local, (open_, high, low, close, volume) in rows:
        bar = found.setdefault(to_us(key(local).astimezone(UTC)), [open_, high, low, close, 0.0])
        bar[1:] = [max(bar[1], high), min(bar[2], low), close, bar[4] + volume]
    return found


def told(bars: Series) -> dict[int, list[float]]:
    names = [name for name in (*PRICES, "volume") if name in bars]
    values = zip(*(bars[name].tolist() for name in names), strict=True)
    return dict(zip(bars["open_us"].tolist(), map(list, values), strict=True))


def test_an_hour_of_a_stock_is_that_of_the_exchanges_clock() -> None:
    with tws() as venue, source(venue) as ib:
        rows = minutes(venue.market, "AAPL", time(9, 30), time(16))
        truth = grouped(rows, lambda local: local.replace(minute=0))
        running = to_us(NOW) // 3_600_000_000 * 3_600_000_000
        truth.pop(running, None)
        bars = history(ib, "AAPL", Timeframe.H1)
        assert told(bars) == truth
        local = [from_us(us).astimezone(NEW_YORK).time() for us in bars["open_us"].tolist()]
        assert set(local) == {time(hour) for hour in range(9, 16)}
        assert gaps(bars["open_us"].astype(np.int64), Timeframe.H1, ib.instruments(["AAPL"])[0].calendar) == []


def test_a_day_of_a_stock_begins_at_its_exchanges_midnight() -> None:
    with tws() as venue, source(venue) as ib:
        rows = minutes(venue.market, "AAPL", time(9, 30), time(16))
        truth = grouped(rows, lambda local: datetime.combine(local.date(), time(), NEW_YORK))
        bars = told(history(ib, "AAPL", Timeframe.D1))
        last = max(truth)
        assert from_us(last).date() == NOW.date()
        assert bars == {open_us: bar for open_us, bar in truth.items() if open_us != last}, "today has not closed"
        hours = {from_us(open_us).date(): from_us(open_us).hour for open_us in bars}
        assert (hours[date(2024, 3, 8)], hours[date(2024, 3, 11)]) == (5, 4)


def test_a_day_of_a_pair_begins_at_five_in_new_york_and_has_no_volume() -> None:
    def turn(local: datetime) -> datetime:
        day = local.date() - timedelta(days=local.time() < time(17))
        return datetime.combine(day, time(17), NEW_YORK)

    with tws() as venue, source(venue) as ib:
        everything = venue.market.bars("EUR/USD", "1m", to_us(START) - 86_400_000_000, to_us(NOW))
        rows = []
        for row, open_us in enumerate(everything.open_us.tolist()):
            local = from_us(open_us).astimezone(NEW_YORK)
            week_end = (local.weekday(), local.time()) > (4, time(16, 59)) and (local.weekday(), local.time()) < (
                6,
                time(17, 15),
            )
            if not week_end and not time(17) <= local.time() < time(17, 15):
                rows.append((local, (*(float(getattr(everything, name)[row]) for name in PRICES), 0.0)))
        truth = {us: bar[:4] for us, bar in grouped(iter(rows), turn).items() if to_us(START) <= us}
        truth.pop(max(truth))
        bars = history(ib, "EUR.USD", Timeframe.D1)
        assert "volume" not in bars
        assert told(bars) == truth
        [instrument] = ib.instruments(["EUR.USD"])
        assert (instrument.calendar, instrument.tick_size, instrument.lot_size) == ("fx", 1e-05, 1.0)
        assert gaps(bars["open_us"].astype(np.int64), Timeframe.D1, "fx") == []
        assert sound(bars)[1] == ()


@pytest.mark.parametrize("timeframe", [Timeframe.S5, Timeframe.S30, Timeframe.M5, Timeframe.M30])
def test_bars_of_each_size_are_those_of_the_market(timeframe: Timeframe) -> None:
    start = datetime(2024, 3, 14, 15, tzinfo=UTC)
    with tws() as venue, source(venue) as ib:
        truth = venue.market.bars("AAPL", timeframe.value, to_us(start), to_us(NOW), known_us=to_us(NOW)).series()
        bars = history(ib, "AAPL", timeframe, start)
        assert len(bars["open_us"]) == (3 * 3600 + 30) // timeframe.seconds
        for name in truth:
            assert np.array_equal(bars[name], truth[name]), name


def test_hours_before_and_after_come_where_they_are_asked_for() -> None:
    with tws() as venue, source(venue, hours="all") as ib:
        truth = grouped(minutes(venue.market, "AAPL", time(4), time(20)), lambda local: local)
        assert told(history(ib, "AAPL", Timeframe.M1)) == truth
        assert ib.instruments(["AAPL"])[0].calendar == "sessions"


def test_before_the_first_data_nothing_is_asked() -> None:
    with tws() as venue, source(venue) as ib:
        bars = history(ib, "AAPL", Timeframe.D1, datetime(1990, 1, 1, tzinfo=UTC))
        assert from_us(int(bars["open_us"][0])) == datetime(2024, 3, 1, 5, tzinfo=UTC)
        assert venue.served["historical"] == 1


def test_timeframes_and_times_that_it_does_not_have_are_refused() -> None:
    with tws() as venue, source(venue) as ib:
        with pytest.raises(UserError, match="ib has no bars of 4h here: fetch one of 1s, "):
            history(ib, "AAPL", Timeframe.H4)
        with pytest.raises(UserError, match="keeps bars of 5s for 180 days: begin at 2023-09-17, or fetch bars of 1m"):
            history(ib, "AAPL", Timeframe.S5, datetime(2023, 9, 1, tzinfo=UTC))


def test_symbols_are_written_in_one_way_and_refused_with_those_like_them() -> None:
    assert security("ib", "AAPL") == Security("AAPL", "STK", "SMART", "USD")
    assert security("ib", "SAP.IBIS.EUR") == Security("SAP", "STK", "IBIS", "EUR")
    assert security("ib", "BT.A.LSE.GBP") == Security("BT.A", "STK", "LSE", "GBP")
    assert security("ib", "EUR.USD") == Security("EUR", "CASH", "IDEALPRO", "USD")
    assert security("ib", "SPX.CBOE.USD.IND") == Security("SPX", "IND", "CBOE", "USD")
    assert security("ib", "BRK_B").fields()["symbol"] == "BRK B"
    for wrong in ("BT.A", "", "A..USD", "A.B.C", "SPX.IND", "ES.CME.USD.FUT"):
        with pytest.raises(UserError, match="write a stock as AAPL"):
            security("ib", wrong)
    with tws() as venue, source(venue) as ib:
        for wrong, meant in (
            ("AAPQ", "did you mean AAPL?"),
            ("USD.EUR", "did you mean EUR.USD?"),
            ("AAPL.LSE.GBP", "did you mean AAPL?"),
            ("SAP.IBIS.EUR", "write a stock as AAPL"),
        ):
            with pytest.raises(UserError) as raised:
                ib.instruments([wrong])
            assert wrong in str(raised.value)
            assert meant in str(raised.value)


def details(**changed: object) -> SimpleNamespace:
    contract = SimpleNamespace(symbol="SAP", secType="STK", exchange="SMART", currency="EUR", primaryExchange="IBIS")
    told = {"timeZoneId": "MET", "minTick": 0.01, "sizeIncrement": 0.0001, "minSize": 1.0, "contract": contract}
    return SimpleNamespace(**{**told, **changed})


def test_terms_are_those_of_the_contract_and_its_exchange() -> None:
    wanted = Security("SAP", "STK", "SMART", "EUR")
    found = listed("ib", "SAP.SMART.EUR", wanted, [details()], regular=True)
    terms = found.instrument
    assert (terms.calendar, terms.tick_size, terms.lot_size) == ("XETR", 0.01, 1.0)
    assert from_us(found.day_us(date(2024, 7, 1))) == datetime(2024, 6, 30, 22, tzinfo=UTC)
    with pytest.raises(UserError, match="zone 'Mars' of its exchange is not known"):
        listed("ib", "SAP.SMART.EUR", wanted, [details(timeZoneId="Mars (red)")], regular=True)
    other = details()
    other.contract.primaryExchange = "FWB"
    with pytest.raises(UserError, match=r"is several: SAP\.FWB\.EUR, SAP\.IBIS\.EUR: name its exchange"):
        listed("ib", "SAP.SMART.EUR", wanted, [details(), other], regular=True)
    assert written(SimpleNamespace(symbol="BRK B", secType="STK", currency="USD")) == "BRK_B"


def test_bars_that_follow_no_clock_are_refused() -> None:
    """As if hours began at half past all day: one of them would be called closed half an hour early."""
    with tws() as venue, source(venue) as ib:
        [_] = ib.instruments(["AAPL"])
        found = ib._listed["AAPL"]
        half = to_us(datetime(2024, 3, 13, 13, 30, tzinfo=UTC))
        hour = Timeframe.H1.us
        assert list(ib._on_the_clock(found, Timeframe.H1, {half: 1, half + hour // 2: 2})) == [
            half - hour // 2,
            half + hour // 2,
        ]
        for opens in ([half, half + hour], [half - hour // 2, half]):
            with pytest.raises(UserError, match="do not begin by the exchange's clock: fetch shorter ones"):
                ib._on_the_clock(found, Timeframe.H1, dict.fromkeys(opens))


def test_messages_of_tws_become_the_errors_of_the_port() -> None:
    service = "Historical Market Data Service error message:"
    for code, text, kind, said in (
        (162, f"{service}HMDS query returned no data: AAPL@SMART Trades", NoData, ""),
        (162, f"{service}Historical data request pacing violation", SourceUnavailable, "asked too often"),
        (162, f"{service}No market data permissions for ISLAND STK", UserError, "denies permission"),
        (162, f"{service}No historical market data for EUR/CASH@IDEALPRO Last 1d", UserError, "refuses the request"),
        (162, f"{service}API historical data query cancelled: 3", SourceUnavailable, "does not answer"),
        (200, "No security definition has been found for the request", NoDefinition, ""),
        (354, "Requested market data is not subscribed.", UserError, "denies permission"),
        (10089, "Requested market data requires additional subscription for API.", UserError, "denies permission"),
        (326, "Unable to connect as the client id is already in use.", SourceUnavailable, "another client_id"),
        (
            1100,
            "Connectivity between IBKR and Trader Workstation\nhas been lost.",
            SourceUnavailable,
            "lost its servers",
        ),
        (321, "Error validating request", UserError, "refuses the request"),
    ):
        error = translated("ib", code, text)
        assert type(error) is kind, text
        assert said in str(error)
        assert f"({code})" in str(error)
        assert "\n" not in str(error)
    pause = translated("ib", 162, f"{service}Historical data request pacing violation")
    assert isinstance(pause, SourceUnavailable)
    # A fetch gives up after twelve attempts: by then the ten minutes of the longest rule are over.
    assert pause.retry_after_s is not None
    assert 11 * pause.retry_after_s > 600


def test_a_missing_permission_and_lost_servers_are_said() -> None:
    with tws() as venue, source(venue) as ib:
        venue.faults.change(denied=True)
        with pytest.raises(UserError, match=r"ib denies permission: .* \(162\): subscribe to this data"):
            history(ib, "AAPL", Timeframe.M1)
        venue.faults.change(denied=False, maintenance=True)
        with pytest.raises(SourceUnavailable, match=r"ib has lost its servers: Connectivity .* \(1100\)"):
            history(ib, "AAPL", Timeframe.M1)
        venue.faults.change(maintenance=False)
        assert len(history(ib, "AAPL", Timeframe.D1)["open_us"]) == 7


def test_what_happens_between_two_questions_is_found_at_the_next() -> None:
    with tws() as venue, source(venue) as ib:
        ib.time_us()
        venue.faults.disconnect_now()
        assert ib.time_us() == to_us(NOW)
        venue.tell(1100, "Connectivity between IBKR and Trader Workstation has been lost.")
        venue.tell(1102, "Connectivity between IBKR and Trader Workstation has been restored - data maintained.")
        ask = _again(ib.time_us)
        assert ask == to_us(NOW)
        assert 2 <= venue.served["connections"] <= 3


def _again(ask: Callable[[], int]) -> int:
    try:
        return ask()
    except SourceUnavailable:
        return ask()


def test_threads_ask_in_turn_and_whoever_is_asked_while_it_closes_is_told() -> None:
    with tws() as venue, source(venue) as ib:
        found: list[object] = [ib.time_us()]

        def ask() -> None:
            try:
                found.append(ib.time_us())
            except SourceUnavailable as error:
                found.append(str(error))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert found == [to_us(NOW)] * 4
        venue.faults.disconnect_now()
        venue.faults.change(slow_s=30.0)
        before = venue.served["requests"]
        last = threading.Thread(target=ask)
        last.start()
        until(lambda: venue.served["requests"] > before)
        ib.close()
        last.join(20)
        ask()
        assert found[4:] == ["ib was closed"] * 2


def test_no_answer_is_not_taken_for_no_bars() -> None:
    with tws() as venue, source(venue) as ib:
        assert len(history(ib, "AAPL", Timeframe.D1)["open_us"]) == 7
        [instrument] = ib.instruments(["AAPL"])
        for fault, said in (
            ({"garbled_answers": 1.0}, "ib: its answer cannot be read"),
            ({"garbled_answers": 0.0, "disconnects": 1.0}, "ib: the connection broke"),
        ):
            venue.faults.change(**fault)
            with pytest.raises(SourceUnavailable, match=said):
                list(ib.history(instrument, Timeframe.D1, to_us(START), to_us(NOW)))
        venue.faults.change(disconnects=0.0)
        assert len(history(ib, "AAPL", Timeframe.D1)["open_us"]) == 7
    with tws() as venue, source(venue, timeout_s=2.0) as ib:
        [instrument] = ib.instruments(["AAPL"])
        venue.faults.change(slow_s=60.0)
        with pytest.raises(SourceUnavailable, match="ib does not answer within 2 s"):
            list(ib.history(instrument, Timeframe.D1, to_us(START), to_us(NOW)))


def test_two_clients_have_two_numbers() -> None:
    with tws() as venue, source(venue) as first, source(venue) as second:
        first.time_us()
        with pytest.raises(SourceUnavailable, match=r"already in use\. \(326\): give another client_id in its section"):
            second.time_us()
        first.close()
        with source(venue, client_id=32) as third:
            assert third.time_us() == to_us(NOW)


def test_a_tws_that_is_away_or_another_server_is_said_in_one_line() -> None:
    with (
        closing(open_source("ib", {}, SystemClock(), url="tcp://127.0.0.1:9")) as ib,
        pytest.raises(SourceUnavailable, match=r"tcp://127\.0\.0\.1:9 cannot be reached \(502\): .*: start TWS"),
    ):
        ib.time_us()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        section = IbSection(url=f"tcp://127.0.0.1:{port}", timeout_s=0.3)
        with closing(IbSource("ib", section, SystemClock())) as silent:
            with pytest.raises(SourceUnavailable, match="takes the connection and says nothing: let this machine in"):
                silent.time_us()

            def answer() -> None:
                for _ in range(2):
                    connection, _ = other.accept()
                    connection.recv(1000)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    connection.close()

            thread = threading.Thread(target=answer)
            thread.start()
            with pytest.raises(SourceUnavailable):
                silent.time_us()
            thread.join(10)


def test_its_address_is_checked_and_its_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for wrong in (
        "http://127.0.0.1:7497",
        "tcp://127.0.0.1",
        "tcp://me:secret@host:1",
        "tcp://host:99999",
        "tcp://h:1/x",
    ):
        with pytest.raises(UserError) as raised:
            open_source("ib", {}, SystemClock(), url=wrong)
        assert "Value error, " in str(raised.value)
        assert "\n" not in str(raised.value)
    assert load_sources(None) == {}
    for name in [one for one in sys.modules if one.startswith("tradeloop.ingest.adapters.ib_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ib_async", None)
    with pytest.raises(UserError, match=r"^ib needs the package ib_async: pip install 'tradeloop-ingest\[ib\]'$"):
        open_source("ib", {}, SystemClock())


def test_it_has_no_live_stream_and_says_so() -> None:
    with tws() as venue, source(venue) as ib, pytest.raises(UserError, match="ib has no live stream here"):
        ib.stream([Instrument(id="ib:AAPL")], Timeframe.M1, frozenset(["bars"]))


def test_ingest_of_a_running_stack_fetches_a_universe_with_its_longer_bars(tmp_path: Path) -> None:
    bus, clock = MemoryBus(), SystemClock()
    store = MemoryBarStore(clock)
    with tws() as venue, closing(SqlFetched(f"sqlite:///{tmp_path}/fetched.db", clock)) as fetched:
        sources: Sources = {"ib": IbSection(url=venue.url, pace=0.0)}
        names = ("ib:AAPL", "ib:MSFT")
        universe = Universe(
            name="u",
            instruments=tuple(Instrument(id=name, calendar="XNYS") for name in names),
            timeframe=Timeframe.M5,
            higher_timeframes=(Timeframe.H1,),
        )
        ingest = Ingest(
            store,
            read_blocks,
            BusFrames(bus),
            clock,
            open_source=lambda name: open_source(name, sources, clock),
            fetched=fetched,
        )
        runner = Runner(ingest, bus, clock, RunPolicy(unavailable_delay_s=0.05))
        asked = TimeRange(start=START, end=NOW + timedelta(days=30))
        publish(bus.producer(), BackfillRequested(request_id="r", universe=universe, range=asked), "test")
        try:

            def completed() -> bool:
                runner.step(0.01)
                return bool(list(all_messages(bus, BackfillCompleted)))

            until(completed)
            [done] = all_messages(bus, BackfillCompleted)
            assert (done.gaps, done.left_out, done.remarks) == (0, 0, ())
            for name in names:
                found = store.read([name], Timeframe.M5, 0, to_us(NOW))
                bars = venue.market.bars(name[3:], "5m", to_us(START), to_us(NOW), known_us=to_us(NOW)).series()
                local = [from_us(us).astimezone(NEW_YORK) for us in bars["open_us"].tolist()]
                trades = np.array([one.weekday() < 5 and time(9, 30) <= one.time() < time(16) for one in local])
                assert np.array_equal(found.open_us, bars["open_us"][trades])
                assert np.array_equal(found.close[:, 0], bars["close"][trades])
                hours = store.read([name], Timeframe.H1, 0, to_us(NOW))
                first = from_us(int(hours.open_us[0])).astimezone(NEW_YORK)
                assert first.time() == time(9), "an hour that is made holds the same as one that is fetched"
                with source(venue, client_id=40) as ib:
                    own = history(ib, name[3:], Timeframe.H1)
                whole = hours.open_us[:-1] if hours.open_us[-1] > own["open_us"][-1] else hours.open_us
                assert np.array_equal(whole, own["open_us"])
                assert np.array_equal(hours.close[: len(whole), 0], own["close"])
        finally:
            runner.close()
        assert venue.served["error 326"] == 0


def violations(made: Sequence[tuple[float, str, str, bool]]) -> list[str]:
    """The rules that requests broke, by the words of the documentation."""
    found = []
    for row, (at, contract, request, small) in enumerate(made):
        before = made[:row]
        if any(at - other < 15 and (contract, request) == (name, was) for other, name, was, _ in before):
            found.append(f"{at}: identical within 15 seconds")
        if sum(at - other < 2 and contract == name for other, name, _, _ in before) >= 5:
            found.append(f"{at}: six or more within two seconds")
        if small and sum(at - other < 600 for other, _, _, was_small in before if was_small) >= 60:
            found.append(f"{at}: more than 60 within ten minutes")
    return found


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("AB"), st.integers(0, 60), st.booleans(), st.integers(0, 24)), max_size=150))
def test_pacing_keeps_the_rules_and_waits_no_longer_than_they_ask_for(
    asked: list[tuple[str, int, bool, int]],
) -> None:
    clock = ManualClock(NOW)
    pacing, made = Pacing(clock), list[tuple[float, str, str, bool]]()
    for contract, number, small, eighths in asked:
        clock.advance(eighths / 8)  # such sums are exact
        request = f"{number}"
        wait_s, rule = pacing.wait_s(contract, request, small=small)
        if wait_s:
            early = clock.monotonic() + wait_s - 1 / 16
            assert violations([*made, (early, contract, request, small)]), f"it waits for nothing: {rule}"
        clock.advance(wait_s)
        made.append((clock.monotonic(), contract, request, small))
        pacing.made(contract, request, small=small)
    assert violations(made) == []


def test_a_venue_that_counts_is_not_asked_too_often() -> None:
    with tws(pacing=1.0) as venue, source(venue) as careless:
        history(careless, "AAPL", Timeframe.D1)
        with pytest.raises(SourceUnavailable, match=r"ib says that it is asked too often: .* \(162\)"):
            history(careless, "AAPL", Timeframe.D1)
    with tws(pacing=0.01) as venue, source(venue, pace=0.5) as ib:  # a request may be on its way for long
        bars = joined([history(ib, "AAPL", Timeframe.S5, NOW - timedelta(hours=6))])
        assert len(bars["open_us"]) == 12 * (4 * 60 + 30) + 6
        assert venue.served["historical"] == 7
        assert venue.served["pacing violations"] == 0
    with tws() as venue, source(venue, pace=1.0) as ib:
        history(ib, "AAPL", Timeframe.D1)
        with pytest.raises(SourceUnavailable, match="ib is not to be asked the same again in 15 s") as raised:
            history(ib, "AAPL", Timeframe.D1)
        assert 0.0 < (raised.value.retry_after_s or 0.0) <= 15.0
