"""`SqlLedger`: the ledger in SQLite or PostgreSQL, through SQLAlchemy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    Index,
    MetaData,
    String,
    Table,
    Text,
    bindparam,
    create_engine,
    event,
)
from sqlalchemy.exc import InterfaceError, OperationalError

from tradeloop.common.market import to_us
from tradeloop.common.messages import Message, OrderFilled, OrderUpdated
from tradeloop.common.topics import CATALOGUE, topic_of
from tradeloop.execution.ports import BookRecord, Effects, LedgerUnavailable

metadata = MetaData()

books = Table(
    "execution_books",
    metadata,
    Column("portfolio", String(64), primary_key=True),
    Column("marked_us", BigInteger, nullable=False),
    Column("decided_us", BigInteger, nullable=False),
    Column("book", Text, nullable=False),
    Column("reward_state", Text, nullable=False),
    Column("signal", Text, nullable=False),
    Column("working", Text, nullable=False),
)
orders = Table(
    "execution_orders",
    metadata,
    Column("order_id", String(36), primary_key=True),
    Column("portfolio", String(64), nullable=False),
    Column("account", String(64), nullable=False),
    Column("decision_us", BigInteger, nullable=False),
    Column("instrument", String(97), nullable=False),
    Column("side", String(4), nullable=False),
    Column("quantity", Float(53), nullable=False),
    Column("filled_quantity", Float(53), nullable=False),
    Column("status", String(16), nullable=False),
    Index("execution_orders_by_time", "portfolio", "decision_us"),
)
fills = Table(
    "execution_fills",
    metadata,
    Column("fill_id", String(36), primary_key=True),
    Column("order_id", String(36), nullable=False),
    Column("portfolio", String(64), nullable=False),
    Column("account", String(64), nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Column("instrument", String(97), nullable=False),
    Column("side", String(4), nullable=False),
    Column("quantity", Float(53), nullable=False),
    Column("price", Float(53), nullable=False),
    Column("fee", Float(53), nullable=False),
    Index("execution_fills_by_time", "portfolio", "time_us"),
)
outbox = Table(
    "execution_outbox",
    metadata,
    Column("portfolio", String(64), primary_key=True),
    Column("input_id", String(36), primary_key=True),
    Column("messages", Text, nullable=False),
)

# Built once: compiling a statement costs more than running it.
_UPDATE_BOOK = (
    books.update()
    .where(books.c.portfolio == bindparam("of"))
    .values({name: bindparam(name) for name in ("marked_us", "decided_us", "book", "reward_state", "signal", "working")})
)
_INSERT_BOOK, _INSERT_ORDER, _INSERT_FILL = books.insert(), orders.insert(), fills.insert()
_UPDATE_ORDER = (
    orders.update()
    .where(orders.c.order_id == bindparam("of"))
    .values(status=bindparam("status"), filled_quantity=bindparam("filled_quantity"))
)
_INSERT_OUTPUTS = outbox.insert()
_OUTPUTS = outbox.select().where(outbox.c.portfolio == bindparam("of"), outbox.c.input_id == bindparam("input"))
_DROP_OUTPUTS = outbox.delete().where(outbox.c.portfolio == bindparam("of"), outbox.c.input_id == bindparam("input"))


class SqlLedger:
    """A ledger behind a SQLAlchemy URL; its tables are created when missing. One thread, one connection."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _tune_sqlite)
        self._connection: Connection | None = None
        with self._transaction() as connection:
            metadata.create_all(connection)

    def load(self, portfolio: str) -> BookRecord:
        with self._transaction() as connection:
            row = connection.execute(books.select().where(books.c.portfolio == portfolio)).mappings().first()
            if row is None:
                connection.execute(_INSERT_BOOK, {"portfolio": portfolio, **_book_row(BookRecord())})
                return BookRecord()
        return BookRecord(
            marked_us=row["marked_us"],
            decided_us=row["decided_us"],
            book=json.loads(row["book"]),
            reward_state=json.loads(row["reward_state"]),
            signal=row["signal"].encode(),
            working=tuple(OrderUpdated.model_validate(order) for order in json.loads(row["working"])),
        )

    def record(self, portfolio: str, input_id: str, effects: Effects) -> None:
        new = [order for order in effects.orders if order.status == "working"]
        changed = [order for order in effects.orders if order.status != "working"]
        with self._transaction() as connection:
            connection.execute(_UPDATE_BOOK, {"of": portfolio, **_book_row(effects.record)})
            if new:
                connection.execute(_INSERT_ORDER, [_order_row(order) for order in new])
            if changed:
                connection.execute(
                    _UPDATE_ORDER,
                    [{"of": o.order_id, "status": o.status, "filled_quantity": o.filled_quantity} for o in changed],
                )
            if effects.fills:
                connection.execute(_INSERT_FILL, [_fill_row(fill) for fill in effects.fills])
            messages = "\n".join(f"{topic_of(type(m)).name} {m.encode().decode()}" for m in effects.outputs)
            connection.execute(_INSERT_OUTPUTS, {"portfolio": portfolio, "input_id": input_id, "messages": messages})

    def outputs(self, portfolio: str, input_id: str) -> Sequence[Message]:
        with self._transaction() as connection:
            row = connection.execute(_OUTPUTS, {"of": portfolio, "input": input_id}).mappings().first()
        if row is None:
            return ()
        lines = (line.split(" ", 1) for line in row["messages"].splitlines())
        return [CATALOGUE[topic].message.model_validate_json(body) for topic, body in lines]

    def published(self, inputs: Sequence[tuple[str, str]]) -> None:
        if inputs:
            with self._transaction() as connection:
                connection.execute(_DROP_OUTPUTS, [{"of": portfolio, "input": one} for portfolio, one in inputs])

    def close(self) -> None:
        self._disconnect()
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
            with self._connection.begin():
                yield self._connection
        except (OperationalError, InterfaceError) as error:
            self._disconnect()
            raise LedgerUnavailable(f"ledger {self._engine.url!r}: {error.orig}") from error

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _tune_sqlite(connection: Any, _: Any) -> None:
    """Write-ahead log: readers do not wait, and a commit survives the death of the process."""
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000"):
        connection.execute(f"PRAGMA {pragma}")


def _book_row(record: BookRecord) -> dict[str, Any]:
    return {
        "marked_us": record.marked_us,
        "decided_us": record.decided_us,
        "book": json.dumps(record.book),
        "reward_state": json.dumps(record.reward_state),
        "signal": record.signal.decode(),
        "working": json.dumps([order.model_dump(mode="json") for order in record.working]),
    }


def _order_row(order: OrderUpdated) -> dict[str, Any]:
    return {
        "order_id": order.order_id,
        "portfolio": order.portfolio,
        "account": order.account,
        "decision_us": to_us(order.decision_time),
        "instrument": order.instrument,
        "side": order.side,
        "quantity": order.quantity,
        "filled_quantity": order.filled_quantity,
        "status": order.status,
    }


def _fill_row(fill: OrderFilled) -> dict[str, Any]:
    return {
        "fill_id": fill.fill_id,
        "order_id": fill.order_id,
        "portfolio": fill.portfolio,
        "account": fill.account,
        "time_us": to_us(fill.time),
        "instrument": fill.instrument,
        "side": fill.side,
        "quantity": fill.quantity,
        "price": fill.price,
        "fee": fill.fee,
    }
