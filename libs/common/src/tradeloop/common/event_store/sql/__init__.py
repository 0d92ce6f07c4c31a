"""Trades, order books and news in SQL: `SqlEventStore` over PostgreSQL or SQLite. Needs the extra `bars`."""

from __future__ import annotations

from tradeloop.common.event_store.sql.store import SqlEventStore
from tradeloop.common.event_store.sql.versions import SCHEMA

__all__ = ["SCHEMA", "SqlEventStore"]
