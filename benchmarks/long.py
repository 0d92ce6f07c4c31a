"""The memory and CPU time that each further bar costs in `tradeloop demo`, from two files of minutes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl

from benchmarks import scenario
from benchmarks.measure import Row, report

SHORT, LONG = 20_000, 80_000
STEPS = 4_096


def write_bars(path: Path, length: int) -> None:
    bars = scenario.bars(scenario.universe(), length, seed=7)
    columns = {name: getattr(bars, name)[:, 0] for name in ("open", "high", "low", "close", "volume")}
    pl.DataFrame({"timestamp": bars.open_us // 1000, **columns}).write_csv(path)


def run(command: str, folder: Path, length: int) -> tuple[float, float]:
    """The largest resident set in bytes and the CPU seconds of a demo over so many bars."""
    file = folder / f"minutes-{length}.csv"
    write_bars(file, length)
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [command, "demo", "--bars", str(file), "--steps", str(STEPS), "--out", str(folder / f"demo-{length}")],
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        if process.returncode:
            raise RuntimeError(f"tradeloop demo failed with exit code {process.returncode}: {said.read()[-2000:]}")
    return used.ru_maxrss * 1024.0, used.ru_utime + used.ru_stime


def measure() -> None:
    command = shutil.which("tradeloop", path=str(Path(sys.executable).parent))
    if command is None:
        raise RuntimeError("there is no tradeloop beside this Python: run `make sync`")
    with tempfile.TemporaryDirectory(prefix="tradeloop-bench-") as folder:
        (short_bytes, short_s), (long_bytes, long_s) = (run(command, Path(folder), n) for n in (SHORT, LONG))
    further = LONG - SHORT
    report(
        [
            Row("memory of each further bar of a file", (long_bytes - short_bytes) / further, "B", 2_000.0, "under"),
            Row("CPU time of each further bar of a file", (long_s - short_s) / further * 1e6, "us", None),
            Row(f"largest memory on {LONG:,} bars", long_bytes / 1e9, "GB", None),
        ],
        [
            f"`tradeloop demo` with the example strategy over {SHORT:,} and {LONG:,} synthetic minute bars and "
            f"{STEPS:,} steps of training: the difference of the largest resident sets and of the CPU times (user + "
            "system), divided by the further bars. Seven of ten bars are for training, three are traded and reported."
        ],
    )


if __name__ == "__main__":
    measure()
