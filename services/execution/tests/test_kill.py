"""An operator's kill: what works is cancelled, nothing is sent, and nothing but an operator's word ends it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.execution.tests.world import (
    DistantVenue,
    FragileVenue,
    World,
    closes,
    failed_decision,
    frame,
    of,
    signal,
)
from tradeloop.common.messages import (
    OrderFilled,
    OrderUpdated,
    PortfolioCommanded,
    PortfolioEvent,
    PortfolioMarked,
    RiskVerdict,
    Transition,
)
from tradeloop.common.messages.topics import event_id
from tradeloop.common.portfolio import RiskLimits
from tradeloop.execution.adapters.memory_ledger import MemoryLedger


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    with capture_logs():
        yield


def kill(request: str = "k1", portfolio: str = "book", **changes: Any) -> PortfolioCommanded:
    fields: dict[str, Any] = {"universe": "pair", "portfolio": portfolio, "request_id": request, "command": "kill"}
    fields |= {"time": closes(0), "reason": "the market is mad", "by": "ann"}
    return PortfolioCommanded(**{**fields, **changes})


def resume(about: str = "k1", request: str = "r1") -> PortfolioCommanded:
    return kill(request, command="resume", about=about, reason="calm again")


def orders(world: World, status: str) -> list[OrderUpdated]:
    return [order for order in of(OrderUpdated, world.out) if order.status == status]


def held(world: World) -> list[float]:
    return [position.quantity for position in of(PortfolioMarked, world.out)[-1].positions]


def test_working_orders_are_cancelled_and_none_is_sent() -> None:
    world = World()
    world.give(frame(0), signal(0, 0.5, 0.3))
    world.give(kill())
    world.give(frame(1), signal(1, 0.5, 0.3), frame(2), signal(2, -0.5, 0.1), frame(3))
    assert [order.order_id for order in orders(world, "cancelled")] == [
        order.order_id for order in orders(world, "working")
    ]
    [event] = of(PortfolioEvent, world.out)
    assert (event.kind, event.reason, event.request) == ("killed", "by ann: the market is mad", "k1")
    assert event.orders == tuple(order.order_id for order in orders(world, "cancelled"))
    assert not of(OrderFilled, world.out)
    assert len(of(PortfolioMarked, world.out)) == 4, "its book is marked on"
    assert {order.status for order in world.ledger.orders.values()} == {"cancelled"}
    assert world.standing.trouble.endswith("by ann: the market is mad")
    assert not world.execution.pending()


def test_a_decision_that_is_open_is_not_taken_any_more() -> None:
    world = World()
    world.give(frame(0))
    world.give(kill())
    world.give(signal(0, 0.5, 0.3), frame(1))
    assert not of(OrderUpdated, world.out)
    assert of(PortfolioEvent, world.out)[0].time == closes(0)


def test_positions_stay_unless_they_are_to_be_closed() -> None:
    for flatten in (False, True):
        world = World()
        world.give(frame(0), signal(0, 0.5, 0.3), frame(1), signal(1, 0.2, 0.6))
        before = held(world)
        world.give(kill(flatten=flatten))
        world.give(frame(2), signal(2, 0.5, 0.5), frame(3), signal(3, 0.5, 0.5), frame(4))
        assert held(world) == ([0.0, 0.0] if flatten else before)
        closing = [order for order in orders(world, "filled") if order.decision_time == closes(1)]
        assert len(closing) == 2 * flatten, "by orders of their own, beside those that were cancelled"
        assert len(orders(world, "cancelled")) == 2
        assert len(of(PortfolioEvent, world.out)[0].orders) == 2 + 2 * flatten
        assert [one.decision_time for one in of(Transition, world.out)] == [closes(0)], (
            "what was cancelled earns nothing"
        )


def test_what_cannot_be_closed_at_once_is_closed_later() -> None:
    world = World()
    world.give(frame(0), signal(0, 0.5, 0.3), frame(1), signal(1, 0.5, 0.3))
    world.give(kill(flatten=True))
    empty = frame(2).model_copy(update={"bars": ()})
    world.give(empty, frame(3), frame(4), frame(5))
    assert held(world) == [0.0, 0.0]


def test_a_kill_that_comes_again_adds_and_takes_nothing_away() -> None:
    world = World()
    world.give(frame(0), signal(0, 0.5, 0.3), frame(1), signal(1, 0.5, 0.3))
    world.give(kill("k1"), kill("k1"), kill("k2", flatten=True), kill("k3"), kill("k3"))
    world.give(frame(2))
    assert [event.request for event in of(PortfolioEvent, world.out)] == ["k1", "k2", "k3"], "each has its answer"
    times = [event.time for event in of(PortfolioEvent, world.out)]
    assert times == sorted(set(times)), "no two at one time"
    assert held(world) == [0.0, 0.0]
    world.give(resume("k1"), signal(2, 0.5, 0.3), frame(3))
    assert held(world) == [0.0, 0.0], "who resumes must know of the last one"
    world.give(resume("k3"), frame(4), signal(4, 0.5, 0.3), frame(5))
    assert all(held(world))
    assert world.standing.killed_since is None


def test_only_a_resume_ends_it() -> None:
    world = World()
    world.give(frame(0), failed_decision(0))
    world.give(kill())
    release = kill("x", command="release", time=closes(0))
    world.give(release, frame(1), signal(1, 0.5, 0.3), frame(2))
    assert not of(OrderUpdated, world.out)
    assert world.standing.killed_since is not None
    world.give(resume(), signal(2, 0.5, 0.3), frame(3), signal(3, 0.5, 0.3), frame(4))
    assert of(OrderFilled, world.out)


def test_what_failed_before_stays_in_quarantine() -> None:
    world = World()
    world.give(frame(0), failed_decision(0))
    world.give(kill(), resume())
    world.give(frame(1), signal(1, 0.5, 0.3), frame(2))
    assert world.standing.quarantined_since == closes(0)
    assert not of(OrderUpdated, world.out)


def test_nothing_is_sent_for_a_limit_either() -> None:
    for flatten in (False, True):
        world = World(limits=RiskLimits(max_drawdown=0.1))
        world.give(frame(0), signal(0, 0.9, 0.0), frame(1), signal(1, 0.9, 0.0))
        world.give(kill())
        world.give(frame(2, 60.0), frame(3, 60.0))
        assert [one.code for one in of(RiskVerdict, world.out)] == ["drawdown_halt"], "it is told"
        assert held(world)[0] != 0.0
        if flatten:
            world.give(kill("k2", flatten=True), frame(4, 60.0))
            assert held(world) == [0.0, 0.0]


def test_a_portfolio_that_never_saw_a_bar_is_killed_too() -> None:
    world = World()
    world.give(kill())
    world.give(frame(0), signal(0, 0.5, 0.3), frame(1))
    assert len(of(PortfolioEvent, world.out)) == 1
    assert not of(OrderUpdated, world.out)


def test_others_trade_on() -> None:
    world = World("book", "other")
    world.give(frame(0), kill(), signal(0, 0.5, 0.3), signal(0, 0.5, 0.3, portfolio="other"), frame(1))
    assert {fill.portfolio for fill in of(OrderFilled, world.out)} == {"other"}


def test_it_outlives_its_process_and_is_obeyed_once() -> None:
    """The process dies after the ledger has it: the command comes again, and so does one to resume."""
    world = World()
    world.give(frame(0), signal(0, 0.5, 0.3), kill())
    again = World(ledger=world.ledger, recorded=of(PortfolioEvent, world.out))
    again.give(kill(), frame(1), signal(1, 0.5, 0.3), frame(2))
    assert [one.identity for one in of(PortfolioEvent, again.out)] == [
        one.identity for one in of(PortfolioEvent, world.out)
    ], "what may not have left"
    assert not [order for order in of(OrderUpdated, again.out) if order not in world.out]
    again.give(resume())
    last = World(ledger=world.ledger, recorded=of(PortfolioEvent, again.out))
    last.give(kill(), resume(), frame(3), signal(3, 0.5, 0.3), frame(4))
    assert last.standing.killed_since is None
    assert len(of(OrderFilled, last.out)) == 2


def test_it_outlives_a_ledger_that_was_restored_from_before_it() -> None:
    world = World()
    world.give(frame(0), signal(0, 0.5, 0.3), kill(), frame(1))
    restored = World(ledger=MemoryLedger(), recorded=of(PortfolioEvent, world.out))
    restored.give(frame(0), signal(0, 0.5, 0.3), frame(1), signal(1, 0.5, 0.3), frame(2))
    assert not of(OrderFilled, restored.out)
    assert {order.status for order in restored.ledger.orders.values()} == {"cancelled"}
    assert restored.standing.killed_since is not None


def test_a_replay_repeats_it_where_it_came() -> None:
    live = World()
    decided = {t: signal(t, 0.5 - 0.1 * t, 0.1 * t) for t in range(12)}
    for t in range(12):
        if t == 5:
            live.give(frame(t, 100.0 + t), kill("k2", flatten=True), decided[t])
            continue
        live.give(frame(t, 100.0 + t), decided[t])
        live.give(*{2: [kill()], 3: [resume()], 7: [resume("k2", "r2"), kill("k3"), resume("k3", "r3")]}.get(t, []))
    events = of(PortfolioEvent, live.out)
    assert [event.kind for event in events] == ["killed", "resumed"] * 3
    replay = World(recorded=events)
    for t in range(12):
        replay.give(frame(t, 100.0 + t), decided[t])
    assert {event_id(one): one for one in replay.out} == {event_id(one): one for one in live.out}


def test_it_does_not_wait_for_a_venue_that_is_away() -> None:
    DistantVenue.away, DistantVenue.got = {"book"}, []
    world = World(venue=DistantVenue)
    world.give(frame(0), signal(0, 0.5, 0.3))
    world.give(kill())
    assert len(orders(world, "cancelled")) == 2
    DistantVenue.away = set()
    world.pass_time(120.0)
    world.give(frame(1))
    assert not DistantVenue.got, "they are not sent when it is back"
    assert not of(OrderFilled, world.out)


def test_a_venue_outside_is_told_even_after_a_crash() -> None:
    DistantVenue.away, DistantVenue.got = set(), []
    world = World(venue=DistantVenue)
    world.give(frame(0), signal(0, 0.5, 0.3))
    DistantVenue.away = {"book"}
    world.give(kill())
    DistantVenue.away, DistantVenue.emptied = set(), []
    World(venue=DistantVenue, ledger=world.ledger).give(frame(1))
    assert set(DistantVenue.emptied) == {"book"}


def test_it_does_not_wait_for_work_that_fails() -> None:
    FragileVenue.fails, FragileVenue.times = {104}, 10**9
    world = World("bad", venue=FragileVenue)
    for t in range(4):
        world.give(frame(t, 100.0 + t), signal(t, 0.5, 0.3, portfolio="bad"))
    world.give(frame(4, 104.0))
    world.give(kill(portfolio="bad"))
    assert world.said("killed", "bad") == ["by ann: the market is mad"]
    world.pass_time(30.0)
    assert world.said("frame_failed", "bad"), "what fails is given up as ever"
