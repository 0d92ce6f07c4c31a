"""`tradeloop backfill` and `tradeloop instruments`: real processes against a fake venue, killed on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from datetime import time as daytime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from tradeloop.cli.main import main
from tradeloop.cli.source import open_source
from tradeloop.cli.stored import stored_bars
from tradeloop.common.bar_store.sql import SqlBarStore
from tradeloop.common.clock import SystemClock
from tradeloop.common.errors import UserError
from tradeloop.common.market import EVER_US, BarArrays, Instrument, Timeframe, from_us, to_us
from tradeloop.common.strategy import load
from tradeloop.ingest.adapters.files import read_bars
from tradeloop.ingest.adapters.simulated_source import SimulatedSource
from tradeloop.ingest.contracts.fake_venue.clock import VenueClock
from tradeloop.ingest.contracts.fake_venue.faults import Faults
from tradeloop.ingest.contracts.fake_venue.market import Listing, Market
from tradeloop.ingest.contracts.fake_venue.server import FakeVenue
from tradeloop.ingest.contracts.fake_venue.tws import FakeTws

NOW = datetime(2024, 1, 12, tzinfo=UTC)
START, END = datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 1, 6, tzinfo=UTC)


NETWORKS = [("binance", "BTC/USDT", "klines"), ("alpaca", "AAPL", "bars"), ("massive", "AAPL", "bars")]
"""Each source on a network, with an instrument, and what the fake venue calls questions for its bars."""


@pytest.fixture
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("APCA_API_KEY_ID", "APCA_API_SECRET_KEY", "MASSIVE_API_KEY"):
        monkeypatch.setenv(name, "key")


def arguments(venue: FakeVenue, home: Path, source: str, symbol: str) -> list[str]:
    return [
        *("backfill", "--source", source, "--instrument", symbol, "--timeframe", "1m", "--url", venue.url),
        *("--from", START.isoformat(), "--to", END.isoformat(), "--home", str(home)),
    ]


def stored(home: Path, instrument: str) -> BarArrays:
    with closing(SqlBarStore(f"sqlite:///{home / 'bars.db'}", SystemClock())) as store:
        return store.read([instrument], Timeframe.M1, -EVER_US, EVER_US)


def process(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tradeloop.cli.main", *command])


@pytest.mark.usefixtures("_credentials")
@pytest.mark.parametrize(("source", "symbol", "kind"), NETWORKS, ids=[source for source, _, _ in NETWORKS])
def test_a_backfill_that_is_killed_goes_on_and_stores_the_truth(
    source: str, symbol: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storms = {"rate_limited": 0.05, "retry_after_s": 0.0, "server_errors": 0.05, "garbled_answers": 0.05}
    faults = Faults(seed=1, slow_s=0.05, page_limit=500)
    faults.change(**storms)
    with FakeVenue(Market(clock=VenueClock(NOW, speed=0.0)), faults=faults) as venue:
        command = arguments(venue, tmp_path, source, symbol)
        for kill in (1500, 3000):
            running = process(command)
            deadline = time.monotonic() + 60
            while venue.served[f"{kind} rows"] < kill and running.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            running.send_signal(signal.SIGKILL)
            assert running.wait() == -signal.SIGKILL
        assert process(command).wait() == 0
        truth = venue.market.bars(symbol, "1m", to_us(START), to_us(END)).series()
        bars = stored(tmp_path, f"{source}:{symbol}")
        for name in ("open", "high", "low", "close", "volume"):
            assert np.array_equal(getattr(bars, name)[:, 0], truth[name])
        assert np.array_equal(bars.open_us, truth["open_us"])
        # Each kill costs the page that was on its way, and the one that was stored and not yet recorded.
        again = 2 * 2 * 500 + 500 + 500 * venue.served["garbled answers"]
        assert venue.served[f"{kind} rows"] <= len(truth["open_us"]) + again
        assert venue.served["status 429"] + venue.served["status 500"] + venue.served["garbled answers"] > 0
        asked = venue.served[kind]
        assert main(command) == 0
        assert venue.served[kind] == asked, "a second run fetches again"
        told = capsys.readouterr().out
        assert "0 1m bars fetched in 0 pages" in told
        assert "5,760 stored from 2024-01-02 00:00 to 2024-01-05 23:59 UTC, 0 gaps" in told


def test_a_backfill_from_interactive_brokers_is_killed_goes_on_and_fetches_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, end = datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 2, 24, tzinfo=UTC)
    now = datetime(2024, 2, 27, 18, tzinfo=UTC)
    market = Market([Listing("AAPL", 190.0, 2, 0)], clock=VenueClock(now, speed=0.0))
    sources = tmp_path / "sources.yaml"
    with FakeTws(market, faults=Faults(slow_s=0.15)) as tws:
        sources.write_text(f"ib: {{url: '{tws.url}', pace: 0.0}}")
        common = ["--source", "ib", "--sources", str(sources), "--home", str(tmp_path)]
        span = ["--from", start.isoformat(), "--to", end.isoformat()]
        command = ["backfill", *common, "--instrument", "AAPL", "--timeframe", "1m", *span]
        for kill in (3, 7):
            running = process(command)
            deadline = time.monotonic() + 60
            while tws.served["historical"] < kill and running.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            running.send_signal(signal.SIGKILL)
            assert running.wait() == -signal.SIGKILL
        assert process(command).wait() == 0
        bars = market.bars("AAPL", "1m", to_us(start), to_us(end)).series()
        local = [from_us(us).astimezone(ZoneInfo("America/New_York")) for us in bars["open_us"].tolist()]
        hours = np.array([one.weekday() < 5 and daytime(9, 30) <= one.time() < daytime(16) for one in local])
        with closing(SqlBarStore(f"sqlite:///{tmp_path / 'bars.db'}", SystemClock())) as store:
            found = store.read(["ib:AAPL"], Timeframe.M1, -EVER_US, EVER_US)
        assert np.array_equal(found.open_us, bars["open_us"][hours])
        for name in ("open", "high", "low", "close", "volume"):
            assert np.array_equal(getattr(found, name)[:, 0], bars[name][hours])
        # A request has four days, and each kill costs one that was on its way, and one that was not yet recorded.
        assert tws.served["historical"] <= 14 + 2 * 2
        asked = tws.served["historical"]
        assert main(command) == 0
        assert tws.served["historical"] == asked, "a second run fetches again"
        assert "15,210 stored from 2024-01-02 14:30 to 2024-02-23 20:59 UTC, 0 gaps" in capsys.readouterr().out
        assert main(["instruments", "show", "AAPL", *common]) == 0
        assert capsys.readouterr().out.startswith("ib:AAPL  tick 0.01  lot 1  smallest order 0  ")
        assert main(["instruments", "show", "AAPQ", *common]) == 2
        assert capsys.readouterr().err.splitlines()[-1].endswith("ib has no AAPQ: did you mean AAPL?")


def test_flat_files_are_fetched_once_kept_and_files_of_bars_themselves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASSIVE_FILES_KEY", "key")
    monkeypatch.setenv("MASSIVE_FILES_SECRET", "a secret")
    with FakeVenue(Market(clock=VenueClock(NOW, speed=0.0)), credentials={"key": "a secret"}) as venue:
        sources = tmp_path / "sources.yaml"
        sources.write_text(f"massive: {{adapter: massive-files, url: '{venue.url}', folder: '{tmp_path / 'flat'}'}}\n")
        command = ["backfill", "--source", "massive", "--sources", str(sources), "--timeframe", "1m"]
        command += ["--instrument", "AAPL", "--instrument", "MSFT", "--home", str(tmp_path / "home")]
        command += ["--from", "2024-01-02T05:00:00Z", "--to", "2024-01-06T05:00:00Z"]
        assert main(command) == 0
        told = capsys.readouterr().out
        assert "massive:MSFT: 5,760 1m bars fetched in 4 pages, 0 left out" in told
        for symbol in ("AAPL", "MSFT"):
            truth = venue.market.bars(symbol, "1m", to_us(START), to_us(END)).close[300:]
            assert np.array_equal(stored(tmp_path / "home", f"massive:{symbol}").close[: len(truth), 0], truth)
        assert venue.served["files"] == 4 + 1, "each once, and that of the symbols"
        assert main(command) == 0
        assert venue.served["files"] == 4 + 1
    path = tmp_path / "flat/us_stocks_sip/minute_aggs_v1/2024/01/2024-01-03.csv.gz"
    capsys.readouterr()
    assert main(["bars", "inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name.partition(":")[2].partition("-")[0]: one["bars"] for name, one in found["instruments"].items()} == {
        "AAPL": 1440,
        "MSFT": 1440,
    }
    source = open_source([f"AAPL={path}#AAPL"], load("example"))
    assert source.universe.timeframe is Timeframe.M1
    assert "AAPL" in source.universe.ids[0]


def test_what_was_fetched_can_be_used_as_bars(tmp_path: Path) -> None:
    command = ["backfill", "--source", "simulated", "--instrument", "BTC/USDT", "--timeframe", "1h"]
    assert main([*command, "--from", "2024-01-01", "--to", "2024-02-01", "--home", str(tmp_path)]) == 0
    [value], terms = stored_bars(["store:simulated:BTC/USDT@1h"], tmp_path)
    name, _, path = value.partition("=")
    assert name == "simulated:BTC/USDT"
    bars, report = read_bars(path, Instrument(id=name))
    assert (report.rows, report.timeframe, report.gaps) == (744, Timeframe.H1, 0)
    with closing(SqlBarStore(f"sqlite:///{tmp_path / 'bars.db'}", SystemClock())) as store:
        assert np.array_equal(store.read([name], Timeframe.H1, -EVER_US, EVER_US).close, bars.close)
    assert stored_bars(["a.csv"], tmp_path) == (("a.csv",), {})
    [traded] = open_source([value], load("example"), terms=terms).universe.instruments
    [told_terms] = SimulatedSource(SystemClock()).instruments(["BTC/USDT"])
    assert traded == terms[name] == told_terms
    [assumed] = open_source([value], load("example")).universe.instruments
    assert assumed != traded, "of a file nobody told any"
    for wrong, told in (
        ("store:BTC/USDT@1h", "give store:VENUE:SYMBOL@TIMEFRAME"),
        ("store:simulated:BTC/USDT@7m", "there is no timeframe '7m'"),
        ("store:simulated:BTC/USDT@5m", "holds no 5m bars"),
    ):
        with pytest.raises(UserError, match=told):
            stored_bars([wrong], tmp_path)
    with pytest.raises(UserError, match="holds no bars"):
        stored_bars(["store:simulated:BTC/USDT@1h"], tmp_path / "elsewhere")


def fetched(home: Path, symbol: str) -> None:
    command = ["backfill", "--source", "simulated", "--instrument", symbol, "--timeframe", "1h"]
    assert (
        main([*command, "--from", "2024-01-01", "--to", "2024-01-15", "--home", str(home), "--stack", "embedded"]) == 0
    )


def test_stored_bars_are_the_running_stacks_where_its_database_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command that takes bars reads the same store, and says which; `train` in this process that of its home."""
    home, stack = tmp_path / "home", tmp_path / "stack"
    fetched(home, "ETH/USDT")
    fetched(stack, "BTC/USDT")
    url, own = f"sqlite:///{stack / 'bars.db'}", f"sqlite:///{home / 'bars.db'}"
    there, here = "simulated:BTC/USDT@1h", "simulated:ETH/USDT@1h"
    name, at_home = f"store:{there}", ["--home", str(home)]
    commands = [
        ["bars", "members", name, "--top", "1", "--every", "1d", "--window", "5d"],
        ["features", "report", "--bars", name, "--out", str(tmp_path / "report")],
        ["portfolio", "new", "--bars", name],
    ]
    for command in commands:
        assert main([*command, *at_home]) == 2
        assert f"holds no 1h bars of simulated:BTC/USDT: it holds {here}" in capsys.readouterr().err
    monkeypatch.setenv("TRADELOOP_DATABASE_URL", url)
    for command in commands:
        assert main([*command, *at_home]) == 0
        assert f"{there}: 336 bars, out of {url}\n" in capsys.readouterr().err
    for each in ("demo", "backtest", "train"):  # which read the bars first of all, and then find one wrong
        assert main([each, "--bars", name, "--strategy", "none-such", *at_home]) == 2
        assert f"{there}: 336 bars, out of {url}\n" in capsys.readouterr().err
    train = ["train", "--stack", "embedded", "--strategy", "none-such", *at_home]
    assert main([*train, "--bars", f"store:{here}"]) == 2
    assert f"{here}: 336 bars, out of {own}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (["--source", "simulate"], "did you mean source simulated"),
        (["--instrument", "BTC-USDT"], "did you mean BTC/USDT"),
        (["--timeframe", "7m"], "--timeframe 7m: give one of"),
        (["--from", "2200-01-01"], "give an earlier start"),
    ],
)
def test_wrong_input_is_one_line(
    changed: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = {"--source": "simulated", "--instrument": "BTC/USDT", "--timeframe": "1h", "--from": "2024-01-01"}
    command |= {changed[0]: changed[1]}
    line = ["backfill", *(word for pair in command.items() for word in pair), "--home", str(tmp_path)]
    assert main(line) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_terms_of_instruments_are_shown_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show = ["instruments", "show", "BTC/USDT", "ETH/USDT", "--source", "simulated"]
    assert main(show) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("simulated:BTC/USDT  tick 0.01  lot 0.001")
    for _ in range(2):
        assert main([*show, "--json", "--home", str(tmp_path)]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-2])
    assert (first["id"], first["tick_size"], len(first["versions"])) == ("simulated:BTC/USDT", 0.01, 1)
