"""Composition root of the execution service."""

from __future__ import annotations

from tradeloop.common.bus.kafka import KafkaBus
from tradeloop.common.bus.port import Bus
from tradeloop.common.clock import Clock, SystemClock
from tradeloop.common.runtime.health import serve
from tradeloop.common.runtime.logs import configure_logging
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.settings import in_one_line, load_settings
from tradeloop.common.strategy import load
from tradeloop.execution.adapters.bus_history import BusHistory
from tradeloop.execution.adapters.paper import PaperVenue
from tradeloop.execution.adapters.sql_ledger import SqlLedger
from tradeloop.execution.application import Execution
from tradeloop.execution.config import Settings


def build(settings: Settings, bus: Bus, clock: Clock) -> Execution:
    """The service, with a paper venue for each portfolio."""
    ledger = SqlLedger(settings.ledger_url.get_secret_value(), bus.identity)
    return Execution(settings.read_portfolios(), load, PaperVenue, ledger, BusHistory(bus), clock)


def main() -> None:
    """Run against Kafka until SIGTERM."""
    configure_logging()
    with in_one_line():
        settings, clock = load_settings(Settings), SystemClock()
        bus = KafkaBus(settings.kafka)
        serve(lambda: Runner(build(settings, bus, clock), bus, clock), settings.http, of=settings)


if __name__ == "__main__":
    main()
