"""MLflow with its artifacts in an object store, as components/artifacts has it: nobody but its server reaches that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer

from deploy.native.mlflow import mlflow
from deploy.native.server import Server, free_ports
from tradeloop.common.contracts.model_store import sample_policy
from tradeloop.common.model_store.mlflow import MlflowModelStore

COMPONENT = Path(__file__).parents[1] / "deploy" / "k8s" / "components" / "artifacts" / "kustomization.yaml"
SECRET = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "not-a-secret"}
"""The keys that docs/kubernetes.md puts into the Secret."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]


def told() -> tuple[dict[str, str], str]:
    """The variables and the destination that the component tells MLflow's server."""
    component: dict[str, Any] = yaml.safe_load(COMPONENT.read_text())
    [made] = component["configMapGenerator"]
    patch = yaml.safe_load(component["patches"][0]["patch"])
    [destination] = [each["value"] for each in patch if each["op"] == "replace"]
    return dict(each.split("=", 1) for each in made["literals"]), destination.removeprefix("--artifacts-destination=")


@pytest.fixture
def store() -> Iterator[str]:
    """The address of an object store."""
    [port] = free_ports(1)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


def test_policies_lie_in_the_object_store_and_come_back_through_mlflow(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    variables, destination = told()
    variables |= {**SECRET, "MLFLOW_S3_ENDPOINT_URL": store}
    bucket, _, prefix = destination.removeprefix("s3://").partition("/")
    client = boto3.client(
        "s3",
        endpoint_url=store,
        region_name=variables["AWS_DEFAULT_REGION"],
        aws_access_key_id="somebody",
        aws_secret_access_key="not-a-secret",
    )
    client.create_bucket(Bucket=bucket)
    [port] = free_ports(1)
    plain = mlflow(tmp_path, port)
    command = [destination if word == f"{tmp_path}/artifacts" else word for word in plain.command]
    assert destination in command
    environment: Mapping[str, str] = {**plain.environment, **variables}
    with Server(replace(plain, command=tuple(command), environment=environment), tmp_path) as server:
        models = MlflowModelStore(server.address)
        policy = sample_policy(b"a graph")
        registered = models.register("example", policy, metrics={"sharpe": 1.0}, parameters={})
        found = MlflowModelStore(server.address).load("example", registered.version)
        assert found.policy.onnx == policy.onnx
    asked = [record.getMessage() for record in caplog.records if record.name == "werkzeug"]
    assert any("GET /" in each for each in asked)
    assert not any("X-Amz-Signature=" in each for each in asked), "such addresses are for those who may not reach it"
    keys = [each["Key"] for each in client.list_objects_v2(Bucket=bucket)["Contents"]]
    assert keys
    assert all(key.startswith(f"{prefix}/") for key in keys)
    bodies = [client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys]
    assert policy.onnx in bodies
    assert not (tmp_path / "artifacts").exists()
