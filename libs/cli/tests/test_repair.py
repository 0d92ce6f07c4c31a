"""`tradeloop bars repair`: homes with faults, mended from a fake venue through ccxt, and files."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from tradeloop.cli.main import main
from tradeloop.common.bar_store.sql import SqlBarStore
from tradeloop.common.clock import SystemClock
from tradeloop.common.market import (
    BAR_PRICES,
    EVER_US,
    BarArrays,
    Instrument,
    Series,
    Timeframe,
    Universe,
    align,
    resample,
    to_us,
)
from tradeloop.ingest.contracts.fake_venue.clock import VenueClock
from tradeloop.ingest.contracts.fake_venue.faults import Faults
from tradeloop.ingest.contracts.fake_venue.market import Market
from tradeloop.ingest.contracts.fake_venue.server import FakeVenue

NAME, M1 = "binance:BTC/USDT", Timeframe.M1
START = datetime(2024, 1, 2, tzinfo=UTC)
START_US, DAY = to_us(START), 24 * 60

Values = Mapping[str, Mapping[int, float]]
"""Numbers of bars, by column and minute."""


@pytest.fixture
def venue() -> Iterator[FakeVenue]:
    with FakeVenue(Market(clock=VenueClock(START + timedelta(days=3), speed=0.0)), faults=Faults()) as venue:
        yield venue


def truth(venue: FakeVenue) -> Series:
    return venue.market.bars("BTC/USDT", "1m", START_US, START_US + DAY * M1.us).series()


def home_of(folder: Path, bars: Series) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with closing(opened(folder)) as store:
        store.write(M1, align((NAME,), M1, [bars]))
    return folder


def opened(home: Path) -> SqlBarStore:
    return SqlBarStore(f"sqlite:///{home / 'bars.db'}", SystemClock())


def stored(home: Path, timeframe: Timeframe = M1) -> BarArrays:
    with closing(opened(home)) as store:
        return store.read([NAME], timeframe, -EVER_US, EVER_US)


def rows(home: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(home / "bars.db")) as database:
        return database.execute("SELECT * FROM bars ORDER BY instrument, timeframe, open_us, revision").fetchall()


def minute(n: int) -> str:
    return f"{START + timedelta(minutes=n):%Y-%m-%d %H:%M:%S}"


def spoilt(bars: Series, without: Sequence[int] = (), values: Values = MappingProxyType({})) -> Series:
    """The bars without some, and with other numbers at some minutes."""
    changed = {name: column.copy() for name, column in bars.items()}
    for name, at in values.items():
        for row, value in at.items():
            changed[name][row] = value
    kept = np.setdiff1d(np.arange(len(bars["open_us"])), without)
    return {name: column[kept] for name, column in changed.items()}


def outlier(bars: Series, row: int) -> Values:
    return {name: {row: float(bars[name][row]) * 2.7} for name in BAR_PRICES}


def of(venue: FakeVenue, home: Path, *more: str) -> list[str]:
    asked = ("bars", "repair", "--instrument", NAME, "--source", "binance", "--url", venue.url, "--home", str(home))
    return [*asked, *more]


def assert_true(home: Path, venue: FakeVenue, without: Sequence[int] = ()) -> None:
    expected, found = spoilt(truth(venue), without), stored(home)
    assert np.array_equal(found.open_us, expected["open_us"])
    for name in (*BAR_PRICES, "volume"):
        assert np.array_equal(getattr(found, name)[:, 0], expected[name]), name


def test_all_that_check_names_is_fetched_and_stored_as_the_venue_has_it(
    venue: FakeVenue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bars = truth(venue)
    stale = {name: dict.fromkeys(range(1301, 1315), float(bars[name][1300])) for name in (*BAR_PRICES, "volume")}
    odd = outlier(bars, 400)
    values = {name: {**odd.get(name, {}), **stale[name]} for name in stale}
    values["open"] |= {50: 0.0}
    values["high"] |= {900: float(bars["low"][900]) / 2}
    home = home_of(tmp_path, spoilt(bars, [*range(100, 161), 700, *range(1000, 1003)], values))
    assert main(["bars", "check", "--instrument", NAME, "--home", str(home)]) == 1
    capsys.readouterr()

    assert main(of(venue, home)) == 0
    told = capsys.readouterr().out.splitlines()
    said = f"{NAME}@1m"
    for line in (
        f"{said}, {minute(100)} to {minute(160)}: 61 bars added that were missing",
        f"{said}, {minute(700)}: 1 bars added that were missing",
        f"{said}: 65 bars added, 17 bars changed, 0 bars dropped; no faults left",
    ):
        assert line in told
    assert f"{said}, {minute(50)}: changed: open 0 becomes {bars['open'][50]:.10g}" in told
    assert sum(": changed: " in line for line in told) == 17
    assert_true(home, venue)
    assert main(["bars", "check", "--instrument", NAME, "--home", str(home)]) == 0
    before, asked = rows(home), venue.served["klines"]
    capsys.readouterr()
    assert main(of(venue, home)) == 0
    assert capsys.readouterr().out == f"{said}: 0 bars added, 0 bars changed, 0 bars dropped; no faults left\n"
    assert (rows(home), venue.served["klines"]) == (before, asked)


def test_a_changed_bar_is_a_revision_and_what_was_stored_stays(venue: FakeVenue, tmp_path: Path) -> None:
    bars = truth(venue)
    home = home_of(tmp_path, spoilt(bars, (), outlier(bars, 400)))
    first = rows(home)
    assert main(of(venue, home)) == 0
    assert set(first) < set(rows(home))
    with closing(opened(home)) as store:
        census = store.census([NAME], M1, START_US, EVER_US)
    assert (census.frames, census.rows, census.revisions) == (DAY, DAY + 1, 1)


def test_nothing_is_done_in_a_dry_run(venue: FakeVenue, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bars = truth(venue)
    home = home_of(tmp_path, spoilt(bars, [5, 6], outlier(bars, 400)))
    before = rows(home)
    assert main(of(venue, home, "--dry-run", "--drop", "outlier")) == 1
    told = capsys.readouterr().out
    assert f"{minute(5)} to {minute(6)}: missing: would be asked of binance" in told
    assert f"{minute(400)}: odd: would be asked of binance" in told
    assert f"{minute(400)}: would be dropped unless mended: open" in told
    assert (rows(home), venue.served["klines"]) == (before, 0)


def test_bars_of_another_unit_are_not_joined(
    venue: FakeVenue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bars = truth(venue)
    scaled: Series = {
        name: np.float64(1.05) * column if name in BAR_PRICES else column for name, column in bars.items()
    }
    home = home_of(tmp_path, spoilt(scaled, range(100, 120)))
    before = rows(home)
    assert main(of(venue, home)) == 1
    told = capsys.readouterr().out
    assert f"{minute(100)} to {minute(119)}: left as it is: prices beside it differ by 4.76% from the source's" in told
    assert rows(home) == before


def test_what_the_venue_has_as_it_is_stored_can_be_dropped_and_stays_away(
    venue: FakeVenue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bar of the venue itself that looks wrong: it is kept unless its kind is named, and is made up by nobody."""
    bars = truth(venue)
    odd = outlier(bars, 400)
    home = home_of(tmp_path, spoilt(bars, (), odd))
    assert main(["bars", "repair", "--instrument", NAME, "--home", str(home), "--drop", "outlier"]) == 1
    assert f"{minute(400)}: dropped: open" in capsys.readouterr().out
    assert_true(home, venue, [400])
    with closing(opened(home)) as store:
        aside = store.aside(NAME, M1)
    assert aside["close"].tolist() == [bars["close"][400] * 2.7]
    # The venue has another bar than the one that was dropped: that is new.
    assert main(of(venue, home)) == 0
    assert_true(home, venue)
    # One that it has as it was dropped does not come back.
    with closing(opened(home)) as store:
        store.set_aside(NAME, {M1: {START_US + 400 * M1.us: "by hand"}})
    capsys.readouterr()
    for _ in range(2):
        assert main(of(venue, home)) == 1
        assert "the source still has it as it was dropped" in capsys.readouterr().out
        assert_true(home, venue, [400])


def test_longer_bars_of_a_home_follow(venue: FakeVenue, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bars = truth(venue)
    wrong = {name: {row: float(bars[name][row]) * 2.7 for row in (400, 730)} for name in BAR_PRICES}
    home = home_of(tmp_path, spoilt(bars, [*range(720, 730), *range(731, 780)], wrong))
    hourly = Universe(
        name="u", instruments=(Instrument(id=NAME),), timeframe=M1, higher_timeframes=(Timeframe.H1, Timeframe.M15)
    )
    (home / "universes").mkdir()
    (home / "universes" / "u.json").write_text(hourly.model_dump_json())
    with closing(opened(home)) as store:
        for longer in hourly.higher_timeframes:
            store.write(longer, resample(stored(home), M1, longer))
    hours = len(stored(home, Timeframe.H1))
    assert main(["bars", "repair", "--instrument", NAME, "--timeframe", "1m", "--home", str(home), "--drop", "outlier"])
    assert f"{NAME}@1h: 1 bars changed and 1 dropped with them" in capsys.readouterr().out
    assert len(stored(home, Timeframe.H1)) == hours - 1
    assert main(of(venue, home, "--timeframe", "1m")) == 0
    for longer in hourly.higher_timeframes:
        expected, found = resample(align((NAME,), M1, [bars]), M1, longer), stored(home, longer)
        assert np.array_equal(found.open_us, expected.open_us)
        for name in (*BAR_PRICES, "volume"):
            assert np.array_equal(getattr(found, name), getattr(expected, name)), (longer, name)


def test_a_repair_that_is_killed_goes_on(venue: FakeVenue, tmp_path: Path) -> None:
    bars = truth(venue)
    home = home_of(tmp_path, spoilt(bars, range(10, DAY, 90), outlier(bars, 75)))
    venue.faults.slow_s = 0.1
    for kills in (1, 2):
        running = subprocess.Popen([sys.executable, "-m", "tradeloop.cli.main", *of(venue, home)])
        asked, deadline = venue.served["klines"], time.monotonic() + 60
        while venue.served["klines"] < asked + kills and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
    assert DAY - 16 < len(stored(home)) < DAY
    venue.faults.slow_s = 0.0
    assert main(of(venue, home)) == 0
    assert_true(home, venue)


def written(folder: Path, *lines: str) -> str:
    file = folder / "a.csv"
    file.write_text("\n".join(["timestamp,open,high,low,close,volume", *lines]))
    return str(file)


def test_a_file_is_mended_into_another_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opens = [100.0] * 40
    opens[3], opens[7] = 0.0, 102.0
    lines = [
        f"{START + timedelta(hours=n):%Y-%m-%dT%H:%M:%SZ},{price},101,99,100.{n},5" for n, price in enumerate(opens)
    ]
    file, out = written(tmp_path, *lines[:20], lines[19], *lines[20:]), tmp_path / "b.csv"
    before = Path(file).read_bytes()
    command = ["bars", "repair", file, "--drop", "price", "--drop", "time", "--out", str(out)]
    assert main([*command, "--dry-run"]) == 1
    assert not out.exists()
    assert "bar 4, 2024-01-02 03:00:00: would be dropped: open is 0.0" in capsys.readouterr().out
    assert main(command) == 1  # a range, and the hole that was left
    told = capsys.readouterr().out
    assert "bar 4, 2024-01-02 03:00:00: dropped: open is 0.0" in told
    assert "bar 21, 2024-01-02 19:00:00: dropped: comes twice" in told
    assert "39 bars of 1h, with the columns that a bar has; 2 faults left" in told
    assert Path(file).read_bytes() == before
    kept = [line.split(",")[4] for line in lines[:3] + lines[4:]]
    assert [float(line.split(",")[4]) for line in out.read_text().splitlines()[1:]] == [float(one) for one in kept]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["--source", "binance"], "say what to mend: a file, or --instrument"),
        (["--instrument", NAME], "say how to mend: --source VENUE"),
        (["--instrument", NAME, "--source", "kraken"], "its bars are not from kraken"),
        (["--instrument", NAME, "--drop", "gap"], "--drop gap: no bar is there to drop: give price"),
        (["--instrument", NAME, "--drop", "split"], "--drop split: --actions adjusts for it"),
        (["--instrument", NAME, "--drop", "price", "--home", "nowhere"], "nowhere holds no bars"),
        (["--instrument", NAME, "--drop", "price", "--out", "b.csv"], "--out is for a file"),
        (["a.csv", "--drop", "price"], "say where the mended one goes: --out"),
        (["a.csv", "--source", "binance"], "by --drop alone"),
        (["--universe", "u", "--drop", "price"], "and drops no bars"),
        (["--universe", "u"], "say where the running stack has its bars: --bars-url"),
        (["--universe", "u", "--bars-url", "sqlite:///bars.db"], "say where the portfolios are: --portfolios"),
    ],
)
def test_wrong_input_is_one_line(command: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bars", "repair", *command]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_nothing_is_dropped_where_nothing_would_be_left(
    tmp_path: Path, venue: FakeVenue, capsys: pytest.CaptureFixture[str]
) -> None:
    bars = spoilt(truth(venue), range(10, DAY), {"open": dict.fromkeys(range(10), 0.0)})
    home = home_of(tmp_path, bars)
    before = rows(home)
    assert main(["bars", "repair", "--instrument", NAME, "--home", str(home), "--drop", "price"]) == 2
    assert "every bar of the range would be dropped" in capsys.readouterr().err
    assert rows(home) == before
