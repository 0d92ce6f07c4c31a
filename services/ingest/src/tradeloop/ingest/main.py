"""Composition root of the ingest service."""

from __future__ import annotations

from functools import partial

from tradeloop.common.bar_store.sql import SqlBarStore
from tradeloop.common.bus.kafka import KafkaBus
from tradeloop.common.bus.port import Bus
from tradeloop.common.clock import Clock, SystemClock
from tradeloop.common.event_store.sql import SqlEventStore
from tradeloop.common.runtime.health import serve
from tradeloop.common.runtime.logs import configure_logging
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.settings import in_one_line, load_settings
from tradeloop.ingest.adapters.bus_frames import BusFrames
from tradeloop.ingest.adapters.files import read_blocks
from tradeloop.ingest.adapters.sources import load_sources, open_source
from tradeloop.ingest.adapters.sql_fetched import SqlFetched
from tradeloop.ingest.application import Ingest
from tradeloop.ingest.config import Settings


def build(settings: Settings, bus: Bus, clock: Clock, *, threaded: bool = True) -> Ingest:
    """The service, with its store, and the bus to see what it published.

    `threaded` says whether the sources of live feeds are asked in threads of their own.
    """
    store = SqlBarStore(settings.database_url.get_secret_value(), clock)
    return Ingest(
        store,
        partial(read_blocks, min_rows=settings.min_rows, root=settings.file_root),
        BusFrames(bus),
        clock,
        chunk_frames=settings.chunk_frames,
        window_frames=settings.window_frames,
        open_source=partial(open_source, sources=load_sources(settings.sources), clock=clock),
        live=settings.live,
        events=SqlEventStore(settings.database_url.get_secret_value()) if settings.keep_events else None,
        threaded=threaded,
        fetched=SqlFetched(settings.database_url.get_secret_value(), clock),
    )


def main() -> None:
    """Run against Kafka until SIGTERM."""
    configure_logging()
    with in_one_line():
        settings, clock = load_settings(Settings), SystemClock()
        bus = KafkaBus(settings.kafka)
        serve(lambda: Runner(build(settings, bus, clock), bus, clock), settings.http, of=settings)


if __name__ == "__main__":
    main()
