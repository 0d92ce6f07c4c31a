"""Migrations of the bars, in the order of their names."""

from __future__ import annotations

from pathlib import Path

from tradeloop.common.bar_store.sql.timescale import level_of, raise_level
from tradeloop.common.sql.engine import Schema

SCHEMA = Schema("bars", Path(__file__).parent, head="0001", improve=raise_level, level=level_of)
