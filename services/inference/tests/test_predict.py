"""Predictions over HTTP: the same decision as on messages, nothing changed by them, and each refusal in one shape."""

from __future__ import annotations

import http.client
import json
import math
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import SecretStr, ValidationError
from structlog.testing import capture_logs

from services.inference.tests.pair import (
    ANYWHERE,
    MODEL,
    SET,
    START,
    STRATEGY,
    UNIVERSE,
    Gain,
    NoHistory,
    Shelf,
    at,
    features,
    give,
    make,
    mark,
    policy,
    portfolio,
    ready,
    signals,
    time,
    values,
)
from tests.waiting import until
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import LogPosition
from tradeloop.common.clock import ManualClock, SystemClock
from tradeloop.common.feature_store.feast.store import FeastFeatureStore
from tradeloop.common.feature_store.memory import MemoryFeatureStore
from tradeloop.common.feature_store.port import FeatureRows, FeatureStore, FeatureStoreUnavailable
from tradeloop.common.market import to_us
from tradeloop.common.messages import FeaturesComputed, Message, ModelActivated, PortfolioMarked, SignalGenerated
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.model_store.port import Actor, Policy
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.counters import Durations
from tradeloop.common.runtime.headers import trace_id
from tradeloop.common.runtime.health import Health, HttpSettings, starting
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.pump import pump
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.runtime.server import Endpoint, listening
from tradeloop.inference.adapters.http_predictions import PATH, HttpPredictions
from tradeloop.inference.config import PredictSettings

TOKEN = "0123456789abcdef-test"
IDS = UNIVERSE.ids
TOPICS = [topic_of(kind).name for kind in (FeaturesComputed, PortfolioMarked, ModelActivated, SignalGenerated)]


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    content: dict[str, Any]

    @property
    def problem(self) -> str:
        """The kind of a problem, whose shape is the same for all."""
        assert self.headers["Content-Type"] == "application/problem+json"
        assert self.content.keys() == {"type", "title", "status", "detail"}
        assert self.content["status"] == self.status
        assert "\n" not in self.content["detail"]
        kind = self.content["type"].removeprefix("urn:tradeloop:problem:")
        assert kind != self.content["type"]
        return str(kind)

    @property
    def decision(self) -> dict[str, Any]:
        assert self.status == 200, self.content
        found: dict[str, Any] = self.content["decision"]
        return found


class World:
    """A portfolio that is decided for, and its door; the clock follows the bars."""

    def __init__(
        self,
        endpoint: Endpoint,
        *books: Portfolio,
        shelf: Shelf | None = None,
        history: NoHistory | None = None,
        make_actor: Callable[[Policy], Actor] = Gain,
        store: FeatureStore | None = None,
        token: str | None = TOKEN,
        **told: Any,
    ) -> None:
        self.clock = ManualClock(START)
        self.store = store or MemoryFeatureStore()
        self.store.define(SET.id, SET.names)
        shelf = shelf or Shelf(policy(1.0), policy(-2.0))
        self.inference = make(
            shelf, *books, history=history, make_actor=make_actor, clock=self.clock, viewed=token is not None
        )
        self.door = HttpPredictions(None if token is None else SecretStr(token), self.clock, self.store, **told)
        self.door.ask(self.inference)
        self.endpoint = endpoint
        endpoint.doors = {PATH: self.door}

    def give(self, *messages: Message) -> list[Message]:
        for message in messages:
            assert message.occurred is not None
            late = (message.occurred - self.clock.now()).total_seconds()
            self.clock.advance(max(late, 0.0))
        return give(self.inference, *messages)

    def bars(self, *times: int) -> list[SignalGenerated]:
        return signals(self.give(*(message for t in times for message in (features(t), mark(t)))))

    def write(self, t: int, rows: Sequence[Sequence[float | None]] | None = None, ids: tuple[str, ...] = IDS) -> None:
        row = [[math.nan if value is None else value for value in each] for each in rows or values(t)]
        time_us = np.array([to_us(time(t))])
        self.store.write_online(SET.id, "pair", FeatureRows(ids, SET.names, time_us, np.array([row[: len(ids)]])))

    def ask(self, body: object = None, **changes: Any) -> Answer:
        encoded = body if isinstance(body, bytes) else json.dumps({"portfolio": "book"} if body is None else body)
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        headers |= changes.pop("headers", {})
        return self.send(encoded.encode() if isinstance(encoded, str) else encoded, headers, **changes)

    def send(self, body: bytes | None, headers: Mapping[str, str], method: str = "POST", path: str = PATH) -> Answer:
        assert self.endpoint.port is not None
        connection = http.client.HTTPConnection("127.0.0.1", self.endpoint.port, timeout=60)
        try:
            connection.request(method, path, body, {name: value for name, value in headers.items() if value})
            found = connection.getresponse()
            return Answer(found.status, dict(found.headers), json.loads(found.read()))
        finally:
            connection.close()

    def counted(self) -> dict[str, float]:
        figures = self.door.figures()
        return {
            one.labels[0]: one.value
            for one in figures
            if one.family == "tradeloop_predictions_total" and not isinstance(one.value, Durations)
        }


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with listening("127.0.0.1", 0, starting("it has not started")) as endpoint:
        yield endpoint


@pytest.fixture
def make_world(endpoint: Endpoint) -> Iterator[Callable[..., World]]:
    with capture_logs():
        yield partial(World, endpoint)


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """A portfolio with a whole window, and its features online."""
    world = make_world()
    world.bars(0, 1, 2, 3)
    world.write(3)
    return world


def given_of(rows: Sequence[Sequence[float | None]]) -> dict[str, dict[str, float | None]]:
    return {name: dict(zip(SET.names, row, strict=True)) for name, row in zip(IDS, rows, strict=True)}


def shown(signal: SignalGenerated) -> dict[str, Any]:
    """A published decision as an answer shows it: through JSON, which keeps every bit of a float."""
    return {
        "targets": dict(zip(signal.instruments, signal.targets, strict=True)),
        "action": list(signal.action),
        "hold": signal.hold,
        "reason": signal.reason,
        "error": signal.error,
    }


def test_it_answers_with_what_it_decided_on(world: World) -> None:
    world.clock.advance(30.0)
    answer = world.ask()
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.content == {
        "portfolio": "book",
        "strategy": "test",
        "universe": "pair",
        "decision": answer.decision,
        "model": {"name": MODEL, "version": "1", "id": policy(1.0).model_id},
        "feature_set": SET.id,
        "features": {"source": "online", "time": "2026-01-05T00:03:00+00:00", "age_s": 30.0},
        "book": {"time": "2026-01-05T00:03:00+00:00"},
        "trace_id": trace_id(features(3)),
    }
    assert trace_id(mark(3)) == answer.content["trace_id"]
    assert (answer.decision["hold"], answer.decision["reason"]) == (False, "policy")


numbers = st.floats(-3, 3, width=64)
bars = st.tuples(
    st.tuples(st.tuples(numbers), st.tuples(numbers)),
    st.sampled_from(["", "", "", "", "", "", "", "", "unknown", "unmarked", "unpublished"]),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(bars, min_size=5, max_size=10), st.integers(0, 8))
def test_the_decision_is_that_of_the_event_path(
    make_world: Callable[..., World], bars: list[tuple[Any, str]], promoted: int
) -> None:
    """For every bar, from the online store and from the body, whatever was unknown, missing or promoted before."""
    world = make_world()
    for t, (rows, lacks) in enumerate(bars):
        rows = ((None,), rows[1]) if lacks == "unknown" else rows
        if t == promoted:
            world.inference.handle(ready("2"), ANYWHERE)
        world.write(t, rows)
        published = [] if lacks == "unpublished" else [features(t).model_copy(update={"values": rows})]
        decided = signals(world.give(*published, *([] if lacks == "unmarked" else [mark(t)])))
        if lacks in ("unpublished", "unmarked"):
            continue
        signal = decided[-1]
        answer = world.ask()
        assert answer.decision == shown(signal)
        assert answer.content["features"]["time"] == signal.time.isoformat()
        model = answer.content["model"]
        assert ("" if model is None else model["version"]) == signal.model_version
        assert world.ask({"portfolio": "book", "time": signal.time.isoformat()}).decision == shown(signal)
        if lacks != "unknown":
            assert world.ask({"portfolio": "book", "features": given_of(rows)}).decision == shown(signal)


def test_the_next_bar_is_decided_on_with_the_book_of_the_last(world: World) -> None:
    """Its features are online, and its mark has not come: the answer names the moment of the book."""
    world.clock.advance(60.0)
    world.write(4)
    answer = world.ask()
    assert answer.content["features"]["time"] == "2026-01-05T00:04:00+00:00"
    assert answer.content["book"]["time"] == "2026-01-05T00:03:00+00:00"
    account = mark(3).model_copy(update={"time": time(4)})
    [signal] = signals(world.give(features(4), account))
    assert answer.decision == shown(signal)


def test_what_if_the_features_were_others(world: World) -> None:
    other = world.ask({"portfolio": "book", "features": given_of([[3.0], [-3.0]])}).decision
    assert other["targets"] != world.ask().decision["targets"]
    assert other["targets"]["x:A"] > world.ask().decision["targets"]["x:A"]


def test_it_changes_nothing(make_world: Callable[..., World]) -> None:
    """No message, no offset, no state: whoever is asked between all bars decides as one who never was."""
    world, buses = make_world(), (MemoryBus(), MemoryBus())
    twin = make(Shelf(policy(1.0), policy(-2.0)), clock=world.clock)
    asked, alone = (Runner(*each, world.clock) for each in zip((world.inference, twin), buses, strict=True))
    for t in range(12):
        world.clock.advance(60.0)
        world.write(t)
        for bus in buses:
            producer = bus.producer()
            publish(producer, features(t), "preprocess")
            publish(producer, mark(t), "execution")
            producer.flush()
        pump([asked, alone])
        before = ends(buses[0]), world.inference.tallies(), set(world.inference.pending()), repr(vars(world.store))
        for body in (None, {"portfolio": "book", "features": given_of([[9.0], [9.0]])}, {"portfolio": "b"}, b"{"):
            world.ask(body)
        pump([asked])
        after = ends(buses[0]), world.inference.tallies(), set(world.inference.pending()), repr(vars(world.store))
        assert after == before
    assert world.counted()["decided"] > 15
    [one, other] = buses
    assert ends(one) == ends(other)
    assert all([*one.read(partition, 0, 100)] == [*other.read(partition, 0, 100)] for partition in ends(one))


def ends(bus: MemoryBus) -> dict[Any, int]:
    """How far every topic is that anything stands on."""
    return {partition: end for topic in TOPICS for partition, end in bus.end_offsets(topic).items()}


def test_a_restarted_desk_answers_before_its_next_bar(make_world: Callable[..., World]) -> None:
    before = make_world()
    for t in range(5):
        before.write(t)
    decided = before.bars(0, 1, 2, 3, 4)

    class Remembered(NoHistory):
        def features_before(self, time_us: int, position: Any, *rest: Any) -> Sequence[FeaturesComputed]:
            rows = rest[-1]
            return [each for each in map(features, range(5)) if to_us(each.time) < time_us][-rows:]

        def decided(self, *_: Any) -> SignalGenerated | None:
            return decided[-1]

        def marked(self, *_: Any) -> tuple[PortfolioMarked, LogPosition] | None:
            return mark(4), at(mark(4))

    after = make_world(history=Remembered(), store=before.store)
    assert after.ask().problem == "not_ready"
    after.clock.advance(4 * 60.0)
    after.inference.assigned({}, lambda _: True)
    assert not list(after.inference.advance())
    assert after.ask().decision == shown(decided[-1])
    after.inference.revoked()
    answer = after.ask()
    assert (answer.status, answer.problem, answer.headers["Retry-After"]) == (503, "not_ready", "1")


def test_it_is_off_without_a_token(make_world: Callable[..., World]) -> None:
    world = make_world(token=None)
    world.bars(0, 1, 2)
    answer = world.ask()
    assert (answer.status, answer.problem) == (403, "off")
    assert "INFERENCE_PREDICT__TOKEN" in answer.content["detail"]
    assert world.inference.view("book") is None, "nothing is kept for nobody"
    assert world.counted() == {"off": 1.0}


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xe9"])
def test_a_wrong_token_learns_nothing(world: World, given: str) -> None:
    for body in (b'{"portfolio": "book"}', b"{", b'{"portfolio": "nobody"}'):
        answer = world.ask(body, headers={"Authorization": given})
        assert (answer.status, answer.problem) == (401, "unauthorized")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert TOKEN not in str(answer)
    assert world.counted() == {"unauthorized": 3.0}


@pytest.mark.parametrize("token", ["short", "with a space in it", "umlaut-äöüäöüäöüäöü", "tab\tbed-tab-tabbed-tab"])
def test_a_token_that_is_none_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PredictSettings(token=SecretStr(token))
    assert token not in str(caught.value)
    assert PredictSettings(token=SecretStr("")).token is None
    assert TOKEN not in repr(PredictSettings(token=SecretStr(TOKEN)))


@pytest.mark.parametrize(
    ("body", "status", "kind", "says"),
    [
        (b"{", 400, "malformed", "EOF"),
        (b"", 400, "malformed", "EOF"),
        (b"\xff\xfe{}", 400, "malformed", "no JSON"),
        (b"[" * 100_000, 400, "malformed", "no JSON"),
        (b"[]", 422, "invalid", "the body: "),
        (b"null", 422, "invalid", "the body: "),
        ({}, 422, "invalid", "name a portfolio, or a strategy"),
        ({"portfolio": "book", "orders": True}, 422, "invalid", "orders: "),
        ({"portfolio": 7}, 422, "invalid", "portfolio: "),
        ({"portfolio": ""}, 422, "invalid", "portfolio: "),
        ({"portfolio": "b" * 1000}, 422, "invalid", "portfolio: "),
        ({"portfolio": "bok"}, 404, "unknown_portfolio", "portfolio bok is unknown here: did you mean book?"),
        ({"portfolio": "zzz"}, 404, "unknown_portfolio", "portfolio zzz is unknown here"),
        ({"strategy": "zzz"}, 404, "unknown_portfolio", "has strategy test, and not zzz"),
        ({"portfolio": "book", "universe": "trio"}, 409, "mismatch", "trades universe pair, and not trio"),
        ({"portfolio": "book", "instrument": "x:C"}, 409, "mismatch", "does not trade x:C: it has x:A, x:B"),
        ({"portfolio": "book", "model_version": "2"}, 409, "mismatch", f"decides with version 1 of model {MODEL}"),
        ({"portfolio": "book", "time": "yesterday"}, 422, "invalid", "time: "),
        ({"portfolio": "book", "time": "2026-01-05T00:03:00"}, 422, "invalid", "time: Input should have timezone"),
        ({"portfolio": "book", "time": "2026-01-05T00:02:00Z"}, 409, "other_bar", "has the newest features alone"),
        ({"portfolio": "book", "time": "2026-01-05T00:04:00Z"}, 503, "features_too_old", "closed 2026-01-05T00:03:00"),
    ],
)
def test_what_is_wrong_is_said_in_one_shape(world: World, body: object, status: int, kind: str, says: str) -> None:
    answer = world.ask(body)
    assert (answer.status, answer.problem) == (status, kind)
    assert says in answer.content["detail"]
    assert len(answer.content["detail"]) < 500
    assert world.counted() == {kind: 1.0}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "instrument x:A is missing"),
        ({"x:A": {SET.names[0]: 1.0}}, "instrument x:B is missing"),
        ({"x:A": {}, "x:B": {}}, f"feature of x:A {SET.names[0]} is missing"),
        (given_of([[1.0], [1.0]]) | {"x:C": {}}, "instrument x:C is unknown: there are x:A, x:B"),
        ({name: {SET.names[0]: 1.0, "rsi": 2.0} for name in IDS}, "feature of x:A rsi is unknown"),
        (given_of([[1.0], ["1.0"]]), f"features.x:B.{SET.names[0]}: "),  # type: ignore[list-item]
        (given_of([[1.0], [True]]), f"features.x:B.{SET.names[0]}: "),
        (given_of([[1.0], [None]]), f"features.x:B.{SET.names[0]}: "),
        ([[1.0], [1.0]], "features: "),
        (given_of([[1.0], [math.nan]]), "should be a finite number"),
        (given_of([[1.0], [math.inf]]), "should be a finite number"),
        (given_of([[1.0], [-math.inf]]), "should be a finite number"),
    ],
)
def test_given_features_have_all_names_and_finite_values(world: World, given: object, says: str) -> None:
    answer = world.ask({"portfolio": "book", "features": given})  # json.dumps writes NaN and Infinity
    assert (answer.status, answer.problem) == (422, "invalid")
    assert says in answer.content["detail"]


def test_a_number_beyond_all_floats_is_none(world: World) -> None:
    body = json.dumps({"portfolio": "book", "features": given_of([[1.0], [2.0]])}).replace("2.0", "1e999")
    assert world.ask(body.encode()).problem == "invalid"


def test_given_features_of_another_bar_go_with_no_book(world: World) -> None:
    rows = given_of(values(9))
    world.clock.advance(3600.0)
    assert world.ask({"portfolio": "book", "features": rows, "time": time(4).isoformat()}).status == 200
    for t in (2, 5, 30):
        answer = world.ask({"portfolio": "book", "features": rows, "time": time(t).isoformat()})
        assert (answer.status, answer.problem) == (409, "other_bar")
    answer = world.ask({"portfolio": "book", "features": rows, "time": time(999).isoformat()})
    assert (answer.status, answer.problem) == (422, "invalid")


def test_old_features_are_named_with_their_age(world: World) -> None:
    world.clock.advance(120.0)
    assert world.ask().status == 200
    world.clock.advance(1.0)
    answer = world.ask()
    assert (answer.status, answer.problem, answer.headers["Retry-After"]) == (503, "features_too_old", "1")
    assert "of the bar that closed 2026-01-05T00:03:00+00:00, 121 s ago; at most 120 s" in answer.content["detail"]
    asked = world.ask({"portfolio": "book", "time": time(3).isoformat()})
    assert asked.content["features"]["age_s"] == 121.0


def test_features_older_than_the_book_are_too_old_at_any_age(make_world: Callable[..., World]) -> None:
    world = make_world(max_age_s=1e9)
    world.write(2)
    world.bars(0, 1, 2, 3)
    assert "of the bar that closed 2026-01-05T00:02:00" in world.ask().content["detail"]


def test_features_of_no_one_bar_are_not_decided_on(world: World) -> None:
    world.write(4, ids=IDS[:1])
    answer = world.ask()
    assert (answer.status, answer.problem) == (503, "half_written")
    world.write(3, [[0.5], [0.5]])
    world.write(4)
    world.clock.advance(60.0)
    assert world.ask().status == 200


def test_features_that_were_not_decided_on_are_none_of_that_bar(world: World) -> None:
    world.write(3, [[0.5], [0.5]])
    assert (world.ask().status, world.ask().problem) == (503, "features_differ")


def test_without_a_store_features_are_to_be_given(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.door._store = None
    world.door.ask(world.inference)
    world.bars(0, 1, 2)
    answer = world.ask()
    assert (answer.status, answer.problem) == (409, "no_store")
    assert "INFERENCE_FEATURE_ROOT" in answer.content["detail"]
    assert world.ask({"portfolio": "book", "features": given_of(values(2))}).status == 200


def test_the_one_portfolio_that_the_names_leave_is_meant(make_world: Callable[..., World]) -> None:
    world = make_world(portfolio("one"), portfolio("two", model_alias="2"))
    for t in range(3):
        world.give(features(t), mark(t, "one"), mark(t, "two"))
    world.write(2)
    answer = world.ask({"strategy": "test"})
    assert (answer.status, answer.problem) == (409, "ambiguous")
    assert "one, two" in answer.content["detail"]
    for version, name in (("1", "one"), ("2", "two")):
        found = world.ask({"strategy": "test", "model": MODEL, "model_version": version, "instrument": "x:A"})
        assert found.content["portfolio"] == name
        assert found.content["model"]["version"] == version
    assert world.ask({"strategy": "test", "model_version": "3"}).problem == "unknown_portfolio"


def test_a_model_that_fails_is_to_hold_with_the_reason(make_world: Callable[..., World]) -> None:
    class Frail(Gain):
        def act(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
            if observation[0, WIDEST] > 5.0:
                raise ArithmeticError("too much")
            return super().act(observation)

    world = make_world(make_actor=Frail)
    world.bars(0, 1, 2, 3)
    decision = world.ask({"portfolio": "book", "features": given_of([[9.0], [9.0]])}).decision
    assert (decision["hold"], decision["reason"]) == (True, "error")
    assert decision["error"] == "ArithmeticError: too much"
    assert world.counted() == {"error": 1.0}


WIDEST = 2 * STRATEGY.window - 1
"""The last feature of an observation."""


def test_no_model_and_no_window_are_to_hold(make_world: Callable[..., World]) -> None:
    world = make_world(shelf=Shelf())
    world.write(0)
    world.bars(0)
    assert world.ask().decision["reason"] == "no_model"
    assert world.ask().content["model"] is None
    early = make_world()
    early.write(0)
    early.bars(0)
    assert early.ask().decision["reason"] == "warming_up"
    assert early.counted() == {"warming_up": 1.0}


def test_a_body_that_is_too_large_is_not_read(make_world: Callable[..., World]) -> None:
    world = make_world(max_bytes=1000)
    answer = world.ask(b" " * (4 << 20))
    assert (answer.status, answer.problem) == (413, "too_large")
    assert "4,194,304 bytes; at most 1,000" in answer.content["detail"]
    assert world.ask(b" " * 1001).status == 413
    assert world.ask(b" " * 1000).status == 400


@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        ({"Content-Type": "text/plain"}, 415, "wrong_type"),
        ({"Content-Type": ""}, 415, "wrong_type"),
        ({"Content-Length": "many"}, 400, "malformed"),
        ({"Content-Length": "-5"}, 400, "malformed"),
        ({"Transfer-Encoding": "chunked"}, 411, "length_required"),
    ],
)
def test_headers_that_say_something_else(world: World, headers: dict[str, str], status: int, kind: str) -> None:
    answer = world.ask(b"{}", headers=headers)
    assert (answer.status, answer.problem) == (status, kind)


def test_charsets_and_other_methods(world: World) -> None:
    assert world.ask(headers={"Content-Type": "application/json; charset=utf-8"}).status == 200
    answer = world.send(None, {}, "GET")
    assert (answer.status, answer.problem, answer.headers["Allow"]) == (405, "wrong_method", "POST")
    assert world.ask(path="/v1/predictions").problem == "no_such_page"
    assert world.send(None, {}, "PUT").status == 501
    assert world.send(None, {}, "PUT").headers["Content-Type"] == "application/problem+json"


def test_a_body_that_does_not_come_is_waited_for_no_longer(make_world: Callable[..., World]) -> None:
    """Nor is one that drips: the time is that of the whole body."""
    world = make_world(timeout_s=0.2, at_once=1)
    head = f"POST {PATH} HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
    assert world.endpoint.port is not None
    with socket.create_connection(("127.0.0.1", world.endpoint.port), timeout=60) as slow:
        slow.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        until(lambda: "too_slow" in world.counted() or slow.send(b" ") < 0)
        assert b"urn:tradeloop:problem:too_slow" in slow.makefile("rb").read()
    with socket.create_connection(("127.0.0.1", world.endpoint.port), timeout=60) as gone:
        gone.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        gone.shutdown(socket.SHUT_WR)
        assert b"the body ends before its Content-Length" in gone.makefile("rb").read()
    assert world.ask(b"{").status == 400, "the place is free again"


class Stuck(MemoryFeatureStore):
    """A store that does not answer before it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go_on = 0, threading.Event()

    def read_online(self, *args: Any) -> FeatureRows:
        self.asked += 1
        assert self.go_on.wait(60)
        return super().read_online(*args)


def test_a_store_that_hangs_holds_up_nobody_else(make_world: Callable[..., World]) -> None:
    store = Stuck()
    world = make_world(store=store, timeout_s=0.2, at_once=2)
    world.bars(0, 1, 2)
    world.write(2)
    answers = [world.ask(), world.ask()]
    assert [(answer.status, answer.problem) for answer in answers] == [(504, "timeout")] * 2
    busy = world.ask()
    assert (busy.status, busy.problem, busy.headers["Retry-After"]) == (503, "busy", "1")
    assert world.bars(3), "decisions go on"
    assert store.asked == 1, "a store is asked by one thread at a time"
    store.go_on.set()
    world.write(3)
    until(lambda: world.ask().status == 200)


def test_a_store_that_is_away_is_said(make_world: Callable[..., World]) -> None:
    class Away(MemoryFeatureStore):
        def read_online(self, *args: Any) -> FeatureRows:
            raise FeatureStoreUnavailable("Redis does not answer")

    world = make_world(store=Away())
    world.bars(0, 1, 2)
    answer = world.ask()
    assert (answer.status, answer.problem, answer.content["detail"]) == (503, "store_away", "Redis does not answer")


def test_what_breaks_is_logged_and_says_no_more(make_world: Callable[..., World]) -> None:
    class Broken(MemoryFeatureStore):
        def read_online(self, *args: Any) -> FeatureRows:
            raise RuntimeError("a secret")

    world = make_world(store=Broken(), at_once=1)
    world.bars(0, 1, 2)
    for _ in range(2):
        answer = world.ask()
        assert (answer.status, answer.problem) == (500, "failed")
        assert "a secret" not in str(answer)
    assert world.counted() == {"failed": 2.0}


def test_before_the_service_has_started_it_says_so(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.door._predictor = None
    answer = world.ask()
    assert (answer.status, answer.problem) == (503, "not_ready")


def test_outcomes_and_times_are_among_the_metrics_of_the_service(world: World) -> None:
    world.ask()
    world.ask(b"{")
    health = Health(Runner(world.inference, MemoryBus(), world.clock), HttpSettings(), threading.Event(), [world.door])
    text = health.metrics().body.decode()
    assert 'tradeloop_predictions_total{outcome="decided"} 1.0' in text
    assert 'tradeloop_predictions_total{outcome="malformed"} 1.0' in text
    assert "tradeloop_prediction_seconds_count 2.0" in text


def test_many_at_once_each_get_their_own(make_world: Callable[..., World]) -> None:
    """While the desk decides on: every answer is that of its own features, or says that it is busy."""
    world = make_world(at_once=4)
    world.bars(0, 1, 2)
    wrong: list[object] = []
    expected = {
        gain: world.ask({"portfolio": "book", "features": given_of([[gain], [gain]])}).decision["targets"]
        for gain in (0.0, 0.5, 1.0, -1.0)
    }
    assert len({str(each) for each in expected.values()}) == 4

    def ask(gain: float) -> None:
        for _ in range(25):
            answer = world.ask({"portfolio": "book", "features": given_of([[gain], [gain]])})
            if answer.status == 200 and answer.decision["targets"] != expected[gain]:
                wrong.append(answer)
            if answer.status not in (200, 503):
                wrong.append(answer)

    threads = [threading.Thread(target=ask, args=(gain,)) for gain in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert world.counted()["decided"] > 50


def test_features_come_from_feast(make_world: Callable[..., World], tmp_path: Path) -> None:
    """Its SQLite, asked by a thread other than the one that made it."""
    store = FeastFeatureStore(tmp_path, SystemClock())
    world = make_world(store=store)
    decided = world.bars(0, 1, 2)
    answer = world.ask()
    assert (answer.status, answer.problem) == (503, "features_too_old")
    world.write(2)
    for _ in range(3):
        assert world.ask().decision == shown(decided[-1])
    store.close()
