"""Which metrics and labels an expression of Prometheus looks at, held against those that the services declare."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from deploy.grafana.panels import DASHBOARDS
from tradeloop.common.runtime.metrics import Family

SHOWN = [(panel, *each) for page in DASHBOARDS for panel in page.panels for each in panel.queries]
"""Each expression of the dashboards, with its panel and what its series are called."""

SCRAPED = frozenset({"job", "instance"})
"""Labels that Prometheus itself adds."""
_NAME = re.compile(r"\b(?:tradeloop|process)_\w+")
_PARTS = ("_bucket", "_sum", "_count")
_PROCESS = frozenset({"process_start_time_seconds", "process_resident_memory_bytes", "process_cpu_seconds_total"})
"""Those of the client library that are looked at."""


def asked(expression: str) -> str:
    """An expression as Grafana asks it, all portfolios chosen."""
    return expression.replace("$__rate_interval", "1m").replace("$portfolio", ".*")


def families(expression: str, declared: Mapping[str, Family]) -> set[str]:
    """The declared families that an expression names. Raises `AssertionError` for one that is not declared."""
    found = set()
    for name in _NAME.findall(expression):
        base = next((name.removesuffix(part) for part in _PARTS if name.endswith(part)), name)
        family = declared.get(name) or declared.get(base)
        if family is not None:
            assert (family.kind == "histogram") == (family.name != name), f"{name} is no {family.kind}"
            found.add(family.name)
        else:
            assert name in _PROCESS, f"no service measures {name}: {expression}"
    return found


def unknown_labels(expression: str, declared: Mapping[str, Family]) -> set[str]:
    """Labels that an expression selects or groups by, and that none of its metrics has."""
    has = {label for name in families(expression, declared) for label in declared[name].labels} | SCRAPED
    if "_bucket" in expression:
        has |= {"le"}
    if "ALERTS" in expression:
        has |= {"alertname", "alertstate", "severity"}
    return set(_labels(expression)) - has


def _labels(expression: str) -> Iterator[str]:
    for selector in re.findall(r"\{([^}]*)\}", expression):
        yield from re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', selector))
    for group in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", expression):
        yield from re.findall(r"\w+", group)


def shown_labels(legend: str) -> Iterable[str]:
    """The labels that a legend names."""
    return re.findall(r"\{\{\s*\$?(?:labels\.)?(\w+)\s*\}\}", legend)
