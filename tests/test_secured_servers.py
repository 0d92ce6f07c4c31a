"""Real servers with TLS of a private authority, and with users: what is right connects, what is wrong is told."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import numpy as np
import pytest
from redis import Redis
from redis.exceptions import NoPermissionError
from sqlalchemy import make_url

from deploy.certificates import Certified, issue
from deploy.native.kafka import SUPERUSER, sign_in
from deploy.native.kafka import kafka as kafka_program
from deploy.native.mlflow import USER
from deploy.native.mlflow import mlflow as mlflow_program
from deploy.native.postgres import best_installation
from deploy.native.postgres import postgres as postgres_program
from deploy.native.redis import redis as redis_program
from deploy.native.server import Program, Server, free_ports
from tradeloop.cli.main import main as tradeloop
from tradeloop.common.bus.kafka import KafkaBus, KafkaSettings
from tradeloop.common.bus.port import TopicSpec
from tradeloop.common.clock import SystemClock
from tradeloop.common.contracts.model_store import sample_policy as policy
from tradeloop.common.errors import Unavailable
from tradeloop.common.feature_store.feast.store import FeastFeatureStore
from tradeloop.common.feature_store.port import FeatureRows, FeatureStoreUnavailable
from tradeloop.common.model_store.mlflow import MlflowModelStore
from tradeloop.common.model_store.port import ModelNotFound, ModelStoreUnavailable
from tradeloop.common.sql.database import Database

PASSWORD = "not-a-secret-of-this-test"
CA_FILE = "MLFLOW_TRACKING_SERVER_CERT_PATH"
ROWS = FeatureRows(("v:x",), ("a",), np.array([1_700_000_000_000_000]), np.array([[[2.5]]]))
REDIS_USERS = ("tradeloop", "preprocess", "training", "inference")
TOPIC = TopicSpec("greetings", 1, None, None)

Start = Callable[[Path, int, Certified], Program]
STARTS: Mapping[str, Start] = {
    "kafka": lambda folder, port, tls: kafka_program(folder, port, {SUPERUSER: PASSWORD}, tls),
    "postgres": lambda folder, port, tls: postgres_program(folder, port, best_installation(), durable=False, tls=tls),
    "redis": lambda folder, port, tls: redis_program(folder, port, dict.fromkeys(REDIS_USERS, PASSWORD), tls),
    "mlflow": lambda folder, port, tls: mlflow_program(folder, port, PASSWORD, tls),
}


class Servers(NamedTuple):
    """Four servers that speak TLS alone. Their certificates are for 127.0.0.1, and not for `localhost`."""

    ports: Mapping[str, int]
    right: str
    """The file of the authority that signed their certificates."""
    wrong: str
    """That of another one, of the same name."""
    postgres: str


class Way(NamedTuple):
    """How a client comes: by which name, trusting which authority; None is without TLS."""

    host: str
    authority: str | None


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    home = tmp_path_factory.mktemp("tls")
    now = SystemClock().now()
    for folder in ("right", "wrong"):
        issue(home / folder, {name: ["127.0.0.1"] for name in STARTS}, now)
    ports = dict(zip(STARTS, free_ports(len(STARTS)), strict=True))
    started = {}
    with ExitStack() as running:
        for name, start in STARTS.items():
            (home / name).mkdir()
            server = Server(start(home / name, ports[name], Certified(home / "right", name)), home)
            running.callback(server.stop)
            server.launch()
            started[name] = server
        for server in started.values():
            server.wait()
        right, wrong = (str(home / folder / "ca.pem") for folder in ("right", "wrong"))
        yield Servers(ports, right, wrong, started["postgres"].address)


def trade_a_message(servers: Servers, way: Way, _: Path) -> None:
    login = sign_in(SUPERUSER, PASSWORD, None if way.authority is None else Path(way.authority))
    where = {"bootstrap_servers": f"{way.host}:{servers.ports['kafka']}", "request_timeout_s": 2.0}
    with closing(KafkaBus(KafkaSettings.model_validate({**where, **login}))) as bus:
        bus.create_topics([TOPIC])
        with closing(bus.producer()) as producer:
            producer.publish(TOPIC.name, "k", b"hello", {})
            producer.flush()
        [(partition, end)] = bus.end_offsets(TOPIC.name).items()
        [record] = bus.read(partition, end - 1, end)
        assert record.value == b"hello"


def ask_postgresql(servers: Servers, way: Way, _: Path) -> None:
    query = {"sslmode": "disable"}
    if way.authority is not None:
        query = {"sslmode": "verify-full", "sslrootcert": way.authority}
    url = make_url(servers.postgres).set(host=way.host, query=query).render_as_string(hide_password=False)
    database = Database(url, "ledger", Unavailable, lambda connection: None)
    with closing(database), database.transaction() as connection:
        of_mine = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert connection.exec_driver_sql(of_mine).one() == (True, "TLSv1.3")


def store_features(servers: Servers, way: Way, folder: Path) -> None:
    options = "" if way.authority is None else f",ssl=true,ssl_ca_certs={way.authority}"
    connection = f"{way.host}:{servers.ports['redis']},username=preprocess,password={PASSWORD}{options}"
    with closing(features_in(folder, connection)) as store:
        store.write_online("of_this_test", "u", ROWS)
        assert store.read_online("of_this_test", "u", ["v:x"]).values.tolist() == ROWS.values.tolist()


def features_in(folder: Path, connection: str) -> FeastFeatureStore:
    """A feature store whose online values are in a Redis."""
    online: dict[str, Any] = {"type": "redis", "connection_string": connection}
    store = FeastFeatureStore(folder, SystemClock(), online_store=online)
    store.define("of_this_test", ["a"])
    return store


def ask_mlflow(servers: Servers, way: Way, _: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(CA_FILE, raising=False)
        if way.authority is not None:
            patch.setenv(CA_FILE, way.authority)
        scheme = "http" if way.authority is None else "https"
        store = MlflowModelStore(f"{scheme}://{USER}:{PASSWORD}@{way.host}:{servers.ports['mlflow']}")
        store.check()
        assert store.versions() == []


Use = Callable[[Servers, Way, Path], None]
USES: Mapping[str, Use] = {
    "kafka": trade_a_message,
    "postgres": ask_postgresql,
    "redis": store_features,
    "mlflow": ask_mlflow,
}
REMEDIES = {
    "kafka": {"authority": "KAFKA__SSL_CA_LOCATION", "plain": "set KAFKA__SECURITY_PROTOCOL to match"},
    "postgres": {"authority": "sslrootcert= in the URL", "plain": "sslmode=verify-full&sslrootcert=FILE"},
    "redis": {"authority": "ssl_ca_certs= of its connection string", "plain": "ssl=true"},
    "mlflow": {"authority": f"environment variable {CA_FILE}", "plain": "with https://"},
}


@pytest.fixture(params=USES)
def server(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_the_right_authority_connects(servers: Servers, server: str, tmp_path: Path) -> None:
    USES[server](servers, Way("127.0.0.1", servers.right), tmp_path)


@pytest.mark.parametrize("wrong", ["authority", "no file", "name", "plain"])
def test_what_is_wrong_is_told_in_one_line_with_the_remedy(
    servers: Servers, server: str, wrong: str, tmp_path: Path
) -> None:
    missing = str(tmp_path / "nowhere.pem")
    way, told = {
        "authority": (Way("127.0.0.1", servers.wrong), REMEDIES[server]["authority"]),
        "no file": (Way("127.0.0.1", missing), missing),
        "name": (Way("localhost", servers.right), "connect by a name that it has"),
        "plain": (Way("127.0.0.1", None), REMEDIES[server]["plain"]),
    }[wrong]
    with pytest.raises(Unavailable) as caught:
        USES[server](servers, way, tmp_path)
    said = str(caught.value)
    assert told in said
    assert f"{way.host}:{servers.ports[server]}" in said
    assert "\n" not in said
    assert len(said) < 500, "no client's page about its retries"
    assert PASSWORD not in said


@pytest.mark.parametrize("reader", ["training", "inference"])
def test_features_are_written_by_preprocess_and_read_by_others(servers: Servers, reader: str, tmp_path: Path) -> None:
    def of(user: str, password: str = PASSWORD) -> FeastFeatureStore:
        where = f"127.0.0.1:{servers.ports['redis']},username={user},password={password}"
        return features_in(tmp_path, f"{where},ssl=true,ssl_ca_certs={servers.right}")

    with closing(of("preprocess")) as writing, closing(of(reader)) as reading:
        writing.write_online("of_this_test", "u", ROWS)
        reading.check()
        assert reading.read_online("of_this_test", "u", ["v:x"]).values.tolist() == ROWS.values.tolist()
        with pytest.raises(FeatureStoreUnavailable, match="no permissions to run the 'hset' command"):
            reading.write_online("of_this_test", "u", ROWS)
    for stranger in (of("execution"), of("default"), of("preprocess", "another-password")):
        with closing(stranger), pytest.raises(FeatureStoreUnavailable, match="invalid username-password pair"):
            stranger.write_online("of_this_test", "u", ROWS)


@pytest.mark.parametrize("user", ["preprocess", "training"])
def test_no_service_may_administer_redis(servers: Servers, user: str) -> None:
    with Redis(
        host="127.0.0.1",
        port=servers.ports["redis"],
        username=user,
        password=PASSWORD,
        ssl=True,
        ssl_ca_certs=servers.right,
    ) as client:
        for command in ("FLUSHALL", "CONFIG GET *", "ACL LIST", "KEYS *", "SHUTDOWN", "SAVE", "MONITOR"):
            with pytest.raises(NoPermissionError):
                client.execute_command(*command.split())


@pytest.fixture
def permitted(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """The address of MLflow as a user, after `tradeloop models permit`."""
    monkeypatch.setenv(CA_FILE, servers.right)

    def of(user: str) -> str:
        return f"https://{user}:{PASSWORD}@127.0.0.1:{servers.ports['mlflow']}"

    monkeypatch.setenv("TRADELOOP_MLFLOW_TRACKING_URI", of(USER))
    for service in ("TRAINING", "INFERENCE"):
        monkeypatch.setenv(f"TRADELOOP_ROLES__{service}", PASSWORD)
    assert tradeloop(["models", "permit"]) == 0
    return of


def test_training_registers_policies_and_inference_reads_them(
    permitted: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    training, inference = (MlflowModelStore(permitted(user)) for user in ("training", "inference"))
    with pytest.raises(ModelNotFound, match="shows no model nothing to this user"):
        inference.load("nothing", "champion")
    version = training.register("example", policy(b"a graph"), metrics={"a": 1.0}, parameters={"b": "2"}).version
    training.set_alias("example", "champion", version)
    inference.check()
    assert inference.load("example", "champion").policy.onnx == b"a graph"
    assert [one.version for one in inference.versions()] == [version]
    for refused in (
        lambda: inference.set_alias("example", "champion", version),
        lambda: inference.register("example", policy(b"another graph"), metrics={}, parameters={}),
    ):
        with pytest.raises(ModelStoreUnavailable, match="Permission denied"):
            refused()
    assert [one.version for one in inference.versions()] == [version]
    capsys.readouterr()
    assert tradeloop(["models", "permit"]) == 0
    assert capsys.readouterr().out == "training: as it was\ninference: as it was\n"


def test_what_a_user_of_mlflow_may_too_much_is_taken_away(
    servers: Servers, permitted: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(user: str, method: str, path: str, **told: object) -> Any:
        body = None if method == "GET" else json.dumps(told).encode()
        query = f"?{urlencode(told)}" if method == "GET" else ""
        signed = {"Authorization": f"Basic {b64encode(f'{user}:{PASSWORD}'.encode()).decode()}"}
        url = f"https://127.0.0.1:{servers.ports['mlflow']}/api/{path}{query}"
        asked = urllib.request.Request(url, body, {"Content-Type": "application/json", **signed}, method=method)
        trusting = ssl.create_default_context(cafile=servers.right)
        with urllib.request.urlopen(asked, timeout=30, context=trusting) as answer:
            return json.loads(answer.read() or b"{}")

    [role] = ask(USER, "GET", "3.0/mlflow/users/roles/list", username="inference")["roles"]
    too_much = {"role_id": role["id"], "resource_type": "registered_model", "resource_pattern": "one"}
    ask(USER, "POST", "3.0/mlflow/roles/permissions/add", **too_much, permission="MANAGE")
    ask(USER, "PATCH", "2.0/mlflow/users/update-admin", username="inference", is_admin=True)
    capsys.readouterr()
    assert tradeloop(["models", "permit"]) == 0
    assert "inference: MANAGE of registered_model one taken away" in capsys.readouterr().out
    with pytest.raises(urllib.error.HTTPError, match="403"):
        ask("inference", "POST", "2.0/mlflow/users/create", username="another", password=PASSWORD)


def test_only_an_administrator_permits(
    permitted: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for address, told in {
        permitted("training"): "its user is no administrator, or the password wrong",
        permitted(USER).replace(PASSWORD, "another-password"): "its user is no administrator, or the password wrong",
        "sqlite:///mlflow.db": "is no MLflow with users",
    }.items():
        monkeypatch.setenv("TRADELOOP_MLFLOW_TRACKING_URI", address)
        capsys.readouterr()
        assert tradeloop(["models", "permit"]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert told in line
        assert PASSWORD not in line
