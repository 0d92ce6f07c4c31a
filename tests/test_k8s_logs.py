"""deploy/k8s/logs: it may do no more than it must, and says what deploy/logs says of a line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.kubernetes.render import rendered
from tests.manifests import of_kind, schema_faults
from tradeloop.cli.client.deployment import SERVICES

DEPLOY = Path(__file__).parents[1] / "deploy"
OF_COMPOSE: Mapping[str, Any] = yaml.safe_load((DEPLOY / "logs" / "fluent-bit.yaml").read_text())
SECRET = {"LOKI_USER", "LOKI_PASSWORD"}
POD = "/var/log/pods/{namespace}_{pod}_0f3c1a52-7d4b-4f0e-9a1e-2f9d5c1b7e11/service/0.log"


@cache
def text() -> str:
    return yaml.safe_dump_all(rendered(DEPLOY / "k8s" / "logs"), sort_keys=False)


@cache
def namespace() -> str:
    """Where the stack is."""
    [found] = of_kind(rendered(DEPLOY / "k8s" / "base"), "Namespace")
    return str(found["metadata"]["name"])


def group(expression: str, name: str, said: str) -> str | None:
    """A named group of an expression as Fluent Bit writes it."""
    found = re.match(expression.replace("(?<", "(?P<"), said)
    return found.group(name) if found else None


def faults(objects: list[dict[str, Any]]) -> Iterator[str]:
    """All that is wrong."""
    yield from schema_faults(objects)
    if {each["kind"] for each in objects} & {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}:
        yield "it may ask the API server"
    [collector] = of_kind(objects, "DaemonSet")
    spec = collector["spec"]["template"]["spec"]
    [container] = spec["containers"]
    mounts = {each["name"]: each for each in container["volumeMounts"]}
    of_node = [each for each in spec["volumes"] if "hostPath" in each]
    if [each["hostPath"] for each in of_node] != [{"path": "/var/log/pods", "type": "Directory"}]:
        yield "it sees other paths of its node"
    if not all(mounts[each["name"]].get("readOnly") for each in of_node):
        yield "it may write to its node"
    if spec["automountServiceAccountToken"] is not False or spec["enableServiceLinks"] is not False:
        yield "it is given a token, or variables of services"
    if spec.get("hostNetwork") or spec.get("hostPID") or spec["securityContext"]["seccompProfile"]["type"] == "None":
        yield "it shares namespaces of its node, or seccomp does not filter"
    if container["securityContext"] != {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }:
        yield "it may gain privileges, has capabilities, or writes to its root"
    if any(set(container["resources"][bound]) != {"cpu", "memory"} for bound in ("requests", "limits")):
        yield "requests or limits are missing"
    compose = yaml.safe_load((DEPLOY / "docker-compose.logs.yml").read_text())["services"]["fluent-bit"]
    if container["image"] != compose["image"]:
        yield "it is not what Compose has"
    [account] = of_kind(objects, "ServiceAccount")
    if spec["serviceAccountName"] != account["metadata"]["name"]:
        yield "its account is not there"
    maps = {each["metadata"]["name"]: each["data"] for each in of_kind(objects, "ConfigMap")}
    told = {name for each in container["envFrom"] for name in maps.get(each.get("configMapRef", {}).get("name"), ())}
    [made] = [each["configMap"]["name"] for each in spec["volumes"] if "configMap" in each]
    for name, content in maps.get(made, {}).items():
        if f"--config={mounts['pipeline']['mountPath']}/{name}" not in container["command"]:
            yield "it reads another file"
        yield from _pipeline(yaml.safe_load(content), told, container, mounts)


def _pipeline(
    pipeline: Mapping[str, Any], told: set[str], container: Mapping[str, Any], mounts: Mapping[str, Any]
) -> Iterator[str]:
    parsers = {each["name"]: each for each in pipeline["parsers"]}
    if parsers["tradeloop"] != OF_COMPOSE["parsers"][0]:
        yield "a line is read in another way than in Compose"
    [tail] = pipeline["pipeline"]["inputs"]
    if tail["path"] != f"/var/log/pods/{namespace()}_*/*/*.log":
        yield "it reads the lines of others"
    if not tail["db"].startswith(f"{mounts['state']['mountPath']}/"):
        yield "where it was is not kept"
    filters = pipeline["pipeline"]["filters"]
    keys = {each["parser"]: each["key_name"] for each in filters if each["name"] == "parser"}
    if keys != {"path": tail["path_key"], "pod": "pod", "tradeloop": "log"}:
        yield "it parses what is not there"
    for service in SERVICES:
        file = POD.format(namespace=namespace(), pod=f"{service}-0")
        pod = group(parsers["path"]["regex"], "pod", file)
        if pod != f"{service}-0" or group(parsers["pod"]["regex"], "container_name", pod) != service:
            yield f"{file} is not known as {service}'s"
    [output], [there] = pipeline["pipeline"]["outputs"], OF_COMPOSE["pipeline"]["outputs"]
    same = ("name", "match", "labels", "label_keys", "line_format", "retry_limit")
    if any(output[key] != there[key] for key in same):
        yield "labels are not those of Compose"
    if output["structured_metadata"] != f"{there['structured_metadata']}, pod=$pod":
        yield "fields are not those of Compose"
    used = set(re.findall(r"\$\{(\w+)\}", str(output)))
    if used != told | SECRET:
        yield f"{sorted(used ^ (told | SECRET))} are told and not used, or used and not told"
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    if ports.get(container["readinessProbe"]["httpGet"]["port"]) != pipeline["service"]["http_port"]:
        yield "nothing answers whether it is ready"


def test_nothing_is_wrong() -> None:
    assert list(faults(list(yaml.safe_load_all(text())))) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("path: /var/log/pods\n", "path: /var/log\n"),
        ("path: /var/log/pods/tradeloop_*", "path: /var/log/pods/*"),
        ("name: pods\n          readOnly: true", "name: pods\n          readOnly: false"),
        ("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
        (
            "automountServiceAccountToken: false\n      containers",
            "automountServiceAccountToken: true\n      containers",
        ),
        ("serviceAccountName: fluent-bit", "serviceAccountName: fluent"),
        ("fluent/fluent-bit:", "fluent/fluent-bit:9"),
        ("LOKI_HOST:", "LOKI_ADDRESS:"),
        ("${LOKI_PASSWORD}", "${LOKI_SECRET}"),
        ("(?<container_name>", "(?<container>"),
        ("trace_id=$trace_id", "trace=$trace"),
        ("http_port: 2020", "http_port: 2021"),
        ("/etc/tradeloop/pipeline.yaml", "/etc/tradeloop/pipelines.yaml"),
        ("/var/lib/fluent-bit/positions", "/var/lib/fluent/positions"),
        ("path_key: file", "path_key: path"),
        ("time_key: timestamp", "time_key: time"),
    ],
)
def test_what_is_changed_on_one_side_is_told(old: str, new: str) -> None:
    assert old in text()
    changed = list(yaml.safe_load_all(text().replace(old, new)))
    try:
        told = list(faults(changed))
    except (KeyError, IndexError) as error:  # a group that has another name
        told = [str(error)]
    assert told != []
