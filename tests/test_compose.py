"""docker-compose.yml against what the services really read. `make test-compose` runs it; this says what is wrong."""

from __future__ import annotations

import configparser
import importlib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError
from sqlalchemy import make_url

from deploy.native.redis import RULES
from deploy.native.server import Program, Server, free_ports, listens, need
from tests.containers import IMAGES
from tradeloop.cli.client.deployment import Deployment
from tradeloop.cli.main import main as tradeloop
from tradeloop.common.clock import SystemClock
from tradeloop.common.errors import UserError
from tradeloop.common.messages.topics import accesses
from tradeloop.common.model_store.permissions import RIGHTS as MODEL_RIGHTS
from tradeloop.common.settings import variables
from tradeloop.common.sql.roles import GRANTS, ROLES
from tradeloop.ingest.adapters.sources import load_sources, open_source

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
PASSWORD = "not-a-secret"
PASSWORDS = (
    "POSTGRES",
    "KAFKA",
    "MLFLOW",
    "REDIS",
    "INGEST",
    "PREPROCESS",
    "TRAINING",
    "INFERENCE",
    "EXECUTION",
    "GRAFANA",
)
COMMANDS = ("init", "models")
"""They run to their end before services start."""
OURS = sorted(folder.name for folder in (ROOT / "services").iterdir())
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<kind>:?[-?])(?P<rest>[^}]*))?\}")


def secret(name: str) -> str:
    """The password of a user; the superuser of PostgreSQL has the product's name."""
    return f"{PASSWORD}-{name.lower().replace('tradeloop', 'postgres')}"


def interpolated(text: str) -> str:
    """As Compose fills it in, where nothing is set but the passwords."""

    def value(match: re.Match[str]) -> str:
        return match["rest"] if match["kind"] in ("-", ":-") else secret(match["name"].removesuffix("_PASSWORD"))

    return _VARIABLE.sub(value, text).replace("$$", "$")


COMPOSE: dict[str, Any] = yaml.safe_load(interpolated((DEPLOY / "docker-compose.yml").read_text()))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def settings_class(service: str) -> type[BaseSettings]:
    module = "tradeloop.cli.client.settings" if service in COMMANDS else f"tradeloop.{service}.config"
    found: type[BaseSettings] = importlib.import_module(module).Settings
    return found


def settings_of(service: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The settings that a container's process would have: its own variables and no other."""
    kind = settings_class(service)
    for name, value in SERVICES[service]["environment"].items():
        monkeypatch.setenv(name, value)
    return kind()


def mounts(service: str) -> Mapping[str, str]:
    """What is mounted where: source by path in the container."""
    return {target: source for source, target, *_ in (each.split(":") for each in SERVICES[service].get("volumes", ()))}


@pytest.mark.parametrize("service", [*OURS, *COMMANDS])
def test_every_variable_is_one_that_the_service_reads(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = settings_class(service)
    prefix = kind.model_config["env_prefix"]
    readable = dict(variables(kind, prefix))
    for name in SERVICES[service]["environment"]:
        assert name in readable or readable.get(name.rpartition("__")[0]), f"{name} is read by nobody"
    settings_of(service, monkeypatch)


@pytest.mark.parametrize("service", OURS)
def test_every_service_is_told_what_a_deployment_tells_it(service: str) -> None:
    """Compose says in YAML what native processes, the embedded stack and the tests take from one declaration."""
    whole = Deployment(
        database_url="bars",
        ledger_url="ledger",
        mlflow_tracking_uri="mlflow",
        feature_root=Path("features"),
        feature_registry={},
        feature_online_store={},
        features="topic",
        sources=Path("sources.yaml"),
        portfolio_folder=Path("portfolios"),
        kafka=dict.fromkeys(
            ("bootstrap_servers", "security_protocol", "sasl_mechanism", "sasl_username", "sasl_password"), "kafka"
        ),
    )
    here = {f"{service.upper()}_HTTP__HOST", f"{service.upper()}_HTTP__PORT"}
    here |= {"ingest": {"INGEST_FILE_ROOT"}, "inference": {"INFERENCE_PREDICT__TOKEN"}}.get(service, set())
    assert set(SERVICES[service]["environment"]) == set(whole.environment(service)) | here
    assert SERVICES[service]["environment"][f"{service.upper()}_KAFKA__CLIENT_ID"] == f"tradeloop-{service}"


def test_every_service_of_the_workspace_is_there_and_starts_its_own_main() -> None:
    built = {name: service["build"] for name, service in SERVICES.items() if "build" in service}
    assert set(OURS) == set(built) - {*COMMANDS, "mlflow"}
    for service in OURS:
        assert built[service]["args"]["SERVICE"] == service
        assert "command" not in SERVICES[service]
        assert callable(importlib.import_module(f"tradeloop.{service}.main").main)
    assert 'CMD ["sh", "-c", "exec python -m tradeloop.${SERVICE}.main"]' in DOCKERFILE


def test_targets_and_arguments_of_builds_exist() -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    arguments = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    for service in SERVICES.values():
        if build := service.get("build"):
            assert build["target"] in targets
            assert set(build["args"]) <= arguments
            assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
            assert build["args"]["BASE_IMAGE"] == re.search(r"^ARG BASE_IMAGE=(.*)$", DOCKERFILE, re.MULTILINE)[1]  # type: ignore[index]
    strategies = {
        re.search(r'^name = "(.*)"$', file.read_text(), re.MULTILINE)[1]  # type: ignore[index]
        for file in (ROOT / "strategies").glob("*/pyproject.toml")
    }
    assert set(SERVICES["execution"]["build"]["args"]["STRATEGIES"].split()) <= strategies


def test_uv_is_the_one_of_the_makefile() -> None:
    [version] = re.findall(r"^UV_VERSION := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f"ARG UV_VERSION={version}." in DOCKERFILE


@pytest.mark.parametrize("name", COMMANDS)
def test_init_runs_commands_that_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert SERVICES[name]["entrypoint"] == ["sh", "-ec"]
    [script] = SERVICES[name]["command"]
    for command in script.split(";"):
        program, *arguments = command.split()
        assert program == "tradeloop"
        assert tradeloop([*arguments, "--help"]) == 0
        assert " ".join(arguments) in capsys.readouterr().out


@pytest.mark.parametrize("service", OURS)
def test_health_is_asked_where_it_is_told(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    http = settings_of(service, monkeypatch).http
    [published] = SERVICES[service]["ports"]
    assert published.split(":")[-1] == str(http.port)
    assert http.host == "0.0.0.0"
    assert f"http://localhost:{http.port}/ready" in SERVICES[service]["healthcheck"]["test"][-1]
    assert f"EXPOSE {http.port}\n" in DOCKERFILE
    assert f"http://localhost:{http.port}/live" in DOCKERFILE


def test_servers_are_addressed_where_they_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    kafka = SERVICES["kafka"]["environment"]
    advertised = dict(each.split("://") for each in kafka["KAFKA_ADVERTISED_LISTENERS"].split(","))
    listening = dict(each.split("://") for each in kafka["KAFKA_LISTENERS"].split(","))
    assert advertised["INSIDE"].split(":") == ["kafka", listening["INSIDE"].removeprefix(":")]
    assert SERVICES["kafka"]["ports"][0].split(":")[-1] == listening["OUTSIDE"].removeprefix(":")
    assert f"/dev/tcp/localhost{listening['INSIDE'].replace(':', '/')}" in SERVICES["kafka"]["healthcheck"]["test"][-1]

    postgres = SERVICES["timescaledb"]["environment"]

    def check_database(url: str, name: str, role: str) -> None:
        parts = make_url(url)
        assert (parts.drivername, parts.host, parts.port) == ("postgresql+psycopg", "timescaledb", 5432)
        assert (parts.username, parts.password, parts.database) == (role, secret(role), name)
        assert role == postgres["POSTGRES_USER"] or (name, role) in {(one.database, one.role) for one in GRANTS}

    for service in (*OURS, "init"):
        settings = settings_of(service, monkeypatch)
        assert settings.kafka.bootstrap_servers == advertised["INSIDE"]
        role = postgres["POSTGRES_USER"] if service == "init" else service
        if hasattr(settings, "database_url"):
            check_database(settings.database_url.get_secret_value(), "bars", role)
        if hasattr(settings, "ledger_url"):
            check_database(settings.ledger_url.get_secret_value(), "ledger", role)
        if hasattr(settings, "feature_registry"):
            check_database(settings.feature_registry["path"], "features", role)
            redis = f"redis:6379,username={service},password={secret(service)}"
            assert settings.feature_online_store == {"type": "redis", "connection_string": redis}
        if service in OURS and hasattr(settings, "mlflow_tracking_uri"):
            assert service in MODEL_RIGHTS
            user = f"http://{service}:{secret(service)}@"
            host = settings.mlflow_tracking_uri.get_secret_value().removeprefix(user)
            options = dict(option.split("=", 1) for option in SERVICES["mlflow"]["command"][1:])
            assert host == f"mlflow:{options['--port']}"
            assert host in options["--allowed-hosts"].split(",")
    check_database(SERVICES["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"], "mlflow", "mlflow")


def test_M11_each_service_signs_in_to_kafka_as_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    kafka = SERVICES["kafka"]["environment"]
    protocols = dict(each.split(":") for each in kafka["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(","))
    assert protocols == dict.fromkeys(("INSIDE", "OUTSIDE", "CONTROLLER"), "SASL_PLAINTEXT")
    assert "CONTROLLER://localhost:" in kafka["KAFKA_LISTENERS"], "nobody else may speak to the controller"
    users = kafka["KAFKA_LISTENER_NAME_INSIDE_PLAIN_SASL_JAAS_CONFIG"]
    for listener in protocols:
        assert kafka[f"KAFKA_LISTENER_NAME_{listener}_PLAIN_SASL_JAAS_CONFIG"] == users
    known = dict(re.findall(r' user_(\w+)="([^"]*)"', users))
    assert known == {name: secret(name) for name in (*OURS, "tradeloop")} | {"tradeloop": secret("kafka")}
    for service in (*OURS, "init"):
        settings = settings_of(service, monkeypatch).kafka
        name = "tradeloop" if service == "init" else service
        assert (settings.security_protocol, settings.sasl_mechanism) == ("SASL_PLAINTEXT", "PLAIN")
        assert (settings.sasl_username, settings.sasl_password.get_secret_value()) == (name, known[name])


def test_kafka_permits_what_the_catalogue_says_and_nothing_else() -> None:
    kafka = SERVICES["kafka"]["environment"]
    assert kafka["KAFKA_AUTHORIZER_CLASS_NAME"] == "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
    assert kafka["KAFKA_SUPER_USERS"] == "User:tradeloop"
    assert "KAFKA_ALLOW_EVERYONE_IF_NO_ACL_FOUND" not in kafka
    [script] = SERVICES["init"]["command"]
    commands = [command.strip() for command in script.split(";")]
    assert commands.index("tradeloop topics apply") < commands.index("tradeloop topics permit")
    assert {access.user for access in accesses()} == set(OURS)


def test_M11_a_password_is_known_to_who_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {role.lower() for role in settings_of("init", monkeypatch).roles} == set(ROLES)
    assert {role.lower() for role in settings_of("models", monkeypatch).roles} >= set(MODEL_RIGHTS)
    allowed = {
        **{service: {service} for service in OURS},
        "timescaledb": {"postgres"},
        "redis": {"redis", "preprocess", "training", "inference"},
        "mlflow": {"mlflow"},
        "models": {"mlflow", *MODEL_RIGHTS},
        "grafana": {"grafana"},
    }
    for service, own in allowed.items():
        told = " ".join(SERVICES[service]["environment"].values())
        assert set(re.findall(r"not-a-secret-(\w+)", told)) == own


def test_M11_redis_knows_each_service_by_its_name(tmp_path: Path) -> None:
    """Started by the very command of its container, but for the port: natively the rules are those of `RULES`."""
    need(["redis-server"], ["redis-server"])
    [port] = free_ports(1)
    here = f"exec redis-server - --bind 127.0.0.1 --port {port} --dir {tmp_path}"
    script = SERVICES["redis"]["command"][-1].replace("exec redis-server -", here)
    environment = {**SERVICES["redis"]["environment"], "PATH": os.environ["PATH"]}
    program = Program("redis", ("sh", "-c", script), f"127.0.0.1:{port}", lambda: listens(port), environment)

    def of(user: str, password: str) -> Redis:
        return Redis(host="127.0.0.1", port=port, username=user, password=password)

    with Server(program, tmp_path), of("tradeloop", secret("redis")) as person:
        assert person.ping()
        acls = [line.split() for line in person.acl_list()]
        shown = {words[1]: words[2:] for words in acls}
        assert "off" in shown.pop("default")
        assert set(shown) == set(RULES)
        for user in RULES:
            person.execute_command("ACL SETUSER", f"as-{user}", "on", "nopass", *RULES[user].split())
        natively = {words[1]: words[2:] for words in (line.split() for line in person.acl_list())}
        for user in RULES:
            told = [word for word in natively[user] if word[0] != "#"]
            assert told == [word for word in natively[f"as-{user}"] if word != "nopass"]
        with of("preprocess", secret("preprocess")) as writer, of("inference", secret("inference")) as reader:
            writer.set("feature", "1")
            assert reader.get("feature") == b"1"
            with pytest.raises(NoPermissionError):
                reader.set("feature", "2")
        for stranger in (of("default", secret("redis")), of("execution", secret("execution"))):
            with stranger, pytest.raises(AuthenticationError):
                stranger.ping()
    assert "--user tradeloop" in SERVICES["redis"]["healthcheck"]["test"][-1]


def test_M11_mlflow_permits_before_its_users_start() -> None:
    for service in MODEL_RIGHTS:
        assert SERVICES[service]["depends_on"]["models"] == {"condition": "service_completed_successfully"}
    assert SERVICES["models"]["depends_on"]["mlflow"] == {"condition": "service_healthy"}


def test_M11_mlflow_asks_who_it_is() -> None:
    mlflow = SERVICES["mlflow"]
    assert "--app-name=basic-auth" in mlflow["command"]
    assert mlflow["environment"]["MLFLOW_AUTH_ADMIN_PASSWORD"] == secret("mlflow")
    [place] = [path for path in mounts("mlflow") if path == mlflow["environment"]["MLFLOW_AUTH_CONFIG_PATH"]]
    section = configparser.ConfigParser()
    section.read(DEPLOY / mounts("mlflow")[place])
    assert section["mlflow"]["admin_username"] == "tradeloop"
    assert section["mlflow"]["default_permission"] == "NO_PERMISSIONS"
    folder = section["mlflow"]["database_uri"].removeprefix("sqlite:///").rpartition("/")[0]
    assert folder in mounts("mlflow"), "users would be gone after a restart"


def test_L6_redis_makes_room() -> None:
    assert "--maxmemory-policy allkeys-lru" in SERVICES["redis"]["command"][-1]


def test_what_is_mounted_is_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {source for service in SERVICES for source in mounts(service).values() if not source.startswith(".")}
    assert used == set(COMPOSE["volumes"])
    owned = re.search(r"install -d -o tradeloop -g tradeloop ((?:\\\n|[^&\n])*)", DOCKERFILE)[1]  # type: ignore[index]
    for service in OURS:
        settings, mounted = settings_of(service, monkeypatch), mounts(service)
        for path, source in mounted.items():
            assert source.startswith(".") or path in owned.split(), f"{path} belongs to nobody in the image"
        assert (str(getattr(settings, "feature_root", None)) in mounted) == hasattr(settings, "feature_root")
        assert (str(getattr(settings, "sources", None)) in mounted) == hasattr(settings, "sources")
        assert (str(getattr(settings, "portfolio_folder", None)) in mounted) == hasattr(settings, "portfolio_folder")
    assert "NUMBA_CACHE_DIR=/var/cache/numba" in DOCKERFILE
    assert "--artifacts-destination=/var/lib/tradeloop/mlflow" in SERVICES["mlflow"]["command"]
    assert mounts("mlflow")["/var/lib/tradeloop/mlflow"] == "mlflow"
    assert SERVICES["kafka"]["environment"]["KAFKA_LOG_DIRS"] in mounts("kafka")
    for service in SERVICES:
        for source in mounts(service).values():
            if source.startswith("./") and source != "./bars":  # made by the engine, for files of one's own
                assert (DEPLOY / source).exists()


def test_sources_name_the_places_of_secrets_and_hold_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example is what ingest has until it is told otherwise; each of its venues can be asked for."""
    example = mounts("ingest")[str(settings_of("ingest", monkeypatch).sources)]
    sources = load_sources(DEPLOY / example)
    assert {"binance", "alpaca", "massive", "simulated"} <= set(sources)
    references = [
        value
        for section in sources.values()
        for name in ("key", "secret", "password")
        if (value := getattr(section, name, None)) is not None
    ]
    assert references
    assert all(reference.env and reference.file is None for reference in references)
    clock = SystemClock()
    needed = [reference.env for reference in references]
    for name in needed:
        monkeypatch.delenv(name, raising=False)
    for venue, section in sources.items():
        if getattr(section, "key", None) is None:
            open_source(venue, sources, clock).close()
        else:
            with pytest.raises(UserError, match=f"set the environment variable ({'|'.join(needed)})"):
                open_source(venue, sources, clock)
    for name in needed:
        monkeypatch.setenv(name, "not-a-secret")
    for venue in sources:
        open_source(venue, sources, clock).close()


def test_credentials_of_venues_come_from_a_file_that_need_not_be_there() -> None:
    [file] = SERVICES["ingest"]["env_file"]
    assert file == {"path": "./sources.env", "required": False}
    assert "/deploy/sources.env" in (ROOT / ".gitignore").read_text().splitlines()
    assert all("env_file" not in service for name, service in SERVICES.items() if name != "ingest")


def test_predictions_are_off_and_online_features_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    inference, preprocess = settings_of("inference", monkeypatch), settings_of("preprocess", monkeypatch)
    assert inference.predict.token is None
    assert (inference.features, preprocess.features) == ("topic", "topic")
    for service in ("inference", "preprocess"):
        assert SERVICES[service]["environment"][f"{service.upper()}_FEATURES"] == "topic"
        assert f"{service.upper()}_FEATURES: ${{FEATURES:-topic}}" in (DEPLOY / "docker-compose.yml").read_text()
    projects = tomllib.loads((ROOT / "services" / "inference" / "pyproject.toml").read_text())["project"]
    [common] = [one for one in projects["dependencies"] if one.startswith("tradeloop-common[")]
    assert "feast" in common, "the image has what reads the online store"


def test_M9_what_one_service_compiled_no_other_runs() -> None:
    """Numba runs what lies in its folder: whoever may write there is whoever runs it."""
    caches = {service: mounts(service)["/var/cache/numba"] for service in OURS if "/var/cache/numba" in mounts(service)}
    assert caches == {service: f"numba-{service}" for service in ("training", "execution")}
    everywhere = [source for service in SERVICES for source in mounts(service).values()]
    assert all(everywhere.count(cache) == 1 for cache in caches.values())


def test_M11_features_are_written_by_whoever_computes_them() -> None:
    writers = [
        service
        for service in SERVICES
        for each in SERVICES[service].get("volumes", ())
        if each.startswith("features:")
        if not each.endswith(":ro")
    ]
    assert writers == ["preprocess"]


def test_nothing_is_open_or_privileged() -> None:
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
        assert service.get("read_only", False) is (name != "kafka")
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert "USER 10001:10001" in DOCKERFILE


def test_prometheus_scrapes_every_service_and_grafana_asks_it() -> None:
    """They start only where somebody asks for them, and nothing else waits for them."""
    assert {name for name, one in SERVICES.items() if "profiles" in one} == {"prometheus", "grafana"}
    assert all(one["profiles"] == ["monitoring"] for one in SERVICES.values() if "profiles" in one)
    prometheus, grafana = SERVICES["prometheus"], SERVICES["grafana"]
    options = dict(option.removeprefix("--").split("=", 1) for option in prometheus["command"])
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert options["config.file"] == "/etc/prometheus/prometheus.yml"
    assert mounts("prometheus") == {"/prometheus": "prometheus", "/etc/prometheus": "./prometheus"}
    assert "ports" not in prometheus, "it asks nobody who he is"
    told = {job["job_name"]: job["static_configs"] for job in config["scrape_configs"]}
    assert told == {name: [{"targets": [f"{name}:8080"]}] for name in OURS}
    assert config["rule_files"] == ["rules.yml"]
    [source] = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert mounts("grafana")["/etc/grafana/dashboards"] == "./grafana/dashboards"
    environment = grafana["environment"]
    assert environment["GF_SECURITY_ADMIN_PASSWORD"] == secret("grafana")
    assert (environment["GF_AUTH_ANONYMOUS_ENABLED"], environment["GF_USERS_ALLOW_SIGN_UP"]) == ("false", "false")
    assert "$(if $(MONITORING),--profile monitoring) up" in (ROOT / "Makefile").read_text()


def test_each_waits_for_what_it_needs() -> None:
    for service in OURS:
        needs = SERVICES[service]["depends_on"]
        assert needs["init"] == {"condition": "service_completed_successfully"}
        text = " ".join(SERVICES[service]["environment"].values())
        for server in ("kafka", "timescaledb", "redis", "mlflow"):
            assert (server in needs) == bool(re.search(rf"\b{server}:\d", text))
            assert needs.get(server, {"condition": "service_healthy"}) == {"condition": "service_healthy"}


def test_the_example_names_every_variable_with_its_default() -> None:
    text = (DEPLOY / "docker-compose.yml").read_text()
    defaults = {m["name"]: m["rest"] for m in _VARIABLE.finditer(text) if m["kind"] in ("-", ":-")}
    required = {m["name"] for m in _VARIABLE.finditer(text) if m["kind"] == ":?"}
    assert {m["name"] for m in _VARIABLE.finditer(text)} == {*defaults, *required}
    example = (DEPLOY / ".env.example").read_text()
    assert set(re.findall(r"^(\w+)=$", example, re.MULTILINE)) == required
    assert required == {f"{name}_PASSWORD" for name in PASSWORDS}
    # These two are told by `make`.
    own = {name: default for name, default in defaults.items() if name not in ("BASE_IMAGE", "COMMIT")}
    assert dict(re.findall(r"^#(\w+)=(.*)$", example, re.MULTILINE)) == own


def test_servers_are_the_ones_that_the_tests_use() -> None:
    images = {name: SERVICES[name]["image"] for name in ("kafka", "timescaledb", "redis")}
    assert images == {"kafka": IMAGES["kafka"], "timescaledb": IMAGES["postgres"], "redis": IMAGES["redis"]}


def test_stand_ins_take_the_places_of_servers() -> None:
    override = yaml.safe_load(interpolated((DEPLOY / "compose.test.yml").read_text()))["services"]
    assert set(override) == {name for name, one in SERVICES.items() if not {"build", "profiles"} & set(one)}
    targets = re.findall(r"^FROM \S+ AS (\S+)$", (DEPLOY / "standins" / "Dockerfile").read_text(), re.MULTILINE)
    assert {service["build"]["target"] for service in override.values()} == set(targets)
