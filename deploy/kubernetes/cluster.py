"""A Kubernetes cluster as `kubectl` reaches it: whatever KUBECONFIG names."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from deploy.compose_test.engine import Failed, run, say, works

NAMESPACE = "tradeloop"
LOADER = "TRADELOOP_K8S_LOAD"
"""The environment variable with the command that gives an archive of images to the nodes: its last argument."""
TEST_LABEL = "tradeloop-test"
"""A namespace of this label may be removed."""
_VOLUMES = "tradeloop-volumes"


def kubectl(*arguments: str, timeout_s: float = 60.0, namespace: str = NAMESPACE) -> str:
    """The output of kubectl. Raises `Failed` with its end."""
    return run(["kubectl", f"--namespace={namespace}", *arguments], timeout_s=timeout_s)


def fed(document: str, *arguments: str, timeout_s: float = 60.0, namespace: str = NAMESPACE) -> str:
    """The output of kubectl that reads manifests from its input. Raises `Failed`."""
    done = subprocess.run(
        ["kubectl", f"--namespace={namespace}", *arguments, "--filename=-"],
        input=document,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        raise Failed(f"`kubectl {' '.join(arguments)}` failed:\n{(done.stdout + done.stderr)[-6000:]}")
    return done.stdout + done.stderr


def answers() -> str:
    """The version of the cluster's server. Raises `Failed` with what to do where none answers."""
    try:
        version = json.loads(run(["kubectl", "version", "--output=json"]))
    except Failed as error:
        raise Failed(f"no cluster answers: set KUBECONFIG to one's that may be used for a test ({error})") from None
    return str(version["serverVersion"]["gitVersion"])


def load(images: Sequence[str]) -> None:
    """Give the nodes images of this machine's engine. Raises `Failed` where nothing says how."""
    context = run(["kubectl", "config", "current-context"]).strip()
    known = {"kind-": ["kind", "load", "image-archive", f"--name={context.removeprefix('kind-')}"]}
    known |= {"minikube": ["minikube", "image", "load"], "k3d-": ["k3d", "image", "import", "-c", context[4:]]}
    command = next((words for name, words in known.items() if context.startswith(name)), None)
    if LOADER in os.environ:
        command = shlex.split(os.environ[LOADER])
    if command is None:
        raise Failed(f"{context}: set {LOADER} to the command that loads an archive of images into its nodes")
    archive = Path(os.environ.get("TMPDIR", "/tmp"), f"tradeloop-images-{os.getpid()}.tar")
    try:
        for image in images:
            run(["docker", "save", f"--output={archive}", image], timeout_s=900)
            run([*command, str(archive)], timeout_s=900)
            say(f"the nodes have {image}")
    finally:
        archive.unlink(missing_ok=True)


class Forward:
    """A port of a pod on a port of this machine, again and again where the pod is another one meanwhile."""

    def __init__(self, pod: str, remote: int, local: int) -> None:
        self._command = ["kubectl", f"--namespace={NAMESPACE}", "port-forward", f"pod/{pod}", f"{local}:{remote}"]
        self._stopped = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._go_on, name=f"forward {pod}", daemon=True)
        self._thread.start()

    def _go_on(self) -> None:
        while not self._stopped.is_set():
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            self._process.wait()
            self._stopped.wait(0.3)

    def close(self) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            if self._process is not None:
                self._process.terminate()
            self._thread.join(0.1)


@contextmanager
def forwarded(ports: Iterable[tuple[str, int, int]]) -> Iterator[None]:
    """Ports of pods, `(pod, its port, port here)`, for the time of the context."""
    with ExitStack() as stack:
        for pod, remote, local in ports:
            stack.callback(Forward(pod, remote, local).close)
        yield


def has_storage() -> bool:
    """Whether the cluster makes volumes by itself."""
    classes = json.loads(kubectl("get", "storageclasses", "--output=json"))["items"]
    mark = "storageclass.kubernetes.io/is-default-class"
    return any(each["metadata"].get("annotations", {}).get(mark) == "true" for each in classes)


def claims(manifests: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The sizes of the volumes that manifests claim, by the name of the claim."""
    found: dict[str, str] = {}
    for each in manifests:
        if each["kind"] == "PersistentVolumeClaim":
            found[each["metadata"]["name"]] = each["spec"]["resources"]["requests"]["storage"]
        for template in each.get("spec", {}).get("volumeClaimTemplates", ()):
            name = f"{template['metadata']['name']}-{each['metadata']['name']}-0"
            found[name] = template["spec"]["resources"]["requests"]["storage"]
    return found


def make_volumes(sizes: Mapping[str, str], image: str, folder: str) -> None:
    """Volumes for claims on a cluster that makes none: folders of a node, that any user may write to.

    They are made by a privileged pod of a namespace of its own. Where the other nodes do not see them, as those of one
    machine do, pods with volumes are bound to that node. `forget_volumes` removes all of it.
    """
    script = "".join(f"mkdir -p /node/{name} && chmod 0777 /node/{name}; " for name in sizes)
    fed(
        json.dumps(
            {"apiVersion": "v1", "kind": "List", "items": [_namespace(), _on_node("folders", script, image, folder)]}
        ),
        "apply",
        namespace=_VOLUMES,
    )
    kubectl("wait", "job/folders", "--for=condition=complete", "--timeout=120s", namespace=_VOLUMES, timeout_s=130)
    node = kubectl(
        *("get", "pods", "--selector=job-name=folders", "--output=jsonpath={.items[0].spec.nodeName}"),
        namespace=_VOLUMES,
    )
    bound: dict[str, Any] = {}
    first = f"{folder}/{next(iter(sizes))}"
    if blind := [other for other in nodes() if other != node and not _sees(other, first, image)]:
        say(f"{', '.join(blind)}: the folders are not seen there, pods with volumes stay on {node}")
        terms = [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]
        bound = {"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": terms}]}}}
    volumes = [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{NAMESPACE}-{name}", "labels": {"tradeloop/test": "true"}},
            "spec": {
                "capacity": {"storage": size},
                "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "",
                "claimRef": {"namespace": NAMESPACE, "name": name},
                "hostPath": {"path": f"{folder}/{name}", "type": "Directory"},
                **bound,
            },
        }
        for name, size in sizes.items()
    ]
    fed(json.dumps({"apiVersion": "v1", "kind": "List", "items": volumes}), "apply")


def nodes() -> list[str]:
    """The names of the cluster's nodes that take any pod; a control plane's often take none."""
    found = json.loads(kubectl("get", "nodes", "--output=json"))["items"]
    closed = ("NoSchedule", "NoExecute")
    return [
        each["metadata"]["name"]
        for each in found
        if not any(taint["effect"] in closed for taint in each["spec"].get("taints", ()))
    ]


def _sees(node: str, folder: str, image: str) -> bool:
    """Whether a folder that another node has is on this one too."""
    parent, below = Path(folder).parts[1], Path(*Path(folder).parts[2:])
    job = _on_node(f"look-{node}", f"test -d /node/{below} && echo seen || echo blind", image, f"/{parent}")
    job["spec"]["template"]["spec"]["nodeName"] = node
    fed(json.dumps(job), "apply", namespace=_VOLUMES)
    kubectl("wait", f"job/look-{node}", "--for=condition=complete", "--timeout=120s", namespace=_VOLUMES, timeout_s=130)
    return kubectl("logs", f"job/look-{node}", namespace=_VOLUMES).strip() == "seen"


def forget_volumes(image: str, folder: str) -> None:
    """Remove what `make_volumes` made, with what lies in the folders."""
    parent, name = folder.rsplit("/", 1)
    job = _on_node("clear", f"rm -rf /node/{name}", image, parent)
    try:
        fed(json.dumps(job), "apply", namespace=_VOLUMES)
        kubectl("wait", "job/clear", "--for=condition=complete", "--timeout=120s", namespace=_VOLUMES, timeout_s=130)
    except Failed as error:
        say(f"{folder} is left on the node: {error}")
    kubectl("delete", "persistentvolume", "--selector=tradeloop/test=true", "--ignore-not-found", timeout_s=120)
    kubectl("delete", "namespace", _VOLUMES, "--ignore-not-found", timeout_s=120)


def _namespace() -> dict[str, Any]:
    labels = {"pod-security.kubernetes.io/enforce": "privileged"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _VOLUMES, "labels": labels}}


def _on_node(name: str, script: str, image: str, folder: str) -> dict[str, Any]:
    container = {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-ec", script],
        "securityContext": {"runAsUser": 0},
        "volumeMounts": [{"name": "node", "mountPath": "/node"}],
    }
    volume = {"name": "node", "hostPath": {"path": folder, "type": "DirectoryOrCreate"}}
    pod = {"restartPolicy": "Never", "containers": [container], "volumes": [volume]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": _VOLUMES},
        "spec": {"backoffLimit": 0, "template": {"spec": pod}},
    }


def mine() -> None:
    """Remove the namespace of an earlier test. Raises `Failed` where it is not a test's: somebody trades there."""
    label = "{.metadata.labels." + TEST_LABEL.replace(".", "\\.") + "}"
    if works("kubectl", "get", "namespace", NAMESPACE):
        if kubectl("get", "namespace", NAMESPACE, f"--output=jsonpath={label}") != "true":
            raise Failed(f"namespace {NAMESPACE} is there, and not of a test: use another cluster, or delete it")
        gone()


def gone(timeout_s: float = 300.0) -> None:
    """Remove the namespace with all that is in it, and wait until it is gone."""
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false")
    kubectl("delete", "pods", "--all", "--grace-period=1", "--wait=false")  # nobody waits for their drain
    deadline = time.monotonic() + timeout_s
    while works("kubectl", "get", "namespace", NAMESPACE):
        if time.monotonic() > deadline:
            raise Failed(f"namespace {NAMESPACE} is still there")
        time.sleep(0.5)
