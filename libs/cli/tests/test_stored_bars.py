"""`tradeloop bars list`, `export` and `check` on stored bars: against polars, and against what was written."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tradeloop.cli.main import main
from tradeloop.common.bar_store.sql import SqlBarStore
from tradeloop.common.clock import SystemClock
from tradeloop.common.contracts.bar_store import bars_at
from tradeloop.common.market import BarArrays, Instrument, Timeframe, Universe
from tradeloop.ingest.adapters.files import read_bars
from tradeloop.ingest.adapters.sql_fetched import SqlFetched

A, B, C = "x:A/USDT", "x:B", "y:C"
MINUTES = (*range(30), *range(40, 70))


def bars(instrument: str, minutes: tuple[int, ...] = MINUTES, price: float = 100.0) -> BarArrays:
    return bars_at({instrument: minutes}, price)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A has a correction and a further column, terms and a gap; B has a universe; nobody knows C."""
    folder = tmp_path / "home"
    (folder / "universes").mkdir(parents=True)
    url = f"sqlite:///{folder / 'bars.db'}"
    plain = bars(A)
    known = np.array([[float(i)] if i % 7 else [np.nan] for i in range(len(MINUTES))])
    with closing(SqlBarStore(url, SystemClock())) as store, closing(SqlFetched(url, SystemClock())) as fetched:
        store.write(Timeframe.M1, replace(plain, extra={"sentiment": known}))
        store.write(Timeframe.M1, bars(A, (3,), 100.5), 1)
        store.write(Timeframe.H1, bars_at({B: range(0, 60 * 24 * 9, 60)}))
        store.write(Timeframe.M1, bars(C, tuple(range(20))))
        fetched.add_terms(Instrument(id=A, calendar="continuous"))
    universe = Universe(name="b", instruments=(Instrument(id=B, calendar="weekdays"),), timeframe=Timeframe.H1)
    (folder / "universes" / "b.json").write_text(universe.model_dump_json())
    return folder


def test_all_that_is_stored_is_listed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bars", "list", "--home", str(home), "--json"]) == 0
    found = {one["instrument"]: one for one in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(found) == [A, B, C]
    assert found[A] == {
        "store": f"sqlite:///{home / 'bars.db'}",
        "instrument": A,
        "timeframe": "1m",
        "bars": 60,
        "corrections": 1,
        "first_open_time": "1970-01-01T00:00:00+00:00",
        "last_open_time": "1970-01-01T01:09:00+00:00",
        "calendar": "continuous",
        "calendar_assumed": False,
        "gaps": 1,
        "bars_missing": 10,
    }
    assert [(one["calendar"], one["calendar_assumed"]) for one in found.values()] == [
        ("continuous", False),
        ("weekdays", False),
        ("continuous", True),
    ]
    assert main(["bars", "list", "--home", str(home)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Bars in sqlite:///{home / 'bars.db'}"
    assert lines[2].split() == [
        *(A, "1m", "60", "1", "1970-01-01", "00:00", "1970-01-01", "01:09", "continuous", "1", "10")
    ]
    assert lines[4].split()[-3:] == ["continuous?", "0", "0"]
    assert main(["bars", "list", "--bars-url", f"sqlite:///{home / 'bars.db'}", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_an_exported_file_has_the_bars_to_the_bit(
    home: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"a.{ending}"
    export = ["bars", "export", "--instrument", A, "--timeframe", "1m", "--home", str(home), "--out"]
    assert main([*export, str(out)]) == 0
    assert "60 1m bars of x:A/USDT from 1970-01-01 00:00 to 1970-01-01 01:09 UTC" in capsys.readouterr().out
    table = pl.read_csv(out, try_parse_dates=True) if ending == "csv" else pl.read_parquet(out)
    assert table.columns == ["time", "open", "high", "low", "close", "volume", "funding_rate", "sentiment"]
    expected, corrected = bars(A), bars(A, (3,), 100.5)
    for name in ("open", "high", "low", "close", "volume", "funding_rate"):
        column = getattr(expected, name)[:, 0].copy()
        column[3] = getattr(corrected, name)[0, 0]
        assert table[name].to_list() == column.tolist(), name
    known = [float(i) if i % 7 and i != 3 else None for i in range(60)]  # the correction has no sentiment
    assert table["sentiment"].to_list() == known
    assert table["time"].dt.epoch("us").to_list() == expected.open_us.tolist()
    read, report = read_bars(str(out), Instrument(id=A))
    assert (report.timeframe, report.zone) == (Timeframe.M1, "UTC")
    assert read.open_us.tolist() == expected.open_us.tolist()
    assert read.close[:, 0].tolist() == table["close"].to_list()

    assert main([*export, str(out)]) == 2, "a file was written over"
    part = tmp_path / f"part.{ending}"
    assert main([*export, str(part), "--from", "1970-01-01T00:10", "--to", "1970-01-01T00:20"]) == 0
    assert "10 1m bars of x:A/USDT from 1970-01-01 00:10 to 1970-01-01 00:19 UTC" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["home", out.name, part.name])


def test_stored_bars_are_checked_by_the_calendar_of_each(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = ["bars", "check", "--home", str(home)]
    assert main([*check, "--instrument", A, "--instrument", C]) == 1
    assert [line for line in capsys.readouterr().out.splitlines() if "missing" in line or "bars of" in line] == [
        "x:A/USDT@1m, bar 31, 1970-01-01 00:40:00: 10 bars missing before it",
        "x:A/USDT@1m: 60 bars of 1m, calendar continuous: 1 gap",
        "y:C@1m: 20 bars of 1m, calendar continuous: no faults",
    ]
    assert main([*check, "--instrument", C]) == 0
    assert "y:C@1m: nobody recorded its calendar, so continuous is assumed" in capsys.readouterr().out
    assert main([*check, "--instrument", B, "--calendar", "weekdays"]) == 0
    assert main([*check, "--instrument", A, "--from", "1970-01-01T00:40"]) == 0


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["list", "--home", "{tmp}/none"], "{tmp}/none holds no bars: fetch them with"),
        (["list", "--bars-url", "sqlite:///{tmp}/none.db"], "there is no file {tmp}/none.db"),
        (["list", "--home", "{home}", "--calendar", "NYSE"], "did you mean XNYS?"),
        (["check"], "name files, or --instrument"),
        (["check", "{tmp}/a.csv", "--from", "2024-01-01"], "leave them out"),
        (["check", "--instrument", "x:D", "--home", "{home}"], "holds no bars of it, it holds x:A/USDT, x:B, y:C"),
        (["check", "--instrument", A, "--timeframe", "5m", "--home", "{home}"], "it holds x:A/USDT@1m, x:B@1h, y:C@1m"),
        (["export", "--out", "{tmp}/a.txt"], "ends in .csv or .parquet"),
        (["export", "--out", "{tmp}/none/a.csv"], "there is no folder"),
        (["export", "--out", "{tmp}/a.csv", "--timeframe", "7m"], "--timeframe 7m: give one of"),
        (["export", "--out", "{tmp}/a.csv", "--from", "2024-01-01"], "no 1m bars of x:A/USDT in this range"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    command: list[str], said: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(tmp=tmp_path, home=home) for word in command]
    if words[0] == "export":
        words = ["export", "--instrument", A, "--timeframe", "1m", "--home", str(home), *words[1:]]
    assert main(["bars", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said.format(tmp=tmp_path, home=home) in line
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_database_with_options_is_no_file_and_its_password_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bars", "list", "--bars-url", "postgresql+psycopg://me:hunter2@127.0.0.1:1/x?sslmode=disable"]) == 1
    said = capsys.readouterr().err
    assert "postgresql+psycopg://me:***@127.0.0.1:1/x: connection failed" in said
    assert "hunter2" not in said
