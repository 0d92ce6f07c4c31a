"""`SqlEventStore`: the store, whatever the database."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sqlalchemy import Row, Table, delete, func, select

from tradeloop.common.event_store.port import EventCounts, EventStoreUnavailable, MarketItem
from tradeloop.common.event_store.sql.table import BOOKS, NEWS, TABLES, TRADES
from tradeloop.common.event_store.sql.versions import SCHEMA
from tradeloop.common.market import from_us, to_us
from tradeloop.common.messages import MarketBook, MarketNewsItem, MarketTrade
from tradeloop.common.sql.database import Database, insert_new, made_or_migrated

_PRUNED_US = 3_600_000_000
"""The time that one transaction prunes, of one instrument."""


class SqlEventStore:
    """Events in three tables of a database, such as that of the bars.

    Connects on first use. SQLite gets its tables when they are not there; a PostgreSQL that is not migrated is
    `EventStoreUnavailable`. Safe between threads and processes. Raises `UserError` for a URL of no known database.
    """

    def __init__(self, url: str) -> None:
        tables = made_or_migrated(TABLES, SCHEMA)
        self._database = Database(url, "event store", EventStoreUnavailable, tables)

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database; None for others."""
        return self._database.file

    def write(self, items: Sequence[MarketItem]) -> None:
        rows: dict[Table, list[dict[str, object]]] = {}
        for item in items:
            for table, row in _rows(item):
                rows.setdefault(table, []).append(row)
        with self._database.transaction() as connection:
            for table, several in rows.items():
                insert_new(connection, table, several)

    def trades(self, instrument: str, start_us: int, end_us: int) -> Sequence[MarketTrade]:
        return [
            MarketTrade(
                instrument=row.instrument,
                id=row.id,
                time=from_us(row.time_us),
                price=row.price,
                size=row.size,
                side=row.side,
            )
            for row in self._read(TRADES, instrument, start_us, end_us)
        ]

    def books(self, instrument: str, start_us: int, end_us: int) -> Sequence[MarketBook]:
        return [
            MarketBook(
                instrument=row.instrument,
                time=from_us(row.time_us),
                bids=json.loads(row.bids),
                asks=json.loads(row.asks),
            )
            for row in self._read(BOOKS, instrument, start_us, end_us)
        ]

    def news(self, instrument: str, start_us: int, end_us: int) -> Sequence[MarketNewsItem]:
        return [
            MarketNewsItem(
                instruments=(row.instrument,),
                id=row.id,
                time=from_us(row.time_us),
                headline=row.headline,
                source=row.source,
                sentiment=row.sentiment,
            )
            for row in self._read(NEWS, instrument, start_us, end_us)
        ]

    def prune(self, before_us: int) -> EventCounts:
        return EventCounts(*(self._prune(table, before_us) for table in TABLES))

    def check(self) -> None:
        with self._database.transaction():
            pass

    def close(self) -> None:
        self._database.close()

    def _read(self, table: Table, instrument: str, start_us: int, end_us: int) -> Sequence[Row[Any]]:
        mine = (table.c.instrument == instrument, table.c.time_us >= start_us, table.c.time_us < end_us)
        with self._database.transaction() as connection:
            return connection.execute(select(table).where(*mine).order_by(*table.primary_key.columns)).all()

    def _prune(self, table: Table, before_us: int) -> int:
        with self._database.transaction() as connection:
            instruments = connection.scalars(select(table.c.instrument).distinct()).all()
        deleted = 0
        for instrument in instruments:
            mine = table.c.instrument == instrument
            while True:
                # Short transactions: ingest writes meanwhile.
                with self._database.transaction() as connection:
                    first_us = connection.scalar(select(func.min(table.c.time_us)).where(mine))
                    if first_us is None or first_us >= before_us:
                        break
                    until_us = min(first_us + _PRUNED_US, before_us)
                    deleted += connection.execute(delete(table).where(mine, table.c.time_us < until_us)).rowcount
        return deleted


def _rows(item: MarketItem) -> Iterator[tuple[Table, dict[str, object]]]:
    time_us = to_us(item.time)
    if isinstance(item, MarketTrade):
        row = {"id": item.id, "price": item.price, "size": item.size, "side": item.side}
        yield TRADES, {"instrument": item.instrument, "time_us": time_us, **row}
    elif isinstance(item, MarketBook):
        levels = {"bids": json.dumps(item.bids), "asks": json.dumps(item.asks)}
        digest = blake2b("|".join(levels.values()).encode(), digest_size=8).hexdigest()
        yield BOOKS, {"instrument": item.instrument, "time_us": time_us, "digest": digest, **levels}
    else:
        row = {"source": item.source, "id": item.id, "headline": item.headline, "sentiment": item.sentiment}
        for instrument in item.instruments:
            yield NEWS, {"instrument": instrument, "time_us": time_us, **row}
