"""`tradeloop features report`: what it finds on bars whose relation is known, and what it says of wrong input."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tradeloop.cli.main import main
from tradeloop.common.bar_store.sql import SqlBarStore
from tradeloop.common.clock import SystemClock
from tradeloop.common.market import Instrument, Timeframe
from tradeloop.ingest.adapters.files import read_bars


@pytest.fixture
def reverting(tmp_path: Path) -> Path:
    """Hours whose returns take back a third of the one before: `log_return_1` says a third of the next, upside down."""
    rng = np.random.default_rng(0)
    returns = np.zeros(3000)
    for t in range(1, 3000):
        returns[t] = -0.25 * returns[t - 1] + rng.normal(0, 0.003)
    close = 100.0 * np.exp(np.cumsum(returns))
    opened = np.r_[100.0, close[:-1]]
    times = np.datetime64("2024-01-01T00:00") + np.arange(3000) * np.timedelta64(1, "h")
    lines = [
        f"{time},{o:.6f},{max(o, c) + 0.01:.6f},{min(o, c) - 0.01:.6f},{c:.6f},10"
        for time, o, c in zip(times, opened, close, strict=True)
    ]
    path = tmp_path / "hours.csv"
    path.write_text("\n".join(["timestamp,open,high,low,close,volume", *lines, ""]))
    return path


def test_a_known_relation_is_on_the_page_and_in_the_file(
    reverting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["features", "report", "--bars", str(reverting), "--horizons", "5,1", "--out", str(out)]) == 0
    told = json.loads((out / "features.json").read_text())
    assert told["horizons"] == [1, 5]
    by_name = {one["name"]: one for one in told["features"]}
    first = by_name["log_return_1"]["coefficients"][0]
    assert first["ic"] == pytest.approx(-0.25, abs=0.05)
    assert first["adjusted"] < 1e-6
    assert by_name["relative_ema_120"]["missing"] == pytest.approx(119 / 3000)
    said = capsys.readouterr().out
    assert "log_return_1" in said
    assert "beyond chance" in said
    page = (out / "features.html").read_text()
    assert 'class="clear"' in page
    assert page.count("<h2>") == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--horizons", "1,soon"], "--horizons 1,soon: give numbers of bars above 0"),
        (["--horizons", "0"], "--horizons 0: give numbers of bars above 0"),
        (["--horizons", "3000"], "--horizons 3000: there are 3000 bars, and none so many bars ahead"),
        (["--to", "2024-01-03", "--horizons", "1"], "is known at none: give more bars"),
        (["--strategy", "nobody"], "nobody"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    reverting: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["features", "report", "--bars", str(reverting), "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()


def test_the_list_names_every_definition(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features"]) == 0
    said = capsys.readouterr().out
    assert "volatility(n, estimator='close')" in said
    assert "vectorised(name, fn, window" in said


def test_stored_bars_are_reported_on_like_those_of_a_file(
    reverting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, name = tmp_path / "home", "binance:BTC/USDT"
    home.mkdir()
    bars, _ = read_bars(str(reverting), Instrument(id=name))
    with closing(SqlBarStore(f"sqlite:///{home / 'bars.db'}", SystemClock())) as store:
        store.write(Timeframe.H1, bars)
    told = list[dict[str, object]]()
    for given in (f"{name}={reverting}", f"store:{name}@1h"):
        out = tmp_path / f"out{len(told)}"
        command = ["features", "report", "--bars", given, "--home", str(home), "--horizons", "1", "--out", str(out)]
        assert main(command) == 0
        told.append(json.loads((out / "features.json").read_text()))
    assert told[0]["features"] == told[1]["features"]
    assert told[0]["bars"] == told[1]["bars"] == 3000
    capsys.readouterr()
    out = tmp_path / "out"
    assert main(["features", "report", "--bars", f"store:{name}@1m", "--home", str(home), "--out", str(out)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"holds no 1m bars of {name}: it holds {name}@1h" in line
    assert not out.exists()
