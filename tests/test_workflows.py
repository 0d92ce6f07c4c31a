"""What forges run for this repository: it parses, runs only what there is, and has no more rights than it needs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_docs import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([\w-]+):(?!=)", MAKEFILE, re.M))
PYTHONS = ["3.11", "3.12"]
ACTIONS = {
    "actions/attest-build-provenance",
    "actions/cache",
    "actions/checkout",
    "actions/deploy-pages",
    "actions/download-artifact",
    "actions/setup-python",
    "actions/upload-artifact",
    "actions/upload-pages-artifact",
    "opentofu/setup-opentofu",
}
"""The actions that are trusted."""
WRITES = {
    ("docs.yml", "deploy"): {"pages", "id-token"},
    ("release.yml", "build"): {"packages", "id-token", "attestations"},
    ("release.yml", "draft"): {"contents"},
}
"""What a job may write; all others only read the repository."""


def load(file: Path) -> dict[str, Any]:
    # YAML 1.1 takes `on` for true.
    content: dict[Any, Any] = yaml.safe_load(file.read_text())
    return {("on" if key is True else str(key)): value for key, value in content.items()}


def steps(workflow: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job.get("steps", [])


def scripts(content: Mapping[str, Any]) -> Iterator[str]:
    """The shell of a workflow of GitHub, or of the jobs of GitLab."""
    if "jobs" in content:
        yield from (step["run"] for step in steps(content) if "run" in step)
    else:
        for job in content.values():
            if isinstance(job, dict) and "script" in job:
                yield from job["script"]


def unknown(script: str) -> set[str]:
    """Targets of make and programs of this repository that a script runs, and that are not there."""
    targets = {word for line in re.findall(r"\bmake ([^|&;>\n]*)", script) for word in line.split() if "=" not in word}
    programs = set(re.findall(r"(?:^|[\s;])(\.ci/[\w-]+)", script))
    return (targets - TARGETS) | {program for program in programs if not (ROOT / program).is_file()}


def complaints(name: str, content: Mapping[str, Any], text: str) -> list[str]:
    """What is unsafe in a workflow of GitHub."""
    found = []
    if content.get("permissions") not in ({}, {"contents": "read"}):
        found.append("all its jobs may write")
    if "pull_request_target" in content["on"] or "workflow_run" in content["on"]:
        found.append("a stranger's change runs with rights")
    for job_name, job in content["jobs"].items():
        allowed = WRITES.get((name, job_name), set())
        writes = {what for what, right in job.get("permissions", {}).items() if right == "write"}
        if writes != allowed:
            found.append(f"{job_name} may write {', '.join(sorted(writes)) or 'nothing'}")
        if "uses" not in job and "timeout-minutes" not in job:
            found.append(f"{job_name} may run for ever")
    for step in steps(content):
        uses = step.get("uses", "")
        if uses and not re.search(rf"{re.escape(uses)} # v\d+\.\d+\.\d+$", text, re.M):
            found.append(f"{uses} has no version beside it")
        if uses and uses.split("@")[0] not in ACTIONS:
            found.append(f"{uses} is no action of ours")
        if uses and not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", uses):
            found.append(f"{uses} is not pinned by its commit")
        if uses.startswith("actions/checkout@") and step.get("with", {}).get("persist-credentials") is not False:
            found.append("a checkout leaves its credentials")
        if "${{" in step.get("run", ""):
            found.append("a script has words put into it: use env")
    return found


def gate_complaints(content: Mapping[str, Any]) -> list[str]:
    """What the gates of GitHub have beside checkout, caches, versions of Python and `.ci/run`, and what they lack."""
    found = []
    job = content["jobs"]["gates"]
    if [step["run"] for step in job["steps"] if "run" in step] != [".ci/run"]:
        found.append("they run something else than .ci/run")
    if job["strategy"]["matrix"]["python"] != PYTHONS:
        found.append(f"they do not run on {PYTHONS}")
    for name, one in content["jobs"].items():
        depths = [step["with"].get("fetch-depth") for step in one["steps"] if "checkout" in step.get("uses", "")]
        if depths != [0]:
            found.append(f"{name} does not fetch the whole history")
    return found


def test_github_calls_what_everybody_calls() -> None:
    assert gate_complaints(load(ROOT / ".github/workflows/ci.yml")) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("- run: .ci/run", "- run: make test"),
        ("          fetch-depth: 0\n", "          fetch-depth: 1\n"),
        ('["3.11", "3.12"]', '["3.11"]'),
    ],
)
def test_gates_of_their_own_are_refused(old: str, new: str, tmp_path: Path) -> None:
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    assert old in text
    broken = tmp_path / "ci.yml"
    broken.write_text(text.replace(old, new))
    assert gate_complaints(load(broken)) != []


def test_gitlab_calls_what_everybody_calls() -> None:
    job = load(ROOT / ".gitlab-ci.yml")["gates"]
    assert set(job) == {"cache", "image", "parallel", "script", "stage", "timeout", "variables"}
    assert job["script"] == [".ci/run"]
    assert job["variables"]["GIT_DEPTH"] == "0"
    assert job["parallel"]["matrix"] == [{"PYTHON": PYTHONS}]


def test_the_versions_of_python_are_those_of_the_project() -> None:
    low, high = re.findall(
        r"3\.(\d+)", tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    )
    assert [f"3.{minor}" for minor in range(int(low), int(high))] == PYTHONS


def test_there_is_a_workflow_for_each_purpose() -> None:
    assert [file.name for file in WORKFLOWS] == ["ci.yml", "docs.yml", "nightly.yml", "release.yml"]


@pytest.mark.parametrize("file", [*WORKFLOWS, ROOT / ".gitlab-ci.yml"], ids=lambda file: file.name)
def test_what_it_runs_is_there(file: Path) -> None:
    found = list(scripts(load(file)))
    assert found
    assert {script: lacking for script in found if (lacking := unknown(script))} == {}
    for script in found:
        assert subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True, check=False).stderr == ""


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_it_has_no_more_rights_than_it_needs(file: Path) -> None:
    assert complaints(file.name, load(file), file.read_text()) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("contents: read", "contents: write", "all its jobs may write"),
        ("  pull_request:\n", "  pull_request_target:\n", "a stranger's change runs with rights"),
        ("@3d3c42e5aac5ba805825da76410c181273ba90b1 # v7.0.1", "@v7", "is not pinned by its commit"),
        (" # v7.0.1", "", "has no version beside it"),
        ("actions/cache@", "somebody/cache@", "is no action of ours"),
        ("          persist-credentials: false\n", "", "a checkout leaves its credentials"),
        ("run: make check", "run: echo ${{ github.head_ref }}", "a script has words put into it"),
        ("    timeout-minutes: 30\n", "", "check may run for ever"),
        ("    timeout-minutes: 30\n", "    timeout-minutes: 30\n    permissions: {issues: write}\n", "write issues"),
    ],
)
def test_a_workflow_with_too_many_rights_is_found(old: str, new: str, complaint: str, tmp_path: Path) -> None:
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    assert old in text
    broken = tmp_path / "ci.yml"
    broken.write_text(text.replace(old, new))
    assert any(complaint in found for found in complaints("ci.yml", load(broken), broken.read_text()))


def test_a_script_that_runs_what_is_not_there_is_found() -> None:
    assert unknown("make check X=1 && make tset | cat\n.ci/run\n.ci/walk") == {"tset", ".ci/walk"}


def test_the_images_of_a_release_are_those_of_compose() -> None:
    compose = yaml.safe_load((ROOT / "deploy/docker-compose.yml").read_text())["services"].values()
    ours = {one["image"].removeprefix("tradeloop-") for one in compose if "build" in one}
    [names] = re.findall(r"for name in ([\w ]+); do", (ROOT / ".github/workflows/release.yml").read_text())
    assert set(names.split()) == ours


SBOM = "make sbom OUT=dist/tradeloop.cdx.json"


def test_what_ships_is_listed_and_looked_up() -> None:
    """In every run as an artefact, and in a release beside what it lists, attested or signed like that."""
    [jobs] = [load(ROOT / ".github/workflows/ci.yml")["jobs"]]
    ran = [step["run"] for step in jobs["dependencies"]["steps"] if "run" in step]
    assert ran == ["make sbom OUT=tradeloop.cdx.json", "make audit"]
    [kept] = [step["with"] for step in jobs["dependencies"]["steps"] if "upload-artifact" in step.get("uses", "")]
    assert kept["path"] == "tradeloop.cdx.json"
    build = load(ROOT / ".github/workflows/release.yml")["jobs"]["build"]["steps"]
    order = [step.get("run") or step["uses"].partition("@")[0] for step in build]
    assert order.index("make dist") < order.index(SBOM) < order.index("actions/attest-build-provenance")
    subjects = [step["with"].get("subject-path") for step in build if "attest-build" in step.get("uses", "")]
    assert "dist/*" in subjects
    gitlab = load(ROOT / ".gitlab-ci.yml")
    assert gitlab["sbom"]["artifacts"]["reports"] == {"cyclonedx": "tradeloop.cdx.json"}
    assert {"changes": ["uv.lock", "benchmarks/uv.lock"]} in gitlab["audit"]["rules"]
    script = gitlab["release"]["script"]
    assert script.index("make dist") < script.index(SBOM) < next(n for n, one in enumerate(script) if "sigstore" in one)


def test_the_list_has_every_package_that_ships(tmp_path: Path) -> None:
    """With the version that `uv.lock` has."""
    made = subprocess.run(
        ["make", "--silent", "sbom", f"OUT={tmp_path / 'sbom.json'}"], cwd=ROOT, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    listed = json.loads((tmp_path / "sbom.json").read_text())
    assert listed["bomFormat"] == "CycloneDX"
    found = {one["name"]: one.get("version") for one in listed["components"]}
    locked = {one["name"]: one["version"] for one in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
    third_parties = {name for name in found if not name.startswith("tradeloop")}
    assert {"sqlalchemy", "confluent-kafka", "pydantic"} <= third_parties
    assert "pytest" not in third_parties, "what only tests need does not ship"
    assert {name: found[name] for name in third_parties} == {name: locked[name] for name in third_parties}


def test_both_forges_ask_the_same_of_a_change() -> None:
    theirs = (ROOT / ".gitlab/merge_request_templates/default.md").read_text()
    assert (ROOT / ".github/pull_request_template.md").read_text() == theirs
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        content = yaml.safe_load(form.read_text())
        assert {"name", "description", "body"} <= set(content)
        assert all(part["type"] in ("markdown", "textarea", "input") for part in content["body"])


def test_paths_that_have_owners_are_there() -> None:
    lines = [line.split() for line in (ROOT / ".github/CODEOWNERS").read_text().splitlines() if line[:1] in "/*"]
    paths = [line[0] for line in lines if line]
    assert len(paths) > 5
    assert [path for path in paths if path != "*" and not (ROOT / path.strip("/")).exists()] == []


def test_the_updates_of_dependencies_are_asked_for() -> None:
    assert json.loads((ROOT / "renovate.json").read_text())["extends"][0] == "config:recommended"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A small checkout that is ready for v1.2.3."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/release", tmp_path / ".ci/release")
    for folder in (".", "libs/one", "services/two"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1.2.3"\n')
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy/Dockerfile").write_text("LABEL org.opencontainers.image.version=1.2.3\n")
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-12-01\n\n- New.\n\n## [1.2.2] - 2026-11-01\n\n- Old.\n"
    )
    return tmp_path


def tagged(folder: Path, tag: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, folder / ".ci/release", tag], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_release_that_agrees_has_its_notes(release: Path) -> None:
    assert tagged(release, "v1.2.3") == (0, "- New.\n")


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("services/two/pyproject.toml", "1.2.3", "1.2.2", "services/two/pyproject.toml: version 1.2.2, not 1.2.3"),
        ("deploy/Dockerfile", "1.2.3", "1.2.2", "deploy/Dockerfile: image.version=1.2.2, not 1.2.3"),
        ("CHANGELOG.md", "[1.2.3]", "[1.2.4]", "CHANGELOG.md: no section ## [1.2.3]"),
        ("CHANGELOG.md", "- New.", "", "CHANGELOG.md: no section ## [1.2.3]"),
    ],
)
def test_a_release_that_does_not_agree_is_refused(release: Path, file: str, old: str, new: str, said: str) -> None:
    page = release / file
    page.write_text(page.read_text().replace(old, new, 1))
    status, text = tagged(release, "v1.2.3")
    assert (status, text.startswith(said)) == (1, True), text


def test_a_name_that_is_no_version_is_refused(release: Path) -> None:
    assert tagged(release, "1.2.3")[0] == 1
    assert tagged(release, "v1.2.3; true")[0] == 1
