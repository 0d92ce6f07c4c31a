"""Commands that documentation, messages and comments name are there, with the options that they are given."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.pages import Reader, Step, steps, unseen
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


def test_what_a_page_shows_must_have_come(tmp_path: Path) -> None:
    """Numbers may be others, words may not; and a command that fails ends the reading."""
    line = "fx (fx): active; marked 2017-07-01 00:00 UTC, equity 99,385.90, 0 positions open"
    assert not unseen(
        [line], "0 dead letters\nfx (fx): active; marked 2026-01-31 10:05 UTC, equity -7.5, 12 positions open"
    )
    assert not unseen([line], f"{line}; on record: 3 decision missed\n")
    for other in (line.replace("active", "halted"), line.replace("0 pos", "no pos"), f"not {line}", f"{line} now"):
        assert unseen([line], other) == [line]
    (tmp_path / "here").mkdir()
    with Reader(tmp_path / "here", {"^sing": "echo"}, {"LOUD": "yes"}) as reader:
        assert (
            reader.follow(Step(("A='one two'", 'sing "$A" 3', "tradeloop() { echo 4; }"), ("one two 1",)))
            == "one two 3\n"
        )
        assert reader.follow(Step(("tradeloop status",), ("4",))) == "4\n"
        with pytest.raises(AssertionError, match="'five'"):
            reader.follow(Step(("echo 5",), ("five",)))
        with pytest.raises(AssertionError, match=r"cat none: status 1\n.*No such file"):
            reader.do("cat none")
        (tmp_path / "here/Makefile").write_text("say: sync\n\t@echo $(LOUD)\nsync:\n\t@echo never\n")
        assert reader.do("make say") == "yes\n"


KUBERNETES = ROOT / "docs/kubernetes.md"
DRILLS = sorted((ROOT / "deploy/kubernetes").glob("*.py"))
FOLLOWED = ("docs/start/operator.md", "docs/operations.md", "docs/start/trader.md")
"""The pages whose blocks of `sh` are run as they stand there, by `tests/test_native.py`."""
ANY = "?"
"""A word of a drill that only its run decides."""
NOT_RUN = re.compile(r"`make test-k8s` does not run ((?:`[^`]+`(?:, | and )?)+)")


def shell_lines(text: str) -> list[str]:
    """The commands of the shell blocks of a page, without comments."""
    shell = "".join(body for language, _, body in blocks(text) if language in {"", "sh"})
    lines = re.sub(r"\s*\\\n\s*", " ", shell).splitlines()
    return [line for line in (re.sub(r"(?:^|\s+)#.*| &$", "", line).strip() for line in lines) if line]


def drilled(sources: Iterable[str]) -> tuple[list[list[str]], set[str]]:
    """The words that drills give to kubectl, call by call; and all texts in them, such as commands for a pod."""
    calls, texts = [], set()
    for tree in map(ast.parse, sources):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("kubectl", "fed"):
                calls.append([_word(one) for one in node.args[node.func.id == "fed" :]])
            if isinstance(node, ast.List) and node.elts and _word(node.elts[0]) == "kubectl":
                calls.append([_word(one) for one in node.elts[1:]])
    return calls, texts


def _word(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_word(value) for value in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ANY


def is_drilled(given: str, calls: Iterable[Sequence[str]], texts: Iterable[str]) -> bool:
    """Whether a drill does what a command of kubectl does: its verb, on that kind of thing, with all of its options."""
    command, _, inside = given.removeprefix("kubectl ").partition(" -- ")
    if inside:
        return shlex.split(re.sub(r" [<>] \S+", "", inside)) in [_split(text) for text in texts]
    command = re.sub(r"(?:^| )-[nk] \S+| --timeout=\S+| > \S+", "", command)
    wanted, options = _divided(shlex.split(command))
    for call in calls:
        words, had = _divided(call)
        same = len(words) >= min(len(wanted), 2) and all(map(_fits, wanted[:2], words))
        if same and {_option(one) for one in options} <= {_option(one) for one in had}:
            return True
    return False


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # no command: a quotation mark alone
        return []


def _divided(words: Iterable[str]) -> tuple[list[str], set[str]]:
    words = [one for one in words if not one.startswith("--namespace")]
    return [one for one in words if not one.startswith("-")], {one for one in words if one.startswith("-")}


def _option(given: str) -> str:
    """An option with its value, but for values that only a run decides."""
    return given.partition("=")[0] if ANY in given else given


def _fits(wanted: str, word: str) -> bool:
    kind = wanted.partition("/")[0]
    return ANY in (word, kind) or word.partition("/")[0] in (kind, ANY) or kind.isupper()


def test_the_page_of_kubernetes_says_what_its_drills_do() -> None:
    """Each of its commands is run, by `make test-k8s` or by who follows the other pages, or the page says it is not."""
    page = KUBERNETES.read_text()
    [told] = NOT_RUN.findall(" ".join(page.split()))
    excepted = re.findall(r"`([^`]+)`", told)
    lines = shell_lines(page)
    calls, texts = drilled(file.read_text() for file in DRILLS)
    followed = [line.split()[:2] for other in FOLLOWED for step in steps(other) for line in step.commands]
    unproven = []
    for line in lines:
        if line.startswith(("export ", ". ")):  # what the shell itself does
            continue
        proven = is_drilled(line, calls, texts) if line.startswith("kubectl ") else line.split()[:2] in followed
        if not proven and not any(line.startswith(one) for one in excepted):
            unproven.append(line)
    assert unproven == []
    for one in excepted:
        assert any(line.startswith(one) for line in lines), f"{one} is not on the page"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("kubectl -n tradeloop scale statefulset/execution --replicas=0", True),
        ("kubectl -n tradeloop scale statefulset/execution --replicas=3", False),
        ("kubectl -n tradeloop scale deployment/execution --replicas=0", False),
        ("kubectl -n tradeloop rollout undo statefulset/execution", True),
        ("kubectl -n tradeloop delete pod execution-0 --grace-period=0 --force", True),
        ("kubectl -n tradeloop delete pod execution-0 --grace-period=0 --now", False),
        ("kubectl drain NODE --delete-emptydir-data --ignore-daemonsets", True),
        ("kubectl cordon NODE", False),
        ("kubectl -n tradeloop exec timescaledb-0 -- pg_dump ledger > ledger.dump", False),
    ],
)
def test_a_command_that_no_drill_runs_is_found(given: str, found: bool) -> None:
    assert is_drilled(given, *drilled(file.read_text() for file in DRILLS)) is found
