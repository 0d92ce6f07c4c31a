"""The pages that begin with nothing: their commands are run in order, with fewer bars and steps than a reader has."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_docs import ROOT, blocks
from tradeloop.cli.main import main

SHORTER = {"2025-01-01": "2024-02-20", "2024-10-01": "2024-02-05"}
"""The end of the bars, and that of the training."""
FEWER = {"demo": ["--to", "2017-03-01", "--steps", "1"], "train": ["--steps", "1"]}
"""Options that are added to a command."""


def commands(page: str, until: str = "") -> Iterator[list[str]]:
    """The words of each `tradeloop` line in the shell blocks of a page, up to a heading."""
    text = (ROOT / "docs/start" / page).read_text()
    if until:
        text, found, _ = text.partition(f"\n## {until}\n")
        assert found
    for language, _, body in blocks(text):
        if language == "sh":
            for line in body.splitlines():
                if line.startswith("tradeloop "):
                    yield shlex.split(line)[1:]


def shorter(words: list[str]) -> list[str]:
    return [*(SHORTER.get(word, word) for word in words), *FEWER.get(words[0], [])]


def install(package: Path, patch: pytest.MonkeyPatch) -> None:
    """Stands for `pip install -e`: the source on the path, and the entry point of its pyproject.toml."""
    source = package / "src"
    project = (package / "pyproject.toml").read_text()
    [entry] = re.findall(r'^\[project\.entry-points\."tradeloop\.strategies"\]\n(.*)\n', project, re.M)
    name, _, place = entry.partition(" = ")
    info = source / "new_strategy-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: new-strategy\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[tradeloop.strategies]\n{name} = {place.strip(chr(34))}\n")
    patch.setattr(sys, "path", [*sys.path, str(source)])


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of somebody who begins, who has set nothing."""
    for name in [name for name in os.environ if name.startswith("TRADELOOP_")]:
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "my_edge_strategy", raising=False)  # of a test before, in the same process
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_author_comes_from_nothing_to_a_model(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    for words in commands("strategy-author.md"):
        assert main(shorter(words)) == 0, words
        done.append(" ".join(words[:2]) if words[0] in ("strategy", "models") else words[0])
        if words[:2] == ["strategy", "new"]:
            install(empty / words[2], monkeypatch)
    assert done == ["demo", "strategy new", "strategy check", "backfill", "train", "backtest", "models list"]
    assert (empty / "demo/report.html").exists()
    assert (empty / "test/report.html").exists()


def test_a_trader_comes_from_nothing_to_a_backtest(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = [words[0] for words in commands("trader.md", until="Let it trade a live feed") if main(shorter(words)) == 0]
    assert done == ["instruments", "backfill", "bars", "train", "backtest"]
    assert (empty / "test/report.html").exists()
    assert "simulated:BTC/USDT" in capsys.readouterr().out
