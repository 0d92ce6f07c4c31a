"""Inference as a whole: the join in every order of arrival, the window, the model in force, what is held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from structlog.testing import capture_logs

from services.inference.tests.pair import (
    ANYWHERE,
    MODEL,
    SET,
    START,
    STRATEGY,
    UNIVERSE,
    WINDOW,
    Gain,
    Growth,
    NoHistory,
    Shelf,
    activations,
    at,
    bars,
    features,
    give,
    make,
    mark,
    pass_time,
    policy,
    portfolio,
    ready,
    reasons,
    signals,
    time,
    values,
)
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import LogPosition, MessageTooLarge
from tradeloop.common.clock import ManualClock
from tradeloop.common.errors import UserError
from tradeloop.common.features import FeatureSet
from tradeloop.common.market import Universe, to_us
from tradeloop.common.messages import (
    FeaturesComputed,
    Message,
    ModelActivated,
    PortfolioMarked,
    SignalGenerated,
)
from tradeloop.common.messages.topics import dead_letter_topic, event_id
from tradeloop.common.model_store.memory import MemoryModelStore
from tradeloop.common.model_store.port import (
    ModelStoreUnavailable,
    ModelUnfit,
    Policy,
    RegisteredPolicy,
)
from tradeloop.common.runtime.held import LIMIT, ReadOn
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.pump import pump
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.strategy import Strategy, log_return


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Failures are logged with their tracebacks."""
    with capture_logs():
        yield


times = st.sets(st.integers(0, 11), min_size=1).map(sorted)


@given(times, times, st.sets(st.integers(0, 11), max_size=3), st.data())
def test_arrival_order_changes_nothing(
    with_features: list[int], with_mark: list[int], unknown: set[int], data: st.DataObject
) -> None:
    """Whatever is missing from either stream, and however the two interleave."""
    rows = [features(t, known=t not in unknown) for t in with_features]
    marks = [mark(t) for t in with_mark]
    sides = data.draw(st.permutations([True] * len(rows) + [False] * len(marks)))
    left, right = iter(rows), iter(marks)
    inference = make(Shelf(policy(1.5)))
    out = give(inference, *(next(left) if side else next(right) for side in sides))
    assert out == give(make(Shelf(policy(1.5))), *rows, *marks)

    decided = [t for t in with_mark if t <= with_features[-1]]
    assert [signal.time for signal in signals(out)] == [time(t) for t in decided], "one for each, in order"
    assert activations(out) == [("1", time(t)) for t in decided[:1]]
    half = [*(m for m in marks if m.time > rows[-1].time), *(f for f in rows if f.time > marks[-1].time)]
    assert set(inference.pending()) == {at(message) for message in half}

    seen = 0  # rows in the window, as told by the definition alone
    expected = []
    for t in range(12):
        if t in with_features:
            seen = seen + 1 if t not in unknown else 0
        if t in decided:
            expected.append("no_features" if t not in with_features else "policy" if seen >= WINDOW else "warming_up")
    assert reasons(out) == expected


def test_a_decision_carries_what_decided() -> None:
    seen: list[NDArray[np.float32]] = []

    class Watched(Gain):
        def act(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
            seen.append(observation[0].copy())
            return super().act(observation)

    out = signals(give(make(Shelf(policy(2.0)), make_actor=Watched), *bars(*range(5))))
    assert reasons(out) == ["warming_up", "warming_up", "policy", "policy", "policy"]
    last = out[-1]
    window = [x for t in (2, 3, 4) for row in values(t) for x in row]
    account = [0.05, -0.05, 0.01, 0.01, 4 / 36, 4 / 36, 0.004]
    assert seen[-1].tolist() == np.array([*window, *account], dtype=np.float32).tolist()
    assert last.observation == (), "it follows from the features and the mark, which are on their topics"
    rows = np.array(window, dtype=np.float32).astype(np.float64).reshape(3, 2)
    action = np.tanh(2.0 * rows.mean(axis=0) + np.float32(0.004))
    assert last.action == pytest.approx(action)
    assert last.targets == tuple((np.array(last.action) / 2).tolist())
    assert (last.features, last.feature_set, last.instruments) == (values(4), SET.id, UNIVERSE.ids)
    assert (last.model, last.model_version, last.model_id) == (MODEL, "1", policy(2.0).model_id)
    assert not last.hold


def test_to_hold_repeats_the_weights() -> None:
    (signal,) = signals(give(make(Shelf(policy(1.0))), *bars(4)))
    assert (signal.hold, signal.reason, signal.targets) == (True, "warming_up", (0.05, -0.05))
    assert (signal.instruments, signal.observation, signal.action) == (UNIVERSE.ids, (), ())


def test_an_unknown_value_restarts_the_window() -> None:
    messages = bars(*range(8))
    messages[6] = features(3, known=False)
    assert reasons(give(make(Shelf(policy(1.0))), *messages)) == [
        "warming_up", "warming_up", "policy", "warming_up", "warming_up", "warming_up", "policy", "policy",
    ]  # fmt: skip


def test_bars_without_a_mark_fill_the_window() -> None:
    out = give(make(Shelf(policy(1.0))), features(0), features(1), features(2), mark(2))
    assert reasons(out) == ["policy"]
    assert signals(out)[0].time == time(2)


def test_a_bar_without_features_holds_and_the_window_goes_on() -> None:
    inference = make(Shelf(policy(1.0)))
    assert reasons(give(inference, *bars(0, 1, 2), mark(3))) == ["warming_up", "warming_up", "policy"]
    assert set(inference.pending()) == {at(mark(3))}
    out = give(inference, features(4), mark(4))
    assert reasons(out) == ["no_features", "policy"]
    assert signals(out)[0].targets == (0.04, -0.04)
    assert not inference.pending()


class Remembered(NoHistory):
    """What one service published, for the next one."""

    def __init__(
        self,
        published: Sequence[Message],
        rows: Sequence[FeaturesComputed] = (),
        marks: Sequence[PortfolioMarked] = (),
    ) -> None:
        self._activations = [message for message in published if isinstance(message, ModelActivated)]
        self._decided = signals(published)
        self._rows, self._marks = rows, marks

    def features_before(
        self, time_us: int, position: LogPosition | None, universe: Universe, feature_set: FeatureSet, rows: int
    ) -> Sequence[FeaturesComputed]:
        assert (universe, feature_set.id) == (UNIVERSE, SET.id)
        return [one for one in self._rows if to_us(one.time) < time_us][-rows:]

    def activations(self, universe: Universe, portfolio: str) -> Sequence[ModelActivated]:
        return [one for one in self._activations if one.portfolio == portfolio]

    def decided(self, universe: Universe, portfolio: str) -> SignalGenerated | None:
        mine = [one for one in self._decided if one.portfolio == portfolio]
        return max(mine, default=None, key=lambda one: one.time)

    def marked(self, universe: Universe, portfolio: str) -> tuple[PortfolioMarked, LogPosition] | None:
        mine = [one for one in self._marks if one.portfolio == portfolio]
        last = max(mine, default=None, key=lambda one: one.time)
        return None if last is None else (last, at(last))


@pytest.mark.parametrize("again_from", range(9))
def test_after_a_crash_the_same_is_decided_by_the_same_models(again_from: int) -> None:
    """Whatever was not committed comes again; meanwhile the alias has moved on."""
    shelf = Shelf(policy(1.0), policy(-1.0), policy(5.0))
    told = [*bars(0, 1, 2, 3), ready("2"), *bars(4, 5, 6, 7)]
    before = give(make(shelf), *told)
    assert activations(before) == [("1", time(0)), ("2", time(4))]
    shelf.champion = 3
    history = Remembered(before, [features(t) for t in range(12)])
    restarted = make(shelf, history=history)
    after = give(restarted, ready("2"), *bars(*range(again_from, 10)))
    assert signals(after)[: 8 - again_from] == signals(before)[again_from:]
    assert {signal.model_version for signal in signals(after) if signal.time >= time(8)} == {"2"}
    assert activations(after) == []
    assert not restarted.pending()


def test_a_mark_that_comes_again_after_its_decision_was_committed_is_not_decided_anew() -> None:
    """Execution died too, and repeats its last mark; its features were committed together with the decision."""
    shelf = Shelf(policy(1.0))
    before = give(make(shelf), *bars(0, 1, 2, 3))
    history = Remembered(before, [features(t) for t in range(4)])
    restarted = make(shelf, history=history)
    assert give(restarted, mark(3)) == before[-1:], "the same as it stands"
    out = give(restarted, features(5), mark(4), mark(5))
    assert [(signal.time, signal.reason) for signal in signals(out)] == [(time(4), "no_features"), (time(5), "policy")]
    assert not restarted.pending()


def test_a_promotion_that_no_decision_followed_is_held_until_one_does() -> None:
    shelf = Shelf(policy(1.0), policy(-1.0))
    inference = make(shelf)
    give(inference, *bars(0, 1, 2), ready("2"))
    assert list(inference.pending()) == [ANYWHERE]
    out = give(inference, *bars(3))
    assert activations(out) == [("2", time(3))]
    assert [message.cause for message in out if isinstance(message, ModelActivated)] == [event_id(ready("2"))]
    assert not inference.pending()


def test_a_revoked_partition_leaves_nothing_behind() -> None:
    inference = make(Shelf(policy(1.0)))
    give(inference, *bars(0, 1), features(2), ready("1"))
    assert inference.pending()
    inference.revoked()
    assert not inference.pending()
    assert reasons(give(inference, *bars(2, 3, 4))) == ["warming_up", "warming_up", "policy"]


def test_without_a_model_it_holds_until_one_is_ready() -> None:
    shelf = Shelf()
    inference = make(shelf)
    assert reasons(give(inference, *bars(*range(4)))) == ["no_model"] * 4
    asked = shelf.asked
    give(inference, *bars(4))
    assert shelf.asked == asked, "it waits to be told"
    shelf.policies.append(policy(1.0))
    out = give(inference, ready("1"), *bars(5))
    assert activations(out) == [("1", time(5))]
    assert reasons(out) == ["policy"], "the window was filled meanwhile"


def test_a_model_takes_over_at_the_next_bar() -> None:
    """Between two bars: no decision missing, none twice, and the first of the new model recorded before it."""
    inference = make(Shelf(policy(1.0), policy(-1.0)))
    out = give(inference, *bars(*range(4)), features(4), ready("2"), mark(4), *bars(5, 6))
    assert activations(out) == [("1", time(0)), ("2", time(4))]
    assert [signal.time for signal in signals(out)] == [time(t) for t in range(7)]
    assert [signal.model_version for signal in signals(out)[2:]] == ["1", "1", "2", "2", "2"]
    takeover = next(i for i, m in enumerate(out) if isinstance(m, ModelActivated) and m.version == "2")
    assert out[takeover + 1] == signals(out)[4]
    old = signals(give(make(Shelf(policy(1.0))), *bars(*range(7))))
    new = signals(give(make(Shelf(policy(-1.0))), *bars(*range(7))))
    assert [s.targets for s in signals(out)] == [s.targets for s in (*old[:4], *new[4:])]


def test_the_model_in_force_is_not_activated_again() -> None:
    inference = make(Shelf(policy(1.0), policy(2.0)))
    out = give(inference, ready("1"), *bars(0), ready("1"), *bars(1), ready("2"), ready("1"), *bars(2))
    assert activations(out) == [("1", time(0))]
    assert activations(give(inference, ready("2"), ready("2"), *bars(3), ready("1"), *bars(4))) == [
        ("2", time(3)),
        ("1", time(4)),
    ]


def test_models_of_others_change_nothing() -> None:
    inference = make(Shelf(policy(1.0), policy(2.0)))
    others = [ready("2", strategy="other"), ready("2", universe="other"), ready("2", alias="challenger")]
    assert activations(give(inference, *others, *bars(0))) == [("1", time(0))]


def test_a_candidate_trades_only_where_a_portfolio_asks_for_candidates() -> None:
    """A champion is the newest of all when it is announced, and so the candidate too."""
    champions = make(Shelf(policy(1.0), policy(2.0), policy(3.0)))
    told = [ready("2", alias="candidate"), *bars(0), ready("3"), *bars(1)]
    assert activations(give(champions, *told)) == [("1", time(0)), ("3", time(1))]
    candidates = make(Shelf(policy(1.0), policy(2.0), policy(3.0)), portfolio(model_alias="candidate"))
    assert activations(give(candidates, *told)) == [("2", time(0)), ("3", time(1))]


@pytest.mark.parametrize("last", range(4))
def test_a_mark_that_comes_again_gets_the_same_decision_again(last: int) -> None:
    inference = make(Shelf(policy(1.0), policy(2.0)))
    out: list[Message] = []
    for t in range(last + 1):
        out = give(inference, *([ready("2")] if t == 3 else []), *bars(t))
    assert bool(activations(out)) == (last in (0, 3))
    assert give(inference, features(last), mark(last)) == out
    assert give(inference, mark(last)) == out
    assert not inference.pending()
    if last:
        assert give(inference, mark(last - 1), features(last - 1)) == [], "what went by is dropped"
    assert reasons(give(inference, *bars(last + 1))) == ["policy" if last >= 1 else "warming_up"]


def test_what_waits_and_comes_again_is_held_once() -> None:
    inference = make(Shelf(policy(1.0)))
    assert give(inference, mark(0), mark(0), mark(1)) == []
    assert set(inference.pending()) == {at(mark(0)), at(mark(1))}
    assert len(give(inference, features(0))) == 2
    assert set(inference.pending()) == {at(mark(1))}
    assert reasons(give(inference, features(1))) == ["warming_up"]
    assert not inference.pending()


def test_portfolios_of_one_universe_share_its_features() -> None:
    shelf = Shelf(policy(1.0), policy(2.0))
    inference = make(shelf, portfolio("one"), portfolio("two"))
    out = give(inference, mark(0, "one"), mark(1, "one"), *(features(t) for t in range(3)), mark(2, "one"))
    assert [signal.portfolio for signal in signals(out)] == ["one"] * 3
    assert set(inference.pending()) == {at(features(t)) for t in range(3)}, "the other portfolio waits for its marks"
    out += give(inference, *(mark(t, "two") for t in range(3)))
    assert not inference.pending()
    one, two = ([s for s in signals(out) if s.portfolio == name] for name in ("one", "two"))
    assert [s.model_copy(update={"portfolio": "two"}) for s in one] == two
    assert reasons(two)[-1] == "policy"
    assert len([m for m in out if isinstance(m, ModelActivated)]) == 2


def test_features_of_other_sets_and_marks_of_other_portfolios_are_ignored() -> None:
    inference = make(Shelf(policy(1.0)))
    strangers = [features(0).model_copy(update={"feature_set": "other"}), mark(0, "other")]
    strangers += [features(0).model_copy(update={"universe": "other"})]
    assert give(inference, *strangers) == []
    assert not inference.pending()


@pytest.mark.parametrize(
    ("field", "trained", "expected"),
    [
        ("feature_set", "fs-other", SET.id),
        ("window", 5, "3"),
        ("instruments", 4, "2"),
        ("action_scheme", "discrete(-1.0,1.0;0.05)", STRATEGY.actions.name),
        ("strategy", "tes", "test"),
        ("universe", "t-pair", "pair"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(field: str, trained: object, expected: str) -> None:
    shelf = Shelf(policy(1.0), policy(1.0, **{field: trained}))
    inference = make(shelf)
    give(inference, *bars(0, 1))
    with pytest.raises(ValueError, match="train it again") as refused:
        give(inference, ready("2"))
    for named in (f"model {MODEL} version 2", f"{field} {trained}", "portfolio book", expected):
        assert named in str(refused.value)
    out = give(inference, *bars(2))
    assert (activations(out), reasons(out)) == ([], ["policy"]), "the model in force goes on"

    shelf.champion = 2
    (held,) = signals(give(make(shelf), *bars(0)))
    assert (held.hold, held.reason) == (True, "no_model")
    assert f"portfolio book has {expected}" in held.error


def test_a_store_that_is_away_at_the_first_decision_changes_nothing() -> None:
    whole = give(make(Shelf(policy(1.0))), *bars(*range(4)))
    for first, second in ((features, mark), (mark, features)):
        shelf = Shelf(policy(1.0))
        inference = make(shelf)
        give(inference, first(0))
        shelf.away = True
        assert give(inference, second(0)) == pass_time(inference, 3) == []
        assert "out for lunch" in "; ".join(inference.not_ready())
        assert set(inference.pending()) == {at(first(0)), at(second(0))}
        shelf.away = False
        assert pass_time(inference) + give(inference, *bars(1, 2, 3)) == whole
        assert not inference.pending()
        assert not inference.not_ready()


def test_a_store_that_is_away_when_a_model_is_ready_changes_nothing() -> None:
    shelf = Shelf(policy(1.0), policy(2.0))
    inference = make(shelf)
    give(inference, *bars(0))
    shelf.away = True
    with pytest.raises(ModelStoreUnavailable):
        give(inference, ready("2"))
    assert activations(give(inference, *bars(1))) == []
    shelf.away = False
    assert activations(give(inference, ready("2"), *bars(2))) == [("2", time(2))]


def test_a_store_that_is_away_for_one_portfolio_loses_no_decision_of_another() -> None:
    class Fickle(Shelf):
        """Away for everybody but the first who asks."""

        def load(self, name: str, reference: str) -> RegisteredPolicy:
            self.away = self.asked == 1
            return super().load(name, reference)

    shelf = Fickle(policy(1.0))
    shelf.asked = 1
    inference = make(shelf, portfolio("one"), portfolio("two"))
    out = give(inference, mark(0, "one"), mark(0, "two"), features(0)) + pass_time(inference)
    assert sorted(signal.portfolio for signal in signals(out)) == ["one", "two"]
    assert reasons(out) == ["warming_up"] * 2


def test_the_alias_is_looked_up_at_the_first_decision() -> None:
    store = MemoryModelStore()
    inference = make(store)
    give(inference, features(0), features(1), features(2))
    for gain in (1.0, 2.0, 3.0):
        store.register(MODEL, policy(gain), metrics={}, parameters={})
    store.set_alias(MODEL, "champion", "2")
    out = give(inference, mark(2))
    assert activations(out) == [("2", time(2))]
    assert signals(out)[0].model_id == policy(2.0).model_id
    store.set_alias(MODEL, "champion", "3")
    assert activations(give(inference, *bars(3))) == [], "an alias that moves is announced, not polled"
    assert activations(give(inference, ready("3"), *bars(4))) == [("3", time(4))]


@pytest.fixture
def loop() -> Callable[[Shelf], tuple[MemoryBus, Runner]]:
    """A runner with an inference service on a bus."""

    def start(shelf: Shelf) -> tuple[MemoryBus, Runner]:
        bus = MemoryBus()
        retries = RunPolicy(attempts=2, retry_delay_s=0.0, unavailable_delay_s=0.0, commit_interval_s=0.0)
        return bus, Runner(make(shelf), bus, ManualClock(START), retries)

    return start


def send(bus: MemoryBus, *messages: Message) -> None:
    producer = bus.producer()
    for message in messages:
        publish(producer, message, "test")


def test_a_model_that_does_not_fit_ends_as_a_dead_letter(loop: Callable[[Shelf], tuple[MemoryBus, Runner]]) -> None:
    bus, runner = loop(Shelf(policy(1.0), policy(1.0, window=5)))
    send(bus, ready("2"), *bars(0, 1, 2))
    pump([runner])
    assert sum(bus.end_offsets(dead_letter_topic("training.model_ready.v1", "inference")).values()) == 1
    assert sum(bus.end_offsets("inference.signals.v1").values()) == 3


def test_offsets_of_half_a_join_are_not_committed(loop: Callable[[Shelf], tuple[MemoryBus, Runner]]) -> None:
    bus, runner = loop(Shelf(policy(1.0)))
    send(bus, *bars(0), features(1), features(2), mark(1))
    pump([runner])
    runner.close()
    consumer = bus.consumer("inference", ["preprocess.features.v1", "execution.portfolio.v1"])
    assert [FeaturesComputed.model_validate_json(record.value) for record in consumer.poll()] == [features(2)]


def test_it_is_ready_when_its_models_are_loaded_and_then_needs_the_store_no_more() -> None:
    shelf = Shelf(policy(1.0))
    shelf.away = True
    inference = make(shelf)
    inference.assigned({}, lambda _: True)
    assert not list(inference.advance())
    assert "out for lunch" in "; ".join(inference.not_ready())
    shelf.away = False
    pass_time(inference)
    assert not inference.not_ready()
    shelf.away = True
    pass_time(inference)
    assert not inference.not_ready()


@pytest.mark.parametrize("champion", [0, 1])
def test_a_portfolio_without_a_model_that_fits_is_no_hindrance(champion: int) -> None:
    """Training gives it one, and needs a running stack for that."""
    shelf = Shelf(policy(1.0), champion=champion)
    other = Strategy("test", [log_return(1)], Growth(), window=WINDOW + 1) if champion else STRATEGY
    inference = make(shelf, strategy=other)
    inference.assigned({}, lambda _: True)
    list(inference.advance())
    assert not inference.not_ready()


def test_H5_models_of_universes_that_others_have_are_not_loaded() -> None:
    shelf = Shelf(policy(1.0))
    inference = make(shelf, *(portfolio(f"book-{n}") for n in range(100)))
    inference.assigned({}, lambda _: False)
    list(inference.advance())
    assert shelf.asked == 0
    inference.assigned({}, lambda _: True)
    list(inference.advance())
    assert shelf.asked == 1, "one that they share is loaded once a turn"
    pass_time(inference, 20)
    assert shelf.asked == 7, "16 of them are prepared in a turn"


# --- what fails, and what came before


class Frail:
    """A policy that answers what it is told to, or breaks."""

    answers: ClassVar[dict[int, Any]] = {}
    asked: ClassVar[int] = 0

    def __init__(self, policy: Policy) -> None:
        self._gain = Gain(policy)

    def act(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
        Frail.asked += 1
        answer = Frail.answers.get(Frail.asked)
        if isinstance(answer, Exception):
            raise answer
        return self._gain.act(observation) if answer is None else np.full((1, 2), answer)


@pytest.fixture
def frail() -> type[Frail]:
    Frail.answers, Frail.asked = {}, 0
    return Frail


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), RuntimeError("of ONNX"), MemoryError()])
@pytest.mark.parametrize("times", [1, 2])
def test_C1_a_decision_that_fails_and_is_tried_again_equals_no_failure(
    frail: type[Frail], answer: Any, times: int
) -> None:
    whole = give(make(Shelf(policy(1.0))), *bars(*range(7)))
    frail.answers = {n: answer for n in range(3, 3 + times)}  # those for bar 4
    inference = make(Shelf(policy(1.0)), make_actor=frail)
    out = give(inference, *bars(0, 1, 2, 3, 4))
    assert len(signals(out)) == 4
    assert "book" in "; ".join(inference.not_ready())
    out += pass_time(inference) + give(inference, *bars(5, 6))
    assert out == whole
    assert not inference.pending()
    assert not inference.tallies()


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), RuntimeError("of ONNX"), MemoryError()])
@pytest.mark.parametrize("order", [(features, mark), (mark, features)])
def test_C1_a_decision_that_fails_for_good_is_to_hold_and_says_why(
    frail: type[Frail], answer: Any, order: tuple[Any, Any]
) -> None:
    whole = signals(give(make(Shelf(policy(1.0))), *bars(*range(7))))
    frail.answers = {n: answer for n in (3, 4, 5)}
    inference = make(Shelf(policy(1.0)), make_actor=frail)
    out = give(inference, *bars(0, 1, 2, 3), order[0](4), order[1](4)) + pass_time(inference)
    out += give(inference, *bars(5, 6))
    (held,) = (signal for signal in signals(out) if signal.time == time(4))
    assert (held.hold, held.reason, held.targets) == (True, "error", (0.05, -0.05))
    assert type(answer).__name__ in held.error or "finite" in held.error
    assert [one for one in signals(out) if one.time != time(4)] == [one for one in whole if one.time != time(4)]
    assert inference.tallies() == {("decision_failed", "book"): 1}
    assert not inference.pending()
    assert give(inference, mark(6)) == out[-1:]


def test_C1_a_portfolio_that_fails_slows_no_other() -> None:
    class OneFails(Gain):
        made: ClassVar[int] = 0

        def __init__(self, policy: Policy) -> None:
            super().__init__(policy)
            self._fails = float(policy.onnx) < 0.0

        def act(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
            if self._fails:
                raise RuntimeError("always")
            return super().act(observation)

    books = [portfolio("bad", model_alias="candidate"), portfolio("good")]

    class Both(Shelf):
        def load(self, name: str, reference: str) -> RegisteredPolicy:
            return super().load(name, "2" if reference == "candidate" else reference)

    inference = make(Both(policy(1.0), policy(-1.0)), *books, make_actor=OneFails)
    out: list[Message] = []
    give(inference, mark(0, "bad"))
    for t in range(1300):
        out += give(inference, features(t), mark(t, "good"))
    good = [signal for signal in signals(out) if signal.portfolio == "good"]
    assert [signal.time for signal in good] == [time(t) for t in range(1300)]
    assert len(inference.pending()) <= LIMIT + 2, "what waits is bounded"


def test_C1_features_that_cannot_be_read_are_given_up_without_a_decision_lost() -> None:
    inference = make(Shelf(policy(1.0)))
    odd = features(3).model_copy(update={"values": ((0.1, 0.2), (0.3,))})
    out = give(inference, *bars(0, 1, 2), odd, mark(3)) + pass_time(inference) + give(inference, *bars(4, 5, 6))
    assert reasons(out) == ["warming_up", "warming_up", "policy", "error", "warming_up", "warming_up", "policy"]
    assert not inference.pending()


def test_a_decision_that_the_bus_refuses_for_its_size_is_to_hold() -> None:
    inference = make(Shelf(policy(1.0)))
    (last,) = signals(give(inference, *bars(0, 1, 2)))[-1:]
    (held,) = inference.substitutes(last, MessageTooLarge("1,060,000 bytes")) or ()
    assert isinstance(held, SignalGenerated)
    assert (held.time, held.hold, held.reason) == (last.time, True, "error")
    assert "1,060,000 bytes" in held.error
    assert len(held.encode()) < len(last.encode())
    assert give(inference, mark(2)) == [held], "and so it is when it is asked for again"
    assert inference.tallies() == {("decision_failed", "book"): 1}


def test_C3_a_strategy_that_changed_decides_with_the_next_model_that_fits() -> None:
    """The activations of the old strategy stay on record for ever; the last one alone is looked at."""
    before = give(make(Shelf(policy(1.0))), *bars(0, 1, 2))
    wider = Strategy("test", [log_return(1)], Growth(), window=WINDOW + 1, actions=STRATEGY.actions)
    size = wider.observation_size(2)
    shelf = Shelf(policy(1.0), policy(2.0, window=WINDOW + 1, observation_size=size))
    changed = make(shelf, history=Remembered(before, [features(t) for t in range(20)]), strategy=wider)
    out = give(changed, *bars(3, 4))
    assert reasons(out) == ["no_model"] * 2
    assert "was trained with window 3" in signals(out)[0].error
    out = give(changed, ready("2"), *bars(5, 6))
    assert activations(out) == [("2", time(5))]
    assert reasons(out) == ["policy"] * 2

    later = make(shelf, history=Remembered([*before, *out], [features(t) for t in range(20)]), strategy=wider)
    assert reasons(give(later, *bars(7))) == ["policy"], "and goes on with it after a restart"


def test_C3_a_model_that_is_gone_holds_until_another_is_promoted() -> None:
    before = give(make(Shelf(policy(1.0), policy(2.0))), ready("2"), *bars(0, 1, 2))
    history = Remembered(before, [features(t) for t in range(20)])
    shelf = Shelf(policy(1.0))
    inference = make(shelf, history=history)
    out = give(inference, *bars(3, 4))
    assert reasons(out) == ["no_model"] * 2
    assert f"model {MODEL} has no 2" in signals(out)[0].error
    assert reasons(give(inference, ready("1"), *bars(5))) == ["policy"]


def test_M1_a_registry_made_anew_does_not_decide_under_an_old_number() -> None:
    before = give(make(Shelf(policy(1.0))), *bars(0, 1, 2))
    history = Remembered(before, [features(t) for t in range(20)])
    inference = make(Shelf(policy(-3.0)), history=history)
    out = give(inference, *bars(3))
    assert reasons(out) == ["no_model"]
    assert "is another policy" in signals(out)[0].error
    with pytest.raises(ModelUnfit, match="is another policy"):
        give(inference, ready("1", model_id=policy(1.0).model_id))
    out = give(inference, ready("1", model_id=policy(-3.0).model_id), *bars(4))
    assert activations(out) == [("1", time(4))]
    assert reasons(out) == ["policy"]


def test_M2_a_decision_that_was_published_is_repeated_with_the_model_that_made_it() -> None:
    """Its activation was lost with the process; who decides anew would do so with the model before."""
    shelf = Shelf(policy(1.0), policy(-1.0))
    published = give(make(shelf), *bars(0, 1, 2), ready("2"), *bars(3))
    lost = [one for one in published if not (isinstance(one, ModelActivated) and one.version == "2")]
    history = Remembered(lost, [features(t) for t in range(20)])
    restarted = make(shelf, history=history)
    out = give(restarted, *bars(3), ready("2"), *bars(4))
    assert signals(out)[0].encode() == signals(published)[-1].encode()
    assert activations(out) == [("2", time(3))]
    assert [one.model_version for one in signals(out)] == ["2", "2"]


def test_H1_a_mark_that_another_process_read_and_did_not_know_is_decided_on() -> None:
    """Execution knew of a new portfolio one bar before inference did."""
    rows = [features(t) for t in range(6)]
    inference = make(Shelf(policy(1.0)), history=Remembered([], rows, [mark(5)]))
    read = {at(each).partition: 6 for each in (features(5), mark(5))}
    inference.assigned(read, lambda _: True)
    out = list(inference.advance())
    whole = give(make(Shelf(policy(1.0))), *rows, mark(5))
    assert out == whole
    assert reasons(out) == ["policy"]
    assert reasons(give(inference, *bars(6))) == ["policy"]
    again = make(Shelf(policy(1.0)), history=Remembered(out, rows, [mark(5)]))
    again.assigned(read, lambda _: True)
    assert list(again.advance()) == [], "it is decided"


@given(st.data())
def test_a_desk_that_starts_late_decides_what_one_that_was_there_did(data: st.DataObject) -> None:
    """Bars went by before it came, and some of their decisions: as where bars are live and no one waits for it."""
    bars_until = 9
    all_rows, all_marks = [features(t) for t in range(bars_until)], [mark(t) for t in range(bars_until)]
    whole = signals(give(make(Shelf(policy(1.0))), *bars(*range(bars_until))))
    decided = data.draw(st.integers(0, bars_until), "bars decided by the one before")
    read = {at(kind(0)).partition: data.draw(st.integers(0, decided), "committed") for kind in (features, mark)}
    from_mark = read[at(mark(0)).partition]
    published = data.draw(st.integers(decided, bars_until), "bars published when it comes")
    before = give(make(Shelf(policy(1.0))), *bars(*range(decided)))
    history = Remembered(before, all_rows[:published], all_marks[:published])
    inference = make(Shelf(policy(1.0)), history=history)
    inference.assigned(read, lambda _: True)
    out: list[Message] = list(inference.advance()) if data.draw(st.booleans(), "it works before anything comes") else []
    rows, marks = all_rows[read[at(features(0)).partition] :], all_marks[from_mark:]
    while rows or marks:
        stream = rows if rows and (not marks or data.draw(st.booleans(), "features come")) else marks
        inference.handle(stream[0], at(stream[0]))
        del stream[0]
        if data.draw(st.booleans(), "it works"):
            out += inference.advance()
    out += inference.advance()
    mine = {one.time: one for one in signals(out)}
    assert [mine[one.time] for one in whole[decided:]] == whole[decided:]
    assert all(mine[time] in whole for time in mine), "a repeated one is the same"
    assert not [one for one in inference.pending() if one.partition == at(mark(0)).partition], "each is answered"


@pytest.mark.parametrize("kind", [features, mark])
def test_M8_what_is_about_a_time_that_has_not_come_is_refused(kind: Callable[[int], Message]) -> None:
    inference = make(Shelf(policy(1.0)))
    with pytest.raises(UserError, match="2124"):
        give(inference, kind(52_000_000))
    assert reasons(give(inference, *bars(0, 1, 2))) == ["warming_up", "warming_up", "policy"]
    assert not inference.pending()


def test_features_that_failed_are_a_decision_to_hold_with_their_reason() -> None:
    inference = make(Shelf(policy(1.0)))
    failed = features(3, known=False).model_copy(update={"error": "ZeroDivisionError: of a feature"})
    out = signals(give(inference, *bars(0, 1, 2), failed, mark(3)))
    assert (out[-1].reason, out[-1].error) == ("error", "ZeroDivisionError: of a feature")


def test_features_that_pile_up_stay_on_the_bus() -> None:
    """A portfolio that is not marked for long, such as one in a replay that waits."""

    class OnTheBus(NoHistory):
        def features_on(self, universe: Universe, feature_set: FeatureSet) -> ReadOn[FeaturesComputed]:
            def read(position: LogPosition, limit: int) -> Sequence[tuple[int, FeaturesComputed, LogPosition]]:
                found = [features(t) for t in range(position.offset, min(position.offset + limit, 1000))]
                return [(to_us(one.time), one, at(one)) for one in found]

            return read

    inference = make(Shelf(policy(1.0)), history=OnTheBus())
    give(inference, *(features(t) for t in range(1000)))
    assert len(inference.pending()) <= LIMIT + 1
    out = give(inference, *(mark(t) for t in range(1000)))
    assert [signal.time for signal in signals(out)] == [time(t) for t in range(1000)]
    assert set(reasons(out)[2:]) == {"policy"}
    assert not inference.pending()
