"""Five service processes over real servers, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from sqlalchemy import create_engine, text

from tradeloop.common.bus import Record
from tradeloop.common.kafka import KafkaBus, KafkaSettings
from tradeloop.common.messages import Message
from tradeloop.common.portfolio import Portfolio, portfolio_yaml
from tradeloop.common.service import headers_of
from tradeloop.common.topics import CATALOGUE, specs, topic_of

PROBE = Path(__file__).parent / "probe"
"""On the path of each process: its folder of metadata makes the strategy `probe` an installed one."""
SERVICES = ("ingest", "preprocess", "training", "inference", "execution")
M = TypeVar("M", bound=Message)
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


@dataclass
class Process:
    """One service process; it may be killed and started again, under the same name."""

    name: str
    service: str
    environment: Mapping[str, str]
    log: Path
    running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.running = subprocess.Popen(
                [sys.executable, "-m", f"tradeloop.{self.service}.main"],
                env={**os.environ, "PYTHONPATH": str(PROBE), **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.log.parent,
            )

    def kill(self) -> None:
        """`kill -9`: nothing is drained, flushed or committed."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, as an orchestrator stops it; fails when the service does not end well."""
        code = self._end(signal.SIGTERM)
        assert code == 0, f"{self.name} ended with {code}:\n{self.log.read_text(errors='replace')[-4000:]}"

    @property
    def alive(self) -> bool:
        return self.running is not None and self.running.poll() is None

    def _end(self, signum: signal.Signals) -> int:
        if self.running is None:
            return 0
        if self.running.poll() is None:
            self.running.send_signal(signum)
        code = self.running.wait(timeout=60)
        self.running = None
        return code


@dataclass
class Stack:
    """The services of some portfolios, with topics, database and online features of their own."""

    addresses: Addresses
    portfolios: Sequence[Portfolio]
    folder: Path
    prefix: str
    """Of its topics and groups."""
    processes: dict[str, Process] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bus = KafkaBus(KafkaSettings(bootstrap_servers=self.addresses.kafka, prefix=self.prefix))
        self.bus.create_topics(specs({}))
        books = self.folder / "portfolios"
        books.mkdir(parents=True)
        for portfolio in self.portfolios:
            (books / f"{portfolio.name}.yaml").write_text(portfolio_yaml(portfolio))
        for service in SERVICES:
            self.add(service)

    def add(self, service: str, replica: int = 0) -> Process:
        """Another replica of a service; not started yet."""
        name = f"{service}-{replica}"
        process = Process(name, service, self._environment(service, name), self.folder / f"{name}.log")
        self.processes[name] = process
        return process

    def start(self) -> None:
        for process in self.processes.values():
            if not process.alive:
                process.start()

    def stop(self) -> None:
        for process in self.processes.values():
            process.stop()

    def kill(self) -> None:
        for process in self.processes.values():
            process.kill()

    def send(self, *messages: Message) -> None:
        """Publish as the command would."""
        producer = self.bus.producer()
        for message in messages:
            topic = topic_of(type(message))
            producer.publish(topic.name, message.key, message.encode(), headers_of(message, topic, "cli"))
        producer.flush()
        producer.close()

    def records(self, topic: str) -> list[Record]:
        """All records of a topic, by partition and offset."""
        begins = self.bus.begin_offsets(topic)
        return [
            record
            for partition, end in self.bus.end_offsets(topic).items()
            if end > begins[partition]
            for record in self.bus.read(partition, begins[partition], end)
        ]

    def read(self, kind: type[M]) -> list[M]:
        """The messages of a type, without repetitions, by universe and time of first publication."""
        return [kind.model_validate_json(value) for value in self.distinct(topic_of(kind).name).values()]

    def distinct(self, topic: str) -> dict[str, bytes]:
        """What a topic says, by event id. A repetition must be the same bytes."""
        found: dict[str, bytes] = {}
        for record in self.records(topic):
            identity = record.headers["ce_id"]
            assert found.setdefault(identity, record.value) == record.value, f"{topic}: two versions of {identity}"
        return found

    def ask(self, request: Message, answer: type[M], timeout_s: float = 180.0) -> M:
        """Send a request and wait for its answer."""
        self.send(request)

        def answered() -> M | None:
            found = [one for one in self.read(answer) if getattr(one, "request_id", "") == request.identity]
            return found[0] if found else None

        return self.eventually(answered, f"{answer.__name__} for {request.identity}", timeout_s)

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

    def rows(self, table: str, order: str) -> list[tuple[object, ...]]:
        """A table of the database."""
        engine = create_engine(self.addresses.database)
        try:
            with engine.connect() as connection:
                return [tuple(row) for row in connection.execute(text(f"SELECT * FROM {table} ORDER BY {order}"))]
        finally:
            engine.dispose()

    def eventually(self, found: Callable[[], T | None], what: str, timeout_s: float = 180.0) -> T:
        """Poll until something is there; fails with the ends of the logs when it does not come in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            if result := found():
                return result
            assert time.monotonic() < deadline, f"no {what} within {timeout_s:g} s\n{self.said()}"
            time.sleep(0.1)

    def said(self) -> str:
        """The ends of all logs."""
        return "\n".join(
            f"--- {name}\n{process.log.read_text(errors='replace')[-1500:]}"
            for name, process in self.processes.items()
            if process.log.exists()
        )

    def dead_letters(self) -> int:
        """How many messages were given up on."""
        return sum(
            end
            for service in SERVICES
            for topic in CATALOGUE
            if self.bus.partitions(name := f"{topic}.dlq.{service}")
            for end in self.bus.end_offsets(name).values()
        )

    def _environment(self, service: str, name: str) -> dict[str, str]:
        at = self.addresses
        values = {"KAFKA__BOOTSTRAP_SERVERS": at.kafka, "KAFKA__PREFIX": self.prefix, "KAFKA__GROUP_INSTANCE_ID": name}
        books = {"PORTFOLIO_FOLDER": str(self.folder / "portfolios")}
        bars = {"DATABASE_URL": at.database}
        features = {
            "FEATURE_ROOT": str(self.folder / "features"),
            "FEATURE_REGISTRY": json.dumps({"registry_type": "sql", "path": at.database}),
            "FEATURE_ONLINE_STORE": json.dumps({"type": "redis", "connection_string": at.redis}),
        }
        models = {"MLFLOW_TRACKING_URI": at.mlflow}
        values |= {
            "ingest": bars,
            "preprocess": {**bars, **books, **features},
            "training": {**bars, **features, **models},
            "inference": {**bars, **books, **models},
            "execution": {**books, "LEDGER_URL": at.database},
        }[service]
        return {f"{service.upper()}_{key}": value for key, value in values.items()}


@contextmanager
def running(stack: Stack) -> Iterator[Stack]:
    """The stack, started; killed in the end, whatever happens."""
    try:
        stack.start()
        yield stack
    finally:
        stack.kill()
