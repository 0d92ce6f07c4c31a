"""Bars in SQL: `SqlBarStore` over PostgreSQL (TimescaleDB) or SQLite, and `MemoryBarStore`, for tests.

All are bitemporal: each revision of a bar stays, with the time at which it became known, and a read takes the
highest, or the highest that was known at a given time. Needs the extra `bars`.
"""

from __future__ import annotations

from tradeloop.common.sql_bars.levels import Level
from tradeloop.common.sql_bars.memory import MemoryBarStore
from tradeloop.common.sql_bars.store import SqlBarStore
from tradeloop.common.sql_bars.versions import SCHEMA

__all__ = ["SCHEMA", "Level", "MemoryBarStore", "SqlBarStore"]
