"""`--keep`: further columns of files from the command to the features of a policy, against plain Python."""

from __future__ import annotations

import json
import math
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tradeloop.cli.main import main
from tradeloop.cli.source import open_source
from tradeloop.common.bar_store.sql import SqlBarStore
from tradeloop.common.clock import SystemClock
from tradeloop.common.market import EVER_US, Timeframe
from tradeloop.common.messages.ingest import Reading
from tradeloop.common.strategy import load

BARS = 400
LENGTH = 5
STRATEGY = """
from tradeloop.common.strategy import Strategy, log_return, on, reward, talib
import numpy as np

@reward(version="1")
class Gain:
    def __call__(self, c):
        return np.log(c.equity / c.equity_prev)

strategy = Strategy(
    "kept_mood",
    [log_return(1), talib("EMA", timeperiod=5, inputs=("sentiment",)),
     on("4h", talib("SMA", timeperiod=2, inputs=("sentiment",)))],
    Gain(),
    window=4,
)
"""


@pytest.fixture
def mood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed strategy whose features read the column `sentiment`."""
    folder = tmp_path / "installed"
    metadata = folder / "kept_mood-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / "kept_mood.py").write_text(STRATEGY)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kept-mood\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[tradeloop.strategies]\nkept_mood = kept_mood:strategy\n")
    monkeypatch.syspath_prepend(folder)


def moods() -> list[float | None]:
    """Among the first bars, one in nine has none."""
    chance = np.random.default_rng(3).normal(size=BARS)
    return [None if i < 50 and i % 9 == 4 else float(value) for i, value in enumerate(chance)]


def write(path: Path, header: str = "Mood", *, always: bool = False) -> Path:
    times = np.datetime64("2024-01-01T00:00:00") + np.arange(BARS) * np.timedelta64(1, "h")
    prices = 100 + np.cumsum(np.random.default_rng(1).normal(size=BARS)) * 0.2
    told = [repr(mood) if mood is not None else "0.25" if always else "" for mood in moods()]
    rows = [
        f"{time}Z,{price:.4f},{price + 1:.4f},{price - 1:.4f},{price + 0.1:.4f},5,{known},junk"
        for time, price, known in zip(times, prices, told, strict=True)
    ]
    path.write_text("\n".join([f"timestamp,open,high,low,close,volume,{header},note", *rows]))
    return path


def test_a_kept_column_reaches_store_features_and_training(
    mood: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, home = write(tmp_path / "x.csv"), tmp_path / "home"
    train = ["train", "--bars", f"X={path}", "--strategy", "kept_mood", "--home", str(home), "--steps", "64"]
    train += ["--stack", "embedded"]
    assert main(train) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "kept_mood has a feature that reads sentiment" in line
    assert "--keep sentiment=COLUMN" in line
    assert not home.exists()

    assert main([*train, "--keep", "sentiment=Mood"]) == 0
    assert "Mood as sentiment; ignored: note" in " ".join(capsys.readouterr().err.split())
    with closing(SqlBarStore(f"sqlite:///{home / 'bars.db'}", SystemClock())) as store:
        bars = store.read(["file:X"], Timeframe.H1, -EVER_US, EVER_US)
        longer = store.read(["file:X"], Timeframe.H4, -EVER_US, EVER_US)
    stored = [None if math.isnan(value) else value for value in bars.extra["sentiment"][:, 0].tolist()]
    assert stored == moods()
    fours = [[one for one in moods()[at : at + 4] if one is not None][-1] for at in range(0, BARS, 4)]
    assert longer.extra["sentiment"][:, 0].tolist() == fours


def test_a_feature_of_a_kept_column_is_that_of_plain_python(mood: None, tmp_path: Path) -> None:
    """The column has a number at each bar here: an EMA begins with the mean of the first bars."""
    path = write(tmp_path / "x.csv", always=True)
    numbers = [0.25 if one is None else one for one in moods()]
    expected = [math.fsum(numbers[:LENGTH]) / LENGTH]
    for one in numbers[LENGTH:]:
        expected.append(expected[-1] + 2 / (LENGTH + 1) * (one - expected[-1]))
    strategy = load("kept_mood")
    source = open_source([f"X={path}"], strategy, reading=Reading(keep={"sentiment": "Mood"}))
    [column] = [at for at, name in enumerate(strategy.feature_set.names) if "ema" in name.lower()]
    values = source.features(strategy)[:, 0, column]
    assert np.isnan(values[: LENGTH - 1]).all()
    assert np.allclose(values[LENGTH - 1 :], expected, rtol=1e-9, atol=1e-12)


def test_what_is_kept_is_said_and_not_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.csv", "News Mood")
    assert main(["bars", "inspect", str(path), "--keep", "News Mood", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["columns"]["used"]["news_mood"] == "News Mood"
    assert facts["columns"]["ignored"] == ["note"]


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (["Volume"], "--keep Volume: 'volume' is taken"),
        (["2nd"], "--keep 2nd: '2nd' is none"),
        (["a=Mood", "a=note"], "a is Mood already"),
        (["other"], "--keep other=other: it has no such columns"),
        (["mood=close"], "column 'close' is taken for close"),
        (["a=Mood", "b=Mood"], "column 'Mood' is taken for a"),
        (["note"], "line 2: note 'junk' cannot be parsed"),
    ],
)
def test_what_cannot_be_kept_is_one_line(
    keep: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "x.csv")
    assert main(["bars", "inspect", str(path), *(word for one in keep for word in ("--keep", one))]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
