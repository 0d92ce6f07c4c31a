"""The ledger in SQLite or PostgreSQL: its tables, the statements on them, and `SqlLedger`, which runs these."""

from __future__ import annotations

from tradeloop.execution.adapters.sql_ledger.ledger import SqlLedger
from tradeloop.execution.adapters.sql_ledger.pruning import Pruned
from tradeloop.execution.adapters.sql_ledger.tables import PRIVILEGES, books, fills, metadata, orders, outbox

__all__ = ["PRIVILEGES", "Pruned", "SqlLedger", "books", "fills", "metadata", "orders", "outbox"]
