"""`tradeloop bars check`: every fault of a file, one a line."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tradeloop.cli.main import main

DATA = Path(__file__).parents[4] / "shared" / "data"


def write(path: Path, opens: Sequence[float], start: datetime, minutes: int = 60) -> str:
    rows = [
        f"{(start + i * timedelta(minutes=minutes)).isoformat()},{price},101,99,{100 + i % 2 / 10},5"
        for i, price in enumerate(opens)
        if price != -1
    ]
    path.write_text("\n".join(["timestamp,open,high,low,close,volume", *rows]))
    return str(path)


def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    code = main(["bars", "check", *arguments])
    return code, capsys.readouterr().out.splitlines()


START = datetime(2024, 7, 2, tzinfo=UTC)


def test_a_sound_file_has_no_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.csv", [100.0] * 40, START)
    assert checked(capsys, file) == (0, [f"{file}: 40 bars of 1h, calendar continuous: no faults"])


def test_every_fault_is_a_line_with_its_bar_and_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opens = [100.0] * 40
    opens[3], opens[7], opens[20] = 0.0, 102.0, -1  # -1: no bar
    sound, file = write(tmp_path / "a.csv", [100.0] * 40, START), write(tmp_path / "b.csv", opens, START)
    assert checked(capsys, sound, file) == (
        1,
        [
            f"{sound}: 40 bars of 1h, calendar continuous: no faults",
            f"{file}, bar 4, 2024-07-02 03:00:00: open is 0.0",
            f"{file}, bar 8, 2024-07-02 07:00:00: open 102.0 lies outside [low 99.0, high 101.0]",
            f"{file}, bar 21, 2024-07-02 21:00:00: 1 bar missing before it",
            f"{file}: 39 bars of 1h, calendar continuous: 1 gap, 1 price, 1 range",
        ],
    )


def test_many_faults_of_a_kind_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.csv", [0.0] * 40, START)
    code, lines = checked(capsys, file, "--most", "2")
    assert (code, len(lines)) == (1, 4)
    assert lines[2:] == [
        f"{file}: 38 more of this kind: price",
        f"{file}: 40 bars of 1h, calendar continuous: 40 price",
    ]


def test_what_is_no_bars_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.csv", [100.0] * 40, START)
    for arguments, said in (
        ((f"{file}.csv",), "there is no such file"),
        ((file, "--calendar", "NYSE"), "--calendar: no calendar NYSE, did you mean XNYS?"),
        ((file, "--timeframe", "7m"), "--timeframe 7m: give one of 1s, 5s"),
    ):
        assert main(["bars", "check", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line


@pytest.mark.skipif(not DATA.is_dir(), reason="the folder of shared data is not there")
def test_real_files_have_the_faults_that_they_have(capsys: pytest.CaptureFixture[str]) -> None:
    """Weekends are no gaps; of eight histories of stocks, two have opens of 0."""
    pounds = str(DATA / "gbpusd-1m-bid-2012-02.csv.gz")
    code, lines = checked(capsys, pounds, "--calendar", "fx", "--most", "1000")
    assert code == 1
    assert lines[-1].endswith("calendar fx: 107 gap")
    assert not [line for line in lines if any(f"2012-02-{day:02}" in line and "21:" not in line for day in (4, 11, 18))]
    stocks = sorted(str(path) for path in (DATA / "dj30-daily").iterdir())
    code, lines = checked(capsys, *stocks, "--calendar", "XNYS", "--most", "1")
    said = {Path(line.split(":")[0]).name: line.rpartition(": ")[2] for line in lines if " bars of 1d" in line}
    assert code == 1
    assert {name: what for name, what in said.items() if what != "no faults"} == {
        "JNJ.csv.gz": "1,986 price, 1 range",
        "JPM.csv.gz": "959 price",
    }
