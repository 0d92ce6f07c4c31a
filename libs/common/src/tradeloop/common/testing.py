"""Contracts as functions: what every adapter of a port must do, for its author to run against it.

They raise `AssertionError` and need no test framework.
"""

from __future__ import annotations

from tradeloop.common.contracts.bus import BUS_CHECKS, RETENTION_CHECKS, check_bus
from tradeloop.common.contracts.strategy import check_strategy

__all__ = ["BUS_CHECKS", "RETENTION_CHECKS", "check_bus", "check_strategy"]
