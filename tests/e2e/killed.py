"""The kill switch on a stack of processes: execution is dead when it is pressed, obeys when it lives, and remembers."""

from __future__ import annotations

import json

import pytest

from tests.e2e.stack import Stack
from tradeloop.cli.main import main
from tradeloop.common.messages import OrderUpdated, PortfolioEvent


def check(stack: Stack, portfolio: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill a portfolio that has traded its last bar, and resume; the service is killed in between."""
    monkeypatch.setenv("TRADELOOP_KAFKA__BOOTSTRAP_SERVERS", stack.addresses.kafka)
    monkeypatch.setenv("TRADELOOP_KAFKA__PREFIX", stack.prefix)
    execution = stack.processes["execution-0"]
    execution.kill()
    assert main(["kill", "--all", "--flatten", "--by", "ann", "--reason", "first", "--within", "0.5"]) == 1
    execution.start()
    stack.eventually(lambda: killed(stack, portfolio), "kill that waited for execution")
    working = {each.order_id: each.status for each in stack.client.read(OrderUpdated)}
    cancelled = {id_ for id_, status in working.items() if status == "cancelled"}
    closing = {id_ for id_, status in working.items() if status == "working"}
    [event] = killed(stack, portfolio)
    assert (event.reason, event.flatten) == ("by ann: first", True)
    assert set(event.orders) == cancelled | closing
    assert cancelled
    assert closing
    assert main(["kill", "--account", "paper", "--by", "ann", "--reason", "second", "--within", "120"]) == 0
    [(state,)] = stack.rows("execution_books", "state")
    assert json.loads(str(state))["killed"]["said"] == "by ann: second"
    execution.kill()
    execution.start()
    assert main(["status"]) == 1, "somebody must know"
    assert main(["resume", "--all", "--by", "bob", "--reason", "calm", "--within", "120"]) == 0
    [(state,)] = stack.rows("execution_books", "state")
    assert ("killed" in json.loads(str(state)), "heeded_us" in json.loads(str(state))) == (False, True)


def killed(stack: Stack, portfolio: str) -> list[PortfolioEvent]:
    """The kills of a portfolio that are on record."""
    return [one for one in stack.client.read(PortfolioEvent) if (one.portfolio, one.kind) == (portfolio, "killed")]
