"""Every gate is shown something broken, and has to object: a gate that cannot fail is a defect."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from shutil import copy, copytree
from typing import Any

import grimp
import pytest
import yaml
from importlinter.configuration import configure
from importlinter.contracts.acyclic_siblings import AcyclicSiblingsContract
from importlinter.contracts.forbidden import ForbiddenContract
from importlinter.contracts.layers import LayersContract
from importlinter.contracts.protected import ProtectedContract
from importlinter.domain.contract import Contract

from tests.test_architecture import LINES, declared, loaded, long_files, made_in, undeclared
from tests.test_docs import (
    FOLDERS,
    dead_links,
    decision_complaints,
    drawn,
    glossary_complaints,
    on_disk,
    unknown_places,
    unknown_targets,
    wide_lines,
)

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
CLEAN = "from __future__ import annotations\n"
PAGES = ("docs/features.md", "docs/metrics.md", "reference")
GATES = ("ruff check", "ruff format", "mypy", "lint-imports", "lock", "topics", *PAGES, "docs.site", "subjects")
"""A word or two of each command of `make check`."""


def environment(**changes: str) -> dict[str, str]:
    """This process's variables, without what Git and make would take for their own, and not in CI."""
    kept = {name: value for name, value in os.environ.items() if not re.match(r"GIT_|MAKE|MFLAGS|CI$|UV_", name)}
    git = {f"GIT_{role}_{what}": "tests@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return {**kept, **git, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", **changes}


def run(command: str, folder: Path, **variables: str) -> tuple[int, str]:
    """Exit status and output of a shell command in a folder."""
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, env=environment(**variables), capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def recipe() -> list[str]:
    """The commands of `make check`, by absolute paths, so that they can be run elsewhere."""
    status, text = run("make --no-print-directory --dry-run check", ROOT)
    assert status == 0, text
    lines = [line for line in text.splitlines() if " sync " not in line]
    return [re.sub(r"(^|\s)(\.(?:venv|tools|ci)/)", rf"\g<1>{ROOT}/\g<2>", line) for line in lines]


def gate(recipe: list[str], word: str) -> str:
    """The one command of `make check` that has a word."""
    (command,) = (line for line in recipe if word in line)
    return command


def test_every_command_of_the_check_is_shown_something_broken(recipe: list[str]) -> None:
    words = [[word for word in GATES if word in line] for line in recipe]
    assert [line for line, found in zip(recipe, words, strict=True) if len(found) != 1] == []
    assert {word for found in words for word in found} == set(GATES)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small checkout, with the settings of this one."""
    copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "clean.py").write_text(CLEAN)
    return tmp_path


@pytest.mark.parametrize(
    ("code", "source"),
    [
        ("F401", "import os\n"),
        ("E501", f"x = '{'x' * 120}'\n"),
        ("TID252", "from . import sibling as sibling\n"),
        ("TID251", "import datetime\n\nx = datetime.datetime.now()\n"),
        ("TID251", "import time\n\nx = time.time()\n"),
        ("TID251", "import uuid\n\nx = uuid.uuid4()\n"),
        ("TID251", "import random\n\nx = random.random()\n"),
        ("NPY002", "import numpy as np\n\nx = np.random.rand()\n"),
        ("BLE001", "try:\n    x = 1\nexcept Exception:\n    x = 2\n"),
        ("B006", "\ndef f(x: list[int] = []) -> None: ...\n"),
    ],
)
def test_lint_refuses(recipe: list[str], tree: Path, code: str, source: str) -> None:
    command = f"{gate(recipe, 'ruff check')} --output-format concise"
    assert run(command, tree)[0] == 0
    (tree / "broken.py").write_text(CLEAN + "\n" + source)
    status, text = run(command, tree)
    assert (status, re.findall(r"^(\S+?):\d+:\d+: (\w+)", text, re.M)) == (1, [("broken.py", code)])


def test_lint_refuses_a_file_without_the_annotations_of_the_future(recipe: list[str], tree: Path) -> None:
    (tree / "broken.py").write_text("x = 1\n")
    status, text = run(gate(recipe, "ruff check"), tree)
    assert status == 1
    assert "I002" in text


def test_layout_refuses(recipe: list[str], tree: Path) -> None:
    assert run(gate(recipe, "ruff format"), tree)[0] == 0
    (tree / "broken.py").write_text(CLEAN + "x = { 'a':1 }\n")
    assert run(gate(recipe, "ruff format"), tree)[0] == 1


def test_types_are_checked_strictly_and_in_tests_too(recipe: list[str], tree: Path) -> None:
    (tree / "untyped.py").write_text("def f(x):\n    return x\n")
    (tree / "tests").mkdir()
    (tree / "tests/test_wrong.py").write_text("x: int = 'one'\n")
    status, text = run(gate(recipe, "mypy"), tree)
    assert status == 1
    assert sorted(re.findall(r"^(\S+):\d+: error: .*\[([\w-]+)\]$", text, re.M)) == [
        ("tests/test_wrong.py", "assignment"),
        ("untyped.py", "no-untyped-def"),
    ]


KINDS: dict[str, type[Contract]] = {
    "acyclic_siblings": AcyclicSiblingsContract,
    "forbidden": ForbiddenContract,
    "layers": LayersContract,
    "protected": ProtectedContract,
}
BROKEN_IMPORTS = [
    ("Services know the vocabulary", "tradeloop.execution.domain", "tradeloop.inference.domain"),
    ("Services know the vocabulary", "tradeloop.common.market.bars", "tradeloop.cli.main"),
    ("Inside a service", "tradeloop.execution.domain", "tradeloop.execution.adapters.paper"),
    ("Inside a service", "tradeloop.ingest.ports", "tradeloop.ingest.application"),
    ("Inside the vocabulary", "tradeloop.common.market.bars", "tradeloop.common.simulation"),
    ("Inside the vocabulary", "tradeloop.common.bus.port", "tradeloop.common.messages"),
    ("In a room with adapters", "tradeloop.common.bus.port", "tradeloop.common.bus.memory"),
    ("In a room with adapters", "tradeloop.common.bar_store.rows", "tradeloop.common.bar_store.sql.store"),
    ("No circles between siblings", "tradeloop.common.market.instruments", "tradeloop.common.market.resample"),
    ("Only main and the command choose a bus", "tradeloop.execution.application", "tradeloop.common.bus.kafka"),
    (
        "Only main and the command choose a store",
        "tradeloop.training.application",
        "tradeloop.common.model_store.mlflow",
    ),
    ("No part of a service imports the contracts", "tradeloop.execution.application", "tradeloop.execution.contracts"),
    ("A strategy knows the plug-in interface alone", "example_strategy", "tradeloop.common.features"),
]
STRAYS = [
    ("Services know the vocabulary", "tradeloop.helpers"),
    ("Inside a service", "tradeloop.execution.utils"),
    ("Inside the vocabulary", "tradeloop.common.utils"),
    ("In a room with adapters", "tradeloop.common.bus.rabbit"),
]
"""Modules that no layer has a place for."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    roots = PROJECT["tool"]["importlinter"]["root_packages"]
    return grimp.build_graph(*roots, include_external_packages=True, cache_dir=None)


def kept(contract: Mapping[str, Any], graph: grimp.ImportGraph) -> bool:
    """Whether the code keeps a contract of the project's settings."""
    configure()
    options = {key: str(value) if isinstance(value, bool) else value for key, value in contract.items()}
    session = {"root_packages": PROJECT["tool"]["importlinter"]["root_packages"]}
    checked = KINDS[contract["type"]](contract["name"], session, options)
    return checked.check(deepcopy(graph), verbose=False).kept


def contracts(start: str = "") -> Iterator[dict[str, Any]]:
    """The contracts whose name starts so."""
    found = PROJECT["tool"]["importlinter"]["contracts"]
    yield from (contract for contract in found if contract["name"].startswith(start))


def test_every_import_contract_is_shown_something_broken() -> None:
    starts = [start for start, *_ in BROKEN_IMPORTS]
    assert [one["name"] for one in contracts() if not one["name"].startswith(tuple(starts))] == []


@pytest.mark.parametrize(("contract", "importer", "imported"), BROKEN_IMPORTS)
def test_a_contract_refuses_an_import(graph: grimp.ImportGraph, contract: str, importer: str, imported: str) -> None:
    (settings,) = contracts(contract)
    assert {importer, imported} <= graph.modules
    assert kept(settings, graph)
    broken = deepcopy(graph)
    broken.add_import(importer=importer, imported=imported)
    assert not kept(settings, broken)


@pytest.mark.parametrize(("contract", "stray"), STRAYS)
def test_a_contract_refuses_a_module_without_a_place(graph: grimp.ImportGraph, contract: str, stray: str) -> None:
    (settings,) = contracts(contract)
    broken = deepcopy(graph)
    broken.add_module(stray)
    assert not kept(settings, broken)


def test_the_linter_of_imports_fails_by_its_exit_status(recipe: list[str], tmp_path: Path) -> None:
    package = tmp_path / "small_house"
    package.mkdir()
    for name, source in {"__init__": "", "low": "import small_house.high\n", "high": ""}.items():
        (package / f"{name}.py").write_text(source)
    settings = '[tool.importlinter]\nroot_packages = ["small_house"]\n[[tool.importlinter.contracts]]\nname = "Down"\n'
    for layers, status in ('["low", "high"]', 0), ('["high", "low"]', 1):
        layered = f'type = "layers"\ncontainers = ["small_house"]\nlayers = {layers}\n'
        (tmp_path / "pyproject.toml").write_text(settings + layered)
        assert run(f"{gate(recipe, 'lint-imports')} --no-cache", tmp_path)[0] == status


def test_a_lock_is_compared_with_what_is_asked_for(recipe: list[str], tmp_path: Path) -> None:
    """Nothing is asked for here but a version of Python, so that no index is needed."""
    project = '[project]\nname = "small"\nversion = "1"\nrequires-python = ">=3.11"\n'
    for command in (line for line in recipe if "lock" in line):
        named = re.search(r"--project (\S+)", command)
        folder = tmp_path / (named[1] if named else ".")
        folder.mkdir(exist_ok=True)
        (folder / "pyproject.toml").write_text(project)
        offline = f"--offline --python {sys.executable}"
        assert run(f"{command.split()[0]} lock {offline}", folder)[0] == 0
        assert run(f"{command} {offline}", tmp_path)[0] == 0
        (folder / "pyproject.toml").write_text(project.replace("3.11", "3.10"))
        assert run(f"{command} {offline}", tmp_path)[0] != 0


def test_the_page_of_topics_is_compared_with_the_catalogue(recipe: list[str], tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    page = Path(copy(ROOT / "docs/topics.md", tmp_path / "docs/topics.md"))
    assert run(gate(recipe, "topics"), tmp_path) == (0, "")
    page.write_text(page.read_text().replace("universe", "galaxy", 1))
    status, text = run(gate(recipe, "topics"), tmp_path)
    assert status == 1
    assert "galaxy" in text


@pytest.mark.parametrize(("name", "word"), [(PAGES[0], "volatility"), (PAGES[1], "drawdown")])
def test_a_page_is_compared_with_its_catalogue(recipe: list[str], tmp_path: Path, name: str, word: str) -> None:
    (tmp_path / "docs").mkdir()
    page = Path(copy(ROOT / name, tmp_path / name))
    assert run(gate(recipe, name), tmp_path) == (0, "")
    page.write_text(page.read_text().replace(word, "velocity", 1))
    status, text = run(gate(recipe, name), tmp_path)
    assert status == 1
    assert "velocity" in text


def test_the_site_is_built_strictly(recipe: list[str], tmp_path: Path) -> None:
    copytree(ROOT / "docs/site", tmp_path / "docs/site")
    (tmp_path / "docs/README.md").write_text("# Index\n\n## Start\n\n| [Front](../README.md) | all |\n")
    front = tmp_path / "README.md"
    front.write_text("# Front\n\n[All](docs/README.md#start)\n")
    command = f"{gate(recipe, 'docs.site')} --root {tmp_path}"
    status, text = run(command, tmp_path, PYTHONPATH=str(ROOT))
    assert (status, text[:9]) == (0, "3 pages a")
    for broken, found in {
        "[No page](docs/none.md)": "page does not exist",
        "[No heading](docs/README.md#none)": "anchor does not exist",
        '<img src="https://example.org/counter.png" alt="">': "asks for https://example.org/counter.png",
    }.items():
        front.write_text(f"# Front\n\n{broken}\n")
        status, text = run(command, tmp_path, PYTHONPATH=str(ROOT))
        assert status == 1
        assert found in text


def test_generated_references_are_compared_with_the_code(recipe: list[str], tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    names = run(f"{Path(sys.executable).with_name('tradeloop')} reference", tmp_path)[1].split()
    for name in names:
        copy(ROOT / "docs" / name, tmp_path / "docs" / name)
    assert run(gate(recipe, "reference"), tmp_path) == (0, "")
    for name in names:
        file = tmp_path / "docs" / name
        text = file.read_text()
        file.write_text(text.replace("e", "3", 1))
        status, said = run(gate(recipe, "reference"), tmp_path)
        assert status == 1
        assert f"docs/{name}" in said
        file.write_text(text)


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """A repository with one commit, from which on subjects are checked by its own copy of the script."""
    folder = tmp_path / "history"
    (folder / ".ci").mkdir(parents=True)
    assert run("git init --quiet --initial-branch main && git commit --quiet --allow-empty -m Begin", folder)[0] == 0
    begin = run("git rev-parse HEAD", folder)[1].strip()
    script = re.sub(r"^since=.*$", f"since={begin}", (ROOT / ".ci/subjects").read_text(), flags=re.M)
    (folder / ".ci/subjects").write_text(script)
    (folder / ".ci/subjects").chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ("x" * 72, 0),
        ("é" * 72, 0),
        ("x" * 73, 1),
        (f"{'x' * 40}\n{'x' * 40}", 1),
        (f"Short\n\n{'x' * 100}", 0),
    ],
    ids=["72", "72 letters with accents", "73", "two lines", "a long body"],
)
def test_a_subject_has_at_most_72_characters(history: Path, message: str, status: int) -> None:
    (history / "message").write_text(f"{message}\n# {'a comment' * 20}\n")
    assert run(".ci/subjects message", history)[0] == status
    assert run("git commit --quiet --allow-empty --cleanup=strip --file message", history)[0] == 0
    checked, text = run(".ci/subjects", history, CI="true")
    assert checked == status
    assert ("72 are allowed" in text) == bool(status)


def test_the_subject_of_a_merge_is_not_looked_at(history: Path) -> None:
    side = "git checkout --quiet -b side && git commit --quiet --allow-empty -m Side && git checkout --quiet main"
    merge = f"git commit --quiet --allow-empty -m Main && git merge --quiet side -m 'Merge {'x' * 80}'"
    assert run(f"{side} && {merge}", history)[0] == 0
    assert run(".ci/subjects", history, CI="true") == (0, "")


def test_a_history_that_is_not_there_is_said_and_fails_in_ci(history: Path, tmp_path: Path) -> None:
    assert run("git commit --quiet --allow-empty -m More", history)[0] == 0
    assert run(f"git clone --quiet --depth 1 'file://{history}' shallow", tmp_path)[0] == 0
    (tmp_path / "no repository").mkdir()
    for folder in tmp_path / "shallow", tmp_path / "no repository":
        ceiling = str(tmp_path)
        status, text = run(f"'{history}/.ci/subjects'", folder, GIT_CEILING_DIRECTORIES=ceiling)
        assert status == 0
        assert "were not checked" in text
        assert run(f"'{history}/.ci/subjects'", folder, GIT_CEILING_DIRECTORIES=ceiling, CI="true")[0] == 1


def test_a_warning_a_passing_xfail_and_an_unknown_marker_fail(tmp_path: Path) -> None:
    (tmp_path / "test_marked.py").write_text("import pytest\n@pytest.mark.flaky\ndef test_marked(): pass\n")
    (tmp_path / "test_others.py").write_text(
        "import warnings, pytest\n"
        "def test_warns(): warnings.warn('old')\n"
        "@pytest.mark.xfail\ndef test_passes(): pass\n"
        "def test_is_fine(): pass\n"
    )
    here = f"{sys.executable} -m pytest -c {ROOT / 'pyproject.toml'} --rootdir . -p no:cacheprovider -q"
    status, text = run(f"{here} --continue-on-collection-errors .", tmp_path, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert status == 1
    assert "2 failed, 1 passed, 1 error" in text
    assert "'flaky' not found in `markers`" in text


def test_a_long_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "libs/tests").mkdir(parents=True)
    for name, lines in {"short.py": LINES, "long.py": LINES + 1, "tests/test_long.py": LINES + 1}.items():
        (tmp_path / "libs" / name).write_text("x = 1\n" * lines)
    assert long_files(tmp_path) == {"libs/long.py": LINES + 1}


def test_a_library_is_found_however_deep_it_is_imported(graph: grimp.ImportGraph) -> None:
    assert "torch" not in loaded(graph, ["tradeloop.ingest.domain"])
    broken = deepcopy(graph)
    broken.add_import(importer="tradeloop.common.market.instants", imported="torch")
    assert "torch" in loaded(broken, ["tradeloop.ingest.domain"])


def test_a_library_of_an_extra_that_was_not_asked_for_is_found() -> None:
    projects = {"ours": {"dependencies": ["numpy>=2"], "optional-dependencies": {"features": ["ta-lib>=0.8"]}}}
    assert undeclared({"talib", "numpy"}, declared(projects, ["ours"])) == {"talib"}
    assert undeclared({"talib", "numpy"}, declared(projects, ["ours[features]"])) == set()


def test_a_message_that_is_made_is_found_and_one_that_is_read_is_not() -> None:
    source = (
        "from tradeloop.common.messages import BarFrame, FeaturesComputed as Features, SignalGenerated\n"
        "frame = BarFrame.model_validate_json(b'')\n"
        "made = SignalGenerated(frame), Features.of(frame)\n"
    )
    assert made_in(source) == {"SignalGenerated", "FeaturesComputed"}


def test_a_target_with_a_hyphen_is_read_whole() -> None:
    makefile = "up:\nup-native:\nX := 1\n"
    assert unknown_targets("`make up-native` or `make up`", makefile) == set()
    assert unknown_targets("`make up-natve`", makefile) == {"up-natve"}
    assert unknown_targets("```console\n$ CLEAN=1 make dwon up # go\n```\n", makefile) == {"dwon"}


def test_a_wide_line_is_found_in_prose_alone() -> None:
    wide = "x" * 121
    page = f"{wide}\n| {wide} |\n```\n{wide}\n```\n[short](https://example.org/{wide})\n- {wide}\n"
    assert wide_lines(page) == [1, 7]


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# A heading, here\n")
    text = (
        "[1](other.md) [2](other.md#a-heading-here) [3](https://example.org) [4](none.md) [5](other.md#none) [6](#no)"
    )
    assert dead_links(page, text) == ["none.md", "other.md#none", "#no"]


def test_a_place_that_is_not_there_is_found() -> None:
    good = "`services/<service>/src`, `tradeloop.<service>.main`, `tradeloop.common.bus.port.Bus`"
    assert unknown_places(good, ROOT) == set()
    bad = "`services/broker`, `tradeloop.common.memory`, `tradeloop.common.bus.port.Rabbit`"
    assert unknown_places(bad, ROOT) == {
        "services/broker",
        "tradeloop.common.memory",
        "tradeloop.common.bus.port.Rabbit",
    }


@pytest.mark.parametrize(
    ("page", "old", "new", "complaint"),
    [
        ("0003-one-simulation-kernel.md", "float64", "float32", "is not the page that was accepted"),
        ("0003-one-simulation-kernel.md", "Status: accepted", "Status: superseded by 15", "is not that of the index"),
        ("0003-one-simulation-kernel.md", "## Consequences", "## Costs", "does not have the form"),
        ("README.md", "| 3 | [One", "| 3 | [Two", "is not that of the index"),
        ("README.md", "](0003-one-simulation-kernel.md)", "](0003-two.md)", "is not in the index"),
    ],
)
def test_an_edited_decision_is_found(tmp_path: Path, page: str, old: str, new: str, complaint: str) -> None:
    folder = copytree(ROOT / "docs/adr", tmp_path / "adr")
    assert decision_complaints(folder) == []
    text = (folder / page).read_text()
    assert old in text
    (folder / page).write_text(text.replace(old, new))
    assert complaint in "\n".join(decision_complaints(folder))


def test_a_decision_that_is_gone_is_found(tmp_path: Path) -> None:
    folder = copytree(ROOT / "docs/adr", tmp_path / "adr")
    (folder / "0014-an-offline-store-of-our-own.md").unlink()
    assert "in the index, but gone" in "\n".join(decision_complaints(folder))


def test_a_word_out_of_order_or_twice_is_found() -> None:
    assert glossary_complaints("\n- **bar**: A.\n- **bus**: B.\n") == []
    assert glossary_complaints("\n- **bus**: B.\n- **bar**: A.\n") == ["bar"]
    assert glossary_complaints("\n- **bar**: A.\n- **bar**: B.\n") == ["bar"]
    assert glossary_complaints("\n- **bar** is A.\n") != []


def test_a_drawing_is_read_as_it_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    for name in "__init__.py", "main.py", "room/__init__.py":
        (tmp_path / name).write_text("")
    assert drawn("```text\na/house/\n    main.py   begins\n    room/     rests\n```\n", "a/house") == on_disk(tmp_path)
    assert drawn("```text\na/house/\n    main.py   begins\n```\n", "a/house") != on_disk(tmp_path)
    assert drawn("", "a/house") == set()


def test_ci_runs_check_test_and_the_docker_stack() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert {"check", "test", "test-compose"} <= set(re.findall(r"^make ([\w-]+)", script.read_text(), re.M))
    assert "    make test-k8s\nelse\n" in script.read_text(), "where there is a cluster"
    assert "set -euo pipefail" in script.read_text()


def test_hooks_call_what_everybody_calls() -> None:
    settings = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (local,) = settings["repos"]
    hooks = {hook["entry"]: hook["stages"] for hook in local["hooks"]}
    assert local["repo"] == "local"
    assert hooks == {"make check": ["pre-commit"], ".ci/subjects": ["commit-msg"]}
    assert settings["default_install_hook_types"] == ["pre-commit", "commit-msg"]


EDITED = {".css", ".html", ".json", ".md", ".py", ".sh", ".sql", ".toml", ".yaml", ".yml"}


def untidy(text: bytes) -> bool:
    """Whether a text breaks what `.editorconfig` says: ends of lines, blanks at them, tabs, the last line."""
    return bool(re.search(rb"\r|[ \t]$|\t", text, re.M)) or not text.endswith(b"\n") if text else False


def test_editors_are_told_what_the_gates_hold() -> None:
    settings = configparser.ConfigParser()
    settings.read_string(f"[top]\n{(ROOT / '.editorconfig').read_text()}")
    assert settings.getint("*", "max_line_length") == PROJECT["tool"]["ruff"]["line-length"]
    for key, value in {"end_of_line": "lf", "insert_final_newline": "true", "trim_trailing_whitespace": "true"}.items():
        assert settings.get("*", key) == value


def test_files_are_as_an_editor_would_leave_them() -> None:
    files = [*ROOT.iterdir(), *(file for folder in (".ci", ".github", *FOLDERS) for file in (ROOT / folder).rglob("*"))]
    texts = [file for file in files if file.suffix in EDITED and file.is_file()]
    assert len(texts) > 200
    assert [str(file.relative_to(ROOT)) for file in texts if untidy(file.read_bytes())] == []
    assert [untidy(text) for text in (b"a \n", b"a\r\n", b"\ta\n", b"a", b"a\n", b"")] == [True] * 4 + [False] * 2
