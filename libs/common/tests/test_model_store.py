"""The contract of `ModelStore`, for every adapter; then what only one of them promises."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.servers import RealServer
from tests.waiting import PATIENCE_S
from tradeloop.common.model_store.folder import LocalModelStore
from tradeloop.common.model_store.port import (
    ModelNotFound,
    ModelStore,
    ModelStoreUnavailable,
    Policy,
    PolicyManifest,
    RegisteredPolicy,
    read_policy,
    write_policy,
)

# MLflow 3.17 under SQLAlchemy 2.1.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

METRICS = {"sharpe": 1.25, "drawdown": 0.1}
PARAMETERS = {"learning_rate": "0.0003"}


def local(folder: Path) -> ModelStore:
    return LocalModelStore(folder / "models")


def mlflow_file(folder: Path) -> ModelStore:
    from tradeloop.common.model_store.mlflow import MlflowModelStore

    return MlflowModelStore(f"sqlite:///{folder}/mlflow.db")


ADAPTERS: dict[str, Callable[[Path], ModelStore]] = {
    "local": local,
    "mlflow": mlflow_file,
}


@pytest.fixture(params=ADAPTERS)
def opened(request: pytest.FixtureRequest) -> Callable[[Path], ModelStore]:
    return ADAPTERS[request.param]


class Own:
    """The models of one test on a server that others use too: their names there start with a word of its own."""

    def __init__(self, store: ModelStore, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    def register(
        self, name: str, policy: Policy, *, metrics: Mapping[str, float], parameters: Mapping[str, str]
    ) -> RegisteredPolicy:
        made = self._store.register(self._prefix + name, policy, metrics=metrics, parameters=parameters)
        return replace(made, name=made.name.removeprefix(self._prefix))

    def set_alias(self, name: str, alias: str, version: str) -> None:
        self._store.set_alias(self._prefix + name, alias, version)

    def load(self, name: str, reference: str) -> RegisteredPolicy:
        loaded = self._store.load(self._prefix + name, reference)
        return replace(loaded, name=loaded.name.removeprefix(self._prefix))

    def check(self) -> None:
        self._store.check()


@pytest.fixture(params=[*ADAPTERS, "mlflow server"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ModelStore:
    if request.param in ADAPTERS:
        return ADAPTERS[request.param](tmp_path)
    return on_server(request.getfixturevalue("mlflow"))


def on_server(url: str) -> ModelStore:
    from tradeloop.common.model_store.mlflow import MlflowModelStore

    return Own(MlflowModelStore(url), f"{secrets.token_hex(4)}-")


def policy(onnx: bytes = b"a graph", **changes: object) -> Policy:
    values: dict[str, object] = {
        "strategy": "example",
        "universe": "crypto",
        "instruments": 2,
        "feature_set": "fs-1",
        "feature_names": ("log_return(1)", "rsi(14)"),
        "window": 2,
        "observation_size": 4,
        "action_scheme": "target_position",
        "action_size": 2,
        "reward_id": "reward-1",
        "algorithm": "PPO",
        "seed": 7,
        "steps": 1000,
        "trained_from": "2025-01-01T00:00:00+00:00",
        "trained_to": "2025-06-01T00:00:00+00:00",
        "onnx_max_abs_diff": 1.2345678901234567e-07,
        "onnx_sha256": hashlib.sha256(onnx).hexdigest(),
    }
    return Policy(PolicyManifest.model_validate(values | changes), onnx)


def register(store: ModelStore, name: str = "example", onnx: bytes = b"a graph") -> str:
    return store.register(name, policy(onnx), metrics=METRICS, parameters=PARAMETERS).version


# The contract


def test_a_policy_comes_back_to_the_byte(store: ModelStore) -> None:
    onnx = bytes(range(256)) * 100
    registered = store.register("example", policy(onnx, seed=8), metrics=METRICS, parameters=PARAMETERS)
    assert (registered.name, registered.version) == ("example", "1")
    loaded = store.load("example", "1")
    assert loaded == registered
    assert loaded.policy == policy(onnx, seed=8)
    assert loaded.policy.model_id == hashlib.sha256(onnx).hexdigest()


def test_versions_count_up_by_model(store: ModelStore) -> None:
    assert [register(store, onnx=b"1"), register(store, onnx=b"2"), register(store, "other", b"3")] == ["1", "2", "1"]
    assert store.load("example", "1").policy.onnx == b"1"
    assert store.load("example", "2").policy.onnx == b"2"
    assert store.load("other", "1").policy.onnx == b"3"


def test_an_alias_moves(store: ModelStore) -> None:
    for onnx in (b"1", b"2"):
        register(store, onnx=onnx)
    store.set_alias("example", "champion", "2")
    store.set_alias("example", "challenger", "2")
    store.set_alias("example", "champion", "1")
    champion, challenger = store.load("example", "champion"), store.load("example", "challenger")
    assert (champion.version, champion.policy.onnx) == ("1", b"1")
    assert (challenger.version, challenger.policy.onnx) == ("2", b"2")


def test_what_is_not_there_is_named(store: ModelStore) -> None:
    with pytest.raises(ModelNotFound, match="nothing"):
        store.load("nothing", "1")
    with pytest.raises(ModelNotFound, match="nothing"):
        store.load("nothing", "champion")
    with pytest.raises(ModelNotFound, match="nothing"):
        store.set_alias("nothing", "champion", "1")
    register(store)
    with pytest.raises(ModelNotFound, match=r"example.*2"):
        store.load("example", "2")
    with pytest.raises(ModelNotFound, match="example has no alias champion"):
        store.load("example", "champion")
    with pytest.raises(ModelNotFound, match=r"example.*2"):
        store.set_alias("example", "champion", "2")


def test_a_graph_that_is_not_the_manifests_is_refused(store: ModelStore) -> None:
    with pytest.raises(ValueError, match="damaged"):
        store.register("example", policy(onnx_sha256="0" * 64), metrics=METRICS, parameters=PARAMETERS)
    with pytest.raises(ModelNotFound):
        store.load("example", "1")


def test_a_graph_changed_in_the_store_is_not_loaded(opened: Callable[[Path], ModelStore], tmp_path: Path) -> None:
    store = opened(tmp_path)
    register(store)
    [graph] = tmp_path.rglob("policy.onnx")
    graph.write_bytes(b"b graph")
    with pytest.raises(ValueError, match="damaged"):
        store.load("example", "1")


def test_another_process_finds_everything(opened: Callable[[Path], ModelStore], tmp_path: Path) -> None:
    first = opened(tmp_path)
    register(first)
    first.set_alias("example", "champion", "1")
    assert opened(tmp_path).load("example", "champion").policy == policy()


def test_many_parameters_and_odd_metrics_are_taken(store: ModelStore) -> None:
    parameters = {f"p{i}": str(i) for i in range(250)}
    metrics = {"nan": float("nan"), "inf": float("inf")}
    assert store.register("example", policy(), metrics=metrics, parameters=parameters).version == "1"


def test_a_place_that_cannot_be_written_is_unavailable(opened: Callable[[Path], ModelStore], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelStoreUnavailable, match="file"):
        register(opened(tmp_path / "file"))


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


# Only the folder


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", ".hidden"])
def test_a_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    store = local(tmp_path)
    with pytest.raises(ValueError, match="is no name for a model"):
        register(store, name)
    register(store)
    with pytest.raises(ValueError, match="is no alias"):
        store.set_alias("example", name, "1")
    with pytest.raises(ModelNotFound):
        store.load("example", name)


def test_metrics_and_parameters_lie_beside_the_policy(tmp_path: Path) -> None:
    register(local(tmp_path))
    run = json.loads((tmp_path / "models" / "example" / "1" / "run.json").read_text())
    assert run == {"metrics": METRICS, "parameters": PARAMETERS}


def test_a_registration_cut_short_leaves_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    store = local(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(ModelStoreUnavailable, match="No space left"):
            register(store)
    assert list((tmp_path / "models" / "example").iterdir()) == []
    assert register(store) == "1"


def test_registering_at_the_same_time_loses_nothing(tmp_path: Path) -> None:
    stores = [local(tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(lambda i: register(stores[i % 4], onnx=bytes([i])), range(20)))
    assert sorted(map(int, versions)) == list(range(1, 21))
    assert [local(tmp_path).load("example", version).policy.onnx for version in versions] == [
        bytes([i]) for i in range(20)
    ]


# Only MLflow


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
    store = on_server(mlflow_server.address)
    register(store)
    store.set_alias("example", "champion", "1")
    assert store.load("example", "champion").policy == policy()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow_server.kill()
    try:
        calls: list[Callable[[], object]] = [
            lambda: store.load("example", "champion"),
            lambda: register(store),
            lambda: store.set_alias("example", "champion", "1"),
            store.check,
        ]
        for call in calls:
            with pytest.raises(ModelStoreUnavailable, match=mlflow_server.address):
                call()
    finally:
        mlflow_server.start()
    store.check()
    assert store.load("example", "champion").policy == policy()
    assert register(store, onnx=b"another") == "2"


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
