"""The contract of `ModelStore`, for every adapter; then what only one of them promises."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from tests.servers import RealServer
from tests.waiting import PATIENCE_S
from tradeloop.common.contracts.model_store import MakeModelStore
from tradeloop.common.contracts.model_store import sample_policy as policy
from tradeloop.common.market import ModelName
from tradeloop.common.model_store.memory import MemoryModelStore
from tradeloop.common.model_store.port import (
    ModelNotFound,
    ModelStore,
    ModelStoreUnavailable,
    Policy,
    RegisteredPolicy,
    model_name,
    read_policy,
    write_policy,
)
from tradeloop.common.testing import MODEL_STORE_CHECKS, check_model_store

# MLflow 3.17 under SQLAlchemy 2.1.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

METRICS = {"sharpe": 1.25, "drawdown": 0.1}
PARAMETERS = {"learning_rate": "0.0003"}


def mlflow_file(folder: Path) -> ModelStore:
    from tradeloop.common.model_store.mlflow import MlflowModelStore

    return MlflowModelStore(f"sqlite:///{folder}/mlflow.db")


def on_server(url: str) -> ModelStore:
    from tradeloop.common.model_store.mlflow import MlflowModelStore

    return MlflowModelStore(url)


def register(store: ModelStore, name: str = "example", onnx: bytes = b"a graph") -> str:
    return store.register(name, policy(onnx), metrics=METRICS, parameters=PARAMETERS).version


# The contract


@pytest.fixture(params=["memory", "mlflow", "mlflow server"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeModelStore:
    """Opens the same storage anew, as a restarted process does; a store in memory stays what it is."""
    if request.param == "memory":
        store = MemoryModelStore()
        return lambda: store
    if request.param == "mlflow":
        return partial(mlflow_file, tmp_path)
    return partial(on_server, request.getfixturevalue("mlflow"))


@pytest.mark.parametrize("check", MODEL_STORE_CHECKS, ids=lambda check: check.__name__)
def test_contract(make_store: MakeModelStore, check: Callable[[MakeModelStore], None]) -> None:
    check(make_store)


def test_one_storage_takes_the_whole_contract() -> None:
    store = MemoryModelStore()
    check_model_store(lambda: store)


class Versions(MemoryModelStore):
    """Counts the versions of all models together."""

    def register(self, name: str, policy: Policy, **described: Any) -> RegisteredPolicy:
        made = super().register(name, policy, **described)
        return replace(made, version=str(len(self.runs)))


class Newest(MemoryModelStore):
    """Gives the newest version, whichever was asked for."""

    def load(self, name: str, reference: str) -> RegisteredPolicy:
        return super().load(name, str(sum(model == name for model, _ in self.runs)))


class Firm(MemoryModelStore):
    """Never moves an alias."""

    def set_alias(self, name: str, alias: str, version: str) -> None:
        self._aliases.setdefault((name, alias), version)


class Trusting(MemoryModelStore):
    """Takes any graph for the manifest's."""

    def register(self, name: str, policy: Policy, **described: Any) -> RegisteredPolicy:
        fitting = replace(policy, manifest=policy.manifest.model_copy(update={"onnx_sha256": policy.model_id}))
        return super().register(name, fitting, **described)


class Rounding(MemoryModelStore):
    """Keeps a float of the manifest as a float32."""

    def load(self, name: str, reference: str) -> RegisteredPolicy:
        loaded = super().load(name, reference)
        manifest = loaded.policy.manifest
        rounded = manifest.model_copy(update={"onnx_max_abs_diff": float(np.float32(manifest.onnx_max_abs_diff))})
        return replace(loaded, policy=replace(loaded.policy, manifest=rounded))


@pytest.mark.parametrize("defect", [Versions, Newest, Firm, Trusting, Rounding])
def test_the_contract_finds_defects(defect: type[MemoryModelStore]) -> None:
    store = defect()
    with pytest.raises(AssertionError):
        check_model_store(lambda: store)


def test_the_contract_finds_a_store_that_forgets() -> None:
    with pytest.raises(AssertionError, match="is gone"):
        check_model_store(MemoryModelStore)


# Policies on disk


def test_an_exported_policy_is_read_again(tmp_path: Path) -> None:
    write_policy(tmp_path / "a" / "b", policy())
    assert read_policy(tmp_path / "a" / "b") == policy()
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {"policy.onnx", "manifest.json"}


def test_the_same_policy_is_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_policy(tmp_path / folder, policy())
    assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()


def test_a_folder_without_a_policy_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"policy\.onnx and manifest\.json"):
        read_policy(tmp_path)


def test_a_manifest_that_cannot_be_read_is_a_value_error(tmp_path: Path) -> None:
    write_policy(tmp_path, policy())
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="PolicyManifest"):
        read_policy(tmp_path)


def test_M1_each_strategy_and_universe_has_a_name_of_its_own() -> None:
    assert model_name("mean", "rev-fx") != model_name("mean-rev", "fx")
    longest = TypeAdapter(ModelName).validate_python(model_name("a" * 63, "b" * 63))
    assert register(MemoryModelStore(), longest) == "1"


# Only MLflow


def test_M1_a_version_is_the_graph_that_was_registered_as_it(tmp_path: Path) -> None:
    """A folder that was copied over another's has a manifest that fits its graph."""
    store = mlflow_file(tmp_path)
    assert register(store) == "1"
    assert store.load("example", "1").model_id == policy().model_id
    [graph] = tmp_path.rglob("policy.onnx")
    write_policy(graph.parent, policy(b"b graph"))
    with pytest.raises(ValueError, match=f"version 1 is damaged: it was registered with the graph {policy().model_id}"):
        mlflow_file(tmp_path).load("example", "1")


def test_M1_a_rebuilt_registry_gives_its_first_version_another_id(tmp_path: Path) -> None:
    before, after = mlflow_file(tmp_path / "before"), mlflow_file(tmp_path / "after")
    register(before)
    register(after, onnx=b"b graph")
    one, other = before.load("example", "1"), after.load("example", "1")
    assert (one.name, one.version) == (other.name, other.version)
    assert one.model_id != other.model_id


def test_a_model_under_its_former_name_is_named_with_the_remedy(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    store, name, former = mlflow_file(tmp_path), model_name("edge", "gold"), "edge-gold"
    register(store, former)
    store.set_alias(former, "champion", "1")
    for reference in ("champion", "1"):
        with pytest.raises(ModelNotFound, match=r"model edge\.gold is still called edge-gold: rename it in MLflow"):
            store.load(name, reference)
    MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db").rename_registered_model(former, name)
    assert store.load(name, "champion").policy == policy()


def test_M10_no_password_is_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store = on_server("http://user:hunter2@127.0.0.1:9")
    for call in (store.check, store.versions, lambda: store.load("example", "1"), lambda: register(store)):
        with pytest.raises(ModelStoreUnavailable) as caught:
            call()
        told = "".join(traceback.format_exception(caught.value))
        assert "MLflow at http://user:***@127.0.0.1:9: " in told
        assert "hunter2" not in told


@pytest.mark.parametrize("status", [401, 403])
def test_M7_a_password_that_is_wrong_is_waited_for(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with HTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            with pytest.raises(ModelStoreUnavailable, match=str(status)):
                on_server(f"http://127.0.0.1:{server.server_port}").check()
        finally:
            server.shutdown()


def test_a_graph_changed_in_the_store_is_not_loaded(tmp_path: Path) -> None:
    store = mlflow_file(tmp_path)
    register(store)
    [graph] = tmp_path.rglob("policy.onnx")
    graph.write_bytes(b"b graph")
    with pytest.raises(ValueError, match="damaged"):
        store.load("example", "1")


def test_a_place_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelStoreUnavailable, match="file"):
        register(mlflow_file(tmp_path / "file"))


def double() -> bytes:
    """An ONNX graph that doubles four numbers."""
    from onnx import TensorProto, helper

    inputs = [helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["n", 4])]
    outputs = [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["n", 4])]
    node = helper.make_node("Add", ["observation", "observation"], ["action"])
    graph = helper.make_graph([node], "double", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")  # importing mlflow.pyfunc
def test_mlflow_itself_loads_and_runs_the_champion(tmp_path: Path) -> None:
    store = mlflow_file(tmp_path)
    onnx = double()
    store.register("example", policy(onnx, action_size=4), metrics=METRICS, parameters=PARAMETERS)
    store.set_alias("example", "champion", "1")
    from mlflow import pyfunc, set_tracking_uri

    set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    try:
        model = pyfunc.load_model("models:/example@champion")
    finally:
        set_tracking_uri("")
    observation = np.arange(4, dtype=np.float32)[None]
    np.testing.assert_array_equal(model.predict(observation)["action"], 2 * observation)


def test_a_curve_is_kept_by_step_beside_the_policys_own_metrics(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    store = mlflow_file(tmp_path)
    curve = [(100 * n, {"reward": n / 8, "valid_reward_mean": -n / 4}) for n in range(1, 1500)]  # more than one call
    store.register("example", policy(), metrics=METRICS, parameters=PARAMETERS, curve=curve)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    run_id = str(client.get_model_version("example", "1").run_id)
    for name in ("reward", "valid_reward_mean"):
        points = [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        assert points == [(step, metrics[name]) for step, metrics in curve]
    for name, value in METRICS.items():
        assert [(point.step, point.value) for point in client.get_metric_history(run_id, name)] == [(149_900, value)]


def test_a_version_leads_to_its_run(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    store = mlflow_file(tmp_path)
    register(store)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    version = client.get_model_version("example", "1")
    run = client.get_run(str(version.run_id))
    assert (run.data.metrics, run.data.params, run.info.status) == (METRICS, PARAMETERS, "FINISHED")
    assert version.tags == {"model_id": policy().model_id}
    assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(tmp_path)


def test_the_database_appears_complete_and_alone(tmp_path: Path) -> None:
    mlflow_file(tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mlflow.db"]
    assert not Path("mlruns").exists()


def test_a_server_that_is_not_there_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    from tradeloop.common.model_store.mlflow import MlflowModelStore

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ModelStoreUnavailable, match=r"127\.0\.0\.1:9"):
        MlflowModelStore("http://127.0.0.1:9").load("example", "champion")


def test_a_server_that_dies_is_unavailable_and_comes_back(
    mlflow_server: RealServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, name = on_server(mlflow_server.address), f"model-{secrets.token_hex(4)}"
    register(store, name)
    store.set_alias(name, "champion", "1")
    assert store.load(name, "champion").policy == policy()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow_server.kill()
    try:
        calls: list[Callable[[], object]] = [
            lambda: store.load(name, "champion"),
            lambda: register(store, name),
            lambda: store.set_alias(name, "champion", "1"),
            store.check,
        ]
        for call in calls:
            with pytest.raises(ModelStoreUnavailable, match=mlflow_server.address):
                call()
    finally:
        mlflow_server.start()
    store.check()
    assert store.load(name, "champion").policy == policy()
    assert register(store, name, b"another") == "2"


def test_a_version_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tradeloop.common.model_store import mlflow as mlflow_models

    # isort: split
    from mlflow.artifacts import download_artifacts

    store = mlflow_file(tmp_path)
    for onnx in (b"1", b"2"):
        register(store, onnx=onnx)
    downloads = []

    def counted(**arguments: str) -> str:
        downloads.append(arguments["artifact_uri"])
        return download_artifacts(**arguments)

    monkeypatch.setattr(mlflow_models, "download_artifacts", counted)
    for version in ("1", "2", "1", "2"):
        store.set_alias("example", "champion", version)
        assert store.load("example", "champion").version == version
        assert store.load("example", version).policy.onnx == version.encode()
    assert len(downloads) == len(set(downloads)) == 2


LOAD = """
import sys
from tradeloop.common.model_store.mlflow import MlflowModelStore
try:
    MlflowModelStore(sys.argv[1]).load("nothing", "champion")
except LookupError:
    print(sorted({name.split(".")[0] for name in sys.modules} & {"feast", "torch", "mlflow"}))
"""


def test_asking_a_server_imports_no_plug_in(mlflow: str) -> None:
    """Feast brings one, and with it all of Feast and more."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, mlflow], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert done.stdout == "['mlflow']\n"


def test_mlflow_calls_nobody() -> None:
    import tradeloop.common.model_store.mlflow  # noqa: F401

    # isort: split
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert is_telemetry_disabled()
