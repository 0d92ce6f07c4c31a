"""`make bench`: run every subject in a process of its own and write RESULTS.md beside this file.

`run.py SUBJECT ...` runs some and prints the same page instead.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import timeit
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tradeloop.common.clock import SystemClock

SUBJECTS = {
    "environments": "Environments",
    "learning": "Learning",
    "decision": "Deciding",
    "loop": "The embedded loop",
    "store": "Storing bars",
    "bus": "Kafka",
    "processes": "Five processes",
    "demo": "The demo",
}
LIBRARIES = (
    *("numpy", "numba", "torch", "stable-baselines3", "gymnasium", "onnxruntime", "pydantic"),
    *("gym-anytrading", "gym-trading-env"),
)
HERE = Path(__file__).parent
Row = dict[str, Any]
"""The fields of `measure.Row`, and `met`."""

_HEAD = "| What | Measured | Against | Ratio | Wanted | Met |\n|---|---:|---|---:|---|---|"


def run(subject: str) -> dict[str, Any]:
    """What a subject tells. A fresh process: no threads, caches or memory of the one before."""
    command = [sys.executable, "-m", f"benchmarks.{subject}"]
    done = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def figure(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def line(row: Row) -> str:
    """A row of the table."""
    against = f"{row['against']}: {figure(row['against_measured'])}" if row["against"] else ""
    ratio = "" if row["ratio"] is None else figure(row["ratio"])
    unit = row["unit"] if row["ratio"] is None else "x"
    wanted = "" if row["wanted"] is None else f"{row['wanted_is']} {row['wanted']:,g} {unit}"
    met = {True: "yes", False: "**no**", None: ""}[row["met"]]
    return f"| {row['what']} | {figure(row['measured'])} {row['unit']} | {against} | {ratio} | {wanted} | {met} |"


def processor() -> str:
    """The model of the CPU, as Linux has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [text.partition(":")[2].strip() for text in lines if text.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine(load_before: tuple[float, float, float]) -> str:
    """Where and when the figures were taken."""
    # Ten million additions, the fastest of five: what this machine makes of plain Python, to hold absolute figures by.
    loop_s = min(timeit.repeat("for _ in range(10_000_000): n += 1", setup="n = 0", number=1, repeat=5))
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return "\n".join(
        [
            f"- {SystemClock().now():%Y-%m-%d %H:%M} UTC, {processor()}, {os.cpu_count()} cores, {platform.system()}",
            f"- Python {platform.python_version()}, {libraries}",
            f"- load over a minute: {load_before[0]:.1f} before, {os.getloadavg()[0]:.1f} after; ten million additions "
            f"in plain Python: {loop_s:.2f} s",
        ]
    )


def page(told: dict[str, dict[str, Any]], load_before: tuple[float, float, float]) -> str:
    """The results as Markdown."""
    rows = [line(row) for subject in told.values() for row in subject["rows"]]
    how = [
        f"### {SUBJECTS[subject]}\n\n" + "\n".join(f"- {note}" for note in said["notes"])
        for subject, said in told.items()
    ]
    return "\n\n".join(
        [
            "# Benchmarks",
            "Written by `make bench`. Peers and bounds are measured in the same run, in turns with ours: a ratio above "
            "1 means that ours is faster. Figures without a ratio depend on the machine and on what else it does.",
            machine(load_before),
            "\n".join([_HEAD, *rows]),
            "## How each was taken",
            *how,
        ]
    )


def main(arguments: list[str]) -> int:
    if unknown := [name for name in arguments if name not in SUBJECTS]:
        print(f"no subject {', '.join(unknown)}; there are {', '.join(SUBJECTS)}", file=sys.stderr)
        return 2
    load_before, told = os.getloadavg(), {}
    for subject in arguments or SUBJECTS:
        print(f"{SUBJECTS[subject]} ...", file=sys.stderr, flush=True)
        told[subject] = run(subject)
    text = page(told, load_before) + "\n"
    print(text)
    if not arguments:
        (HERE / "RESULTS.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
