"""Every overlay of deploy/k8s as Kustomize renders it: schemas, policies, and names against the code, both ways."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.kubernetes.generate import generated
from deploy.kubernetes.render import rendered, with_options
from deploy.kubernetes.secrets import write_all
from tests.manifests import complaints, of_kind, pods
from tradeloop.common.messages.topics import SERVICE_TOPICS, accesses, specs

K8S = Path(__file__).parent.parent / "deploy" / "k8s"
BOUNDS: Mapping[str, Mapping[str, bool]] = {
    "local": {},
    "staging": {"released": True},
    "production": {"released": True, "pinned": True},
    "production-options": {"released": True, "pinned": True},
}


@pytest.fixture(scope="module")
def overlays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The objects of each overlay."""
    tree = tmp_path_factory.mktemp("k8s") / "k8s"
    shutil.copytree(K8S, tree, ignore=shutil.ignore_patterns("secrets"))
    write_all(tree / "overlays" / "local" / "secrets")
    with_options(tree, "production")
    return {folder.name: rendered(folder) for folder in sorted((tree / "overlays").iterdir())}


def test_every_overlay_is_held_to_bounds(overlays: Mapping[str, Any]) -> None:
    assert set(overlays) == set(BOUNDS)


@pytest.mark.parametrize("overlay", BOUNDS)
def test_nothing_is_wrong_with_an_overlay(overlays: Mapping[str, Any], overlay: str) -> None:
    assert complaints(overlays[overlay], **BOUNDS[overlay]) == []


def test_generated_files_are_what_the_code_says() -> None:
    for file, text in generated().items():
        assert file.read_text() == text, f"{file.name}: make format"


def test_topics_users_and_rights_are_those_of_the_catalogue(overlays: Mapping[str, Any]) -> None:
    objects = overlays["production"]
    topics = {each["spec"]["topicName"]: each["spec"] for each in of_kind(objects, "KafkaTopic")}
    assert {name: each["partitions"] for name, each in topics.items()} == {
        spec.name: spec.partitions for spec in specs(SERVICE_TOPICS)
    }
    users = {each["metadata"]["name"]: each["spec"] for each in of_kind(objects, "KafkaUser")}
    assert set(users) == {"tradeloop", *(access.user for access in accesses())}
    for access in accesses():
        acls = users[access.user]["authorization"]["acls"]
        for operation, names in (("Read", access.reads), ("Write", access.writes)):
            allowed = {
                acl["resource"]["name"]
                for acl in acls
                if acl["resource"]["type"] == "topic" and operation in acl["operations"]
            }
            assert allowed == names, (access.user, operation)
        assert [acl["resource"]["name"] for acl in acls if acl["resource"]["type"] == "group"] == [access.group]


def pod_of(objects: list[dict[str, Any]], owner: str) -> Any:
    return dict(pods(objects))[owner]["spec"]


def one(objects: list[dict[str, Any]], kind: str, name: str) -> Any:
    return next(each for each in of_kind(objects, kind) if each["metadata"]["name"].startswith(name))


def renamed(text: str, old: str, new: str) -> list[dict[str, Any]]:
    assert old in text
    return list(yaml.safe_load_all(text.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("INFERENCE_FEATURES:", "INFERENCE_FEATURE:"),
        ("EXECUTION_LEDGER_URL:", "EXECUTION_LEDGER:"),
        ("topic: preprocess.features.v1", "topic: preprocess.feature.v1"),
        ("consumerGroup: execution", "consumerGroup: executions"),
        ("topicName: market.bars.v1\n", "topicName: market.bar.v1\n"),
        ("name: PREPROCESS_KAFKA__SASL_USERNAME\n", "name: PREPROCESS_KAFKA__USERNAME\n"),
        ("key: INGEST_KAFKA__SASL_PASSWORD", "key: INGEST_KAFKA_SASL_PASSWORD"),
        ("claimName: features", "claimName: feature"),
        ("mountPath: /portfolios", "mountPath: /portfolio"),
        ("secretName: tradeloop-cluster-ca-cert", "secretName: tradeloop-cluster-ca"),
        ("value: /v1/predict", "value: /v1/predictions"),
        ("port: 8080\n", "port: 8081\n"),
        ("targetPort: http\n", "targetPort: https\n"),
        ("@sha256:", "@sha257:"),
        ("maxReplicaCount: 12", "maxReplicaCount: 13"),
        ("runAsNonRoot: true", "runAsNonRoot: false"),
        ("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
        ("failureThreshold:", "failureThresholds:"),
        ("lagThreshold:", "lagThresholds:"),
        ("priorityClassName: tradeloop-batch", "priorityClassName: tradeloop-batches"),
        (
            "secretStoreRef:\n    kind: SecretStore\n    name: tradeloop",
            "secretStoreRef:\n    kind: SecretStore\n    name: other",
        ),
    ],
)
def test_a_name_that_is_changed_on_one_side_is_told(overlays: Mapping[str, Any], old: str, new: str) -> None:
    text = yaml.safe_dump_all(overlays["production"], sort_keys=False)
    assert complaints(renamed(text, old, new), **BOUNDS["production"]) != []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: TRAINING_IDLE_S", "name: TRAINING_IDLE"),
        ("name: TRAINING_DEVICE", "name: TRAINING_GPU"),
        ("nvidia.com/gpu: '1'", "nvidia.com/gpus: '1'"),
        ("--no-wait", "--nowait"),
        ("--portfolio=/portfolios/eur-usd.yaml", "--portfolio=/portfolios/eurusd.yaml"),
        ("claimName: bars", "claimName: bar"),
        (
            "key: TRADELOOP_KAFKA__SASL_PASSWORD\n                  name: init",
            "key: KAFKA__SASL_PASSWORD\n                  name: init",
        ),
        ("concurrencyPolicy: Forbid", "concurrencyPolicy: Never"),
        ("MLFLOW_S3_ENDPOINT_URL:", "MLFLOW_S3_ENDPOINT:"),
        ("name: artifacts\n        image", "name: artefacts\n        image"),
        ("tradeloop/uses-artifacts: 'true'\n        tradeloop/uses-timescaledb", "tradeloop/uses-timescaledb"),
    ],
)
def test_a_name_of_an_option_that_is_changed_on_one_side_is_told(
    overlays: Mapping[str, Any], old: str, new: str
) -> None:
    text = yaml.safe_dump_all(overlays["production-options"], sort_keys=False)
    assert complaints(renamed(text, old, new), **BOUNDS["production-options"]) != []


def test_a_job_has_the_pod_of_the_service(overlays: Mapping[str, Any]) -> None:
    """But for what makes it a job, and the GPU."""
    service, job = (pod_of(overlays[name], "training") for name in ("production", "production-options"))
    assert {
        kind
        for each in overlays["production-options"]
        if each["metadata"]["name"] == "training"
        for kind in [each["kind"]]
    } == {"CronJob", "Service", "ServiceAccount", "ExternalSecret", "KafkaUser"}
    [mine], [theirs] = job["containers"], service["containers"]
    assert [each["name"] for each in mine["env"]] == ["TRAINING_IDLE_S", "TRAINING_DEVICE"]
    for each in (mine, theirs):
        del each["env"]
        each["resources"]["limits"].pop("nvidia.com/gpu", None)
    assert mine == theirs
    ask = job.pop("initContainers")[0]
    assert [each["name"] for each in ask["envFrom"][0].values()] != []
    assert len(ask["envFrom"]) == 1, "not all that `init` knows"
    for name in (
        "securityContext",
        "serviceAccountName",
        "priorityClassName",
        "automountServiceAccountToken",
        "enableServiceLinks",
        "terminationGracePeriodSeconds",
    ):
        assert job[name] == service[name]


def _no_limits(objects: list[dict[str, Any]]) -> None:
    del pod_of(objects, "redis")["containers"][0]["resources"]["limits"]


def _root(objects: list[dict[str, Any]]) -> None:
    pod_of(objects, "init")["securityContext"]["runAsUser"] = 0


def _node(objects: list[dict[str, Any]]) -> None:
    pod_of(objects, "ingest")["volumes"].append({"name": "node", "hostPath": {"path": "/"}})


def _latest(objects: list[dict[str, Any]]) -> None:
    pod_of(objects, "ingest")["containers"][0]["image"] = "registry.example.com/tradeloop/ingest:latest"


def _secret_in_the_open(objects: list[dict[str, Any]]) -> None:
    one(objects, "ConfigMap", "execution")["data"]["EXECUTION_KAFKA__SASL_PASSWORD"] = "secret"


def _no_budget(objects: list[dict[str, Any]]) -> None:
    objects.remove(one(objects, "PodDisruptionBudget", "execution"))


def _unused(objects: list[dict[str, Any]]) -> None:
    objects.append(
        {**one(objects, "ServiceAccount", "ingest"), "metadata": {"name": "nobody", "namespace": "tradeloop"}}
    )


def _all_of_it(objects: list[dict[str, Any]]) -> None:
    del one(objects, "HTTPRoute", "predictions")["spec"]["rules"][0]["matches"]


def _said_twice(objects: list[dict[str, Any]]) -> None:
    one(objects, "StatefulSet", "execution")["spec"]["replicas"] = 1


@pytest.mark.parametrize(
    "break_it",
    [_no_limits, _root, _node, _latest, _secret_in_the_open, _no_budget, _unused, _all_of_it, _said_twice],
)
def test_what_no_policy_allows_is_told(
    overlays: Mapping[str, Any], break_it: Callable[[list[dict[str, Any]]], None]
) -> None:
    objects = copy.deepcopy(overlays["production"])
    break_it(objects)
    assert complaints(objects, **BOUNDS["production"]) != []
