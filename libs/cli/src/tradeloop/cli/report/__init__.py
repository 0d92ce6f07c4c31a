"""The report of a run: one HTML file that needs no network, and one picture. The same run gives the same bytes."""

from __future__ import annotations

from pathlib import Path

from tradeloop.cli.report.files import Run
from tradeloop.cli.report.page import page
from tradeloop.cli.report.png import draw

__all__ = ["write_report"]


def write_report(folder: Path, run: Run) -> list[Path]:
    """Write `report.html` and `equity.png` into an existing folder; gives their paths."""
    html, png = folder / "report.html", folder / "equity.png"
    html.write_text(page(run), encoding="utf-8", newline="\n")
    draw(png, run)
    return [html, png]
