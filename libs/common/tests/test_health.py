"""What a service tells of itself: alive, ready, metrics, build; and how it stops."""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from tests.waiting import PATIENCE_S, until
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import PARTITIONS, BusUnavailable, LogPosition, Partition
from tradeloop.common.clock import ManualClock, SystemClock
from tradeloop.common.errors import Unavailable, UserError
from tradeloop.common.messages import Message, ModelActivated, TrainingProgressed
from tradeloop.common.messages.topics import dead_letter_topic, topic_of
from tradeloop.common.runtime.health import Health, HttpSettings, serve, starting
from tradeloop.common.runtime.logs import configure_logging
from tradeloop.common.runtime.metrics import Figure, check
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.runtime.server import listening
from tradeloop.common.runtime.service import ServiceDefaults
from tradeloop.common.runtime.standing import FeedStanding, Standing

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SOURCE = topic_of(ModelActivated).name
POLICY = RunPolicy(commit_interval_s=0.0, attempts=1)


def activation(version: int) -> ModelActivated:
    return ModelActivated(universe="u", portfolio="p", time=T0, model="m", version=str(version), model_id="x")


class Counting(ServiceDefaults):
    """Answers each message with one; fails as told."""

    name = "counting"
    consumes: tuple[type[Message], ...] = (ModelActivated,)

    def __init__(self) -> None:
        self.lacks: Sequence[str] = ()
        self.down = False
        self.standing: list[Standing] = []
        self.counted: dict[tuple[str, str], int] = {}

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        assert isinstance(message, ModelActivated)
        if message.version == "13":
            raise ValueError("bad luck")
        return [TrainingProgressed(run_id="r", strategy="s", step=int(message.version), total=100)]

    def standings(self) -> Iterable[Standing]:
        return self.standing

    def tallies(self) -> Mapping[tuple[str, str], int]:
        return self.counted

    def not_ready(self) -> Iterable[str]:
        if self.down:
            raise Unavailable("the store is away")
        return self.lacks


class Outage(MemoryBus):
    """A bus that can be cut off from whoever asks it something."""

    away = False

    def end_offsets(self, topic: str) -> Mapping[Partition, int]:
        if self.away:
            raise BusUnavailable("no broker answers")
        return super().end_offsets(topic)

    def partitions(self, topic: str) -> int:
        if self.away:
            raise BusUnavailable("no broker answers")
        return super().partitions(topic)


class Stand:
    """A service with its health, in one thread."""

    def __init__(self) -> None:
        self.clock, self.bus, self.service, self.stop = ManualClock(T0), Outage(), Counting(), threading.Event()
        self.runner = Runner(self.service, self.bus, self.clock, POLICY)
        self.health = Health(self.runner, HttpSettings(commit="abc"), self.stop)

    def send(self, *versions: int) -> None:
        producer = self.bus.producer()
        for each in versions:
            producer.publish(SOURCE, "u", activation(each).encode(), {})

    def step(self, seconds: float = 10.0) -> None:
        self.clock.advance(seconds)
        self.runner.step()

    def reasons(self) -> list[str]:
        page = self.health.ready()
        content = json.loads(page.body)
        assert content["ready"] == (not content["reasons"]) == (page.status == 200)
        return list(content["reasons"])

    def metric(self, name: str, **labels: str) -> float:
        text = self.health.metrics().body.decode()
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        found = [each.value for each in samples if each.name == name and labels.items() <= each.labels.items()]
        assert len(found) == 1, (name, found)
        return found[0]


@pytest.fixture
def stand() -> Stand:
    return Stand()


def test_ready_means_that_messages_are_handled_now(stand: Stand) -> None:
    assert stand.reasons() == ["waits for its partitions", "it has not started"]
    stand.step()
    assert stand.reasons() == []
    stand.service.lacks = ["no model is loaded for u"]
    stand.step()
    assert stand.reasons() == ["no model is loaded for u"]
    stand.service.lacks, stand.service.down = (), True
    stand.step()
    assert stand.reasons() == ["the store is away"]
    stand.step()
    assert stand.reasons() == ["the store is away"], "an idle step does not make it ready"
    stand.service.down = False
    stand.step()
    assert stand.reasons() == []
    stand.stop.set()
    assert stand.reasons() == ["it stops"]


def test_a_service_asks_itself_only_now_and_then(stand: Stand) -> None:
    stand.step()
    stand.service.lacks = ["a model"]
    stand.step(1.0)
    assert stand.reasons() == []


def test_a_member_without_partitions_is_ready(stand: Stand) -> None:
    """The others have them all: it stands by."""
    runners = [Runner(Counting(), stand.bus, stand.clock, POLICY) for _ in range(PARTITIONS)]
    for _ in range(3):
        for runner in (stand.runner, *runners):
            runner.step()
    assert {len(runner.assigned or ()) for runner in (stand.runner, *runners)} == {0, 2}
    assert [runner.not_ready() for runner in (stand.runner, *runners)] == [()] * (PARTITIONS + 1)


def test_a_bus_that_is_away_is_noticed_by_an_idle_service(stand: Stand) -> None:
    stand.step()
    stand.health.sample()
    assert stand.reasons() == []
    stand.bus.away = True
    stand.health.sample()
    assert stand.reasons() == ["no broker answers"]
    stand.bus.away = False
    stand.health.sample()
    assert stand.reasons() == []


def test_who_found_the_bus_away_is_ready_again_when_it_answers(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client complains once about an outage; then it reads nothing, as from a quiet topic."""
    stand.step()
    stand.bus.away = True

    def complain() -> None:
        raise BusUnavailable("1/1 brokers are down")

    with monkeypatch.context() as patched:
        patched.setattr(stand.runner, "commit", complain)
        stand.step()
    assert stand.reasons() == ["1/1 brokers are down"]
    stand.step()
    assert stand.reasons() == ["no broker answers"]
    stand.bus.away = False
    stand.step()
    assert stand.reasons() == []


def test_alive_is_who_moves_on(stand: Stand) -> None:
    stand.step()
    assert stand.health.live().status == 200
    stand.clock.advance(301.0)
    page = stand.health.live()
    assert (page.status, json.loads(page.body)) == (503, {"live": False, "idle_s": 301.0})
    stand.service.down = True  # what waits for others is no less alive
    for _ in range(5):
        stand.step(100.0)
        assert stand.health.live().status == 200


def test_H3_a_long_message_is_alive_while_it_says_so_or_its_group_bears_it(stand: Stand) -> None:
    lives: list[int] = []

    class Long(Counting):
        name = "long"
        says = True

        def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
            for _ in range(6):
                stand.clock.advance(100.0)
                lives.append(health.live().status)
                if self.says:
                    self.beat()
            return ()

    service = Long()
    stand.send(1)
    runner = Runner(service, stand.bus, stand.clock, POLICY)
    health = Health(runner, HttpSettings(), stand.stop)
    runner.step()
    assert lives == [200] * 6
    lives.clear()
    service.says = False
    stand.send(2)
    runner.step()
    assert lives == [200, 200, 200, 503, 503, 503], "as long as the group bears it, and no longer"
    assert Health(runner, HttpSettings(live_within_s=1000.0), stand.stop).live().status == 200


def test_metrics(stand: Stand) -> None:
    stand.step()
    stand.send(1, 2, 13, 4)
    stand.health.sample()
    partition = next(p for p, end in stand.bus.end_offsets(SOURCE).items() if end)
    where = {"topic": SOURCE, "partition": str(partition.number)}
    assert stand.metric("tradeloop_consumer_lag_messages", **where) == 4
    stand.step()
    stand.health.sample()
    assert stand.metric("tradeloop_consumer_lag_messages", **where) == 0
    assert stand.metric("tradeloop_messages_handled_total") == 4
    assert stand.metric("tradeloop_messages_published_total") == 3
    assert stand.metric("tradeloop_messages_retried_total") == 0
    assert stand.metric("tradeloop_messages_dead_lettered_total") == 1
    assert stand.metric("tradeloop_handle_seconds_count") == 4
    assert stand.metric("tradeloop_handle_seconds_bucket", le="+Inf") == 4
    assert stand.metric("tradeloop_messages_pending") == 0
    assert stand.metric("tradeloop_assigned_partitions", topic=SOURCE) == PARTITIONS
    assert stand.metric("tradeloop_last_event_timestamp_seconds") == T0.timestamp()
    assert stand.metric("tradeloop_ready") == 1
    assert stand.metric("tradeloop_build_info", service="counting", version="unknown", commit="abc") == 1
    assert stand.metric("process_resident_memory_bytes") > 1_000_000


def test_H6_every_portfolio_that_stands_still_is_named(stand: Stand) -> None:
    later = datetime(2026, 1, 1, 0, 5, tzinfo=UTC)
    stand.service.standing = [
        Standing("u", "goes on", T0, T0, None, None),
        Standing("u", "waits", T0, None, later, None),
        Standing("v", "set aside", T0, T0, None, later, "RewardError: not a number"),
        Standing("v", "new", None, None, None, None),
    ]
    stand.service.counted = {("decision_missed", "waits"): 3}
    stand.step()
    stand.service.down = True
    stand.step()
    page = json.loads(stand.health.ready().body)
    assert page["portfolios"] == {
        "waits": f"waits for the decision on its bar of {T0.isoformat()} since {later.isoformat()}",
        "set aside": f"in quarantine since its bar of {later.isoformat()}: RewardError: not a number",
    }
    assert page["reasons"] == ["the store is away"], "a portfolio that stands still makes nothing unready"
    gauge = "tradeloop_portfolio_{}_timestamp_seconds"
    assert stand.metric(gauge.format("marked"), universe="u", portfolio="goes on") == T0.timestamp()
    assert stand.metric(gauge.format("decided"), universe="v", portfolio="set aside") == T0.timestamp()
    assert stand.metric(gauge.format("awaiting_since")) == later.timestamp(), "only where something is awaited"
    assert stand.metric("tradeloop_portfolio_quarantined", portfolio="waits") == 0
    assert stand.metric("tradeloop_portfolio_quarantined", portfolio="set aside") == 1
    assert stand.metric("tradeloop_events_total", event="decision_missed", portfolio="waits") == 3
    stand.service.standing = []
    stand.step()
    assert json.loads(stand.health.ready().body)["portfolios"] == {}, "also while the store is away"


def test_H6_dead_letters_are_counted_where_they_are(stand: Stand) -> None:
    stand.step()
    stand.send(13, 13, 1)
    stand.step()
    again = Health(Runner(Counting(), stand.bus, stand.clock, POLICY), HttpSettings(), stand.stop)
    again.sample()  # a new process, whose own counters begin anew
    stand.health = again
    topic = dead_letter_topic(SOURCE, "counting")
    assert stand.metric("tradeloop_dead_letters", topic=topic) == 2
    partition = next(p for p, end in stand.bus.end_offsets(topic).items() if end)
    stand.bus.drop_before(partition, 1)
    again.sample()
    assert stand.metric("tradeloop_dead_letters", topic=topic) == 1


def test_M4_what_retention_took_is_said_and_counted(stand: Stand) -> None:
    stand.step()
    stand.send(*range(3))
    stand.step()
    stand.runner.close()
    stand.send(*range(20, 25))
    partition = next(p for p, end in stand.bus.end_offsets(SOURCE).items() if end)
    stand.bus.drop_before(partition, 7)
    stand.runner = Runner(stand.service, stand.bus, stand.clock, POLICY)
    stand.health = Health(stand.runner, HttpSettings(), stand.stop)
    with capture_logs() as logs:
        stand.step()
    assert stand.reasons() == [], "a restart would bring nothing back"
    assert json.loads(stand.health.ready().body)["lost"] == {f"{SOURCE}/{partition.number}": 4}
    assert stand.metric("tradeloop_messages_lost", topic=SOURCE, partition=str(partition.number)) == 4
    [line] = [each for each in logs if each["event"].startswith("lost")]
    assert (line["log_level"], line["messages"], line["committed"]) == ("error", 4, 3)
    assert stand.runner.counters.handled == 1


def test_lag_counts_from_what_the_bus_still_holds(stand: Stand) -> None:
    stand.send(*range(10))
    partition = next(p for p, end in stand.bus.end_offsets(SOURCE).items() if end)
    stand.bus.drop_before(partition, 4)
    stand.service.down = True
    stand.runner._assigned([partition])
    stand.health.sample()
    where = {"topic": SOURCE, "partition": str(partition.number)}
    assert stand.metric("tradeloop_consumer_lag_messages", **where) == 6


def test_times_are_counted_by_how_long_they_took(stand: Stand) -> None:
    for seconds in (0.0001, 0.002, 0.5, 100.0):
        stand.runner.counters.took(seconds)
    assert stand.metric("tradeloop_handle_seconds_bucket", le="0.0001") == 1
    assert stand.metric("tradeloop_handle_seconds_bucket", le="0.003") == 2
    assert stand.metric("tradeloop_handle_seconds_bucket", le="60.0") == 3
    assert stand.metric("tradeloop_handle_seconds_bucket", le="+Inf") == 4
    assert stand.metric("tradeloop_handle_seconds_sum") == pytest.approx(100.5021)


def ask(port: int | None, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    assert port is not None
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()
    finally:
        connection.close()


@pytest.fixture
def port(stand: Stand) -> Iterator[int | None]:
    with listening("127.0.0.1", 0, starting("it has not started")) as endpoint:
        endpoint.pages = stand.health.pages
        yield endpoint.port


def test_it_answers_over_http(stand: Stand, port: int) -> None:
    status, kind, body = ask(port, "/ready")
    assert (status, kind, json.loads(body)["ready"]) == (503, "application/json", False)
    stand.step()
    assert ask(port, "/ready?verbose=1")[0] == 200
    assert ask(port, "/live")[0] == 200
    assert ask(port, "/live", "HEAD")[::2] == (200, b"")
    status, kind, body = ask(port, "/metrics")
    assert (status, kind.partition(";")[0]) == (200, "text/plain")
    assert b"tradeloop_ready 1.0" in body
    assert json.loads(ask(port, "/build")[2]) == {"service": "counting", "version": "unknown", "commit": "abc"}
    assert ask(port, "/etc/passwd")[0] == 404
    status, kind, body = ask(port, "/live", "POST")
    assert (status, kind, json.loads(body)["detail"]) == (
        405,
        "application/problem+json",
        "/live is asked with GET, HEAD",
    )
    assert ask(port, "/live", "BREW")[0] == 501


def test_who_asks_and_says_nothing_keeps_nobody_waiting() -> None:
    with listening("127.0.0.1", 0, starting("it has not started")) as endpoint:
        assert endpoint.port is not None
        silent = [socket.create_connection(("127.0.0.1", endpoint.port)) for _ in range(20)]
        assert ask(endpoint.port, "/live")[0] == 200
    for each in silent:
        each.close()
    with pytest.raises(ConnectionRefusedError):
        ask(endpoint.port, "/live")


def test_nothing_is_served_without_a_port() -> None:
    before = threading.active_count()
    with listening("127.0.0.1", None, {}) as endpoint:
        assert endpoint.port is None
        assert threading.active_count() == before


def test_a_port_that_is_taken_is_the_users_affair(port: int) -> None:
    taken = pytest.raises(UserError, match=rf"cannot listen on 127\.0\.0\.1, port {port}: ")
    with taken, listening("127.0.0.1", port, {}):
        pass


def test_it_samples_by_itself(stand: Stand) -> None:
    stand.step()
    stand.bus.away = True
    health = Health(stand.runner, HttpSettings(sample_interval_s=0.01), stand.stop)
    with health.sampling():
        until(health.not_ready)
    assert health.not_ready() == ["no broker answers"]


def test_the_commit_comes_with_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    assert HttpSettings().commit == "unknown"
    monkeypatch.setenv("TRADELOOP_COMMIT", "0123abc")
    assert HttpSettings().commit == "0123abc"


def test_sigterm_drains() -> None:
    """What was taken is finished and committed before the process goes; before it starts, it says what it waits for."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    stand, handled = Stand(), []

    class Terminated(Counting):
        def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
            os.kill(os.getpid(), signal.SIGTERM)  # in the middle of a batch
            handled.append(message)
            return super().handle(message, position)

    stand.send(1, 2, 3)
    stop = threading.Event()
    failures, said = [BusUnavailable("the bus comes later")], list[tuple[int, bytes]]()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def start() -> Runner:
        said.extend((status, body) for status, _, body in (ask(port, "/live"), ask(port, "/ready")))
        if failures:
            raise failures.pop()
        return Runner(Terminated(), stand.bus, SystemClock(), POLICY)

    try:
        serve(start, HttpSettings(port=port), stop)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    assert stop.is_set()
    assert [status for status, _ in said] == [200, 503, 200, 503]
    assert b"it has not started" in said[1][1]
    assert b"the bus comes later" in said[3][1]
    assert len(handled) == 3
    stand.runner.step()
    assert stand.runner.counters.handled == 0
    assert sum(stand.bus.end_offsets(topic_of(TrainingProgressed).name).values()) == 3


STOPPED_AMID_A_LINE = """
import os, signal, sys, threading
from tradeloop.common.runtime.stopping import stopped_by_signals
import structlog

class Interrupted:
    def write(self, text):
        if "in the middle" in text:
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1_000):  # the handler runs here, within the lock of the log
                pass
        return sys.__stdout__.write(text)

    def flush(self):
        sys.__stdout__.flush()

structlog.configure(logger_factory=structlog.PrintLoggerFactory(Interrupted()))
stop = threading.Event()
with stopped_by_signals(stop):
    structlog.get_logger().info("in the middle")
    assert stop.wait(60)
"""


def test_a_signal_amid_a_line_of_the_log_stops_nothing_else() -> None:
    """A handler that logs, or takes the lock of the event, would wait for what it interrupted, and for ever."""
    command = [sys.executable, "-c", STOPPED_AMID_A_LINE]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.index("in the middle") < ended.stdout.index("SIGTERM")


def test_every_line_of_the_log_is_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    factory = logging.getLogRecordFactory()
    configure_logging()
    logging.captureWarnings(False)
    logging.setLogRecordFactory(factory)
    structlog.get_logger("a").info("ours", universe="u")
    logging.getLogger("confluent").warning("theirs: %s", "FAIL [thrd]")
    try:
        raise KeyError("lost")
    except KeyError as error:
        sys.excepthook(KeyError, error, error.__traceback__)
    ours, theirs, last = map(json.loads, capsys.readouterr().err.splitlines())
    assert (ours["event"], ours["universe"], ours["level"]) == ("ours", "u", "info")
    assert (theirs["event"], theirs["logger"], theirs["level"]) == ("theirs: FAIL [thrd]", "confluent", "warning")
    assert (last["event"], last["level"]) == ("failed", "critical")
    assert last["exception"].endswith("KeyError: 'lost'")
    assert all(line["timestamp"].endswith("Z") for line in (ours, theirs, last))


def test_a_live_feed_shows_where_it_stands(stand: Stand) -> None:
    since = datetime(2024, 1, 1, tzinfo=UTC)
    feeds = [FeedStanding("u", True, since, None, 0.25), FeedStanding("v", False, None, since, 0.0, cause="x: away")]
    stand.service.feeds = lambda: feeds  # type: ignore[method-assign]
    stand.step()
    assert json.loads(stand.health.ready().body)["feeds"] == {
        "v": "no bar closed since 2024-01-01T00:00:00+00:00, though due; not connected; x: away"
    }
    assert stand.metric("tradeloop_feed_connected", universe="u") == 1.0
    assert stand.metric("tradeloop_feed_stale", universe="v") == 1.0
    assert stand.metric("tradeloop_feed_clock_offset_seconds", universe="u") == 0.25
    assert stand.metric("tradeloop_feed_published_timestamp_seconds", universe="u") == since.timestamp()


def test_what_a_service_measures_is_looked_at_in_the_midst_of_a_long_message_too(stand: Stand) -> None:
    seen: list[float] = []

    class Measuring(Counting):
        name = "training"
        done = 0

        def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
            for self.done in (1, 2, 3):
                stand.clock.advance(4.0)
                self.beat()
                stand.health = health
                seen.append(stand.metric("tradeloop_training_steps", strategy="s", universe="u"))
            return ()

        def figures(self) -> Iterable[Figure]:
            return [Figure("tradeloop_training_steps", self.done, ("s", "u"))]

    stand.send(1)
    runner = Runner(Measuring(), stand.bus, stand.clock, POLICY)
    health = Health(runner, HttpSettings(), stand.stop)
    runner.step()
    assert seen == [0, 2, 2], "every five seconds"
    check(health.figures(), "training")


def test_what_is_not_declared_is_not_told(stand: Stand) -> None:
    stand.service.figures = lambda: [Figure("tradeloop_unheard_of", 1.0)]  # type: ignore[method-assign]
    stand.step()
    with pytest.raises(AssertionError, match="tradeloop_unheard_of"):
        stand.health.metrics()
    for figure in (
        Figure("tradeloop_unheard_of", 1.0),
        Figure("tradeloop_training_steps", 1.0, ("s", "u")),
        Figure("tradeloop_consumer_lag_messages", 1.0, ("t",)),
        Figure("tradeloop_handle_seconds", 1.0),
    ):
        with pytest.raises(AssertionError):
            check([figure], "execution")
    twice = [Figure("tradeloop_ready", 1.0)] * 2
    with pytest.raises(AssertionError, match="was there before"):
        check(twice, "execution")
