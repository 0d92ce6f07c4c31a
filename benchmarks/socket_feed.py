"""Five hundred instruments at a bar a second each: from a venue's socket, by ccxt, to the features, on one core."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from benchmarks.live import CONDITIONS, SYMBOLS, Loop, by_the_clock, universe
from benchmarks.measure import Row, report
from tradeloop.common.clock import SystemClock
from tradeloop.common.messages import BarFrame, FeaturesComputed
from tradeloop.ingest.adapters.sections import CcxtSection
from tradeloop.ingest.adapters.sources import open_source


def fed(url: str) -> Loop:
    """A loop that a venue feeds."""
    clock, sources = SystemClock(), {"binance": CcxtSection(url=url, requests_per_s=1_000.0)}
    with (
        tempfile.TemporaryDirectory(prefix="tradeloop-bench-") as folder,
        closing(Loop(Path(folder), universe("binance"), lambda name: open_source(name, sources, clock))) as loop,
    ):
        loop.run()
    return loop


def measure() -> None:
    command = [sys.executable, "-m", "tradeloop.ingest.contracts.fake_venue", "--symbols", *SYMBOLS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as venue:
        assert venue.stdout is not None
        [core, *_] = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {core})
        try:
            loop = fed(venue.stdout.readline().strip())
        finally:
            venue.kill()
    report(
        [
            *by_the_clock("close to frame", loop.found[BarFrame]),
            *by_the_clock("close to features", loop.found[FeaturesComputed]),
            Row("CPU time of all this, of a core", 100 * loop.busy, "%", None),
        ],
        [
            f"{CONDITIONS} The fake venue, a process of its own on the same machine, speaks as Binance does and gives "
            "each bar once, when it closes; making the frames of a second takes it 0.2 s of CPU or more, which count. "
            "The real ccxt reads them, in a thread of the measured process.",
            f"The feed counted: {loop.told()}",
        ],
    )


if __name__ == "__main__":
    measure()
