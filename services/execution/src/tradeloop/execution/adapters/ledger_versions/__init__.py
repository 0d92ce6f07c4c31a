"""Migrations of the ledger, in the order of their names."""

from __future__ import annotations

from pathlib import Path

from tradeloop.common.sql.engine import Schema

SCHEMA = Schema("ledger", Path(__file__).parent, head="0003")
