"""Execution when something fails, comes late or is commanded: each is recorded, and concerns one portfolio alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from services.execution.tests.world import (
    PAIR,
    A,
    B,
    DistantVenue,
    FragileVenue,
    Growth,
    World,
    at,
    closes,
    command,
    failed_decision,
    frame,
    of,
    signal,
)
from tradeloop.common.bus.port import LogPosition, Partition
from tradeloop.common.errors import UserError
from tradeloop.common.messages import (
    Message,
    OrderFilled,
    OrderUpdated,
    PortfolioEvent,
    PortfolioMarked,
    RiskVerdict,
    Transition,
)
from tradeloop.common.messages.topics import event_id
from tradeloop.common.portfolio import Portfolio, RiskLimits
from tradeloop.common.runtime.held import LIMIT
from tradeloop.common.simulation import Market
from tradeloop.execution.adapters.memory_ledger import MemoryLedger
from tradeloop.execution.adapters.paper import PaperVenue
from tradeloop.execution.domain.inputs import VenueFill
from tradeloop.execution.ports import Change
from tradeloop.execution.record import BookRecord


@pytest.fixture(autouse=True)
def sound_reward() -> Iterator[None]:
    Growth.broken = False
    with capture_logs():
        yield
    Growth.broken = False


# --- experience has no veto


def test_C2_a_ruin_that_breaks_the_reward_is_marked_and_halted_all_the_same() -> None:
    """A short position, and one bar of +160 %: the reward has no logarithm of it, the margin call must come."""
    world = World("short", "flat")
    for t, price in enumerate((100.0, 100.0, 260.0, 260.0)):
        world.give(frame(t, price), signal(t, -0.5, -0.5, portfolio="short"), signal(t, portfolio="flat"))
    for t in range(4, 40):
        world.give(frame(t, 260.0), signal(t, portfolio="short"), signal(t, portfolio="flat"))
    short, flat = of(PortfolioMarked, world.of("short")), of(PortfolioMarked, world.of("flat"))
    assert len(short) == len(flat) == 40, "both go on, to the last bar"
    assert short[2].equity < 0.0
    assert next(one.code for one in of(RiskVerdict, world.of("short"))) == "margin_call"
    assert all(position.quantity == 0.0 for position in short[-1].positions)
    assert not world.execution.pending()


def test_C2_a_reward_that_raises_costs_the_transition_and_says_so() -> None:
    world, sound = World(), World()
    for t in range(8):
        Growth.broken = t in (3, 4)
        world.give(frame(t), signal(t, 0.3, -0.2 * (t % 2)))
        Growth.broken = False
        sound.give(frame(t), signal(t, 0.3, -0.2 * (t % 2)))
    earned = [one.decision_time for one in of(Transition, world.out)]
    assert earned == [closes(t) for t in range(7) if t not in (2, 3)]
    assert world.said("transition_missing") == ["ZeroDivisionError: of the author's own making"] * 2
    assert world.execution.tallies() == {("transition_missing", "book"): 2}

    def rest(out: Sequence[Message]) -> list[Message]:
        return [message for message in out if not isinstance(message, Transition | PortfolioEvent)]

    assert rest(world.out) == rest(sound.out), "orders, fills, marks and verdicts are those of a sound reward"
    assert not world.standing.quarantined_since


# --- a portfolio's own failure is its own


@pytest.fixture
def fragile() -> type[FragileVenue]:
    FragileVenue.fails, FragileVenue.times = {104}, 10**9
    return FragileVenue


def two(world: World, t: int) -> list[Message]:
    """A bar with both portfolios' decisions."""
    weights = (0.3, -0.2 * (t % 2))
    return world.give(frame(t, 100.0 + t), signal(t, *weights, portfolio="bad"), signal(t, *weights, portfolio="good"))


@pytest.mark.parametrize("times", [1, 2])
def test_a_failure_that_passes_equals_no_failure(fragile: type[FragileVenue], times: int) -> None:
    FragileVenue.times = times
    world, whole = World("bad", "good", venue=FragileVenue), World("bad", "good")
    for t in range(9):
        two(whole, t)
        two(world, t)
        world.pass_time(4.0)
    assert sorted(map(event_id, world.out)) == sorted(map(event_id, whole.out))
    assert world.of("bad") == whole.of("bad")
    assert not world.execution.pending()


def test_what_fails_for_good_is_left_out_and_stops_one_portfolio_alone(fragile: type[FragileVenue]) -> None:
    world, whole = World("bad", "good", venue=fragile), World("bad", "good")
    for t in range(9):
        two(whole, t)
        two(world, t)
        world.pass_time(4.0)
    assert world.of("good") == whole.of("good"), "nobody else notices"
    assert world.said("frame_failed", "bad") == ["RuntimeError: what nobody thought of"]
    assert world.said("quarantined", "bad") == ["RuntimeError: what nobody thought of"]
    marks = [mark.time for mark in of(PortfolioMarked, world.of("bad"))]
    assert marks == [closes(t) for t in range(9) if t != 4], "the book goes on being marked"
    orders = [one.decision_time for one in of(OrderUpdated, world.of("bad"))]
    assert max(orders) == closes(3), "and takes no decision any more"
    [bad, good] = sorted(world.execution.standings(), key=lambda one: one.portfolio)
    assert (bad.quarantined_since, bad.cause) == (closes(4), "RuntimeError: what nobody thought of")
    assert good.quarantined_since is None
    assert not world.execution.pending(), "nothing of the partition is held up"


def test_what_waits_behind_a_bar_that_is_left_out_needs_no_further_message(fragile: type[FragileVenue]) -> None:
    """All is here before the bar fails, as in a replay: nothing that comes later sets it going again."""
    world = World("bad", venue=fragile)
    world.clock.advance(3600.0)
    signals = [signal(t, 0.3, portfolio="bad") for t in range(9)]
    world.give(*(frame(t, 100.0 + t) for t in range(9)), *signals)
    world.pass_time(10.0)
    assert [mark.time for mark in of(PortfolioMarked, world.out)] == [closes(t) for t in range(9) if t != 4]
    assert not world.execution.pending()


class NoVenue(PaperVenue):
    """A venue that cannot be made, for portfolios that are called so."""

    def __init__(self, portfolio: Portfolio) -> None:
        if portfolio.name.startswith("bad"):
            raise RuntimeError("no such account")
        super().__init__(portfolio)


def test_a_venue_that_cannot_be_made_stops_one_portfolio_alone() -> None:
    world, whole = World("bad", "good", venue=NoVenue), World("bad", "good")
    for t in range(5):
        two(whole, t)
        two(world, t)
    assert world.of("good") == whole.of("good")
    [bad] = [one for one in world.execution.standings() if one.portfolio == "bad"]
    assert "RuntimeError: no such account" in bad.trouble
    assert not world.execution.pending()


class Unreadable(MemoryLedger):
    """A ledger in which a book cannot be read."""

    def load(self, portfolios: Sequence[str]) -> Mapping[str, BookRecord]:
        if "bad" in portfolios:
            raise ValueError("no JSON")
        return super().load(portfolios)


def test_a_book_that_cannot_be_read_stops_one_portfolio_alone() -> None:
    world, whole = World("bad", "good", ledger=Unreadable()), World("bad", "good")
    for t in range(5):
        two(whole, t)
        two(world, t)
    assert world.of("good") == whole.of("good")
    [bad] = [one for one in world.execution.standings() if one.portfolio == "bad"]
    assert "ValueError: no JSON" in bad.trouble


def test_a_frame_that_comes_too_late_is_counted() -> None:
    """It failed when it came, and is tried again once the next ones were taken."""
    world = World()
    world.give(frame(0), signal(0), frame(2), signal(2))
    again = LogPosition(Partition("market.bars.v1.retry.execution", 0), 0)
    list(world.execution.handle(frame(1), again))
    assert world.execution.tallies() == {("late_frame", "book"): 1}


@pytest.mark.parametrize("stop", range(1, 40))
def test_a_crash_anywhere_changes_nothing_of_a_failure(fragile: type[FragileVenue], stop: int) -> None:
    """Steps: each message, and each second in which it is tried again."""

    def play(stop: int | None) -> tuple[list[Message], MemoryLedger]:
        world, step, out = World("bad", "good", venue=fragile), 0, list[Message]()
        given: list[Message] = []

        def crash_here() -> None:
            nonlocal world, step
            step += 1
            if step == stop:
                out.extend(world.out)
                world = World("bad", "good", venue=fragile, ledger=world.ledger)
                world.out += world.execution.advance()
                world.give(*given)

        for t in range(9):
            both = [signal(t, 0.3, -0.2 * (t % 2), portfolio=name) for name in ("bad", "good")]
            for message in (frame(t, 100.0 + t), *both):
                world.give(message)
                given.append(message)
                crash_here()
            for _ in range(4):
                world.pass_time(1.0)
                crash_here()
        world.pass_time(10.0)
        return [*out, *world.out], world.ledger

    whole, ledger = play(None)
    again, other = play(stop)
    assert {event_id(message): message for message in again} == {event_id(message): message for message in whole}
    assert all(message in whole for message in again)
    assert (other.orders, other.fills) == (ledger.orders, ledger.fills)
    for name in ("bad", "good"):
        assert replace(other.load([name])[name], revision=0) == replace(ledger.load([name])[name], revision=0)


@pytest.mark.parametrize("on_failure", ["hold", "flatten"])
def test_C1_a_decision_that_failed_puts_its_portfolio_into_quarantine(on_failure: str) -> None:
    world = World("bad", "good", on_failure=on_failure)
    for t in range(6):
        bad = failed_decision(t, "bad") if t == 2 else signal(t, 0.4, 0.2, portfolio="bad")
        world.give(frame(t), bad, signal(t, 0.4, 0.2, portfolio="good"))
    assert world.said("quarantined", "bad") == ["ValueError: the policy said NaN"]
    bad, good = (of(PortfolioMarked, world.of(name))[-1] for name in ("bad", "good"))
    assert [p.quantity != 0.0 for p in bad.positions] == [on_failure == "hold"] * 2
    assert [p.quantity != 0.0 for p in good.positions] == [True] * 2
    assert len(of(PortfolioMarked, world.of("bad"))) == 6, "its limits are checked on every bar"


def test_a_release_takes_decisions_again_and_comes_to_the_same_when_it_comes_twice() -> None:
    world = World()
    world.give(frame(0), failed_decision(0), frame(1), frame(2))
    assert world.standing.quarantined_since == closes(0)
    world.give(command("release", 1))
    assert world.standing.quarantined_since == closes(0), "it is about another quarantine"
    world.give(command("release", 0), command("release", 0), signal(2, 0.5, 0.5))
    assert world.said("released") == ["looked at it"]
    world.give(frame(3), signal(3, 0.5, 0.5), frame(4))
    assert [one.decision_time for one in of(OrderFilled, world.out)] == [closes(3)] * 2
    assert world.standing.quarantined_since is None
    assert not world.execution.pending()


def test_a_quarantine_outlives_its_process() -> None:
    world = World()
    world.give(frame(0), failed_decision(0))
    again = World(ledger=world.ledger)
    again.give(frame(1), signal(1, 0.5, 0.5), frame(2))
    assert again.standing.quarantined_since == closes(0)
    assert again.standing.cause == "ValueError: the policy said NaN"
    assert not of(OrderUpdated, again.out)


def test_a_signal_for_other_instruments_puts_its_portfolio_into_quarantine() -> None:
    world = World()
    world.give(frame(0), signal(0, 0.1, 0.1, instruments=("x:A", "x:C")), frame(1))
    assert world.said("quarantined") == ["portfolio book trades x:A, x:B, the signal is for x:A, x:C"]
    assert len(of(PortfolioMarked, world.out)) == 2


class RefusingLedger(MemoryLedger):
    """A ledger that cannot take what one portfolio did, for as long as it orders something."""

    def record(self, changes: Sequence[Change], acknowledged: Sequence[tuple[str, str]] = ()) -> None:
        if any(change.portfolio == "bad" and change.after.working for change in changes):
            raise ValueError("a number that no column takes")
        super().record(changes, acknowledged)


def test_what_the_ledger_refuses_is_the_failure_of_the_portfolio_whose_it_is() -> None:
    world, whole = World("bad", "good", ledger=RefusingLedger()), World("bad", "good")
    for t in range(6):
        two(whole, t)
        two(world, t)
        world.pass_time(8.0)
    assert world.of("good") == whole.of("good")
    assert world.said("quarantined", "bad") == ["ValueError: a number that no column takes"]
    assert len(of(PortfolioMarked, world.of("bad"))) == 6


# --- no other portfolio, no other universe is slowed


def test_C2_a_thousand_messages_that_wait_hold_up_nobody_else() -> None:
    """A replayed portfolio whose decisions never come: its own frames stay on the bus, and the others go on."""
    world = World("stuck", "good")
    world.give(frame(0), signal(0, portfolio="good"))
    for t in range(1, 1300):
        world.give(frame(t), signal(t, portfolio="good"))
    assert len(of(PortfolioMarked, world.of("good"))) == 1300
    assert len(of(PortfolioMarked, world.of("stuck"))) == 1
    assert len(world.execution.pending()) <= LIMIT + 2, "what waits is bounded"
    for t in range(1300):
        world.give(signal(t, portfolio="stuck"))
    assert [mark.time for mark in of(PortfolioMarked, world.of("stuck"))] == [closes(t) for t in range(1300)]
    assert not world.execution.pending()


def test_frames_that_cannot_be_read_back_are_waited_for() -> None:
    world = World()
    for t in range(LIMIT + 50):
        world.give(frame(t))
    world.past.away = True
    for t in range(LIMIT):
        world.give(signal(t))
    assert "the bus is away" in world.standing.cause
    marked = len(of(PortfolioMarked, world.out))
    assert marked < LIMIT + 50
    world.past.away = False
    world.pass_time(3.0)
    for t in range(LIMIT, LIMIT + 50):
        world.give(signal(t))
    assert [mark.time for mark in of(PortfolioMarked, world.out)] == [closes(t) for t in range(LIMIT + 50)]
    assert not world.execution.pending()


# --- deadlines


def now(world: World, t: int, share: float) -> list[Message]:
    """Let the clock come to a share of the bar that follows bar t."""
    until = closes(t) + timedelta(seconds=60.0 * share)
    return world.pass_time((until - world.clock.now()).total_seconds())


def test_H2_a_decision_that_does_not_come_is_missed_and_recorded() -> None:
    world = World()
    now(world, 0, 0.0)
    world.give(frame(0, live=True), signal(0, 0.5, 0.5))
    now(world, 1, 0.0)
    world.give(frame(1, live=True))
    assert world.standing.awaiting_since == world.clock.now()
    assert not now(world, 1, 0.45), "there is still time"
    out = now(world, 1, 0.6)
    [event] = of(PortfolioEvent, out)
    assert (event.kind, event.time) == ("decision_missed", closes(1))
    assert world.standing.awaiting_since is None
    world.give(signal(1, 0.1, 0.1))
    now(world, 2, 0.0)
    world.give(frame(2, live=True), signal(2, 0.5, 0.5))
    assert not [one for one in of(OrderUpdated, world.out) if one.decision_time == closes(1)], "it came too late"
    assert world.execution.tallies() == {("decision_missed", "book"): 1, ("late_signal", "book"): 1}
    assert of(Transition, world.out)[-1].decision_time == closes(0)
    assert not world.execution.pending()


def test_H2_limits_hold_while_no_decision_comes() -> None:
    """Inference is away for good; the price falls, and the drawdown halts and closes what is open."""
    world = World(limits=RiskLimits(max_drawdown=0.1))
    for t, price in enumerate((100.0, 100.0, 100.0, 70.0, 70.0, 70.0)):
        now(world, t, 0.0)
        world.give(frame(t, price, live=True))
        if t == 0:
            world.give(signal(0, 0.5, 0.5))
        now(world, t, 0.9)
    assert [one.code for one in of(RiskVerdict, world.out)] == ["drawdown_halt"]
    marks = of(PortfolioMarked, world.out)
    assert marks[3].state == "halted"
    assert all(position.quantity == 0.0 for position in marks[-1].positions), "closed, with nobody to decide it"
    assert len(world.said("decision_missed")) == 5


def test_a_replayed_bar_waits_for_ever() -> None:
    world = World()
    world.give(frame(0), frame(1))
    assert not world.pass_time(3600.0)
    world.give(signal(0, 0.5, 0.5))
    assert len(of(PortfolioMarked, world.out)) == 2


def test_a_replay_honours_what_was_missed_commanded_and_quarantined() -> None:
    """The run that is replayed had its failures; the replay has none of its own, and repeats those."""
    live = World()
    decided = {t: signal(t, 0.5 - 0.1 * t, 0.1 * t) for t in range(9)}
    for t in range(9):
        now(live, t, 0.0)
        live.give(frame(t, 100.0 + t, live=True))
        if t == 4:
            live.give(failed_decision(4))
        elif t != 2:
            live.give(decided[t])
        now(live, t, 0.6)
        if t == 5:
            live.give(command("release", 4))
    events = of(PortfolioEvent, live.out)
    assert [event.kind for event in events] == ["decision_missed", "quarantined", "released"]
    replay = World(recorded=events)
    for t in range(9):
        replay.give(frame(t, 100.0 + t), decided[t])
    assert {event_id(one): one for one in replay.out} == {event_id(one): one for one in live.out}


def test_a_replay_leaves_out_the_frame_that_live_could_not_book(fragile: type[FragileVenue]) -> None:
    live = World("bad", venue=fragile)
    for t in range(9):
        live.give(frame(t, 100.0 + t), signal(t, 0.3, 0.3, portfolio="bad"))
        live.pass_time(4.0)
    replay = World("bad", recorded=of(PortfolioEvent, live.out))
    for t in range(9):
        replay.give(frame(t, 100.0 + t), signal(t, 0.3, 0.3, portfolio="bad"))
    assert {event_id(one): one for one in replay.out} == {event_id(one): one for one in live.out}


def test_H2_an_operator_skips_a_decision_once() -> None:
    world = World()
    world.give(frame(0), frame(1))
    world.give(command("skip", 1))
    assert world.standing.awaiting_since is not None, "it was about another bar"
    world.give(command("skip", 0, request="r2"), command("skip", 0, request="r2"))
    assert world.said("decision_missed") == ["skipped by an operator: looked at it"]
    assert world.standing.marked == closes(1)
    assert world.standing.awaiting_since is not None
    assert {where.partition.topic for where in world.execution.pending()} == set()


# --- venues


class PartialVenue(PaperVenue):
    """Fills in two parts, at two prices."""

    def fills(self, bar: Market) -> Sequence[VenueFill]:
        parts = []
        for fill in super().fills(bar):
            for trade, share, price in ((1, 0.25, fill.price * 0.99), (2, 0.75, fill.price * 1.01)):
                parts.append(
                    VenueFill(
                        fill.order_id,
                        trade,
                        fill.instrument,
                        share * fill.quantity,
                        price,
                        share * fill.fee,
                        share * fill.slippage,
                    )
                )
        return parts


def test_H7_several_fills_of_one_order_are_several_fills() -> None:
    world = World(venue=PartialVenue)
    world.give(frame(0), signal(0, 0.5, 0.5), frame(1))
    fills, orders = of(OrderFilled, world.out), of(OrderUpdated, world.out)
    ordered = {order.instrument: order for order in orders}
    assert [order.status for order in orders] == ["working"] * 2 + ["filled"] * 2
    assert len(fills) == len({fill.fill_id for fill in fills}) == 4
    mark = of(PortfolioMarked, world.out)[-1]
    for position in mark.positions:
        mine = [fill for fill in fills if fill.instrument == position.instrument]
        paid = sum(fill.quantity * fill.price for fill in mine)
        quantity = sum(fill.quantity for fill in mine)
        assert quantity == pytest.approx(ordered[position.instrument].quantity, rel=1e-12)
        assert position.quantity == pytest.approx(quantity, rel=1e-12)
        assert position.entry_price == pytest.approx(paid / quantity, rel=1e-12)
    spent = sum(fill.quantity * fill.price + fill.fee for fill in fills)
    assert mark.cash == pytest.approx(100_000.0 - spent, rel=1e-12)


def test_H7_an_order_that_could_not_be_sent_is_sent_until_the_venue_has_it() -> None:
    DistantVenue.away, DistantVenue.got = set(), []
    whole = World("bad", "good")
    world = World("bad", "good", venue=DistantVenue)
    for t in range(6):
        two(whole, t)
        DistantVenue.away = {"bad"} if t in (2, 3) else set()
        two(world, t)
        if t == 3:
            assert "the venue does not answer" in min(world.execution.standings(), key=lambda s: s.portfolio).cause
            assert len(of(PortfolioMarked, world.of("good"))) == 4, "others go on"
    world.pass_time(5.0)
    assert world.of("bad") == whole.of("bad"), "a transient failure of sending is no expiry"
    working = {order.order_id for order in of(OrderUpdated, world.out) if order.status == "working"}
    assert set(DistantVenue.got) == working


def test_H7_an_order_that_was_recorded_and_never_sent_is_sent_after_a_restart() -> None:
    DistantVenue.away, DistantVenue.got = {"book"}, []
    world = World(venue=DistantVenue)
    world.give(frame(0), signal(0, 0.5, 0.5))
    DistantVenue.away = set()
    again = World(venue=DistantVenue, ledger=world.ledger)
    again.give(frame(1))
    assert len(set(DistantVenue.got)) == 2
    assert len(of(OrderFilled, again.out)) == 2


def test_a_correction_of_a_bar_is_no_bar() -> None:
    world, whole = World(), World()
    for t in range(5):
        for each in (world, whole):
            each.give(frame(t), signal(t, 0.3, 0.1 * t))
        world.give(frame(t, 250.0).model_copy(update={"revision": 1}))
    world.give(frame(5, 250.0).model_copy(update={"revision": 1}))
    assert world.out == whole.out


def test_M8_a_frame_or_a_signal_from_the_future_is_refused_and_changes_nothing() -> None:
    world, whole = World(), World()
    for t in range(4):
        for each in (world, whole):
            each.give(frame(t), signal(t, 0.3, 0.1 * t))
        for ahead in (frame(52_000_000), signal(52_000_000, 0.3, 0.3)):
            with pytest.raises(UserError, match="2122"):
                world.execution.handle(ahead, at(99))
    assert world.out == whole.out
    assert not world.execution.pending()


# --- changes of configuration


def test_H1_instruments_in_another_order_keep_their_positions() -> None:
    turned = PAIR.model_copy(update={"instruments": (B, A)})
    world = World()
    world.give(frame(0), signal(0, 0.5, 0.0), frame(1))
    again = World(ledger=world.ledger, universe=turned)
    again.give(signal(1, 0.0, 0.5, instruments=turned.ids), frame(2))
    before, after = (
        {p.instrument: p.quantity for p in of(PortfolioMarked, each.out)[-1].positions} for each in (world, again)
    )
    assert before["x:A"] == after["x:A"] > 0.0
    assert before["x:B"] == after["x:B"] == 0.0
    assert not world.said("quarantined")


def test_H1_a_book_that_holds_what_is_no_longer_traded_is_refused_and_shown() -> None:
    alone = PAIR.model_copy(update={"instruments": (B,)})
    world = World()
    world.give(frame(0), signal(0, 0.5, 0.0), frame(1))
    again = World(ledger=world.ledger, universe=alone)
    again.give(frame(2), frame(3))
    assert not of(PortfolioMarked, again.out)
    assert "the book holds x:A, which its portfolio no longer trades" in again.standing.cause
    assert not again.execution.pending()


def test_H1_a_book_whose_portfolio_is_gone_is_shown() -> None:
    """Renamed, or its file was lost: what it holds is at the venue all the same."""
    world = World("before", "flat")
    world.give(frame(0), signal(0, 0.5, 0.0, portfolio="before"), signal(0, portfolio="flat"), frame(1))
    renamed = World("after", ledger=world.ledger)
    renamed.give(frame(2))
    gone, present = renamed.execution.standings()
    assert (gone.portfolio, gone.quarantined_since) == ("before", closes(1))
    assert "no portfolio has its name" in gone.cause
    assert (present.portfolio, present.marked) == ("after", closes(2))
