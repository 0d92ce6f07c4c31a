"""Migrations of the bars, in the order of their names."""

from __future__ import annotations

from pathlib import Path

from tradeloop.common.bar_store.sql.timescale import raise_tier, tier_of
from tradeloop.common.sql.engine import Schema

SCHEMA = Schema("bars", Path(__file__).parent, head="0002", improve=raise_tier, tier=tier_of)
