"""Migrations of trades, order books and news, in the order of their names. They are in the database of the bars."""

from __future__ import annotations

from pathlib import Path

from tradeloop.common.sql.engine import Schema

SCHEMA = Schema("events", Path(__file__).parent, head="0001")
