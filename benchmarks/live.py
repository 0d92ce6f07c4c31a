"""Five hundred instruments at a bar a second each: from the source's stream to the features, on one core."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from benchmarks.features import FEATURES
from benchmarks.measure import Row, report
from tradeloop.common.bar_store.sql import SqlBarStore
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.clock import SystemClock
from tradeloop.common.feature_store.memory import MemoryFeatureStore
from tradeloop.common.market import Instrument, Timeframe, Universe, to_us
from tradeloop.common.messages import BarFrame, Channel, FeaturesComputed, LiveRequested, Message
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.runtime.readback import all_messages
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.strategy import Strategy, load
from tradeloop.ingest.adapters.bus_frames import BusFrames
from tradeloop.ingest.adapters.files import read_blocks
from tradeloop.ingest.application import Ingest
from tradeloop.ingest.application.live import LivePolicy
from tradeloop.ingest.ports import Connected, MarketEvent, MarketSource, Page, StreamedBar
from tradeloop.preprocess.adapters.bus_sent import BusSent
from tradeloop.preprocess.application import Preprocess

INSTRUMENTS, SECONDS, WARM_UP, LONGEST = 500, 30, 10, 120
"""The last are the seconds after which it ends, however many came."""
S1 = Timeframe.S1
PART_US = S1.us // 4
CONDITIONS = (
    f"{INSTRUMENTS} instruments at a bar of a second each, {len(FEATURES)} features, {SECONDS} seconds after {WARM_UP} "
    "that are not counted. Ingest's live feed and preprocess in one process held to one core, on a bus in memory, bars "
    "in SQLite, no online store. The time by the clock runs from the close of the second, with late polls and the wait "
    "for the slowest instrument in it; on a busy machine it says how busy that is."
)
SYMBOLS = [f"S{n}/USDT" for n in range(INSTRUMENTS)]


def universe(venue: str) -> Universe:
    return Universe(
        name="bench", instruments=tuple(Instrument(id=f"{venue}:{symbol}") for symbol in SYMBOLS), timeframe=S1
    )


class MadeSource:
    """A venue in this process: each instrument's bar after each quarter of a second, closed with the last."""

    venue = "made"

    def __init__(self, clock: SystemClock) -> None:
        self._clock = clock
        self._names = universe(self.venue).ids
        self._next_us = 0
        self._connected = False
        self.handed_s: dict[int, float] = {}
        """The CPU time of this process when the closed bars were handed out, by their close."""

    def instruments(self, symbols: Sequence[str]) -> Sequence[Instrument]:
        return [Instrument(id=f"made:{symbol}") for symbol in symbols]

    def history(self, instrument: Instrument, timeframe: Timeframe, start_us: int, end_us: int) -> Iterator[Page]:
        opens = np.arange(-(-start_us // S1.us) * S1.us, min(end_us, self.time_us() - S1.us + 1), S1.us)
        rows = np.array([self._bar(instrument.id, int(open_us)) for open_us in opens]).reshape(len(opens), 5)
        columns = dict(zip(("open", "high", "low", "close", "volume"), rows.T, strict=True))
        yield Page({"open_us": opens, **columns}, end_us)

    def stream(
        self, instruments: Sequence[Instrument], timeframe: Timeframe, channels: frozenset[Channel]
    ) -> MadeSource:
        self._next_us = self.time_us() // PART_US * PART_US + PART_US
        return self

    def poll(self, timeout_s: float) -> Sequence[MarketEvent]:
        now_us = self.time_us()
        if not self._connected:
            self._connected = True
            return [Connected(now_us)]
        events: list[MarketEvent] = []
        while now_us >= self._next_us:
            open_us = (self._next_us - 1) // S1.us * S1.us
            closed = self._next_us == open_us + S1.us
            events += [
                # The time is that at which a thread of its own would have read it off a socket.
                StreamedBar(name, S1, open_us, *self._bar(name, open_us), closed=closed, received_us=self._next_us)
                for name in self._names
            ]
            if closed:
                self.handed_s[self._next_us] = time.process_time()
            self._next_us += PART_US
        return events

    def time_us(self) -> int:
        return to_us(self._clock.now())

    def close(self) -> None:
        """Nothing is held open."""

    @staticmethod
    def _bar(name: str, open_us: int) -> tuple[float, float, float, float, float]:
        step = hash((name, open_us)) % 1000 / 1000
        return 100.0 + step, 102.0 + step, 99.0 + step, 101.0 + step / 2, 5.0 + step


class Loop:
    """Ingest and preprocess on a bus in memory, stepped in turn by one thread."""

    def __init__(self, folder: Path, traded: Universe, opened: Callable[[str], MarketSource]) -> None:
        clock, self._bus = SystemClock(), MemoryBus(hands_over=True)
        strategy = Strategy("bench", FEATURES, load("example").reward)
        url = f"sqlite:///{folder / 'bars.db'}"
        ours, theirs = SqlBarStore(url, clock), SqlBarStore(url, clock)
        self._ingest = Ingest(ours, read_blocks, BusFrames(self._bus), clock, open_source=opened, live=LivePolicy())
        pairs, sent = [(traded, strategy.name)], BusSent(self._bus, clock)
        preprocess = Preprocess(pairs, lambda _: strategy, theirs, MemoryFeatureStore(), clock, sent)
        self._runners = [Runner(self._ingest, self._bus, clock), Runner(preprocess, self._bus, clock)]
        asked = LiveRequested(request_id="bench", universe=traded, command="start", time=clock.now())
        producer = self._bus.producer()
        producer.publish(topic_of(LiveRequested).name, key=asked.key, value=asked.encode(), headers={})
        self._clock = clock
        self.busy = 0.0
        """The share of a core that it took."""
        self.found: dict[type[Message], list[tuple[int, int, float]]] = {}
        """Each second's frame and its features, but those of the first seconds: its close, when it was on the bus, and
        the CPU time that this process had taken by then."""

    def run(self) -> None:
        """Step until enough seconds came. Raises RuntimeError when they do not."""
        seen: dict[type[Message], list[tuple[int, float]]] = {BarFrame: [], FeaturesComputed: []}
        until_us = to_us(self._clock.now()) + LONGEST * S1.us
        while len(seen[FeaturesComputed]) < WARM_UP + SECONDS and to_us(self._clock.now()) < until_us:
            for runner in self._runners:
                runner.step(timeout_s=0.001)
                for kind, times in seen.items():
                    new = sum(self._bus.end_offsets(topic_of(kind).name).values()) - len(times)
                    times += [(to_us(self._clock.now()), time.process_time())] * new
        for kind, times in seen.items():
            of_it = self.found[kind] = []
            for message, at in zip(all_messages(self._bus, kind), times, strict=True):
                if message.occurred is not None and not getattr(message, "revision", 0):
                    of_it.append((to_us(message.occurred), *at))
            del of_it[:WARM_UP]
            if len(of_it) < SECONDS // 2:
                raise RuntimeError(f"{len(of_it)} of {SECONDS} seconds came; the feed counted {self.told()}")
        (first, *_, last) = self.found[FeaturesComputed]
        self.busy = (last[2] - first[2]) / ((last[1] - first[1]) / S1.us)

    def told(self) -> str:
        """The counts of the feed."""
        return ", ".join(f"{event} {count}" for (event, _), count in self._ingest.tallies().items()) or "nothing"

    def close(self) -> None:
        for runner in self._runners:
            runner.close()


def percentiles(what: str, milliseconds: Sequence[float]) -> list[Row]:
    return [Row(f"{what}, p{share}", float(np.percentile(milliseconds, share)), "ms", None) for share in (50, 99)]


def by_the_clock(what: str, found: Sequence[tuple[int, int, float]]) -> list[Row]:
    return percentiles(what, [(at_us - closed_us) / 1e3 for closed_us, at_us, _ in found])


def measure() -> None:
    [core, *_] = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    source = MadeSource(SystemClock())
    with (
        tempfile.TemporaryDirectory(prefix="tradeloop-bench-") as folder,
        closing(Loop(Path(folder), universe("made"), lambda _: source)) as loop,
    ):
        loop.run()
    found, handed = loop.found, source.handed_s
    cpu_ms = [(cpu_s - handed[at]) * 1e3 for at, _, cpu_s in found[FeaturesComputed] if at in handed]
    report(
        [
            *percentiles("close to features, by CPU time", cpu_ms),
            *by_the_clock("close to frame", found[BarFrame]),
            *by_the_clock("close to features", found[FeaturesComputed]),
            Row("CPU time of all this, of a core", 100 * loop.busy, "%", None),
        ],
        [
            f"{CONDITIONS} The source is in the process, too, and gives each bar four times, the last time closed: no "
            "socket is read and no JSON of a venue is parsed, so what a client library takes comes on top. By CPU time "
            "it runs from the poll that brings the closed bars: what an idle core would take.",
            f"The feed counted: {loop.told()}",
        ],
    )


if __name__ == "__main__":
    measure()
