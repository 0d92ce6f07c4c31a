"""Does to a stack that trades what operators do and what happens to them: docs/kubernetes.md has the same commands."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from deploy.compose_test.engine import ROOT, Failed, run, say, works
from deploy.kubernetes.cluster import NAMESPACE, fed, kubectl, nodes

READY_TIMEOUT_S = 600
_SCALED_TIMEOUT_S = 240.0
_AUTOSCALER = ROOT / "deploy" / "k8s" / "components" / "autoscaling" / "inference.yaml"
_DUMP = "pg_dump --username=tradeloop --format=custom --table='execution_*' --table=ledger_version ledger"
_RESTORE = "pg_restore --username=tradeloop --clean --if-exists --single-transaction --dbname=ledger"


def rolled_out(name: str) -> None:
    """Wait until all pods of a StatefulSet are the newest ones, and ready. Raises `Failed`."""
    kubectl("rollout", "status", f"statefulset/{name}", f"--timeout={READY_TIMEOUT_S}s", timeout_s=READY_TIMEOUT_S + 10)


def drill(services: Sequence[str], frames: int, skipped: list[str], marked: Callable[[], int]) -> None:
    """A crash, an upgrade of each service, one that is taken back, and a restored backup, all while bars flow.

    With a second node also one that is drained, and with a metrics server an autoscaler: what is not there is added to
    `skipped`. `marked` says how many of the frames are marked. Raises `Failed`.
    """

    def flows(what: str, act: Callable[[], object]) -> None:
        before, began = marked(), time.monotonic()
        act()
        say(f"{what}, {time.monotonic() - began:.0f} s; frames {before} to {(after := marked())} meanwhile")
        if after >= frames:
            raise Failed("the bars were over before the drill was")

    backup = Path("/tmp/tradeloop-ledger.dump")
    flows("the ledger was backed up", lambda: _in_database(f"{_DUMP} > {backup}"))
    flows("execution's pod was killed and is back", _kill)
    for service in services:
        flows(f"{service} was replaced by a rolling upgrade", partial(_replace, "restart", service))
    flows("inference went back to what it was before", partial(_replace, "undo", "inference"))
    flows("execution went on from the older ledger of the backup", lambda: _restore(str(backup)))
    if several_nodes():
        flows("a node was drained of services", _drain)
    else:
        skipped.append("no node was drained: there is one")
    if works("kubectl", "get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes"):
        flows("inference was scaled by its autoscaler, and back", _scale)
    else:
        skipped.append("no autoscaler: there is no metrics server (metrics.k8s.io)")


def several_nodes() -> bool:
    """Whether pods can go elsewhere."""
    return len(nodes()) > 1


def _in_database(command: str) -> str:
    return kubectl("exec", "timescaledb-0", "--", "sh", "-ec", command)


def _kill() -> None:
    kubectl("delete", "pod", "execution-0", "--grace-period=0", "--force")
    rolled_out("execution")


def _replace(how: str, service: str) -> None:
    kubectl("rollout", how, f"statefulset/{service}")
    rolled_out(service)


def _restore(backup: str) -> None:
    kubectl("scale", "statefulset/execution", "--replicas=0")
    kubectl("wait", "--for=delete", "pod/execution-0", "--timeout=90s", timeout_s=100)
    _in_database(f"{_RESTORE} {backup}")
    kubectl("scale", "statefulset/execution", "--replicas=1")
    rolled_out("execution")


def _drain() -> None:
    """Empty the node that execution is on of services; the servers, which have one pod each, stay."""
    node = kubectl("get", "pod", "execution-0", "--output=jsonpath={.spec.nodeName}")
    if tied := _tied():
        say(f"{', '.join(sorted(tied))}: bound by volumes to one node, and back when it is")
    try:
        kubectl(
            "drain",
            node,
            "--delete-emptydir-data",
            "--ignore-daemonsets",
            "--pod-selector=tradeloop/kind=service",
            "--timeout=120s",
            timeout_s=130,
        )
        for name in sorted(set(_services()) - tied):
            rolled_out(name)
        if kubectl("get", "pod", "execution-0", "--output=jsonpath={.spec.nodeName}") == node:
            raise Failed(f"execution is on {node} still")
    finally:
        run(["kubectl", "uncordon", node])
    for name in tied:
        rolled_out(name)


def _tied() -> set[str]:
    """The services with a volume that only some nodes can mount."""
    found = json.loads(kubectl("get", "persistentvolumes", "--output=json"))["items"]
    bound = {each["spec"].get("claimRef", {}).get("name") for each in found if "nodeAffinity" in each["spec"]}
    sets = json.loads(kubectl("get", "statefulsets", "--selector=tradeloop/kind=service", "--output=json"))["items"]
    return {
        each["metadata"]["name"]
        for each in sets
        for volume in each["spec"]["template"]["spec"]["volumes"]
        if volume.get("persistentVolumeClaim", {}).get("claimName") in bound
    }


def _services() -> list[str]:
    selector = "--selector=tradeloop/kind=service"
    return [name.split("/")[1] for name in kubectl("get", "statefulsets", selector, "--output=name").split()]


def _scale() -> None:
    """Let the autoscaler of components/autoscaling add a pod, from a use of processors that any work has."""
    scaler: dict[str, Any] = yaml.safe_load(_AUTOSCALER.read_text())
    scaler["metadata"]["namespace"] = NAMESPACE
    scaler["spec"]["maxReplicas"] = 2
    scaler["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] = 1
    scaler["spec"]["behavior"]["scaleUp"]["stabilizationWindowSeconds"] = 0
    fed(json.dumps(scaler), "apply", "--server-side")
    try:
        deadline = time.monotonic() + _SCALED_TIMEOUT_S
        while kubectl("get", "statefulset/inference", "--output=jsonpath={.spec.replicas}") != "2":
            if time.monotonic() > deadline:
                said = kubectl("describe", "hpa/inference")
                raise Failed(f"the autoscaler did not add a pod within {_SCALED_TIMEOUT_S:g} s:\n{said[-3000:]}")
            time.sleep(1.0)
        rolled_out("inference")
    finally:
        kubectl("delete", "hpa/inference")
        kubectl("scale", "statefulset/inference", "--replicas=1")
    kubectl("wait", "--for=delete", "pod/inference-1", "--timeout=90s", timeout_s=100)
    rolled_out("inference")
