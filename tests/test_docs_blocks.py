"""Blocks of documentation that are no Python: each is read by what reads it in the product, or is of a known kind."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.kubernetes.render import rendered, with_options
from deploy.native.server import ServerError
from docs.site import pictures
from docs.site.pictures import FOLDER, PICTURES
from tests.test_docs import PAGES, ROOT, blocks
from tradeloop.cli.actions import read_actions
from tradeloop.common.errors import UserError
from tradeloop.common.market import Universe
from tradeloop.common.market.event_file import read_events
from tradeloop.common.market.member_file import read_members
from tradeloop.common.portfolio import read_portfolio
from tradeloop.common.risk import Verdict
from tradeloop.ingest.adapters.sources import load_sources

RUN = {"python"}
"""Run by `tests/test_docs.py`."""
COMMANDS = {"sh", "bash", "console", ""}
"""Held to the commands that there are, by `tests/test_docs_commands.py` and the test of `make` targets."""
SHOWN = {"text", "markdown", "promql", "logql", "http", "hcl"}
"""Drawings, output, the form of a page, and the languages of other systems."""


def of_an_overlay(content: dict[str, Any], folder: Path) -> object:
    """The objects of production with all options and with what a block adds to it. Raises where it changes nothing."""
    tree = shutil.copytree(ROOT / "deploy" / "k8s", folder / "k8s")
    overlay = with_options(tree, "production")
    before = rendered(overlay)
    file = overlay / "kustomization.yaml"
    kustomization = yaml.safe_load(file.read_text())
    for key, entries in content.items():
        kustomization[key] = [*kustomization.get(key, ()), *entries]
    file.write_text(yaml.safe_dump(kustomization, sort_keys=False))
    after = rendered(overlay)
    if before == after:
        raise ValueError("the block changes nothing of the overlay")
    return after


def read_block(language: str, body: str, folder: Path) -> object:
    """The content of a block, as the product understands it. Raises for one that it refuses, or does not know."""
    file = folder / f"block.{language}"
    file.write_text(body)
    if language == "toml":
        return tomllib.loads(body)
    if language == "json":
        return yaml.safe_load(body)
    if language == "csv":
        columns = set(body.splitlines()[0].split(","))
        if "ex_date" in columns:
            return read_actions(file)
        return read_events(file) if "kind" in columns else read_members(file)
    if language == "yaml":
        content: Any = yaml.safe_load(body)
        if "strategy" in content:
            return read_portfolio(file)
        if "instruments" in content:
            return Universe.model_validate(content)
        if "apiVersion" in content or "services" in content or "groups" in content:
            return content  # of Kubernetes, Compose and Prometheus, which their own tests know
        if content.keys() <= {"patches", "configMapGenerator"}:
            return of_an_overlay(content, folder)
        return load_sources(file)
    raise AssertionError(f"a block of {language or 'no language'} is read by nothing here")


def other_blocks() -> list[tuple[str, str, str]]:
    """Place, language and content of every block that is neither run, nor a command, nor only shown."""
    found = []
    for page in PAGES:
        for language, line, body in blocks(page.read_text()):
            if language not in RUN | COMMANDS | SHOWN:
                found.append((f"{page.relative_to(ROOT)}:{line}", language, body))
    return found


@pytest.mark.parametrize(
    ("place", "language", "body"), other_blocks(), ids=lambda value: str(value).split("\n")[0][:60]
)
def test_a_block_is_what_the_product_reads(place: str, language: str, body: str, tmp_path: Path) -> None:
    assert read_block(language, body, tmp_path), place


@pytest.mark.parametrize(
    ("language", "body"),
    [
        ("yaml", "name: x\nuniverse: {name: x, instruments: [{id: file:X}], timeframe: 1h}\nstrategy: s\nlimit: 1\n"),
        ("yaml", "name: x\ninstruments: [{id: file:X, tick: 1}]\ntimeframe: 1h\n"),
        ("yaml", "binance:\n  request_per_s: 1\n"),
        ("yaml", "patches:\n  - {target: {kind: CronJob, name: other}, patch: '[{op: remove, path: /spec}]'}\n"),
        ("yaml", "configMapGenerator:\n  - {name: other, behavior: merge, literals: [A=1]}\n"),
        ("csv", "instrument,ex_date,kind,value\nACME,2020-08-31,splits,4\n"),
        ("csv", "instrument,from,to\nACME,2020-08-31,2020-01-01\n"),
        ("toml", "a = \n"),
        ("ruby", "puts 1\n"),
    ],
)
def test_a_block_that_the_product_refuses_is_found(language: str, body: str, tmp_path: Path) -> None:
    with pytest.raises((UserError, ValueError, AssertionError, ServerError)):
        read_block(language, body, tmp_path)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_as_it_is_drawn(name: str) -> None:
    assert (FOLDER / f"{name}.svg").read_text() == PICTURES[name](), "draw it anew: python -m docs.site.pictures"


def test_every_picture_is_drawn_and_shown_with_words() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == set(PICTURES)
    text = "".join(page.read_text() for page in PAGES)
    for name in PICTURES:
        assert f"pictures/{name}.svg)" in text
    assert "![](" not in text


def test_a_picture_that_is_not_so_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "FLOW", [("training", "inference.signals.v1", "execution")])
    with pytest.raises(ValueError, match=r"inference\.signals\.v1 does not go from training to execution"):
        pictures.flow()
    codes = frozenset({Verdict.HALTED})
    monkeypatch.setattr(pictures, "DENIED", codes)
    assert pictures.orders() != (FOLDER / "orders.svg").read_text()
