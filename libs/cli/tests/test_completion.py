"""The Tab key: a shell completes commands and options, fast, since nothing heavy is loaded for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from libs.cli.tests.test_main import HEAVY
from tests.waiting import PATIENCE_S

TRADELOOP = Path(sys.executable).with_name("tradeloop")


def completed(line: str) -> set[str]:
    """What bash offers at the end of a line, by the script that `--show-completion` prints."""
    words = line.split(" ")
    script = f"""
        source <('{TRADELOOP}' --show-completion bash)
        COMP_WORDS=({" ".join(f"'{word}'" for word in words)}); COMP_CWORD={len(words) - 1}
        _tradeloop_completion '{TRADELOOP}'
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("tradeloop do", {"doctor"}),
        ("tradeloop config ", {"show", "validate"}),
        ("tradeloop bars check --cal", {"--calendar"}),
        ("tradeloop train --stack ", {"embedded", "running"}),
    ],
)
def test_bash_completes(line: str, offered: set[str]) -> None:
    assert completed(line) == offered


def test_completing_loads_no_heavy_library() -> None:
    code = "import sys; from tradeloop.cli.main import main; main(); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"_TRADELOOP_COMPLETE": "complete_bash", "COMP_WORDS": "tradeloop bars ch", "COMP_CWORD": "2"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert not HEAVY & {module.partition(".")[0] for module in done.stderr.split()}
