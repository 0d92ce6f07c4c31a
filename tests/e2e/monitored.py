"""A stack as Prometheus sees it, held against its ledger."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tests.e2e.stack import Stack
from tests.e2e.worlds import World
from tests.prometheus import by, query, told
from tests.watched import SHOWN, asked
from tradeloop.common.market import TimeRange, from_us
from tradeloop.common.messages import ModelReady, PreprocessCompleted, PreprocessRequested, TrainingRequested
from tradeloop.common.runtime.metrics import CATALOGUE

ELSEWHERE = frozenset(
    {
        # Nothing went wrong.
        "tradeloop_events_total",
        "tradeloop_messages_lost",
        "tradeloop_portfolio_awaiting_since_timestamp_seconds",
        # Traces are looked at where they arrive.
        "tradeloop_spans_lost_total",
        "tradeloop_spans_sent_total",
        # There are feeds and predictions in tests/test_native.py.
        "tradeloop_feed_clock_offset_seconds",
        "tradeloop_feed_connected",
        "tradeloop_feed_failed",
        "tradeloop_feed_published_timestamp_seconds",
        "tradeloop_feed_stale",
        "tradeloop_predictions_total",
    }
)
"""The families of which a stack that replays bars has no samples."""


def train(stack: Stack, world: World) -> None:
    """Have a policy trained on the side, so that there is something to see of it."""
    close_us = world.bars.close_us
    span = TimeRange(start=from_us(int(world.bars.open_us[0])), end=from_us(int(close_us[-1])))
    prepare = PreprocessRequested(request_id="p", universe=world.universe, strategy="probe", range=span)
    stack.ask(prepare, PreprocessCompleted)
    told_of = world.portfolio.model_dump_json()
    learn = TrainingRequested(
        request_id="t", strategy="probe", universe=world.universe, range=span, seed=7, steps=2_048, portfolio=told_of
    )
    stack.ask(learn, ModelReady)


def untold(ports: Mapping[str, int]) -> list[str]:
    """What is declared and has samples nowhere, but for what is seen elsewhere; a service tells only its own."""
    found = {service: told(f"http://127.0.0.1:{port}") for service, port in ports.items()}
    for service, names in found.items():
        assert {name for name in names if not CATALOGUE[name].of(service)} == set(), service
    return sorted(set(CATALOGUE) - ELSEWHERE - set().union(*found.values()))


def books(stack: Stack) -> dict[str, Mapping[str, Any]]:
    """The books of the ledger, by portfolio."""
    rows = stack.rows("execution_books", "portfolio, state")
    return {str(name): json.loads(str(state))["book"] for name, state in rows}


def shows_the_books(address: str, stack: Stack, since_s: float = 0.0) -> bool:
    """Whether equity and positions are those of the ledger, from processes that began since some time."""
    began = f"and on (instance) process_start_time_seconds > {since_s}"
    equity = by(address, f"tradeloop_portfolio_equity_quote {began}", "portfolio")
    quantity = by(address, f"tradeloop_position_quantity {began}", "portfolio", "instrument")
    found = books(stack)
    if len(equity) != len(found):
        return False
    for name, book in found.items():
        held = list(zip(book["instruments"], book["position"], book["mark"], strict=True))
        worth = book["cash"] + math.fsum(position * mark for _, position, mark in held if position)
        if not math.isclose(equity[name,], worth, rel_tol=1e-9):
            return False
        if any(quantity[name, instrument] != position for instrument, position, _ in held):
            return False
    return True


def counts_the_ledger(address: str, stack: Stack) -> bool:
    """Whether orders and fills are counted as the ledger has them, and nothing waits."""
    ended = by(address, "sum by (portfolio, outcome) (tradeloop_orders_total) > 0", "portfolio", "outcome")
    rows = [(str(portfolio), str(status)) for portfolio, status in stack.rows("execution_orders", "portfolio, status")]
    expected: dict[tuple[str, ...], float] = {}
    for portfolio, status in rows:
        # All that were sent are counted as working too, whatever became of them.
        for outcome in {status, "working"}:
            expected[portfolio, outcome] = expected.get((portfolio, outcome), 0.0) + 1.0
    traded = by(address, "tradeloop_traded_quote_total", "portfolio")
    fills = stack.rows("execution_fills", "portfolio, quantity, price")
    for (name,), value in traded.items():
        worth = (float(str(quantity)) * float(str(price)) for portfolio, quantity, price in fills if portfolio == name)
        if not math.isclose(value, math.fsum(worth), rel_tol=1e-9):
            return False
    return ended == expected and not query(address, "sum(tradeloop_consumer_lag_messages) > 0")


def empty_panels(address: str) -> list[str]:
    """The expressions of dashboards that give nothing on this stack."""
    return [f"{panel.title}: {text}" for panel, text, _ in SHOWN if not query(address, asked(text))]


def check(address: str, stack: Stack, ports: Mapping[str, int], worlds: Sequence[World]) -> None:
    """What Prometheus knows of a stack that has traded all bars is what its ledger has, before and after a restart."""
    stack.eventually(lambda: shows_the_books(address, stack), "equity and positions of the ledger at Prometheus")
    stack.eventually(lambda: counts_the_ledger(address, stack), "orders and fills of the ledger at Prometheus")
    # Services look at their own figures every few seconds, and Prometheus at them every second.
    stack.eventually(lambda: not untold(ports), lambda: f"samples of {untold(ports)}")
    stack.eventually(lambda: not empty_panels(address), lambda: f"data of {empty_panels(address)}")
    assert {job for (job,) in by(address, "tradeloop_ready == 1", "job")} == set(ports)
    assert query(address, 'ALERTS{alertstate="firing"}') == []
    # By the kernel's clock, which may be up to a second from ours.
    since_s = by(address, "process_start_time_seconds", "job")["execution",]
    stack.processes["execution-0"].stop()
    stack.processes["execution-0"].start()
    stack.eventually(lambda: shows_the_books(address, stack, since_s), "books at Prometheus after a restart")
    never = by(address, "min_over_time(tradeloop_portfolio_equity_quote[1h]) > 0", "portfolio")
    assert len(never) == len(worlds), "absent while it is not known, and never 0"
