"""The lanes of `make test`: they run side by side, each one a pytest of its own, with servers of its own.

`python -m tests.lanes` runs all of them, or those that it is given by name. It prints what failed, how long each lane
took and by which road each server came, and ends with the total.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.notes import PREFIX

ROOT = Path(__file__).parents[1]

Lanes = Mapping[str, Sequence[str]]
LANES: Lanes = {
    # Services, servers and commands that are killed, and start again, or are not what they should be; faults
    # everywhere; secrets that must not leak; and policies that learn, and whoever learns from pages or asks for
    # reasons, for which there is time.
    "crashes": [
        "libs/cli/tests/test_backfill_command.py",
        "libs/cli/tests/test_backfill_on_stack.py",
        "libs/cli/tests/test_doctor.py",
        "tests/e2e/test_crashes.py",
        "tests/e2e/test_demo.py",
        "tests/e2e/test_explain.py",
        "tests/e2e/test_faults.py",
        "tests/e2e/test_learning.py",
        "tests/e2e/test_live.py",
        "tests/e2e/test_scattered.py",
        "tests/e2e/test_start_pages.py",
        "tests/e2e/test_two_executors.py",
        "tests/test_artifacts.py",
        "tests/test_canaries.py",
        "tests/test_notebook.py",
        "tests/test_secured_servers.py",
    ],
    # Whole stacks of processes that trade, and venues that answer in their own time.
    "stacks": [
        "services/ingest",
        "tests/e2e/test_disturbances.py",
        "tests/e2e/test_five_processes.py",
        "tests/e2e/test_live_feed.py",
        "tests/e2e/test_live_processes.py",
        "tests/e2e/test_predictions.py",
        "tests/e2e/test_replay.py",
        "tests/test_native.py",
    ],
    # All else.
    "units": ["libs", "services", "strategies", "tests"],
}
"""The paths of each lane. A test file is in the lane of the most specific path that holds it."""

_OPTIONS = ("--verbose", "--color=no", "--durations=5", "--durations-min=20")
_SAY_EVERY_S = 60.0
_END_TIMEOUT_S = 60.0
_FAILURES = re.compile(r"^=+ (?:ERRORS|FAILURES) =+$", re.M)
_COUNT = re.compile(r"(\d+) (passed|failed|error|skipped|xfailed|xpassed)")
_NOTE = re.compile(rf"^{PREFIX}(.*)$", re.M)
_SLOW = re.compile(r"^([0-9.]+s (?:setup|call|teardown) .*)$", re.M)


class LaneError(Exception):
    """The lanes do not divide the tests. The message says where."""


def files_with_tests(root: Path) -> list[str]:
    """All files of the checkout that hold tests by their name, whoever collects them; relative to its root."""
    folders = [folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    return sorted(str(file.relative_to(root)) for folder in folders for file in folder.rglob("test_*.py"))


def divide(files: Iterable[str], lanes: Lanes) -> dict[str, list[str]]:
    """The files of each lane; each file is in exactly one. Raises `LaneError` for one that is in none, and for a path
    that is given twice or holds nothing.
    """
    lane_of: dict[str, str] = {}
    for lane, paths in lanes.items():
        for path in paths:
            if path in lane_of:
                raise LaneError(f"{path} is in the lanes {lane_of[path]} and {lane}: name it once")
            lane_of[path] = lane
    divided: dict[str, list[str]] = {lane: [] for lane in lanes}
    unused = set(lane_of)
    for file in files:
        holders = [path for path in lane_of if file == path or file.startswith(f"{path}/")]
        if not holders:
            raise LaneError(f"{file} is in no lane: name it in tests/lanes.py")
        path = max(holders, key=len)
        divided[lane_of[path]].append(file)
        unused.discard(path)
    if unused:
        raise LaneError(f"no test file is at {', '.join(sorted(unused))}: take it out of tests/lanes.py")
    return divided


class Lane:
    """A pytest that runs some files, with its output in a file until it has ended."""

    def __init__(self, name: str, files: Sequence[str], root: Path, folder: Path) -> None:
        self.name, self._log = name, folder / f"{name}.log"
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", "pytest", *_OPTIONS, *files],
                cwd=root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def last_line(self) -> str:
        """While it runs, the test that runs now; then pytest's closing line."""
        return next((line for line in reversed(self.output.splitlines()) if line.strip("= ")), "nothing").strip("= ")

    @property
    def counts(self) -> Counter[str]:
        """The number of tests by outcome."""
        return Counter({outcome: int(number) for number, outcome in _COUNT.findall(self.last_line)})

    @property
    def passed(self) -> bool:
        return self._process.returncode == 0 and self.counts["passed"] > 0

    def close(self) -> None:
        """End it where it still runs, with time to take its servers down."""
        if not self.ended:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def run(root: Path, divided: Mapping[str, Sequence[str]]) -> int:
    """Run lanes side by side and print what came of them; the exit code."""
    with tempfile.TemporaryDirectory(prefix="tradeloop-lanes-") as folder:
        lanes = [Lane(name, files, root, Path(folder)) for name, files in divided.items()]
        try:
            _watch(lanes)
        finally:
            for lane in lanes:
                lane.close()
            code = _report(lanes)  # of an interrupted run too
        return code


def _watch(lanes: Sequence[Lane]) -> None:
    """Return when all have ended. Says so of each one, and now and then what those do that still run."""
    began = time.monotonic()
    running, say_at = list(lanes), began + _SAY_EVERY_S
    while running:
        for lane in [lane for lane in running if lane.ended]:
            running.remove(lane)
            _say(began, lane)
        if time.monotonic() > say_at:
            say_at += _SAY_EVERY_S
            for lane in running:
                _say(began, lane)
        time.sleep(0.1)


def _say(began: float, lane: Lane) -> None:
    print(f"{time.monotonic() - began:4.0f} s  {lane.name}: {lane.last_line}", flush=True)


def _report(lanes: Sequence[Lane]) -> int:
    for lane in lanes:
        if not lane.passed:
            output = lane.output
            found = _FAILURES.search(output)
            print(f"\n{f' lane {lane.name} failed ':=^120}\n{output[found.start() :] if found else output}")
    print()
    for lane in lanes:
        print(f"lane {lane.name}: {lane.last_line}")
        for line in (*_SLOW.findall(lane.output), *_NOTE.findall(lane.output)):
            print(f"    {line}")
    total = sum((lane.counts for lane in lanes), Counter[str]())
    failed = total["failed"] + total["error"] + total["xpassed"]
    failed += sum(not lane.passed and not lane.counts["failed"] + lane.counts["error"] for lane in lanes)
    print(f"{total['passed']} passed, {failed} failed, {total['skipped'] + total['xfailed']} skipped")
    return 0 if all(lane.passed for lane in lanes) else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lanes", description=__doc__)
    parser.add_argument("lanes", nargs="*", metavar="lane", help=f"{', '.join(LANES)}; all of them unless given")
    wanted = parser.parse_args().lanes or list(LANES)
    if unknown := set(wanted) - LANES.keys():
        parser.error(f"no lane {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that servers are taken down
    try:
        divided = divide(files_with_tests(ROOT), LANES)
    except LaneError as error:
        print(f"tests.lanes: {error}", file=sys.stderr)
        return 1
    return run(ROOT, {lane: divided[lane] for lane in wanted})


if __name__ == "__main__":
    sys.exit(main())
