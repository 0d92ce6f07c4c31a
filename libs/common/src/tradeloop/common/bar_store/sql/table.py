"""The table of bars: SQLite gets it as it is here, PostgreSQL by the migrations in `versions`.

A volume that is NULL is not known. `extra` holds the further columns that a bar has, by name: `extra->>'trade_count'`.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, CheckConstraint, Column, Double, Integer, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import JSONB

from tradeloop.common.market import BAR_COLUMNS

BARS = Table(
    "bars",
    MetaData(),
    Column("instrument", Text, primary_key=True),
    Column("timeframe", Text, primary_key=True),
    Column("open_us", BigInteger, primary_key=True, autoincrement=False),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    *(Column(name, Double, nullable=name == "volume") for name in BAR_COLUMNS),
    Column("known_us", BigInteger, nullable=False),
    Column("extra", JSON().with_variant(Text(), "sqlite").with_variant(JSONB(), "postgresql")),
    # SQLite stores NaN as NULL, which the columns refuse; in PostgreSQL NaN is a number, greater than all others.
    CheckConstraint("greatest(open, high, low, close) < 'Infinity'", "bars_have_prices").ddl_if("postgresql"),
    sqlite_with_rowid=False,
)
