"""Commands that documentation, messages and comments name are there, with the options that they are given."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from tests.test_docs import DECISIONS, FENCE, PAGES, PYTHON, ROOT, blocks
from tradeloop.cli.main import app

COMMAND: Any = typer.main.get_command(app)


def named(text: str) -> Iterator[str]:
    """Every command of Tradeloop in a shell block, or in code style in a sentence."""
    shell = "".join(body for language, _, body in blocks(text) if language not in {"python", "text"})
    for line in re.sub(r"\s*\\\n\s*", " ", shell).splitlines():
        yield from re.findall(r"^(?:\$ )?(?:\w+=\S* )*(?:\S*/)?(tradeloop .*)$", line)
    yield from (" ".join(found.split()) for found in re.findall(r"`(tradeloop [^`]*)`", FENCE.sub("", text)))


def complaint(given: str) -> str:
    """Why a command cannot be run as it is given, in words; nothing when it can.

    `a|b` is either. A word in capitals, or with braces, stands for a value; `...` says that more may follow.
    """
    command, path, positional = COMMAND, "tradeloop", 0
    lexer = shlex.shlex(given, posix=True, punctuation_chars=";&<>")
    lexer.whitespace_split = True
    words = list(lexer)[1:]
    while words:
        word = words.pop(0)
        if set(word) <= set(";&|<>"):
            break
        if word.startswith("-"):
            name, _, value = word.partition("=")
            options = {opt: one for one in command.params for opt in (*one.opts, *one.secondary_opts)}
            if name == "--help":
                continue
            if (option := options.get(name)) is None:
                return f"{path} has no option {name}"
            if not option.is_flag and not value:
                del words[:1]
        elif hasattr(command, "commands"):
            for one in word.split("|"):
                if (found := command.commands.get(one)) is None:
                    return f"{path} has no command {one}"
            command, path = found, f"{path} {one}"
        elif word != "...":
            positional += 1
    if positional and not any(one.param_type_name == "argument" for one in command.params):
        return f"{path} takes no argument"
    return ""


def complaints(text: str) -> list[str]:
    return [f"{given}: {why}" for given in named(text) if (why := complaint(given))]


def test_commands_in_documentation_exist() -> None:
    pages = [page for page in PAGES if page not in DECISIONS and page.name != "CHANGELOG.md"]  # they tell of the past
    assert sum(len(list(named(page.read_text()))) for page in pages) > 70
    assert {page.name: found for page in pages if (found := complaints(page.read_text()))} == {}


def test_commands_in_messages_and_comments_exist() -> None:
    files = [*PYTHON, *ROOT.glob("deploy/**/*.y*ml"), *ROOT.glob("deploy/*.example")]
    assert {file.name: found for file in files if (found := complaints(file.read_text()))} == {}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("tradeloop status", ""),
        ("tradeloop bars list|check FILE...", ""),
        ("tradeloop bars check FILE --calendar=XNYS && tradeloop nonsense", ""),
        ("tradeloop db prune --older-than 400d --ledger-url URL > out", ""),
        ("tradeloop statis", "tradeloop has no command statis"),
        ("tradeloop bars list|forget", "tradeloop bars has no command forget"),
        ("tradeloop bars check --calender XNYS", "tradeloop bars check has no option --calender"),
        ("tradeloop status now", "tradeloop status takes no argument"),
        ("tradeloop demo --help", ""),
    ],
)
def test_a_wrong_command_is_found(given: str, why: str) -> None:
    assert complaint(given) == why


def test_commands_are_found_in_blocks_and_sentences() -> None:
    text = """Run `tradeloop bars\nlist`, not `make it`.\n
```sh
$ A=1 .venv/bin/tradeloop demo \\
    --seed 1   # as always
echo tradeloop
```
"""
    assert list(named(text)) == ["tradeloop demo --seed 1   # as always", "tradeloop bars list"]
