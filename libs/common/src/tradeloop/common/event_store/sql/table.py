"""The tables of trades, order books and news: SQLite gets them as they are here, PostgreSQL by the migrations.

The levels of a book are JSON, `[[price, size], ...]`, the best first.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, MetaData, Table, Text

_META = MetaData()


def _table(name: str, *more: Column[object]) -> Table:
    keys = (
        Column("instrument", Text, primary_key=True),
        Column("time_us", BigInteger, primary_key=True, autoincrement=False),
    )
    return Table(name, _META, *keys, *more, sqlite_with_rowid=False)


TRADES = _table(
    "market_trades",
    Column("id", Text, primary_key=True),
    Column("price", Double, nullable=False),
    Column("size", Double, nullable=False),
    Column("side", Text),
)
BOOKS = _table(
    "market_books",
    Column("digest", Text, primary_key=True),
    Column("bids", Text, nullable=False),
    Column("asks", Text, nullable=False),
)
NEWS = _table(
    "market_news",
    Column("source", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("headline", Text, nullable=False),
    Column("sentiment", Double),
)
TABLES = (TRADES, BOOKS, NEWS)
