"""Contracts as functions: what every adapter of a port must do, for its author to run against it.

They raise `AssertionError` and need no test framework.
"""

from __future__ import annotations

from tradeloop.common.contracts.bar_store import BAR_STORE_CHECKS, check_bar_store
from tradeloop.common.contracts.bus import BUS_CHECKS, RETENTION_CHECKS, check_bus
from tradeloop.common.contracts.event_store import EVENT_STORE_CHECKS, check_event_store
from tradeloop.common.contracts.feature_store import FEATURE_STORE_CHECKS, check_feature_store
from tradeloop.common.contracts.model_store import MODEL_STORE_CHECKS, check_model_store
from tradeloop.common.contracts.strategy import check_strategy

__all__ = [
    "BAR_STORE_CHECKS",
    "BUS_CHECKS",
    "EVENT_STORE_CHECKS",
    "FEATURE_STORE_CHECKS",
    "MODEL_STORE_CHECKS",
    "RETENTION_CHECKS",
    "check_bar_store",
    "check_bus",
    "check_event_store",
    "check_feature_store",
    "check_model_store",
    "check_strategy",
]
