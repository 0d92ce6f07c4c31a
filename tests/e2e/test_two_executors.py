"""Two execution processes never both trade one account, on a real Kafka and a real PostgreSQL.

A group gives a universe to one process at a time. That is no proof: a process that hung for a while does not know that
its partitions went to another, and goes on with what it had fetched. So a book moves by a compare-and-swap on its
revision in the ledger, and orders leave after that alone.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from structlog.testing import capture_logs

from deploy.native.server import Server
from tests.e2e.stack import process
from tests.e2e.test_five_processes import COMPARED, register
from tests.e2e.worlds import World
from tests.waiting import until
from tradeloop.cli.client.client import Client
from tradeloop.cli.client.deployment import Deployment
from tradeloop.cli.client.embedded import embedded
from tradeloop.common.bus.kafka import KafkaBus, KafkaSettings
from tradeloop.common.clock import SystemClock
from tradeloop.common.market import to_us
from tradeloop.common.messages import BackfillCompleted, BarFrame, Message, OrderFilled, SignalGenerated
from tradeloop.common.messages.topics import SERVICE_TOPICS, specs, topic_of
from tradeloop.common.portfolio import portfolio_yaml
from tradeloop.common.runtime.readback import all_records
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.sql.migrations import migrate
from tradeloop.common.strategy import load
from tradeloop.execution.adapters.bus_history import BusHistory
from tradeloop.execution.adapters.ledger_versions import SCHEMA as LEDGER
from tradeloop.execution.adapters.paper import PaperVenue
from tradeloop.execution.adapters.sql_ledger import SqlLedger
from tradeloop.execution.application import Execution

TRADED, CHUNKS = 480, 4
OUTPUTS = tuple(kind for kind in COMPARED if kind is not SignalGenerated)
CLOCK = SystemClock()
Outputs = dict[type[Message], dict[str, Message]]


class Second(Execution):
    """One that is in no group with the first: both are given all messages."""

    name = "execution-second"


@dataclass
class Account:
    """A book, what it is given, and what one process alone makes of that."""

    world: World
    inputs: Sequence[Message]
    expected: Outputs


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Account:
    folder = tmp_path_factory.mktemp("account")
    world = World("twice", 2, TRADED, folder / "bars")
    with embedded(folder / "home", [world.portfolio]) as stack:
        register(stack.models, [world])
        stack.client.ask(world.backfill(), BackfillCompleted)
        stack.replay(world.replay(), lambda: None)
        signals = {each.time: each for each in stack.client.read(SignalGenerated)}
        inputs: list[Message] = []
        for frame in sorted(stack.client.read(BarFrame), key=lambda frame: frame.close_time):
            inputs += [frame, *(signals[time] for time in [frame.close_time] if time in signals)]
        expected: Outputs = {kind: {each.identity: each for each in stack.client.read(kind)} for kind in OUTPUTS}
    assert len(signals) > 0.9 * TRADED
    return Account(world, inputs, expected)


@dataclass
class Place:
    """A prefix of a real Kafka, and a database of a real PostgreSQL."""

    settings: KafkaSettings
    database: str
    client: Client

    def decided_us(self) -> int:
        engine = create_engine(self.database)
        try:
            with engine.connect() as connection:
                return int(connection.scalar(text("SELECT max(decided_us) FROM execution_books")) or -1)
        finally:
            engine.dispose()

    def wait_for(self, chunk: Sequence[Message]) -> None:
        """Until all decisions of it are in the ledger."""
        until(lambda: self.has_decided(chunk))

    def has_decided(self, chunk: Sequence[Message]) -> bool:
        return self.decided_us() >= max(to_us(each.time) for each in chunk if isinstance(each, SignalGenerated))

    def came_out_as(self, account: Account) -> None:
        """What went out, and what is in the ledger, is what one process alone makes of it."""
        for kind in OUTPUTS:
            told: dict[str, bytes] = {}
            for record in all_records(self.client.bus, topic_of(kind).name):
                identity = record.headers["ce_id"]
                assert told.setdefault(identity, record.value) == record.value, "two versions of one message"
            found = {message.identity: message for message in self.client.read(kind)}
            assert found == account.expected[kind], kind.__name__
        fills = account.expected[OrderFilled]
        assert len(fills) > TRADED // 4, "it trades"
        engine = create_engine(self.database)
        with closing(engine.connect()) as connection:
            assert connection.scalar(text("SELECT count(*) FROM execution_fills")) == len(fills)
        engine.dispose()


@pytest.fixture
def place(kafka: str, database: str) -> Iterator[Place]:
    """Empty, and of this test alone."""
    migrate(database, LEDGER)
    settings = KafkaSettings(bootstrap_servers=kafka, prefix=f"twice-{os.urandom(4).hex()}.")
    with closing(KafkaBus(settings)) as bus:
        bus.create_topics(specs(SERVICE_TOPICS))
        yield Place(settings, database, Client(bus, CLOCK, say=lambda _: None))


def executor(place: Place, account: Account, folder: Path, number: int) -> Server:
    """A process of execution: a member with a name of its own of the same group."""
    books = folder / "portfolios"
    books.mkdir(exist_ok=True)
    (books / "book.yaml").write_text(portfolio_yaml(account.world.portfolio))
    kafka = {"bootstrap_servers": place.settings.bootstrap_servers, "prefix": place.settings.prefix}
    # The shortest that a broker lets a member be silent: then its partitions go to the other one.
    deployment = Deployment(
        ledger_url=place.database, portfolio_folder=books, kafka={**kafka, "session_timeout_s": "6"}
    )
    name = f"execution-{number}"
    return process(name, "execution", deployment.environment("execution", name), folder)


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    """A process that hangs, with all that it had fetched, and knows nothing of what happens meanwhile."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_a_process_that_hung_and_goes_on_trades_nothing_of_what_is_anothers(
    place: Place, account: Account, tmp_path: Path
) -> None:
    """Each of two in turn hangs in the midst of its work, for longer than its group waits for it."""
    executors = [executor(place, account, tmp_path, number) for number in range(2)]
    size = -(-len(account.inputs) // CHUNKS)
    chunks = [account.inputs[start : start + size] for start in range(0, len(account.inputs), size)]
    with ExitStack() as running:
        for each in executors:
            running.callback(each.kill)
            each.start()
        place.client.send(*chunks[0])
        place.wait_for(chunks[0])
        for number, chunk in enumerate(chunks[1:]):
            place.client.send(*chunk[: size // 2])
            with frozen(executors[number % 2]):
                place.client.send(*chunk[size // 2 :])
                place.wait_for(chunk)
        for each in executors:
            each.stop()
    place.came_out_as(account)


def test_two_that_both_believe_to_own_a_book_trade_it_once(place: Place, account: Account) -> None:
    """No group keeps them apart: only the ledger is left, and it lets one of them on at each step."""

    def runner(kind: type[Execution]) -> Runner:
        bus = KafkaBus(place.settings)
        ledger = SqlLedger(place.database, bus.identity)
        service = kind([account.world.portfolio], load, PaperVenue, ledger, BusHistory(bus), CLOCK)
        return Runner(service, bus, CLOCK)

    def step_until_decided(chunk: Sequence[Message]) -> bool:
        for each in (one, other):
            each.step(timeout_s=0.01)
        return place.has_decided(chunk)

    with closing(runner(Execution)) as one, closing(runner(Second)) as other, capture_logs() as logs:
        until(lambda: all(each.step(timeout_s=0.05) >= 0 and each.assigned for each in (one, other)))
        for start in range(0, len(account.inputs), 40):
            chunk = account.inputs[start : start + 40]
            place.client.send(*chunk)
            until(partial(step_until_decided, chunk))
    conflicts = [each for each in logs if each["event"] == "another process has gone on with a book"]
    assert len(conflicts) > 5, "they met"
    place.came_out_as(account)
