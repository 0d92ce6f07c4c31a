"""The audit files say what happened, exactly and repeatably; a folder is written whole or not at all."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import tempfile
import tracemalloc
from collections.abc import Sequence
from datetime import timedelta, timezone
from pathlib import Path
from typing import overload

import numpy as np
import polars as pl
import pytest

from libs.cli.tests.runs import THREE, make_run
from tradeloop.cli.report.files import Run, stage, write_run
from tradeloop.cli.report.simulated import Recording
from tradeloop.common.arrays import Float32s, Floats
from tradeloop.common.errors import UserError
from tradeloop.common.evaluation.backtest import backtest
from tradeloop.common.messages import Transition

HEADERS = {
    "bars.csv": "open_time,close_time,instrument,open,high,low,close,volume",
    "signals.csv": "decision_time,instrument,target,model_version",
    "orders.csv": "order_id,decision_time,instrument,side,quantity,status,reason",
    "fills.csv": "fill_id,order_id,time,instrument,side,quantity,price,fee,reason",
    "equity.csv": "time,cash,equity",
}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run() -> Run:
    return make_run(600, THREE, missing=0.1)


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert {path.name for path in write_run(folder, run)} == {path.name for path in folder.iterdir()}
    return folder


def test_the_columns_are_these(folder: Path) -> None:
    assert {name: (folder / name).read_text().splitlines()[0] for name in HEADERS} == HEADERS


def test_cash_and_equity_follow_from_fills_and_bars_alone(run: Run, folder: Path) -> None:
    frames: dict[tuple[str, str], list[dict[str, str]]] = {}
    for bar in rows(folder / "bars.csv"):
        frames.setdefault((bar["open_time"], bar["close_time"]), []).append(bar)
    fills, equity = rows(folder / "fills.csv"), rows(folder / "equity.csv")
    assert len(fills) > 30
    cash, booked = run.portfolio.capital, 0
    position, price = dict.fromkeys(THREE, 0.0), dict.fromkeys(THREE, 0.0)
    for ((open_time, close_time), bars), mark in zip(sorted(frames.items()), equity, strict=True):
        for fill in fills:
            if open_time <= fill["time"] < close_time:
                signed = float(fill["quantity"]) * (1.0 if fill["side"] == "buy" else -1.0)
                cash -= signed * float(fill["price"]) + float(fill["fee"])
                position[fill["instrument"]] += signed
                booked += 1
        price |= {bar["instrument"]: float(bar["close"]) for bar in bars}
        assert mark["time"] == close_time
        assert float(mark["cash"]) == pytest.approx(cash, rel=1e-9)
        assert float(mark["equity"]) == pytest.approx(cash + sum(position[i] * price[i] for i in THREE), rel=1e-9)
    assert booked == len(fills)


def test_the_first_mark_is_the_capital(run: Run, folder: Path) -> None:
    first = rows(folder / "equity.csv")[0]
    assert float(first["cash"]) == float(first["equity"]) == run.portfolio.capital


def test_floats_keep_their_bits(run: Run, folder: Path) -> None:
    assert [float(row["equity"]) for row in rows(folder / "equity.csv")] == [mark.equity for mark in run.marks]
    prices = {row["fill_id"]: float(row["price"]) for row in rows(folder / "fills.csv")}
    assert prices == {fill.fill_id: fill.price for fill in run.fills}


def test_bars_that_the_source_had_are_written_and_no_others(run: Run, folder: Path) -> None:
    bars = rows(folder / "bars.csv")
    assert len(bars) == run.bars.present.sum() < run.bars.present.size
    assert {bar["volume"] == "" for bar in bars if bar["instrument"] == THREE[1]} == {True}
    assert {float(bar["volume"]) > 0 for bar in bars if bar["instrument"] == THREE[0]} == {True}
    assert bars == sorted(bars, key=lambda bar: (bar["open_time"], bar["instrument"]))
    assert bars[0]["open_time"] == "2022-01-03T00:00:00Z"


def test_every_decision_is_a_row_for_each_instrument(run: Run, folder: Path) -> None:
    signals = rows(folder / "signals.csv")
    assert len(signals) == 3 * len(run.bars)
    assert {row["model_version"] for row in signals} == {"", "3"}
    last = {row["instrument"]: float(row["target"]) for row in signals[-3:]}
    assert last == dict(zip(run.signals[-1].instruments, run.signals[-1].targets, strict=True))


def test_an_order_is_written_once_in_its_final_state(run: Run, tmp_path: Path) -> None:
    first, second = run.orders[0], next(o for o in run.orders if o.order_id != run.orders[0].order_id)
    updates = [
        second.model_copy(update={"status": "working"}),
        first.model_copy(update={"status": "working"}),
        first.model_copy(update={"status": "partially_filled", "filled_quantity": first.quantity / 2}),
        second.model_copy(update={"status": "expired"}),
    ]
    write_run(tmp_path, dataclasses.replace(run, orders=updates))
    written = rows(tmp_path / "orders.csv")
    assert [(row["order_id"], row["status"]) for row in written] == [
        (first.order_id, "partially_filled"),
        (second.order_id, "expired"),
    ]
    assert float(written[0]["quantity"]) == first.quantity
    assert written[0]["side"] == first.side


def test_times_are_utc_whatever_their_zone(run: Run, tmp_path: Path) -> None:
    zone = timezone(timedelta(hours=5, minutes=30))
    fills = [fill.model_copy(update={"time": fill.time.astimezone(zone)}) for fill in run.fills]
    write_run(tmp_path, dataclasses.replace(run, fills=fills))
    assert [row["time"] for row in rows(tmp_path / "fills.csv")] == sorted(
        fill.time.strftime("%Y-%m-%dT%H:%M:%SZ") for fill in run.fills
    )


def test_transitions_come_back_as_they_were(run: Run, folder: Path) -> None:
    table = pl.read_parquet(folder / "transitions.parquet")
    assert len(table) == len(run.transitions)
    models = {signal.time: (signal.model, signal.model_version, signal.model_id) for signal in run.signals}
    for row, transition in zip(table.iter_rows(named=True), run.transitions, strict=True):
        fields = transition.model_dump(exclude={"components", "account"}, exclude_defaults=True)
        read = {name: tuple(row[name]) if isinstance(row[name], list) else row[name] for name in fields}
        assert read == fields
        assert {name: row[f"component_{name}"] for name in transition.components} == transition.components
        assert row["fills"] == [fill.fill_id for fill in run.fills if fill.decision_time == transition.decision_time]
        assert (row["model"], row["model_version"], row["model_id"]) == models[transition.decision_time]
        assert (row["strategy"], row["feature_set"]) == (run.strategy.name, run.strategy.feature_set.id)


class Watched:
    """A policy that remembers what it saw."""

    def __init__(self) -> None:
        self.seen: list[Float32s] = []

    def act(self, observation: Float32s) -> Floats:
        self.seen.append(observation[0].copy())
        return np.tanh(900.0 * observation[:, 15 * 3 : 16 * 3].astype(np.float64))


def test_the_observation_is_to_the_bit_what_the_policy_saw(run: Run, tmp_path: Path) -> None:
    features = run.features.copy()
    features[200, 1, 0] = np.nan  # the window begins anew
    actor, model = Watched(), {"model": "walker", "model_version": "3", "model_id": "c0ffee"}
    recording = Recording(run.portfolio, run.strategy, run.bars, features, actor, model)
    result = backtest(run.portfolio, run.strategy, run.bars, features, recording, recording.watch)
    recorded = dataclasses.replace(
        run,
        features=features,
        signals=recording.signals,
        orders=recording.orders,
        fills=recording.fills,
        marks=recording.marks,
        transitions=recording.transitions(result),
    )
    write_run(tmp_path, recorded)
    observations = pl.read_parquet(tmp_path / "transitions.parquet")["observation"].to_list()
    assert len(observations) == 600 - 16 - 16 - 1
    assert len(recording.fills) > 100
    np.testing.assert_array_equal(np.array(observations, dtype=np.float32), np.array(actor.seen[:-1]))
    assert not any(signal.observation for signal in recording.signals)


class Many(Sequence[Transition]):
    """Transitions that are made when they are looked at, each with a component of its own name from some bar on."""

    def __init__(self, one: Transition, count: int, named_from: int) -> None:
        self._one, self._count, self._named_from = one, count, named_from

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> Transition: ...
    @overload
    def __getitem__(self, place: slice) -> list[Transition]: ...
    def __getitem__(self, place: int | slice) -> Transition | list[Transition]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(self._count))]
        if not 0 <= place < self._count:
            raise IndexError(place)
        parts = {"pnl": float(place)} | ({"late": 1.0} if place >= self._named_from else {})
        account = tuple(map(float, range(place, place + 4 * len(THREE) - 2)))
        return self._one.model_copy(update={"account": account, "components": parts, "reward": float(place)})


def test_a_component_that_comes_late_is_a_column_of_all_transitions(run: Run, tmp_path: Path) -> None:
    write_run(tmp_path, dataclasses.replace(run, transitions=Many(run.transitions[0], 5000, named_from=4100)))
    table = pl.read_parquet(tmp_path / "transitions.parquet")
    assert table["reward"].to_list() == table["component_pnl"].to_list() == list(map(float, range(5000)))
    assert table["component_late"].is_null().to_list() == [place < 4100 for place in range(5000)]
    assert table["observation"][4999].to_list()[-10:] == list(map(float, range(4999, 4999 + 10)))


def test_writing_transitions_takes_no_more_memory_for_more_of_them(tmp_path: Path) -> None:
    run = make_run(20)

    def peak(count: int) -> int:
        tracemalloc.start()
        write_run(tmp_path, dataclasses.replace(run, transitions=Many(run.transitions[0], count, named_from=0)))
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return taken

    peak(10)  # imports
    assert (peak(3000) - peak(1500)) / 1500 < 500


def test_the_same_run_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_run(tmp_path, make_run(600, THREE, missing=0.1))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_run_without_trades_has_empty_tables(tmp_path: Path) -> None:
    write_run(tmp_path, make_run(20, trade=False))
    assert (tmp_path / "fills.csv").read_text() == HEADERS["fills.csv"] + "\n"
    assert (tmp_path / "orders.csv").read_text() == HEADERS["orders.csv"] + "\n"
    assert pl.read_parquet(tmp_path / "transitions.parquet").schema["observation"] == pl.List(pl.Float32)


def test_the_summary_is_written_as_it_is(run: Run, folder: Path) -> None:
    assert json.loads((folder / "summary.json").read_text()) == run.summary


def test_a_run_has_one_mark_a_bar(run: Run) -> None:
    with pytest.raises(ValueError, match="one mark a bar, got 599 for 600 bars"):
        dataclasses.replace(run, marks=run.marks[1:])
    cash = run.baselines["cash"]
    short = {"cash": dataclasses.replace(cash, equity=cash.equity[1:])}
    with pytest.raises(ValueError, match="baseline cash has 599 values for 600 bars"):
        dataclasses.replace(run, baselines=short)


# --- staging --------------------------------------------------------------------------------------


def test_staged_files_move_into_a_new_folder(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with stage(out) as staging:
        (staging / "model").mkdir()
        (staging / "model" / "policy").write_text("p")
        (staging / "report").write_text("r")
        assert not out.exists()
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == [
        "deep/out/model/policy",
        "deep/out/report",
    ]
    assert os.listdir(tmp_path) == ["deep"]


def test_staged_files_replace_older_ones_and_leave_others(tmp_path: Path) -> None:
    for name in ("report", "mine"):
        (tmp_path / name).write_text("old")
    with stage(tmp_path) as staging:
        (staging / "report").write_text("new")
        assert (tmp_path / "report").read_text() == "old"
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"report": "new", "mine": "old"}


def write_staged(out: Path, *names: str, then: BaseException | None = None) -> None:
    with stage(out) as staging:
        for name in names:
            (staging / name).write_text("new")
        if then is not None:
            raise then


@pytest.mark.parametrize("interruption", [RuntimeError(), KeyboardInterrupt(), SystemExit()])
@pytest.mark.parametrize("name", [".", "new/out"])
def test_an_interruption_leaves_the_folder_as_it_was(tmp_path: Path, name: str, interruption: BaseException) -> None:
    (tmp_path / "report").write_text("old")
    with pytest.raises(type(interruption)):
        write_staged(tmp_path / name, "report", then=interruption)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"report": "old"}


@pytest.mark.parametrize("name", ["file", "file/out"])
def test_a_file_in_the_way_is_told_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file is not a folder") as caught, stage(tmp_path / name):
        pytest.fail("the work began")
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(UserError, match=r"out: cannot write there \(Permission denied\)"), stage(tmp_path / "out"):
        pytest.fail("the work began")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_where_a_file_should_go_stops_all_moves(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    with pytest.raises(UserError, match="report is a folder"):
        write_staged(tmp_path, "bars", "report")
    assert [p.name for p in tmp_path.iterdir()] == ["report"]
