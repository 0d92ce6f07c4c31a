"""The contract of the ledger, for every adapter; then what only the one on a database promises."""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psycopg
import pytest
from sqlalchemy import Connection, create_engine, make_url, text
from structlog.testing import capture_logs

from tests.servers import RealServer, fresh_database
from tests.tiers import execute, read_only
from tests.waiting import PATIENCE_S, until
from tradeloop.common.bus.port import Partition
from tradeloop.common.market import from_us
from tradeloop.common.messages import Message, OrderFilled, OrderStatus, OrderUpdated, PortfolioMarked
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.sql.migrations import migrate
from tradeloop.execution.adapters.ledger_versions import SCHEMA
from tradeloop.execution.adapters.memory_ledger import MemoryLedger
from tradeloop.execution.adapters.sql_ledger import (
    PRIVILEGES,
    Pruned,
    SqlLedger,
    books,
    fills,
    metadata,
    orders,
    outbox,
)
from tradeloop.execution.contracts import (
    LEDGER_CHECKS,
    MakeLedger,
    any_log,
    book_of,
    check_ledger,
    same_record,
    sample_fill,
    sample_mark,
    sample_order,
    sample_record,
)
from tradeloop.execution.ports import Change, Effects, Ledger, LedgerConflict, LedgerUnavailable
from tradeloop.execution.record import BookRecord

REFUSED = (sqlite3.IntegrityError, psycopg.IntegrityError)


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    """The URL of a new ledger."""
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def postgresql(plain_postgres: str) -> str:
    """The URL of a migrated ledger that holds nothing."""
    migrate(plain_postgres, SCHEMA)
    execute(plain_postgres, f"TRUNCATE {', '.join(table.name for table in metadata.sorted_tables)}")
    return plain_postgres


def opener(ledger: MemoryLedger) -> MakeLedger:
    """Opens a ledger that is in memory."""

    def make_ledger(identity: Callable[[str], str] = any_log) -> MemoryLedger:
        ledger.identity = identity
        return ledger

    return make_ledger


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def make_ledger(request: pytest.FixtureRequest) -> MakeLedger:
    """Opens the same ledger anew, as a restarted process does; a ledger in memory stays what it is."""
    if request.param == "memory":
        return opener(MemoryLedger())
    return partial(SqlLedger, request.getfixturevalue(request.param))


@pytest.mark.parametrize("check", LEDGER_CHECKS, ids=lambda check: check.__name__)
def test_contract(make_ledger: MakeLedger, check: Callable[[MakeLedger], None]) -> None:
    check(make_ledger)


def test_one_storage_takes_the_whole_contract() -> None:
    check_ledger(opener(MemoryLedger()))


class Unfenced(MemoryLedger):
    """Lets a process write that another has overtaken."""

    def record(self, changes: Sequence[Change], acknowledged: Sequence[tuple[str, str]] = ()) -> None:
        for change in changes:
            self._books[change.portfolio] = change.before
        super().record(changes, acknowledged)


class OneByOne(MemoryLedger):
    """Writes each book on its own."""

    def record(self, changes: Sequence[Change], acknowledged: Sequence[tuple[str, str]] = ()) -> None:
        for change in changes:
            super().record([change])
        super().record([], acknowledged)


class Retracting(MemoryLedger):
    """Lets offsets go back."""

    def acknowledge(self, inputs: Sequence[tuple[str, str]], offsets: Mapping[Partition, int]) -> None:
        super().acknowledge(inputs, {})
        self._offsets.update((partition, (self.identity(partition.topic), o)) for partition, o in offsets.items())


class Indifferent(MemoryLedger):
    """Takes offsets of any log."""

    def offsets(self) -> Mapping[Partition, int]:
        return {partition: offset for partition, (_, offset) in self._offsets.items()}


class Hoarding(MemoryLedger):
    """Keeps outputs that have left."""

    def acknowledge(self, inputs: Sequence[tuple[str, str]], offsets: Mapping[Partition, int]) -> None:
        super().acknowledge([], offsets)


class HoardingWhatCameAlong(MemoryLedger):
    """Keeps outputs that have left when that is said with a record."""

    def record(self, changes: Sequence[Change], acknowledged: Sequence[tuple[str, str]] = ()) -> None:
        super().record(changes)


class Sorting(MemoryLedger):
    """Gives outputs in an order of its own."""

    def unsent(self, portfolios: Sequence[str]) -> Mapping[str, Sequence[tuple[str, Sequence[Message]]]]:
        return {
            name: [(one, sorted(outputs, key=lambda message: type(message).__name__)) for one, outputs in inputs]
            for name, inputs in super().unsent(portfolios).items()
        }


class SortingInputs(MemoryLedger):
    """Gives inputs in the order of their ids."""

    def unsent(self, portfolios: Sequence[str]) -> Mapping[str, Sequence[tuple[str, Sequence[Message]]]]:
        return {name: sorted(inputs, key=str) for name, inputs in super().unsent(portfolios).items()}


class Rounding(MemoryLedger):
    """Keeps the state of the reward as float32."""

    def load(self, portfolios: Sequence[str]) -> Mapping[str, BookRecord]:
        return {name: self._rounded(record) for name, record in super().load(portfolios).items()}

    def _rounded(self, record: BookRecord) -> BookRecord:
        rounded = {key: np.asarray(x, dtype=np.float32).tolist() for key, x in record.reward_state.items()}
        return replace(record, reward_state=rounded)


class Releasing(MemoryLedger):
    """Forgets a quarantine."""

    def load(self, portfolios: Sequence[str]) -> Mapping[str, BookRecord]:
        return {name: replace(record, quarantine=None) for name, record in super().load(portfolios).items()}


class OneOutbox(MemoryLedger):
    """Tells inputs by their id alone."""

    def unsent(self, portfolios: Sequence[str]) -> Mapping[str, Sequence[tuple[str, Sequence[Message]]]]:
        everything = [(one, outputs) for (_, one), outputs in self._outputs.items()]
        return dict.fromkeys(portfolios, everything) if everything else {}


class LastOnly(MemoryLedger):
    """Keeps the outputs of the last of several inputs alone."""

    def record(self, changes: Sequence[Change], acknowledged: Sequence[tuple[str, str]] = ()) -> None:
        last = [replace(change, effects=dict(list(change.effects.items())[-1:])) for change in changes]
        super().record(last, acknowledged)


@pytest.mark.parametrize(
    "defect",
    [
        Unfenced,
        OneByOne,
        Retracting,
        Hoarding,
        HoardingWhatCameAlong,
        Sorting,
        SortingInputs,
        Rounding,
        Releasing,
        OneOutbox,
        LastOnly,
    ],
)
def test_the_contract_finds_defects(defect: type[MemoryLedger]) -> None:
    with pytest.raises(AssertionError):
        check_ledger(opener(defect()))


def test_the_contract_finds_a_ledger_that_forgets() -> None:
    with pytest.raises(AssertionError):
        check_ledger(MemoryLedger)


def test_M3_outputs_that_did_not_leave_are_with_the_next_process(make_ledger: MakeLedger) -> None:
    """A process dies after it recorded, and before its outputs left; what led to them does not come again."""
    mark, later = sample_mark(1.0), sample_mark(2.0)
    first, second = sample_record(), replace(sample_record(), revision=2)

    def unsent(ledger: Ledger) -> list[tuple[str, list[Message]]]:
        return [(input_id, list(outputs)) for input_id, outputs in ledger.unsent(["p"])["p"]]

    with closing(make_ledger()) as dies:
        dies.record([Change("p", BookRecord(), first, {"in-2": Effects(outputs=[mark])})])
        dies.record([Change("p", first, second, {"in-1": Effects(outputs=[later, mark])})])
    with closing(make_ledger()) as heir:
        assert unsent(heir) == [("in-2", [mark]), ("in-1", [later, mark])]
        heir.acknowledge([("p", "in-2")], {})
        assert unsent(heir) == [("in-1", [later, mark])]


# Only SQL


ORDERS = [sample_order() for _ in range(3)]
FILLS = [sample_fill(order) for order in ORDERS]
RECORD = replace(sample_record(), working=(ORDERS[1],))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """A transaction of another client."""
    engine = create_engine(url)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def count(url: str) -> dict[str, int]:
    """How many rows there are of what an input leaves."""
    with connected(url) as connection:
        return {
            table.name.removeprefix("execution_"): len(connection.execute(table.select()).all())
            for table in (orders, fills, outbox)
        }


@pytest.mark.parametrize(
    ("before", "fills", "raises"),
    [
        pytest.param(RECORD, [FILLS[2], FILLS[1]], REFUSED, id="the second fill has the id of the first"),
        pytest.param(
            BookRecord(revision=1, marked_us=1), [FILLS[2]], (LedgerConflict,), id="the book stands elsewhere"
        ),
    ],
)
def test_a_failed_record_leaves_nothing(
    url: str, before: BookRecord, fills: list[OrderFilled], raises: tuple[type[Exception], ...]
) -> None:
    after = BookRecord(revision=before.revision + 1, marked_us=9)
    changed = Effects(orders=[ORDERS[2]], fills=fills, outputs=[sample_mark(3.0)])
    with closing(SqlLedger(url)) as ledger:
        first = Effects(orders=[ORDERS[1]], fills=[FILLS[1]], outputs=[sample_mark(1.0)])
        ledger.record([Change("p", BookRecord(), RECORD, {"in-1": first})])
        with pytest.raises(raises):
            ledger.record([Change("p", before, after, {"in-2": changed})])
        assert count(url) == {"orders": 1, "fills": 1, "outbox": 1}
        assert same_record(book_of(ledger, "p"), RECORD)
        ledger.record([Change("p", RECORD, after, {"in-2": replace(changed, fills=[FILLS[2]])})])
        assert count(url) == {"orders": 2, "fills": 2, "outbox": 2}


@pytest.mark.parametrize("signal", [RECORD.signal, b'{"b": 1}'], ids=["same signal", "other signal"])
@pytest.mark.parametrize("effects", [{}, {"in-1": Effects(orders=[ORDERS[2]], outputs=[sample_mark(3.0)])}])
def test_a_book_that_is_gone_is_not_written(url: str, signal: bytes, effects: dict[str, Effects]) -> None:
    with closing(SqlLedger(url)) as ledger:
        ledger.record([Change("p", BookRecord(), RECORD, {})])
        with connected(url) as connection:
            connection.execute(books.delete())
        with pytest.raises(LedgerConflict, match="portfolio p"):
            ledger.record([Change("p", RECORD, replace(RECORD, revision=2, signal=signal), effects)])
        assert count(url) == {"orders": 0, "fills": 0, "outbox": 0}
        assert book_of(ledger, "p") == BookRecord()


FIRST, SECOND = sample_record(), replace(sample_record(), revision=2, marked_us=9)


def goes_on(ledger: Ledger) -> None:
    ledger.record([Change("p", FIRST, SECOND, {})])


def acknowledges(ledger: Ledger) -> None:
    ledger.acknowledge([("p", "in-1")], {})


def one_hangs(url: str) -> bool:
    """Whether a session changed rows and waits for its client, which sends them before the server takes them."""
    sessions = text(
        "SELECT 1 FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE datname = current_database()"
        " AND wait_event = 'ClientRead' AND locktype = 'transactionid'"
    )
    with connected(url) as connection:  # one transaction sees the same activity as often as it asks
        return bool(connection.execute(sessions).all())


@pytest.mark.parametrize("work", [goes_on, acknowledges])
def test_nobody_waits_for_one_that_hangs_in_a_transaction(
    work: Callable[[Ledger], None], postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "tradeloop.execution.adapters.sql_ledger.ledger"
    monkeypatch.setattr(f"{module}._HUNG_S", 2.0)
    hung, thawed = threading.Event(), threading.Event()

    def run_and_hang(cursor: psycopg.Cursor, sql: str, rows: Sequence[Sequence[object]]) -> None:
        if rows:
            cursor.executemany(sql, rows)
        hung.set()
        assert thawed.wait(PATIENCE_S)

    with closing(SqlLedger(postgresql)) as one, closing(SqlLedger(postgresql)) as other, ThreadPoolExecutor() as pool:
        other.record([Change("p", BookRecord(), FIRST, {"in-1": Effects(outputs=[sample_mark(1.0)])})])
        with monkeypatch.context() as patched:
            patched.setattr(f"{module}._run", run_and_hang)
            late = pool.submit(work, one)
            assert hung.wait(PATIENCE_S)
        try:
            until(lambda: one_hangs(postgresql))
            with pytest.raises(LedgerUnavailable, match="lock timeout"), capture_logs() as logs:
                work(other)
            assert [line["sessions"] for line in logs] == [1]
            work(other)
        finally:
            thawed.set()
        with pytest.raises(LedgerUnavailable, match="connection"):
            late.result()
        if work is goes_on:
            with pytest.raises(LedgerConflict):
                work(one)
            assert same_record(book_of(other, "p"), SECOND)
        else:
            assert other.unsent(["p"]) == {}


def test_looking_for_a_book_makes_no_row(url: str) -> None:
    with closing(SqlLedger(url)) as ledger:
        assert book_of(ledger, "p") == BookRecord()
    with connected(url) as connection:
        assert connection.execute(books.select()).all() == []


OLD = """
CREATE TABLE execution_books (portfolio VARCHAR(64) PRIMARY KEY, marked_us BIGINT NOT NULL, decided_us BIGINT NOT NULL,
    state TEXT NOT NULL, signal TEXT NOT NULL);
CREATE TABLE execution_outbox (portfolio VARCHAR(64) NOT NULL, input_id VARCHAR(36) NOT NULL, messages TEXT NOT NULL,
    PRIMARY KEY (portfolio, input_id));
CREATE TABLE execution_offsets (topic VARCHAR(249) NOT NULL, partition INTEGER NOT NULL, next_offset BIGINT NOT NULL,
    PRIMARY KEY (topic, partition));
CREATE TABLE execution_fills (fill_id VARCHAR(36) PRIMARY KEY, order_id VARCHAR(36) NOT NULL,
    portfolio VARCHAR(64) NOT NULL, account VARCHAR(64) NOT NULL, time_us BIGINT NOT NULL,
    instrument VARCHAR(97) NOT NULL, side VARCHAR(4) NOT NULL, quantity FLOAT NOT NULL, price FLOAT NOT NULL,
    fee FLOAT NOT NULL);
"""
"""Tables of a ledger as the release before revisions made them; that of orders is as it was."""


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_ledger_of_the_release_before_goes_on(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Its tables lack columns, its books a revision; it made a row for a book that had no bar yet."""
    output = f"{topic_of(PortfolioMarked).name} {sample_mark(1.0).encode().decode()}"
    state = '{{"book": {}, "reward": {{}}, "working": []}}'
    rows = f"""
INSERT INTO execution_books VALUES ('new', -1, -1, '{state.format("{}")}', '');
INSERT INTO execution_books VALUES ('old', 7, 6, '{state.format('{"cash": 1.0}')}', '');
INSERT INTO execution_outbox VALUES ('old', 'in-1', '{output}');
INSERT INTO execution_offsets VALUES ('t', 3, 41);
"""
    if database == "sqlite":
        url = f"sqlite:///{tmp_path}/ledger.db"
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
            connection.executescript(OLD + rows)
    else:
        url = request.getfixturevalue("plain_database")
        version = "CREATE TABLE ledger_version (version_num VARCHAR(32)); INSERT INTO ledger_version VALUES ('0001');"
        execute(url, OLD + rows + version)
        migrate(url, SCHEMA)
    with closing(SqlLedger(url)) as ledger:
        found = ledger.load(["new", "old"])
        assert found == {"new": BookRecord(), "old": BookRecord(marked_us=7, decided_us=6, book={"cash": 1.0})}
        assert ledger.unsent(["old"]) == {"old": [("in-1", [sample_mark(1.0)])]}
        assert ledger.offsets() == {Partition("t", 3): 41}
        after = {name: replace(book, revision=1, marked_us=8) for name, book in found.items()}
        effects = {"in-2": Effects(outputs=[sample_mark(2.0)])}
        traded = {"new": effects, "old": {"in-2": Effects(fills=[FILLS[0]], outputs=[sample_mark(2.0)])}}
        ledger.record([Change(name, book, after[name], traded[name]) for name, book in found.items()])
        assert ledger.load(["new", "old"]) == after
        assert [one for one, _ in ledger.unsent(["old"])["old"]] == ["in-1", "in-2"]
        with pytest.raises(LedgerConflict, match="portfolio new, old"):
            ledger.record([Change(name, book, after[name], {}) for name, book in found.items()])


def test_orders_and_fills_are_rows_that_anyone_can_query(tmp_path: Path) -> None:
    ledger = SqlLedger(f"sqlite:///{tmp_path}/ledger.db")
    ledger.record([Change("p", BookRecord(), RECORD, {"in-1": Effects(orders=[ORDERS[1]])})])
    filled = ORDERS[1].model_copy(update={"status": "filled", "filled_quantity": 1.5})
    closing_fill = FILLS[1].model_copy(update={"fill_id": "closing", "price": 0.0, "reason": "delisting"})
    effects = {"in-2": Effects(orders=[filled], fills=[FILLS[1], closing_fill])}
    ledger.record([Change("p", RECORD, replace(RECORD, revision=2), effects)])
    ledger.close()
    with create_engine(f"sqlite:///{tmp_path}/ledger.db").connect() as connection:
        rows = connection.execute(text("select status, filled_quantity from execution_orders")).all()
        assert [tuple(row) for row in rows] == [("filled", 1.5)]
        fills = connection.execute(text("select price, reason from execution_fills order by reason")).all()
        assert [tuple(row) for row in fills] == [(0.1 + 0.2, ""), (0.0, "delisting")]


def test_an_unreachable_database_is_unavailable(tmp_path: Path) -> None:
    ledger = SqlLedger(f"sqlite:///{tmp_path}/no/such/folder/ledger.db")
    with pytest.raises(LedgerUnavailable, match="ledger"):
        book_of(ledger, "p")


def test_a_server_that_dies_is_unavailable_and_comes_back(plain_postgres_server: RealServer) -> None:
    with fresh_database(plain_postgres_server.address) as url:
        migrate(url, SCHEMA)
        ledger = SqlLedger(url)
        before = book_of(ledger, "p")
        plain_postgres_server.kill()
        try:
            for _ in range(2):
                with pytest.raises(LedgerUnavailable, match="ledger postgresql"):
                    ledger.record([Change("p", before, RECORD, {"in-1": Effects()})])
                with pytest.raises(LedgerUnavailable, match="ledger postgresql"):
                    book_of(ledger, "p")
        finally:
            plain_postgres_server.start()
        ledger.record([Change("p", before, RECORD, {"in-1": Effects()})])
        assert same_record(book_of(ledger, "p"), RECORD)
        ledger.close()


def test_a_ledger_waits_for_the_migration(plain_database: str) -> None:
    ledger = SqlLedger(plain_database)
    with pytest.raises(LedgerUnavailable, match="it has no tables yet; run: tradeloop db migrate"):
        book_of(ledger, "p")
    migrate(plain_database, SCHEMA)
    assert book_of(ledger, "p") == BookRecord()
    ledger.close()


def test_M7_a_read_only_database_is_unavailable(plain_database: str) -> None:
    migrate(plain_database, SCHEMA)
    effects = {"in-1": Effects(orders=[ORDERS[1]], fills=[FILLS[1]], outputs=[sample_mark(1.0)])}
    with closing(SqlLedger(plain_database)) as ledger:
        ledger.check()
        with read_only(plain_database):
            with pytest.raises(LedgerUnavailable, match="administrator command"):
                ledger.load(["p"])
            assert book_of(ledger, "p") == BookRecord()
            with pytest.raises(LedgerUnavailable, match=r"ledger postgresql.*it takes no writes"):
                ledger.check()
            for _ in range(2):
                with pytest.raises(LedgerUnavailable, match=r"ledger postgresql.*read-only transaction"):
                    ledger.record([Change("p", BookRecord(), RECORD, effects)])
                with pytest.raises(LedgerUnavailable, match="read-only transaction"):
                    ledger.acknowledge([("p", "in-1")], {Partition("t", 0): 1})
        ledger.check()
        ledger.record([Change("p", BookRecord(), RECORD, effects)])
        assert same_record(book_of(ledger, "p"), RECORD)


def test_M7_a_user_that_may_not_write_is_unavailable(plain_database: str) -> None:
    migrate(plain_database, SCHEMA)
    user = f"reader_{secrets.token_hex(4)}"
    execute(plain_database, f"CREATE ROLE {user} LOGIN PASSWORD 'x'", f"GRANT pg_read_all_data TO {user}")
    url = make_url(plain_database).set(username=user, password="x").render_as_string(hide_password=False)
    try:
        with closing(SqlLedger(url)) as ledger:
            assert book_of(ledger, "p") == BookRecord()
            with pytest.raises(LedgerUnavailable, match="may not write: GRANT INSERT ON execution_books; GRANT UPDATE"):
                ledger.check()
            with pytest.raises(LedgerUnavailable, match="permission denied for table execution_books"):
                ledger.record([Change("p", BookRecord(), RECORD, {})])
            execute(plain_database, f"GRANT pg_write_all_data TO {user}")
            ledger.check()
            ledger.record([Change("p", BookRecord(), RECORD, {})])
            execute(plain_database, f"ALTER ROLE {user} CONNECTION LIMIT 0")
            with pytest.raises(LedgerUnavailable, match="too many connections"), closing(SqlLedger(url)) as another:
                another.load(["p"])
    finally:
        execute(plain_database, f"DROP ROLE {user}")


def test_M7_a_file_that_takes_no_writes_is_unavailable(tmp_path: Path) -> None:
    with closing(SqlLedger(f"sqlite:///{tmp_path}/ledger.db")) as ledger:
        ledger.record([Change("p", BookRecord(), RECORD, {})])
    with closing(SqlLedger(f"sqlite:///file:{tmp_path}/ledger.db?mode=ro&uri=true")) as ledger:
        for _ in range(2):
            with pytest.raises(LedgerUnavailable, match="readonly database"):
                ledger.check()
            with pytest.raises(LedgerUnavailable, match="readonly database"):
                ledger.record([Change("p", RECORD, replace(RECORD, revision=2), {})])


def grant(url: str, user: str) -> str:
    """Make a user of PostgreSQL that has the privileges that the service is said to need, and no others; its URL."""
    granted = [f"GRANT {', '.join(privileges)} ON {table} TO {user}" for table, privileges in PRIVILEGES.items()]
    execute(url, f"CREATE ROLE {user} LOGIN PASSWORD 'x'", f"GRANT SELECT ON ledger_version TO {user}", *granted)
    return make_url(url).set(username=user, password="x").render_as_string(hide_password=False)


def test_the_privileges_that_are_named_are_enough(plain_database: str) -> None:
    migrate(plain_database, SCHEMA)
    user = f"execution_{secrets.token_hex(4)}"
    url = grant(plain_database, user)
    try:
        check_ledger(partial(SqlLedger, url))
        with pytest.raises(LedgerUnavailable, match="permission denied"), closing(SqlLedger(url)) as ledger:
            ledger.prune(0)
    finally:
        execute(plain_database, f"DROP OWNED BY {user}", f"DROP ROLE {user}")


def test_H7_an_order_may_have_several_fills_and_works_until_it_ends(url: str) -> None:
    order = sample_order()
    parts = [sample_fill(order).model_copy(update={"quantity": quantity}) for quantity in (0.5, 1.0)]
    sent = BookRecord(revision=1, working=(order,))
    with closing(SqlLedger(url)) as ledger:
        ledger.record([Change("p", BookRecord(), sent, {"in-1": Effects(orders=[order])})])
        assert book_of(ledger, "p").working == (order,), "whoever takes the book over has to send it again"
        effects = {f"in-{n}": Effects(fills=[part]) for n, part in enumerate(parts, 2)}
        ledger.record([Change("p", sent, replace(sent, revision=2, working=()), effects)])
        assert book_of(ledger, "p").working == ()
    with connected(url) as connection:
        rows = connection.execute(fills.select().where(fills.c.order_id == order.order_id)).mappings().all()
    assert sorted((row["fill_id"], row["quantity"]) for row in rows) == sorted((p.fill_id, p.quantity) for p in parts)


DAY_US = 86_400_000_000


def test_pruning_deletes_what_is_old_and_closed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tradeloop.execution.adapters.sql_ledger.pruning._AT_ONCE", 2)

    def made(day: int, status: OrderStatus, portfolio: str) -> tuple[OrderUpdated, OrderFilled]:
        order = sample_order()
        time = from_us(day * DAY_US)
        order = order.model_copy(update={"decision_time": time, "status": status, "portfolio": portfolio})
        return order, sample_fill(order).model_copy(update={"time": time, "portfolio": portfolio})

    rows = {(name, day): made(day, "filled", name) for name in ("p", "stopped") for day in range(10)}
    rows |= {("p", 10): made(0, "working", "p"), ("p", 11): made(1, "partially_filled", "p")}
    rows |= {("no book", 0): made(0, "filled", "no book")}
    listed = rows["p", 11][0]
    effects = {"in": Effects(orders=[order for order, _ in rows.values()], fills=[fill for _, fill in rows.values()])}
    last = {"p": BookRecord(revision=1, marked_us=9 * DAY_US, working=(listed,))}
    last["stopped"] = BookRecord(revision=1, marked_us=4 * DAY_US)
    with closing(SqlLedger(url)) as ledger:
        ledger.record([Change(name, BookRecord(), book, effects if name == "p" else {}) for name, book in last.items()])
        books_before = ledger.load(["p", "stopped"])
        assert ledger.prune(2 * DAY_US) == [Pruned("p", 7 * DAY_US, 7, 7), Pruned("stopped", 2 * DAY_US, 2, 2)]
        assert ledger.prune(2 * DAY_US) == [Pruned("p", 7 * DAY_US, 0, 0), Pruned("stopped", 2 * DAY_US, 0, 0)]
        assert ledger.load(["p", "stopped"]) == books_before
        ledger.record([Change("p", books_before["p"], replace(books_before["p"], revision=2), {})])
    gone = {("p", day) for day in range(7)} | {("stopped", 0), ("stopped", 1)}
    with connected(url) as connection:
        kept = {row.order_id for row in connection.execute(orders.select())}
        assert kept == {order.order_id for key, (order, _) in rows.items() if key not in gone}
        kept = {row.fill_id for row in connection.execute(fills.select())}
        assert kept == {fill.fill_id for key, (_, fill) in rows.items() if key not in gone}
