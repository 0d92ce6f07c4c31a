"""docker-compose.tls.yml over docker-compose.yml: every connection is encrypted and verified, as natively."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import make_url

from deploy.certificates import Certified
from deploy.native import kafka as native_kafka
from deploy.native.redis import redis
from tests.test_compose import COMMANDS, COMPOSE, DEPLOY, OURS, ROOT, interpolated, settings_class
from tradeloop.common.settings import variables

OVERLAY: dict[str, Any] = yaml.safe_load(interpolated((DEPLOY / "docker-compose.tls.yml").read_text()))
CA = "/etc/tradeloop/ca.pem"
SERVERS = ("kafka", "timescaledb", "redis", "mlflow")


def laid_over(below: Any, above: Any, name: str = "") -> Any:
    """As Compose merges two files: mappings by key, lists one after the other, but for commands and tests."""
    if isinstance(below, dict) and isinstance(above, dict):
        merged = deepcopy(below)
        for key, value in above.items():
            merged[key] = laid_over(below[key], value, key) if key in below else value
        return merged
    replaced = name in ("command", "entrypoint", "test")
    return [*below, *above] if isinstance(below, list) and isinstance(above, list) and not replaced else above


SERVICES: dict[str, dict[str, Any]] = laid_over(COMPOSE, OVERLAY)["services"]


def texts(service: str) -> list[str]:
    return [str(value) for value in SERVICES[service]["environment"].values()]


@pytest.mark.parametrize("service", [*OURS, *COMMANDS])
def test_every_variable_is_one_that_the_service_reads(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = settings_class(service)
    readable = dict(variables(kind, kind.model_config["env_prefix"]))
    for name in OVERLAY["services"][service]["environment"]:
        assert name in readable or name == "MLFLOW_TRACKING_SERVER_CERT_PATH"
    for name, value in SERVICES[service]["environment"].items():
        monkeypatch.setenv(name, value)
    settings: Any = kind()
    if service == "models":
        return
    assert settings.kafka.security_protocol == "SASL_SSL"
    assert settings.kafka.ssl_ca_location == CA


@pytest.mark.parametrize("service", [*OURS, *COMMANDS, "mlflow"])
def test_every_address_is_verified(service: str) -> None:
    urls = re.findall(r"postgresql\+psycopg://[^\s\"]+", " ".join(texts(service)))
    assert bool(urls) == (service != "models")
    assert all(dict(make_url(url).query) == {"sslmode": "verify-full", "sslrootcert": CA} for url in urls)
    assert not [text for text in texts(service) if "http://" in text or "PLAINTEXT" in text]
    stores = [json.loads(text) for text in texts(service) if text.startswith('{"type":"redis"')]
    assert all(store["connection_string"].endswith(f",ssl=true,ssl_ca_certs={CA}") for store in stores)
    if any("https://" in text for text in texts(service)):
        assert SERVICES[service]["environment"]["MLFLOW_TRACKING_SERVER_CERT_PATH"] == CA
    assert f"./tls/ca.pem:{CA}:ro" in SERVICES[service]["volumes"]


def test_servers_are_set_up_as_they_are_natively(tmp_path: Path) -> None:
    """`tests/test_secured_servers.py` connects to those."""
    files = Certified(tmp_path, "of_a_test")
    told = {name: value for name, value in SERVICES["kafka"]["environment"].items() if name.startswith("KAFKA_SSL_")}
    places = {"{files.both}": "/tls/both.pem", "{files.authorities}": CA}
    assert told == {
        f"KAFKA_{name.upper().replace('.', '_')}": places.get(v, v) for name, v in native_kafka._TLS_PROPERTIES.items()
    }
    assert set(re.findall(r":(\w+)", SERVICES["kafka"]["environment"]["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"])) == {
        "SASL_SSL"
    }
    native = redis(tmp_path, 6379, None, files).command
    options = " ".join(word for word in native[2:] if word not in ("--bind", "127.0.0.1", "--dir", str(tmp_path)))
    for place, here in (
        (files.certificate, "/tls/server.pem"),
        (files.key, "/tls/server.key"),
        (files.authorities, CA),
    ):
        options = options.replace(str(place), here)
    assert options.split("--save")[0].strip() in SERVICES["redis"]["command"][2]
    users = [one["services"]["redis"]["command"][2].split("<<END\n")[1] for one in (COMPOSE, OVERLAY)]
    assert users[0] == users[1]
    assert set(SERVICES["timescaledb"]["command"]) >= {"-cssl=on", "-cssl_min_protocol_version=TLSv1.2"}
    rules = (DEPLOY / "postgres" / "pg_hba.tls.conf").read_text().splitlines()
    assert {rule.split()[0] for rule in rules if not rule.startswith("#")} == {"local", "hostssl"}
    plain = COMPOSE["services"]["mlflow"]["command"]
    assert SERVICES["mlflow"]["command"][: len(plain)] == plain


@pytest.mark.parametrize("server", SERVERS)
def test_each_server_has_its_own_key_and_no_others(server: str) -> None:
    mounted = [volume for volume in SERVICES[server]["volumes"] if volume.startswith("tls-")]
    assert mounted == [f"tls-{server}:/tls:ro"]
    assert SERVICES[server]["depends_on"]["certificates"] == {"condition": "service_completed_successfully"}
    [script] = SERVICES["certificates"]["command"]
    assert re.search(rf"^give {server} [1-9]\d+$", script, re.MULTILINE)
    assert f"tls-{server}:/to/{server}" in SERVICES["certificates"]["volumes"]
    assert f"tls-{server}" in OVERLAY["volumes"]


def test_the_one_that_hands_out_keys_reaches_nobody() -> None:
    one = SERVICES["certificates"]
    assert one["network_mode"] == "none"
    assert one["cap_drop"] == ["ALL"]
    assert "ports" not in one
    assert one["image"] == COMPOSE["services"]["redis"]["image"]
    assert "$(if $(TLS),--file deploy/docker-compose.tls.yml)" in (ROOT / "Makefile").read_text()
