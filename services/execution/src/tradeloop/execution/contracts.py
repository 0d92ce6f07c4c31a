"""The contract of the ledger: `check_ledger`. It raises `AssertionError` and needs no test framework."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from tradeloop.common.bus.port import Partition
from tradeloop.common.contracts.steps import fresh, refused
from tradeloop.common.messages import OrderFilled, OrderUpdated, PortfolioMarked, PositionMark
from tradeloop.execution.domain import BookRecord
from tradeloop.execution.ports import Effects, Ledger, LedgerConflict

MakeLedger = Callable[[], Ledger]
"""Opens the same storage at every call, as another process does; one that lives in an object gives that object."""

_T0 = datetime(2026, 1, 1, tzinfo=UTC)


def check_ledger(make_ledger: MakeLedger) -> None:
    """Run all of `LEDGER_CHECKS`, on one storage: portfolios, orders and topics get new names at every run."""
    for check in LEDGER_CHECKS:
        check(make_ledger)


def a_new_portfolio_has_an_empty_book(make_ledger: MakeLedger) -> None:
    with closing(make_ledger()) as ledger:
        portfolio = fresh("portfolio")
        for _ in range(2):
            assert ledger.load(portfolio) == BookRecord(), "a portfolio that nobody recorded has a book"


def a_record_comes_back_to_the_last_bit(make_ledger: MakeLedger) -> None:
    portfolio, record = fresh("portfolio"), sample_record()
    with closing(make_ledger()) as ledger:
        ledger.load(portfolio)
        ledger.record(portfolio, BookRecord(), record, {"in-1": Effects(orders=record.working)})
    with closing(make_ledger()) as ledger:
        assert same_record(ledger.load(portfolio), record), "a record does not come back to the last bit"


def the_last_record_counts(make_ledger: MakeLedger) -> None:
    portfolio, first = fresh("portfolio"), sample_record()
    second = replace(first, marked_us=3, decided_us=2, working=())
    with closing(make_ledger()) as ledger:
        ledger.load(portfolio)
        ledger.record(portfolio, BookRecord(), first, {"in-1": Effects()})
        ledger.record(portfolio, first, second, {"in-2": Effects()})
    with closing(make_ledger()) as ledger:
        assert same_record(ledger.load(portfolio), second), "the book is not as it was recorded last"


def portfolios_are_apart(make_ledger: MakeLedger) -> None:
    with closing(make_ledger()) as ledger:
        one, other = fresh("portfolio"), fresh("portfolio")
        ledger.load(one)
        ledger.load(other)
        ledger.record(one, BookRecord(), sample_record(), {"in-1": Effects(outputs=[sample_mark(1.0)])})
        assert ledger.load(other) == BookRecord(), "a record shows in the book of another portfolio"
        assert not ledger.outputs(other, "in-1"), "outputs show in another portfolio that had the same input"


def outputs_come_back_the_same_until_they_left(make_ledger: MakeLedger) -> None:
    portfolio, record, [order] = fresh("portfolio"), sample_record(), sample_record().working
    fill = sample_fill(order)
    outputs = [order, fill, sample_mark(0.1 + 0.2)]
    with closing(make_ledger()) as ledger:
        ledger.load(portfolio)
        effects = {"in-1": Effects(orders=[order], fills=[fill], outputs=outputs)}
        ledger.record(portfolio, BookRecord(), record, effects)
        ledger.record(portfolio, record, record, {"in-2": Effects(outputs=[sample_mark(2.0)])})
        with closing(make_ledger()) as another:
            again = list(another.outputs(portfolio, "in-1"))
        assert again == outputs, "outputs do not come back in their order"
        is_same = [message.encode() for message in again] == [message.encode() for message in outputs]
        assert is_same, "outputs do not come back with the same bytes"
        ledger.acknowledge([(portfolio, "in-1")], {})
        with closing(make_ledger()) as another:
            assert not another.outputs(portfolio, "in-1"), "outputs that have left for certain are kept"
            kept = list(another.outputs(portfolio, "in-2"))
            assert kept == [sample_mark(2.0)], "outputs were dropped that nobody acknowledged"
        assert not ledger.outputs(portfolio, "never seen"), "an input that is unknown has outputs"


def several_inputs_are_recorded_at_once(make_ledger: MakeLedger) -> None:
    portfolio, record, [order] = fresh("portfolio"), sample_record(), sample_record().working
    filled = order.model_copy(update={"status": "filled", "filled_quantity": order.quantity})
    effects = {
        "in-1": Effects(orders=[order], outputs=[order]),
        "in-2": Effects(orders=[filled], fills=[sample_fill(order)], outputs=[filled, sample_mark(1.0)]),
    }
    with closing(make_ledger()) as ledger:
        ledger.load(portfolio)
        ledger.record(portfolio, BookRecord(), record, effects)
    with closing(make_ledger()) as ledger:
        assert same_record(ledger.load(portfolio), record), "the book is not as the last of the inputs left it"
        for input_id, each in effects.items():
            kept = list(ledger.outputs(portfolio, input_id))
            assert kept == each.outputs, "an input that was recorded with another has other outputs than its own"
        ledger.acknowledge([(portfolio, "in-1")], {})
        assert not ledger.outputs(portfolio, "in-1"), "outputs that have left for certain are kept"
        assert ledger.outputs(portfolio, "in-2"), "outputs were dropped that nobody acknowledged"


def acknowledging_again_changes_nothing(make_ledger: MakeLedger) -> None:
    with closing(make_ledger()) as ledger:
        portfolio, partition = fresh("portfolio"), Partition(fresh("topic"), 0)
        ledger.load(portfolio)
        ledger.record(portfolio, BookRecord(), sample_record(), {"in-1": Effects(outputs=[sample_mark(1.0)])})
        for _ in range(2):
            ledger.acknowledge([(portfolio, "in-1"), (portfolio, "never seen")], {partition: 3})
        assert not ledger.outputs(portfolio, "in-1"), "outputs that have left for certain are kept"
        assert ledger.offsets()[partition] == 3, "an offset that was acknowledged twice is another"


def a_book_that_another_process_went_on_with_is_not_written(make_ledger: MakeLedger) -> None:
    with closing(make_ledger()) as slow, closing(make_ledger()) as quick:
        portfolio, record, later = fresh("portfolio"), sample_record(), BookRecord(marked_us=9)
        before = slow.load(portfolio)
        quick.record(portfolio, before, record, {"in-1": Effects(orders=record.working)})
        late = {"in-9": Effects(orders=[sample_order()], outputs=[sample_mark(3.0)])}
        refused(
            LedgerConflict,
            lambda: slow.record(portfolio, before, later, late),
            "a record of a book that another process has gone on with",
            f"portfolio {portfolio}",
        )
        assert same_record(slow.load(portfolio), record), "a record that was refused changed the book"
        assert not slow.outputs(portfolio, "in-9"), "a record that was refused left outputs"
        slow.record(portfolio, record, later, {"in-2": Effects()})
        assert quick.load(portfolio).marked_us == 9, "a record of the book as it stands did not go through"


def offsets_never_go_back(make_ledger: MakeLedger) -> None:
    with closing(make_ledger()) as ledger:
        topic = fresh("topic")
        first, second = Partition(topic, 0), Partition(topic, 1)
        assert not {first, second} & ledger.offsets().keys(), "there are offsets that nobody acknowledged"
        ledger.acknowledge([], {first: 5, second: 7})
        ledger.acknowledge([], {first: 3, second: 8})
    with closing(make_ledger()) as ledger:
        found = {partition: offset for partition, offset in ledger.offsets().items() if partition.topic == topic}
        assert found == {first: 5, second: 8}, f"offsets are not the highest that were acknowledged: {found}"


LEDGER_CHECKS: Sequence[Callable[[MakeLedger], None]] = (
    a_new_portfolio_has_an_empty_book,
    a_record_comes_back_to_the_last_bit,
    the_last_record_counts,
    portfolios_are_apart,
    outputs_come_back_the_same_until_they_left,
    several_inputs_are_recorded_at_once,
    acknowledging_again_changes_nothing,
    a_book_that_another_process_went_on_with_is_not_written,
    offsets_never_go_back,
)
"""The contract of a ledger, promise by promise: for test runners that want to name each one."""


def sample_order() -> OrderUpdated:
    """A working order with an id of its own."""
    return OrderUpdated(
        universe="u", portfolio="p", account="paper", order_id=fresh("order"), decision_time=_T0 + timedelta(hours=1),
        instrument="x:Y", side="buy", quantity=1.5, status="working",
    )  # fmt: skip


def sample_fill(order: OrderUpdated) -> OrderFilled:
    """A fill of an order, with an id of its own."""
    return OrderFilled(
        universe="u", portfolio="p", account="paper", fill_id=fresh("fill"), order_id=order.order_id,
        decision_time=_T0, time=_T0, instrument="x:Y", side="buy", quantity=1.5, price=0.1 + 0.2, fee=0.01,
        slippage=0.0,
    )  # fmt: skip


def sample_mark(equity: float) -> PortfolioMarked:
    """A portfolio that holds one instrument."""
    position = PositionMark(
        instrument="x:Y",
        quantity=1.0,
        entry_price=1.0,
        mark_price=1.0,
        weight=0.1,
        unrealised_return=0.0,
        holding_bars=1,
    )
    return PortfolioMarked(
        universe="u", portfolio="p", time=_T0, cash=1.0, equity=equity, peak_equity=equity, drawdown=0.0,
        state="active", positions=(position,),
    )  # fmt: skip


def sample_record() -> BookRecord:
    """A record whose numbers no rounding survives, with an order at the venue."""
    return BookRecord(
        marked_us=2,
        decided_us=1,
        book={"cash": 0.1 + 0.2, "mark": [float("nan"), 1e-300]},
        reward_state={"ema": 1 / 3, "returns": [1 / 7, 1e-300]},
        signal=b'{"a": "\xc3\xa9"}',
        working=(sample_order(),),
    )


def same_record(one: BookRecord, other: BookRecord) -> bool:
    """Whether both are equal to the last bit; a NaN in the book equals itself."""
    return json.dumps(one.book) == json.dumps(other.book) and replace(one, book={}) == replace(other, book={})
