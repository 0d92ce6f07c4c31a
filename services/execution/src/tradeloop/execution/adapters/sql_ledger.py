"""`SqlLedger`: the ledger in SQLite or PostgreSQL, through SQLAlchemy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    ClauseElement,
    Column,
    Connection,
    Executable,
    Float,
    Index,
    Integer,
    MetaData,
    RowMapping,
    String,
    Table,
    Text,
    and_,
    bindparam,
    case,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import InterfaceError, OperationalError

from tradeloop.common.bus.port import Partition
from tradeloop.common.market import to_us
from tradeloop.common.messages import Message, OrderFilled, OrderUpdated
from tradeloop.common.messages.topics import CATALOGUE, topic_of
from tradeloop.common.sql.engine import address, cause, complaint, open_engine
from tradeloop.execution.adapters.ledger_versions import SCHEMA
from tradeloop.execution.domain import BookRecord
from tradeloop.execution.ports import Effects, LedgerConflict, LedgerUnavailable

metadata = MetaData()

books = Table(
    "execution_books",
    metadata,
    Column("portfolio", String(64), primary_key=True),
    Column("marked_us", BigInteger, nullable=False),
    Column("decided_us", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("signal", Text, nullable=False),
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
log_positions = Table(
    "execution_offsets",
    metadata,
    Column("topic", String(249), primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("next_offset", BigInteger, nullable=False),
)

_AS_BEFORE = and_(
    books.c.marked_us == bindparam("was_marked_us"),
    books.c.decided_us == bindparam("was_decided_us"),
)
_UPDATE_BOOK = (
    books.update()
    .where(books.c.portfolio == bindparam("of"))
    .values(
        # A book that another process has moved gets no time, which its column refuses; and with that the transaction
        # fails, before anybody had to be asked how many rows there were.
        marked_us=case((_AS_BEFORE, bindparam("marked_us", type_=BigInteger))),
        decided_us=bindparam("decided_us"),
        state=bindparam("state"),
    )
)
_UPDATE_BOOK_AND_SIGNAL = _UPDATE_BOOK.values(signal=bindparam("signal"))
_INSERT_ORDER, _INSERT_FILL = orders.insert(), fills.insert()
_UPDATE_ORDER = (
    orders.update()
    .where(orders.c.order_id == bindparam("of"))
    .values(status=bindparam("status"), filled_quantity=bindparam("filled_quantity"))
)
_INSERT_OUTPUTS = outbox.insert().values(
    # A book that is gone has no name, and its outputs are then refused.
    portfolio=select(books.c.portfolio).where(books.c.portfolio == bindparam("of")).scalar_subquery(),
    input_id=bindparam("input_id"),
    messages=bindparam("messages"),
)
_OUTPUTS = outbox.select().where(outbox.c.portfolio == bindparam("of"), outbox.c.input_id == bindparam("input"))
_DROP_OUTPUTS = outbox.delete().where(outbox.c.portfolio == bindparam("of"), outbox.c.input_id == bindparam("input"))

_CONFLICT = "portfolio {}: another process has gone on with its book"


class SqlLedger:
    """A ledger behind a SQLAlchemy URL. One thread, one connection.

    It connects on first use. SQLite gets its tables when they are missing; a PostgreSQL that is not migrated is
    `LedgerUnavailable`. Raises `UserError` for a URL that names no known database.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url, "ledger")
        driver: Any = self._engine.dialect.loaded_dbapi
        self._unavailable = (OperationalError, InterfaceError, driver.OperationalError, driver.InterfaceError)
        self._refused = driver.IntegrityError
        self._signals: dict[str, bytes] = {}
        """The signal that the ledger holds for each portfolio."""
        self._prepared: dict[Executable, _Prepared] = {}
        if self._engine.dialect.name != "sqlite":
            self._engine = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        dialect = sqlite if self._engine.dialect.name == "sqlite" else postgresql
        self._insert_book = dialect.insert(books).on_conflict_do_nothing()
        insert = dialect.insert(log_positions)
        self._upsert_log_position = insert.on_conflict_do_update(
            index_elements=[log_positions.c.topic, log_positions.c.partition],
            set_={"next_offset": insert.excluded.next_offset},
            where=log_positions.c.next_offset < insert.excluded.next_offset,
        )
        self._connection: Connection | None = None
        self._ready = False

    def load(self, portfolio: str) -> BookRecord:
        row = self._find(portfolio)
        if row is None:
            with self._transaction() as connection:
                new = {"portfolio": portfolio, "signal": "", **_book_row(BookRecord())}
                self._run(connection, self._insert_book, new)
            return BookRecord()
        state = json.loads(row["state"])
        return BookRecord(
            marked_us=row["marked_us"],
            decided_us=row["decided_us"],
            book=state["book"],
            reward_state=state["reward"],
            signal=row["signal"].encode(),
            working=tuple(OrderUpdated.model_validate_json(order) for order in state["working"]),
        )

    def record(self, portfolio: str, before: BookRecord, after: BookRecord, effects: Mapping[str, Effects]) -> None:
        try:
            with self._transaction() as connection:
                self._write(connection, portfolio, before, after, effects)
        except self._refused as error:
            if self._find(portfolio) is not None and self.load(portfolio).stands_at(before):
                raise
            raise LedgerConflict(_CONFLICT.format(portfolio)) from error
        self._signals[portfolio] = after.signal

    def _write(
        self,
        connection: Connection,
        portfolio: str,
        before: BookRecord,
        after: BookRecord,
        effects: Mapping[str, Effects],
    ) -> None:
        """Write everything in one round trip, where the driver can."""
        run = partial(self._run, connection)
        was = {"of": portfolio, "was_marked_us": before.marked_us, "was_decided_us": before.decided_us}
        states = [order for each in effects.values() for order in each.orders]
        last = {order.order_id: order for order in states}
        new = dict.fromkeys(order.order_id for order in states if order.status == "working")
        with _at_once(connection):
            if after.signal is self._signals.get(portfolio):  # it is long, and changes once a bar
                run(_UPDATE_BOOK, was | _book_row(after))
            else:
                run(_UPDATE_BOOK_AND_SIGNAL, was | _book_row(after) | {"signal": after.signal.decode()})
            run(_INSERT_ORDER, *(_order_row(last[order_id]) for order_id in new))
            changed = (order for order_id, order in last.items() if order_id not in new)
            run(_UPDATE_ORDER, *({"of": o.order_id, **_order_changes(o)} for o in changed))
            run(_INSERT_FILL, *(_fill_row(fill) for each in effects.values() for fill in each.fills))
            outputs = ((input_id, each.outputs) for input_id, each in effects.items() if each.outputs)
            run(_INSERT_OUTPUTS, *(_outbox_row(portfolio, input_id, messages) for input_id, messages in outputs))

    def outputs(self, portfolio: str, input_id: str) -> Sequence[Message]:
        with self._transaction() as connection:
            row = connection.execute(_OUTPUTS, {"of": portfolio, "input": input_id}).mappings().first()
        if row is None:
            return ()
        lines = (line.split(" ", 1) for line in row["messages"].split("\n") if line)
        return [CATALOGUE[topic].message.model_validate_json(body) for topic, body in lines]

    def acknowledge(self, inputs: Sequence[tuple[str, str]], offsets: Mapping[Partition, int]) -> None:
        if not inputs and not offsets:
            return
        with self._transaction() as connection:
            rows = [{"topic": p.topic, "partition": p.number, "next_offset": o} for p, o in offsets.items()]
            with _at_once(connection):
                self._run(connection, _DROP_OUTPUTS, *({"of": portfolio, "input": one} for portfolio, one in inputs))
                self._run(connection, self._upsert_log_position, *rows)

    def offsets(self) -> Mapping[Partition, int]:
        with self._transaction() as connection:
            rows = connection.execute(log_positions.select()).all()
        return {Partition(row.topic, row.partition): row.next_offset for row in rows}

    def close(self) -> None:
        self._disconnect()
        self._engine.dispose()

    def _find(self, portfolio: str) -> RowMapping | None:
        with self._transaction() as connection:
            return connection.execute(books.select().where(books.c.portfolio == portfolio)).mappings().first()

    def _run(self, connection: Connection, statement: Executable, *rows: dict[str, Any]) -> None:
        """Execute a statement for each row."""
        prepared = self._prepared.get(statement)
        if prepared is None:
            prepared = self._prepared[statement] = _Prepared(statement, connection)
        prepared.run(connection, rows)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
            with self._connection.begin():
                if not self._ready:
                    self._find_tables(self._connection)
                yield self._connection
            self._ready = True
        except self._unavailable as error:
            self._disconnect()
            raise LedgerUnavailable(f"ledger {address(self._engine.url)}: {cause(error)}") from error

    def _find_tables(self, connection: Connection) -> None:
        if self._engine.dialect.name == "sqlite":
            metadata.create_all(connection)
        elif lacking := complaint(connection, SCHEMA):
            raise LedgerUnavailable(f"ledger {address(self._engine.url)}: {lacking}")

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Prepared:
    """A statement in the words of its driver, run on the driver's own cursor.

    Half a dozen are run for every bar; through SQLAlchemy each costs ten times what the driver needs.
    """

    def __init__(self, statement: Executable, connection: Connection) -> None:
        compiled = cast(ClauseElement, statement).compile(dialect=connection.dialect)
        self._sql = str(compiled)
        self._order: Sequence[str] | None = getattr(compiled, "positiontup", None)

    def run(self, connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
        """Execute it for each row."""
        order, cursor = self._order, connection.connection.cursor()
        for row in rows:
            cursor.execute(self._sql, row if order is None else tuple(row[name] for name in order))


def _at_once(connection: Connection) -> AbstractContextManager[object]:
    """Statements executed in the context are sent together and answered together, where the driver can do that.

    PostgreSQL makes it one transaction, since its connections here are told to begin none by themselves.
    """
    driver: Any = connection.connection.driver_connection
    return driver.pipeline() if hasattr(driver, "pipeline") else nullcontext()


def _book_row(record: BookRecord) -> dict[str, Any]:
    return {
        "marked_us": record.marked_us,
        "decided_us": record.decided_us,
        "state": json.dumps(
            {
                "book": record.book,
                "reward": record.reward_state,
                "working": [order.encode().decode() for order in record.working],
            }
        ),
    }


def _outbox_row(portfolio: str, input_id: str, outputs: Sequence[Message]) -> dict[str, Any]:
    messages = "\n".join(f"{topic_of(type(m)).name} {m.encode().decode()}" for m in outputs)
    return {"of": portfolio, "input_id": input_id, "messages": messages}


def _order_row(order: OrderUpdated) -> dict[str, Any]:
    return {
        "order_id": order.order_id,
        "portfolio": order.portfolio,
        "account": order.account,
        "decision_us": to_us(order.decision_time),
        "instrument": order.instrument,
        "side": order.side,
        "quantity": order.quantity,
        **_order_changes(order),
    }


def _order_changes(order: OrderUpdated) -> dict[str, Any]:
    return {"status": order.status, "filled_quantity": order.filled_quantity}


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
