"""Writes the dashboards: `python -m deploy.grafana`, as `make format` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy.grafana.panels import DASHBOARDS, Dashboard, Panel

FOLDER = Path(__file__).parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "tradeloop"}
"""As `provisioning/datasources` names it."""
_WIDTH, _HEIGHT = 12, 8
"""The size of a panel; a page is 24 wide."""


def dashboard(page: Dashboard) -> dict[str, Any]:
    """A dashboard as Grafana reads it."""
    return {
        "uid": f"tradeloop-{page.name}",
        "title": f"Tradeloop: {page.title}",
        "tags": ["tradeloop"],
        "schemaVersion": 39,
        "editable": False,
        "timezone": "utc",
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": [_choice()] if page.chooses else []},
        "panels": [_panel(number, panel) for number, panel in enumerate(page.panels)],
    }


def _choice() -> dict[str, Any]:
    query = "label_values(tradeloop_portfolio_quarantined, portfolio)"
    return {
        "name": "portfolio",
        "type": "query",
        "datasource": SOURCE,
        "query": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    table = panel.kind == "table"
    targets = [
        {
            "refId": chr(ord("A") + n),
            "datasource": SOURCE,
            "expr": expression,
            "legendFormat": legend,
            "instant": table,
            "range": not table,
            "format": "table" if table else "time_series",
        }
        for n, (expression, legend) in enumerate(panel.queries)
    ]
    return {
        "id": number + 1,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "gridPos": {"x": _WIDTH * (number % 2), "y": _HEIGHT * (number // 2), "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": targets,
    }


def files() -> dict[Path, str]:
    """The dashboards by file."""
    return {FOLDER / f"{page.name}.json": json.dumps(dashboard(page), indent=2) + "\n" for page in DASHBOARDS}


if __name__ == "__main__":
    for file, text in files().items():
        file.write_text(text)
