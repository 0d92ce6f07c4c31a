"""`tradeloop bars inspect`, and the way of what it was told to ingest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tradeloop.cli.main import main
from tradeloop.cli.naming import named_files

START = "2024-01-{:02}"


def write(path: Path, first: int = 1, last: int = 28, *, close: float = 101.5) -> Path:
    """Days with a decimal comma."""
    rows = [
        f"{START.format(day)};100,5;103,25;99,5;{close:.2f};1000".replace(".", ",") for day in range(first, last + 1)
    ]
    path.write_text("\n".join(["Datum;Open;High;Low;Close;Volume", *rows, ""]))
    return path


def test_json_says_what_was_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bars", "inspect", str(write(tmp_path / "DAX.csv")), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts.keys() == {"instruments", "columns", "warnings"}
    (id_, one), *others = facts["instruments"].items()
    assert (id_.startswith("file:DAX-"), others) == (True, [])
    assert one == {
        "timeframe": "1d", "bars": 28, "first_open_time": "2024-01-01T00:00:00+00:00",
        "last_open_time": "2024-01-28T00:00:00+00:00", "first_open": 100.5, "last_close": 101.5, "volume": 28000.0,
        "zone": "none, read as UTC", "gaps": 0,
    }  # fmt: skip
    assert facts["columns"] == {
        "used": {"time": "Datum", "open": "Open", "high": "High", "low": "Low", "close": "Close", "volume": "Volume"},
        "ignored": [],
    }
    assert facts["warnings"] == ["cells are separated by ;", "numbers have a decimal comma"]


def test_options_say_what_a_file_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "DAX.csv")
    assert main(["bars", "inspect", str(path), "--tz", "America/New_York", "--columns", "volume=Open"]) == 0
    said = capsys.readouterr().out
    assert "zone America/New_York" in said
    assert "2024-01-01 05:00" in said
    assert "Open as volume" in said
    for option, value in (
        ("--tz", "Nowhere"),
        ("--columns", "x"),
        ("--timeframe", "7m"),
        ("--dates", "x"),
        ("--repair", "x"),
    ):
        assert main(["bars", "inspect", str(path), option, value]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"tradeloop: {option}"), captured.err
        assert captured.err.count("\n") == 1


def test_files_whose_names_differ_in_their_dates_are_one_instrument(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = write(tmp_path / "DAX-2024-01.csv", 1, 15), write(tmp_path / "DAX-2024-02.csv", 14, 28)
    for given in ([str(first), str(second)], [str(tmp_path)], [f"DAX={first}", f"DAX={second}"]):
        assert main(["bars", "inspect", *given, "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        (id_, one), *others = facts["instruments"].items()
        assert (id_.split("-")[0], one["bars"], others) == ("file:DAX", 28, [])
        assert any("2 bars are in two of them, and agree" in warning for warning in facts["warnings"])
    write(second, 14, 28, close=102.5)
    assert main(["bars", "inspect", str(first), str(second)]) == 2
    assert "close is 101.5 in line 15 of DAX-2024-01.csv and 102.5 in line 2 of" in capsys.readouterr().err
    (tmp_path / "MSFT-1.csv").write_text("")
    names = [str(tmp_path / name) for name in ("MSFT-1.csv", "MSFT-2.csv", "a/DAX-2024-01.csv")]
    assert [one.more for one in named_files(names)[0]] == [(), (), ()]


def test_ingest_reads_a_file_as_the_command_was_told(tmp_path: Path) -> None:
    """The stack in this process answers to the same request as a running one."""
    days = [f"2022-{month:02}-{day:02}" for month in range(1, 13) for day in range(1, 29)]
    rows = [f"{day}|{100 + i % 9}|{104 + i % 9}|{97 + i % 9}|{101 + i % 9}|5" for i, day in enumerate(days)]
    path = tmp_path / "x.csv"
    path.write_text("\n".join(["k|m|n|p|q|r", *rows]))
    columns = "time=1,open=2,high=3,low=4,close=5,volume=6"
    home = tmp_path / "home"
    arguments = ["train", "--bars", f"X={path}", "--home", str(home), "--steps", "100", "--stack", "embedded"]
    assert main(arguments) == 2
    assert main([*arguments, "--columns", columns, "--timeframe", "1d"]) == 0
