"""Every order of a ledger is explained back to its bar, and by numbers that give its quantity in plain arithmetic."""

from __future__ import annotations

import math
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest

from tests.e2e.worlds import World
from tradeloop.cli.client.embedded import EmbeddedStack, embedded
from tradeloop.cli.explain.chain import Explained
from tradeloop.cli.explain.evidence import Evidence
from tradeloop.cli.explain.subject import Subject, subject_at, subject_of_id
from tradeloop.common.messages import BackfillCompleted, OrderFilled, PortfolioMarked, RiskVerdict, SignalGenerated
from tradeloop.common.portfolio import Portfolio, RiskLimits

TRADED = 100


class Tight(World):
    """A world whose limits are met: it is denied orders, and halted in the end."""

    @cached_property
    def portfolio(self) -> Portfolio:
        loose = World(self.name, self.instruments, self.traded, self.folder).portfolio
        limits = RiskLimits(max_position=0.15, max_leverage=0.45, max_order_notional=0.2, max_drawdown=0.004)
        return loose.model_copy(update={"limits": limits})


@dataclass
class Traded:
    """Worlds that were traded, the stack that did it, and its ledger."""

    worlds: Sequence[World]
    stack: EmbeddedStack
    orders: list[tuple[str, str, str, float]]
    """Id, portfolio, instrument and signed quantity of each order of the ledger."""
    fills: list[tuple[str, str, str, float, float, float]]
    """Id, portfolio, instrument, quantity, price and fee of each fill of the ledger."""

    def __post_init__(self) -> None:
        self.evidence = Evidence(self.stack.bus)
        self.portfolios = {world.portfolio.name: world.portfolio for world in self.worlds}

    def explained(self, subject: Subject) -> Explained:
        return Explained(self.evidence, subject, self.portfolios[subject.portfolio])


@pytest.fixture(scope="module")
def traded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traded]:
    home = tmp_path_factory.mktemp("home")
    bars = home / "bars"
    worlds = [
        Tight("tight", 4, TRADED, bars),
        World("index", 4, TRADED, bars, members_change=True),
        World("listed", 3, TRADED, bars, has_events=True),
    ]
    with embedded(home, [world.portfolio for world in worlds]) as stack:
        for world in worlds:
            registered = stack.models.register(world.model, world.policy, metrics={}, parameters={})
            stack.models.set_alias(world.model, world.portfolio.model_alias, registered.version)
            stack.client.ask(world.backfill(), BackfillCompleted)
            stack.replay(world.replay(), lambda: None)
        with closing(sqlite3.connect(home / "ledger.db")) as ledger:
            signed = "CASE side WHEN 'buy' THEN quantity ELSE -quantity END"
            orders = ledger.execute(
                f"SELECT order_id, portfolio, instrument, {signed} FROM execution_orders"
            ).fetchall()
            fills = ledger.execute(
                f"SELECT fill_id, portfolio, instrument, {signed}, price, fee FROM execution_fills"
            ).fetchall()
        yield Traded(worlds, stack, orders, fills)


def wanted(row: dict[str, Any]) -> float:
    """The order that a target comes to, from the numbers of an explanation: value over price, in whole lots."""
    exact = row["target"] * row["equity"] / row["price"]
    lots = math.floor(abs(exact) / row["lot_size"] + 1e-9)
    return float(math.copysign(lots * row["lot_size"], exact) - row["position"])


def test_every_order_of_the_ledger_is_explained(traded: Traded) -> None:
    assert len(traded.orders) > 200
    seen: Counter[str] = Counter()
    for order_id, portfolio, instrument, quantity in traded.orders[::2]:  # the others below, decision by decision
        subject = subject_of_id(traded.evidence, order_id)
        assert (subject.portfolio, subject.instrument) == (portfolio, instrument)
        facts: Any = traded.explained(subject).described
        [order] = [each for each in facts["orders"]["orders"] if each["order_id"] == order_id]
        [row] = [each for each in facts["risk"]["sizing"] if each["instrument"] == instrument]
        assert order["quantity"] == abs(quantity)
        assert row["ordered"] == quantity
        assert facts["bar"]["close"] == facts["time"]
        assert facts["features"]["values"][instrument]
        assert facts["decision"]["decision_id"] == facts["decision"]["where"]["event_id"]
        if row["why"]:  # the whole position goes: a halt, a denied flip, or it does not belong any more
            assert quantity == -row["position"]
            seen[row["code"] or row["why"]] += 1
        else:
            assert row["target"] == dict(
                zip(facts["decision"]["instruments"], facts["decision"]["targets"], strict=True)
            ).get(instrument)
            assert quantity == pytest.approx(wanted(row), rel=1e-9)
            assert all(check["passed"] for check in row["checks"])
            seen["target"] += 1
    assert seen["target"] > 50
    assert len(seen) >= 3, seen


def test_every_fill_of_the_ledger_is_explained_to_the_cash(traded: Traded) -> None:
    reasons: Counter[str] = Counter()
    for fill_id, portfolio, instrument, quantity, price, fee in traded.fills[::3]:
        facts: Any = traded.explained(subject_of_id(traded.evidence, fill_id)).described
        [fill] = [each for each in facts["fills"]["fills"] if each["fill_id"] == fill_id]
        reasons[fill.get("reason", "")] += 1
        assert (facts["portfolio"], fill["instrument"]) == (portfolio, instrument)
        assert (fill["price"], fill["fee"], fill["quantity"]) == (price, fee, abs(quantity))
        if not fill.get("reason", ""):
            slipped = abs(price - fill["reference_open"]) * abs(quantity)
            assert fill["slippage"] == pytest.approx(slipped, rel=1e-9, abs=1e-12)
            assert fee == pytest.approx(abs(quantity) * price * 0.3e-4)
        before, after = facts["book"]["before"], facts["book"]["after"]
        paid = sum(
            (1 if one["side"] == "buy" else -1) * one["quantity"] * one["price"] + one["fee"]
            for one in facts["fills"]["fills"]
        )
        assert after["cash"] == pytest.approx(before["cash"] - paid, rel=1e-12)
    assert reasons[""] > 60


def test_every_decision_is_explained_whether_or_not_it_traded(traded: Traded) -> None:
    """The arithmetic that is shown gives what the compiled gate did, denials included; and no order has no reason."""
    denied: Counter[str] = Counter()
    nothing: Counter[str] = Counter()
    ordered = {(portfolio, order_id) for order_id, portfolio, *_ in traded.orders}
    halted = 0
    for mark in traded.stack.client.read(PortfolioMarked):
        explained = traded.explained(subject_at(traded.evidence, mark.portfolio, mark.time))
        facts: Any = explained.described
        assert [row for row in facts["risk"]["sizing"] if not row["agrees"]] == []
        on_record = {(each["instrument"], each["code"], each["measured"]) for each in facts["risk"]["verdicts"]}
        halt = {one for one in on_record if not one[0]}
        told = {(row["instrument"], row["code"]) for row in facts["risk"]["sizing"] if row["code"]}
        assert {(instrument, code) for instrument, code, _ in on_record - halt} == told
        for row in facts["risk"]["sizing"]:
            for check in row["checks"]:
                if not check["passed"] and check["name"] == row["code"]:
                    [measured] = [each[2] for each in on_record if each[:2] == (row["instrument"], row["code"])]
                    assert measured == pytest.approx(check["measured"], rel=1e-9)
        denied.update(code for _, code in told)
        halted += mark.state == "halted"
        here = {(facts["portfolio"], each["order_id"]) for each in facts["orders"]["orders"]}
        assert here <= ordered
        ordered -= here
        if not here:
            nothing[explained.outcome.split(";")[0]] += 1
    assert not ordered, "all of them were explained"
    assert {"max_order_notional", "not_a_member", "trading_halted", "delisted", "halted"} <= set(denied), denied
    assert halted
    assert any("no-trade band" in words for words in nothing)
    assert any("the portfolio is halted by drawdown_halt" in words for words in nothing), nothing
    assert sum(denied.values()) == sum(bool(one.instrument) for one in traded.stack.client.read(RiskVerdict))


def test_any_id_of_a_bar_leads_to_its_decision(traded: Traded) -> None:
    fill = traded.stack.client.read(OrderFilled)[40]
    signal = next(
        one
        for one in traded.stack.client.read(SignalGenerated)
        if (one.portfolio, one.time) == (fill.portfolio, fill.decision_time)
    )
    facts: Any = traded.explained(subject_of_id(traded.evidence, fill.order_id)).described
    for wanted in (signal.event_id("inference.signals.v1"), facts["book"]["before"]["where"]["event_id"]):
        subject = subject_of_id(traded.evidence, wanted)
        assert (subject.portfolio, subject.time) == (fill.portfolio, fill.decision_time)
    for wanted in (facts["trace_id"], facts["bar"]["frames"][0]["where"]["event_id"]):
        subject = subject_of_id(traded.evidence, wanted)
        assert (subject.universe, subject.time) == (fill.universe, fill.decision_time)
