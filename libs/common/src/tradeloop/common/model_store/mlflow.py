"""`MlflowModelStore`: registered policies in MLflow.

A policy is an MLflow model of the `onnx` flavour, so that `mlflow.pyfunc.load_model("models:/name@champion")` and
`mlflow models serve` take it too. Its artifact folder holds `policy.onnx` to the byte, `manifest.json` and `MLmodel`.
"""

from __future__ import annotations

import functools
import logging
import os
import platform
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# MLflow reads these when it is imported. A trading system calls nobody it was not told to call; an unreachable
# server is reported within seconds, and whoever is told decides when to try again. Its lines are lines of our log.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
# Files come through the server, though it may offer addresses in its object store, which only it is to reach.
os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")

# isort: split
import numpy as np
from mlflow.artifacts import download_artifacts
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils import plugins
from mlflow.version import VERSION

from tradeloop.common import tls
from tradeloop.common.addresses import address
from tradeloop.common.model_store.port import (
    ModelNotFound,
    ModelStoreUnavailable,
    ModelVersion,
    Policy,
    PolicyManifest,
    RegisteredPolicy,
    check_alias,
    former_name,
    read_policy,
    write_policy,
)

for _library in ("mlflow", "alembic"):
    logging.getLogger(_library).setLevel(logging.WARNING)

_entry_points = plugins.get_entry_points
# Before its first request MLflow loads every installed plug-in that may add a header. Feast has one, for a kind of data
# source that is not used here, and where it is installed it brings all of Feast, half a minute on a small machine.
plugins.get_entry_points = lambda group: [p for p in _entry_points(group) if not p.value.startswith("feast.")]
try:
    import mlflow.tracking.request_header.registry  # noqa: F401
finally:
    plugins.get_entry_points = _entry_points

_CA_FILE = "MLFLOW_TRACKING_SERVER_CERT_PATH"
"""The variable from which MLflow itself takes the file of the authorities that it trusts."""
_SQLITE = "sqlite:///"
_ARTIFACT = "policy"
_PARAMETERS_AT_ONCE = 100
_METRICS_AT_ONCE = 1000
"""The most metrics that MLflow takes in one call."""
_REMEMBERED = 32
"""Policies kept in memory: a few per universe that a replica serves."""
_PASSING = {
    "ABORTED",
    "CUSTOMER_UNAUTHORIZED",  # so that somebody may set the password right
    "DEADLINE_EXCEEDED",
    "INTERNAL_ERROR",  # what an unreachable server or database comes as
    "PERMISSION_DENIED",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "TEMPORARILY_UNAVAILABLE",
    "UNAUTHENTICATED",
}


class MlflowModelStore:
    """Policies in the registry at `tracking_uri`: an MLflow server, or `sqlite:///<file>` without any.

    The SQLite file is made when it is not there; models then lie in the folder `artifacts` beside it. A server is
    asked at each call which version an alias points at, but sends a version only once.
    """

    def __init__(self, tracking_uri: str) -> None:
        self._uri = tracking_uri
        self._download = functools.lru_cache(maxsize=_REMEMBERED)(self._download_anew)
        self._artifacts: str | None = None  # a server knows where
        with self._reaching():
            if tracking_uri.startswith(_SQLITE):
                path = Path(tracking_uri.removeprefix(_SQLITE)).resolve()
                self._artifacts = (path.parent / "artifacts").as_uri()
                _create_sqlite(path)
            self._client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)

    def register(
        self,
        name: str,
        policy: Policy,
        *,
        metrics: Mapping[str, float],
        parameters: Mapping[str, str],
        curve: Sequence[tuple[int, Mapping[str, float]]] = (),
    ) -> RegisteredPolicy:
        with tempfile.TemporaryDirectory() as folder, self._reaching():
            write_policy(Path(folder), policy)
            run = self._client.create_run(self._experiment(name), run_name=f"{name}-{policy.model_id[:12]}")
            run_id, started_ms = run.info.run_id, run.info.start_time
            _describe(Path(folder), policy.manifest, run_id)
            last = max((step for step, _ in curve), default=0)
            points = [(last, metrics), *curve]
            values = [Metric(key, value, started_ms, step) for step, one in points for key, value in one.items()]
            for i in range(0, len(values), _METRICS_AT_ONCE):
                self._client.log_batch(run_id, values[i : i + _METRICS_AT_ONCE])
            params = [Param(key, value) for key, value in parameters.items()]
            for i in range(0, len(params), _PARAMETERS_AT_ONCE):
                self._client.log_batch(run_id, params=params[i : i + _PARAMETERS_AT_ONCE])
            self._client.log_artifacts(run_id, folder, _ARTIFACT)
            self._client.set_terminated(run_id)
            self._create_model(name)
            # Last: what was not registered is not seen.
            source = f"{run.info.artifact_uri}/{_ARTIFACT}"
            version = self._client.create_model_version(name, source, run_id, tags={"model_id": policy.model_id})
        return RegisteredPolicy(name, str(version.version), policy)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        check_alias(alias)
        if not version.isdecimal():
            raise ModelNotFound(f"model {name} has no version {version}")
        with self._reaching():
            self._client.set_registered_model_alias(name, alias, version)

    def load(self, name: str, reference: str) -> RegisteredPolicy:
        with self._reaching():
            try:
                if reference.isdecimal():
                    found = self._client.get_model_version(name, reference)
                else:
                    found = self._client.get_model_version_by_alias(name, reference)
            except MlflowException as error:
                if error.error_code == "INVALID_PARAMETER_VALUE":  # how MLflow says that there is no such alias
                    raise ModelNotFound(f"model {name} has no alias {reference}") from None
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED") or self._has(name):
                    raise
                # Whoever does not administer MLflow is denied what is not there.
                former = former_name(name)
                if former != name and self._has(former):
                    raise ModelNotFound(f"model {name} is still called {former}: rename it in MLflow") from None
                raise ModelNotFound(f"MLflow shows no model {name} to this user") from None
            loaded = RegisteredPolicy(name, str(found.version), self._download(found.source))
        if (registered := found.tags.get("model_id", loaded.model_id)) != loaded.model_id:
            raise ValueError(
                f"model {name} version {loaded.version} is damaged: it was registered with the graph {registered}, and "
                f"has {loaded.model_id}; register it again from a good copy"
            )
        return loaded

    def versions(self) -> Sequence[ModelVersion]:
        found = []
        with self._reaching():
            for model in _pages(self._client.search_registered_models):
                aliases = self._client.get_registered_model(model.name).aliases
                for one in _pages(partial(self._client.search_model_versions, f"name='{model.name}'")):
                    run = self._client.get_run(one.run_id).data
                    version = str(one.version)
                    mine = tuple(sorted(alias for alias, of in aliases.items() if str(of) == version))
                    found.append(ModelVersion(model.name, version, mine, dict(run.metrics), dict(run.params)))
        return sorted(found, key=lambda one: (one.name, int(one.version)))

    def check(self) -> None:
        with self._reaching():
            self._client.search_registered_models(max_results=1)

    def _download_anew(self, source: str) -> Policy:
        """The files at the address of a version, which holds its run's id: another policy has another address."""
        with tempfile.TemporaryDirectory() as folder:
            path = download_artifacts(artifact_uri=source, dst_path=folder, tracking_uri=self._uri)
            return read_policy(Path(path))

    def _experiment(self, name: str) -> str:
        """The experiment of a model's runs has the model's name."""
        known = self._client.get_experiment_by_name(name)
        if known is not None:
            return str(known.experiment_id)
        location = self._artifacts and f"{self._artifacts}/{name}"
        try:
            return self._client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            made = self._client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or made is None:
                raise
            return str(made.experiment_id)

    def _has(self, name: str) -> bool:
        """Whether there is a model that this user may see."""
        return bool(self._client.search_registered_models(f"name = '{name}'", max_results=1))

    def _create_model(self, name: str) -> None:
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """MLflow's failures, and those of the network and the disk below it, as the port names them."""
        try:
            yield
        # None goes on as the cause of another: MLflow quotes the address, whose password a traceback would show.
        except OSError as error:
            raise ModelStoreUnavailable(self._told(self._trouble() or error)) from None
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise ModelNotFound(self._told(error.message)) from None
            if error.error_code == "INVALID_PARAMETER_VALUE":
                raise ValueError(self._told(error.message)) from None
            if error.error_code in _PASSING:
                raise ModelStoreUnavailable(self._told(self._trouble() or error.message)) from None
            raise

    def _trouble(self) -> str:
        """The obstacle to TLS, if anything: MLflow's own words about that fill a page."""
        server = urlsplit(self._uri)
        if server.scheme not in ("http", "https") or server.hostname is None:
            return ""
        return tls.trouble(
            server.hostname,
            server.port or (443 if server.scheme == "https" else 80),
            os.environ.get(_CA_FILE),
            encrypted=server.scheme == "https",
            ca_setting=f"the environment variable {_CA_FILE}",
            tls_setting="give its address with https:// or http:// to match",
        )

    def _told(self, what: object) -> str:
        return address(f"MLflow at {self._uri}: {what}")


def _pages(search: Callable[..., Any]) -> Iterator[Any]:
    """All that a search finds, page by page."""
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _describe(folder: Path, manifest: PolicyManifest, run_id: str) -> None:
    """Make a policy's folder an MLflow model. `mlflow.onnx` would write the graph anew, with another hash."""
    # Only who registers pays for these imports, and needs pandas beside mlflow-skinny.
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    floats = np.dtype(np.float32)
    model = Model(
        run_id=run_id,
        signature=ModelSignature(
            Schema([TensorSpec(floats, (-1, manifest.observation_size))]),
            Schema([TensorSpec(floats, (-1, manifest.action_size))]),
        ),
    )
    # By hand what `pyfunc.add_to_model` would do: importing `mlflow.pyfunc` is slow, and warns.
    model.add_flavor(
        "python_function", loader_module="mlflow.onnx", python_version=platform.python_version(), data="policy.onnx"
    )
    model.add_flavor("onnx", data="policy.onnx", providers=["CPUExecutionProvider"])
    model.save(str(folder / "MLmodel"))
    # MLflow itself may be installed as its small twin, mlflow-skinny, which has the same version.
    requirements = [f"mlflow=={VERSION}", *(f"{name}=={installed(name)}" for name in ("numpy", "onnx", "onnxruntime"))]
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")


def _create_sqlite(path: Path) -> None:
    """Make the database at once or not at all; leave one that is there alone."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".unfinished-") as file:
        file.write(_empty_database())
        file.flush()
        os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was faster
            os.link(file.name, path)


@functools.cache
def _empty_database() -> bytes:
    """An SQLite file with MLflow's tables. Its migrations commit some hundred times: slow on a disk, not in memory."""
    name = "file:%2Ftradeloop-mlflow-tables?vfs=memdb"
    with closing(sqlite3.connect(name, uri=True)) as connection:  # keeps it while MLflow's own connections come and go
        MlflowClient(tracking_uri=f"{_SQLITE}{name}&uri=true")
        return connection.serialize()
