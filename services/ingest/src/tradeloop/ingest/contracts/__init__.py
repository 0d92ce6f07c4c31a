"""Contracts of the ports of ingest, and a fake venue to hold adapters against. They need no test framework.

`fake_venue` needs the extra `tradeloop-ingest[testing]`; it is imported by its own name.
"""

from __future__ import annotations

from tradeloop.ingest.contracts.bar_source import BAR_SOURCE_CHECKS, Write, check_bar_source

__all__ = ["BAR_SOURCE_CHECKS", "Write", "check_bar_source"]
