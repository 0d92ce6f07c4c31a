"""Pages whose commands are run as they stand there, one after the other, in one shell."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.test_docs import ROOT, blocks
from tests.waiting import PATIENCE_S, until

OWN = (".git", ".native", ".native.before", ".tradeloop", "demo", "portfolios")
"""Names in a checkout that are its user's, or Git's."""
ASKS = ("tradeloop status", "tradeloop book show", "tradeloop dlq list")
"""Commands that change nothing, and tell something else a little later."""
_STEP_TIMEOUT_S = 600.0


class Step(NamedTuple):
    """A shell block of a page, and the lines of output that the page shows after it."""

    commands: tuple[str, ...]
    shown: tuple[str, ...]


def steps(page: str, section: str = "") -> list[Step]:
    """What a page, or one section of it, has whoever follows it do: its `sh` blocks, each with the `text` block behind
    it.
    """
    text = (ROOT / page).read_text()
    if section:
        _, _, text = text.partition(f"\n## {section}\n")
        assert text, f"{page} has no section {section}"
        text, _, _ = text.partition("\n## ")
    found: list[Step] = []
    for language, _, body in blocks(text):
        if language == "sh":
            found.append(Step(tuple(re.sub(r"\s*\\\n\s*", " ", body).splitlines()), ()))
        elif language == "text" and found:
            found[-1] = found[-1]._replace(shown=tuple(line for line in body.splitlines() if line))
    return found


def block(page: str, language: str) -> str:
    """The one block of that language in a page."""
    [found] = [body for one, _, body in blocks((ROOT / page).read_text()) if one == language]
    return found


def unseen(shown: Sequence[str], output: str) -> list[str]:
    """The lines that a page shows and an output lacks. Numbers, and so times, may be others, and more may follow."""
    return [line for line in shown if not re.search(f"^{_pattern(line)}(?:;.*)?$", output, re.M)]


def _pattern(line: str) -> str:
    return re.sub(r"\d[\d,]*(\\\.\d+)?", r"-?[\\d,]+(\\.\\d+)?", re.escape(line))


def like_a_checkout(folder: Path) -> Path:
    """A folder with all that the checkout has, by links, where commands find none of its user's files."""
    (ROOT / ".servers").mkdir(exist_ok=True)  # what is fetched into it is for all
    folder.mkdir()
    for entry in ROOT.iterdir():
        if entry.name not in OWN:
            (folder / entry.name).symlink_to(entry)
    return folder


class Reader:
    """A shell whose user types what pages say, with changes that make it shorter; used as a context manager.

    `changes` has the words, by regular expression, that are typed in the place of others, `making` the environment that
    `make` gets besides.
    """

    def __init__(self, folder: Path, changes: Mapping[str, str], making: Mapping[str, str]) -> None:
        self._changes, self._count = changes, 0
        self._outputs = folder.with_name(f"{folder.name}.outputs")
        self._outputs.mkdir()
        unset = ("TRADELOOP_", "INGEST_", "PREPROCESS_", "TRAINING_", "INFERENCE_", "EXECUTION_", "MAKE", "MFLAGS")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
        self._shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc"], stdin=subprocess.PIPE, text=True, cwd=folder, env=clean
        )
        # The environment of the tests is that of the lock file; links do not make it that of another checkout.
        given = " ".join(f"{name}={shlex.quote(value)}" for name, value in making.items())
        self.do(f'make() {{ {given} command make --old-file=sync "$@"; }}')

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._shell.kill()
        self._shell.communicate()

    def follow(self, step: Step) -> str:
        """Do what a step says, until its output is as shown; the output. Fails where it is not."""
        output = said = "".join(map(self.do, step.commands))
        asks = [command for command in step.commands if command.startswith(ASKS)]
        deadline = time.monotonic() + (PATIENCE_S if asks else 0.0)
        while missing := unseen(step.shown, said):
            assert time.monotonic() < deadline, f"{missing} is not in what came of {step.commands}:\n{said}"
            said += "".join(map(self.do, asks))
        return output

    def do(self, command: str) -> str:
        """Type one line; its output, that on standard error too. Fails where it does."""
        for words, instead in self._changes.items():
            command = re.sub(words, instead, command)
        self._count += 1
        output, status = (self._outputs / f"{self._count}.{kind}" for kind in ("out", "status"))
        assert self._shell.stdin is not None
        self._shell.stdin.write(
            f"{{ {command}\n}} > '{output}' 2>&1 < /dev/null; echo $? > '{status}.new'; mv '{status}.new' '{status}'\n"
        )
        self._shell.stdin.flush()
        until(lambda: status.exists() or self._shell.poll() is not None, _STEP_TIMEOUT_S)
        said = output.read_text()
        assert status.exists(), f"{command}: it ended the shell: {said[-4000:]}"
        assert status.read_text() == "0\n", f"{command}: status {status.read_text()}{said[-4000:]}"
        return said
