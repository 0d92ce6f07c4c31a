"""Looks at a running stack on a cluster: the rights of its containers, and the walls between its pods."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from deploy.compose_test.engine import Failed, say
from deploy.kubernetes.cluster import NAMESPACE, fed, kubectl

SERVERS = ("kafka", "timescaledb", "redis", "mlflow")
SERVER_PORTS = {"kafka": 9092, "timescaledb": 5432, "redis": 6379, "mlflow": 5000}
HTTP_PORT = 8080
ARROWS = {
    "ingest": {"kafka", "timescaledb"},
    "preprocess": {"kafka", "timescaledb", "redis"},
    "training": {"kafka", "timescaledb", "redis", "mlflow"},
    "inference": {"kafka", "timescaledb", "redis", "mlflow"},
    "execution": {"kafka", "timescaledb"},
    "mlflow": {"timescaledb"},
}
"""The servers that each pod uses, as docs/architecture.md draws them."""

_HARDENED = """
import json, os, pathlib
status = dict(line.split(':', 1) for line in open('/proc/self/status').read().splitlines())
said = [os.getuid(), int(status['CapEff'], 16), int(status['NoNewPrivs']), int(status['Seccomp'])]
for folder in ('/', '/opt', '/usr/bin', '/var/lib'):
    try:
        pathlib.Path(folder, 'written').touch()
        said.append(folder)
    except OSError as error:
        said.append(error.errno)
said.append(os.path.exists('/var/run/secrets/kubernetes.io'))
print(json.dumps(said))
"""
"""Prints user, capabilities, whether no privileges can be gained, the mode of seccomp, the errors of writes, and
whether there is a token for the API server."""
_KNOCK = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def opened(place):
    host, port = place.rsplit(':', 1)
    address = socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)[0][4]
    try:
        socket.create_connection(address, timeout=4).close()
    except OSError:
        return False
    return True
with ThreadPoolExecutor() as pool:
    print(json.dumps(dict(zip(sys.argv[1:], pool.map(opened, sys.argv[1:])))))
"""
"""Prints which of the places `host:port` let one in. A name that nobody knows is an error."""
_STRANGER = "tradeloop-stranger"
_SETTLED_S = 60.0
"""A network may take a moment until it holds a new pod, or a new label, to its policies."""
_EROFS = 30


def hardened(services: Sequence[str]) -> None:
    """See that the containers are what their manifests say: nobody's user, no rights, a root that cannot be written."""
    for service in services:
        said = json.loads(kubectl("exec", f"{service}-0", "--", "python", "-c", _HARDENED))
        if said != [10001, 0, 1, 2, *[_EROFS] * 4, False]:
            raise Failed(f"{service}: user, capabilities, privileges, seccomp, writes to the root, token: {said}")
        say(f"{service} runs as {kubectl('exec', f'{service}-0', '--', 'id').strip()}")
    say("no capability, no new privileges, seccomp filters, a root that cannot be written, no token")


def walls(services: Sequence[str], image: str) -> None:
    """See that each pod reaches what the architecture draws and nothing else, and that strangers reach nothing.

    `image` is one with Python, for the strangers.
    """
    places = {name: f"{name}:{port}" for name, port in SERVER_PORTS.items()}
    others = {name: f"{name}:{HTTP_PORT}" for name in services}
    api = "kubernetes.default.svc:443"
    for name in (*services, "mlflow"):
        used = {places[server] for server in ARROWS[name]}
        tried = {each for key, each in {**places, **others}.items() if key != name} | {api}
        _holds(name, f"{name}-0", NAMESPACE, dict.fromkeys(tried, False) | dict.fromkeys(used, True), 0.0)
        say(f"{name} reaches {', '.join(sorted(used))}, and none of {len(tried - used)} other places")
    everything = dict.fromkeys((*places.values(), *others.values()), False)
    with _stranger(NAMESPACE, image, {}):
        _holds("a pod without labels", _STRANGER, NAMESPACE, everything | {api: False}, _SETTLED_S)
    say("a pod without labels reaches nothing")
    _namespace({})
    try:
        away = {
            place.replace(":", f".{NAMESPACE}:"): opened
            for place, opened in {**everything, **dict.fromkeys(others.values(), False)}.items()
        }
        # The label that opens a server to pods of this namespace opens nothing to those of another.
        with _stranger(_STRANGER, image, {f"tradeloop/uses-{server}": "true" for server in SERVERS}):
            _holds("a pod of another namespace", _STRANGER, _STRANGER, away, _SETTLED_S)
            say("a pod of another namespace reaches nothing, whatever its labels say")
            _namespace({"tradeloop/monitors": "true"})
            away |= {place.replace(":", f".{NAMESPACE}:"): True for place in others.values()}
            _holds("a pod of a namespace that monitors", _STRANGER, _STRANGER, away, _SETTLED_S)
            say("one of a namespace that monitors reaches the services' HTTP, and no server")
    finally:
        kubectl("delete", "namespace", _STRANGER, "--ignore-not-found", "--timeout=60s", timeout_s=70)


def _holds(who: str, pod: str, namespace: str, expected: Mapping[str, bool], settled_s: float) -> None:
    """See that exactly the expected places let a pod in. Raises `Failed` with those that do not as they should."""
    deadline = time.monotonic() + settled_s
    while True:
        said = json.loads(kubectl("exec", pod, "--", "python", "-c", _KNOCK, *expected, namespace=namespace))
        wrong = [f"{'reaches' if said[place] else 'does not reach'} {place}" for place in expected
                 if said[place] != expected[place]]  # fmt: skip
        if not wrong:
            return
        if time.monotonic() > deadline:
            raise Failed(f"{who} {', '.join(wrong)}: does this cluster's network enforce policies?")
        time.sleep(1.0)


def _namespace(labels: Mapping[str, str]) -> None:
    metadata = {"name": _STRANGER, "labels": {"pod-security.kubernetes.io/enforce": "restricted", **labels}}
    fed(json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}), "apply", "--server-side")


@contextmanager
def _stranger(namespace: str, image: str, labels: Mapping[str, str]) -> Iterator[None]:
    """A pod that is none of ours, for the time of the context."""
    security: dict[str, Any] = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    container = {
        "name": _STRANGER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", "import time; time.sleep(600)"],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": _STRANGER, "namespace": namespace, "labels": {**labels}},
        "spec": {
            "containers": [container],
            "securityContext": security,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 0,
        },
    }
    fed(json.dumps(pod), "create", namespace=namespace)
    try:
        kubectl("wait", f"pod/{_STRANGER}", "--for=condition=Ready", "--timeout=60s", namespace=namespace, timeout_s=70)
        yield
    finally:
        kubectl("delete", "pod", _STRANGER, "--wait=true", namespace=namespace)
