"""A venue on this machine for tests: speaks as real venues do to their real client libraries, and errs on command."""

from __future__ import annotations

from tradeloop.ingest.contracts.fake_venue.clock import VenueClock
from tradeloop.ingest.contracts.fake_venue.faults import Faults
from tradeloop.ingest.contracts.fake_venue.market import Bars, Listing, Market
from tradeloop.ingest.contracts.fake_venue.recorded import Recording
from tradeloop.ingest.contracts.fake_venue.server import FakeVenue

__all__ = ["Bars", "FakeVenue", "Faults", "Listing", "Market", "Recording", "VenueClock"]
