"""Migrations of the record of what was fetched, in the order of their names. It is in the database of the bars."""

from __future__ import annotations

from pathlib import Path

from tradeloop.common.sql.engine import Schema

SCHEMA = Schema("fetched", Path(__file__).parent, head="0001")
