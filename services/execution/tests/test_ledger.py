"""The ledger's contract: one check a promise, every adapter runs them all."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, create_engine, text

from tests.servers import RealServer, fresh_database
from tests.tiers import execute
from tradeloop.common.bus.port import Partition
from tradeloop.common.messages import OrderFilled, OrderUpdated, PortfolioMarked, PositionMark
from tradeloop.common.sql.migrations import migrate
from tradeloop.execution.adapters.ledger_versions import SCHEMA
from tradeloop.execution.adapters.memory_ledger import MemoryLedger
from tradeloop.execution.adapters.sql_ledger import SqlLedger, books, fills, metadata, orders, outbox
from tradeloop.execution.domain import BookRecord
from tradeloop.execution.ports import Effects, Ledger, LedgerConflict, LedgerUnavailable

T0 = datetime(2026, 1, 1, tzinfo=UTC)
Reopen = Callable[[], Ledger]
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
def reopen(request: pytest.FixtureRequest) -> Iterator[Reopen]:
    """Opens the same ledger anew, as a restarted process does; a memory ledger stays what it is."""
    if request.param == "memory":
        ledger = MemoryLedger()
        yield lambda: ledger
        return
    url = request.getfixturevalue(request.param)
    opened: list[Ledger] = []

    def open_sql() -> Ledger:
        opened.append(SqlLedger(url))
        return opened[-1]

    yield open_sql
    for one in opened:
        one.close()


def order(n: int, status: str = "working", filled: float = 0.0) -> OrderUpdated:
    return OrderUpdated(
        universe="u", portfolio="p", account="paper", order_id=f"order-{n}", decision_time=T0 + timedelta(hours=n),
        instrument="x:Y", side="buy", quantity=1.5, status=status, filled_quantity=filled,  # type: ignore[arg-type]
    )  # fmt: skip


def fill(n: int) -> OrderFilled:
    return OrderFilled(
        universe="u", portfolio="p", account="paper", fill_id=f"fill-{n}", order_id=f"order-{n}",
        decision_time=T0, time=T0, instrument="x:Y", side="buy", quantity=1.5, price=0.1 + 0.2, fee=0.01, slippage=0.0,
    )  # fmt: skip


def mark(equity: float) -> PortfolioMarked:
    position = PositionMark(
        instrument="x:Y",
        quantity=1.0,
        entry_price=1.0,
        mark_price=1.0,
        weight=0.1,
        unrealised_return=0.0,
        holding_bars=1,
    )
    return PortfolioMarked(
        universe="u", portfolio="p", time=T0, cash=1.0, equity=equity, peak_equity=equity, drawdown=0.0,
        state="active", positions=(position,),
    )  # fmt: skip


RECORD = BookRecord(
    marked_us=2, decided_us=1, book={"cash": 0.1 + 0.2, "mark": [float("nan"), 1e-300]}, reward_state={"ema": 1 / 3},
    signal=b'{"a": "\xc3\xa9"}', working=(order(1),),
)  # fmt: skip


def same(a: BookRecord, b: BookRecord) -> bool:
    """Equal to the last bit; a NaN in the book equals itself."""
    return json.dumps(a.book) == json.dumps(b.book) and replace(a, book={}) == replace(b, book={})


def test_a_new_portfolio_has_an_empty_book(reopen: Reopen) -> None:
    ledger = reopen()
    assert ledger.load("p") == BookRecord()
    assert ledger.load("p") == BookRecord()


def test_a_record_comes_back_to_the_last_bit(reopen: Reopen) -> None:
    ledger = reopen()
    ledger.load("p")
    ledger.record("p", "in-1", BookRecord(), Effects(RECORD, orders=[order(1)]))
    back = reopen().load("p")
    assert same(back, RECORD)


def test_portfolios_are_apart(reopen: Reopen) -> None:
    ledger = reopen()
    ledger.load("p")
    ledger.load("q")
    ledger.record("p", "in-1", BookRecord(), Effects(RECORD))
    assert ledger.load("q") == BookRecord()
    assert ledger.outputs("q", "in-1") == ()


def test_outputs_come_back_the_same_until_they_left(reopen: Reopen) -> None:
    ledger = reopen()
    ledger.load("p")
    outputs = [order(1), fill(1), mark(0.1 + 0.2)]
    ledger.record("p", "in-1", BookRecord(), Effects(RECORD, orders=[order(1)], fills=[fill(1)], outputs=outputs))
    ledger.record("p", "in-2", RECORD, Effects(RECORD, outputs=[mark(2.0)]))
    again = reopen().outputs("p", "in-1")
    assert list(again) == outputs
    assert [message.encode() for message in again] == [message.encode() for message in outputs]
    ledger.acknowledge([("p", "in-1")], {})
    assert list(reopen().outputs("p", "in-1")) == []
    assert list(reopen().outputs("p", "in-2")) == [mark(2.0)]
    assert list(ledger.outputs("p", "never seen")) == []


def test_a_book_that_another_process_went_on_with_is_not_written(reopen: Reopen) -> None:
    slow, quick = reopen(), reopen()
    before = slow.load("p")
    quick.record("p", "in-1", before, Effects(RECORD, orders=[order(1)]))
    with pytest.raises(LedgerConflict, match="portfolio p"):
        slow.record("p", "in-9", before, Effects(BookRecord(marked_us=9), orders=[order(2)], outputs=[mark(3.0)]))
    assert same(slow.load("p"), RECORD)
    assert list(slow.outputs("p", "in-9")) == []
    slow.record("p", "in-2", RECORD, Effects(BookRecord(marked_us=9)))
    assert quick.load("p").marked_us == 9


def test_offsets_never_go_back(reopen: Reopen) -> None:
    ledger, first, second = reopen(), Partition("t", 0), Partition("t", 1)
    assert ledger.offsets() == {}
    ledger.acknowledge([], {first: 5, second: 7})
    ledger.acknowledge([], {first: 3, second: 8})
    assert reopen().offsets() == {first: 5, second: 8}


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
        pytest.param(RECORD, [fill(2), fill(1)], REFUSED, id="the second fill has the id of the first"),
        pytest.param(BookRecord(marked_us=1), [fill(2)], (LedgerConflict,), id="the book stands elsewhere"),
    ],
)
def test_a_failed_record_leaves_nothing(
    url: str, before: BookRecord, fills: list[OrderFilled], raises: tuple[type[Exception], ...]
) -> None:
    changed = Effects(BookRecord(marked_us=9), orders=[order(2)], fills=fills, outputs=[mark(3.0)])
    with closing(SqlLedger(url)) as ledger:
        ledger.load("p")
        ledger.record("p", "in-1", BookRecord(), Effects(RECORD, orders=[order(1)], fills=[fill(1)]))
        with pytest.raises(raises):
            ledger.record("p", "in-2", before, changed)
        assert count(url) == {"orders": 1, "fills": 1, "outbox": 1}
        assert same(ledger.load("p"), RECORD)
        ledger.record("p", "in-2", RECORD, replace(changed, fills=[fill(2)]))
        assert count(url) == {"orders": 2, "fills": 2, "outbox": 2}


def test_a_book_that_is_gone_is_not_written(url: str) -> None:
    with closing(SqlLedger(url)) as ledger:
        ledger.load("p")
        with connected(url) as connection:
            connection.execute(books.delete())
        with pytest.raises(LedgerConflict, match="portfolio p"):
            ledger.record("p", "in-1", BookRecord(), Effects(RECORD, orders=[order(1)], outputs=[mark(3.0)]))
        assert count(url) == {"orders": 0, "fills": 0, "outbox": 0}


def test_orders_and_fills_are_rows_that_anyone_can_query(tmp_path: Path) -> None:
    ledger = SqlLedger(f"sqlite:///{tmp_path}/ledger.db")
    ledger.load("p")
    ledger.record("p", "in-1", BookRecord(), Effects(RECORD, orders=[order(1)]))
    ledger.record("p", "in-2", RECORD, Effects(RECORD, orders=[order(1, "filled", 1.5)], fills=[fill(1)]))
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
                    ledger.record("p", "in-1", before, Effects(RECORD))
                with pytest.raises(LedgerUnavailable, match="ledger postgresql"):
                    ledger.load("p")
        finally:
            plain_postgres_server.start()
        ledger.record("p", "in-1", before, Effects(RECORD))
        assert same(ledger.load("p"), RECORD)
        ledger.close()


def test_a_ledger_waits_for_the_migration(plain_database: str) -> None:
    ledger = SqlLedger(plain_database)
    with pytest.raises(LedgerUnavailable, match="it has no tables yet; run: tradeloop db migrate"):
        ledger.load("p")
    migrate(plain_database, SCHEMA)
    assert ledger.load("p") == BookRecord()
    ledger.close()
