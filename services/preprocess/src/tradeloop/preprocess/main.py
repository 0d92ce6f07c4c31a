"""Composition root of the preprocess service."""

from __future__ import annotations

from tradeloop.common.bar_store.sql import SqlBarStore
from tradeloop.common.bus.kafka import KafkaBus
from tradeloop.common.bus.port import Bus
from tradeloop.common.clock import Clock, SystemClock
from tradeloop.common.runtime.health import serve
from tradeloop.common.runtime.logs import configure_logging
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.settings import in_one_line, load_settings
from tradeloop.common.strategy import load
from tradeloop.preprocess.adapters.bus_sent import BusSent
from tradeloop.preprocess.application import Preprocess
from tradeloop.preprocess.config import Settings


def build(settings: Settings, bus: Bus, clock: Clock) -> Preprocess:
    """The service, with its stores, and the bus to see which frames went out."""
    from tradeloop.common.feature_store.feast.store import FeastFeatureStore  # importing Feast takes seconds

    features = FeastFeatureStore(
        settings.feature_root,
        clock,
        registry=settings.feature_registry,
        online_store=settings.feature_online_store,
    )
    bars = SqlBarStore(settings.database_url.get_secret_value(), clock)
    pairs = [(portfolio.universe, portfolio.strategy) for portfolio in settings.read_portfolios()]
    return Preprocess(pairs, load, bars, features, clock, BusSent(bus, clock), settings.features == "online")


def main() -> None:
    """Run against Kafka until SIGTERM."""
    configure_logging()
    with in_one_line():
        settings, clock = load_settings(Settings), SystemClock()
        bus = KafkaBus(settings.kafka)
        serve(lambda: Runner(build(settings, bus, clock), bus, clock), settings.http, of=settings)


if __name__ == "__main__":
    main()
