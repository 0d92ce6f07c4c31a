"""The time and memory that `tradeloop demo` takes with its defaults, on two cores."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Row, report

CORES = 2
_STAGE = re.compile(r"^(.+): (\d+\.\d) s$", re.MULTILINE)


def measure() -> None:
    command = shutil.which("tradeloop", path=str(Path(sys.executable).parent))
    if command is None:
        raise RuntimeError("there is no tradeloop beside this Python: run `make sync`")
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    os.sched_setaffinity(0, cores)  # inherited
    with tempfile.TemporaryDirectory(prefix="tradeloop-bench-") as folder, tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        process = subprocess.Popen(
            [command, "demo", "--out", str(Path(folder) / "demo")], stdout=subprocess.DEVNULL, stderr=said
        )
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if process.returncode:
        raise RuntimeError(f"tradeloop demo failed with exit code {process.returncode}: {text[-2000:]}")
    stages = "; ".join(f"{name} {taken}" for name, taken in _STAGE.findall(text))
    report(
        [
            Row("tradeloop demo, wall clock", wall_s, "s", 120.0, "under"),
            Row("tradeloop demo, largest memory", used.ru_maxrss * 1024 / 1e9, "GB", 2.5, "under"),
            Row("tradeloop demo, CPU time (user + system)", used.ru_utime + used.ru_stime, "s", None),
        ],
        [
            f"`tradeloop demo` with default arguments from the synced environment, one run in a process of its own "
            f"held to {len(cores)} cores; memory is the largest resident set.",
            f"Seconds of its stages: {stages}. What remains is importing and leaving.",
        ],
    )


if __name__ == "__main__":
    measure()
