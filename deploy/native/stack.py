"""The whole stack as processes of this machine: servers, topics, tables and the five services.

All state is in one folder: data by server, `log/<name>.log`, `run/<name>.pid`, and `env`, which tells a shell where
things are.
"""

from __future__ import annotations

import fcntl
import json
import secrets
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import make_url

from deploy.certificates import Certified, issue
from deploy.native.kafka import SUPERUSER, kafka, sign_in
from deploy.native.mlflow import USER, http_answers, mlflow
from deploy.native.postgres import best_installation, postgres
from deploy.native.redis import SUPERUSER as REDIS_SUPERUSER
from deploy.native.redis import redis
from deploy.native.server import Program, Server, ServerError, claim, free_ports, run, write_secret
from tradeloop.cli.client.deployment import SERVICES, Deployment, settings_class
from tradeloop.common.clock import SystemClock
from tradeloop.common.model_store.permissions import RIGHTS as MODEL_RIGHTS
from tradeloop.common.sql.roles import ROLES, create_roles, role_url

PORTS = {
    "kafka": 9092,
    "postgres": 5432,
    "redis": 6379,
    "mlflow": 5000,
    **{service: 8081 + n for n, service in enumerate(SERVICES)},
}
"""Ports by server and service, in the order in which they start: each is taken unless something else does."""
SERVERS = tuple(name for name in PORTS if name not in SERVICES)

EXAMPLE_SOURCES = Path(__file__).parents[1] / "sources.example.yaml"

_READY_TIMEOUT_S = 180.0

Environment = Mapping[str, str]
Say = Callable[[str], None]


def _redis_users(passwords: Mapping[str, str]) -> dict[str, str]:
    services = {
        name: passwords[name] for name in SERVICES if "feature_online_store" in settings_class(name).model_fields
    }
    return {REDIS_SUPERUSER: passwords["redis"], **services}


class Stack:
    """The stack in the folder `home`: its data and its processes. `say` tells a person."""

    def __init__(self, home: Path, say: Say) -> None:
        self._home, self._say = home.resolve(), say
        self._logs, self._run = self._home / "log", self._home / "run"
        self._holds = ExitStack()
        """On ports of servers that are starting."""

    def up(self, portfolios: Path, sources: Path = EXAMPLE_SOURCES, *, tls: bool = False) -> None:
        """Start what does not run yet, and wait until all of it is ready. `sources` are those of market data, a file.

        With `tls` the servers speak nothing else, with certificates of a private authority.
        Raises `ServerError` that says what did not start, after stopping what this call started.
        """
        files = {path.name: path.read_text() for path in sorted(portfolios.glob("*.yaml"))}
        if not files:
            raise ServerError(f"no portfolios in {portfolios}: put a YAML file for each one there")
        if not sources.is_file():
            raise ServerError(f"no sources in {sources}: copy deploy/sources.example.yaml there")
        files[str(sources)] = sources.read_text()
        with self._alone(), self._holds, self._all_or_nothing() as started:
            passwords = self._passwords()
            self._certify(tls)
            self._start_servers(passwords, started)
            server = self._address("postgres")
            create_roles(server, {role: passwords[role] for role in ROLES})
            owner = str(make_url(server).username), str(make_url(server).password)
            signed_in = self._kafka(SUPERUSER, passwords[SUPERUSER])
            where = {
                **{f"TRADELOOP_KAFKA__{name.upper()}": value for name, value in signed_in.items()},
                "TRADELOOP_DATABASE_URL": role_url(server, owner[0], "bars", owner[1]),
                "TRADELOOP_LEDGER_URL": role_url(server, owner[0], "ledger", owner[1]),
                "TRADELOOP_MLFLOW_TRACKING_URI": self._mlflow(passwords["mlflow"]),
                **self._trusting,
            }
            users = {f"TRADELOOP_ROLES__{user.upper()}": passwords[user] for user in MODEL_RIGHTS}
            for arguments in (("topics", "apply"), ("topics", "permit"), ("db", "migrate"), ("models", "permit")):
                self._say(f"tradeloop {' '.join(arguments)}")
                run([str(Path(sys.executable).with_name("tradeloop")), *arguments], {**where, **users})
            settings = {
                name: self._deployment(portfolios, sources, name, passwords).environment(name) for name in SERVICES
            }
            self._stop_outdated(json.dumps([settings, files]))
            self._start_services(settings, started)
            exports = (f"export {name}={shlex.quote(value)}\n" for name, value in where.items())
            write_secret(self._home / "env", "".join(exports))
        for name in PORTS:
            address = self._address(name)
            self._say(f"  {name:<12}{make_url(address) if name == 'postgres' else address}")  # prints no password

    def down(self, *, clean: bool = False) -> None:
        """Stop what runs from this folder, services first; `clean` also removes what it holds."""
        if not self._home.is_dir():
            self._say("nothing runs")
            return
        with self._alone():
            if not [name for name in reversed(PORTS) if self._stop(name)]:
                self._say("nothing runs")
            if clean:
                shutil.rmtree(self._home)
                self._say(f"removed {self._home}")

    def _start_servers(self, passwords: Mapping[str, str], started: list[Server]) -> None:
        self._say_what_runs(SERVERS)
        users = {name: passwords[name] for name in (SUPERUSER, *SERVICES)}
        recipes: dict[str, Callable[[Path, int], Program]] = {
            "kafka": partial(kafka, passwords=users, tls=self._certified("kafka")),
            "postgres": lambda folder, port: postgres(
                folder, port, best_installation(), tls=self._certified("postgres")
            ),
            "redis": partial(redis, passwords=_redis_users(passwords), tls=self._certified("redis")),
            "mlflow": partial(mlflow, password=passwords["mlflow"], tls=self._certified("mlflow")),
        }
        for name in self._down(SERVERS):
            self._say(f"starting {name}")
            folder = self._home / name
            folder.mkdir(exist_ok=True)
            self._launch(recipes[name](folder, self._port(name)), started)
        for server in started:
            server.wait()

    def _passwords(self) -> dict[str, str]:
        """The passwords, made once: by role of PostgreSQL, user of Kafka and MLflow, and of Redis."""
        file = self._run / "passwords"
        known = json.loads(file.read_text()) if file.exists() else {}
        passwords = {name: known.get(name) or secrets.token_hex(24) for name in (*ROLES, SUPERUSER, "redis")}
        if passwords != known:  # what runs already was started without those that are new
            for name in reversed(PORTS):
                self._stop(name)
        write_secret(file, json.dumps(passwords))
        return passwords

    def _certify(self, tls: bool) -> None:
        """Certificates for the servers, or none. They read them when they start: new ones are a new start of all."""
        folder = self._home / "tls"
        had = folder.is_dir()
        if tls:
            issued = issue(folder, {name: ["127.0.0.1", "localhost"] for name in SERVERS}, SystemClock().now())
            if issued:
                self._say(f"new certificates for {', '.join(issued)} in {folder}")
        elif had:
            shutil.rmtree(folder)
        if issued if tls else had:
            for name in reversed(PORTS):
                self._stop(name)

    def _certified(self, server: str) -> Certified | None:
        found = Certified(self._home / "tls", server)
        return found if found.authorities.exists() else None

    @property
    def _authorities(self) -> Path | None:
        found = self._certified("")
        return None if found is None else found.authorities

    @property
    def _trusting(self) -> dict[str, str]:
        """The variable of MLflow's own that names the authorities."""
        return {} if self._authorities is None else {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(self._authorities)}

    def _kafka(self, user: str, password: str) -> dict[str, str]:
        return {"bootstrap_servers": self._address("kafka"), **sign_in(user, password, self._authorities)}

    def _mlflow(self, password: str, user: str = USER) -> str:
        return self._address("mlflow").replace("://", f"://{user}:{password}@")

    def _deployment(self, portfolios: Path, sources: Path, service: str, passwords: Mapping[str, str]) -> Deployment:
        """The settings of a service, as `deploy/docker-compose.yml` gives them: it is a user and a role of its own."""
        url = partial(role_url, self._address("postgres"), service, password=passwords[service])
        redis_url = f"{self._address('redis')},username={service},password={passwords[service]}"
        if self._authorities is not None:
            redis_url += f",ssl=true,ssl_ca_certs={self._authorities}"
        return Deployment(
            database_url=url(database="bars"),
            ledger_url=url(database="ledger"),
            mlflow_tracking_uri=self._mlflow(passwords[service], service) if service in MODEL_RIGHTS else None,
            feature_root=self._home / "features",
            feature_registry={"registry_type": "sql", "path": url(database="features")},
            feature_online_store={"type": "redis", "connection_string": redis_url},
            sources=sources.resolve(),
            portfolio_folder=portfolios.resolve(),
            kafka=self._kafka(service, passwords[service]),
        )

    def _stop_outdated(self, told: str) -> None:
        """Stop services that were told something else when they started."""
        record = self._run / "told"
        if record.exists() and record.read_text() != told:
            for name in reversed(SERVICES):
                self._stop(name)
        write_secret(record, told)

    def _start_services(self, settings: Mapping[str, Environment], started: list[Server]) -> None:
        self._say_what_runs(SERVICES)
        launched = []
        for name in self._down(SERVICES):
            self._say(f"starting {name}")
            port = self._port(name)
            address = f"http://127.0.0.1:{port}"
            program = Program(
                name,
                (sys.executable, "-m", f"tradeloop.{name}.main"),
                address,
                partial(http_answers, f"{address}/ready"),
                {**settings[name], **self._trusting, f"{name.upper()}_HTTP__PORT": str(port)},
                start_timeout_s=_READY_TIMEOUT_S,
            )
            launched.append(self._launch(program, started))
        for server in launched:
            server.wait()

    def _launch(self, program: Program, started: list[Server]) -> Server:
        server = Server(program, self._run, logs=self._logs, leashed=False)
        write_secret(self._run / f"{program.name}.address", program.address)
        started.append(server)
        server.launch()
        return server

    def _say_what_runs(self, names: tuple[str, ...]) -> None:
        for name in names:
            if self._found(name).running:
                self._say(f"{name} runs already")

    def _down(self, names: tuple[str, ...]) -> list[str]:
        return [name for name in names if not self._found(name).running]

    def _stop(self, name: str) -> bool:
        """Whether there was something to stop."""
        server = self._found(name)
        if running := server.running:
            self._say(f"stopping {name}")
            server.stop()
        return running

    def _found(self, name: str) -> Server:
        """A server or service that an earlier call may have started: it can be stopped, not started."""
        end = signal.SIGINT if name == "postgres" else signal.SIGTERM
        return Server(Program(name, (), "", lambda: False, stop_signal=end), self._run, logs=self._logs, leashed=False)

    def _address(self, name: str) -> str:
        return (self._run / f"{name}.address").read_text()

    def _port(self, name: str) -> int:
        """The port of the last time, or its own, where nothing listens there, and no stack that starts now is to.

        It is this one's until `up` ends.
        """
        try:
            address = self._address(name)
        except FileNotFoundError:
            port = PORTS[name]
        else:
            port = urlsplit(f"//{address.rpartition('://')[2]}").port or PORTS[name]
        wanted = port
        while (hold := claim(port)) is None:
            [port] = free_ports(1)
        self._holds.enter_context(closing(hold))
        if port != wanted:
            self._say(f"port {wanted} is taken: {name} gets {port}")
        return port

    @contextmanager
    def _alone(self) -> Iterator[None]:
        # Passable, not readable: PostgreSQL runs as a user of its own. Secrets are files of mode 0600.
        self._home.mkdir(mode=0o711, exist_ok=True)
        for folder in (self._logs, self._run):
            folder.mkdir(mode=0o700, exist_ok=True)
        with (self._home / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ServerError(f"another command starts or stops {self._home} now: wait for its end") from None
            yield

    @contextmanager
    def _all_or_nothing(self) -> Iterator[list[Server]]:
        started: list[Server] = []
        try:
            yield started
        except BaseException:
            for server in reversed(started):
                if server.running:
                    self._say(f"stopping {server.program.name}")
                    server.stop()
            raise
