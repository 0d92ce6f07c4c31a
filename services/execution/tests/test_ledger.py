"""The contract of the ledger, for every adapter; then what only the one on a database promises."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psycopg
import pytest
from sqlalchemy import Connection, create_engine, text

from tests.servers import RealServer, fresh_database
from tests.tiers import execute
from tradeloop.common.bus.port import Partition
from tradeloop.common.messages import Message, OrderFilled
from tradeloop.common.sql.migrations import migrate
from tradeloop.execution.adapters.ledger_versions import SCHEMA
from tradeloop.execution.adapters.memory_ledger import MemoryLedger
from tradeloop.execution.adapters.sql_ledger import SqlLedger, books, fills, metadata, orders, outbox
from tradeloop.execution.contracts import (
    LEDGER_CHECKS,
    MakeLedger,
    check_ledger,
    same_record,
    sample_fill,
    sample_mark,
    sample_order,
    sample_record,
)
from tradeloop.execution.domain import BookRecord
from tradeloop.execution.ports import Effects, LedgerConflict, LedgerUnavailable

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


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def make_ledger(request: pytest.FixtureRequest) -> MakeLedger:
    """Opens the same ledger anew, as a restarted process does; a ledger in memory stays what it is."""
    if request.param == "memory":
        ledger = MemoryLedger()
        return lambda: ledger
    return partial(SqlLedger, request.getfixturevalue(request.param))


@pytest.mark.parametrize("check", LEDGER_CHECKS, ids=lambda check: check.__name__)
def test_contract(make_ledger: MakeLedger, check: Callable[[MakeLedger], None]) -> None:
    check(make_ledger)


def test_one_storage_takes_the_whole_contract() -> None:
    ledger = MemoryLedger()
    check_ledger(lambda: ledger)


class Unfenced(MemoryLedger):
    """Lets a process write that another has overtaken."""

    def record(self, portfolio: str, before: BookRecord, after: BookRecord, effects: Mapping[str, Effects]) -> None:
        super().record(portfolio, self.load(portfolio), after, effects)


class Retracting(MemoryLedger):
    """Lets offsets go back."""

    def acknowledge(self, inputs: Sequence[tuple[str, str]], offsets: Mapping[Partition, int]) -> None:
        super().acknowledge(inputs, {})
        self._offsets.update(offsets)


class Hoarding(MemoryLedger):
    """Keeps outputs that have left."""

    def acknowledge(self, inputs: Sequence[tuple[str, str]], offsets: Mapping[Partition, int]) -> None:
        super().acknowledge([], offsets)


class Sorting(MemoryLedger):
    """Gives outputs in an order of its own."""

    def outputs(self, portfolio: str, input_id: str) -> Sequence[Message]:
        return sorted(super().outputs(portfolio, input_id), key=lambda message: type(message).__name__)


class Rounding(MemoryLedger):
    """Keeps the state of the reward as float32."""

    def load(self, portfolio: str) -> BookRecord:
        record = super().load(portfolio)
        rounded = {key: np.asarray(x, dtype=np.float32).tolist() for key, x in record.reward_state.items()}
        return replace(record, reward_state=rounded)


class OneOutbox(MemoryLedger):
    """Tells inputs by their id alone."""

    def record(self, portfolio: str, before: BookRecord, after: BookRecord, effects: Mapping[str, Effects]) -> None:
        super().record(portfolio, before, after, effects)
        self._outputs.update({("", input_id): self._outputs[portfolio, input_id] for input_id in effects})

    def outputs(self, portfolio: str, input_id: str) -> Sequence[Message]:
        return super().outputs("", input_id)


class LastOnly(MemoryLedger):
    """Keeps the outputs of the last of several inputs alone."""

    def record(self, portfolio: str, before: BookRecord, after: BookRecord, effects: Mapping[str, Effects]) -> None:
        super().record(portfolio, before, after, dict(list(effects.items())[-1:]))


@pytest.mark.parametrize("defect", [Unfenced, Retracting, Hoarding, Sorting, Rounding, OneOutbox, LastOnly])
def test_the_contract_finds_defects(defect: type[MemoryLedger]) -> None:
    ledger = defect()
    with pytest.raises(AssertionError):
        check_ledger(lambda: ledger)


def test_the_contract_finds_a_ledger_that_forgets() -> None:
    with pytest.raises(AssertionError):
        check_ledger(MemoryLedger)


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
        pytest.param(BookRecord(marked_us=1), [FILLS[2]], (LedgerConflict,), id="the book stands elsewhere"),
    ],
)
def test_a_failed_record_leaves_nothing(
    url: str, before: BookRecord, fills: list[OrderFilled], raises: tuple[type[Exception], ...]
) -> None:
    after = BookRecord(marked_us=9)
    changed = Effects(orders=[ORDERS[2]], fills=fills, outputs=[sample_mark(3.0)])
    with closing(SqlLedger(url)) as ledger:
        ledger.load("p")
        first = Effects(orders=[ORDERS[1]], fills=[FILLS[1]], outputs=[sample_mark(1.0)])
        ledger.record("p", BookRecord(), RECORD, {"in-1": first})
        with pytest.raises(raises):
            ledger.record("p", before, after, {"in-2": changed})
        assert count(url) == {"orders": 1, "fills": 1, "outbox": 1}
        assert same_record(ledger.load("p"), RECORD)
        ledger.record("p", RECORD, after, {"in-2": replace(changed, fills=[FILLS[2]])})
        assert count(url) == {"orders": 2, "fills": 2, "outbox": 2}


def test_a_book_that_is_gone_is_not_written(url: str) -> None:
    with closing(SqlLedger(url)) as ledger:
        ledger.load("p")
        with connected(url) as connection:
            connection.execute(books.delete())
        effects = {"in-1": Effects(orders=[ORDERS[1]], outputs=[sample_mark(3.0)])}
        with pytest.raises(LedgerConflict, match="portfolio p"):
            ledger.record("p", BookRecord(), RECORD, effects)
        assert count(url) == {"orders": 0, "fills": 0, "outbox": 0}


def test_orders_and_fills_are_rows_that_anyone_can_query(tmp_path: Path) -> None:
    ledger = SqlLedger(f"sqlite:///{tmp_path}/ledger.db")
    ledger.load("p")
    ledger.record("p", BookRecord(), RECORD, {"in-1": Effects(orders=[ORDERS[1]])})
    filled = ORDERS[1].model_copy(update={"status": "filled", "filled_quantity": 1.5})
    ledger.record("p", RECORD, RECORD, {"in-2": Effects(orders=[filled], fills=[FILLS[1]])})
    ledger.close()
    with create_engine(f"sqlite:///{tmp_path}/ledger.db").connect() as connection:
        rows = connection.execute(text("select status, filled_quantity from execution_orders")).all()
        assert [tuple(row) for row in rows] == [("filled", 1.5)]
        assert connection.execute(text("select price from execution_fills")).scalar() == 0.1 + 0.2


def test_an_unreachable_database_is_unavailable(tmp_path: Path) -> None:
    ledger = SqlLedger(f"sqlite:///{tmp_path}/no/such/folder/ledger.db")
    with pytest.raises(LedgerUnavailable, match="ledger"):
        ledger.load("p")


def test_a_server_that_dies_is_unavailable_and_comes_back(plain_postgres_server: RealServer) -> None:
    with fresh_database(plain_postgres_server.address) as url:
        migrate(url, SCHEMA)
        ledger = SqlLedger(url)
        before = ledger.load("p")
        plain_postgres_server.kill()
        try:
            for _ in range(2):
                with pytest.raises(LedgerUnavailable, match="ledger postgresql"):
                    ledger.record("p", before, RECORD, {"in-1": Effects()})
                with pytest.raises(LedgerUnavailable, match="ledger postgresql"):
                    ledger.load("p")
        finally:
            plain_postgres_server.start()
        ledger.record("p", before, RECORD, {"in-1": Effects()})
        assert same_record(ledger.load("p"), RECORD)
        ledger.close()


def test_a_ledger_waits_for_the_migration(plain_database: str) -> None:
    ledger = SqlLedger(plain_database)
    with pytest.raises(LedgerUnavailable, match="it has no tables yet; run: tradeloop db migrate"):
        ledger.load("p")
    migrate(plain_database, SCHEMA)
    assert ledger.load("p") == BookRecord()
    ledger.close()
