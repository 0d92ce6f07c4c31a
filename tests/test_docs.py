"""The documentation is run: every Python block in Markdown, and every `make` command that it names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("benchmarks", "deploy", "docs", "libs", "services", "strategies")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in ROOT.glob(f"{folder}/**/*.md"))])
FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,}|~{3,}) *(?P<language>[^\s`{]*)[^`\n]*\n(?P<body>.*?)^ *(?P=fence)[`~]* *$",
    re.M | re.S,
)


def blocks(text: str) -> Iterator[tuple[str, int, str]]:
    """Language, line number of the first line, and content of each fenced block."""
    for match in FENCE.finditer(text):
        indent = len(match["indent"])
        body = "".join(line[indent:] if not line[:indent].strip() else line for line in match["body"].splitlines(True))
        yield match["language"].lower(), text.count("\n", 0, match.start("body")) + 1, body


def run(text: str, name: str) -> int:
    """Execute the Python blocks of a page in order, in one namespace, as a reader would; returns how many.

    Tracebacks point at the page's own lines.
    """
    namespace: dict[str, object] = {"__name__": "__main__"}
    count = 0
    for language, line, body in blocks(text):
        if language in {"python", "py", "python3", "pycon"}:
            assert language == "python", f"{name}:{line}: fence Python as ```python, so that it is run"
            exec(compile("\n" * (line - 1) + body, name, "exec", dont_inherit=True), namespace)
            count += 1
    return count


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_in_documentation_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(page.read_text(), str(page))


def test_a_wrong_block_fails_at_its_line() -> None:
    page = "1. A list:\n\n   ```python\n   x = 1\n   ```\n\n~~~text\nnot run\n~~~\n\n```python\nassert x == 2\n```\n"
    with pytest.raises(AssertionError) as raised:
        run(page, "page.md")
    where = raised.traceback[-1]
    assert (str(where.path), where.lineno + 1) == ("page.md", 12)


def test_blocks_are_counted_and_spelled() -> None:
    assert run("```python\na = 1\n```\n```python\nassert a == 1\n```\n", "page.md") == 2
    with pytest.raises(AssertionError, match=r"page\.md:2"):
        run("```py\na = 1\n```\n", "page.md")


def test_make_commands_in_documentation_exist() -> None:
    targets = set(re.findall(r"^(\w+):(?!=)", (ROOT / "Makefile").read_text(), re.M))
    text = "".join(page.read_text() for page in PAGES)
    shell = "".join(body for language, _, body in blocks(text) if language != "python")
    named = {*re.findall(r"`make (\w+)", text), *re.findall(r"^(?:\$ )?make (\w+)", shell, re.M)}
    assert named <= targets
