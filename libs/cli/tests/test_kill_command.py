"""`tradeloop kill` and `tradeloop resume` over a bus in memory: whom they mean, what they print, when they fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from libs.cli.tests.books import UNIVERSE, Stack, frame, signal
from tradeloop.cli.client.kills import Scope, kill, resume
from tradeloop.cli.commands import kill as command
from tradeloop.cli.main import main
from tradeloop.common.errors import UserError
from tradeloop.common.market import from_us
from tradeloop.common.messages import OrderFilled, ServiceStarted
from tradeloop.common.runtime.parts import Traded


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Stack:
    """Two portfolios, one with a working order, and the command's client on their bus."""
    stack = Stack("one", "two")
    stack.send(frame(0), signal(0, "one"), signal(0, "two", hold=True, targets=(0.0,)))

    @contextmanager
    def client(servers: str | None) -> Iterator[Any]:
        with capture_logs():
            yield stack.client

    monkeypatch.setattr(command, "_client", client)
    return stack


def started(stack: Stack, *books: Traded, after_s: float = 0.0) -> None:
    """Execution tells what it trades."""
    at = stack.clock.now() + timedelta(seconds=after_s)
    message = ServiceStarted(
        service="execution", manifest=str(after_s), started=at, instance="a", version="1", commit="", packages="",
        settings="", parts={"books": tuple(one.line for one in books)},
    )  # fmt: skip
    stack.send(message)


def test_all_is_stopped_and_what_became_of_it_is_printed(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kill", "--all", "--by", "ann", "--reason", "the market is mad"]) == 0
    said = capsys.readouterr().out.splitlines()
    [order] = stack.ledger.orders.values()
    assert order.status == "cancelled"
    assert said == [
        "one: killed at the bar of 2023-11-14 22:15 UTC, by ann: the market is mad",
        f"  cancelled: buy {order.quantity:,.10g} x:A ({order.order_id}, cancelled)",
        "  no position is open",
        "two: killed at the bar of 2023-11-14 22:15 UTC, by ann: the market is mad",
        "  no position is open",
    ]
    assert main(["kill", "one", "--reason", "once more"]) == 0, "to give it again is safe"
    assert "once more" in capsys.readouterr().out
    stack.send(frame(1), signal(1, "one"), signal(1, "two"), frame(2))
    assert not stack.client.read(OrderFilled)


def test_positions_are_told_and_closed_where_that_is_asked_for(
    stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    stack.send(frame(1), signal(1, "one"))
    assert main(["kill", "one", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["confirmed"], list(told["positions"])) == (True, ["x:A"])
    assert main(["kill", "one", "--flatten"]) == 0
    said = capsys.readouterr().out
    assert "  closes by: sell " in said
    assert "  still open: +" in said
    stack.send(frame(2))
    assert main(["kill", "one"]) == 0
    assert "no position is open" in capsys.readouterr().out


def test_resume_is_a_word_of_its_own(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", "--all", "--reason", "calm"]) == 0
    assert capsys.readouterr().out.startswith("nothing to resume")
    assert main(["resume", "one", "--reason", "calm"]) == 2
    assert "is not killed: it is active" in capsys.readouterr().err
    assert main(["kill", "--all"]) == 0
    assert main(["book", "release", "one", "--reason", "calm"]) != 0, "it ends a quarantine, and no kill"
    assert main(["resume", "--all"]) == 2, "why must be said"
    capsys.readouterr()
    assert main(["resume", "--all", "--reason", "calm", "--by", "bob"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("by bob: calm")
    stack.send(frame(1), signal(1, "one"), frame(2))
    assert stack.client.read(OrderFilled)


def test_without_an_answer_it_fails(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    stack.client.wait = stack.clock.advance
    assert main(["kill", "--all", "--within", "2"]) == 1
    assert capsys.readouterr().err.count("NOT CONFIRMED within 2 s") == 2
    stack.send()
    assert {order.status for order in stack.ledger.orders.values()} == {"cancelled"}, "it is obeyed when it runs"


def test_an_account_and_a_venue_are_those_that_execution_told_of(stack: Stack) -> None:
    with pytest.raises(UserError, match="none that execution has told of"):
        kill(stack.client, Scope(account="live"), "ann", "why", False, 1.0)
    started(stack, Traded("one", "pair", "live", ("x", "y")), Traded("gone", "pair", "live", ("z",)))
    started(stack, Traded("one", "pair", "live", ("x", "y")), Traded("two", "pair", "paper", ("x",)), after_s=1.0)
    for scope, names in (
        (Scope(account="live"), ["gone", "one"]),
        (Scope(venue="x"), ["one", "two"]),
        (Scope(venue="y"), ["one"]),
    ):
        with capture_logs():
            answers = kill(stack.client, scope, "ann", "why", False, 5.0)
        assert [one.target.portfolio for one in answers] == names
        assert [one.whole for one in answers] == [one.target.runs for one in answers]
        assert [one.target.portfolio for one in answers if not one.target.runs] == [n for n in names if n == "gone"]
    with pytest.raises(UserError, match="no portfolio is known to trade on venue w; there is x, y, z"):
        kill(stack.client, Scope(venue="w"), "ann", "why", False, 1.0)


def test_an_execution_beside_the_one_that_started_last_is_told_too(stack: Stack) -> None:
    """Two of them may trade one account: whoever kills it means both."""
    started(stack, Traded("one", "pair", "live", ("x",)))
    started(stack, Traded("two", "pair", "live", ("x",)), after_s=1.0)
    answers = kill(stack.client, Scope(account="live"), "ann", "why", False, 5.0)
    assert [(one.target.portfolio, one.target.runs) for one in answers] == [("one", False), ("two", True)]
    stack.runner.step()
    assert {order.status for order in stack.ledger.orders.values()} == {"cancelled"}


def test_what_execution_does_not_trade_is_commanded_and_not_waited_for(stack: Stack) -> None:
    started(stack, Traded("one", "pair", "paper", ("x",)))
    stack.runner.step()
    answers = kill(stack.client, Scope(every=True), "ann", "why", False, 5.0)
    assert [(one.target.portfolio, one.target.runs) for one in answers] == [("one", True), ("two", False)]


def test_a_portfolio_that_nobody_has_seen_trade_is_killed_too(stack: Stack) -> None:
    new = Stack("new")
    started(new, Traded("new", UNIVERSE.name, "paper", ("x",)))
    with capture_logs():
        [answer] = kill(new.client, Scope(every=True), "ann", "why", False, 5.0)
    assert answer.event is not None
    assert answer.event.time < from_us(1)
    with capture_logs():
        [again] = resume(new.client, Scope(every=True), "ann", "why", 5.0)
    assert again.whole


def test_what_is_meant_must_be_said(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["one", "--all"], ["--all", "--venue", "x"]):
        assert main(["kill", *arguments]) == 2
        assert "say what is meant" in capsys.readouterr().err
    assert main(["kill", "three"]) == 2
    assert "no portfolio three is known to Kafka; there is one, two" in capsys.readouterr().err
