"""`make bench`: run every subject in a process of its own, and give each its section of RESULTS.md beside this file.

`make bench SUBJECTS='bus store'` runs some; the sections of the others stay as they are, each with its date.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import sysconfig
import timeit
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tradeloop.common.clock import SystemClock

SUBJECTS = {
    "environments": "Environments",
    "learning": "Learning",
    "toys": "Toy markets",
    "decision": "Deciding",
    "loop": "The embedded loop",
    "crowd": "A crowd of portfolios",
    "features": "Features",
    "resampling": "Longer bars",
    "store": "Storing bars",
    "csv": "CSV into the store",
    "backfill": "Backfill through ccxt",
    "feast": "Feast",
    "online": "Features online",
    "live": "A live feed",
    "socket_feed": "A live feed through a socket",
    "bus": "Kafka",
    "processes": "Five processes",
    "demo": "The demo",
    "long": "Long files",
}
LIBRARIES = (
    *("numpy", "numba", "torch", "stable-baselines3", "gymnasium", "onnxruntime", "pydantic"),
    *("confluent-kafka", "psycopg"),
    *("gym-anytrading", "gym-trading-env"),
)
HERE = Path(__file__).parent
PEERS = Path(sysconfig.get_path("purelib", "venv", {"base": str(HERE.parent / ".venv" / "peers")}))
"""Where `make bench` puts the packages of pyproject.toml beside this file. It holds nothing that ours has too."""
Row = dict[str, Any]
"""The fields of `measure.Row`, and `met`."""

_TOP = """# Benchmarks

`make bench` measures everything, `make bench SUBJECTS=bus` a subject. Peers and bounds are measured in the same run,
in turns with ours: a ratio above 1 means that ours is faster. Figures without a ratio depend on the machine and on what
else it does."""
_HEAD = "| What | Measured | Against | Ratio | Wanted | Met |\n|---|---:|---|---:|---|---|"


def run(subject: str) -> dict[str, Any]:
    """The report of a subject, from a fresh process: no threads, caches or memory of the one before."""
    command = [sys.executable, "-m", f"benchmarks.{subject}"]
    environment = os.environ | {"PYTHONPATH": str(PEERS)}
    done = subprocess.run(command, cwd=HERE.parent, env=environment, stdout=subprocess.PIPE, text=True, check=True)
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


def section(told: Mapping[str, Any], load_before: tuple[float, float, float]) -> str:
    """The report of a subject, as Markdown below its heading."""
    rows = [line(row) for row in told["rows"]]
    notes = [f"- {note}" for note in told["notes"]]
    return "\n\n".join([machine(load_before), "\n".join([_HEAD, *rows]), "\n".join(notes)])


def read_sections(page: Path) -> dict[str, str]:
    """The sections that a page has, by heading."""
    parts = page.read_text(encoding="utf-8").split("\n## ")[1:] if page.exists() else []
    return {heading: text.strip() for heading, _, text in (part.partition("\n") for part in parts)}


def write_sections(page: Path, sections: Mapping[str, str]) -> None:
    """Write a page whole or not at all, its sections in the order of the subjects."""
    known = [f"## {title}\n\n{sections[title]}" for title in SUBJECTS.values() if title in sections]
    unfinished = page.with_suffix(".new")
    unfinished.write_text("\n\n".join([_TOP, *known]) + "\n", encoding="utf-8")
    unfinished.replace(page)


def main(arguments: list[str]) -> int:
    if unknown := [name for name in arguments if name not in SUBJECTS]:
        print(f"no subject {', '.join(unknown)}; there are {', '.join(SUBJECTS)}", file=sys.stderr)
        return 2
    if not PEERS.is_dir():
        print("the peers are not installed: run make bench", file=sys.stderr)
        return 2
    sys.path.append(str(PEERS))  # for their versions
    page = HERE / "RESULTS.md"
    for subject in arguments or SUBJECTS:
        title = SUBJECTS[subject]
        print(f"{title} ...", file=sys.stderr, flush=True)
        load_before = os.getloadavg()
        text = section(run(subject), load_before)
        write_sections(page, read_sections(page) | {title: text})
        print(f"## {title}\n\n{text}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
