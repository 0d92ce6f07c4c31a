"""What `tradeloop status` and `tradeloop book` know of portfolios, and what becomes of an operator's word."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from libs.cli.tests.books import Stack, frame, signal
from tradeloop.cli.client.books import BookState
from tradeloop.common.errors import UserError


def words(books: dict[str, BookState], names: Sequence[str]) -> list[str]:
    return [books[name].words.partition(",")[0] for name in names]


def test_a_stack_that_never_traded_has_nothing_to_show() -> None:
    assert Stack("one").books == {}


def test_each_portfolio_says_what_it_waits_for_and_what_is_wrong_with_it() -> None:
    stack = Stack("broken", "going", "waiting")
    failed = signal(0, "broken", hold=True, reason="error", error="ValueError: NaN")
    stack.send(frame(0), signal(0, "going"), failed, signal(0, "waiting"), frame(1), signal(1, "going"))
    assert words(stack.books, ["broken", "going", "waiting"]) == [
        "quarantined since the bar of 2023-11-14 22:15 UTC: ValueError: NaN",
        "active",
        "awaits the decision on the bar of 2023-11-14 22:16 UTC",
    ]
    assert stack.books["broken"].events == {"quarantined": 1}


def test_an_operator_skips_a_decision_and_releases_a_portfolio() -> None:
    stack = Stack("broken", "waiting")
    stack.send(frame(0), signal(0, "broken", hold=True, reason="error", error="ValueError: NaN"), frame(1))
    skipped = stack.command("skip", "waiting", "inference is being mended")
    assert (skipped.kind, skipped.time) == ("decision_missed", frame(0).close_time)
    assert stack.books["waiting"].awaits == frame(1).close_time
    released = stack.command("release", "broken", "the model was replaced")
    assert (released.kind, released.reason) == ("released", "the model was replaced")
    assert stack.books["broken"].quarantine is None
    stack.send(frame(2), signal(2, "broken"), frame(3))
    assert stack.ledger.fills, "its decisions count again"


def test_there_must_be_something_to_command() -> None:
    stack = Stack("going")
    stack.send(frame(0), signal(0, "going"))
    for command, why in (("skip", "waits for no decision"), ("release", "is not in quarantine")):
        with pytest.raises(UserError, match=f"portfolio going {why}"):
            stack.command(command, "going", "because")


def test_a_command_without_an_answer_says_so() -> None:
    stack = Stack("waiting")
    stack.send(frame(0))
    stack.client.wait = stack.clock.advance
    assert stack.command("skip", "waiting", "nobody listens") is None
