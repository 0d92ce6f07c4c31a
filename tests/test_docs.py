"""The documentation is run: every Python block in Markdown, and every `make` command that it names."""

from __future__ import annotations

import ast
import hashlib
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("benchmarks", "deploy", "docs", "libs", "services", "strategies", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in ROOT.glob(f"{folder}/**/*.md"))])
DECISIONS = sorted(ROOT.glob("docs/adr/[0-9]*.md"))
GENERATED = {
    "benchmarks/RESULTS.md",
    *(f"docs/{name}.md" for name in ("cli", "denials", "failures", "metrics", "settings", "topics")),
}
"""Pages that a command writes: `make bench`, `make format`, `python -m tests.e2e.faults --markdown`."""
WIDTH = 120
PYTHON = sorted(
    file
    for folder in FOLDERS
    for file in ROOT.glob(f"{folder}/**/*.py")
    if not {"tests", ".venv"} & set(file.relative_to(ROOT).parts)
)
"""Sources outside tests."""
ELLIPSIS = re.compile(r"(?:Of|What|Nor|Be|By|In|With|Who|Whoever|For|At|That|Those)\b")
ELSEWHERE = {"deploy/.env", "deploy/sources.env", "deploy/tls", "tradeloop.strategies"}
"""What looks like a place in this repository: files that `make up` and its user write, and a group of entry points."""
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


def unknown_targets(text: str, makefile: str) -> set[str]:
    """Targets that a page gives to `make`, in a sentence or in a shell block, and that the Makefile lacks."""
    targets = set(re.findall(r"^([\w-]+):(?!=)", makefile, re.M))
    shell = "".join(body for language, _, body in blocks(text) if language != "python")
    in_sentences = re.findall(r"`(?:\w+=\S* )*make ([^`#\n]*)", text)
    in_shell = re.findall(r"^(?:\$ )?(?:\w+=\S* )*make ([^#\n]*)", shell, re.M)
    words = " ".join([*in_sentences, *in_shell]).split()
    return {word for word in words if re.fullmatch(r"[a-z][\w-]*", word)} - targets


def test_make_commands_in_documentation_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert {page.name: unknown for page in PAGES if (unknown := unknown_targets(page.read_text(), makefile))} == {}


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Number and content of each line that is neither in a table nor in a block of code."""
    fenced = FENCE.sub(lambda block: "\n" * block[0].count("\n"), text)
    yield from ((number, line) for number, line in enumerate(fenced.split("\n"), start=1) if not line.startswith("|"))


def wide_lines(text: str) -> list[int]:
    """Numbers of the lines of prose that are wider than `WIDTH`; the address of a link does not count."""
    visible = ((number, re.sub(r"\]\([^)]*\)|https?://\S+", "]", line)) for number, line in prose(text))
    return [number for number, line in visible if len(line) > WIDTH]


def test_prose_is_at_most_120_columns_wide() -> None:
    pages = [page for page in PAGES if str(page.relative_to(ROOT)) not in GENERATED]
    assert {page.name: wide for page in pages if (wide := wide_lines(page.read_text()))} == {}


def broken_lists(text: str) -> list[int]:
    """Lines at which a list ends on the site, though not on a forge.

    There, a paragraph or a block belongs to its item when four spaces lead it, and an item behind one needs a blank
    line before it.
    """
    found, lines, fenced = [], ["", *text.split("\n")], False
    for number, (before, line) in enumerate(pairwise(lines), start=1):
        is_fence = re.match(r" *(```|~~~)", line) is not None
        begins = is_fence or not before
        is_late = re.match(r" {1,3}\S", line) if begins else re.match(r"(\d+\.|[-*]) ", line) and before[:4].isspace()
        if is_late and not fenced:
            found.append(number)
        fenced ^= is_fence
    return found


def test_lists_are_lists_on_the_site_too() -> None:
    assert {page.name: broken for page in PAGES if (broken := broken_lists(page.read_text()))} == {}


def test_a_list_that_breaks_off_is_found() -> None:
    assert broken_lists("1. one\n   more\n\n    ```\n  x\n    ```\n\n2. two\n") == []
    assert broken_lists("1. one\n\n   ```\n   x\n   ```\n2. two\n") == [3]
    assert broken_lists("- one\n\n    more\n- two\n\n  more\n") == [4, 6]


def anchors(text: str) -> set[str]:
    """What a link may name behind `#`: the headings of a page, as Git hosts spell them."""
    headings = re.findall(r"^#+ (.*)$", "\n".join(line for _, line in prose(text)), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path, text: str) -> list[str]:
    """Links to files that are not there, or to headings that their page lacks. Addresses in the web are not asked."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        file = (page.parent / target) if target else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text() if target else text)):
            dead.append(link)
    return dead


def test_links_lead_somewhere() -> None:
    assert {page.name: dead for page in PAGES if (dead := dead_links(page, page.read_text()))} == {}


def odd_addresses(text: str) -> list[str]:
    """Links into the web that cannot be right, by their form alone: nobody is asked."""
    odd = []
    for link in re.findall(r"\]\(([a-z]+:[^)\s]*)\)", text):
        parts = urlsplit(link)
        named = re.fullmatch(r"(?:[a-z0-9-]+\.)+[a-z]{2,}", parts.hostname or "")
        if parts.scheme != "mailto" and (parts.scheme != "https" or not named or parts.username or "//" in parts.path):
            odd.append(link)
    return odd


def test_links_into_the_web_are_well_formed() -> None:
    assert {page.name: odd for page in PAGES if (odd := odd_addresses(page.read_text()))} == {}


def test_an_odd_address_is_found() -> None:
    good = "[1](https://example.org/a#b) [2](mailto:a@example.org) [3](page.md)"
    odd = [
        "http://example.org",
        "https://localhost/x",
        "https://user@example.org",
        "https:/example.org",
        "htps://a.org",
    ]
    assert odd_addresses(good + "".join(f" [x]({one})" for one in odd)) == odd


def unknown_places(text: str, root: Path) -> set[str]:
    """Modules and paths of this repository that a page names in code style, and that are not there.

    `<service>` and `*` stand for any name. What follows a module may be a name in it.
    """
    paths = {place for place in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[^`\s]*)`", text) if not _found(place, root)}
    modules = {name for name in re.findall(r"`(tradeloop(?:\.[\w<>*]+)+)`", text) if not _is_module(name, root)}
    return (paths | modules) - ELSEWHERE


def _found(place: str, root: Path) -> bool:
    return any(root.glob(re.sub(r"<\w+>", "*", place)))


def _is_module(name: str, root: Path) -> bool:
    parts = name.split(".")
    if any(_found(f"*/*/src/{'/'.join(parts)}{kind}", root) for kind in ("/__init__.py", ".py")):
        return True
    owner = re.sub(r"<\w+>", "*", "/".join(parts[:-1]))
    files = [file for kind in ("/__init__.py", ".py") for file in root.glob(f"*/*/src/{owner}{kind}")]
    return any(re.search(rf"\b{parts[-1]}\b", file.read_text()) for file in files)


def test_places_that_documentation_names_exist() -> None:
    """A decision is not edited when a module moves, so those pages are left out."""
    pages = [page for page in PAGES if page not in DECISIONS and page.name != "CHANGELOG.md"]
    assert {page.name: unknown for page in pages if (unknown := unknown_places(page.read_text(), ROOT))} == {}


def decision_complaints(folder: Path) -> list[str]:
    """What is wrong with the pages of decisions, or with their index.

    An accepted page keeps the words that were accepted, by a digest in the index that covers all but its status. Its
    number is that of its file; a gap is no fault, since branches take their numbers before they meet.
    """
    pages = sorted(folder.glob("[0-9]*.md"))
    index = re.findall(
        r"^\| (\d+) \| \[(.*?)\]\((.*?)\) \| (.*?) \| .*? \| (.*?) \|$", (folder / "README.md").read_text(), re.M
    )
    complaints = []
    for page in pages:
        text, number = page.read_text(), int(page.name[:4])
        form = re.match(rf"# {number}\. (.*)\n\nStatus: (accepted|superseded by \d+)\n\n## Context\n", text)
        if form is None or re.findall(r"^## (.*)$", text, re.M) != ["Context", "Decision", "Consequences"]:
            complaints.append(f"{page.name}: it does not have the form of decision {number}")
            continue
        digest = hashlib.sha256(text.replace(f"Status: {form[2]}\n", "\n", 1).encode()).hexdigest()[:12]
        line = next((line for line in index if line[2] == page.name), None)
        if line is None:
            complaints.append(f"{page.name}: it is not in the index; its digest is {digest}")
        elif line[4] != f"`{digest}`":
            complaints.append(f"{page.name}: it is not the page that was accepted; supersede it by a new one")
        elif line[:4] != (str(number), form[1], page.name, form[2]):
            complaints.append(f"{page.name}: its title or status is not that of the index")
    lost = [name for _, _, name, _, _ in index if folder / name not in pages]
    return [*complaints, *(f"{name}: it is in the index, but gone" for name in lost)]


def test_decisions_stand_as_they_were_accepted() -> None:
    assert decision_complaints(ROOT / "docs/adr") == []


def drawn(text: str, folder: str) -> set[str]:
    """What a drawing shows in a folder, by names without `/` or `.py`."""
    drawings = [body for _, _, body in blocks(text) if body.startswith(f"{folder}/\n")]
    return {re.sub(r"/|\.py$", "", line.split()[0]) for body in drawings for line in body.splitlines()[1:]}


def on_disk(folder: Path) -> set[str]:
    """The modules and packages in a package."""
    packages = {file.parent.name for file in folder.glob("*/__init__.py")}
    return packages | {file.stem for file in folder.glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("folder", ["libs/common/src/tradeloop/common", "libs/cli/src/tradeloop/cli"])
def test_the_drawing_of_a_house_is_true(folder: str) -> None:
    assert drawn((ROOT / "docs/architecture.md").read_text(), folder) == on_disk(ROOT / folder)


@pytest.mark.parametrize("service", sorted(ROOT.glob("services/*/src/tradeloop/*")), ids=lambda path: path.name)
def test_every_service_has_the_shape_that_is_drawn(service: Path) -> None:
    shape = drawn((ROOT / "docs/architecture.md").read_text(), "services/<service>/src/tradeloop/<service>")
    assert {"application", "config", "main"} <= on_disk(service) <= shape


def test_the_drawing_of_the_layers_is_that_of_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(one["layers"] for one in contracts if one["name"] == "Inside the vocabulary, from the roof down")
    drawings = [body.splitlines() for _, _, body in blocks((ROOT / "docs/architecture.md").read_text())]
    assert layers in drawings


def glossary_complaints(text: str) -> list[str]:
    """Terms that are out of order or there twice, and lines that define none."""
    lines = text.split("\n- ")[1:]
    terms = [re.match(r"\*\*([^*]+)\*\*: [A-Z`]", line) for line in lines]
    names = [term[1] for term in terms if term]
    unclear = [line for line, term in zip(lines, terms, strict=True) if term is None]
    twice = [name for name, count in Counter(names).items() if count > 1]
    late = [name for name, before in zip(names[1:], names, strict=False) if name < before]
    return unclear + twice + late


def test_the_glossary_has_each_word_once_in_order() -> None:
    text = (ROOT / "docs/glossary.md").read_text()
    assert text.count("\n- ") > 50
    assert glossary_complaints(text) == []


def test_the_index_names_every_page() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "docs/README.md").read_text())
    named = {(ROOT / "docs" / link).resolve() for link in links}
    assert set(PAGES) - set(DECISIONS) - {ROOT / "docs/README.md"} == named


def test_docstrings_begin_with_their_noun_or_verb() -> None:
    """A docstring is a sentence, or a noun phrase that has its noun: "The offset of ...", not "Of ..."."""
    found = []
    for file in PYTHON:
        for line, text in docstrings(file.read_text()):
            if ELLIPSIS.match(text):
                found.append(f"{file.relative_to(ROOT)}:{line}: {text.splitlines()[0]}")
    assert found == []


def test_an_elliptic_docstring_is_found() -> None:
    source = (
        'LIMIT = 1\n"""Of nothing."""\n\n\ndef f():\n    """What it does."""\n\n\ndef g():\n    """The result."""\n'
    )
    assert [line for line, text in docstrings(source) if ELLIPSIS.match(text)] == [2, 6]


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring, those below assignments included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value.strip()
