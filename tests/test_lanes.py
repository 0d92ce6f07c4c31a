"""The lanes of `make test`: every test is in exactly one, and what one of them finds is what the whole run says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.lanes import LANES, ROOT, LaneError, divide, files_with_tests, run
from tests.test_native import lives
from tests.waiting import PATIENCE_S, until

PASSES = "def test_passes() -> None: pass\n"
FAILS = "def test_fails() -> None: assert 'apples' == 'pears'\n"
SKIPS = "import pytest\n@pytest.mark.skip\ndef test_skips() -> None: pass\n"
DIES = "import os\ndef test_dies() -> None: os._exit(0)\n"
TOY = {"one": ["libs", "tests/test_b.py"], "two": ["tests"]}


def lay_out(root: Path, **texts: str) -> dict[str, list[str]]:
    """A checkout with a test in three files, those of lane `one` and that of lane `two`, unless given otherwise."""
    for path in ("libs/test_a.py", "tests/test_b.py", "tests/test_c.py"):
        text = texts.get(path[-4], PASSES)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return divide(files_with_tests(root), TOY)


def test_every_test_file_is_in_exactly_one_lane() -> None:
    """Pytest collects by file: tests of a file in one lane run once."""
    divided = Counter(file for files in divide(files_with_tests(ROOT), LANES).values() for file in files)
    assert set(divided.values()) == {1}
    assert divided.keys() == {str(file.relative_to(ROOT)) for file in ROOT.glob("[!.]*/**/test_*.py")}


def test_the_most_specific_path_decides() -> None:
    files = ["libs/x/test_a.py", "tests/test_a.py", "tests/test_b.py"]
    assert divide(files, TOY) == {"one": ["libs/x/test_a.py", "tests/test_b.py"], "two": ["tests/test_a.py"]}


@pytest.mark.parametrize(
    ("lanes", "why"),
    [
        ({"one": ["libs"]}, r"tests/test_a\.py is in no lane"),
        ({"one": ["libs", "test"]}, r"tests/test_a\.py is in no lane"),
        ({"one": ["tests"], "two": ["tests"]}, "in the lanes one and two"),
        ({"one": ["tests"], "two": ["tests/test_b.py"]}, r"no test file is at tests/test_b\.py"),
    ],
)
def test_lanes_that_do_not_divide_the_tests_are_refused(lanes: Mapping[str, list[str]], why: str) -> None:
    with pytest.raises(LaneError, match=why):
        divide(["tests/test_a.py"], lanes)


def test_all_lanes_make_one_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, lay_out(tmp_path, b=SKIPS)) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "2 passed, 0 failed, 1 skipped"
    assert "lane one: 1 passed, 1 skipped in" in said


def test_what_fails_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, lay_out(tmp_path, b=FAILS)) == 1
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "2 passed, 1 failed, 0 skipped"
    assert said.count("FAILED tests/test_b.py::test_fails - ") == 1
    assert "lane two failed" not in said


@pytest.mark.parametrize("text", [DIES, ""], ids=["died", "without tests"])
def test_a_lane_that_does_not_come_to_its_end_fails(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even with an exit status of success."""
    assert run(tmp_path, lay_out(tmp_path, c=text)) == 1
    said = capsys.readouterr().out
    assert "lane two failed" in said
    assert said.splitlines()[-1] == "2 passed, 1 failed, 0 skipped"


def test_no_lane_outlives_an_interrupted_run(tmp_path: Path) -> None:
    pid_file, ended = tmp_path / "pid", tmp_path / "ended"
    waits = (
        "import os, pathlib, time\n"
        "def test_waits() -> None:\n"
        f"    pathlib.Path({str(pid_file)!r}).write_text(f'{{os.getpid()}} ')\n"
        f"    try: time.sleep(600)\n    finally: pathlib.Path({str(ended)!r}).touch()\n"
    )
    lay_out(tmp_path, c=waits)
    code = (
        "import sys; from pathlib import Path; from tests import lanes\n"
        f"lanes.ROOT, lanes.LANES, sys.argv = Path({str(tmp_path)!r}), {TOY!r}, ['lanes']\n"
        "sys.exit(lanes.main())"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as whole:
        until(lambda: pid_file.exists() and pid_file.read_text().endswith(" "))
        pid = int(pid_file.read_text())
        assert lives(pid)
        os.kill(whole.pid, signal.SIGTERM)
        assert whole.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert not lives(pid)
    assert ended.exists(), "its fixtures were taken down"
