"""The notebook for quants runs from its first cell to its last, in a folder of its own, and makes its picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.test_docs import ROOT

NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))


def cells(notebook: Path) -> list[dict[str, Any]]:
    content: dict[str, Any] = json.loads(notebook.read_text())
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    found: list[dict[str, Any]] = content["cells"]
    return found


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(notebook: Path) -> None:
    """What it once printed would be old, and no diff of a picture can be read."""
    found = cells(notebook)
    assert [cell["outputs"] for cell in found if cell["cell_type"] == "code" and cell["outputs"]] == []
    assert [cell["id"] for cell in found if cell["cell_type"] == "code" and cell["execution_count"]] == []
    assert len({cell["id"] for cell in found}) == len(found)
    assert all(set(cell) >= {"cell_type", "id", "metadata", "source"} for cell in found)
    assert max(len(line.rstrip("\n")) for cell in found for line in cell["source"]) <= 120


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    code = ["".join(cell["source"]) for cell in cells(notebook) if cell["cell_type"] == "code"]
    assert len(code) > 5
    script = tmp_path / f"{notebook.stem}.py"
    script.write_text("\n\n".join(code))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRADELOOP_")}
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**environment, "MPLBACKEND": "Agg", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "equal to those computed above: True" in done.stdout
    picture = tmp_path / f"{notebook.stem}.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000
