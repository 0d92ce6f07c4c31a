"""Predictions over HTTP in the stack of processes: what was decided on messages, from Redis and from the body.

The kill switch is pressed in the end, since the stack is there.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import killed
from tests.e2e.stack import Servers
from tests.e2e.test_five_processes import register, run_processes
from tests.e2e.worlds import World
from tradeloop.common.messages import FeaturesComputed, SignalGenerated
from tradeloop.common.model_store.mlflow import MlflowModelStore

TOKEN = "a-token-of-this-test"


def ask(port: int, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/predict", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_predictions_are_the_decisions_before_and_after_a_restart(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds = [World("quartet", 4, 100, tmp_path / "bars")]
    register(MlflowModelStore(servers.mlflow), worlds)
    [world] = worlds
    book = world.portfolio.name
    with servers.stack([world.portfolio], tmp_path) as stack:
        [port] = stack.serve_http(["inference"]).values()
        stack.extra["inference"]["PREDICT__TOKEN"] = TOKEN
        stack.add("inference")
        stack.start()
        run_processes(stack, worlds)
        signals = [one for one in stack.client.read(SignalGenerated) if one.portfolio == book]
        last = max(signals, key=lambda one: one.time)
        assert last.reason == "policy"
        expected = dict(zip(last.instruments, last.targets, strict=True)), list(last.action), last.model_id

        def answered(body: dict[str, Any]) -> bool:
            status, found = ask(port, body)
            assert status in (200, 503), found
            decision = found.get("decision", {})
            return status == 200 and (decision["targets"], decision["action"], found["model"]["id"]) == expected

        online = {"portfolio": book, "time": last.time.isoformat()}
        [published] = [one for one in stack.client.read(FeaturesComputed) if one.time == last.time]
        rows = zip(published.instruments, published.values, strict=True)
        given = {
            "portfolio": book,
            "features": {name: dict(zip(published.names, row, strict=True)) for name, row in rows},
        }
        for body in (online, given):
            stack.eventually(lambda body=body: answered(body), f"answer to {body}")  # type: ignore[misc]
        status, found = ask(port, {"portfolio": book})
        assert (status, found["type"]) == (503, "urn:tradeloop:problem:features_too_old")

        stack.processes["inference-0"].kill()
        stack.processes["inference-0"].start()
        for body in (online, given):
            stack.eventually(lambda body=body: ready(port) and answered(body), "answer after a restart")  # type: ignore[misc]
        assert len([one for one in stack.client.read(SignalGenerated) if one.portfolio == book]) == len(signals)
        killed.check(stack, book, monkeypatch)


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/live", timeout=60):
            return True
    except urllib.error.URLError:
        return False
