"""Composition root of the execution service."""

from __future__ import annotations

from tradeloop.common.strategy import load
from tradeloop.execution.adapters.paper import PaperVenue
from tradeloop.execution.adapters.sql_ledger import SqlLedger
from tradeloop.execution.application import Execution
from tradeloop.execution.config import Settings


def build(settings: Settings) -> Execution:
    """The service, with a paper venue for each portfolio."""
    return Execution(settings.portfolios, load, PaperVenue, SqlLedger(settings.ledger_url))


def main() -> None:
    """Run against Kafka until SIGTERM."""
    from tradeloop.common.clock import SystemClock
    from tradeloop.common.kafka import KafkaBus, KafkaSettings
    from tradeloop.common.service import Runner, serve

    settings = Settings()
    serve(Runner(build(settings), KafkaBus(KafkaSettings()), SystemClock()))


if __name__ == "__main__":
    main()
