"""docs/security.md: each control that it claims names a test, and that test is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()
_NAMED = re.compile(r"`([\w/]+\.py)`: (`\w+`(?:, `\w+`)*)")


def missing(text: str, root: Path) -> list[str]:
    """The tests that a text names, and that are not in their files."""
    found = []
    for file, names in _NAMED.findall(text):
        path = root / file
        tree = ast.walk(ast.parse(path.read_text())) if path.exists() else ()
        there = {each.name for each in tree if isinstance(each, ast.FunctionDef)}
        found += [f"{file}: {name}" for name in re.findall(r"\w+", names) if name not in there]
    return found


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_test_that_the_page_names_exists() -> None:
    assert len(_NAMED.findall(PAGE)) > 15
    assert missing(PAGE, ROOT) == []


def test_every_control_names_a_test() -> None:
    threats = rows(PAGE, "Threat model")
    assert len(threats) > 15
    assert [threat for threat, control, tests in threats if not control or not _NAMED.search(tests)] == []


def test_every_requirement_says_what_is_here_or_what_is_not_met() -> None:
    asked = rows(PAGE, "What regulators ask")
    assert len(asked) > 8
    assert [requirement for requirement, here, not_met in asked if not (here or not_met)] == []
    assert "`tradeloop kill`" in next(here for name, here, _ in asked if "Article 12" in name)


def test_a_test_that_was_renamed_is_found(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("def test_one() -> None: ...\n")
    text = "`test_a.py`: `test_one`, `test_two`; `test_b.py`: `test_one`"
    assert missing(text, tmp_path) == ["test_a.py: test_two", "test_b.py: test_one"]
