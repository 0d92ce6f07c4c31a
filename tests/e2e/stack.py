"""Five service processes over real servers, and what they leave behind."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from sqlalchemy import create_engine, text

from deploy.native.server import Program, Server, free_ports
from tests.servers import RealServer, fresh_database
from tradeloop.cli.client.client import Client, Failed, M, Request
from tradeloop.cli.client.deployment import SERVICES, Deployment
from tradeloop.common.bar_store.sql import SCHEMA as BARS
from tradeloop.common.bus.kafka import KafkaBus, KafkaSettings
from tradeloop.common.clock import SystemClock
from tradeloop.common.messages.topics import SERVICE_TOPICS, specs
from tradeloop.common.portfolio import Portfolio, portfolio_yaml
from tradeloop.common.runtime.readback import all_records
from tradeloop.common.sql.migrations import migrate
from tradeloop.execution.adapters.ledger_versions import SCHEMA as LEDGER
from tradeloop.ingest.adapters.fetched_versions import SCHEMA as FETCHED

PROBE = Path(__file__).parent / "probe"
"""On the path of each process: its folder of metadata makes the strategy `probe` an installed one."""
T = TypeVar("T")


@dataclass(frozen=True)
class Addresses:
    """Where the servers are."""

    kafka: str
    """`host:port`."""
    database: str
    """SQLAlchemy URL of a database of this stack alone, migrated."""
    redis: str
    """`host:port,db=N`, as Feast writes it."""
    mlflow: str
    """HTTP URL."""


def process(name: str, service: str, environment: Mapping[str, str], folder: Path) -> Server:
    """One replica of a service. It may be killed and started again; nobody waits until it is ready."""
    path = os.pathsep.join(filter(None, (str(PROBE), os.environ.get("PYTHONPATH"))))
    command = (sys.executable, "-m", f"tradeloop.{service}.main")
    return Server(Program(name, command, name, lambda: True, {"PYTHONPATH": path, **environment}), folder)


@dataclass
class Stack:
    """The services of some portfolios, with topics, database and online features of their own."""

    addresses: Addresses
    portfolios: Sequence[Portfolio]
    folder: Path
    prefix: str
    """Of its topics and groups."""
    processes: dict[str, Server] = field(default_factory=dict)
    """By name: the service and the number of its replica."""
    extra: dict[str, dict[str, str]] = field(default_factory=dict)
    """Further settings of a service, by service."""

    def __post_init__(self) -> None:
        self.bus = KafkaBus(KafkaSettings(bootstrap_servers=self.addresses.kafka, prefix=self.prefix))
        self.bus.create_topics(specs(SERVICE_TOPICS))
        self.client = Client(self.bus, SystemClock(), say=lambda _: None)
        books = self.folder / "portfolios"
        books.mkdir(parents=True)
        for portfolio in self.portfolios:
            (books / f"{portfolio.name}.yaml").write_text(portfolio_yaml(portfolio))
        for service in SERVICES:
            self.add(service)

    def add(self, service: str, replica: int = 0) -> Server:
        """Another replica of a service; not started yet."""
        name = f"{service}-{replica}"
        self.processes[name] = process(name, service, self._environment(service, name), self.folder)
        return self.processes[name]

    def serve_http(self, services: Sequence[str]) -> dict[str, int]:
        """Let services answer over HTTP, on ports that are given back by service; before they are started."""
        ports = dict(zip(services, free_ports(len(services)), strict=True))
        for service, port in ports.items():
            self.extra.setdefault(service, {})["HTTP__PORT"] = str(port)
            self.add(service)
        return ports

    def feast(self) -> dict[str, dict[str, str]]:
        """The sections of Feast's configuration: the registry in the database, the online store in Redis."""
        return {
            "registry": {"registry_type": "sql", "path": self.addresses.database},
            "online_store": {"type": "redis", "connection_string": self.addresses.redis},
        }

    def start(self) -> None:
        for one in self.processes.values():
            one.start()

    def supervise(self) -> None:
        """Start again what ended by itself, as an orchestrator would."""
        for one in self.processes.values():
            one.start()  # does nothing for one that runs

    def stop(self) -> None:
        """Let every service finish what it took, and commit."""
        with ThreadPoolExecutor(len(self.processes)) as pool:  # an interpreter takes a second or two to end
            for _ in pool.map(Server.stop, self.processes.values()):
                pass

    def kill(self) -> None:
        for one in self.processes.values():
            one.kill()

    def distinct(self, topic: str) -> dict[str, bytes]:
        """What a topic says, by event id. A repetition must be the same bytes."""
        found: dict[str, bytes] = {}
        for record in all_records(self.bus, topic):
            identity = record.headers["ce_id"]
            first = found.setdefault(identity, record.value)
            assert first == record.value, f"{topic}: two versions of {identity}:\n{first!r}\n{record.value!r}"
        return found

    def ask(self, request: Request, answer: type[M], timeout_s: float = 300.0) -> M:
        """Send a request and wait for its answer; fails with the ends of the logs when it does not come in time."""
        try:
            return self.client.ask(request, answer, timeout_s=timeout_s)
        except Failed as error:
            raise AssertionError(f"{error}\n{self.said()}") from error

    def settled(self, last: Mapping[str, int]) -> bool:
        """Whether each portfolio has decided on its last bar, given by its close in microseconds."""
        engine = create_engine(self.addresses.database)
        try:
            with engine.connect() as connection:
                rows = connection.execute(text("SELECT portfolio, decided_us FROM execution_books")).all()
        finally:
            engine.dispose()
        decided = {row.portfolio: row.decided_us for row in rows}
        return all(decided.get(portfolio, -1) >= time_us for portfolio, time_us in last.items())

    def rows(self, table: str, columns: str) -> list[tuple[object, ...]]:
        """Columns of a table of the database, in their order."""
        engine = create_engine(self.addresses.database)
        try:
            with engine.connect() as connection:
                found = connection.execute(text(f"SELECT {columns} FROM {table} ORDER BY {columns}"))
                return [tuple(row) for row in found]
        finally:
            engine.dispose()

    def eventually(self, found: Callable[[], T | None], what: str | Callable[[], str], timeout_s: float = 300.0) -> T:
        """Poll until something is there; fails with the ends of the logs when it does not come in time.

        `what` says what that is, a function of it what is missing then.
        """
        began = time.monotonic()
        while True:
            if result := found():
                return result
            waited = time.monotonic() - began
            if waited >= timeout_s:
                missing = what if isinstance(what, str) else what()
                raise AssertionError(f"no {missing} within {timeout_s:g} s\n{self.said()}")
            # To ask takes connections, and what is asked needs the processors: what takes long is asked less often.
            time.sleep(min(0.1 + waited / 50, 1.0))

    def said(self) -> str:
        """The ends of all logs."""
        return "\n".join(
            f"--- {name}\n{one.log.read_text(errors='replace')[-1500:]}"
            for name, one in self.processes.items()
            if one.log.exists()
        )

    def _environment(self, service: str, name: str) -> dict[str, str]:
        at = self.addresses
        feast = self.feast()
        deployment = Deployment(
            database_url=at.database,
            ledger_url=at.database,
            mlflow_tracking_uri=at.mlflow,
            feature_root=self.folder / "features",
            feature_registry=feast["registry"],
            feature_online_store=feast["online_store"],
            portfolio_folder=self.folder / "portfolios",
            kafka={"bootstrap_servers": at.kafka, "prefix": self.prefix},
        )
        extra = {f"{service.upper()}_{key}": value for key, value in self.extra.get(service, {}).items()}
        return deployment.environment(service, name) | extra


@dataclass
class Servers:
    """Kafka, PostgreSQL and Redis, which may be killed and started again, and where MLflow is."""

    kafka: RealServer
    postgres: RealServer
    redis: RealServer
    mlflow: str
    _stacks: int = 0

    @contextmanager
    def stack(self, portfolios: Sequence[Portfolio], folder: Path) -> Iterator[Stack]:
        """A stack with topics, a migrated database and online features of its own; killed in the end."""
        self._stacks += 1
        name = f"stack{self._stacks}-{os.getpid()}"
        with fresh_database(self.postgres.address) as database:
            migrate(database, BARS)
            migrate(database, FETCHED)
            migrate(database, LEDGER)
            online = f"{self.redis.address},db={self._stacks % 16}"
            addresses = Addresses(self.kafka.address, database, online, self.mlflow)
            stack = Stack(addresses, portfolios, folder / name, f"{name}.")
            try:
                yield stack
            finally:
                stack.kill()
