"""Two runs held against each other: what counts as equal, and how a difference is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from libs.cli.tests.runs import make_run
from libs.cli.tests.stacks import World
from tradeloop.cli.replay.report import print_comparison
from tradeloop.cli.report.files import Run
from tradeloop.common.bus.port import Partition
from tradeloop.common.evaluation.comparison import RunComparison
from tradeloop.common.messages import (
    Message,
    OrderFilled,
    OrderUpdated,
    PortfolioEvent,
    PortfolioMarked,
    SignalGenerated,
)
from tradeloop.common.messages.topics import topic_of

LENGTH = 60


@pytest.fixture(scope="module")
def run() -> Run:
    return make_run(LENGTH)


def messages(run: Run) -> list[Message]:
    return [*run.signals, *run.orders, *run.fills, *run.transitions, *run.marks]


def compare(run: Run, replay: Sequence[Message], first: int = 0, last: int = LENGTH - 1) -> RunComparison:
    worlds = World(), World()
    worlds[0].publish(*messages(run))
    worlds[1].publish(*replay)
    close_us = run.bars.close_us
    return RunComparison(worlds[0].bus, worlds[1].bus, [run.portfolio], int(close_us[first]), int(close_us[last]))


def changed(run: Run, kind: type[Message], change: Callable[[Message], Message | None]) -> list[Message]:
    """The run's messages with the fifth of a kind changed, or left out."""
    found, seen = [], 0
    for message in messages(run):
        seen += type(message) is kind
        kept = change(message) if type(message) is kind and seen == 5 else message
        if kept is not None:
            found.append(kept)
            if kept is not message:
                seen += 1
    return found


def test_the_same_messages_are_parity_in_whatever_order_and_however_often(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    parity = compare(run, [*reversed(messages(run)), *run.fills])
    assert parity.holds
    assert parity.equity_difference == 0.0
    print_comparison(parity)
    said = capsys.readouterr().out
    assert "Parity holds: the replay did what live did" in said
    assert [len(each.live) for each in parity.kinds.values()] == [
        LENGTH,
        len(run.orders),
        len(run.fills),
        len(run.transitions),
        LENGTH,
    ]


def test_equity_may_differ_in_its_last_bits(run: Run) -> None:
    def scaled(factor: float) -> RunComparison:
        return compare(
            run,
            changed(run, PortfolioMarked, lambda m: m.model_copy(update={"equity": m.equity * factor})),  # type: ignore[attr-defined]
        )

    assert scaled(1 + 1e-12).holds
    wrong = scaled(1 + 1e-6)
    assert not wrong.holds
    assert wrong.equity_difference == pytest.approx(1e-6, rel=1e-3)
    assert wrong.kinds["equity by bar"].different == {run.marks[4].identity}


@pytest.mark.parametrize(
    ("kind", "change", "counts", "says"),
    [
        (SignalGenerated, lambda m: m.model_copy(update={"targets": (0.5,)}), ("signals", 1, 0, 0), "targets is ("),
        (OrderFilled, lambda m: None, ("fills", 0, 1, 0), ": live has it, the replay has not"),
        (OrderUpdated, lambda m: m.model_copy(update={"order_id": "new"}), ("orders", 0, 1, 1), " has not"),
    ],
)
def test_the_first_difference_is_told_in_words(
    run: Run,
    kind: type[Message],
    change: Callable[[Message], Message | None],
    counts: tuple[str, int, int, int],
    says: str,
) -> None:
    parity = compare(run, changed(run, kind, change))
    name, different, missing, extra = counts
    wrong = parity.kinds[name]
    assert (len(wrong.different), len(wrong.missing), len(wrong.extra)) == (different, missing, extra)
    assert all(each.first is None for other, each in parity.kinds.items() if other != name)
    last = list(parity.lines())[-1]
    assert last.startswith("Parity is broken. The first difference: ")
    assert says in last


def test_a_signal_that_live_never_had_is_no_difference_where_it_missed_the_decision(run: Run) -> None:
    """A process that was down when it was due may never say what it would have decided."""
    live, replay = World(), World()
    absent, late = run.signals[9], run.signals[10]
    live.publish(*(one for one in messages(run) if one is not absent))
    replay.publish(*messages(run))
    close_us = run.bars.close_us
    ends = int(close_us[0]), int(close_us[LENGTH - 1])
    assert not RunComparison(live.bus, replay.bus, [run.portfolio], *ends).holds
    for signal in (absent, late):
        live.publish(
            PortfolioEvent(
                universe=signal.universe,
                portfolio=signal.portfolio,
                time=signal.time,
                kind="decision_missed",
                reason="it came too late",
            )
        )
    parity = RunComparison(live.bus, replay.bus, [run.portfolio], *ends)
    assert parity.holds
    assert len(parity.kinds["signals"].replay) == LENGTH - 1
    said = "Not compared: 1 of the replay's signals, for decisions that live missed without one"
    assert said in parity.lines()


def test_what_lies_outside_the_range_does_not_count(run: Run) -> None:
    """Also not what became of the last decision, on the bar after the range."""
    inside = compare(run, messages(run), 10, 40)
    assert inside.holds
    cut = run.marks[40].time
    replay: list[Message] = [one for one in run.orders if one.decision_time <= cut and one.status == "working"]
    replay += [one for one in run.orders if one.decision_time < cut and one.status != "working"]
    replay += [one for one in run.fills if one.decision_time < cut]
    replay += [one for one in run.transitions if one.decision_time < cut]
    replay += [one for one in run.signals if one.time <= cut]
    replay += [one for one in run.marks if one.time <= cut]
    assert compare(run, replay, 10, 40).holds


def test_what_has_expired_is_not_compared_and_said_so(run: Run) -> None:
    live, replay = World(), World()
    live.publish(*messages(run))
    replay.publish(*messages(run))
    topic = topic_of(SignalGenerated).name
    partition = next(p for p, end in live.bus.end_offsets(topic).items() if end)
    live.bus.drop_before(Partition(topic, partition.number), 20)
    close_us = run.bars.close_us
    parity = RunComparison(live.bus, replay.bus, [run.portfolio], int(close_us[0]), int(close_us[-1]))
    assert parity.holds
    assert len(parity.kinds["signals"].replay) == LENGTH - 20
    expired = run.signals[20].time.isoformat()
    assert f"Not compared: live's signals before {expired}, which Kafka no longer holds" in list(parity.lines())
