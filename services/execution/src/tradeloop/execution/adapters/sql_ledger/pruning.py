"""Deletes orders and fills that are old: the only tables of the ledger that grow for as long as it trades."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tradeloop.execution.adapters.sql_ledger.statements import Postgresql, Sqlite

_AT_ONCE = 5_000
"""Rows of one transaction: a service that writes to the same tables waits for no longer than these take."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """The rows of one portfolio that were deleted."""

    portfolio: str
    before_us: int
    """Orders decided and fills made before this time are gone, microseconds since the epoch."""
    orders: int
    fills: int


def prune(driver: Any, database: Sqlite | Postgresql, older_than_us: int) -> list[Pruned]:
    """Delete what is older than a time before the last bar of its own book, in transactions of many rows each.

    Open orders and their fills stay, whatever their age, and so does what has no book. A book is not made from its
    fills again: it stays as it is. A fill may outlive its order by the bar that lies between them.
    """
    books = driver.execute("SELECT portfolio, marked_us, state FROM execution_books ORDER BY portfolio").fetchall()
    none_open, still_open = f"NOT order_id {database.in_names}", "status = 'working'"
    fills = (
        f"DELETE FROM execution_fills WHERE fill_id IN (SELECT fill_id FROM execution_fills AS old WHERE portfolio = ?"
        f" AND time_us < ? AND {none_open} AND NOT EXISTS (SELECT 1 FROM execution_orders WHERE"
        f" execution_orders.order_id = old.order_id AND {still_open}) LIMIT {_AT_ONCE})"
    )
    orders = (
        f"DELETE FROM execution_orders WHERE order_id IN (SELECT order_id FROM execution_orders WHERE portfolio = ?"
        f" AND decision_us < ? AND {none_open} AND NOT {still_open} LIMIT {_AT_ONCE})"
    )
    pruned: list[Pruned] = []
    for portfolio, marked_us, state in books:
        before_us = marked_us - older_than_us
        is_open = database.names([json.loads(order)["order_id"] for order in json.loads(state)["working"]])
        deleted = [_delete(driver, database.words(sql), (portfolio, before_us, is_open)) for sql in (orders, fills)]
        pruned.append(Pruned(portfolio, before_us, *deleted))
    return pruned


def _delete(driver: Any, sql: str, parameters: tuple[object, ...]) -> int:
    """Run a statement until it finds no more rows; how many there were."""
    total = 0
    while found := driver.execute(sql, parameters).rowcount:
        total += found
    return total
