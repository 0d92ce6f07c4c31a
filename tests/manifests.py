"""What may be wrong with the rendered objects of an overlay of deploy/k8s: `complaints` names all of it."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
from typer.main import get_command

from deploy.kubernetes.checks import HTTP_PORT
from tests.custom_kinds import SPECS, schema_of
from tests.test_compose import settings_class
from tradeloop.cli.client.deployment import SERVICES
from tradeloop.cli.main import app
from tradeloop.common.bus.port import PARTITIONS
from tradeloop.common.messages.topics import CATALOGUE, SERVICE_TOPICS
from tradeloop.common.settings import variables

Object = Mapping[str, Any]

OLDEST, NEWEST = "1.27.0", "1.37.0"
"""The releases of Kubernetes that objects must be valid for, as docs/kubernetes.md says."""
MADE_ELSEWHERE = {
    "tradeloop-cluster-ca-cert",  # by Strimzi
    "tradeloop-tls",  # by cert-manager, or a person
    "venues",  # credentials of venues, which need not be there
    "artifacts",  # keys of an object store, by a person or a vault
    "loki",  # a user's password, where Loki asks for one
}
_SECRET_WORDS = re.compile(r"PASSWORD|TOKEN|SECRET|ACCESS_KEY|://[^/]*:[^/]*@")
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
_COMMAND: Any = get_command(app)
_GPU = "nvidia.com/gpu"
_PATHS = {"/v1/predict"}
"""What of the services' HTTP may be reached from outside the cluster."""


def complaints(objects: Sequence[Object], *, released: bool = False, pinned: bool = False) -> list[str]:
    """All that is wrong. Images of a release have a tag or a digest, those of production a digest."""
    found = [
        *schema_faults(objects),
        *_names(objects),
        *_kafka(objects),
        *_settings(objects),
        *_ways(objects),
        *_jobs(objects),
    ]
    for owner, pod in pods(objects):
        found += [f"{owner}: {each}" for each in _pod(owner, pod, released=released, pinned=pinned)]
    for each in of_kind(objects, "Cluster"):
        if pinned and not _DIGEST.search(each["spec"]["imageName"]):
            found.append(f"{each['spec']['imageName']} is no digest")
    return found


def of_kind(objects: Iterable[Object], kind: str) -> list[Object]:
    """The objects of a kind."""
    return [each for each in objects if each["kind"] == kind]


def pods(objects: Iterable[Object]) -> Iterator[tuple[str, Object]]:
    """The templates of pods with the name of their owner."""
    for each in objects:
        spec = each["spec"]["jobTemplate"]["spec"] if each["kind"] == "CronJob" else each.get("spec", {})
        if each["kind"] in ("StatefulSet", "Job", "CronJob", "Deployment", "DaemonSet"):
            yield each["metadata"]["name"], spec["template"]


def containers(pod: Object) -> list[Object]:
    """All containers of a pod, those that run first included."""
    return [*pod.get("initContainers", ()), *pod["containers"]]


def environment(objects: Sequence[Object], container: Object) -> dict[str, str]:
    """The variables of a container by what ConfigMaps, Secrets and those that make Secrets say."""
    maps = {each["metadata"]["name"]: each["data"] for each in of_kind(objects, "ConfigMap")}
    secrets = _secrets(objects)
    told: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        if "configMapRef" in source:
            told |= maps.get(source["configMapRef"]["name"], {})
        else:
            told |= dict.fromkeys(secrets.get(source["secretRef"]["name"], ()), "")
    return told | {each["name"]: each.get("value", "") for each in container.get("env", ())}


def _secrets(objects: Sequence[Object]) -> dict[str, set[str]]:
    """The keys of each Secret by its name, be it there or made by an operator."""
    found = {each["metadata"]["name"]: set(each["data"]) for each in of_kind(objects, "Secret")}
    for each in of_kind(objects, "ExternalSecret"):
        target = each["spec"]["target"]
        found[target["name"]] = set(target["template"]["data"])
    return found


def schema_faults(objects: Sequence[Object]) -> Iterator[str]:
    """Objects that are not as the schemas of their kinds want them."""
    for each in objects:
        yield from _faults(json.dumps(each, sort_keys=True))


@cache  # most objects are the same in every overlay, and in what a test changes
def _faults(text: str) -> Sequence[str]:
    each = json.loads(text)
    name, key = f"{each['kind']}/{each['metadata']['name']}", (each["apiVersion"], each["kind"])
    if key in SPECS:
        found = jsonschema.Draft202012Validator(schema_of(*key)).iter_errors(each)
        return [f"{name}: {error.json_path}: {error.message}" for error in found]
    faults = []
    for version in (OLDEST, NEWEST):
        try:
            kubernetes_validate.validate(each, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            faults.append(f"{name}, {version}: {error.message}")
        except kubernetes_validate.SchemaNotFoundError as error:
            faults.append(f"{name}, {version}: no schema: {error}")
    return faults


def _pod(owner: str, template: Object, *, released: bool, pinned: bool) -> Iterator[str]:
    spec = template["spec"]
    if spec.get("hostNetwork") or spec.get("hostPID") or spec.get("hostIPC"):
        yield "it shares namespaces of its node"
    if any("hostPath" in volume for volume in spec.get("volumes", ())):
        yield "it mounts a path of its node"
    if spec.get("automountServiceAccountToken") is not False or spec.get("enableServiceLinks") is not False:
        yield "it is given a token, or variables of services"
    everybody = spec.get("securityContext", {})
    if not everybody.get("runAsNonRoot") or not everybody.get("runAsUser"):
        yield "it may run as root"
    if everybody.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "seccomp does not filter"
    if owner in SERVICES and "priorityClassName" not in spec:
        yield "it has no priority"
    for each in containers(spec):
        security = each.get("securityContext", {})
        if security.get("allowPrivilegeEscalation") is not False or security.get("capabilities") != {"drop": ["ALL"]}:
            yield "it may gain privileges, or has capabilities"
        if security.get("readOnlyRootFilesystem") is not True and owner != "kafka":
            yield "its root can be written"
        bounds = [set(each["resources"].get(bound, ())) - {_GPU} for bound in ("requests", "limits")]
        if any(bound != {"cpu", "memory"} for bound in bounds):
            yield "requests or limits are missing"
        if _GPU in each["resources"].get("limits", ()) and "TRAINING_DEVICE" not in [e["name"] for e in each["env"]]:
            yield "it holds a GPU and does not compute on it"
        if owner != "init" and each in spec["containers"] and "readinessProbe" not in each:
            yield "nobody asks whether it is ready"
        if released and (":" not in each["image"].split("/")[-1] or each["image"].endswith(":latest")):
            yield f"{each['image']} is whatever is the latest"
        if pinned and not _DIGEST.search(each["image"]):
            yield f"{each['image']} is no digest"


def _jobs(objects: Sequence[Object]) -> Iterator[str]:
    for each in of_kind(objects, "CronJob"):
        if each["spec"]["concurrencyPolicy"] != "Forbid":
            yield f"CronJob/{each['metadata']['name']}: it may run twice at once"


def _names(objects: Sequence[Object]) -> Iterator[str]:
    """What is named and is not there, and what is there and nobody names."""
    there = {(each["kind"], each["metadata"]["name"]) for each in objects}
    there |= {("Secret", name) for name in _secrets(objects)}
    named: set[tuple[str, str]] = set()
    for owner, template in pods(objects):
        spec = template["spec"]
        if "serviceAccountName" in spec:
            named.add(("ServiceAccount", spec["serviceAccountName"]))
        if "priorityClassName" in spec:
            named.add(("PriorityClass", spec["priorityClassName"]))
        for volume in spec.get("volumes", ()):
            named |= {("ConfigMap", volume[kind]["name"]) for kind in ("configMap",) if kind in volume}
            named |= {("Secret", volume[kind]["secretName"]) for kind in ("secret",) if kind in volume}
            claims = [volume[kind]["claimName"] for kind in ("persistentVolumeClaim",) if kind in volume]
            named |= {("PersistentVolumeClaim", claim) for claim in claims}
        for container in containers(spec):
            for source in container.get("envFrom", ()):
                [(kind, reference)] = source.items()
                named.add(({"configMapRef": "ConfigMap", "secretRef": "Secret"}[kind], reference["name"]))
            for one in container.get("env", ()):
                key = one.get("valueFrom", {}).get("secretKeyRef")
                if key and key["key"] not in _secrets(objects).get(key["name"], ()):
                    yield f"{owner}: no Secret {key['name']} has {key['key']}"
    for each in of_kind(objects, "Cluster"):
        named.add(("Secret", each["spec"]["bootstrap"]["initdb"]["secret"]["name"]))
        named |= {("Secret", role["passwordSecret"]["name"]) for role in each["spec"]["managed"]["roles"]}
    secrets = _secrets(objects)
    for each in of_kind(objects, "KafkaUser"):
        key = each["spec"]["authentication"]["password"]["valueFrom"]["secretKeyRef"]
        if key["key"] not in secrets.get(key["name"], ()):
            yield f"KafkaUser/{each['metadata']['name']}: no Secret {key['name']} has {key['key']}"
    for each in of_kind(objects, "SecretStore"):
        [provider] = each["spec"]["provider"].values()
        [way] = provider["auth"].values()
        named.add(("ServiceAccount", way["serviceAccountRef"]["name"]))
    for each in of_kind(objects, "ExternalSecret"):
        reference = each["spec"]["secretStoreRef"]
        named.add((reference["kind"], reference["name"]))
        used = set(re.findall(r"\{\{ \.(\w+) \}\}", str(each["spec"]["target"]["template"]["data"])))
        if used != {one["secretKey"] for one in each["spec"]["data"]}:
            yield f"ExternalSecret/{each['metadata']['name']}: what it fetches is not what it says"
    for kind, name in sorted(named - there):
        if not (kind == "Secret" and name in MADE_ELSEWHERE):
            yield f"{kind}/{name} is named and not there"
    for kind, name in sorted(there - named):
        if kind in ("ConfigMap", "Secret", "ServiceAccount", "PersistentVolumeClaim", "PriorityClass"):
            yield f"{kind}/{name} is there and nobody names it"


@cache
def _mlflow_variables() -> str:
    """The source of MLflow that names its variables; to import it takes seconds."""
    found = importlib.util.find_spec("mlflow")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).with_name("environment_variables.py").read_text()


def _settings(objects: Sequence[Object]) -> Iterator[str]:
    """Variables that a service does not read, secrets among what is none, and paths that are not mounted."""
    maps = of_kind(objects, "ConfigMap")
    portfolios = {name for each in maps if each["metadata"]["name"].startswith("portfolios") for name in each["data"]}
    asked = [
        # What runs before a service is the command, as the job `init` is.
        (owner if container in template["spec"]["containers"] else "init", container)
        for owner, template in pods(objects)
        for container in containers(template["spec"])
        if owner in (*SERVICES, "init")
    ]
    for owner, container in asked:
        told = environment(objects, container)
        kind = settings_class(owner)
        prefix = str(kind.model_config["env_prefix"])
        readable = dict(variables(kind, prefix))
        for name in told:
            if name.startswith(prefix) and name not in readable and not readable.get(name.rpartition("__")[0]):
                yield f"{owner}: {name} is read by nobody"
        mounted = [each["mountPath"] for each in container["volumeMounts"]]
        for name, value in told.items():
            if value.startswith("/") and not any(value == path or value.startswith(f"{path}/") for path in mounted):
                yield f"{owner}: {name}={value} is in no volume"
        given = [str(each).rpartition("=")[2] for each in container.get("args", ())]
        yield from (
            f"{owner}: {path} is in no ConfigMap"
            for path in given
            if path.startswith("/portfolios/") and path.rpartition("/")[2] not in portfolios
        )
        port = f"{prefix}HTTP__PORT"
        if owner in SERVICES and told.get(port) != str(HTTP_PORT):
            yield f"{owner}: {port} is not {HTTP_PORT}"
        if container.get("command") == ["tradeloop"]:
            command, *options = container["args"]
            known = {name for one in _COMMAND.commands[command].params for name in (*one.opts, *one.secondary_opts)}
            yield from (
                f"{owner}: {each} is no option of {command}" for each in options if each.partition("=")[0] not in known
            )
    for each in of_kind(objects, "ConfigMap"):
        for name, value in each["data"].items():
            if name.startswith("MLFLOW_") and f'"{name}"' not in _mlflow_variables():
                yield f"ConfigMap/{each['metadata']['name']}: {name} is read by nobody"
            if "\n" not in value and _SECRET_WORDS.search(f"{name}={value}"):
                yield f"ConfigMap/{each['metadata']['name']}: {name} is a secret"


def _kafka(objects: Sequence[Object]) -> Iterator[str]:
    """Topics, groups and variables of those who scale, and the partitions that bound them."""
    first = {owner: template["spec"]["containers"][0] for owner, template in pods(objects)}
    for each in of_kind(objects, "HorizontalPodAutoscaler"):
        if each["spec"]["maxReplicas"] > PARTITIONS:
            yield f"{each['metadata']['name']} may have more replicas than partitions"
    for each in of_kind(objects, "ScaledObject"):
        name, spec = each["metadata"]["name"], each["spec"]
        if spec["maxReplicaCount"] > PARTITIONS:
            yield f"{name} may have more replicas than partitions"
        if spec["scaleTargetRef"]["name"] not in first:
            yield f"{name} scales nothing"
            continue
        told = environment(objects, first[spec["scaleTargetRef"]["name"]])
        for trigger in spec["triggers"]:
            metadata = trigger["metadata"]
            if metadata["topic"] not in SERVICE_TOPICS.get(metadata["consumerGroup"], ()):
                yield f"{name}: group {metadata['consumerGroup']} does not read {metadata['topic']}"
            asked = [metadata["bootstrapServersFromEnv"]]
            for other in of_kind(objects, "TriggerAuthentication"):
                if other["metadata"]["name"] == trigger["authenticationRef"]["name"]:
                    asked += [one["name"] for one in other["spec"]["env"]]
            if len(asked) != 3 or set(asked) - set(told):
                yield f"{name}: {asked} are not what its service is told"
    scaled = {each["spec"]["scaleTargetRef"]["name"] for each in of_kind(objects, "ScaledObject")}
    scaled |= {each["spec"]["scaleTargetRef"]["name"] for each in of_kind(objects, "HorizontalPodAutoscaler")}
    for each in of_kind(objects, "StatefulSet"):
        if ("replicas" in each["spec"]) == (each["metadata"]["name"] in scaled):
            yield f"{each['metadata']['name']}: its number of pods is said here and by who scales it, or by nobody"
    for each in of_kind(objects, "KafkaTopic"):
        name = each["spec"]["topicName"]
        if name not in CATALOGUE and not re.search(r"\.(retry|dlq)\.\w+$", name):
            yield f"{name} is no topic"


def _ways(objects: Sequence[Object]) -> Iterator[str]:
    """Ports, paths and labels by which pods are reached: of Services, routes, monitors, policies and budgets."""
    labels: dict[str, Object] = {owner: template["metadata"]["labels"] for owner, template in pods(objects)}
    ports = {
        (owner, key): True
        for owner, template in pods(objects)
        for container in template["spec"]["containers"]
        for one in container.get("ports", ())
        for key in (one["name"], one["containerPort"])
    }

    def selected(selector: Object) -> list[str]:
        return [owner for owner, own in labels.items() if selector.items() <= own.items()]

    offered: dict[tuple[str, Any], bool] = {}
    for each in of_kind(objects, "Service"):
        name = each["metadata"]["name"]
        if not selected(each["spec"]["selector"]):
            yield f"Service/{name} selects no pod"
        for one in each["spec"]["ports"]:
            offered[name, one["port"]] = True
            yield from (
                f"Service/{name}: {owner} has no port {one['targetPort']}"
                for owner in selected(each["spec"]["selector"])
                if (owner, one["targetPort"]) not in ports
            )
    for each in of_kind(objects, "PodDisruptionBudget"):
        if selected(each["spec"]["selector"]["matchLabels"]) != [each["metadata"]["name"]]:
            yield f"PodDisruptionBudget/{each['metadata']['name']} is not of its pods"
    budgets = {each["metadata"]["name"] for each in of_kind(objects, "PodDisruptionBudget")}
    kept = {each["metadata"]["name"] for each in of_kind(objects, "StatefulSet")}
    for service in set(SERVICES) - budgets:
        if service not in kept and service in labels:
            continue  # a job, which may be interrupted and is repeated
        yield f"{service} has no PodDisruptionBudget"
    for each in of_kind(objects, "ServiceMonitor"):
        watched = {
            other["metadata"]["name"]
            for other in of_kind(objects, "Service")
            if each["spec"]["selector"]["matchLabels"].items() <= other["metadata"]["labels"].items()
            and any(one["name"] == each["spec"]["endpoints"][0]["port"] for one in other["spec"]["ports"])
        }
        if watched != set(SERVICES):
            yield f"ServiceMonitor/{each['metadata']['name']} watches {sorted(watched)}"
    for each in of_kind(objects, "HTTPRoute"):
        for rule in each["spec"]["rules"]:
            for match in rule.get("matches", ()):
                if match["path"]["value"] not in _PATHS:
                    yield f"HTTPRoute/{each['metadata']['name']}: {match['path']['value']} is not for the world"
            for backend in rule.get("backendRefs", ()):
                if (backend["name"], backend["port"]) not in offered:
                    yield f"HTTPRoute/{each['metadata']['name']}: no Service {backend['name']} with {backend['port']}"
                if backend["name"] in SERVICES and not rule.get("matches"):
                    yield f"HTTPRoute/{each['metadata']['name']} opens all of {backend['name']}"
    uses = {label for own in labels.values() for label in own if label.startswith("tradeloop/uses-")}
    opened = {
        label
        for each in of_kind(objects, "NetworkPolicy")
        for label in each["spec"]["podSelector"].get("matchLabels", ())
        if label.startswith("tradeloop/uses-")
    }
    yield from (f"{label}: a pod says it, or a policy, and not both" for label in sorted(uses ^ opened))
    for each in of_kind(objects, "NetworkPolicy"):
        spec = each["spec"]
        for rule in spec.get("ingress", ()):
            for one in rule.get("ports", ()):
                for owner in selected(spec["podSelector"].get("matchLabels", {})):
                    if (owner, one["port"]) not in ports:
                        yield f"NetworkPolicy/{each['metadata']['name']}: {owner} has no port {one['port']}"
