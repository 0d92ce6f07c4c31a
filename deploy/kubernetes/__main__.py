"""Apply, trade, upgrade, kill, compare, take down, on the cluster of KUBECONFIG: `make test-k8s`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from deploy.compose_test.compose import Compose, build
from deploy.compose_test.engine import ROOT, Failed, compose_command, engine, run, say
from deploy.compose_test.images import Stack, find_images
from deploy.compose_test.trade import Ports, closed_to_each_other, closed_to_strangers, look, portfolio_of, trade
from deploy.kubernetes.cluster import (
    NAMESPACE,
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
)
from deploy.kubernetes.secrets import passwords, write_all
from deploy.native.server import free_ports
from tradeloop.cli.client.client import Failed as RequestFailed
from tradeloop.cli.client.deployment import SERVICES
from tradeloop.cli.source import Source, open_source
from tradeloop.common.evaluation.parity import ParityBroken
from tradeloop.common.portfolio import portfolio_yaml
from tradeloop.common.strategy import load as load_strategy

FRAMES = 1500
KAFKA_PORT = 9094
"""The broker tells clients outside to come back to localhost on this port."""
READY_TIMEOUT_S = 600
COMMAND_IMAGE = "tradeloop-command"
SERVERS = ("kafka", "timescaledb", "redis", "mlflow")
HARDENED = (
    "import os, pathlib; status = dict(line.split(':', 1) for line in open('/proc/self/status').read().splitlines());"
    "said = [os.getuid(), int(status['CapEff'], 16), int(status['NoNewPrivs']), int(status['Seccomp'])];"
    "\ntry: pathlib.Path('/opt/written').touch()\nexcept OSError as error: said.append(error.errno)\nprint(said)"
)
"""Prints user, capabilities, whether no privileges can be gained, the mode of seccomp, and the error of a write."""
CONNECT = "import socket; socket.create_connection(('{host}', {port}), timeout=4).close(); print('open')"
SERVER_PORTS = {"kafka": 9092, "timescaledb": 5432, "redis": 6379, "mlflow": 5000}
ARROWS = {
    "ingest": {"kafka", "timescaledb"},
    "preprocess": {"kafka", "timescaledb", "redis"},
    "training": {"kafka", "timescaledb", "redis", "mlflow"},
    "inference": {"kafka", "timescaledb", "redis", "mlflow"},
    "execution": {"kafka", "timescaledb"},
}
"""The servers that each service uses, as docs/architecture.md draws them."""


def main() -> int:
    """0 when the cluster did all that is asked of it. Nothing is left there either way."""
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that all is taken down
    try:
        say(f"cluster: Kubernetes {answers()}")
        with engine(), find_images() as stack, tempfile.TemporaryDirectory(prefix="tradeloop-k8s-") as folder:
            strategy = load_strategy("example")
            source = open_source((), strategy)
            trains = bool(stack.environment.get("TORCH_INDEX", "cpu"))
            if not trains:
                say("PyTorch without CUDA cannot be had: training, an image of 14 GB with it, is left out")
            services = tuple(name for name in SERVICES if trains or name != "training")
            overlay = _overlay(Path(folder), stack, source, portfolio_yaml(portfolio_of(source, strategy)), services)
            _images(stack, services)
            manifests = [each for each in yaml.safe_load_all(kubectl("kustomize", str(overlay))) if each]
            with _applied(overlay, manifests, source, services) as ports:
                look(ports, run(["git", "-C", str(ROOT), "rev-parse", "HEAD"]).strip())
                closed_to_strangers(ports)
                closed_to_each_other(ports)
                _hardened(services)
                _walls(services)
                bars_path = f"/bars/{source.path.name}"
                trade(ports, source, strategy, bars_path, FRAMES, lambda: _interrupt(services), trains=trains)
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


def _images(stack: Stack, services: Sequence[str]) -> None:
    """Build what is built, and give all to the nodes."""
    secret = dict.fromkeys(("POSTGRES_PASSWORD", "KAFKA_PASSWORD", "MLFLOW_PASSWORD", "REDIS_PASSWORD"), "unused") | {
        f"{name.upper()}_PASSWORD": "unused" for name in SERVICES
    }
    commit = run(["git", "-C", str(ROOT), "rev-parse", "HEAD"]).strip()
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
    gone()
    try:
        if volumes:
            say("the cluster makes no volumes: folders of its node take their place")
            make_volumes(claims(manifests), COMMAND_IMAGE, f"/var/lib/tradeloop-test-{os.getpid()}")
        [namespace] = [each for each in manifests if each["kind"] == "Namespace"]
        fed(json.dumps(namespace), "apply", "--server-side")
        rendered = kubectl("kustomize", str(overlay))
        checked = fed(rendered, "apply", "--server-side", "--dry-run=server")
        if "would violate" in checked or "Warning" in checked:
            raise Failed(f"the server warns:\n{checked}")
        say(f"{len(manifests)} objects pass the server's validation, pods as `restricted` wants them")
        fed(rendered, "apply", "--server-side", timeout_s=120)
        wait = f"--timeout={READY_TIMEOUT_S}s"
        kubectl("wait", "job/init", "--for=condition=complete", wait, timeout_s=READY_TIMEOUT_S + 10)
        for name in (*SERVERS, *services):
            _rolled_out(name)
        say(f"everything is ready, {time.monotonic() - began:.0f} s")
        fed(rendered, "diff", "--server-side", timeout_s=120)  # which fails where anything would change
        say("to apply it again changes nothing")
        kubectl("cp", str(source.path), f"ingest-0:/bars/{source.path.name}")
        numbers = dict(zip(("mlflow", *services), free_ports(1 + len(services)), strict=True))
        places = [("kafka-0", KAFKA_PORT, KAFKA_PORT), ("mlflow-0", 5000, numbers["mlflow"])]
        places += [(f"{service}-0", 8080, numbers[service]) for service in services]
        secret = {f"{name}_PASSWORD": each for name, each in passwords(overlay.parent / "local" / "secrets").items()}
        with forwarded(places):
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
            forget_volumes()
        say("namespace and volumes are gone")


def _rolled_out(name: str) -> None:
    kubectl("rollout", "status", f"statefulset/{name}", f"--timeout={READY_TIMEOUT_S}s", timeout_s=READY_TIMEOUT_S + 10)


def _hardened(services: Sequence[str]) -> None:
    """See that the containers are what their manifests say: nobody's user, no rights, a root that cannot be written."""
    for service in services:
        said = json.loads(kubectl("exec", f"{service}-0", "--", "python", "-c", HARDENED))
        if said != [10001, 0, 1, 2, 30]:
            raise Failed(f"{service}: user, capabilities, privileges, seccomp, write to the root: {said}")
    say("services run as user 10001, without capabilities, under seccomp, on a root that cannot be written")


def _walls(services: Sequence[str]) -> None:
    """See that each service reaches the servers that the architecture draws, and no other."""
    for service in services:
        for server, port in SERVER_PORTS.items():
            code = CONNECT.format(host=server, port=port)
            try:
                reached = "open" in kubectl("exec", f"{service}-0", "--", "python", "-c", code)
            except Failed as error:
                if "timed out" not in str(error):
                    raise
                reached = False
            if reached != (server in ARROWS[service]):
                raise Failed(f"{service} {'reaches' if reached else 'does not reach'} {server}")
    say("each service reaches the servers that it uses, and no other")


def _interrupt(services: Sequence[str]) -> None:
    """A rolling upgrade of each service, one after the other, and a pod that is killed."""
    kubectl("delete", "pod", "execution-0", "--grace-period=0", "--force")
    say("execution's pod was killed")
    _rolled_out("execution")
    for service in services:
        kubectl("rollout", "restart", f"statefulset/{service}")
        _rolled_out(service)
        say(f"{service} was replaced by a rolling upgrade")


if __name__ == "__main__":
    sys.exit(main())
