"""The contract of the ledger: `check_ledger`. It raises `AssertionError` and needs no test framework."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol

from tradeloop.common.bus.port import Partition
from tradeloop.common.contracts.steps import fresh, refused
from tradeloop.common.messages import Message, OrderFilled, OrderUpdated, PortfolioMarked, PositionMark
from tradeloop.execution.ports import Change, Effects, Ledger, LedgerConflict
from tradeloop.execution.record import BookRecord, Kill, Quarantine


def any_log(topic: str) -> str:
    """The identity of a topic that nobody can tell from another."""
    return ""


class MakeLedger(Protocol):
    """Opens the same storage at every call, as another process does; one that lives in an object gives that object."""

    def __call__(self, identity: Callable[[str], str] = any_log, /) -> Ledger:
        """The ledger, for topics that are the logs that `identity` says."""
        ...


_T0 = datetime(2026, 1, 1, tzinfo=UTC)


def check_ledger(make_ledger: MakeLedger) -> None:
    """Run all of `LEDGER_CHECKS`, on one storage: portfolios, orders and topics get new names at every run."""
    for check in LEDGER_CHECKS:
        check(make_ledger)


def a_new_portfolio_has_an_empty_book(make_ledger: MakeLedger) -> None:
    with closing(make_ledger()) as ledger:
        portfolio = fresh("portfolio")
        for _ in range(2):
            assert book_of(ledger, portfolio) == BookRecord(), "a portfolio that nobody recorded has a book"
        assert ledger.load([]) == {}, "no portfolios have books"


def a_record_comes_back_to_the_last_bit(make_ledger: MakeLedger) -> None:
    portfolio, record = fresh("portfolio"), sample_record()
    with closing(make_ledger()) as ledger:
        ledger.record([Change(portfolio, BookRecord(), record, {"in-1": Effects(orders=record.working)})])
    with closing(make_ledger()) as ledger:
        assert same_record(book_of(ledger, portfolio), record), "a record does not come back to the last bit"


def the_last_record_counts(make_ledger: MakeLedger) -> None:
    portfolio, first = fresh("portfolio"), sample_record()
    second = replace(
        first, revision=2, marked_us=3, decided_us=2, working=(), quarantine=None, killed=None, left_out_us=-1
    )
    third = replace(second, revision=3, decided_us=3, signal=b'{"b": 1}')
    with closing(make_ledger()) as ledger:
        ledger.record([Change(portfolio, BookRecord(), first, {"in-1": Effects()})])
        for before, after in ((first, second), (second, third)):
            ledger.record([Change(portfolio, before, after, {f"in-{after.revision}": Effects()})])
            with closing(make_ledger()) as another:
                assert same_record(book_of(another, portfolio), after), "the book is not as it was recorded last"


def a_quarantine_alone_is_a_record(make_ledger: MakeLedger) -> None:
    portfolio, record = fresh("portfolio"), sample_record()
    released = replace(record, revision=2, quarantine=None)
    held = replace(record, revision=2, quarantine=Quarantine(7, "another cause"))
    with closing(make_ledger()) as ledger, closing(make_ledger()) as another:
        ledger.record([Change(portfolio, BookRecord(), record, {})])
        ledger.record([Change(portfolio, record, released, {})])
        assert book_of(another, portfolio).quarantine is None, "a quarantine that was released is there again"
        refused(
            LedgerConflict,
            lambda: another.record([Change(portfolio, record, held, {})]),
            "a record that knows nothing of a release",
            f"portfolio {portfolio}",
        )
        assert same_record(book_of(ledger, portfolio), released), "a record that was refused changed the book"


def a_record_is_one_above_the_one_before_it(make_ledger: MakeLedger) -> None:
    portfolio, record = fresh("portfolio"), sample_record()
    with closing(make_ledger()) as ledger:
        for wrong in (0, 2):
            after = replace(record, revision=wrong)
            change = Change(portfolio, BookRecord(), after, {})
            refused(AssertionError, partial(ledger.record, [change]), "a record that is not the next", portfolio)
        assert book_of(ledger, portfolio) == BookRecord(), "a record that was refused changed the book"


def portfolios_are_apart(make_ledger: MakeLedger) -> None:
    with closing(make_ledger()) as ledger:
        one, other = fresh("portfolio"), fresh("portfolio")
        ledger.record([Change(one, BookRecord(), sample_record(), {"in-1": Effects(outputs=[sample_mark(1.0)])})])
        assert book_of(ledger, other) == BookRecord(), "a record shows in the book of another portfolio"
        assert not outputs_of(ledger, other, "in-1"), "outputs show in another portfolio that had the same input"
        assert other not in ledger.unsent([other]), "outputs show in another portfolio"


def several_books_are_recorded_and_loaded_at_once(make_ledger: MakeLedger) -> None:
    names = [fresh("portfolio") for _ in range(3)]
    first = {name: replace(sample_record(), decided_us=n) for n, name in enumerate(names)}
    second = {name: replace(record, revision=2, marked_us=7) for name, record in first.items()}
    with closing(make_ledger()) as ledger, closing(make_ledger()) as another:
        effects = {"in-1": Effects(outputs=[sample_mark(1.0)])}
        ledger.record([Change(name, BookRecord(), first[name], effects) for name in names])
        changes = [Change(name, first[name], second[name], {"in-2": effects["in-1"]}) for name in names]
        ledger.record(changes, acknowledged=[(name, "in-1") for name in names[1:]])
        found = another.load([*names, unknown := fresh("portfolio")])
        assert all(same_record(found[name], second[name]) for name in names), "not each book is as it was recorded"
        assert found[unknown] == BookRecord(), "a portfolio that nobody recorded has a book"
        inputs = {name: [one for one, _ in of_name] for name, of_name in another.unsent([*names, unknown]).items()}
        assert inputs == {names[0]: ["in-1", "in-2"], names[1]: ["in-2"], names[2]: ["in-2"]}, (
            f"what has not left is not what was recorded and not acknowledged: {inputs}"
        )


def all_books_are_named(make_ledger: MakeLedger) -> None:
    one, another = fresh("portfolio"), fresh("portfolio")
    with closing(make_ledger()) as ledger:
        for name in (one, another):
            ledger.record([Change(name, BookRecord(), sample_record(), {})])
    with closing(make_ledger()) as again:
        assert {one, another} <= set(again.portfolios()), "a book that was recorded is not named"
        assert fresh("portfolio") not in again.portfolios(), "a book that was never recorded is named"


def of_several_books_all_are_written_or_none(make_ledger: MakeLedger) -> None:
    names = [fresh("portfolio") for _ in range(4)]
    first, kept = sample_record(), (sample_mark(1.0),)
    late, order = replace(first, revision=2), sample_order()
    with closing(make_ledger()) as slow, closing(make_ledger()) as quick:
        for name in names:
            quick.record([Change(name, BookRecord(), first, {"in-1": Effects(outputs=kept)})])
        for moved in names[1:3]:
            quick.record([Change(moved, first, replace(late, marked_us=11), {})])
        effects = {"in-2": Effects(orders=[order], fills=[sample_fill(order)], outputs=[sample_mark(2.0)])}
        changes = [Change(name, first, late, effects) for name in names]
        refused(
            LedgerConflict,
            lambda: slow.record(changes, acknowledged=[(names[0], "in-1")]),
            "a record of books of which another process has gone on with two",
            f"portfolio {names[1]}, {names[2]}",
        )
        assert all(same_record(slow.load(names)[name], first) for name in (names[0], names[3])), (
            "a record that was refused for one book changed another"
        )
        unsent = {name: [one for one, _ in inputs] for name, inputs in slow.unsent(names).items()}
        assert unsent == {name: ["in-1"] for name in names}, "a record that was refused changed what has not left"


def outputs_come_back_the_same_until_they_left(make_ledger: MakeLedger) -> None:
    portfolio, record, [order] = fresh("portfolio"), sample_record(), sample_record().working
    fill = sample_fill(order)
    outputs = [order, fill, sample_mark(0.1 + 0.2)]
    with closing(make_ledger()) as ledger:
        effects = {"in-1": Effects(orders=[order], fills=[fill], outputs=outputs)}
        ledger.record([Change(portfolio, BookRecord(), record, effects)])
        effects = {"in-2": Effects(outputs=[sample_mark(2.0)])}
        ledger.record([Change(portfolio, record, replace(record, revision=2), effects)])
        with closing(make_ledger()) as another:
            again = list(outputs_of(another, portfolio, "in-1"))
        assert again == outputs, "outputs do not come back in their order"
        is_same = [message.encode() for message in again] == [message.encode() for message in outputs]
        assert is_same, "outputs do not come back with the same bytes"
        ledger.acknowledge([(portfolio, "in-1")], {})
        with closing(make_ledger()) as another:
            assert not outputs_of(another, portfolio, "in-1"), "outputs that have left for certain are kept"
            kept = list(outputs_of(another, portfolio, "in-2"))
            assert kept == [sample_mark(2.0)], "outputs were dropped that nobody acknowledged"
        assert not outputs_of(ledger, portfolio, "never seen"), "an input that is unknown has outputs"


def what_has_not_left_comes_in_the_order_of_its_records(make_ledger: MakeLedger) -> None:
    portfolio, record = fresh("portfolio"), BookRecord()
    rounds = (("in-9", "in-1"), ("in-5",), ("in-7", "in-3"))
    with closing(make_ledger()) as ledger:
        for inputs in rounds:
            effects = {one: Effects(outputs=[sample_mark(float(one[3:])), sample_mark(0.5)]) for one in inputs}
            effects["silent"] = Effects()
            after = replace(record, revision=record.revision + 1)
            ledger.record([Change(portfolio, record, after, effects)])
            record = after
        ledger.acknowledge([(portfolio, "in-1")], {})
    with closing(make_ledger()) as ledger:
        found = [(one, list(outputs)) for one, outputs in ledger.unsent([portfolio]).get(portfolio, ())]
        expected = [(one, [sample_mark(float(one[3:])), sample_mark(0.5)]) for one in ("in-9", "in-5", "in-7", "in-3")]
        assert found == expected, f"what has not left comes in another order, or is something else: {found}"


def several_inputs_are_recorded_at_once(make_ledger: MakeLedger) -> None:
    portfolio, record, [order] = fresh("portfolio"), sample_record(), sample_record().working
    filled = order.model_copy(update={"status": "filled", "filled_quantity": order.quantity})
    effects = {
        "in-1": Effects(orders=[order], outputs=[order]),
        "in-2": Effects(orders=[filled], fills=[sample_fill(order)], outputs=[filled, sample_mark(1.0)]),
    }
    with closing(make_ledger()) as ledger:
        ledger.record([Change(portfolio, BookRecord(), record, effects)])
    with closing(make_ledger()) as ledger:
        assert same_record(book_of(ledger, portfolio), record), "the book is not as the last of the inputs left it"
        for input_id, each in effects.items():
            kept = list(outputs_of(ledger, portfolio, input_id))
            assert kept == each.outputs, "an input that was recorded with another has other outputs than its own"
        ledger.acknowledge([(portfolio, "in-1")], {})
        assert not outputs_of(ledger, portfolio, "in-1"), "outputs that have left for certain are kept"
        assert outputs_of(ledger, portfolio, "in-2"), "outputs were dropped that nobody acknowledged"


def acknowledging_again_changes_nothing(make_ledger: MakeLedger) -> None:
    with closing(make_ledger()) as ledger:
        portfolio, partition = fresh("portfolio"), Partition(fresh("topic"), 0)
        effects = {"in-1": Effects(outputs=[sample_mark(1.0)])}
        ledger.record([Change(portfolio, BookRecord(), sample_record(), effects)])
        for _ in range(2):
            ledger.acknowledge([(portfolio, "in-1"), (portfolio, "never seen")], {partition: 3})
        assert not outputs_of(ledger, portfolio, "in-1"), "outputs that have left for certain are kept"
        assert ledger.offsets()[partition] == 3, "an offset that was acknowledged twice is another"


def a_book_that_another_process_went_on_with_is_not_written(make_ledger: MakeLedger) -> None:
    with closing(make_ledger()) as slow, closing(make_ledger()) as quick:
        portfolio, record, later = fresh("portfolio"), sample_record(), BookRecord(revision=1, marked_us=9)
        before = book_of(slow, portfolio)
        quick.record([Change(portfolio, before, record, {"in-1": Effects(orders=record.working)})])
        late = {"in-9": Effects(orders=[sample_order()], outputs=[sample_mark(3.0)])}
        refused(
            LedgerConflict,
            lambda: slow.record([Change(portfolio, before, later, late)]),
            "a record of a book that another process has gone on with",
            f"portfolio {portfolio}",
        )
        assert same_record(book_of(slow, portfolio), record), "a record that was refused changed the book"
        assert not outputs_of(slow, portfolio, "in-9"), "a record that was refused left outputs"
        slow.record([Change(portfolio, record, replace(later, revision=2), {"in-2": Effects()})])
        assert book_of(quick, portfolio).marked_us == 9, "a record of the book as it stands did not go through"


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


def offsets_count_in_the_log_that_they_were_read_from(make_ledger: MakeLedger) -> None:
    topic = fresh("topic")
    partition = Partition(topic, 0)

    def read(log: str, offset: int | None = None) -> int | None:
        with closing(make_ledger(lambda _: log)) as ledger:
            if offset is not None:
                ledger.acknowledge([], {partition: offset})
            return ledger.offsets().get(partition)

    assert read("", 60) == 60, "an offset of a log without a name is not there"
    assert read("old") == 60, "an offset does not count that was stored before logs had names"
    assert read("old", 50) == 60, "an offset went back"
    assert read("new") is None, "an offset of a log that was made anew counts"
    assert read("old") == 60, "asking for the offsets of another log changed them"
    assert read("new", 3) == 3, "the offset of a log that was made anew is not the one that was acknowledged"
    assert read("new", 2) == 3, "an offset went back"
    assert read("old") is None, "an offset of the new log counts in the old one"
    assert read("", 1) == 3, "an offset went back"
    assert read("other") is None, "a log lost its name"


def a_ledger_that_is_there_says_so(make_ledger: MakeLedger) -> None:
    with closing(make_ledger()) as ledger:
        ledger.check()


LEDGER_CHECKS: Sequence[Callable[[MakeLedger], None]] = (
    a_new_portfolio_has_an_empty_book,
    a_record_comes_back_to_the_last_bit,
    the_last_record_counts,
    a_quarantine_alone_is_a_record,
    a_record_is_one_above_the_one_before_it,
    portfolios_are_apart,
    several_books_are_recorded_and_loaded_at_once,
    all_books_are_named,
    of_several_books_all_are_written_or_none,
    outputs_come_back_the_same_until_they_left,
    what_has_not_left_comes_in_the_order_of_its_records,
    several_inputs_are_recorded_at_once,
    acknowledging_again_changes_nothing,
    a_book_that_another_process_went_on_with_is_not_written,
    offsets_never_go_back,
    offsets_count_in_the_log_that_they_were_read_from,
    a_ledger_that_is_there_says_so,
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
    order = sample_order()
    return BookRecord(
        revision=1,
        marked_us=2,
        decided_us=1,
        book={"cash": 0.1 + 0.2, "mark": [float("nan"), 1e-300]},
        reward_state={"ema": 1 / 3, "returns": [1 / 7, 1e-300]},
        signal=b'{"a": "\xc3\xa9"}',
        working=(order,),
        quarantine=Quarantine(since_us=3, cause="it fell: \u00e9"),
        killed=Kill(since_us=5, said="by \u00e9: enough", request="r", flatten=True),
        heeded_us=5,
        live=True,
        left_out_us=4,
    )


def same_record(one: BookRecord, other: BookRecord) -> bool:
    """Whether both are equal to the last bit; a NaN in the book equals itself."""
    return json.dumps(one.book) == json.dumps(other.book) and replace(one, book={}) == replace(other, book={})


def outputs_of(ledger: Ledger, portfolio: str, input_id: str) -> Sequence[Message]:
    """The outputs of one input that may not have left."""
    return dict(ledger.unsent([portfolio]).get(portfolio, ())).get(input_id, ())


def book_of(ledger: Ledger, portfolio: str) -> BookRecord:
    """The book of one portfolio."""
    return ledger.load([portfolio])[portfolio]
