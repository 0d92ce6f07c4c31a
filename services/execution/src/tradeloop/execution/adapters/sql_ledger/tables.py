"""The tables of the ledger. What is added here is added by a migration, too."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Connection, Float, Index, Integer, MetaData, String, Table, Text, inspect
from sqlalchemy.schema import CreateColumn

metadata = MetaData()

books = Table(
    "execution_books",
    metadata,
    Column("portfolio", String(64), primary_key=True),
    Column("marked_us", BigInteger, nullable=False),
    Column("decided_us", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("signal", Text, nullable=False),
    Column("revision", BigInteger, nullable=False, server_default="0"),
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
    Column("reason", String(16), nullable=False, server_default=""),
    Index("execution_fills_by_time", "portfolio", "time_us"),
)
outbox = Table(
    "execution_outbox",
    metadata,
    Column("portfolio", String(64), primary_key=True),
    Column("input_id", String(36), primary_key=True),
    Column("messages", Text, nullable=False),
    Column("revision", BigInteger, nullable=False, server_default="0"),
    Column("place", Integer, nullable=False, server_default="0"),
)
log_positions = Table(
    "execution_offsets",
    metadata,
    Column("topic", String(249), primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("next_offset", BigInteger, nullable=False),
    Column("log", String(120), nullable=False, server_default=""),
)


PRIVILEGES = {
    books.name: ("SELECT", "INSERT", "UPDATE"),
    orders.name: ("SELECT", "INSERT", "UPDATE"),
    fills.name: ("INSERT",),
    outbox.name: ("SELECT", "INSERT", "DELETE"),
    log_positions.name: ("SELECT", "INSERT", "UPDATE"),
}
"""The privileges that the service needs in PostgreSQL, beside SELECT on `ledger_version`."""


def make_tables(connection: Connection) -> None:
    """Create what an SQLite file lacks: tables, and columns of tables that an earlier release made."""
    metadata.create_all(connection)
    found = inspect(connection)
    for table in metadata.sorted_tables:
        there = {column["name"] for column in found.get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                added = CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {added}")
