"""Five hundred instruments at a bar a second each: from a venue's socket, by ccxt, to the features, on one core."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from benchmarks.live import CONDITIONS, S1, SYMBOLS, Loop, by_the_clock, percentiles, universe
from benchmarks.measure import Row, report
from tradeloop.common.clock import SystemClock
from tradeloop.common.messages import FeaturesComputed
from tradeloop.ingest.adapters.sections import CcxtSection
from tradeloop.ingest.adapters.sources import open_source
from tradeloop.ingest.ports import MarketEvent, MarketSource, MarketStream, StreamedBar


class Noted:
    """A stream, and when the last bar of each close was read off its socket."""

    def __init__(self, stream: MarketStream, read_us: dict[int, int]) -> None:
        self._stream, self._read_us = stream, read_us
        self.close = stream.close

    def poll(self, timeout_s: float) -> Sequence[MarketEvent]:
        events = self._stream.poll(timeout_s)
        for event in events:
            if isinstance(event, StreamedBar):
                self._read_us[event.open_us + S1.us] = event.received_us
        return events


def fed(url: str) -> tuple[Loop, dict[int, int]]:
    """A loop that a venue feeds, and when the last bar of each close was read."""
    clock, sources = SystemClock(), {"binance": CcxtSection(url=url, requests_per_s=1_000.0)}
    read_us: dict[int, int] = {}

    def opened(name: str) -> MarketSource:
        source = open_source(name, sources, clock)
        stream = source.stream
        source.stream = lambda *asked: Noted(stream(*asked), read_us)  # type: ignore[method-assign]
        return source

    with (
        tempfile.TemporaryDirectory(prefix="tradeloop-bench-") as folder,
        closing(Loop(Path(folder), universe("binance"), opened)) as loop,
    ):
        loop.run()
    return loop, read_us


def measure() -> None:
    command = [sys.executable, "-m", "tradeloop.ingest.contracts.fake_venue", "--symbols", *SYMBOLS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as venue:
        assert venue.stdout is not None
        [core, *_] = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {core})
        try:
            loop, read_us = fed(venue.stdout.readline().strip())
        finally:
            venue.kill()
    found = loop.found[FeaturesComputed]
    late = [(read_us[close_us] - close_us) / 1e3 for close_us, *_ in found if close_us in read_us]
    taken = [(at_us - read_us[close_us]) / 1e3 for close_us, at_us, _ in found if close_us in read_us]
    report(
        [
            *percentiles("the last bar off the socket to features", taken),
            *percentiles("the close to the last bar off the socket", late),
            *by_the_clock("close to features", found),
            Row("CPU time of all this, of a core", 100 * loop.busy, "%", None),
        ],
        [
            f"{CONDITIONS} The fake venue, a process of its own on the same machine, speaks as Binance does and gives "
            "each bar once, when it closes; making the frames of a second takes it half a second of CPU. The real ccxt "
            "reads them, in a thread of the measured process. Where the venue does not keep up, bars come after their "
            "grace, and the time from the last of them to features is below zero.",
            f"The feed counted: {loop.told()}",
        ],
    )


if __name__ == "__main__":
    measure()
