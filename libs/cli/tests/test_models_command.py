"""`tradeloop models` and `tradeloop mlflow`: what is registered in a home, and how a model is meant."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tradeloop.cli.main import main
from tradeloop.cli.models import find
from tradeloop.common.contracts.model_store import sample_policy
from tradeloop.common.errors import UserError
from tradeloop.common.model_store.mlflow import MlflowModelStore
from tradeloop.common.model_store.port import write_policy


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models: one with a champion and a newer version, one with a candidate alone."""
    home = tmp_path_factory.mktemp("home")
    store = MlflowModelStore(f"sqlite:///{home / 'mlflow.db'}")
    metrics = {"in_sample_total_return": 0.25, "in_sample_sharpe": 1.5}
    parameters = {"strategy": "edge", "universe": "btc", "trained_to": "2025-01-01T01:00:00+00:00", "seed": "7"}
    for onnx in (b"1", b"2"):
        store.register("edge-btc", sample_policy(onnx), metrics=metrics, parameters=parameters)
    store.set_alias("edge-btc", "champion", "1")
    store.set_alias("edge-btc", "candidate", "2")
    store.register("edge-eth", sample_policy(b"3", timeframe="1h"), metrics={}, parameters={})
    store.set_alias("edge-eth", "candidate", "1")
    return home


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("tradeloop: ")


def test_list_says_what_each_version_is(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # narrower than the table, of which nothing may be cut
    assert main(["models", "list", "--home", str(home)]) == 0
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == f"3 versions in {home}"
    assert rows[2] == "model alias trained to seed return sharpe"
    assert rows[3:] == [
        "edge-btc:1 champion 2025-01-01 7 +25.0% 1.50",
        "edge-btc:2 candidate 2025-01-01 7 +25.0% 1.50",
        "edge-eth:1 candidate",
    ]


def test_show_has_manifest_parameters_and_metrics(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", "edge-btc", "--home", str(home)]) == 0
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert said[0] == "edge-btc:2 candidate"
    for line in ("window 2", "features log_return(1), rsi(14)", "in_sample_sharpe 1.5"):
        assert line in said
    assert main(["models", "show", "edge-eth:candidate", "--home", str(home)]) == 0
    assert "timeframe 1h" in [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("champion", ("edge-btc", "1")),
        ("1", ("edge-btc", "1")),
        ("edge-btc", ("edge-btc", "2")),
        ("edge-btc:1", ("edge-btc", "1")),
        ("edge-eth:candidate", ("edge-eth", "1")),
        ("edge-eth", ("edge-eth", "1")),
    ],
)
def test_a_reference_means_one_version(home: Path, reference: str, found: tuple[str, str]) -> None:
    registered = find(reference, home, "edge-btc")
    assert (registered.name, registered.version) == found


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("edge-sol", "no model edge-btc:edge-sol, nor edge-sol:candidate; it has edge-eth:1 (candidate), edge-btc:2"),
        ("edge-btc:3", "no model edge-btc:3; it has"),
        ("demo/model", "and demo/model is no folder"),
    ],
)
def test_a_reference_that_means_none_is_refused_with_what_there_is(
    home: Path, reference: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a checkout in which `make demo` ran has demo/model
    with pytest.raises(UserError) as raised:
        find(reference, home, "edge-btc")
    assert says in str(raised.value)


def test_a_folder_is_a_model(tmp_path: Path) -> None:
    write_policy(tmp_path / "model", sample_policy())
    assert find(str(tmp_path / "model"), tmp_path, "edge-btc").policy == sample_policy()
    (tmp_path / "model" / "policy.onnx").write_bytes(b"another graph")
    with pytest.raises(UserError, match="is damaged"):
        find(str(tmp_path / "model"), tmp_path, "edge-btc")


def test_what_cannot_be_shown_is_said(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["models", "list"], ["models", "show", "edge-btc"], ["mlflow"]):
        assert "has no models: run `tradeloop train` first" in refused(capsys, *command, "--home", str(tmp_path))
    assert "set TRADELOOP_MLFLOW_TRACKING_URI" in refused(capsys, "models", "list", "--stack", "running")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = refused(capsys, "mlflow", "--home", str(home), "--port", port)
    assert line == f"--host 127.0.0.1 --port {port}: Address already in use: choose another --port"
