"""Whatever is wrong with the input: exit code 2, one line that names it and the remedy, nothing left behind."""

from __future__ import annotations

import gzip
import importlib.metadata
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.waiting import PATIENCE_S, until
from tradeloop.cli.main import main
from tradeloop.common.market import Instrument, Timeframe, Universe
from tradeloop.common.portfolio import Portfolio, RiskLimits, portfolio_yaml
from tradeloop.common.strategy import RewardContext, Strategy, TargetPosition, log_return, of, reward, talib
from tradeloop.common.strategy.installed import GROUP

HEADER = "timestamp,open,high,low,close,volume"


def rows(count: int = 400) -> list[str]:
    """Minutes of a quiet market."""
    generator = np.random.default_rng(3)
    close = 100.0 * np.exp(np.cumsum(generator.normal(0.0, 1e-3, count)))
    opened = np.r_[100.0, close[:-1]]
    start = np.datetime64("2026-01-05T00:00")
    return [
        f"{start + i},{o:.5f},{max(o, c) + 0.01:.5f},{min(o, c) - 0.01:.5f},{c:.5f},{10 + i % 7}"
        for i, (o, c) in enumerate(zip(opened, close, strict=True))
    ]


def text(lines: list[str], header: str = HEADER) -> str:
    return "\n".join([header, *lines]) + "\n"


def with_row(index: int, change: Callable[[list[str]], list[str]]) -> str:
    lines = rows()
    lines[index] = ",".join(change(lines[index].split(",")))
    return text(lines)


def cell(column: int, value: str) -> Callable[[list[str]], list[str]]:
    return lambda cells: [*cells[:column], value, *cells[column + 1 :]]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error of a command that ends with 2."""
    code = main(list(arguments))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tradeloop: ")]
    assert code == 2, lines
    assert len(lines) == 1
    assert "Traceback" not in lines[0]
    return lines[0].removeprefix("tradeloop: ")


DOUBLE = rows()
DOUBLE[201] = DOUBLE[200]
SWAPPED = rows()
SWAPPED[200], SWAPPED[201] = SWAPPED[201], SWAPPED[200]
MIXED = [line.replace(",", "Z,", 1) if i < 200 else line.replace(",", "+02:00,", 1) for i, line in enumerate(rows())]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param("", "empty", id="empty"),
        pytest.param("\x00\x01binary\x02" * 50, "bars.csv", id="not a CSV"),
        pytest.param(text(rows(3)), "3 rows", id="three rows"),
        pytest.param(
            text([line.rsplit(",", 2)[0] for line in rows()], "timestamp,open,high,low"), "close", id="columns"
        ),
        pytest.param(text(DOUBLE), "comes twice", id="duplicate"),
        pytest.param(text(SWAPPED), "comes after a later time", id="unordered"),
        pytest.param(with_row(9, cell(4, "NaN")), "line 11: close is nan", id="NaN"),
        pytest.param(with_row(9, cell(3, "-1")), "line 11: low -1.0 is not positive", id="negative"),
        pytest.param(with_row(9, cell(4, "999")), "line 11: close 999.0 lies outside", id="outside"),
        pytest.param(text(MIXED), "line 202: 2026-01-05T01:20:00+00:00 comes after a later time", id="zones"),
        pytest.param(text(rows(12)), "12 bars leave 4 to trade", id="too short to trade"),
        pytest.param(text(rows(60)), "relative_ema_120, has values at 0 of them", id="too short to train"),
    ],
)
def test_bars(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, says: str) -> None:
    (tmp_path / "bars.csv").write_text(content)
    line = refused(capsys, "demo", "--bars", str(tmp_path / "bars.csv"), "--out", str(tmp_path / "out"))
    assert str(tmp_path / "bars.csv") in line
    assert says in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bars.csv"], "nothing is left behind"


@pytest.mark.parametrize("command", ["demo", "train", "backtest"])
def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    where = ["--out", str(tmp_path / "out")] if command == "demo" else ["--home", str(tmp_path / "home")]
    line = refused(capsys, command, "--bars", str(tmp_path / "no.csv"), *where)
    assert str(tmp_path / "no.csv") in line
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bars.csv.gz"
    path.write_bytes(gzip.compress(text(rows()).encode())[:-20])
    assert str(path) in refused(capsys, "demo", "--bars", str(path), "--out", str(tmp_path / "out"))


@reward(version="1")
class Broken:
    """A reward that breaks its contract in the way it is told to."""

    how: str

    def __call__(self, c: RewardContext) -> np.ndarray:
        if self.how == "raises":
            raise ZeroDivisionError("by design")
        if self.how == "nan":
            return np.full(len(c.equity), np.nan)
        return np.zeros(len(c.equity) + 1)


@reward(version="1")
class Steady:
    """A reward that keeps its contract."""

    def __call__(self, c: RewardContext) -> np.ndarray:
        return c.equity / c.equity_prev - 1.0


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, object], None]:
    """Makes a strategy look installed."""

    def fake(name: str, value: object) -> None:
        def load() -> object:
            if isinstance(value, Exception):
                raise value
            return value

        point = SimpleNamespace(name=name, value="somewhere:strategy", load=load)

        def found(group: str, name: str = name) -> list[object]:
            return [point] if (group, name) == (GROUP, point.name) else []

        monkeypatch.setattr("tradeloop.common.strategy.installed.entry_points", found)

    return fake


@pytest.mark.parametrize(
    ("how", "says"), [("raises", "ZeroDivisionError: by design"), ("nan", "not finite"), ("shape", "shape")]
)
def test_a_strategy_whose_reward_is_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], install: Callable[[str, object], None], how: str, says: str
) -> None:
    install("bad", Strategy("bad", [log_return(1)], Broken(how)))
    line = refused(capsys, "demo", "--strategy", "bad", "--out", str(tmp_path / "out"))
    assert "Broken" in line or "bad" in line
    assert says in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["demo", "train"])
def test_what_is_rarely_meant_is_said_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], install: Callable[[str, object], None], command: str
) -> None:
    """And an instrument that a feature names and the file does not hold is refused."""
    install("level", Strategy("level", [talib("SMA", timeperiod=20), of("ETH", log_return(1))], Steady()))
    where = ["--out", str(tmp_path / "out")] if command == "demo" else ["--home", str(tmp_path / "home")]
    assert main([command, "--strategy", "level", *where]) == 2
    said = capsys.readouterr().err.splitlines()
    warnings = [line for line in said if line.startswith("Warning: strategy level: ")]
    assert len(warnings) == 1
    assert "features that follow the price: sma_20 (with all prices 8 times as high" in warnings[0]
    assert "feature of_eth_log_return_1: ETH is not among the instruments" in said[-1]


@pytest.mark.parametrize(
    ("limit", "says"),
    [(3.0, "ETH is not among the instruments"), (1.5, "asks for 2 times the equity, and max_position of its")],
)
@pytest.mark.parametrize("command", ["demo", "train"])
def test_leverage_is_checked_against_the_portfolio_that_is_given(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    install: Callable[[str, object], None],
    command: str,
    limit: float,
    says: str,
) -> None:
    """Within the portfolio's limits, it goes on to what is wrong next."""
    install("geared", Strategy("geared", [of("ETH", log_return(1))], Steady(), actions=TargetPosition(leverage=2.0)))
    (tmp_path / "bars.csv").write_text(text(rows()))
    universe = Universe(name="u", instruments=(Instrument(id="file:bars"),), timeframe=Timeframe.M1)
    limits = RiskLimits(max_position=limit, max_leverage=limit)
    book = Portfolio(name="p", universe=universe, strategy="geared", limits=limits)
    (tmp_path / "book.yaml").write_text(portfolio_yaml(book))
    given = ["--bars", str(tmp_path / "bars.csv"), "--portfolio", str(tmp_path / "book.yaml")]
    where = ["--out", str(tmp_path / "out")] if command == "demo" else ["--home", str(tmp_path / "home")]
    assert main([command, *given, *where]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_a_strategy_that_is_not_installed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "demo", "--strategy", "exmaple", "--out", str(tmp_path / "out"))
    assert line == "strategy exmaple is not installed; did you mean example?"
    assert importlib.metadata.entry_points(group=GROUP)


def test_a_strategy_that_does_not_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], install: Callable[[str, object], None]
) -> None:
    install("bad", ImportError("no module named numpi"))
    assert "no module named numpi" in refused(capsys, "demo", "--strategy", "bad", "--out", str(tmp_path / "out"))


def test_an_output_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        assert str(tmp_path / "file") in refused(capsys, "demo", "--out", str(out))
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_model_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "tradeloop train" in refused(capsys, "backtest", "--home", str(tmp_path / "home"))
    (tmp_path / "model").mkdir()
    assert "no policy in" in refused(capsys, "backtest", "--model", str(tmp_path / "model"))


def test_the_exit_code_of_the_command_itself(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tradeloop.cli.main", "demo", "--bars", str(tmp_path / "no.csv")],
        cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["Checking", "Starting", "Training"])
def test_ctrl_c(tmp_path: Path, stage: str) -> None:
    """At any moment: exit code 130, one line, and neither files nor a temporary home left behind."""
    bars = tmp_path / "bars.csv"
    bars.write_text(text(rows(2000)))
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tradeloop.cli.main", "demo", "--bars", str(bars), "--out", str(tmp_path / "out"),
         "--steps", "100000000"],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
    )  # fmt: skip
    assert process.stderr is not None
    before = {"Checking": "", "Starting": "Checking", "Training": "Computing"}[stage]
    said = []
    if before:
        for line in process.stderr:  # a finished stage is one line
            said.append(line)
            if line.startswith(before):
                break
    else:
        until(lambda: list((tmp_path / "tmp").glob("tradeloop-*")))
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 130, "".join(said) + rest
    assert rest.splitlines()[-1] == "tradeloop: interrupted; nothing was left half-written"
    assert "Traceback" not in rest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bars.csv", "tmp"]
    assert not list((tmp_path / "tmp").glob("tradeloop-*"))
