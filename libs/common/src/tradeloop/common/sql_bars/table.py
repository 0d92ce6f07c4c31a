"""The table of bars: SQLite gets it as it is here, PostgreSQL by the migrations in `versions`."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, Double, Integer, MetaData, Table, Text

VALUES = ("open", "high", "low", "close", "volume", "funding_rate")
"""The columns of numbers. A volume that is NULL is not known."""

BARS = Table(
    "bars",
    MetaData(),
    Column("instrument", Text, primary_key=True),
    Column("timeframe", Text, primary_key=True),
    Column("open_us", BigInteger, primary_key=True, autoincrement=False),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    *(Column(name, Double, nullable=name == "volume") for name in VALUES),
    Column("known_us", BigInteger, nullable=False),
    # SQLite stores NaN as NULL, which the columns refuse; in PostgreSQL NaN is a number, greater than all others.
    CheckConstraint("greatest(open, high, low, close) < 'Infinity'", "bars_have_prices").ddl_if("postgresql"),
    sqlite_with_rowid=False,
)
