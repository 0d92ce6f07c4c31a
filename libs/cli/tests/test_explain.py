"""`tradeloop explain` where nothing was traded, or not all is known: it says why, and guesses nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tradeloop.cli.explain.chain import Explained
from tradeloop.cli.explain.evidence import Evidence
from tradeloop.cli.explain.subject import subject_at, subject_of_id, with_portfolio
from tradeloop.cli.main import main
from tradeloop.cli.report.messages import MESSAGES, read_messages, write_messages
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.errors import UserError
from tradeloop.common.market import Bar, Instrument, Timeframe, Universe
from tradeloop.common.messages import (
    BarFrame,
    FeaturesComputed,
    Message,
    OrderFilled,
    OrderUpdated,
    PortfolioEvent,
    PortfolioMarked,
    PositionMark,
    RiskVerdict,
    ServiceStarted,
    SignalGenerated,
)
from tradeloop.common.messages.topics import SERVICE_TOPICS, derived_id, specs, topic_of
from tradeloop.common.portfolio import Portfolio, RiskLimits, portfolio_yaml
from tradeloop.common.runtime.headers import trace_id_of
from tradeloop.common.runtime.parts import digest_of
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.readback import partition_of

T0 = datetime(2024, 1, 31, 14, 5, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
BTC = "binance:BTC/USDT"
UNIVERSE = Universe(
    name="u", timeframe=Timeframe.M1, instruments=(Instrument(id=BTC, lot_size=0.5, min_notional=10.0),)
)
BOOK = Portfolio(name="p", universe=UNIVERSE, strategy="example")
WHERE: Any = {"universe": "u", "portfolio": "p"}


class Bus:
    """A bus with what was published about a bar or two."""

    def __init__(self) -> None:
        self.bus = MemoryBus()
        self.bus.create_topics(specs(SERVICE_TOPICS))
        self.evidence = Evidence(self.bus)

    def say(self, *messages: Message, manifest: str = "") -> None:
        producer = self.bus.producer()
        for message in messages:
            publish(producer, message, "test", manifest=manifest)
        self.evidence = Evidence(self.bus)

    def at(self, time: datetime = T0, portfolio: Portfolio | None = BOOK) -> Explained:
        return Explained(self.evidence, subject_at(self.evidence, "p", time), portfolio)


def frame(time: datetime = T0, **more: Any) -> BarFrame:
    bar = Bar(instrument=BTC, open=99.0, high=101.0, low=98.0, close=100.0)
    known: dict[str, Any] = {"bars": (bar,), "live": True} | more
    return BarFrame(universe="u", timeframe=Timeframe.M1, open_time=time - MINUTE, close_time=time, **known)


def mark(time: datetime = T0, position: float = 0.0, **more: Any) -> PortfolioMarked:
    known: dict[str, Any] = {"cash": 1e5, "equity": 1e5, "peak_equity": 1e5, "drawdown": 0.0, "state": "active"} | more
    held = PositionMark(
        instrument=BTC,
        quantity=position,
        entry_price=100.0 if position else 0.0,
        mark_price=100.0,
        weight=position * 100.0 / 1e5,
        unrealised_return=0.0,
        holding_bars=0,
    )
    return PortfolioMarked(**WHERE, time=time, positions=(held,), **known)


def signal(time: datetime = T0, target: float = 0.0, **more: Any) -> SignalGenerated:
    return SignalGenerated(**WHERE, time=time, instruments=(BTC,), targets=(target,), **more)


def event(kind: Any, reason: str, time: datetime = T0, **more: Any) -> PortfolioEvent:
    return PortfolioEvent(**WHERE, time=time, kind=kind, reason=reason, **more)


NOTHING: list[tuple[list[Message], str]] = [
    ([mark(), signal(hold=True, reason="warming_up")], "the decision is to hold, warming up"),
    ([mark(), signal(hold=True, reason="error", error="it burnt")], "the decision is to hold, error it burnt"),
    ([mark(), event("decision_missed", "no signal within 30 s")], "the decision was missed: no signal within 30 s"),
    (
        [mark(), signal(target=1.0), event("quarantined", "a NaN", T0 - MINUTE)],
        "the portfolio is in quarantine since the bar of 2024-01-31 14:04 UTC: a NaN",
    ),
    (
        [mark(), signal(target=1.0), event("killed", "by ops: mad", T0 - MINUTE)],
        "the portfolio is killed since the bar of 2024-01-31 14:04 UTC, by ops: mad",
    ),
    (
        [mark(), signal(target=0.01), event("killed", "by ops", T0 - MINUTE), event("resumed", "by ops: well")],
        f"{BTC}: the target is within the no-trade band around the present weight",
    ),
    ([event("frame_failed", "no price")], "execution could not book the bar: no price"),
    (
        [
            mark(state="halted", drawdown=0.6),
            signal(target=1.0),
            RiskVerdict(**WHERE, time=T0, code="drawdown_halt", measured=0.6, limit=0.5, text="drawdown: 0.6"),
        ],
        "the portfolio is halted by drawdown_halt: drawdown: 0.6",
    ),
    ([mark(), signal(target=0.01)], f"{BTC}: the target is within the no-trade band around the present weight"),
    ([mark(position=500.0), signal(target=0.5, hidden=(BTC,))], f"{BTC}: it is left as it is"),
    ([mark()], "there is no decision, not on the bus, which holds all that inference.signals.v1 ever had: it was not"),
    ([], "execution has not booked this bar"),
]


@pytest.mark.parametrize(("published", "why"), NOTHING, ids=[why[:40] for _, why in NOTHING])
def test_why_nothing_was_traded(published: list[Message], why: str) -> None:
    stand = Bus()
    stand.say(event("quarantined", "long ago", T0 - 9 * MINUTE), event("released", "mended", T0 - 8 * MINUTE))
    stand.say(frame(), *published)
    explained = stand.at()
    assert explained.outcome.startswith(f"nothing was ordered: {why}")
    text = "\n".join(explained.words)
    assert explained.outcome in text
    assert json.loads(json.dumps(explained.described))["outcome"] == explained.outcome


def test_a_decision_that_was_missed_has_its_id_too() -> None:
    stand = Bus()
    stand.say(frame(), mark(), event("decision_missed", "late"))
    wanted = derived_id(topic_of(SignalGenerated).name, "p", T0.isoformat())
    subject = subject_of_id(stand.evidence, wanted)
    assert (subject.portfolio, subject.time) == ("p", T0)
    assert "missed: late" in "\n".join(Explained(stand.evidence, subject, None).words)


def test_a_kill_after_the_decision_explains_what_was_cancelled_and_what_closes() -> None:
    stand = Bus()
    sent, closes = derived_id("sent"), derived_id("closes")
    known: dict[str, Any] = {**WHERE, "account": "a", "decision_time": T0, "instrument": BTC}
    order = OrderUpdated(**known, order_id=sent, side="buy", quantity=500.0, status="working")
    cancelled = order.model_copy(update={"status": "cancelled"})
    closing = OrderUpdated(**known, order_id=closes, side="sell", quantity=100.0, status="working")
    killed = event("killed", "by ops: mad", T0 + timedelta(microseconds=1), flatten=True, orders=(sent, closes))
    stand.say(frame(), mark(position=100.0), signal(target=0.6), order, killed, cancelled, closing)
    stand.say(frame(T0 + MINUTE), mark(T0 + MINUTE))
    loose = BOOK.model_copy(update={"limits": RiskLimits(max_position=1.0, max_leverage=1.0, max_order_notional=1.0)})
    explained = stand.at(portfolio=loose)
    facts: Any = explained.described
    [row] = facts["risk"]["sizing"]
    assert (row["ordered"], row["agrees"]) == (500.0, True)
    text = "\n".join(explained.words)
    assert f"buy 500 {BTC}: cancelled: killed by ops: mad" in text
    assert f"sell 100 {BTC}: working: the next bar has not come, or is not booked, to close the position" in text
    assert "none: before the next bar the portfolio was killed by ops: mad" in text
    held = stand.at(T0 + MINUTE, loose)
    assert "not taken: killed since the bar of 2024-01-31 14:05 UTC, by ops: mad; positions are closed" in "\n".join(
        held.words
    )


def test_what_is_gone_from_the_bus_is_said() -> None:
    stand = Bus()
    order = OrderUpdated(
        **WHERE, account="a", order_id=derived_id("o"), decision_time=T0, instrument=BTC, side="buy", quantity=1.0,
        status="working",
    )  # fmt: skip
    stand.say(frame(), mark(), signal(target=1.0), order, frame(T0 + MINUTE), mark(T0 + MINUTE))
    for kind in (BarFrame, SignalGenerated, PortfolioMarked):
        place = partition_of(stand.bus, topic_of(kind).name, "u")
        stand.bus.drop_before(place, stand.bus.end_offsets(place.topic)[place])
    stand.evidence = Evidence(stand.bus)
    explained = Explained(stand.evidence, subject_of_id(stand.evidence, order.order_id), BOOK)
    facts: Any = explained.described
    gone = "not on the bus: the first {} records of its partition of {}, kept {} days, are gone"
    assert facts["bar"]["absent"] == gone.format(2, "market.bars.v1", 30)
    assert facts["decision"]["absent"] == gone.format(1, "inference.signals.v1", 7)
    assert facts["risk"]["absent"] == gone.format(2, "execution.portfolio.v1", 7)
    assert facts["features"]["absent"].endswith("preprocess.features.v1 ever had: it was not published")
    assert explained.outcome == f"buy 1 {BTC}: working"


def test_gaps_corrections_and_what_is_not_known_yet_are_shown() -> None:
    stand = Bus()
    unknown = FeaturesComputed.of(UNIVERSE, "fs", ("a", "b"), T0, [[1.5, float("nan")]])
    late = frame(revision=1, bars=(Bar(instrument=BTC, open=99.0, high=102.0, low=98.0, close=101.0),))
    stand.say(frame(bars=(), missing=(BTC,), catches_up=True), unknown, mark(), signal(hold=True), late)
    text = "\n".join(stand.at().words)
    assert f"no bar: {BTC}" in text
    assert "filling a hole" in text
    assert "corrected later, revision 1" in text
    assert "a 1.5, b not known yet" in text
    facts: Any = stand.at().described
    assert facts["features"]["unknown"] == {BTC: ["b"]}


def test_a_stale_price_is_counted_from_the_frames() -> None:
    stand = Bus()
    times = [T0 - n * MINUTE for n in (3, 2, 1, 0)]
    gap: dict[str, Any] = {"bars": (), "missing": (BTC,)}
    stand.say(frame(times[0]), *(frame(time, **gap) for time in times[1:]), mark(), signal(target=1.0))
    facts: Any = stand.at().described
    [row] = facts["risk"]["sizing"]
    [check] = [each for each in row["checks"] if each["name"] == "stale_price"]
    assert (check["measured"], check["limit"], row["code"], row["quantity"]) == (3.0, 0.0, "stale_price", 0.0)


def test_a_time_between_closes_is_taken_for_the_one_before() -> None:
    stand = Bus()
    stand.say(frame(), mark(), frame(T0 + MINUTE), mark(T0 + MINUTE))
    subject = subject_at(stand.evidence, "p", T0 + timedelta(seconds=30))
    assert subject.time == T0
    assert subject.remark == (
        "no bar closed at 2024-01-31T14:05:30+00:00: the last before it at 2024-01-31T14:05:00+00:00, the next at "
        "2024-01-31T14:06:00+00:00"
    )
    with pytest.raises(UserError, match="the first that is known closed at 2024-01-31T14:05:00"):
        subject_at(stand.evidence, "p", T0 - MINUTE)
    with pytest.raises(UserError, match="no portfolio q is known to the bus; there is p"):
        subject_at(stand.evidence, "q", T0)


def test_an_id_of_a_bar_needs_a_portfolio_where_there_are_several() -> None:
    stand = Bus()
    stand.say(frame(), mark(), mark().model_copy(update={"portfolio": "q"}))
    for wanted in (frame().event_id("market.bars.v1"), trace_id_of(mark().trace)):
        subject = subject_of_id(stand.evidence, wanted.upper())
        with pytest.raises(UserError, match="name one with --portfolio; there is p, q"):
            with_portfolio(stand.evidence, subject, None)
        assert with_portfolio(stand.evidence, subject, "q").portfolio == "q"
        with pytest.raises(UserError, match="there is p, q"):
            with_portfolio(stand.evidence, subject, "r")
    own = subject_of_id(stand.evidence, mark().event_id("execution.portfolio.v1"))
    with pytest.raises(UserError, match="is of portfolio p, and not of q"):
        with_portfolio(stand.evidence, own, "q")


def test_another_file_of_the_portfolio_than_was_traded_is_said() -> None:
    stand = Bus()
    other = BOOK.model_copy(update={"capital": 5.0})
    started = ServiceStarted(
        service="execution", manifest="m", started=T0, instance="h:1", version="1", commit="c", packages="k",
        settings="s", parts={"portfolios": (f"p={digest_of(other)}",)},
    )  # fmt: skip
    stand.say(started)
    stand.say(frame(), mark(), signal(target=0.01), manifest="m")
    facts: Any = stand.at().described
    assert "the portfolio's file is not the one that was traded" in facts["risk"]["configured_otherwise"]
    assert "configured_otherwise" not in stand.at(portfolio=other).facts("risk")
    assert "execution 1, commit c, settings s (m)" in "\n".join(stand.at().words)
    assert "name the folder of the portfolios' files" in "\n".join(stand.at(portfolio=None).words)


def test_the_command_on_the_files_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stand = Bus()
    order = OrderUpdated(
        **WHERE, account="a", order_id=derived_id("o"), decision_time=T0, instrument=BTC, side="buy", quantity=1000.0,
        status="working",
    )  # fmt: skip
    filled = order.model_copy(update={"status": "filled", "filled_quantity": 1000.0})
    fill = OrderFilled(
        **WHERE, account="a", fill_id=derived_id("f"), order_id=order.order_id, decision_time=T0, time=T0,
        instrument=BTC, side="buy", quantity=1000.0, price=99.5, fee=1.0, slippage=500.0,
    )  # fmt: skip
    stand.say(frame(), mark(), signal(target=1.0, action=(1.0,)), order)
    stand.say(frame(T0 + MINUTE), mark(T0 + MINUTE, 1000.0), filled, fill)
    write_messages(stand.bus, tmp_path / MESSAGES)
    (tmp_path / "portfolio.yaml").write_text(portfolio_yaml(BOOK))
    assert len(read_messages(tmp_path).end_offsets("market.bars.v1")) == 12
    for wanted in (["--portfolio", "p", "--time", "2024-01-31T14:05"], [order.order_id], [fill.fill_id]):
        assert main(["explain", *wanted, "--run", str(tmp_path), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        [row] = facts["risk"]["sizing"]
        assert (row["exact"], row["ordered"], row["agrees"]) == (1000.0, 1000.0, True)
        assert facts["fills"]["fills"][0]["slippage_bps"] == pytest.approx(500.0 / 99_000.0 * 1e4)
        assert facts["outcome"] == f"buy 1,000 {BTC}: filled"
    assert main(["explain", order.order_id, "--run", str(tmp_path)]) == 0
    assert "no_trade_band: 1, limit 0.05" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "name an id, or a portfolio and a time"),
        (["x", "--time", "2024-01-31"], "name an id, or a portfolio and a time"),
        (["--time", "2024-01-31"], "--time is of a portfolio"),
        (["--time", "noon", "--portfolio", "p"], "give an ISO 8601 time"),
        (["12"], "12 is no id: give one of an order or a fill"),
        ([derived_id("x")], "orders and fills are kept 365 days, what led to them 7; with --portfolio and --time"),
    ],
)
def test_wrong_input_is_told_in_a_line(
    options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_messages(Bus().bus, tmp_path / MESSAGES)
    assert main(["explain", *options, "--run", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_a_folder_that_is_no_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", derived_id("x"), "--run", str(tmp_path)]) == 2
    assert "--run names the folder of a `tradeloop demo`" in capsys.readouterr().err
