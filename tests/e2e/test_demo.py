"""The command from bars to report: what it leaves behind, checked from the files alone, and what it refuses.

Every run here trains for real, if briefly. One runs in a process of its own, beside the others.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tradeloop.cli.commands import demo
from tradeloop.cli.main import main
from tradeloop.common.evaluation.backtest import BacktestResult, backtest
from tradeloop.common.market import from_us
from tradeloop.common.model_store.onnx_policy import OnnxPolicy
from tradeloop.common.model_store.port import Actor, Policy, read_policy, write_policy

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
ROWS = 1_200
COLUMNS = {
    "bars.csv": "open_time,close_time,instrument,open,high,low,close,volume",
    "signals.csv": "decision_time,instrument,target,model_version",
    "orders.csv": "order_id,decision_time,instrument,side,quantity,status,reason",
    "fills.csv": "fill_id,order_id,time,instrument,side,quantity,price,fee,reason",
    "equity.csv": "time,cash,equity",
}
FILES = {*COLUMNS, "transitions.parquet", "summary.json", "report.html", "equity.png"}
FILES |= {"model/policy.onnx", "model/manifest.json"}
OF_A_DEMO = FILES | {"messages.parquet", "portfolio.yaml"}
SUMMARY = {
    "bars": int,
    "train_bars": int,
    "test_bars": int,
    "signals": int,
    "orders": int,
    "fills": int,
    "transitions": int,
    "decisions": int,
    "denials": dict,
    "denied_decisions": int,
    "dead_letters": int,
    "final_equity": float,
    "backtest_final_equity": float,
    "parity_rel_diff": float,
    "events_per_s": float,
    "wall_s": float,
}

# Trades at nearly every bar, whatever it has learned: a strategy that seldom trades leaves little to check.
BUSY = """\
from tradeloop.common.strategy import RewardContext, Strategy, TargetPosition, log_return, on, reward, talib


@reward(version="1")
class Gain:
    def __call__(self, c: RewardContext):
        return {"gain": c.equity / c.equity_prev - 1.0, "turnover": -1e-4 * c.turnover}


strategy = Strategy(
    name="busy",
    features=[log_return(1), talib("RSI", timeperiod=5), on("4h", log_return(1))],
    reward=Gain(),
    window=4,
    actions=TargetPosition(no_trade_band=0.0),
    parameters={"episode_bars": 64, "books": 32},
)
"""


@dataclass(frozen=True)
class Done:
    """A demo that ended well."""

    bars: Path
    out: Path
    strategy: str
    seed: int
    rows: int

    def table(self, name: str) -> list[dict[str, str]]:
        with (self.out / name).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    @property
    def transitions(self) -> pl.DataFrame:
        return pl.read_parquet(self.out / "transitions.parquet")

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.out / "summary.json").read_text(encoding="utf-8"))
        return summary


def arguments(bars: Path, out: Path, *, strategy: str = "example", seed: int = 3, steps: int = 1) -> list[str]:
    chosen = [] if strategy == "example" else ["--strategy", strategy]
    return ["demo", "--bars", str(bars), "--out", str(out), "--steps", str(steps), "--seed", str(seed), *chosen]


def run(bars: Path, out: Path, rows: int, *, strategy: str = "example", seed: int = 3, steps: int = 1) -> Done:
    assert main(arguments(bars, out, strategy=strategy, seed=seed, steps=steps)) == 0
    return Done(bars, out, strategy, seed, rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module", autouse=True)
def busy(folder: Path) -> Iterator[None]:
    """Installs the busy strategy, as far as Python can tell."""
    site = folder / "site"
    info = site / "busy_strategy-0.1.0.dist-info"
    info.mkdir(parents=True)
    (site / "busy_strategy.py").write_text(BUSY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: busy-strategy\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[tradeloop.strategies]\nbusy = busy_strategy:strategy\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(site)])
        yield


@pytest.fixture(scope="module")
def bars(folder: Path) -> Path:
    """Hours of a random walk."""
    generator = np.random.default_rng(3)
    close = 100.0 * np.exp(np.cumsum(generator.normal(0.0, 3e-3, ROWS)))
    opened = np.r_[100.0, close[:-1]]
    times = np.datetime64("2026-01-05T00:00") + np.arange(ROWS) * np.timedelta64(1, "h")
    lines = [
        f"{time},{o:.5f},{max(o, c) + 0.01:.5f},{min(o, c) - 0.01:.5f},{c:.5f},{10 + i % 7}"
        for i, (time, o, c) in enumerate(zip(times, opened, close, strict=True))
    ]
    path = folder / "hours.csv"
    path.write_text("\n".join(["timestamp,open,high,low,close,volume", *lines, ""]))
    return path


@pytest.fixture(scope="module")
def twin(folder: Path, bars: Path) -> Iterator[subprocess.Popen[str]]:
    """The first demo once more, in a process of its own."""
    command = [sys.executable, "-m", "tradeloop.cli.main", *arguments(bars, folder / "twin", steps=20_000)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    yield process
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def first(folder: Path, bars: Path, twin: subprocess.Popen[str]) -> Done:
    """The demo as its manual shows it."""
    return run(bars, folder / "first", ROWS, steps=20_000)


@pytest.fixture(scope="module")
def often(folder: Path, bars: Path) -> Done:
    """A demo that trades often."""
    return run(bars, folder / "often", ROWS, strategy="busy")


def real(folder: Path, name: str, strategy: str) -> Done:
    """The first 3,000 bars of a file that came from a venue."""
    if not DATA.is_dir():
        pytest.skip("../shared/data is not here")
    cut = folder / name
    with gzip.open(DATA / name, "rt") as whole, gzip.open(cut, "wt") as part:
        part.writelines(itertools.islice(whole, 3_001))
    return run(cut, folder / f"{name}-out", 3_000, strategy=strategy)


@pytest.fixture(scope="module")
def bitcoin(folder: Path) -> Done:
    return real(folder, "btc-perp-1m-2022-01.csv.gz", "busy")


@pytest.fixture(scope="module")
def sterling(folder: Path) -> Done:
    return real(folder, "gbpusd-1m-bid-2012-02.csv.gz", "example")


@pytest.fixture(params=["first", "often", "bitcoin", "sterling"])
def done(request: pytest.FixtureRequest) -> Done:
    """Each of the demos."""
    found: Done = request.getfixturevalue(request.param)
    return found


def when(text: str) -> datetime:
    assert text.endswith("Z")
    return datetime.fromisoformat(text)


def test_every_file_with_its_columns(done: Done) -> None:
    assert {str(path.relative_to(done.out)) for path in done.out.rglob("*") if path.is_file()} == OF_A_DEMO
    for name, header in COLUMNS.items():
        assert (done.out / name).read_text(encoding="utf-8").splitlines()[0] == header
    required = ["decision_time", "time", "observation", "action", "reward", "terminated"]
    assert [name for name in required if name not in done.transitions.columns] == []


def test_the_summary_counts_what_is_in_the_files(done: Done) -> None:
    summary, table = done.summary, done.table
    assert {name: type(summary[name]) for name in SUMMARY} == SUMMARY
    assert set(summary["baselines"]) == {"cash", "buy_and_hold", "momentum", "random"}
    assert set(summary["model"]) == {"name", "version", "alias", "reason", "onnx_max_abs_diff"}
    counts = {name: summary[name] for name in ("bars", "train_bars", "test_bars", "dead_letters")}
    traded = len(table("bars.csv"))
    assert counts == {"bars": done.rows, "train_bars": done.rows - traded, "test_bars": traded, "dead_letters": 0}
    assert traded == len(table("signals.csv")) == len(table("equity.csv")) == summary["signals"]
    for name in ("orders", "fills"):
        rows = table(f"{name}.csv")
        assert len(rows) == len({row[f"{name[:-1]}_id"] for row in rows}) == summary[name]
    assert len(done.transitions) == summary["transitions"] > 0
    assert summary["seed"] == done.seed
    assert summary["events_per_s"] > 0.0
    assert summary["wall_s"] > 0.0
    assert summary["model"]["onnx_max_abs_diff"] < 1e-5
    assert summary["baselines"]["cash"] == 100_000.0
    assert summary["training"]["in_sample"].keys() >= {"sharpe", "total_return"}
    gained = summary["training"]["out_of_sample"]["total_return"]
    assert gained == pytest.approx(summary["final_equity"] / 100_000.0 - 1.0, abs=1e-12)
    assert summary["unsized_targets"] == 0
    if summary["fills"]:
        assert 1 / 201 <= summary["p_value"] <= 1.0
    sides = [0.0]
    for fill in table("fills.csv"):  # one a bar: the fills alone say when a position turns or closes
        sides.append(sides[-1] + float(fill["quantity"]) * (1.0 if fill["side"] == "buy" else -1.0))
    signs = [0.0 if abs(side) < 1e-9 else math.copysign(1.0, side) for side in sides]
    assert summary["round_trips"]["count"] == sum(after not in (0.0, before) for before, after in pairwise(signs))


def test_backtest_and_live_agree(done: Done) -> None:
    summary = done.summary
    assert 0.0 <= summary["parity_rel_diff"] <= 1e-9
    assert summary["backtest_final_equity"] == pytest.approx(summary["final_equity"], rel=1e-9)
    assert float(done.table("equity.csv")[-1]["equity"]) == summary["final_equity"]


def test_cash_and_equity_follow_from_bars_and_fills(done: Done) -> None:
    fills = [(when(row["time"]), row) for row in done.table("fills.csv")]
    cash, quantity, booked = 100_000.0, 0.0, 0
    equity = done.table("equity.csv")
    assert (float(equity[0]["cash"]), float(equity[0]["equity"])) == (cash, cash)
    for bar, mark in zip(done.table("bars.csv"), equity, strict=True):
        assert mark["time"] == bar["close_time"]
        opened, closed = when(bar["open_time"]), when(bar["close_time"])
        for time, fill in fills:
            if opened <= time < closed:
                signed = float(fill["quantity"]) * (1.0 if fill["side"] == "buy" else -1.0)
                cash -= signed * float(fill["price"]) + float(fill["fee"])
                quantity += signed
                booked += 1
        assert float(mark["cash"]) == pytest.approx(cash, rel=1e-9, abs=1e-9 * 100_000.0)
        assert float(mark["equity"]) == pytest.approx(cash + quantity * float(bar["close"]), rel=1e-9)
    assert booked == len(fills)
    if done.strategy == "busy":
        assert booked > 100


def test_the_chain_from_signal_to_fill(done: Done) -> None:
    signals = {row["decision_time"]: row for row in done.table("signals.csv")}
    orders = {row["order_id"]: row for row in done.table("orders.csv")}
    bars = {row["open_time"]: row for row in done.table("bars.csv")}
    fills = {row["order_id"]: row for row in done.table("fills.csv")}
    assert fills.keys() == {order_id for order_id, row in orders.items() if "filled" in row["status"]}
    for order in orders.values():
        assert signals[order["decision_time"]]["model_version"] == done.summary["model"]["version"]
    for order_id, fill in fills.items():
        order, bar = orders[order_id], bars[fill["time"]]
        assert fill["side"] == order["side"]
        assert when(order["decision_time"]) <= when(fill["time"]), "a decision fills at a later bar's open"
        worse = 1e-4 if fill["side"] == "buy" else -1e-4
        assert float(fill["price"]) == pytest.approx(float(bar["open"]) * (1.0 + worse), rel=1e-9)
        assert float(fill["fee"]) == pytest.approx(2e-4 * float(fill["quantity"]) * float(fill["price"]), rel=1e-9)


def test_times_are_utc_and_in_order(done: Done) -> None:
    for name, header in COLUMNS.items():
        column = next(word for word in header.split(",") if word.endswith("time"))
        times = [when(row[column]) for row in done.table(name)]
        assert times == sorted(times)
    assert str(done.transitions.schema["time"]) == "Datetime(time_unit='us', time_zone='UTC')"


def test_rewards_are_finite_and_explained(done: Done) -> None:
    transitions = done.transitions
    assert transitions["reward"].is_finite().all()
    parts = transitions.select(pl.sum_horizontal(pl.col("^component_.*$"))).to_series()
    assert (parts - transitions["reward"]).abs().max() < 1e-12  # type: ignore[operator]
    equity = {row["time"]: float(row["equity"]) for row in done.table("equity.csv")}
    texts = transitions["time"].dt.strftime("%Y-%m-%dT%H:%M:%SZ").to_list()
    assert [equity[text] for text in texts] == transitions["equity"].to_list()
    assert transitions["observation"].list.len().unique().to_list() == [
        read_policy(done.out / "model").manifest.observation_size
    ]


def test_an_order_is_explained_from_the_files_of_the_run(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    orders = done.table("orders.csv")
    order = orders[len(orders) // 2]
    capsys.readouterr()
    assert main(["explain", order["order_id"], "--run", str(done.out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    [row] = [each for each in facts["risk"]["sizing"] if each["instrument"] == order["instrument"]]
    signed = float(order["quantity"]) if order["side"] == "buy" else -float(order["quantity"])
    assert (row["ordered"], row["agrees"]) == (signed, True)
    if not row["why"]:
        assert row["target"] * row["equity"] / row["price"] - row["position"] == pytest.approx(
            signed, abs=1.001 * row["lot_size"]
        )
    assert facts["model"]["training"]["asked"]["seed"] == done.seed


def test_the_report_needs_no_network(done: Done) -> None:
    html = (done.out / "report.html").read_text(encoding="utf-8")
    assert html.lower().startswith("<!doctype html>")
    assert not re.search(r"https?:|<(link|iframe|object|embed)\b|\bsrc=|@import|url\(", html)
    assert set(re.findall(r'\bhref="(.)', html)) <= {"#"}
    assert (done.out / "equity.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_gives_the_same_bytes(first: Done, twin: subprocess.Popen[str]) -> None:
    said, _ = twin.communicate(timeout=300)
    assert twin.returncode == 0, said
    other = first.out.with_name("twin")
    for name in sorted(OF_A_DEMO - {"summary.json"}):
        assert (other / name).read_bytes() == (first.out / name).read_bytes(), f"{name} differs"
    clocked = {"wall_s": 0.0, "events_per_s": 0.0}
    again: dict[str, Any] = json.loads((other / "summary.json").read_text())
    assert list(again) == list(first.summary)
    assert {**again, **clocked} == {**first.summary, **clocked}


def test_broken_parity_fails_and_names_the_bar(
    folder: Path,
    bars: Path,
    often: Done,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A backtest that pays other fees; and, as it trains with another seed, another model."""
    seen: list[tuple[Actor, BacktestResult]] = []

    def dearer(portfolio: Any, strategy: Any, bars: Any, features: Any, actor: Actor) -> BacktestResult:
        costs = portfolio.costs.model_copy(update={"fee_multiplier": 1.001})
        result = backtest(portfolio.model_copy(update={"costs": costs}), strategy, bars, features, actor)
        seen.append((actor, result))
        return result

    monkeypatch.setattr(demo, "backtest", dearer)
    assert main(arguments(bars, folder / "broken", strategy="busy", seed=4)) == 1
    [(actor, result)] = seen
    filled = from_us(result.time_us[np.flatnonzero(result.fill_quantity)[0]])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("tradeloop: ParityBroken: parity is broken")
    assert f"the first closes at {filled.isoformat()}" in last
    assert not (folder / "broken").exists()

    policy = read_policy(often.out / "model")
    size = policy.manifest.observation_size
    observations = np.random.default_rng(0).normal(size=(8, 1, size)).astype(np.float32)
    mine = [float(OnnxPolicy(policy).act(one)[0, 0]) for one in observations]
    theirs = [float(actor.act(one)[0, 0]) for one in observations]
    assert all(not math.isclose(a, b, rel_tol=1e-6) for a, b in zip(mine, theirs, strict=True))


def rows_of(said: str) -> dict[str, list[str]]:
    """The printed table's rows by name."""
    names = ("policy", "cash", "buy and hold", "momentum", "random")
    return {name: line.split(name)[1].split() for name in names for line in said.splitlines() if f" {name} " in line}


def test_backtest_of_the_demos_model(
    often: Done, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    folder = str(often.out / "model")
    assert main(["backtest", "--model", folder, "--bars", str(often.bars), "--strategy", "busy"]) == 0
    said = capsys.readouterr().out
    assert "1,200 bars of hours.csv, 2026-01-05 00:00 to" in said
    rows = rows_of(said)
    assert set(rows) == {"policy", "cash", "buy and hold", "momentum", "random"}
    assert rows["cash"] == ["100,000.00", "+0.00%", "0.00%", "0.00", "0", "0"]
    assert int(rows["policy"][-2].replace(",", "")) > often.summary["fills"]

    assert main(["backtest", "--model", folder, "--bars", str(often.bars)]) == 2
    assert "train it again" in capsys.readouterr().err


def test_train_then_backtest_in_a_home(
    folder: Path, bars: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    chosen = ["--bars", str(bars), "--strategy", "busy", "--home", str(folder / "home")]
    assert main(["train", "--steps", "1", "--seed", "5", *chosen]) == 0
    assert re.search(r"busy.hours-\w{6} version 1 is now candidate", capsys.readouterr().out)
    said = []
    for reference in (["--model", "1"], []):
        assert main(["backtest", *chosen, *reference]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert "seed 5" in said[0]
    assert float(rows_of(said[0])["policy"][0].replace(",", "")) > 0.0
    assert main(["backtest", *chosen, "--model", "challenger"]) == 2
    assert "challenger" in capsys.readouterr().err


def walk(path: Path, rows: int, seed: int, *, first: int = 0, price: float = 100.0) -> Path:
    """Hours of another random walk; `first` of them are left out."""
    generator = np.random.default_rng(seed)
    close = price * np.exp(np.cumsum(generator.normal(0.0, 3e-3, rows)))
    opened = np.r_[price, close[:-1]]
    lines = ["timestamp,open,high,low,close,volume"]
    for i in range(first, rows):
        time = np.datetime64("2026-01-05T00:00") + i * np.timedelta64(1, "h")
        high, low = max(opened[i], close[i]), min(opened[i], close[i])
        lines.append(f"{time},{opened[i]:.5f},{high:.5f},{low:.5f},{close[i]:.5f},{10 + i % 7}")
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([*lines, ""]))
    return path


@dataclass(frozen=True)
class Pair:
    """A demo of two instruments in a home that is kept, under a portfolio's costs."""

    home: Path
    out: Path
    options: list[str]


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    one, other = walk(folder / "pair" / "a.csv", 400, 7), walk(folder / "pair" / "b.csv", 390, 8, first=20, price=7.0)
    book, home, out = folder / "pair.yaml", folder / "pair-home", folder / "pair-out"
    bars = ["--bars", f"AAA={one}", "--bars", f"BBB={other}"]
    assert main(["portfolio", "new", *bars, "--strategy", "busy", "--out", str(book), "--capital", "5000"]) == 0
    book.write_text(book.read_text() + "costs:\n  slippage_bps: 3.0\n")
    options = [*bars, "--portfolio", str(book), "--home", str(home)]
    assert main(["demo", *options, "--to", "2026-01-20", "--steps", "1", "--seeds", "5", "--out", str(out)]) == 0
    return Pair(home, out, options)


def test_several_instruments_under_a_portfolio(pair: Pair) -> None:
    summary = json.loads((pair.out / "summary.json").read_text())
    assert (summary["bars"], summary["train_bars"]) == (360, 251), "15 days, 70 % of them for training"
    assert summary["parity_rel_diff"] <= 1e-9
    assert summary["baselines"]["cash"] == 5_000.0
    with (pair.out / "fills.csv").open(newline="") as file:
        fills = list(csv.DictReader(file))
    assert {fill["instrument"] for fill in fills} == {"file:AAA", "file:BBB"}
    with (pair.out / "bars.csv").open(newline="") as file:
        opened = {(bar["open_time"], bar["instrument"]): float(bar["open"]) for bar in csv.DictReader(file)}
    for fill in fills:
        worse = 3e-4 if fill["side"] == "buy" else -3e-4
        price = opened[fill["time"], fill["instrument"]] * (1.0 + worse)
        assert float(fill["price"]) == pytest.approx(price, rel=1e-9), "slippage is the portfolio's"


def test_several_seeds_are_counted_and_the_first_is_traded(pair: Pair) -> None:
    summary = json.loads((pair.out / "summary.json").read_text())
    ends = [one["final_equity"] for one in summary["seeds"]]
    assert [one["seed"] for one in summary["seeds"]] == [0, 1, 2, 3, 4]
    assert len(set(ends)) == 5, "five seeds, five policies"
    assert (summary["seed"], summary["final_equity"]) == (0, pytest.approx(ends[0], rel=1e-9))
    assert summary["seeds_interquartile_mean"] == pytest.approx(sum(sorted(ends)[1:4]) / 3)
    assert read_policy(pair.out / "model").manifest.seed == 0


def test_the_models_of_a_demo_are_kept_and_listed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    home = ["--home", str(pair.home)]
    assert main(["models", "list", *home]) == 0
    said = capsys.readouterr().out
    assert re.search(r"busy.aaa-bbb:5 +candidate +2026-01-15 +0", said)
    assert said.count("busy.aaa-bbb:") == 5
    assert main(["models", "show", "busy.aaa-bbb", *home]) == 0
    said = capsys.readouterr().out
    assert "busy.aaa-bbb:5  candidate" in said
    assert re.search(r"timeframe +1h\n +instrument_ids +file:AAA, file:BBB", said)
    assert main(["models", "show", "busy.none", *home]) == 2
    assert "busy.aaa-bbb:5 (candidate)" in capsys.readouterr().err
    assert main(["models", "list", "--home", str(pair.home / "no")]) == 2
    assert "has no models" in capsys.readouterr().err


def test_a_backtest_writes_what_live_wrote(
    pair: Pair, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same model over the same bars: file by file, to the byte."""
    monkeypatch.setenv("COLUMNS", "200")
    out = folder / "pair-backtest"
    span = ["--from", "2026-01-15T11:00", "--to", "2026-01-20"]
    assert main(["backtest", *pair.options, *span, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "Warning: " not in said, said
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == FILES
    for name in sorted(FILES - {"summary.json", "report.html"}):
        assert (out / name).read_bytes() == (pair.out / name).read_bytes(), f"{name} differs"
    live, again = (json.loads((where / "summary.json").read_text()) for where in (pair.out, out))
    for name in ("orders", "fills", "transitions", "decisions", "denials", "final_equity", "baselines", "test_bars"):
        assert again[name] == live[name]
    assert again["trained_bars_among_these"] == 0
    assert "none of these bars" in (out / "report.html").read_text()

    assert main(["backtest", *pair.options, "--to", "2026-01-20", "--out", str(out)]) == 0
    assert "Warning: 251 of the 360 bars lie in the time that the model was trained on" in capsys.readouterr().out
    assert "251 of these bars" in (out / "report.html").read_text()


def test_a_model_of_another_symbol_by_name(
    pair: Pair, folder: Path, often: Done, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    home = ["--home", str(pair.home), "--strategy", "busy"]
    other = [
        *home,
        "--bars",
        f"CCC={walk(folder / 'c.csv', 300, 5)}",
        "--bars",
        f"DDD={walk(folder / 'd.csv', 300, 6)}",
    ]
    for reference in ("busy.aaa-bbb", "busy.aaa-bbb:5", "busy.aaa-bbb:candidate"):
        assert main(["backtest", *other, "--model", reference]) == 0
        said = capsys.readouterr().out
        assert "with model busy.aaa-bbb:5" in said
        assert "trained on file:AAA, file:BBB (universe aaa-bbb), and these are file:CCC, file:DDD" in said
    assert main(["backtest", *other]) == 2
    said = capsys.readouterr().err
    assert "has no model busy.ccc-ddd:candidate, nor candidate:candidate; it has busy.aaa-bbb:5 (candidate)" in said
    assert main(["backtest", *home, "--bars", str(often.bars), "--model", "busy.aaa-bbb"]) == 2
    assert "was trained with instruments 2, strategy busy on these bars has 1" in capsys.readouterr().err


def test_more_markets_are_learnt_from_and_another_is_traded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A policy of three symbols, in demo and train, and the backtest of it on a fourth."""
    monkeypatch.setenv("COLUMNS", "200")
    own, *others = (walk(folder / "many" / f"{name}.csv", 400, n) for n, name in enumerate("abc", 30))
    also = [f"B={others[0]}", f"C={others[1]}"]
    home, out = folder / "many-home", folder / "many-out"
    options = ["--bars", f"A={own}", *(part for one in also for part in ("--also", one)), "--strategy", "busy"]
    options += ["--home", str(home), "--steps", "1"]
    assert main(["demo", *options, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "Learnt from 3 markets: A (280 bars), B (280 bars), C (280 bars)" in said
    assert "Of the other markets 240 bars after 2026-01-16 16:00 UTC, when trading begins, were left out" in said
    summary = json.loads((out / "summary.json").read_text())
    markets = summary["markets"]
    assert [(one["universe"], one["instruments"], one["bars"]) for one in markets] == [
        ("a", ["file:A"], 280),
        ("b", ["file:B"], 280),
        ("c", ["file:C"], 280),
    ]
    assert {one["to"] for one in markets} == {"2026-01-16T16:00:00+00:00"}
    assert "Learnt from 3 markets" in (out / "report.html").read_text()
    assert read_policy(out / "model").manifest.also == ("b", "c")
    alone = folder / "many-alone"
    assert main(["demo", "--bars", f"A={own}", "--strategy", "busy", "--steps", "1", "--out", str(alone)]) == 0
    assert (alone / "model" / "policy.onnx").read_bytes() != (out / "model" / "policy.onnx").read_bytes()
    capsys.readouterr()

    assert main(["train", *options, "--seed", "1", "--promote"]) == 0
    assert "Learnt from 3 markets: A (400 bars), B (400 bars), C (400 bars)" in capsys.readouterr().out
    fourth = walk(folder / "many" / "d.csv", 300, 40, first=20)
    assert (
        main(["backtest", "--home", str(home), "--strategy", "busy", "--model", "busy.a", "--bars", str(fourth)]) == 0
    )
    said = capsys.readouterr().out
    assert "The model learnt from b, c too, beside" in said
    assert "trained on file:A (universe a), and these are file:d-" in said

    walk(others[0], 400, 50)
    assert main(["train", *options]) == 2
    assert "choose another NAME in --also NAME=FILE" in capsys.readouterr().err


def trained(home: Path, file: Path, *options: str) -> int:
    return main(["train", "--bars", str(file), "--strategy", "busy", "--home", str(home), "--steps", "1", *options])


def models_in(home: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in (home / "artifacts").rglob("policy.onnx"))


def test_a_training_uses_exactly_the_rows_of_its_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the home has seen before: files of the same name, and the same file with a row more."""
    files = [walk(folder / place / "prices.csv", 300, seed) for place, seed in (("one", 1), ("two", 2))]
    fresh = []
    for n, file in enumerate(files):
        assert trained(folder / f"fresh{n}", file) == 0
        fresh += models_in(folder / f"fresh{n}")
    for file in files:
        assert trained(folder / "used", file) == 0
    assert models_in(folder / "used") == sorted(fresh)
    lines = files[0].read_text().splitlines()
    files[0].write_text("\n".join(lines[:150] + lines[151:]))
    assert trained(folder / "used", files[0]) == 0
    assert trained(folder / "cut", files[0]) == 0
    assert set(models_in(folder / "cut")) <= set(models_in(folder / "used"))


def test_a_name_stands_for_one_history_which_may_grow(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home, file = folder / "named", walk(folder / "named.csv", 260, 1)
    assert trained(home, file, "--name", "gold") == 0
    assert trained(home, walk(folder / "longer.csv", 300, 1), "--name", "gold") == 0
    assert "busy.gold version 2 is now candidate" in capsys.readouterr().out
    before = models_in(home)
    refusals = {
        walk(folder / "shorter.csv", 299, 1): "holds 300 1h bars of file:gold, and 1 of them are missing or different",
        walk(folder / "other.csv", 300, 2): "holds 300 1h bars of file:gold, and 300 of them",
    }
    for wrong, says in refusals.items():
        assert trained(home, wrong, "--name", "gold") == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert says in line
        assert "choose another --name, or another --home" in line
    assert main(["train", "--bars", f"SILVER={file}", "--name", "gold", "--strategy", "busy", "--home", str(home)]) == 2
    assert "knows universe gold as file:gold at 1h, and now it would be file:SILVER" in capsys.readouterr().err
    assert models_in(home) == before


def test_what_another_timeframe_means_is_said(
    pair: Pair, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the manifest of a model that claims it."""
    monkeypatch.setenv("COLUMNS", "200")
    policy = read_policy(pair.out / "model")
    manifest = policy.manifest.model_copy(update={"timeframe": "1d", "reward_id": "another"})
    write_policy(folder / "daily-model", Policy(manifest, policy.onnx))
    assert main(["backtest", *pair.options, "--model", str(folder / "daily-model")]) == 0
    said = capsys.readouterr().out
    assert "Warning: the model was trained on bars of 1d, and these are of 1h" in said
    assert "trained for the reward another" in said


def test_a_simulated_market_is_traded_live(tmp_path: Path) -> None:
    """The live path in one process, without a network: what the backtest says of the same bars is what live did."""
    out = tmp_path / "out"
    assert main(["demo", "--source", "simulated", "--steps", "2048", "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["test_bars"] == summary["signals"] == 300
    assert summary["parity_rel_diff"] <= 1e-9
    assert summary["dead_letters"] == 0


@pytest.mark.parametrize("more", [["--source", "moon"], ["--source", "simulated", "--bars", "bars.csv"]])
def test_a_source_that_does_not_fit_is_refused(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *more, "--out", str(tmp_path / "out")]) == 2
    assert "--source" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
