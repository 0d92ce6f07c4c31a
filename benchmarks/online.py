"""Features frame by frame through the preprocess service, with and without their writes to a Redis."""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

from redis import Redis

from benchmarks.features import FEATURES, made_up
from benchmarks.measure import Row, in_turns, report
from deploy.native.redis import redis
from deploy.native.server import Server, free_ports
from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.clock import SystemClock
from tradeloop.common.feature_store.feast.store import FeastFeatureStore
from tradeloop.common.feature_store.memory import MemoryFeatureStore
from tradeloop.common.feature_store.port import FeatureStore
from tradeloop.common.market import Instrument, Timeframe, Universe, to_us
from tradeloop.common.messages import BarFrame, FeaturesComputed
from tradeloop.common.messages.topics import specs, topic_of
from tradeloop.common.runtime.pump import pump
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.strategy import Strategy, load
from tradeloop.ingest.domain import frames
from tradeloop.preprocess.adapters.bus_sent import BusSent
from tradeloop.preprocess.application import Preprocess

BARS, WARM_UP, ROUNDS, AT_ONCE = 3_500, 1_500, 2, 64
UNIVERSE = Universe(name="bench", instruments=(Instrument(id="venue:X/USD"),), timeframe=Timeframe.M1)
STRATEGY = Strategy("bench", FEATURES, load("example").reward)


class Play:
    """Frames over a bus in memory through the service, as they come from the bus: some at once."""

    def __init__(self, base: list[BarFrame], store: FeatureStore, online_first: bool, bare: Redis) -> None:
        self._base, self._store, self._online_first, self._bare = base, store, online_first, bare
        self.cpu_s: list[float] = []

    def prepare(self) -> None:
        """A new service that knows its features, and has taken the first frames."""
        self._bare.flushdb()
        self._bus, clock = MemoryBus(), SystemClock()
        self._bus.create_topics(specs({"bench": [topic_of(BarFrame).name, topic_of(FeaturesComputed).name]}))
        sent = BusSent(self._bus, clock)
        self._service = Preprocess(
            [(UNIVERSE, STRATEGY.name)],
            lambda _: STRATEGY,
            MemoryBarStore(clock),
            self._store,
            clock,
            sent,
            online_first=self._online_first,
        )
        self._runner = Runner(self._service, self._bus, clock)
        self._take(self._base[:WARM_UP])

    def __call__(self) -> None:
        started = time.process_time()
        self._take(self._base[WARM_UP:])
        self.cpu_s.append(time.process_time() - started)
        sent = sum(self._bus.end_offsets(topic_of(FeaturesComputed).name).values())
        if sent != len(self._base) or self._service.tallies():
            raise RuntimeError(f"{sent} of {len(self._base)} frames have features; {dict(self._service.tallies())}")

    def _take(self, frames: list[BarFrame]) -> None:
        producer = self._bus.producer()
        for start in range(0, len(frames), AT_ONCE):
            for frame in frames[start : start + AT_ONCE]:
                producer.publish(topic_of(BarFrame).name, key=frame.key, value=frame.encode(), headers={})
            pump([self._runner])
        self._runner.commit()


def measure() -> None:
    base = list(frames(UNIVERSE.name, Timeframe.M1, made_up(BARS)))
    clock = SystemClock()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tradeloop-bench-")))
        [port] = free_ports(1)
        address = stack.enter_context(Server(redis(folder, port), folder)).address
        bare = stack.enter_context(Redis(host="127.0.0.1", port=port))
        section = {"type": "redis", "connection_string": address}
        store = stack.enter_context(closing(FeastFeatureStore(folder / "features", clock, online_store=section)))
        ways = {
            "without": Play(base, MemoryFeatureStore(), False, bare),
            "with commits": Play(base, store, False, bare),
            "before each": Play(base, store, True, bare),
        }
        units = BARS - WARM_UP
        compared = in_turns(
            {name: (way, units) for name, way in ways.items()},
            ROUNDS,
            {name: way.prepare for name, way in ways.items()},
        )
        by_cpu = {name: units / statistics.median(way.cpu_s[1:]) for name, way in ways.items()}
        found = store.read_online(STRATEGY.feature_set.id, UNIVERSE.name, UNIVERSE.ids)
        if int(found.time_us[-1]) != to_us(base[-1].close_time):
            raise RuntimeError("the newest features are not online")
    report(
        [
            Row("20 features through preprocess, no store", compared.rates["without"], "bars/s", None),
            Row("the same, by CPU time", by_cpu["without"], "bars/s", None),
            Row("with Redis, the newest at each commit", compared.rates["with commits"], "bars/s", 3_000.0),
            Row("the same, by CPU time", by_cpu["with commits"], "bars/s", None),
            Row("with Redis, each bar before it goes out", compared.rates["before each"], "bars/s", None),
            Row("the same, by CPU time", by_cpu["before each"], "bars/s", None),
        ],
        [
            f"{BARS - WARM_UP:,} frames of one instrument as JSON over a bus in memory, {AT_ONCE} at a time, through "
            "the service and its runner: decoded, computed, published, committed. Redis is a process of its own on the "
            "same machine, reached through Feast. A commit comes each half a second at most and writes the newest "
            "features alone, off the decisions' path; `PREPROCESS_FEATURES=online` writes those of each bar before "
            f"they are published, for whoever reads them from there. {ROUNDS} rounds in turns. CPU time is that of the "
            "service's process.",
        ],
    )


if __name__ == "__main__":
    measure()
