"""Apply, trade, upgrade, kill, compare, take down, on the cluster of KUBECONFIG: `make test-k8s`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from deploy.compose_test.compose import Compose, build
from deploy.compose_test.engine import ROOT, Failed, compose_command, engine, run, say, works
from deploy.compose_test.images import Stack, find_images
from deploy.compose_test.trade import (
    Ports,
    closed_to_each_other,
    closed_to_strangers,
    eventually,
    get,
    look,
    portfolio_of,
    trade,
)
from deploy.kubernetes.checks import SERVERS, hardened, walls
from deploy.kubernetes.cluster import (
    NAMESPACE,
    TEST_LABEL,
    answers,
    claims,
    fed,
    forget_volumes,
    forwarded,
    gone,
    has_storage,
    kubectl,
    load,
    make_volumes,
    mine,
)
from deploy.kubernetes.drills import READY_TIMEOUT_S, drill, rolled_out
from deploy.kubernetes.render import with_options
from deploy.kubernetes.secrets import passwords, write_all
from deploy.native.server import free_ports
from tradeloop.cli.client.client import Failed as RequestFailed
from tradeloop.cli.client.deployment import SERVICES
from tradeloop.cli.source import Source, open_source
from tradeloop.common.evaluation.parity import ParityBroken
from tradeloop.common.portfolio import portfolio_yaml
from tradeloop.common.strategy import load as load_strategy

FRAMES = 3000
"""The most that are replayed: bars flow until the drill is over, and a slow machine takes its time."""
SPEED = 3600.0 * 3
"""Three hours of bars a second."""
KAFKA_PORT = 9094
"""The broker tells clients outside to come back to localhost on this port."""
COMMAND_IMAGE = "tradeloop-command"


def main() -> int:
    """0 when the cluster did all that is asked of it. Nothing is left there either way."""
    began, skipped = time.monotonic(), list[str]()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that all is taken down
    try:
        say(f"cluster: Kubernetes {answers()}")
        with engine(), find_images() as stack, tempfile.TemporaryDirectory(prefix="tradeloop-k8s-") as folder:
            strategy = load_strategy("example")
            source = open_source((), strategy)
            trains = bool(stack.environment.get("TORCH_INDEX", "cpu"))
            if not trains:
                skipped.append("no training: PyTorch without CUDA cannot be had, and with it its image has 14 GB")
            services = tuple(name for name in SERVICES if trains or name != "training")
            overlay = _overlay(Path(folder), stack, source, portfolio_yaml(portfolio_of(source, strategy)), services)
            commit = run(["git", "-C", str(ROOT), "rev-parse", "HEAD"]).strip()
            _images(stack, services, commit)
            manifests = [each for each in yaml.safe_load_all(kubectl("kustomize", str(overlay))) if each]
            with _applied(overlay, manifests, source, services) as ports:
                look(ports, commit)
                closed_to_strangers(ports)
                closed_to_each_other(ports)
                hardened(services)
                walls(services, COMMAND_IMAGE)
                bars_path = f"/bars/{source.path.name}"
                interrupt = partial(drill, services, FRAMES, skipped)
                trade(ports, source, strategy, bars_path, FRAMES, interrupt, trains=trains, speed=SPEED)
        for each in skipped:
            say(f"not done: {each}")
        say(f"passed in {time.monotonic() - began:.0f} s")
    except (Failed, ParityBroken, RequestFailed) as error:
        print(f"test-k8s: {error}", file=sys.stderr)
        return 1
    return 0


def _overlay(folder: Path, stack: Stack, source: Source, portfolio: str, services: Sequence[str]) -> Path:
    """A copy of deploy/k8s with secrets, portfolio and images of the test; returns its overlay."""
    tree = folder / "k8s"
    shutil.copytree(ROOT / "deploy" / "k8s", tree, ignore=shutil.ignore_patterns("secrets"))
    local = tree / "overlays" / "local"
    write_all(local / "secrets")
    (local / "portfolios" / "eur-usd.yaml").write_text(portfolio)
    overlay = tree / "overlays" / "test"
    overlay.mkdir()
    kustomization: dict[str, Any] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../local"],
        "images": [],
        "labels": [{"pairs": {TEST_LABEL: "true"}}],
        "replicas": [{"name": name, "count": 0} for name in SERVICES if name not in services],
    }
    if len(stack.files) > 1:  # stand-ins take the places of the servers' images
        official = ("apache/kafka", "timescale/timescaledb", "redis")
        kustomization["images"] = [
            {"name": name, "newName": f"tradeloop-standin-{server}", "newTag": "latest"}
            for name, server in zip(official, SERVERS, strict=False)
        ]
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return overlay


def _images(stack: Stack, services: Sequence[str], commit: str) -> None:
    """Build what is built, and give all to the nodes."""
    example = (ROOT / "deploy" / ".env.example").read_text()
    secret = dict.fromkeys(re.findall(r"^(\w+_PASSWORD)=$", example, re.MULTILINE), "unused")
    compose = Compose(
        compose_command(stack.debian_image), stack.files, {**secret, **stack.environment, "COMMIT": commit}
    )
    build(compose, *services, "init", "mlflow", *(SERVERS[:3] if len(stack.files) > 1 else ()))
    images = yaml.safe_load(compose("config"))["services"]
    load([images[name]["image"] for name in (*SERVERS, "init", *services)])


@contextmanager
def _applied(
    overlay: Path, manifests: Sequence[Mapping[str, Any]], source: Source, services: Sequence[str]
) -> Iterator[Ports]:
    """The overlay on the cluster, ready, with its ports on this machine; gone in the end."""
    began, volumes = time.monotonic(), not has_storage()
    folder = f"/var/lib/tradeloop-test-{os.getpid()}"
    mine()
    try:
        if volumes:
            say("the cluster makes no volumes: folders of its node take their place")
            make_volumes(claims(manifests), COMMAND_IMAGE, folder)
        [namespace] = [each for each in manifests if each["kind"] == "Namespace"]
        fed(json.dumps(namespace), "apply", "--server-side")
        for name in ("staging", "production"):
            _accepted(overlay.parent / name)
        _accepted(with_options(overlay.parents[1], "production"))
        _collector_accepted(overlay.parents[1] / "logs")
        rendered = kubectl("kustomize", str(overlay))
        checked = fed(rendered, "apply", "--server-side", "--dry-run=server")
        if "would violate" in checked or "Warning" in checked:
            raise Failed(f"the server warns:\n{checked}")
        say(f"{len(manifests)} objects pass the server's validation, pods as `restricted` wants them")
        fed(rendered, "apply", "--server-side", timeout_s=120)
        wait = f"--timeout={READY_TIMEOUT_S}s"
        kubectl("wait", "job/init", "--for=condition=complete", wait, timeout_s=READY_TIMEOUT_S + 10)
        for name in (*SERVERS, *services):
            rolled_out(name)
        say(f"everything is ready, {time.monotonic() - began:.0f} s")
        fed(rendered, "diff", "--server-side", timeout_s=120)  # which fails where anything would change
        before = _generations()
        fed(rendered, "apply", "--server-side", timeout_s=120)
        if (after := _generations()) != before:
            raise Failed(f"to apply it again changes {sorted(dict(after.items() - before.items()))}")
        say(f"applied again: no generation of {len(before)} objects changed")
        kubectl("cp", str(source.path), f"ingest-0:/bars/{source.path.name}")
        numbers = dict(zip(("mlflow", *services), free_ports(1 + len(services)), strict=True))
        places = [("kafka-0", KAFKA_PORT, KAFKA_PORT), ("mlflow-0", 5000, numbers["mlflow"])]
        places += [(f"{service}-0", 8080, numbers[service]) for service in services]
        secret = {f"{name}_PASSWORD": each for name, each in passwords(overlay.parent / "local" / "secrets").items()}
        with forwarded(places):
            for service in services:
                eventually(f"a way to {service}", partial(_lives, numbers[service]), 60)
            yield Ports(KAFKA_PORT, numbers["mlflow"], {name: numbers[name] for name in services}, secret)
    except BaseException as error:
        say(f"failed: {error}")
        for show in (("get", "all", "--output=wide"), ("get", "events", "--sort-by=.lastTimestamp")):
            print(kubectl(*show)[-6000:])
        for name in (*SERVERS, *services):
            print(f"--- {name}", run(["sh", "-c", f"kubectl -n {NAMESPACE} logs {name}-0 --tail=30 2>&1 || true"]))
        raise
    finally:
        gone()
        if volumes:
            forget_volumes(COMMAND_IMAGE, folder)
        say("namespace and volumes are gone")


def _lives(port: int) -> bool:
    return bool(get(port, "/live")[0] == 200)


def _generations() -> dict[str, str]:
    """How often each object was changed: of its kind and name. What has no generations has the version of its data."""
    kinds = "statefulsets,services,jobs,poddisruptionbudgets,networkpolicies,persistentvolumeclaims,serviceaccounts"
    found: dict[str, str] = {}
    for each in json.loads(kubectl("get", f"{kinds},configmaps,secrets", "--output=json"))["items"]:
        metadata = each["metadata"]
        counted = "generation" if each["kind"] not in ("ConfigMap", "Secret", "ServiceAccount") else "resourceVersion"
        found[f"{each['kind']}/{metadata['name']}"] = str(metadata.get(counted))
    return found


def _accepted(folder: Path) -> None:
    """See that the server accepts an overlay that does not run here: what of it is of kinds that it knows."""
    rendered = yaml.safe_load_all(kubectl("kustomize", str(folder)))
    known = set(kubectl("api-versions").split())
    objects = [each for each in rendered if each["kind"] != "Namespace"]
    accepted = [each for each in objects if each["apiVersion"] in known]
    _dry_run(folder.name, accepted)
    others = sorted({each["apiVersion"] for each in objects} - known)
    unknown = f"; {len(objects) - len(accepted)} of kinds that it does not know: {', '.join(others)}" if others else ""
    say(f"{folder.name}: {len(accepted)} objects pass the server's validation{unknown}")


def _collector_accepted(folder: Path) -> None:
    """See that the server accepts what collects logs, in a namespace of its own. Nothing of it runs here."""
    objects = list(yaml.safe_load_all(kubectl("kustomize", str(folder))))
    [namespace] = [each for each in objects if each["kind"] == "Namespace"]
    name = namespace["metadata"]["name"]
    if works("kubectl", "get", "namespace", name):
        say(f"{name} is there: it is left alone")
        return
    fed(json.dumps(namespace), "create")
    try:
        _dry_run(name, objects, name)
        say(f"{name}: {len(objects)} objects pass the server's validation")
    finally:
        kubectl("delete", "namespace", name, timeout_s=120)


def _dry_run(name: str, objects: Sequence[Mapping[str, Any]], namespace: str = NAMESPACE) -> None:
    documents = yaml.safe_dump_all(objects)
    checked = fed(documents, "apply", "--server-side", "--dry-run=server", timeout_s=120, namespace=namespace)
    if "would violate" in checked or "Warning" in checked:
        raise Failed(f"{name}: the server warns:\n{checked}")


if __name__ == "__main__":
    sys.exit(main())
