"""What execution measures: its books as they are recorded, and counts that never go back."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import numpy as np
import pytest

from services.execution.tests.test_application import at, frame, give, make, play, portfolio, signal, targets, walk
from tradeloop.common.clock import ManualClock
from tradeloop.common.market import from_us
from tradeloop.common.messages import OrderFilled, OrderUpdated, PortfolioMarked, RiskVerdict, Transition
from tradeloop.common.portfolio import RiskLimits
from tradeloop.common.runtime.counters import Durations
from tradeloop.common.runtime.metrics import CATALOGUE, MOST_INSTRUMENTS, check
from tradeloop.execution.adapters.memory_ledger import MemoryLedger
from tradeloop.execution.application import Execution

BOOK = "pair", "book"


def measured(execution: Execution) -> dict[tuple[str, ...], float]:
    """The figures by name and labels, but for those of times."""
    figures = list(execution.figures())
    check(figures, "execution")
    return {(one.family, *one.labels): one.value for one in figures if not isinstance(one.value, Durations)}


def times(execution: Execution, family: str) -> tuple[int, float]:
    """How many times were counted of a family, and their sum."""
    [found] = [one.value for one in execution.figures() if one.family == family]
    assert isinstance(found, Durations)
    return sum(found.within), found.total_s


def restarted(ledger: MemoryLedger) -> Execution:
    execution = make(portfolio(), ledger)
    execution.assigned({}, lambda key: True)
    assert not [name for name, *_ in measured(execution) if "equity" in name], "not read yet: absent, never 0"
    list(execution.advance())
    return execution


def test_the_book_is_shown_as_it_is_recorded_and_again_after_a_restart() -> None:
    bars, ledger = walk(300), MemoryLedger()
    execution = make(portfolio(), ledger)
    assert not measured(execution)
    out = play(execution, bars, targets(300))
    mark = [message for message in out if isinstance(message, PortfolioMarked)][-1]
    assert any(position.quantity for position in mark.positions)
    for shown in (measured(execution), measured(restarted(ledger))):
        assert shown["tradeloop_portfolio_equity_quote", *BOOK] == mark.equity
        assert shown["tradeloop_portfolio_peak_equity_quote", *BOOK] == mark.peak_equity
        assert shown["tradeloop_portfolio_cash_quote", *BOOK] == mark.cash
        assert shown["tradeloop_portfolio_drawdown_ratio", *BOOK] == mark.drawdown
        assert shown["tradeloop_portfolio_halted", *BOOK] == 0
        assert shown["tradeloop_portfolio_positions", *BOOK] == sum(bool(each.quantity) for each in mark.positions)
        weights = [each.weight for each in mark.positions]
        assert shown["tradeloop_portfolio_gross_exposure_ratio", *BOOK] == pytest.approx(sum(map(abs, weights)))
        assert shown["tradeloop_portfolio_net_exposure_ratio", *BOOK] == pytest.approx(sum(weights))
        for position in mark.positions:
            labels = *BOOK, position.instrument
            assert shown["tradeloop_position_quantity", *labels] == position.quantity
            assert shown["tradeloop_position_weight_ratio", *labels] == position.weight


def test_counts_are_those_of_what_was_published_and_outlive_partitions() -> None:
    bars, ledger = walk(300), MemoryLedger()
    execution = make(portfolio(limits=RiskLimits(max_position=0.4)), ledger)
    out = play(execution, bars, targets(300))
    shown = measured(execution)
    orders = Counter(message.status for message in out if isinstance(message, OrderUpdated))
    denials = Counter(message.code for message in out if isinstance(message, RiskVerdict))
    fills = [message for message in out if isinstance(message, OrderFilled)]
    rewards = [message.reward for message in out if isinstance(message, Transition)]
    assert {name[-1]: count for name, count in shown.items() if "orders_total" in name[0] and count} == orders
    assert {name[-1]: count for name, count in shown.items() if "denials_total" in name[0] and count} == denials
    assert orders["expired"] > 0
    assert denials["max_position"] > 10
    assert shown["tradeloop_decisions_total", *BOOK, "policy"] == 300
    assert shown["tradeloop_decisions_total", *BOOK, "missed"] == 0, "there to be counted on from"
    assert shown["tradeloop_transitions_total", *BOOK] == len(rewards) > 200
    assert shown["tradeloop_portfolio_reward", *BOOK] == rewards[-1]
    assert shown["tradeloop_fees_quote_total", *BOOK] == pytest.approx(sum(fill.fee for fill in fills))
    assert shown["tradeloop_traded_quote_total", *BOOK] == pytest.approx(sum(x.quantity * x.price for x in fills))
    execution.revoked()
    gone = measured(execution)
    assert {name: count for name, count in gone.items() if name[0].endswith("_total")} == {
        name: count for name, count in shown.items() if name[0].endswith("_total")
    }
    assert not [name for name, *_ in gone if "equity" in name], "another process has the book now"
    fresh = measured(restarted(ledger))
    assert ("tradeloop_portfolio_reward", *BOOK) not in fresh, "the ledger does not keep it"
    assert not sum(count for name, count in fresh.items() if name[0].endswith("_total"))


def test_only_live_bars_have_a_latency() -> None:
    bars = walk(4)
    clock = ManualClock(from_us(bars.close_us[0]))
    execution = make(portfolio(), MemoryLedger(), clock=clock)
    for t, (after_s, live) in enumerate([(2.0, True), (5.0, True), (0.0, False)]):
        clock.advance((from_us(bars.close_us[t]) - clock.now()) / timedelta(seconds=1))
        give(execution, frame(bars, t).model_copy(update={"live": live}), at(2 * t))
        clock.advance(after_s)
        give(execution, signal(bars, t, (0.3, 0.0), hold=t == 0), at(2 * t + 1))
    assert times(execution, "tradeloop_bar_to_decision_seconds") == (2, 7.0)
    assert times(execution, "tradeloop_bar_to_order_seconds") == (1, 5.0), "a hold has no order"


def test_large_universes_have_no_metrics_of_single_positions() -> None:
    assert MOST_INSTRUMENTS >= 2
    bars = walk(5)
    execution = make(portfolio(), MemoryLedger())
    play(execution, bars, np.full((5, 2), 0.1))
    held = [name for name, *_ in measured(execution) if CATALOGUE[name].labels[-1:] == ("instrument",)]
    assert len(held) == 4
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tradeloop.execution.application.measured.MOST_INSTRUMENTS", 1)
        other = make(portfolio(), MemoryLedger())
        play(other, bars, np.full((5, 2), 0.1))
        names = {name for name, *_ in measured(other)}
    assert "tradeloop_portfolio_positions" in names
    assert not [name for name in names if CATALOGUE[name].labels[-1:] == ("instrument",)]
