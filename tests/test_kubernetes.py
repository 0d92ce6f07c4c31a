"""deploy/k8s against what the services really read, and against docker-compose.yml. `make test-k8s` runs it."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.kubernetes.checks import ARROWS, SERVER_PORTS, SERVERS
from deploy.kubernetes.render import OPTIONS
from deploy.kubernetes.secrets import write_all
from tests.test_compose import SERVICES as COMPOSE
from tests.test_compose import settings_class
from tradeloop.cli.client.deployment import SERVICES
from tradeloop.cli.main import main as tradeloop
from tradeloop.common.sql.roles import GRANTS

ROOT = Path(__file__).parent.parent
K8S = ROOT / "deploy" / "k8s"
BASE, COMPONENTS, LOCAL = K8S / "base", K8S / "components", K8S / "overlays" / "local"
PATCHES = ("service.yaml", "server.yaml", "kustomization.yaml")


def documents(folder: Path) -> Iterator[dict[str, Any]]:
    """The objects of a folder's manifests, without patches."""
    for file in sorted(folder.glob("*.yaml")):
        if file.name not in PATCHES:
            yield from yaml.safe_load_all(file.read_text())


PARTS = ("servers", "redis", "mlflow")
OBJECTS = [*documents(BASE), *(each for part in PARTS for each in documents(COMPONENTS / part))]
SETS: Mapping[str, Any] = {each["metadata"]["name"]: each for each in OBJECTS if each["kind"] == "StatefulSet"}
JOB: Mapping[str, Any] = next(each for each in OBJECTS if each["kind"] == "Job")
SERVICE_PATCH, SERVER_PATCH = (
    yaml.safe_load(file.read_text())["spec"]["template"]["spec"]
    for file in (BASE / "service.yaml", COMPONENTS / "hardened" / "server.yaml")
)


def pod_of(name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (JOB if name == "init" else SETS[name])["spec"]["template"]["spec"]
    return found


def container(name: str) -> Mapping[str, Any]:
    [found] = pod_of(name)["containers"]
    return dict(found)


def variables(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    write_all(folder)
    return folder


def environment(name: str, secrets: Path) -> dict[str, str]:
    """The variables of a pod of ours."""
    own = {each["name"]: f"{name}-0" for each in container(name).get("env", ())}
    return {**variables(BASE / "env" / f"{name}.env"), **variables(secrets / f"{name}.env"), **own}


@pytest.mark.parametrize("name", [*SERVICES, "init"])
def test_the_settings_are_those_of_compose(name: str, secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for passwords and for what the cluster names itself."""
    told = environment(name, secrets)
    for variable, value in told.items():
        monkeypatch.setenv(variable, value)
    settings_class(name)()  # which refuses what it does not know

    def common(values: Mapping[str, str]) -> dict[str, str]:
        said = {key: re.sub(r"not-a-secret-\w+|[0-9a-f]{48}", "*", value) for key, value in values.items()}
        said = {key: re.sub(r"\s+(?=\")", "", value) for key, value in said.items() if "GROUP_INSTANCE" not in key}
        return {key: value.replace("kafka:19092", "kafka:9092") for key, value in said.items()}

    assert common(told) == common(COMPOSE[name]["environment"])


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_its_parts(service: str) -> None:
    kinds = {each["kind"] for each in OBJECTS if each["metadata"]["name"] == service}
    assert kinds == {"StatefulSet", "Service", "PodDisruptionBudget", "ServiceAccount"}
    spec, one = pod_of(service), container(service)
    assert one["image"] == COMPOSE[service]["image"]
    assert spec["serviceAccountName"] == service
    references = [reference for each in one["envFrom"] for reference in each.values()]
    assert [each["name"] for each in references if not each.get("optional")] == [service, service]
    volumes = {each["name"] for each in spec["volumes"]}
    assert {each["name"] for each in one["volumeMounts"]} == volumes
    mounted = {each["name"]: each["mountPath"] for each in one["volumeMounts"]}
    told = variables(BASE / "env" / f"{service}.env")
    assert {value for key, value in told.items() if key.endswith(("_ROOT", "_FOLDER"))} <= set(mounted.values())
    if "numba" in volumes:
        assert f"NUMBA_CACHE_DIR={mounted['numba']} " in (ROOT / "deploy" / "Dockerfile").read_text()


@pytest.mark.parametrize("name", [*SERVICES, *SERVERS, "init"])
def test_a_pod_is_nobody_and_bounded(name: str) -> None:
    """As `restricted` wants it, and more: limits, tokens, and a root that is not written to but by Kafka."""
    patch = SERVICE_PATCH if name in SERVICES else SERVER_PATCH if name in SERVERS else pod_of(name)
    spec = {
        **pod_of(name),
        **patch,
        "securityContext": {**pod_of(name).get("securityContext", {}), **patch["securityContext"]},
    }
    one = container(name)
    [patched] = patch["containers"]
    assert patched["name"] == one["name"]
    security = {**patched["securityContext"], **one.get("securityContext", {})}
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False, "it would set variables that our settings would read"
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security.get("readOnlyRootFilesystem", False) is (name != "kafka")
    for bound in ("requests", "limits"):
        assert set(one["resources"][bound]) == {"cpu", "memory"}


def test_probes_ask_what_the_services_answer() -> None:
    [patched] = SERVICE_PATCH["containers"]
    asked = {kind: patched[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert asked == {"startup": "/live", "liveness": "/live", "readiness": "/ready"}
    assert patched["ports"] == [{"name": "http", "containerPort": 8080}]
    for service in SERVICES:
        assert variables(BASE / "env" / f"{service}.env")[f"{service.upper()}_HTTP__PORT"] == "8080"
    stop_s = int(COMPOSE["ingest"]["stop_grace_period"].removesuffix("s"))
    assert SERVICE_PATCH["terminationGracePeriodSeconds"] >= stop_s


@pytest.mark.parametrize("service", SERVICES)
def test_arrows_are_those_of_the_settings(service: str, secrets: Path) -> None:
    """Who is told where a server is may reach it, and nobody else."""
    told = " ".join(environment(service, secrets).values())
    used = {server for server, port in SERVER_PORTS.items() if f"{server}:{port}" in told}
    labels = SETS[service]["spec"]["template"]["metadata"]["labels"]
    assert {name.removeprefix("tradeloop/uses-") for name in labels if "/uses-" in name} - {"venues"} == used
    assert ARROWS[service] == used
    assert ("timescaledb" in used) is any(grant.role == service for grant in GRANTS)


def test_policies_open_what_labels_say_on_the_servers_ports() -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in OBJECTS if each["kind"] == "NetworkPolicy"}
    assert policies.pop("nothing") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert set(policies) == {"names", "venues", "monitoring"} | {
        f"{way}-{name}" for way in ("to", "into") for name in SERVERS
    }
    for name, port in SERVER_PORTS.items():
        user = {"matchLabels": {f"tradeloop/uses-{name}": "true"}}
        server = {"matchLabels": {"app.kubernetes.io/name": name}}
        ports = [{"port": port, "protocol": "TCP"}]
        out, into = policies[f"to-{name}"], policies[f"into-{name}"]
        assert (out["podSelector"], out["egress"]) == (user, [{"to": [{"podSelector": server}], "ports": ports}])
        assert (into["podSelector"], into["ingress"]) == (server, [{"from": [{"podSelector": user}], "ports": ports}])
        [service] = [each for each in OBJECTS if each["kind"] == "Service" and each["metadata"]["name"] == name]
        assert service["spec"]["ports"][0]["port"] == port
        assert container(name)["ports"] == [{"name": name, "containerPort": port}]


def kustomization(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "kustomization.yaml").read_text())
    return found


def test_servers_are_those_of_compose() -> None:
    parts = [kustomization(COMPONENTS / part) for part in PARTS]
    images = {each["name"]: f"{each['newName']}:{each['newTag']}" for part in parts for each in part.get("images", ())}
    assert images == {name: COMPOSE[name]["image"] for name in ("kafka", "timescaledb", "redis")}
    assert container("mlflow")["image"] == COMPOSE["mlflow"]["image"]
    assert container("mlflow")["args"] == COMPOSE["mlflow"]["command"]
    places = {"KAFKA_LISTENERS", "KAFKA_ADVERTISED_LISTENERS", "KAFKA_LOG_DIRS", "CLUSTER_ID"}
    here = {each["name"]: each["value"] for each in container("kafka")["env"]}
    there = COMPOSE["kafka"]["environment"]
    assert set(here) == set(there)
    for name in set(here) - places:
        said = re.sub(r"\$\(\w+\)", "*", here[name])
        assert " ".join(said.split()) == " ".join(re.sub(r"not-a-secret-\w+", "*", there[name]).split()), name


def test_copies_are_copies() -> None:
    """Kustomize takes no file from outside its folder."""
    portfolio = "eur-usd.yaml"
    for overlay in (K8S / "overlays").iterdir():
        assert (overlay / "portfolios" / portfolio).read_text() == (ROOT / "deploy/portfolios" / portfolio).read_text()
        assert (overlay / "sources.yaml").read_text() == (ROOT / "deploy" / "sources.example.yaml").read_text()
    here, there = configparser.ConfigParser(), configparser.ConfigParser()
    here.read(COMPONENTS / "mlflow" / "auth.ini")
    there.read(ROOT / "deploy" / "mlflow" / "auth.ini")
    assert dict(here["mlflow"]) == dict(there["mlflow"])


def test_every_file_is_used_and_every_secret_and_map_is_made(secrets: Path) -> None:
    for file in K8S.rglob("kustomization.yaml"):
        parts = kustomization(file.parent)
        named = {*parts.get("resources", ()), *(each["path"] for each in parts.get("patches", ()) if "path" in each)}
        named |= {each for made in parts.get("configMapGenerator", ()) for each in made.get("files", ())}
        files = {each.name for each in file.parent.glob("*.yaml")} - {"kustomization.yaml"}
        assert files == {each for each in named if "/" not in each and each.endswith(".yaml")}, file
    listed = {
        Path(each).name
        for file in K8S.rglob("kustomization.yaml")
        for each in kustomization(file.parent).get("components", ())
    }
    components = {each.name for each in COMPONENTS.iterdir()}
    assert components == (listed - {"pod"}) | set(OPTIONS)
    assert not listed & set(OPTIONS)
    base, local = kustomization(BASE), kustomization(LOCAL)
    parts_made = [kustomization(COMPONENTS / part).get("configMapGenerator", ()) for part in PARTS]
    made = {
        "secretRef": {each["name"] for each in local["secretGenerator"]},
        "configMapRef": {
            each["name"]
            for part in (base["configMapGenerator"], local["configMapGenerator"], *parts_made)
            for each in part
        },
    }
    for name in (*SETS, "init"):
        for source in container(name)["envFrom"]:
            [(kind, reference)] = source.items()
            assert reference.get("optional") or reference["name"] in made[kind]
        for volume in pod_of(name)["volumes"]:
            if "configMap" in volume:
                assert volume["configMap"]["name"] in made["configMapRef"]
    assert {file.stem for file in secrets.iterdir()} == made["secretRef"] | {"passwords"}


def test_init_runs_what_it_runs_in_compose(capsys: pytest.CaptureFixture[str]) -> None:
    one = container("init")
    assert (one["command"], one["args"]) == (COMPOSE["init"]["entrypoint"], COMPOSE["init"]["command"])
    assert one["image"] == COMPOSE["init"]["image"]
    assert tradeloop(["topics", "permit", "--help"]) == 0
    capsys.readouterr()


def test_passwords_stay_and_are_for_their_owner_alone(tmp_path: Path) -> None:
    write_all(tmp_path)
    before = {file.name: file.read_text() for file in tmp_path.iterdir()}
    write_all(tmp_path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == before
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    assert "/deploy/k8s/overlays/local/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
