"""Contracts of the ports of ingest, and a fake venue to hold adapters against. They need no test framework.

`fake_venue` needs the extra `tradeloop-ingest[testing]`; it is imported by its own name.
"""

from __future__ import annotations

from tradeloop.ingest.contracts.bar_source import BAR_SOURCE_CHECKS, Write, check_bar_source
from tradeloop.ingest.contracts.fetched import FETCHED_CHECKS, MakeFetched, check_fetched
from tradeloop.ingest.contracts.market_source import MARKET_SOURCE_CHECKS, MarketOnTrial, check_market_source

__all__ = [
    "BAR_SOURCE_CHECKS",
    "FETCHED_CHECKS",
    "MARKET_SOURCE_CHECKS",
    "MakeFetched",
    "MarketOnTrial",
    "Write",
    "check_bar_source",
    "check_fetched",
    "check_market_source",
]
