"""Migrations of the bars, in the order of their names."""

from __future__ import annotations

from pathlib import Path

from tradeloop.common.sql import Schema
from tradeloop.common.sql_bars.levels import level_of, raise_level

SCHEMA = Schema("bars", Path(__file__).parent, head="0001", improve=raise_level, level=level_of)
