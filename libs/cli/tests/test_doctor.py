"""`tradeloop doctor` on real servers, on servers that lie, and where there is none."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from deploy.native.kafka import SUPERUSER, sign_in
from deploy.native.kafka import kafka as kafka_program
from deploy.native.postgres import driver_url
from deploy.native.server import Server, free_ports
from tradeloop.cli.doctor.clocks import ServerTime, offset
from tradeloop.cli.doctor.finding import Check, Finding, Level, examined, ok
from tradeloop.cli.doctor.machine import docker
from tradeloop.cli.main import main
from tradeloop.common.addresses import hide
from tradeloop.common.bar_store.sql import SCHEMA as BARS
from tradeloop.common.bus.kafka import KafkaBus, KafkaSettings
from tradeloop.common.bus.port import Access
from tradeloop.common.clock import ManualClock, SystemClock
from tradeloop.common.event_store.sql import SCHEMA as EVENTS
from tradeloop.common.messages.topics import CATALOGUE, SERVICE_TOPICS, accesses, specs
from tradeloop.common.sql.migrations import migrate
from tradeloop.common.sql.roles import DATABASES, ROLES, create_roles, role_url
from tradeloop.execution.adapters.ledger_versions import SCHEMA as LEDGER
from tradeloop.ingest.adapters.fetched_versions import SCHEMA as FETCHED

USERS = (SUPERUSER, *SERVICE_TOPICS)
MISSING = "market.news.v1"
Environment = Mapping[str, str]


def secret(user: str) -> str:
    return f"hunter2-{user}"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Kafka with users, the topics and the permissions of the catalogue."""
    folder = tmp_path_factory.mktemp("examined-kafka")
    [port] = free_ports(1)
    with Server(kafka_program(folder, port, {user: secret(user) for user in USERS}), folder) as server:
        with closing(bus_of(server.address)) as bus:
            bus.create_topics(specs(SERVICE_TOPICS))
            bus.permit(accesses())
        yield server.address


@pytest.fixture(scope="module")
def databases(postgres: str) -> Iterator[str]:
    """A PostgreSQL with the databases, roles and tables of a stack."""
    with psycopg.connect(driver_url(postgres), autocommit=True) as admin:
        try:
            create_roles(postgres, {role: secret(role) for role in ROLES})
            for database, schemas in (("bars", (BARS, FETCHED, EVENTS)), ("ledger", (LEDGER,))):
                for schema in schemas:
                    migrate(url_of(postgres, database), schema)
            yield postgres
        finally:
            for name in DATABASES:
                admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            for role in ROLES:
                admin.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


def bus_of(address: str) -> KafkaBus:
    return KafkaBus(KafkaSettings(bootstrap_servers=address, **sign_in(SUPERUSER, secret(SUPERUSER))))  # type: ignore[arg-type]


def url_of(server: str, database: str) -> str:
    return make_url(server).set(database=database).render_as_string(hide_password=False)


def kafka_of(prefix: str, address: str, user: str) -> dict[str, str]:
    told = {"bootstrap_servers": address, **sign_in(user, secret(user))}
    return {f"{prefix}_KAFKA__{name.upper()}": value for name, value in told.items()}


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    prefixes = tuple(f"{name.upper()}_" for name in ("tradeloop", *SERVICE_TOPICS))
    for name in [name for name in os.environ if name.startswith(prefixes)]:
        if not name.startswith("TRADELOOP_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture
def stack(broker: str, databases: str, redis: str, mlflow: str, tmp_path: Path) -> Environment:
    """The environment of an operator, and of two services."""
    (features := tmp_path / "features").mkdir()
    (portfolios := tmp_path / "portfolios").mkdir()
    assert main(["portfolio", "new", "--bars", str(bars(tmp_path)), "--out", str(portfolios / "bars.yaml")]) == 0
    return {
        **kafka_of("TRADELOOP", broker, SUPERUSER),
        "TRADELOOP_DATABASE_URL": url_of(databases, "bars"),
        "TRADELOOP_LEDGER_URL": url_of(databases, "ledger"),
        "TRADELOOP_MLFLOW_TRACKING_URI": mlflow,
        **kafka_of("PREPROCESS", broker, "preprocess"),
        "PREPROCESS_DATABASE_URL": role_url(databases, "preprocess", "bars", secret("preprocess")),
        "PREPROCESS_FEATURE_ROOT": str(features),
        "PREPROCESS_FEATURE_ONLINE_STORE": json.dumps({"type": "redis", "connection_string": redis}),
        "PREPROCESS_PORTFOLIO_FOLDER": str(portfolios),
        **kafka_of("EXECUTION", broker, "execution"),
        "EXECUTION_LEDGER_URL": role_url(databases, "execution", "ledger", secret("execution")),
        "EXECUTION_PORTFOLIO_FOLDER": str(portfolios),
    }


def bars(folder: Path) -> Path:
    file = folder / "bars.csv"
    rows = [f"2024-01-01 {n // 60:02}:{n % 60:02},1,2,1,2" for n in range(20)]
    file.write_text("\n".join(["time,open,high,low,close", *rows]) + "\n")
    return file


class Seen:
    """What a doctor said of an environment."""

    def __init__(self, code: int, text: str, seconds: float) -> None:
        lines = [json.loads(line) for line in text.splitlines()]
        self.code, self.text, self.seconds = code, text, seconds
        self.failed = {line["subject"]: line for line in lines if line["level"] == "failed"}
        self.warned = {line["subject"]: line for line in lines if line["level"] == "warning"}
        self.levels = {line["subject"]: line["level"] for line in lines}


def seen(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: Environment,
    *arguments: str,
) -> Seen:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    capsys.readouterr()
    began = time.monotonic()
    code = main(["doctor", "--json", "--within", "60", "--free", "0", *arguments])
    found = capsys.readouterr()
    assert found.err == ""
    assert "hunter2" not in found.out
    return Seen(code, found.out, time.monotonic() - began)


def test_a_stack_that_is_well(
    stack: Environment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = seen(monkeypatch, capsys, stack)
    assert (found.code, found.failed, found.warned) == (0, {}, {})
    well = {subject for subject, level in found.levels.items() if level == "ok"}
    assert {
        *("Python", "packages", "settings of command", "settings of preprocess", "settings of execution"),
        *("Kafka of command", "Kafka of preprocess", "Kafka of execution", "topics", "permissions"),
        *("permissions of preprocess", "permissions of execution", "database bars", "database bars of preprocess"),
        *("database ledger", "database ledger of execution", "migrations of bars", "migrations of ledger"),
        *("rights of ingest", "rights of preprocess", "rights of execution", "clock beside database bars"),
        *("MLflow of TRADELOOP_MLFLOW_TRACKING_URI", "registry of TRADELOOP_MLFLOW_TRACKING_URI"),
        *("Redis of PREPROCESS_FEATURE_ONLINE_STORE", "clock beside Redis of PREPROCESS_FEATURE_ONLINE_STORE"),
        *("feature root of preprocess", "disk of feature root of preprocess", "disk of the home"),
    } <= well


def test_what_is_missing_or_old_is_named_with_the_remedy(
    stack: Environment,
    broker: str,
    databases: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A topic that is gone, tables of before, a permission and a right that somebody took away."""
    wrong = [
        Access(each.user, each.group, each.reads, each.writes - {"execution.fills.v1"}, each.sees | {MISSING})
        for each in accesses()
    ]
    with closing(bus_of(broker)) as bus, psycopg.connect(driver_url(url_of(databases, "bars")), autocommit=True) as own:
        bus.delete_topics([MISSING])
        bus.permit(wrong)
        own.execute("UPDATE bars_version SET version_num = '0000'")
        own.execute("REVOKE INSERT ON bars FROM ingest")
        try:
            found = seen(monkeypatch, capsys, stack)
        finally:
            own.execute(sql.SQL("UPDATE bars_version SET version_num = {}").format(sql.Literal(BARS.head)))
            own.execute("GRANT INSERT ON bars TO ingest")
            bus.create_topics(specs(SERVICE_TOPICS))
            bus.permit(accesses())
    assert found.code == 1
    assert {subject: line["remedy"] for subject, line in found.failed.items()} == {
        "topics": "tradeloop topics apply",
        "permissions": "tradeloop topics permit",
        "permissions of execution": "tradeloop topics apply, then tradeloop topics permit, as a user who may do all",
        "permissions of preprocess": "tradeloop topics apply, then tradeloop topics permit, as a user who may do all",
        "migrations of bars": "tradeloop db migrate",
        "rights of ingest": "tradeloop db roles",
    }
    assert found.failed["topics"]["said"] == f"missing: {MISSING}"
    assert "execution WRITE topic execution.fills.v1" in found.failed["permissions"]["said"]
    assert "WRITE topic execution.fills.v1" in found.failed["permissions of execution"]["said"]
    assert f"bars has version 0000, {BARS.head} is needed" in found.failed["migrations of bars"]["said"]
    assert found.failed["rights of ingest"]["said"] == "in bars it lacks INSERT ON bars"


def test_a_topic_that_is_set_otherwise_is_a_warning(
    stack: Environment, broker: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "market.bars.v1"
    spec = CATALOGUE[name].spec
    with closing(bus_of(broker)) as bus:
        assert bus.differences([spec]) == []
        other = type(spec)(name, spec.partitions, 1, spec.retention_bytes)
        bus.configure(bus.differences([other]))
        try:
            found = seen(monkeypatch, capsys, stack, "command")
        finally:
            bus.configure(bus.differences([spec]))
    assert (found.code, found.failed) == (0, {})
    assert found.warned["topics"]["said"] == f"set otherwise: {name}: retention.ms is 86400000, not 2592000000"


def test_a_wrong_password_is_told_from_a_server_that_is_away(
    stack: Environment,
    databases: str,
    redis: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The password of a user is wrong for each server, and no line quotes it."""
    wrong = {
        "PREPROCESS_KAFKA__SASL_PASSWORD": "hunter2-wrong",
        "PREPROCESS_DATABASE_URL": role_url(databases, "preprocess", "bars", "hunter2-wrong"),
        "PREPROCESS_FEATURE_ONLINE_STORE": json.dumps(
            {"type": "redis", "connection_string": f"{redis},password=hunter2-wrong"}
        ),
    }
    found = seen(monkeypatch, capsys, {**stack, **wrong}, "preprocess")
    assert found.code == 1
    assert found.failed.keys() == {
        "Kafka of preprocess",
        "database bars of preprocess",
        "Redis of PREPROCESS_FEATURE_ONLINE_STORE",
    }
    kafka, postgres = found.failed["Kafka of preprocess"], found.failed["database bars of preprocess"]
    assert "uthentication failed" in kafka["said"]
    assert "PREPROCESS_KAFKA__SASL_*" in kafka["remedy"]
    assert "password authentication failed" in postgres["said"]
    assert "tradeloop db roles" in postgres["remedy"]


@contextmanager
def silence() -> Iterator[str]:
    """A port that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_servers_that_say_nothing_hold_nobody_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with silence() as silent:
        found = seen(
            monkeypatch,
            capsys,
            {
                "TRADELOOP_KAFKA__BOOTSTRAP_SERVERS": silent,
                "TRADELOOP_DATABASE_URL": f"postgresql+psycopg://me:hunter2@{silent}/bars",
                "TRADELOOP_LEDGER_URL": f"postgresql+psycopg://me:hunter2@{silent}/ledger",
                "TRADELOOP_MLFLOW_TRACKING_URI": f"http://me:hunter2@{silent}",
                "TRAINING_KAFKA__BOOTSTRAP_SERVERS": silent,
                "TRAINING_DATABASE_URL": "sqlite:///bars.db",
                "TRAINING_FEATURE_ROOT": str(tmp_path),
                "TRAINING_FEATURE_ONLINE_STORE": json.dumps({"type": "redis", "connection_string": silent}),
                "TRAINING_MLFLOW_TRACKING_URI": f"http://{silent}",
            },
            *("--within", "4"),
        )
    assert found.code == 1
    assert found.failed.keys() == {
        *("Kafka of command", "database bars", "database ledger", "MLflow of TRADELOOP_MLFLOW_TRACKING_URI"),
        *("Kafka of training", "MLflow of TRAINING_MLFLOW_TRACKING_URI", "Redis of TRAINING_FEATURE_ONLINE_STORE"),
    }
    assert all(line["remedy"] for line in found.failed.values())


def test_what_nothing_ends_is_left_behind() -> None:
    never = threading.Event()

    def hangs() -> Iterator[Finding]:
        yield ok("first", "found before")
        never.wait()

    began = time.monotonic()
    found = list(examined([Check("second", hangs, "look"), Check("third", lambda: [ok("third", "fine")])], 0.2))
    assert [(each.level, each.subject) for each in found] == [
        (Level.OK, "first"),
        (Level.FAILED, "second"),
        (Level.OK, "third"),
    ]
    assert (found[1].said, found[1].remedy) == ("no answer within 0.2 s", "look")
    assert time.monotonic() - began < 60.0
    never.set()


def test_a_driver_that_quotes_a_secret_is_not_repeated() -> None:
    hide({"hunter3-and-more"})

    def fails() -> Iterator[Finding]:
        raise RuntimeError("cannot sign in to http://me:hunter2@there with hunter3-and-more")

    [found] = examined([Check("it", fails)], 60.0)
    assert found.said == "RuntimeError: cannot sign in to http://me:***@there with ***"


class _Liar(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>welcome to nginx</html>")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_another_server_at_the_address_is_no_mlflow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Liar) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_address[1]}"
        found = seen(monkeypatch, capsys, {"TRADELOOP_MLFLOW_TRACKING_URI": uri})
        server.shutdown()
    [line] = found.failed.values()
    assert (line["said"], line["remedy"]) == (
        f"{uri} is no MLflow: it tells no version",
        "mend TRADELOOP_MLFLOW_TRACKING_URI",
    )


def test_an_open_kafka_is_a_warning_and_its_topics_are_missing(
    kafka: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {"TRADELOOP_KAFKA__BOOTSTRAP_SERVERS": kafka, "TRADELOOP_KAFKA__PREFIX": "nobody."}
    found = seen(monkeypatch, capsys, environment)
    assert found.failed.keys() == {"topics"}, found.text
    assert found.warned["permissions"]["said"].startswith("Kafka refuses nobody anything")


def test_nothing_is_set_up_and_nothing_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = seen(monkeypatch, capsys, {})
    assert (found.code, found.failed) == (0, {})
    assert [subject for subject, level in found.levels.items() if level == "not used"][:5] == [
        *("services", "Kafka", "database bars", "database ledger", "MLflow"),
    ]


@pytest.mark.parametrize(("free", "level"), [("1e9", "failed"), ("0", "ok")])
def test_a_full_disk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, free: str, level: str
) -> None:
    found = seen(monkeypatch, capsys, {}, "--free", free, "--home", str(tmp_path / "not yet" / "there"))
    assert found.levels["disk of the home"] == level
    assert found.code == (level == "failed")


def test_every_fault_of_the_settings_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {"INGEST_DATABASE_ULR": "postgresql+psycopg://me:hunter2@here/bars", "INGEST_MIN_ROWS": "hunter2"}
    found = seen(monkeypatch, capsys, environment)
    said = [json.loads(line)["said"] for line in found.text.splitlines() if '"failed"' in line]
    assert [line.partition(":")[0].partition(" (")[0] for line in said] == [
        "environment variable INGEST_DATABASE_ULR is unknown",
        "INGEST_DATABASE_URL",
        "environment variable INGEST_MIN_ROWS",
    ]


def test_an_unknown_service_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "broker"]) == 2
    assert capsys.readouterr().err.startswith("tradeloop: there is no service broker: there are command, ingest,")


@pytest.mark.parametrize(
    ("ahead_s", "coarse_s", "level"),
    [
        (0.0, 0.0, Level.OK),
        (2.0, 0.0, Level.WARNING),
        (-2.0, 0.0, Level.WARNING),
        (0.5, 1.0, Level.OK),
        (90.0, 1.0, Level.FAILED),
        (-90.0, 0.0, Level.FAILED),
    ],
)
def test_a_clock_that_is_off(ahead_s: float, coarse_s: float, level: Level) -> None:
    now = datetime(2024, 1, 1, tzinfo=UTC)
    there = (now + timedelta(seconds=ahead_s)).timestamp()
    [found] = offset("x", ManualClock(now), lambda: ServerTime(there, coarse_s))
    assert found.level is level
    assert ("behind" in found.said) == (ahead_s > 0 or coarse_s > 0)


def test_the_clock_of_a_database_is_asked(
    databases: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Late(SystemClock):
        def now(self) -> datetime:
            return super().now() - timedelta(minutes=5)

    monkeypatch.setattr("tradeloop.common.clock.SystemClock", Late)
    found = seen(monkeypatch, capsys, {"TRADELOOP_DATABASE_URL": url_of(databases, "bars")})
    assert found.failed.keys() == {"clock beside database bars"}
    assert "behind" in found.failed["clock beside database bars"]["said"]


@pytest.mark.parametrize(
    ("answers", "level"),
    [
        ({"version": "29.1", "compose": "v5.0.1"}, Level.OK),
        ({"version": "29.1", "compose": "1.29.2"}, Level.WARNING),
        ({"version": "29.1"}, Level.WARNING),
        ({}, Level.UNUSED),
    ],
)
def test_docker(answers: dict[str, str], level: Level) -> None:
    [found] = docker(lambda command: answers.get(command[1]))
    assert found.level is level


def test_for_people_the_remedy_is_below(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--free", "1e9", "--home", str(tmp_path)]) == 1
    said = capsys.readouterr().out.splitlines()
    at = next(n for n, line in enumerate(said) if line.startswith("failed   disk of the home: "))
    assert said[at + 1] == "           make room, or move the home to another disk"
    assert said[-1].endswith("1 failed")
