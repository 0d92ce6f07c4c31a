"""Bars in SQL: `SqlBarStore` over PostgreSQL, with TimescaleDB or without, or SQLite. Needs the extra `bars`."""

from __future__ import annotations

from tradeloop.common.bar_store.sql.store import SqlBarStore
from tradeloop.common.bar_store.sql.timescale import StorageTier
from tradeloop.common.bar_store.sql.versions import SCHEMA

__all__ = ["SCHEMA", "SqlBarStore", "StorageTier"]
