"""Execution as a whole: order of effects, redelivery, crashes, the risk gate, the parity with the backtest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from structlog.testing import capture_logs

from tradeloop.common.arrays import Floats
from tradeloop.common.bus.port import LogPosition, Partition
from tradeloop.common.evaluation.backtest import run
from tradeloop.common.market import Bar, BarArrays, Instrument, Timeframe, Universe, align, from_us
from tradeloop.common.messages import (
    BarFrame,
    Message,
    OrderFilled,
    OrderUpdated,
    PortfolioMarked,
    RiskVerdict,
    SignalGenerated,
    Transition,
)
from tradeloop.common.messages.topics import event_id, topic_of
from tradeloop.common.portfolio import Costs, Portfolio, RiskLimits
from tradeloop.common.strategy import Reward, RewardContext, Strategy, TargetPosition, log_return, reward
from tradeloop.execution.adapters.memory_ledger import MemoryLedger
from tradeloop.execution.adapters.paper import PaperVenue
from tradeloop.execution.application import Execution
from tradeloop.execution.domain import BookRecord
from tradeloop.execution.ports import Effects, LedgerConflict, LedgerUnavailable


@reward(version="1")
class Pnl:
    initial_state = {"seen": 0.0, "changes": (0.0,) * 5}  # noqa: RUF012  a mapping of defaults, never written

    def __call__(self, c: RewardContext) -> dict[str, Floats]:
        c.state["seen"][:] = c.state["seen"] + 1.0
        changes = c.state["changes"]
        changes[:, :-1] = changes[:, 1:]
        changes[:, -1] = c.equity / c.equity_prev - 1.0
        return {
            "spread": changes.std(axis=1),
            "pnl": np.log(c.equity / c.equity_prev),
            "age": 1e-6 * c.state["seen"],
            "last": c.features["log_return_1"][:, 0],
        }


STRATEGY = Strategy("test", [log_return(1)], Pnl(), window=1, actions=TargetPosition(no_trade_band=0.02))
A, B = (Instrument(id=f"x:{name}", lot_size=1e-4, tick_size=0.01, taker_bps=3.0) for name in "AB")


def portfolio(**changes: Any) -> Portfolio:
    universe = Universe(name="pair", instruments=(A, B), timeframe=Timeframe.M1)
    return Portfolio(name="book", universe=universe, strategy="test", **changes)


def walk(bars: int, seed: int = 0, scale: float = 2e-3) -> BarArrays:
    """Two random walks; the second misses a tenth of its bars."""
    generator = np.random.default_rng(seed)
    start = 1_700_000_040_000_000
    series = []
    for a in range(2):
        close = 100.0 * np.exp(np.cumsum(generator.normal(0.0, scale, bars)))
        opened = np.r_[100.0, close[:-1]]
        rows = np.flatnonzero((generator.random(bars) > 0.1) | (a == 0) | (np.arange(bars) == 0))
        column = {"open": opened, "close": close, "high": np.maximum(opened, close), "low": np.minimum(opened, close)}
        series.append(
            {"open_us": start + rows * Timeframe.M1.us, **{name: values[rows] for name, values in column.items()}}
        )
    return align(("x:A", "x:B"), Timeframe.M1, series)


def frame(bars: BarArrays, t: int) -> BarFrame:
    present = [a for a in range(2) if bars.present[t, a]]
    return BarFrame(
        universe="pair",
        timeframe=Timeframe.M1,
        open_time=from_us(bars.open_us[t]),
        close_time=from_us(bars.close_us[t]),
        bars=tuple(
            Bar(
                instrument=bars.instruments[a],
                open=bars.open[t, a],
                high=bars.high[t, a],
                low=bars.low[t, a],
                close=bars.close[t, a],
            )
            for a in present
        ),
        missing=tuple(bars.instruments[a] for a in range(2) if a not in present),
    )


def signal(bars: BarArrays, t: int, weights: Sequence[float], hold: bool = False) -> SignalGenerated:
    return SignalGenerated(
        universe="pair",
        portfolio="book",
        time=from_us(bars.close_us[t]),
        instruments=bars.instruments,
        targets=tuple(weights),
        hold=hold,
        features=((0.1 * t,), (0.2 * t,)),
        observation=(float(t), 1.0),
        action=tuple(weights),
        model_version="1",
    )


def at(offset: int) -> LogPosition:
    return LogPosition(Partition("market.bars.v1", 0), offset)


def of(kind: type[Any], messages: Sequence[Message]) -> list[Any]:
    return [message for message in messages if isinstance(message, kind)]


def make(book: Portfolio, ledger: MemoryLedger) -> Execution:
    return Execution([book], lambda _: STRATEGY, PaperVenue, ledger)


def play(execution: Execution, bars: BarArrays, weights: Floats) -> list[Message]:
    """Frames and signals in turn."""
    return play_from(0, execution, bars, weights)


def targets(bars: int, seed: int = 1) -> Floats:
    """Targets that change now and then."""
    generator = np.random.default_rng(seed)
    changes = np.where(generator.random((bars, 2)) < 0.3, generator.uniform(-0.5, 0.5, (bars, 2)), np.nan)
    changes[0] = 0.0
    last = np.maximum.accumulate(np.where(np.isnan(changes), 0, np.arange(bars)[:, None]), axis=0)
    return np.take_along_axis(changes, last, axis=0)


def test_bar_by_bar_equals_the_backtest_to_the_last_bit() -> None:
    bars, weights = walk(400), targets(400)
    out = play(make(portfolio(), MemoryLedger()), bars, weights)
    features = np.stack([np.column_stack([0.1 * np.arange(400), 0.2 * np.arange(400)])], axis=2)
    expected = run(portfolio(), STRATEGY, bars, features, lambda t, _: weights[t : t + 1])
    marks, transitions, fills = of(PortfolioMarked, out), of(Transition, out), of(OrderFilled, out)
    assert [mark.equity for mark in marks] == expected.equity.tolist()
    assert [mark.cash for mark in marks] == expected.cash.tolist()
    assert [transition.reward for transition in transitions] == expected.rewards[1:].tolist()
    assert len(fills) == np.count_nonzero(expected.fill_quantity) > 100
    assert {"spread", "pnl", "age", "last"} == set(transitions[0].components)


def test_the_first_mark_is_the_capital() -> None:
    bars = walk(1)
    out = list(make(portfolio(), MemoryLedger()).handle(frame(bars, 0), at(0)))
    (mark,) = out
    assert isinstance(mark, PortfolioMarked)
    assert (mark.cash, mark.equity, mark.state) == (100_000.0, 100_000.0, "active")
    assert mark.time == from_us(bars.close_us[0])


def test_a_frame_waits_for_the_decision_before_it() -> None:
    bars = walk(4)
    execution = make(portfolio(), MemoryLedger())
    assert len(of(PortfolioMarked, list(execution.handle(frame(bars, 0), at(0))))) == 1
    assert list(execution.handle(frame(bars, 1), at(1))) == []
    assert list(execution.handle(frame(bars, 2), at(2))) == []
    assert set(execution.pending()) == {at(1), at(2)}
    out = list(execution.handle(signal(bars, 0, (0.5, 0.0)), at(0)))
    assert [order.status for order in of(OrderUpdated, out)] == ["working", "filled"]
    assert [mark.time for mark in of(PortfolioMarked, out)] == [from_us(bars.close_us[1])]
    assert set(execution.pending()) == {at(2)}
    (fill,) = of(OrderFilled, out)
    assert fill.time == from_us(bars.open_us[1])
    assert fill.decision_time == from_us(bars.close_us[0])


def test_redelivered_messages_publish_the_same_outputs_until_they_left() -> None:
    bars, weights = walk(6), targets(6)
    execution = make(portfolio(), ledger := MemoryLedger())
    first: dict[str, list[Message]] = {}
    for t in range(6):
        first[f"frame {t}"] = list(execution.handle(frame(bars, t), at(t)))
        first[f"signal {t}"] = list(execution.handle(signal(bars, t, weights[t]), at(t)))
    orders, fills = dict(ledger.orders), dict(ledger.fills)
    for t in range(6):
        assert list(execution.handle(frame(bars, t), at(t))) == first[f"frame {t}"]
        assert list(execution.handle(signal(bars, t, weights[t]), at(t))) == first[f"signal {t}"]
    assert (ledger.orders, ledger.fills) == (orders, fills), "nothing is ordered or booked twice"
    execution.before_commit({})
    assert list(execution.handle(frame(bars, 5), at(5))) == []


@pytest.mark.parametrize("stop", range(0, 24, 3))
def test_a_restart_anywhere_changes_nothing(stop: int) -> None:
    bars, weights = walk(12), targets(12)
    whole = play(make(portfolio(), MemoryLedger()), bars, weights)
    inputs = [message for t in range(12) for message in (frame(bars, t), signal(bars, t, weights[t]))]
    ledger = MemoryLedger()
    execution = make(portfolio(), ledger)
    out: list[Message] = []
    for step in range(24):
        if step == stop:  # a new process, the same ledger; the last input comes again
            execution = make(portfolio(), ledger)
            again = list(execution.handle(inputs[step - 1], at(0))) if step else []
            assert all(message in out for message in again)
        out += execution.handle(inputs[step], at(0))
    assert out == whole


@reward(version="2")
class Wider:
    """The memory of `Pnl`, with a longer row."""

    initial_state = {"seen": 0.0, "changes": (0.0,) * 6}  # noqa: RUF012  a mapping of defaults, never written

    def __call__(self, c: RewardContext) -> Floats:
        c.state["seen"][:] = c.state["seen"] + 1.0
        return c.state["seen"].copy()


def test_a_reward_that_remembers_something_else_begins_anew_and_says_so() -> None:
    bars, weights, ledger = walk(6), targets(6), MemoryLedger()
    play(make(portfolio(), ledger), bars.slice(0, 4), weights)
    changed = replace_reward(STRATEGY, Wider())
    with capture_logs() as logs:
        out = play_from(4, Execution([portfolio()], lambda _: changed, PaperVenue, ledger), bars, weights)
    assert [one.reward for one in of(Transition, out)] == [1.0, 2.0]
    warnings = [entry["event"] for entry in logs if entry["log_level"] == "warning"]
    assert warnings == ["the reward remembers something else now, and begins anew"]


def replace_reward(strategy: Strategy, other: Reward) -> Strategy:
    return Strategy(strategy.name, strategy.features, other, window=strategy.window, actions=strategy.actions)


def play_from(start: int, execution: Execution, bars: BarArrays, weights: Floats) -> list[Message]:
    out: list[Message] = []
    for t in range(start, len(bars)):
        out += execution.handle(frame(bars, t), at(t))
        out += execution.handle(signal(bars, t, weights[t]), at(t))
    return out


def test_a_ledger_that_is_away_leaves_the_book_as_it_was() -> None:
    class Flaky(MemoryLedger):
        away = False

        def record(self, portfolio: str, before: BookRecord, after: BookRecord, effects: Mapping[str, Effects]) -> None:
            if self.away:
                raise LedgerUnavailable("gone for lunch")
            super().record(portfolio, before, after, effects)

        def offsets(self) -> Mapping[Partition, int]:
            if self.away:
                raise LedgerUnavailable("gone for lunch")
            return super().offsets()

    bars, weights = walk(8), targets(8)
    whole = play(make(portfolio(), MemoryLedger()), bars, weights)
    ledger = Flaky()
    execution = make(portfolio(), ledger)
    out: list[Message] = []
    for t in range(8):
        for message in (frame(bars, t), signal(bars, t, weights[t])):
            ledger.away = True
            with pytest.raises(LedgerUnavailable):
                execution.handle(message, at(t))
            with pytest.raises(LedgerUnavailable):
                execution.not_ready()
            ledger.away = False
            assert not execution.not_ready()
            out += execution.handle(message, at(t))
    assert out == whole


class Counted(MemoryLedger):
    """Counts its transactions, and the working orders that each left."""

    def __init__(self) -> None:
        super().__init__()
        self.working: list[int] = []

    def record(self, portfolio: str, before: BookRecord, after: BookRecord, effects: Mapping[str, Effects]) -> None:
        super().record(portfolio, before, after, effects)
        self.working.append(len(after.working))


class OutsideVenue(PaperVenue):
    """Notes for each order that leaves whether the ledger has it."""

    outside = True
    recorded: ClassVar[list[bool]] = []
    ledger: ClassVar[Counted]

    def submit(self, orders: Sequence[OrderUpdated]) -> None:
        self.recorded.extend(order.order_id in self.ledger.orders for order in orders)
        super().submit(orders)


@pytest.mark.parametrize("outside", [False, True])
def test_frames_that_wait_are_recorded_with_the_decision_before_them_unless_orders_leave(outside: bool) -> None:
    bars, weights = walk(40), targets(40)
    whole = play(make(portfolio(), MemoryLedger()), bars, weights)
    OutsideVenue.recorded, OutsideVenue.ledger = [], Counted()
    ledger = OutsideVenue.ledger
    execution = Execution([portfolio()], lambda _: STRATEGY, OutsideVenue if outside else PaperVenue, ledger)
    out = [output for t in range(40) for output in execution.handle(frame(bars, t), at(t))]
    for t in range(39):
        out += execution.handle(signal(bars, t, weights[t]), at(t))
    assert out == whole[: len(out)]
    assert [mark.time for mark in of(PortfolioMarked, out)] == [from_us(close_us) for close_us in bars.close_us]
    if outside:
        assert all(OutsideVenue.recorded)
        assert len(OutsideVenue.recorded) == len(of_status(out, "working")) > 20
        assert len(ledger.working) > 40 + 10
    else:
        assert ledger.working == [0] * 40, "the first frame, then a decision with the next frame each"


@pytest.mark.parametrize("stop", range(1, 12))
def test_a_restart_in_the_midst_of_waiting_frames_changes_nothing(stop: int) -> None:
    bars, weights = walk(12), targets(12)
    whole = play(make(portfolio(), MemoryLedger()), bars, weights)
    ledger = MemoryLedger()
    execution = make(portfolio(), ledger)
    out = [output for t in range(12) for output in execution.handle(frame(bars, t), at(t))]
    for t in range(12):
        if t == stop:  # a new process gets what was not committed: all frames, and the signal before this one
            execution = make(portfolio(), ledger)
            again = [output for s in range(12) for output in execution.handle(frame(bars, s), at(s))]
            again += execution.handle(signal(bars, t - 1, weights[t - 1]), at(t - 1))
            assert all(message in out for message in again)
        out += execution.handle(signal(bars, t, weights[t]), at(t))
    assert out == whole


def test_order_ids_follow_from_the_decision() -> None:
    bars, weights = walk(20), targets(20)
    first = of(OrderUpdated, play(make(portfolio(), MemoryLedger()), bars, weights))
    second = of(OrderUpdated, play(make(portfolio(), MemoryLedger()), bars, weights))
    other = of(OrderUpdated, play(make(portfolio(account="other"), MemoryLedger()), bars, weights))
    assert [order.order_id for order in first] == [order.order_id for order in second]
    assert not {order.order_id for order in first} & {order.order_id for order in other}


def test_to_hold_orders_nothing_and_earns_nothing() -> None:
    bars = walk(3)
    execution = make(portfolio(), MemoryLedger())
    out: list[Message] = []
    for t in range(3):
        out += execution.handle(frame(bars, t), at(t))
        out += execution.handle(signal(bars, t, (0.0, 0.0), hold=True), at(t))
    assert [type(message) for message in out] == [PortfolioMarked] * 3


def test_an_instrument_without_a_bar_leaves_its_order_unfilled() -> None:
    bars = walk(2)
    bars = replace(bars, present=np.array([[True, True], [True, False]]))
    execution = make(portfolio(), MemoryLedger())
    execution.handle(frame(bars, 0), at(0))
    out = list(execution.handle(signal(bars, 0, (0.4, 0.4)), at(0))) + list(execution.handle(frame(bars, 1), at(1)))
    final = {order.instrument: order.status for order in of(OrderUpdated, out)}
    assert final == {"x:A": "filled", "x:B": "expired"}
    assert len(of(OrderFilled, out)) == 1


@pytest.mark.parametrize(
    ("limits", "weights", "code", "limit"),
    [
        (RiskLimits(max_position=0.3), (0.5, 0.0), "max_position", 0.3),
        (RiskLimits(max_order_notional=0.2), (0.5, 0.0), "max_order_notional", 0.2),
        (RiskLimits(max_leverage=0.6), (0.4, 0.4), "max_leverage", 0.6),
    ],
)
def test_the_gate_denies_with_a_stable_code_and_the_measured_value(
    limits: RiskLimits, weights: tuple[float, float], code: str, limit: float
) -> None:
    bars = walk(2)
    execution = make(portfolio(limits=limits), MemoryLedger())
    execution.handle(frame(bars, 0), at(0))
    out = list(execution.handle(signal(bars, 0, weights), at(0)))
    verdict = of(RiskVerdict, out)[0]
    assert (verdict.code, verdict.limit) == (code, limit)
    assert verdict.measured > limit
    assert not [order for order in of(OrderUpdated, out) if order.instrument == verdict.instrument]


def test_a_denial_measures_what_the_gate_measured() -> None:
    """One instrument is stale: the leverage of the other two counts, not that of all targets."""
    bars = walk(3)
    bars = replace(bars, present=np.array([[True, True], [True, True], [True, False]]))
    execution = make(portfolio(limits=RiskLimits(max_leverage=0.5)), MemoryLedger())
    execution.handle(frame(bars, 0), at(0))
    execution.handle(signal(bars, 0, (0.0, 0.3)), at(0))
    for t, weights in ((1, (0.0, 0.3)), (2, (0.35, 0.1))):
        execution.handle(frame(bars, t), at(t))
        out = list(execution.handle(signal(bars, t, weights), at(t)))
    stale, gross = sorted(of(RiskVerdict, out), key=lambda verdict: verdict.code, reverse=True)
    assert (stale.code, stale.instrument) == ("stale_price", "x:B")
    assert (gross.code, gross.instrument, gross.limit) == ("max_leverage", "x:A", 0.5)
    assert gross.measured == pytest.approx(0.65, abs=0.01), "0.35 is wanted of one, 0.3 is held of the other"
    assert gross.text == f"gross position as a multiple of equity: {gross.measured:.6g}, limit 0.5"


def test_a_flip_that_is_too_large_closes_the_position_and_says_so() -> None:
    bars = walk(2)
    execution = make(portfolio(limits=RiskLimits(max_order_notional=0.7)), MemoryLedger())
    out: list[Message] = []
    for t, weight in enumerate((0.5, -0.5)):
        out = [*execution.handle(frame(bars, t), at(t)), *execution.handle(signal(bars, t, (weight, 0.0)), at(t))]
    (mark,), (order,), (verdict,) = of(PortfolioMarked, out), of_status(out, "working"), of(RiskVerdict, out)
    assert (order.side, order.quantity) == ("sell", mark.positions[0].quantity)
    assert (verdict.code, verdict.limit) == ("max_order_notional", 0.7)
    assert verdict.measured == pytest.approx(1.0, abs=0.01)
    assert verdict.text.endswith(", limit 0.7; closing the position instead")


def of_status(out: Sequence[Message], status: str) -> list[OrderUpdated]:
    return [order for order in of(OrderUpdated, out) if order.status == status]


def test_what_only_reduces_a_position_is_never_too_large() -> None:
    bars = walk(3)
    execution = make(portfolio(limits=RiskLimits(max_order_notional=0.3)), MemoryLedger())
    out: list[Message] = []
    for t, weight in enumerate((0.25, 0.5, 0.0)):  # two orders of a quarter each, then one of a half
        out += execution.handle(frame(bars, t), at(t))
        out += execution.handle(signal(bars, t, (weight, 0.0)), at(t))
    assert [order.side for order in of(OrderUpdated, out) if order.status == "working"] == ["buy", "buy", "sell"]
    assert not of(RiskVerdict, out)


def test_a_stale_price_is_denied() -> None:
    bars = walk(3)
    bars = replace(bars, present=np.array([[True, True], [True, False], [True, False]]))
    execution = make(portfolio(), MemoryLedger())
    execution.handle(frame(bars, 0), at(0))
    execution.handle(signal(bars, 0, (0.0, 0.0)), at(0))
    execution.handle(frame(bars, 1), at(1))
    out = list(execution.handle(signal(bars, 1, (0.0, 0.4)), at(1)))
    (verdict,) = out
    assert isinstance(verdict, RiskVerdict)
    assert (verdict.code, verdict.instrument, verdict.measured, verdict.limit) == ("stale_price", "x:B", 1.0, 0.0)


def test_a_drawdown_beyond_the_limit_flattens_and_halts() -> None:
    bars = walk(60, scale=3e-2)
    book = portfolio(limits=RiskLimits(max_drawdown=0.05), costs=Costs(slippage_bps=0.0))
    out = play(make(book, MemoryLedger()), bars, np.tile([0.5, 0.5], (60, 1)))
    halts = [verdict for verdict in of(RiskVerdict, out) if verdict.code == "drawdown_halt"]
    assert len(halts) == 1
    assert halts[0].measured >= halts[0].limit == 0.05
    marks = of(PortfolioMarked, out)
    halted = [mark for mark in marks if mark.state == "halted"]
    assert halted[0].time == halts[0].time
    assert all(position.quantity == 0.0 for position in marks[-1].positions)
    assert [t.terminated for t in of(Transition, out)].count(True) == 1
    assert any(verdict.code == "halted" for verdict in of(RiskVerdict, out)), "entries are denied from then on"


def test_signals_that_do_not_fit_are_refused() -> None:
    bars = walk(3)
    execution = make(portfolio(), MemoryLedger())
    execution.handle(frame(bars, 0), at(0))
    wrong = signal(bars, 0, (0.1, 0.1)).model_copy(update={"instruments": ("x:A", "x:C")})
    with pytest.raises(ValueError, match="the signal is for"):
        execution.handle(wrong, at(0))
    assert of(OrderUpdated, list(execution.handle(signal(bars, 0, (0.1, 0.1)), at(0)))), "the book is unharmed"


def test_signals_that_come_before_their_frames_wait_for_them() -> None:
    bars, weights = walk(6), targets(6)
    whole = play(make(portfolio(), MemoryLedger()), bars, weights)
    execution = make(portfolio(), MemoryLedger())
    out: list[Message] = []
    for t in range(6):
        out += execution.handle(signal(bars, t, weights[t]), at(t))
    assert out == []
    assert len(execution.pending()) == 6
    for t in range(6):
        out += execution.handle(frame(bars, t), at(t))
    assert out == whole
    assert not execution.pending()


def test_a_signal_for_a_time_that_is_no_bar_is_let_go() -> None:
    bars, weights = walk(3), targets(3)
    execution = make(portfolio(), MemoryLedger())
    stray = signal(bars, 1, weights[1]).model_copy(update={"time": from_us(bars.close_us[1] - 1)})
    execution.handle(stray, at(7))
    assert len(execution.pending()) == 1
    play(execution, bars, weights)
    assert not execution.pending()


def test_two_processes_that_own_one_book_do_not_both_write_it() -> None:
    bars, weights = walk(8), targets(8)
    whole = play(make(portfolio(), MemoryLedger()), bars, weights)
    ledger = MemoryLedger()
    inputs = [message for t in range(8) for message in (frame(bars, t), signal(bars, t, weights[t]))]
    stale, owner = make(portfolio(), ledger), make(portfolio(), ledger)
    for message in inputs[:6]:
        stale.handle(message, at(0))
    out: list[Message] = []
    for message in inputs[:10]:
        out += owner.handle(message, at(0))
    with pytest.raises(LedgerConflict):
        stale.handle(inputs[6], at(0))
    assert list(stale.handle(inputs[6], at(0))) == list(ledger.outputs("book", event_id(inputs[6])))
    for message in inputs[10:]:
        out += owner.handle(message, at(0))
    assert out == whole


def test_a_partition_that_was_with_another_process_goes_on_where_that_one_stood() -> None:
    bars, weights = walk(9), targets(9)
    whole = play(make(portfolio(), MemoryLedger()), bars, weights)
    inputs = [message for t in range(9) for message in (frame(bars, t), signal(bars, t, weights[t]))]
    ledger = MemoryLedger()
    here, there = make(portfolio(), ledger), make(portfolio(), ledger)
    out = [output for message in inputs[:7] for output in here.handle(message, at(0))]
    here.revoked()
    out += [output for message in inputs[7:12] for output in there.handle(message, at(0))]
    there.revoked()
    out += [output for message in inputs[12:] for output in here.handle(message, at(0))]
    assert out == whole


def owns(key: str) -> bool:
    return True


def test_a_ledger_older_than_what_was_committed_is_brought_up_to_date() -> None:
    frames, signals = (Partition(topic_of(kind).name, 3) for kind in (BarFrame, SignalGenerated))
    ledger = MemoryLedger()
    execution = make(portfolio(), ledger)
    execution.before_commit({frames: 40, signals: 39})
    assert execution.assigned({frames: 40, signals: 39}, owns) == {}
    assert execution.assigned({frames: 41, signals: 39}, owns) == {frames: 40}
    assert execution.assigned({frames: 7}, owns) == {}, "the group stands before the ledger: messages come again"
    lost = make(portfolio(), MemoryLedger())
    assert lost.assigned({frames: 41, signals: 39}, owns) == {frames: 0, signals: 0}
    assert lost.assigned({}, owns) == {}, "a group that is new begins where it wants"


def test_other_universes_timeframes_and_portfolios_are_ignored() -> None:
    bars = walk(1)
    execution = make(portfolio(), MemoryLedger())
    assert list(execution.handle(frame(bars, 0).model_copy(update={"universe": "other"}), at(0))) == []
    assert list(execution.handle(frame(bars, 0).model_copy(update={"timeframe": Timeframe.H1}), at(0))) == []
    assert list(execution.handle(signal(bars, 0, (0.0, 0.0)).model_copy(update={"portfolio": "x"}), at(0))) == []
