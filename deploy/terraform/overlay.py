"""The overlay for a cluster that deploy/terraform made: `tofu output -json | python -m deploy.terraform.overlay`.

It is that of production with Kafka, PostgreSQL and the cache of AWS in the places of those that operators keep. What no
output says (digests of images, hosts, portfolios, sources) is to be made yours in it, as there.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from deploy.kubernetes.generate import external_secrets
from tradeloop.cli.client.deployment import SERVICES

FOLDER = Path(__file__).parent / "overlay"
PRODUCTION = Path(__file__).parents[1] / "k8s" / "overlays" / "production"
K8S = "../../k8s"
CERTIFICATES = "rds.pem"
"""The authorities that sign for RDS, which a person puts beside the overlay."""
_MOUNTED = f"/etc/rds/{CERTIFICATES}"
OWN = ("artifacts.yaml", "network.yaml", "secrets.yaml", "storage.yaml", "store.yaml")
_REPLACED = {"kafka", "redis", "valkey", "postgres", "external-secrets"}
"""Components of production that AWS takes the places of."""
_USERS = {"init": "tradeloop", **{service: service for service in SERVICES}}


def overlay(outputs: Mapping[str, Any]) -> dict[str, str]:
    """The text of each file of the overlay. Raises `KeyError` for an output that is missing."""
    production = yaml.safe_load((PRODUCTION / "kustomization.yaml").read_text())
    postgres = bool(outputs["postgres_host"])
    replaced = _REPLACED if postgres else _REPLACED - {"postgres"}
    components = [each for each in production["components"] if each.rpartition("/")[2] not in replaced]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": production["namespace"],
        "resources": [f"{K8S}/base", *OWN],
        "components": [each.replace("../..", K8S) for each in components],
        "configMapGenerator": [
            *production["configMapGenerator"],
            *(
                [{"name": "rds", "files": [CERTIFICATES], "options": {"disableNameSuffixHash": True}}]
                if postgres
                else []
            ),
            *(_environment(name, outputs["kafka_bootstrap"]) for name in _USERS),
        ],
        "images": _images(production["images"], outputs["registry"]),
        "patches": [
            _artifacts_patch(outputs["artifacts_bucket"], outputs["region"]),
            *_patches(postgres),
            *(each for each in production["patches"] if not (postgres and _of_cnpg(each))),
        ],
    }
    files = {
        "artifacts.yaml": _text(_artifacts()),
        "kustomization.yaml": _text([kustomization]),
        "network.yaml": _text(_ways(outputs["servers_cidrs"], postgres)),
        "secrets.yaml": _text(_secrets(outputs, postgres)),
        "storage.yaml": _text(_storage(outputs["file_system"])),
        "store.yaml": _text(_store(outputs["region"], outputs["external_secrets_role"])),
    }
    return {name: f"# Made by `python -m deploy.terraform.overlay`.\n{text}" for name, text in files.items()}


def _environment(name: str, bootstrap: str) -> dict[str, Any]:
    """How a service reaches Kafka; the authorities that sign for MSK are among those of the system."""
    prefix = _USERS[name].upper()
    told = {"BOOTSTRAP_SERVERS": bootstrap, "SECURITY_PROTOCOL": "SASL_SSL", "SASL_MECHANISM": "SCRAM-SHA-512"}
    literals = [f"{prefix}_KAFKA__{setting}={value}" for setting, value in told.items()]
    return {"name": name, "behavior": "merge", "literals": literals}


def _images(images: Iterable[Mapping[str, str]], registry: str) -> list[dict[str, str]]:
    """The images of production from another registry; those that nobody builds here are not needed."""
    return [
        {**each, "newName": f"{registry}/{each['newName'].rpartition('/')[2]}"} for each in images if "newName" in each
    ]


def _of_cnpg(patch: Mapping[str, Any]) -> bool:
    return bool(patch["target"]["kind"] == "Cluster")


def _patches(postgres: bool) -> list[dict[str, Any]]:
    permit = [
        {
            "op": "replace",
            "path": "/spec/template/spec/containers/0/args/0",
            "value": "tradeloop db roles; tradeloop db migrate; tradeloop topics apply; "
            "tradeloop topics permit --administrator tradeloop",
        }
    ]
    shared = [{"op": "add", "path": "/spec/storageClassName", "value": "shared"}]
    found = [
        _patch({"kind": "Job", "name": "init"}, permit),
        _patch({"kind": "PersistentVolumeClaim", "name": "features|bars"}, shared),
        # The certificate of MSK is signed by an authority that the scaler knows.
        _patch({"kind": "TriggerAuthentication"}, [{"op": "remove", "path": "/spec/secretTargetRef"}]),
    ]
    if postgres:
        mount = [
            {
                "op": "add",
                "path": "/spec/template/spec/volumes/-",
                "value": {"name": "rds", "configMap": {"name": "rds"}},
            },
            {
                "op": "add",
                "path": "/spec/template/spec/containers/0/volumeMounts/-",
                "value": {"name": "rds", "mountPath": "/etc/rds", "readOnly": True},
            },
        ]
        targets = ({"kind": "StatefulSet", "name": f"{'|'.join(SERVICES)}|mlflow"}, {"kind": "Job", "name": "init"})
        found += [_patch(target, mount) for target in targets]
    return found


def _artifacts_patch(bucket: str, region: str) -> dict[str, Any]:
    """MLflow with its artifacts in the bucket, as the role of its ServiceAccount: there are no keys."""
    container = "/spec/template/spec/containers/0"
    operations: list[dict[str, Any]] = [
        {"op": "test", "path": f"{container}/args/5", "value": "--artifacts-destination=/var/lib/tradeloop/mlflow"},
        {"op": "replace", "path": f"{container}/args/5", "value": f"--artifacts-destination=s3://{bucket}/artifacts"},
        {"op": "add", "path": f"{container}/env/-", "value": {"name": "AWS_DEFAULT_REGION", "value": region}},
        {"op": "add", "path": "/spec/template/spec/serviceAccountName", "value": "mlflow"},
    ]
    return _patch({"kind": "StatefulSet", "name": "mlflow"}, operations)


def _artifacts() -> list[dict[str, Any]]:
    """The account of MLflow and its ways: to the agent on its node, which gives it credentials, and to S3."""
    private = ["10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"]
    ways = [
        {"to": [{"ipBlock": {"cidr": "169.254.170.23/32"}}], "ports": [{"port": 80, "protocol": "TCP"}]},
        {
            "to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": private}}],
            "ports": [{"port": 443, "protocol": "TCP"}],
        },
    ]
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "mlflow"},
            "automountServiceAccountToken": False,
        },
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "to-artifacts-of-aws"},
            "spec": {
                "podSelector": {"matchLabels": {"app.kubernetes.io/name": "mlflow"}},
                "policyTypes": ["Egress"],
                "egress": ways,
            },
        },
    ]


def _patch(target: Mapping[str, str], operations: list[dict[str, Any]]) -> dict[str, Any]:
    return {"target": dict(target), "patch": yaml.safe_dump(operations, sort_keys=False, width=1000)}


def _secrets(outputs: Mapping[str, Any], postgres: bool) -> list[dict[str, Any]]:
    """The ExternalSecrets with the addresses of AWS, which are spoken to by TLS and by their names."""
    found = []
    for each in external_secrets():
        name, template = each["metadata"]["name"], each["spec"]["target"]["template"]["data"]
        if name == "redis" or (name == "timescaledb" and postgres):
            continue  # what their own pods would be told
        for key, value in template.items():
            text = re.sub(r'(redis):6379,([^"]*)"', rf'{outputs["cache_host"]}:6379,\2,ssl=true"', value)
            if postgres:
                query = f"?sslmode=verify-full&sslrootcert={_MOUNTED}"
                text = re.sub(r"@timescaledb:5432/(\w+)", rf"@{outputs['postgres_host']}:5432/\1{query}", text)
            template[key] = text
        for one in each["spec"]["data"]:
            one["remoteRef"]["key"] = outputs["secret"]
        found.append(each)
    return found


def _ways(networks: Iterable[str], postgres: bool) -> list[dict[str, Any]]:
    """Policies that open the servers' networks to pods that use them."""
    ports = {"kafka": 9096, "redis": 6379, **({"timescaledb": 5432} if postgres else {})}
    return [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": f"to-{server}-of-aws"},
            "spec": {
                "podSelector": {"matchLabels": {f"tradeloop/uses-{server}": "true"}},
                "policyTypes": ["Egress"],
                "egress": [
                    {
                        "to": [{"ipBlock": {"cidr": network}} for network in networks],
                        "ports": [{"port": port, "protocol": "TCP"}],
                    }
                ],
            },
        }
        for server, port in ports.items()
    ]


def _storage(file_system: str) -> list[dict[str, Any]]:
    """Volumes of several pods on the file system, each a folder of its own, and those of one pod on encrypted disks."""
    shared = {
        "provisioningMode": "efs-ap",
        "fileSystemId": file_system,
        "directoryPerms": "700",
        "uid": "10001",
        "gid": "10001",
    }
    return [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": "shared"},
            "provisioner": "efs.csi.aws.com",
            "parameters": shared,
            "reclaimPolicy": "Retain",
        },
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": "disk", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
            "provisioner": "ebs.csi.aws.com",
            "parameters": {"type": "gp3", "encrypted": "true"},
            "volumeBindingMode": "WaitForFirstConsumer",
            "reclaimPolicy": "Retain",
        },
    ]


def _store(region: str, role: str) -> list[dict[str, Any]]:
    """The Secrets Manager, as the role of a ServiceAccount."""
    store, account = yaml.safe_load_all((PRODUCTION / "store.yaml").read_text())
    reference = {"name": account["metadata"]["name"]}
    aws = {"service": "SecretsManager", "region": region, "auth": {"jwt": {"serviceAccountRef": reference}}}
    store["spec"]["provider"] = {"aws": aws}
    account["metadata"]["annotations"] = {"eks.amazonaws.com/role-arn": role}
    return [store, account]


def _text(documents: Iterable[Mapping[str, Any]]) -> str:
    return yaml.safe_dump_all(documents, sort_keys=False, width=118)


def write(outputs: Mapping[str, Any], folder: Path) -> None:
    """Write the overlay. Portfolios and sources that are there stay."""
    files = overlay(outputs)
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    for name in ("portfolios", "sources.yaml"):
        if not (folder / name).exists():
            (shutil.copytree if name == "portfolios" else shutil.copy)(PRODUCTION / name, folder / name)


def main() -> int:
    """Write the overlay of the outputs that are told."""
    try:
        outputs = {name: each["value"] for name, each in json.load(sys.stdin).items()}
        write(outputs, FOLDER)
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        print(f"these are no outputs of deploy/terraform: {error!r}; give it `tofu output -json`", file=sys.stderr)
        return 2
    print(f"Wrote {FOLDER}; put {CERTIFICATES} there, and make images, hosts, portfolios and sources yours")
    return 0


if __name__ == "__main__":
    sys.exit(main())
