"""Long requests in slices, beside live messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

import pytest

from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import LogPosition, Partition
from tradeloop.common.clock import ManualClock
from tradeloop.common.errors import Unavailable, UserError
from tradeloop.common.market import Instrument, Timeframe, TimeRange, Universe
from tradeloop.common.messages import BackfillRequested, Message, ReplayRequested
from tradeloop.common.messages.topics import dead_letter_topic, topic_of
from tradeloop.common.runtime.headers import ERROR, KIND, USER
from tradeloop.common.runtime.pending import Pending
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.pump import pump
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.runtime.service import RequestFailed, ServiceDefaults
from tradeloop.common.runtime.slices import Slices

NOW = datetime(2024, 1, 1, tzinfo=UTC)
UNIVERSE = Universe(name="u", instruments=(Instrument(id="x:A"),), timeframe=Timeframe.M1)


def at(offset: int) -> LogPosition:
    return LogPosition(Partition("requests", 0), offset)


def request(name: str) -> BackfillRequested:
    return BackfillRequested(request_id=name, universe=UNIVERSE, files={})


def live(name: str) -> ReplayRequested:
    return ReplayRequested(request_id=name, universe=UNIVERSE, range=TimeRange(start=NOW, end=NOW))


class Counting:
    """A task of some slices, each of which notes its name and does what it is told to."""

    def __init__(self, name: str, slices: int, done: list[str], hinder: Callable[[int], None] = lambda n: None) -> None:
        self._name, self._left, self._done, self._hinder = name, slices, done, hinder

    @property
    def finished(self) -> bool:
        return not self._left

    def step(self) -> Iterator[Message]:
        self._hinder(self._left)
        self._done.append(self._name)
        if self._left == 1:
            yield live(f"end of {self._name}")
        self._left -= 1


def test_requests_take_turns_and_pin_their_messages_until_they_end() -> None:
    slices, done = Slices(), list[str]()
    slices.begin(at(3), Counting("a", 3, done), "u")
    slices.begin(at(5), Counting("b", 1, done), "v")
    said: list[Message] = []
    seen = []
    while slices.busy:
        seen.append(sorted(position.offset for position in slices.pending()))
        said += slices.advance()
    assert done == ["a", "b", "a", "a"]
    assert seen == [[3, 5], [3, 5], [3], [3]]
    assert said == [live("end of b"), live("end of a")]
    assert not slices.keys
    assert list(slices.advance()) == []


def test_a_slice_that_finds_something_unavailable_is_done_again() -> None:
    slices, done, away = Slices(), list[str](), [True, True, False]

    def hinder(left: int) -> None:
        if left == 2 and away and away.pop(0):
            raise Unavailable("away")

    slices.begin(at(0), Counting("a", 3, done, hinder), "u")
    found = []
    while slices.busy:
        try:
            list(slices.advance())
        except Unavailable:
            found.append(len(done))
            assert slices.keys == {"u"}
    assert (done, found) == (["a", "a", "a"], [1, 1])


def test_a_request_that_fails_is_named_and_the_others_go_on() -> None:
    slices, done = Slices(), list[str]()

    def hinder(left: int) -> None:
        raise UserError("its file is wrong")

    slices.begin(at(0), Counting("bad", 2, done, hinder), "u")
    slices.begin(at(1), Counting("good", 1, done), "u")
    with pytest.raises(RequestFailed) as raised:
        list(slices.advance())
    assert raised.value.position == at(0)
    assert str(raised.value.__cause__) == "its file is wrong"
    assert list(slices.advance()) == [live("end of good")]


class Batch(ServiceDefaults):
    """Does backfills in ten slices, and whatever else at once."""

    name = "ingest"
    consumes: tuple[type[Message], ...] = (BackfillRequested, ReplayRequested)

    def __init__(self) -> None:
        self.slices, self.log = Slices(), list[str]()

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        if isinstance(message, BackfillRequested):
            self.slices.begin(position, Counting("slice", 10, self.log, self._hinder(message)), "u")
        else:
            self.log.append(f"live {message.identity}")
        return ()

    def _hinder(self, message: BackfillRequested) -> Callable[[int], None]:
        def hinder(left: int) -> None:
            if left == 4 and message.request_id == "bad":
                raise UserError("row 7 is wrong: correct it")

        return hinder

    def advance(self) -> Iterator[Message]:
        return self.slices.advance()

    def busy(self) -> bool:
        return self.slices.busy

    def pending(self) -> Pending:
        return self.slices.pending()

    def revoked(self) -> None:
        self.slices.forget()


def run(policy: RunPolicy | None = None) -> tuple[MemoryBus, Batch, Runner]:
    bus, service = MemoryBus(), Batch()
    policy = policy or RunPolicy(retry_delay_s=0.0, commit_interval_s=0.0)
    return bus, service, Runner(service, bus, ManualClock(NOW), policy)


def test_H3_a_live_message_waits_for_one_slice_of_a_long_request() -> None:
    bus, service, runner = run()
    producer = bus.producer()
    publish(producer, request("long"), "test")
    for n in range(8):
        publish(producer, live(str(n)), "test")
        runner.step()
    first = service.log.index("live 1")
    between = service.log[first : service.log.index("live 7") + 1]
    assert between == [word for n in range(1, 8) for word in (f"live {n}", "slice")][:-1]


def test_H3_a_failure_half_way_is_dead_lettered_with_its_reason() -> None:
    bus, service, runner = run()
    publish(bus.producer(), request("bad"), "test")
    pump([runner])
    topic = dead_letter_topic(topic_of(BackfillRequested).name, "ingest")
    letters = [record for p, end in bus.end_offsets(topic).items() for record in bus.read(p, 0, end)]
    assert [(one.value, one.headers[ERROR], one.headers[KIND]) for one in letters] == [
        (request("bad").encode(), "row 7 is wrong: correct it", USER)
    ]
    assert service.log == ["slice"] * 6 * 3, "each of three tries began anew"
    assert not service.pending()


def test_H3_a_crash_within_a_long_request_brings_it_again() -> None:
    bus, service, runner = run()
    publish(bus.producer(), request("long"), "test")
    for _ in range(5):
        runner.step()
    assert 0 < len(service.log) < 10
    bus._groups["ingest"].members.clear()
    again = Batch()
    runner = Runner(again, bus, ManualClock(NOW), RunPolicy(commit_interval_s=0.0))
    pump([runner])
    assert again.log.count("slice") == 10
    runner.commit()
    bus._groups["ingest"].members.clear()
    third = Batch()
    pump([Runner(third, bus, ManualClock(NOW), RunPolicy())])
    assert "slice" not in third.log, "its end was committed"
