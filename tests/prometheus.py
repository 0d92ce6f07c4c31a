"""A real Prometheus that scrapes a stack of a test, and what it answers; what a service tells it."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from deploy.native.mlflow import http_answers
from deploy.native.server import Program, need
from tests.waiting import PATIENCE_S
from tradeloop.common.runtime.metrics import CATALOGUE

RULES = Path(__file__).parents[1] / "deploy" / "prometheus" / "rules.yml"


def prometheus(folder: Path, port: int, targets: Mapping[str, int]) -> Program:
    """A server on 127.0.0.1 that scrapes services by their ports every second, with our rules. Raises `ServerError`."""
    need(["prometheus"], ["prometheus"])
    jobs = [
        {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{number}"]}]} for job, number in targets.items()
    ]
    often = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration = folder / "prometheus.yml"
    configuration.write_text(yaml.safe_dump({"global": often, "rule_files": [str(RULES)], "scrape_configs": jobs}))
    address = f"http://127.0.0.1:{port}"
    command = (
        "prometheus",
        f"--config.file={configuration}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    return Program("prometheus", command, address, lambda: http_answers(f"{address}/-/ready"))


def query(address: str, expression: str) -> list[tuple[dict[str, str], float]]:
    """What Prometheus answers to an expression now: labels and value of each series."""
    asked = f"{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
        found: dict[str, Any] = json.load(answer)
    assert found["data"]["resultType"] == "vector"
    return [(each["metric"], float(each["value"][1])) for each in found["data"]["result"]]


def by(address: str, expression: str, *labels: str) -> dict[tuple[str, ...], float]:
    """The same, by the values of some labels."""
    return {tuple(metric.get(label, "") for label in labels): value for metric, value in query(address, expression)}


def told(address: str) -> set[str]:
    """The declared families of which a service has samples now, each with the labels that are declared.

    Fails for one that is not declared.
    """
    with urllib.request.urlopen(f"{address}/metrics", timeout=PATIENCE_S) as answer:
        text = answer.read().decode()
    seen = set()
    for exposed in text_string_to_metric_families(text):
        if exposed.name.startswith(("process_", "python_")):
            continue
        name = f"{exposed.name}_total" if exposed.type == "counter" else exposed.name
        family = CATALOGUE[name]
        assert (exposed.type, exposed.documentation) == (family.kind, family.text)
        for sample in exposed.samples:
            seen.add(name)
            assert set(sample.labels) - {"le"} == set(family.labels), sample
    return seen
