"""Spans: whom they name as their cause, what a redelivery makes, which traces count, and a collector that is away."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from tests.collector import Collector, collector
from tests.waiting import until
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import LogPosition, Partition
from tradeloop.common.clock import SystemClock
from tradeloop.common.errors import Unavailable
from tradeloop.common.messages import FeaturesComputed, Message, PortfolioMarked, SignalGenerated
from tradeloop.common.messages.topics import event_id, specs
from tradeloop.common.runtime.headers import TRACE, TraceContext, trace_context, trace_id
from tradeloop.common.runtime.health import HttpSettings, serve
from tradeloop.common.runtime.otlp import OtlpSpans
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.readback import all_records
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.runtime.service import ServiceDefaults
from tradeloop.common.runtime.settings import ServiceSettings
from tradeloop.common.runtime.traces import Span, Tracer, TraceSettings

T0 = datetime(2024, 3, 1, 12, tzinfo=UTC)
POLICY = RunPolicy(commit_interval_s=0.0)


class Decides(ServiceDefaults):
    """Answers features at once, and marks afterwards, as the services do."""

    name = "decides"
    consumes = (PortfolioMarked, FeaturesComputed)

    def __init__(self) -> None:
        self.marks: list[PortfolioMarked] = []
        self.fails = False

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        if self.fails:
            raise ValueError("no, http://me:secret@here")
        if isinstance(message, PortfolioMarked):
            self.marks.append(message)
        elif isinstance(message, FeaturesComputed):
            yield signal("at-once", message.time)

    def advance(self) -> Iterable[Message]:
        marks, self.marks = self.marks, []
        for mark in marks:
            yield signal(mark.portfolio, mark.time)


def mark(portfolio: str, time: datetime = T0) -> PortfolioMarked:
    numbers = {"cash": 1.0, "equity": 1.0, "peak_equity": 1.0, "drawdown": 0.0}
    return PortfolioMarked(universe="u", portfolio=portfolio, time=time, state="active", positions=(), **numbers)


def signal(portfolio: str, time: datetime = T0) -> SignalGenerated:
    return SignalGenerated(universe="u", portfolio=portfolio, time=time, instruments=(), targets=())


def features(time: datetime = T0) -> FeaturesComputed:
    return FeaturesComputed(universe="u", time=time, feature_set="f", names=(), instruments=(), values=())


class Desk:
    """A service over a bus in memory, with its spans."""

    def __init__(self, bus: MemoryBus | None = None, share: float = 1.0, service: Decides | None = None) -> None:
        self.bus = bus or MemoryBus()
        self.bus.create_topics(specs({}))
        self.spans: list[Span] = []
        self.service = service or Decides()
        clock = SystemClock()
        self.runner = Runner(self.service, self.bus, clock, POLICY)
        self.runner.trace(Tracer("decides", clock, self.spans.append, share))

    def send(self, *messages: Message, context: TraceContext | None = None) -> None:
        for message in messages:
            publish(self.bus.producer(), message, "test", context)

    def step(self) -> dict[str, list[Span]]:
        """The spans of one step, by name."""
        self.spans.clear()
        self.runner.step()
        found: dict[str, list[Span]] = {}
        for span in self.spans:
            found.setdefault(span.name, []).append(span)
        return found


MARKED, SIGNAL, FEATURES = (
    "handle execution.portfolio.v1",
    "publish inference.signals.v1",
    "handle preprocess.features.v1",
)


def test_an_output_follows_from_the_message_of_its_bar_and_portfolio() -> None:
    desk, later, last = Desk(), T0 + timedelta(hours=1), T0 + timedelta(hours=2)
    desk.send(mark("p"), mark("q"), mark("p", later), features(last))
    found = desk.step()
    handled = {span.attributes["messaging.message.id"]: span.span_id for span in desk.spans if span.kind == "consumer"}
    causes = {span.attributes["messaging.message.id"]: span.parent_id for span in found[SIGNAL]}
    assert causes == {
        event_id(signal(portfolio, time)): handled[event_id(cause)]
        for portfolio, time, cause in (
            ("p", T0, mark("p")),
            ("q", T0, mark("q")),
            ("p", later, mark("p", later)),
            ("at-once", last, features(last)),
        )
    }
    assert {span.parent_id for span in found[MARKED]} == {""}, "whoever sent it records none"
    for record in all_records(desk.bus, "inference.signals.v1"):
        context = trace_context(record.headers)
        message = SignalGenerated.model_validate_json(record.value)
        [span] = [span for span in found[SIGNAL] if span.attributes["messaging.message.id"] == event_id(message)]
        assert context == (trace_id(message), span.span_id, True) == (span.trace_id, span.span_id, True)
        assert span.attributes["tl.time"] == message.time.isoformat()
        assert span.start_us <= span.end_us


class NeverDurable(Decides):
    """Dies before it commits."""

    def before_commit(self, offsets: Mapping[Partition, int]) -> None:
        raise Unavailable("the process dies")


def test_redelivery_makes_another_span_with_the_same_parent() -> None:
    bus, sent = MemoryBus(), TraceContext(trace_id(mark("p")), "00000000000000aa", recorded=True)
    first = Desk(bus, service=NeverDurable())
    first.send(mark("p"), context=sent)
    once = first.step()
    first.runner.close()
    again = Desk(bus).step()
    [one], [other] = once[MARKED], again[MARKED]
    assert (one.parent_id, one.trace_id) == (other.parent_id, other.trace_id) == ("00000000000000aa", sent.trace_id)
    ids = [span.span_id for found in (once, again) for spans in found.values() for span in spans]
    assert len(ids) == len(set(ids)) == 4
    assert [found[SIGNAL][0].parent_id for found in (once, again)] == [one.span_id, other.span_id]


def test_a_failure_is_told_and_its_retry_has_the_same_parent() -> None:
    desk, sent = Desk(), TraceContext(trace_id(mark("p")), "00000000000000aa", recorded=True)
    desk.service.fails = True
    desk.send(mark("p"), context=sent)
    [failed] = desk.step()[MARKED]
    assert failed.error == "ValueError: no, http://me:secret@here", "the exporter shows it without the password"
    [record] = all_records(desk.bus, "execution.portfolio.v1.retry.decides")
    assert trace_context(record.headers) == sent


def test_a_share_of_traces_is_recorded_the_same_everywhere() -> None:
    marks = [mark("p", T0 + timedelta(hours=n)) for n in range(400)]
    desk, another, none = Desk(share=0.25), Desk(share=0.25), Desk(share=0.0)
    for each in (desk, another, none):
        each.send(*marks)
        each.step()
    recorded = {span.trace_id for span in desk.spans}
    assert recorded == {span.trace_id for span in another.spans}
    assert 60 < len(recorded) < 140
    assert len(desk.spans) == 2 * len(recorded), "whole traces"
    assert none.spans == []
    flags = {record.headers[TRACE][-2:] for record in all_records(none.bus, "inference.signals.v1")}
    assert flags == {"00"}


def test_a_trace_context_is_read_as_the_standard_says() -> None:
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    assert trace_context({TRACE: f"00-{trace}-{span}-01"}) == (trace, span, True)
    assert trace_context({TRACE: f"01-{trace}-{span}-03-more"}) == (trace, span, True)
    for wrong in ("", "x", f"00-{'0' * 32}-{span}-01", f"00-{trace}-{'0' * 16}-01", f"00-{trace.upper()}-{span}-01"):
        assert trace_context({TRACE: wrong}) is None


@pytest.fixture
def receiver() -> Iterator[Collector]:
    with collector() as server:
        yield server


def span(n: int = 1) -> Span:
    about: dict[str, str | int] = {"tl.universe": "u", "messaging.kafka.offset": n}
    return Span("handle t", "consumer", "ab" * 16, f"{n:016x}", "", 1_000_000, 1_000_250, about, "E: //me:secret@h")


def numbers(spans: OtlpSpans) -> dict[str, float]:
    return {"".join((family, *labels)): float(str(value)) for family, value, labels in spans.figures()}


def test_spans_reach_a_real_collector(receiver: Collector) -> None:
    settings = TraceSettings.model_validate({"endpoint": f"{receiver.endpoint}/", "headers": "x-token=abc, x-b=c=d"})
    spans = OtlpSpans({"service": "s", "version": "1.2", "commit": "c"}, settings)
    for n in range(1, 1200):
        spans.add(span(n))
    spans.close()
    assert [seen.span_id for seen in receiver.spans] == [f"{n:016x}" for n in range(1, 1200)]
    seen = receiver.spans[0]
    assert (seen.service, seen.resource["service.version"], seen.parent_id) == ("s", "1.2", "")
    assert (seen.start_ns, seen.end_ns) == (1_000_000_000, 1_000_250_000)
    assert seen.attributes == {"tl.universe": "u", "messaging.kafka.offset": "1"}
    assert seen.error == "E: //me:secret@h"
    assert {(headers["x-token"], headers["x-b"]) for headers in receiver.headers} == {("abc", "c=d")}
    assert numbers(spans)["tradeloop_spans_sent_total"] == 1199


def test_a_collector_that_fails_costs_spans_and_nothing_else(
    receiver: Collector, capsys: pytest.CaptureFixture[str]
) -> None:
    spans = OtlpSpans({"service": "s"}, TraceSettings(endpoint=receiver.endpoint, timeout_s=0.2, most=3))
    receiver.status = 400
    for n in range(1, 6):
        spans.add(span(n))
    until(lambda: numbers(spans)["tradeloop_spans_lost_totalrefused"] == 3)
    assert numbers(spans)["tradeloop_spans_lost_totalfull"] == 2
    receiver.status = 200
    spans.add(span(9))
    until(lambda: numbers(spans)["tradeloop_spans_sent_total"] == 1)
    spans.close()
    said = capsys.readouterr().out
    assert said.count("spans are lost: the collector of traces does not take them") == 1
    assert said.count("spans get through again") == 1
    assert [seen.span_id for seen in receiver.spans] == [f"{9:016x}"]


def test_a_collector_that_hangs_holds_nobody_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        spans = OtlpSpans({"service": "s"}, TraceSettings(endpoint=endpoint, timeout_s=0.2))
        spans.add(span())
        until(lambda: numbers(spans)["tradeloop_spans_lost_totalrefused"] == 1)
        spans.add(span())
        spans.close()
        until(lambda: not spans._thread.is_alive())


def test_a_service_with_an_endpoint_records_and_shows_it(receiver: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal as signals

    monkeypatch.setenv("TRACES__ENDPOINT", receiver.endpoint)
    before = {number: signals.getsignal(number) for number in (signals.SIGTERM, signals.SIGINT)}
    bus, stop = MemoryBus(), threading.Event()
    bus.create_topics(specs({}))
    publish(bus.producer(), mark("p"), "test")

    class Once(Decides):
        def advance(self) -> Iterable[Message]:
            yield from super().advance()
            stop.set()

    try:
        serve(lambda: Runner(Once(), bus, SystemClock(), POLICY), HttpSettings(port=0), stop, of=ServiceSettings())
    finally:
        for number, handler in before.items():
            signals.signal(number, handler)
    assert [seen.name for seen in receiver.spans] == [MARKED, SIGNAL]
    assert {seen.resource["service.name"] for seen in receiver.spans} == {"decides"}
    assert receiver.spans[1].parent_id == receiver.spans[0].span_id


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"endpoint": "collector:4318"}, "http"),
        ({"endpoint": "http://"}, "http"),
        ({"share": 2}, "less than or equal"),
        ({"headers": "token"}, "name=value"),
    ],
)
def test_settings_of_traces_are_understood_or_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TraceSettings.model_validate(wrong)
    assert TraceSettings.model_validate({"endpoint": ""}).endpoint is None
    assert TraceSettings(endpoint="https://c/otlp/v1/traces").endpoint == "https://c/otlp/v1/traces"
    assert TraceSettings(endpoint="http://c:4318").endpoint == "http://c:4318/v1/traces"
