"""Every fault of the fake venue really happens, and is counted."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import ccxt
import pytest
from alpaca.common.exceptions import APIError
from alpaca.data.historical import StockHistoricalDataClient
from alpaca.data.requests import StockBarsRequest
from alpaca.data.timeframe import TimeFrame
from massive import RESTClient
from massive.exceptions import BadResponse

from tradeloop.common.market import to_us
from tradeloop.ingest.contracts.fake_venue import FakeVenue, Faults, Market, VenueClock
from tradeloop.ingest.contracts.fake_venue.market import US

NOW = datetime(2024, 3, 1, 12, 0, 30, tzinfo=UTC)
NAMES = ["btcusdt@kline_1m"]


@pytest.fixture
def venue() -> Iterator[FakeVenue]:
    with FakeVenue(Market(clock=VenueClock(NOW, speed=0.0)), faults=Faults(seed=1)) as venue:
        yield venue


def asked(venue: FakeVenue, path: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(venue.url + path, headers=headers or {})) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def binance(venue: FakeVenue) -> Any:
    exchange = ccxt.binance({"enableRateLimit": False, "options": {"maxRetriesOnFailure": 0}})
    exchange.urls["api"] |= {
        name: "/".join([venue.url, *address.split("/")[3:]]) for name, address in exchange.urls["api"].items()
    }
    return exchange


def test_storms_ask_to_be_left_alone(venue: FakeVenue) -> None:
    client = binance(venue)
    client.load_markets()
    venue.faults.retry_after_s = 7.0
    venue.faults.storm(2)
    with pytest.raises(ccxt.DDoSProtection, match="429"):
        client.fetch_ohlcv("BTC/USDT")
    status, headers, body = asked(venue, "/api/v3/time")
    assert (status, headers["Retry-After"], json.loads(body)["code"]) == (429, "7", -1003)
    assert len(client.fetch_ohlcv("BTC/USDT", limit=5)) == 5
    venue.faults.storm(1, 418)
    with pytest.raises(ccxt.DDoSProtection, match="418"):
        client.fetch_time()
    assert (venue.served["status 429"], venue.served["status 418"]) == (2, 1)


def test_a_rate_limit_lets_so_many_through(venue: FakeVenue) -> None:
    venue.faults.requests_a_minute = 5
    answers = [asked(venue, "/api/v3/time") for _ in range(8)]
    assert [status for status, _, _ in answers] == [200] * 5 + [429] * 3
    assert 1 <= int(answers[-1][1]["Retry-After"]) <= 60


def test_chance_refuses_its_share(venue: FakeVenue) -> None:
    venue.faults.rate_limited, venue.faults.server_errors = 0.2, 0.3
    found = [asked(venue, "/api/v3/time")[0] for _ in range(200)]
    assert 20 < found.count(429) < 60
    assert 25 < found.count(500) < 75
    assert found.count(200) > 80


def test_maintenance_closes_requests_and_new_sockets(venue: FakeVenue) -> None:
    venue.faults.maintenance = True
    with pytest.raises(ccxt.ExchangeNotAvailable):
        binance(venue).fetch_time()
    assert asked(venue, "/v2/clock")[0] == 503

    async def knock() -> int:
        async with aiohttp.ClientSession() as session:
            try:
                await session.ws_connect(f"{venue.ws_url}/ws/btcusdt@trade")
            except aiohttp.WSServerHandshakeError as error:
                return error.status
        return 101

    assert asyncio.run(knock()) == 503


def test_answers_come_late_and_cut_off(venue: FakeVenue) -> None:
    venue.faults.slow_s = 0.3
    begun = time.monotonic()
    asked(venue, "/api/v3/time")
    assert time.monotonic() - begun >= 0.3
    venue.faults.change(slow_s=0.0, garbled_answers=1.0)
    with pytest.raises(json.JSONDecodeError):
        json.loads(asked(venue, "/api/v3/exchangeInfo")[2])
    assert venue.served["garbled answers"] == 1


def test_wrong_credentials_and_permissions() -> None:
    with FakeVenue(Market(clock=VenueClock(NOW, speed=0.0)), credentials={"key": "secret"}) as venue:
        request = StockBarsRequest(symbol_or_symbols="AAPL", timeframe=TimeFrame.Minute, start=NOW.replace(hour=11))
        with pytest.raises(APIError, match="unauthorized"):
            StockHistoricalDataClient("key", "wrong", url_override=venue.url).get_stock_bars(request)
        with pytest.raises(BadResponse, match="Unknown API Key"):
            list(RESTClient("wrong", base=venue.url, retries=0).list_tickers())
        assert list(RESTClient("key", base=venue.url, retries=0).list_tickers())
        assert StockHistoricalDataClient("key", "secret", url_override=venue.url).get_stock_bars(request)
        venue.faults.denied = True
        with pytest.raises(APIError, match="does not permit"):
            StockHistoricalDataClient("key", "secret", url_override=venue.url).get_stock_bars(request)
        with pytest.raises(BadResponse, match="not entitled"):
            list(RESTClient("key", base=venue.url, retries=0).list_tickers())
        with pytest.raises(ccxt.AuthenticationError):
            binance(venue).fetch_time()
        assert (venue.served["status 401"], venue.served["status 403"]) == (2, 3)


async def said(venue: FakeVenue, path: str, messages: list[dict[str, Any]], *, limit: int | None = None) -> list[Any]:
    """The answers of a socket of JSON to messages."""
    async with aiohttp.ClientSession() as session, session.ws_connect(venue.ws_url + path) as socket:
        found = [json.loads((await socket.receive(5.0)).data)]
        for message in messages:
            await socket.send_json(message)
            answer = await socket.receive(5.0)
            found.append(json.loads(answer.data) if answer.type is aiohttp.WSMsgType.TEXT else answer.type)
        return found


def test_sockets_refuse_in_the_words_of_their_protocol() -> None:
    auth = {"action": "auth", "key": "key", "secret": "secret"}
    wrong = {**auth, "secret": "wrong"}
    many = {"action": "subscribe", "bars": ["AAPL", "MSFT"]}
    with FakeVenue(Market(clock=VenueClock(NOW, speed=0.0)), credentials={"key": "secret"}) as venue:
        venue.faults.symbol_limit = 1
        answers = asyncio.run(said(venue, "/v2/iex", [many, wrong, {"action": "dance"}, auth, auth, many]))
        assert [one[0].get("code") for one in answers] == [None, 401, 402, 401, None, 403, 405]
        news = {"action": "subscribe", "news": ["AAPL"]}
        assert asyncio.run(said(venue, "/v2/iex", [auth, news]))[-1][0]["code"] == 410
        venue.faults.connection_limit = 0
        assert asyncio.run(said(venue, "/v2/iex", [auth]))[-1][0]["code"] == 406
        crowd = asyncio.run(said(venue, "/stocks", [{"action": "auth", "params": "key"}]))
        assert crowd[-1][0]["status"] == "max_connections"
        venue.faults.change(connection_limit=None, denied=True)
        assert asyncio.run(said(venue, "/v2/iex", [auth]))[-1][0]["code"] == 409
        assert (
            asyncio.run(said(venue, "/stocks", [{"action": "auth", "params": "key"}]))[-1][0]["status"] == "auth_failed"
        )


def test_the_clock_that_is_told_is_ahead_and_the_bars_are_not(venue: FakeVenue) -> None:
    venue.faults.clock_ahead_s = 600.0
    assert binance(venue).fetch_time() == to_us(NOW) // 1000 + 600_000
    assert json.loads(asked(venue, "/api/v3/klines?symbol=BTCUSDT&interval=1m&limit=1")[2])[0][0] == (
        to_us(NOW) // 1000 - 30_000
    )
    assert b"12:10:30" in asked(venue, "/v2/clock")[2]
    frames = heard(venue, NAMES, 5)
    assert {frame["E"] - 600_000 for frame in frames} == {to_us(NOW) // 1000 + 1000 * n for n in range(1, 6)}


def test_pages_are_short_and_end_with_the_open_bar(venue: FakeVenue) -> None:
    path = f"/api/v3/klines?symbol=BTCUSDT&interval=1m&startTime={to_us(NOW) // 1000 - 30_000 - 300_000}"
    rows = json.loads(asked(venue, path)[2])
    assert len(rows) == 6
    closed = venue.market.bars("BTC/USDT", "1m", rows[-1][0] * 1000, rows[-1][0] * 1000 + 1)
    assert float(rows[-1][5]) < closed.volume[0]
    venue.faults.open_bar = False
    assert json.loads(asked(venue, path)[2]) == rows[:-1]
    venue.faults.page_limit = 2
    assert json.loads(asked(venue, path)[2]) == rows[:2]


def test_corrections_change_history(venue: FakeVenue) -> None:
    with FakeVenue(Market(clock=VenueClock(NOW, speed=0.0), corrections=1.0, correction_delay_s=60.0)) as venue:
        path = f"/fapi/v1/klines?symbol=BTCUSDT&interval=1m&startTime={to_us(NOW) // 1000 - 90_000}&limit=1"
        early = json.loads(asked(venue, path)[2])
        venue.advance(60.0)
        late = json.loads(asked(venue, path)[2])
        assert early[0][0] == late[0][0]
        assert float(early[0][5]) < float(late[0][5])
        truth = venue.market.bars("BTC/USDT", "1m", late[0][0] * 1000, late[0][0] * 1000 + 1)
        assert float(late[0][5]) == truth.volume[0]


async def _hear(
    venue: FakeVenue, names: list[str], work: Callable[[aiohttp.ClientWebSocketResponse], Awaitable[None]]
) -> list[aiohttp.WSMessage]:
    """All messages of a socket, from the subscription on until nothing comes any more, while `work` is done."""
    found: list[aiohttp.WSMessage] = []
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{venue.ws_url}/stream/ws/{'/'.join(names)}", autoping=False) as socket,
    ):
        while venue.connections == 0:
            await asyncio.sleep(0.01)
        await work(socket)
        while True:
            try:
                message = await socket.receive(0.3)
            except TimeoutError:
                return found
            found.append(message)
            if message.type in {aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.ERROR}:
                return found


def messages(venue: FakeVenue, names: list[str], work: Callable[[], None]) -> list[aiohttp.WSMessage]:
    async def run(socket: aiohttp.ClientWebSocketResponse) -> None:
        await asyncio.to_thread(work)

    return asyncio.run(_hear(venue, names, run))


def heard(venue: FakeVenue, names: list[str], seconds: int) -> list[dict[str, Any]]:
    """The frames of a number of seconds, as JSON."""

    def work() -> None:
        for _ in range(seconds):
            venue.advance(1.0)

    return [json.loads(one.data) for one in messages(venue, names, work) if one.type is aiohttp.WSMsgType.TEXT]


def test_a_sound_socket_says_all_in_order(venue: FakeVenue) -> None:
    frames = heard(venue, NAMES, 60)
    assert [frame["E"] for frame in frames] == [to_us(NOW) // 1000 + 1000 * second for second in range(1, 61)]
    assert [frame["k"]["x"] for frame in frames] == [second == 30 for second in range(1, 61)]
    closed = frames[29]["k"]
    truth = venue.market.bars("BTC/USDT", "1m", closed["t"] * 1000, closed["t"] * 1000 + 1)
    assert [float(closed[name]) for name in "ohlcv"] == [
        truth.open[0], truth.high[0], truth.low[0], truth.close[0], truth.volume[0],
    ]  # fmt: skip


def test_connections_break_in_the_middle_of_a_frame(venue: FakeVenue) -> None:
    found = messages(venue, NAMES, lambda: venue.faults.disconnect_now())
    assert [one.type for one in found] == [aiohttp.WSMsgType.CLOSED]
    assert venue.served["frames cut in their middle"] == 1
    venue.faults.disconnects = 0.1
    assert len(heard(venue, NAMES, 100)) < 100
    assert venue.served["frames cut in their middle"] == 2
    assert venue.served["disconnects"] == 2


def test_frames_are_malformed_repeated_and_reordered(venue: FakeVenue) -> None:
    venue.faults.malformed = 1.0
    for one in messages(venue, NAMES, lambda: venue.advance(2.0)):
        with pytest.raises(json.JSONDecodeError):
            json.loads(one.data)
    assert venue.served["malformed frames"] == 2
    venue.faults.change(malformed=0.0, repeated=1.0)
    times = [frame["E"] for frame in heard(venue, NAMES, 3)]
    assert len(times) == 6
    assert times[::2] == times[1::2] == sorted(set(times))
    venue.faults.change(repeated=0.0, reordered=1.0)
    times = [frame["E"] for frame in heard(venue, NAMES, 6)]
    assert times != sorted(times)
    assert sorted(times) == list(range(min(times), max(times) + 1, 1000))
    assert venue.served["reordered frames"] == 3


def test_most_frames_are_missing_and_heartbeats_go_on(venue: FakeVenue) -> None:
    venue.faults.missing = 0.8

    async def work(socket: aiohttp.ClientWebSocketResponse) -> None:
        for _ in range(4):
            await asyncio.to_thread(venue.advance, 50.0)
            await socket.ping(b"alive")

    found = asyncio.run(_hear(venue, NAMES, work))
    frames = [one for one in found if one.type is aiohttp.WSMsgType.TEXT]
    assert sum(one.type is aiohttp.WSMsgType.PONG for one in found) == 4
    assert 20 < len(frames) < 60
    assert venue.served["lost frames"] == 200 - len(frames)


def test_a_socket_stalls_inside_a_bar_and_resumes(venue: FakeVenue) -> None:
    """The frames that were due in the stall never come: the close of the bar is not told, and nothing says so."""

    def work() -> None:
        venue.advance(20.0)
        venue.faults.stall()
        venue.advance(20.0)
        venue.faults.resume()
        venue.advance(10.0)

    found = messages(venue, NAMES, work)
    frames = [json.loads(one.data) for one in found if one.type is aiohttp.WSMsgType.TEXT]
    seconds = [(frame["E"] - to_us(NOW) // 1000) // 1000 for frame in frames]
    assert seconds == [*range(1, 21), *range(41, 51)]
    assert not any(frame["k"]["x"] for frame in frames)
    assert venue.served["lost kline"] == 20


@pytest.mark.parametrize("deaf", [False, True])
def test_a_stalled_socket_answers_pings_unless_it_is_deaf(venue: FakeVenue, deaf: bool) -> None:
    venue.faults.stall(deaf=deaf)

    async def work(socket: aiohttp.ClientWebSocketResponse) -> None:
        await socket.ping(b"alive")

    found = asyncio.run(_hear(venue, NAMES, work))
    assert [one.type for one in found] == ([] if deaf else [aiohttp.WSMsgType.PONG])


def test_a_stall_ends_by_itself(venue: FakeVenue) -> None:
    venue.faults.stall(0.05)
    assert venue.faults.stalled
    deadline = time.monotonic() + 5.0
    while venue.faults.stalled:
        assert time.monotonic() < deadline
    assert len(heard(venue, NAMES, 1)) == 1


def test_venues_lie_about_what_is_closed(venue: FakeVenue) -> None:
    venue.faults.lying_closed = 0.5
    closed = [frame["k"] for frame in heard(venue, NAMES, 29) if frame["k"]["x"]]
    assert 5 < len(closed) < 25
    truth = venue.market.bars("BTC/USDT", "1m", closed[0]["t"] * 1000, closed[0]["t"] * 1000 + 1)
    assert {float(one["v"]) for one in closed} != {truth.volume[0]}
    assert venue.served["open bars that were called closed"] == len(closed)


def test_faults_are_checked_before_they_are_set() -> None:
    faults = Faults()
    for wrong in ({"missing": -0.1}, {"missing": True}, {"maintenance": 1}, {"page_limit": 1.5}, {"mising": 0.5}):
        with pytest.raises(ValueError, match="fault"):
            faults.change(repeated=0.5, **wrong)
        assert faults.repeated == 0.0
    faults.change(page_limit=3, slow_s=1)
    assert (faults.page_limit, faults.slow_s) == (3, 1)
    faults.change(page_limit=None)
    assert faults.page_limit is None


def told(url: str, wanted: dict[str, Any] | None = None) -> dict[str, Any]:
    """The answer of `/_control`."""
    data = None if wanted is None else json.dumps(wanted).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/_control", data=data)) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


def test_a_process_that_is_killed_and_started_again_says_the_same() -> None:
    options = ["--seed", "5", "--origin", "2024-03-01T12:00:30", "--speed", "0", "--fault", "page_limit=3"]
    answers = []
    port = "0"
    for _ in range(2):
        command = [sys.executable, "-m", "tradeloop.ingest.contracts.fake_venue", "--port", port, *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            port = url.rpartition(":")[2]
            with urllib.request.urlopen(f"{url}/api/v3/klines?symbol=BTCUSDT&interval=1m&limit=10") as answer:
                answers.append(json.loads(answer.read()))
            before = told(url)
            assert (before["served"]["klines rows"], before["faults"]["page_limit"]) == (3, 3)
            after = told(url, {"set": {"page_limit": None, "missing": 0.8}, "advance": 60, "storm": 1, "status": 418})
            assert after["now_us"] == before["now_us"] + 60 * US
            assert (after["faults"]["page_limit"], after["faults"]["missing"]) == (None, 0.8)
            with pytest.raises(urllib.error.HTTPError, match="418") as refused:
                urllib.request.urlopen(f"{url}/api/v3/time")
            refused.value.close()
            with pytest.raises(urllib.error.HTTPError, match="400") as refused:
                told(url, {"set": {"mising": 0.8}})
            with refused.value as error:
                assert "no fault mising" in json.loads(error.read())["error"]
            process.kill()
    assert answers[0] == answers[1]
    assert len(answers[0]) == 3


def test_a_process_refuses_what_it_does_not_know() -> None:
    command = [sys.executable, "-m", "tradeloop.ingest.contracts.fake_venue", "--fault", "mising=0.8"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no fault mising" in done.stderr.splitlines()[-1]
