"""Inference as a whole: the join in every order of arrival, the window, the model in force, what is held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import LogPosition, Partition
from tradeloop.common.clock import ManualClock
from tradeloop.common.features import FeatureSet
from tradeloop.common.market import Instrument, Timeframe, Universe, to_us
from tradeloop.common.messages import (
    FeaturesComputed,
    Message,
    ModelActivated,
    ModelReady,
    PortfolioMarked,
    PositionMark,
    SignalGenerated,
)
from tradeloop.common.messages.topics import dead_letter_topic, event_id, topic_of
from tradeloop.common.model_store.memory import MemoryModelStore
from tradeloop.common.model_store.port import (
    ModelNotFound,
    ModelStoreUnavailable,
    Policy,
    PolicyManifest,
    RegisteredPolicy,
    model_name,
)
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.runner import Runner, pump
from tradeloop.common.strategy import RewardContext, Strategy, TargetPosition, log_return, reward
from tradeloop.inference.application import Inference

WINDOW = 3
MODEL = model_name("test", "pair")
START = datetime(2026, 1, 5, tzinfo=UTC)
UNIVERSE = Universe(name="pair", instruments=(Instrument(id="x:A"), Instrument(id="x:B")), timeframe=Timeframe.M1)
UNKNOWN: tuple[tuple[float | None, ...], ...] = ((None,), (0.5,))
"""Features of a bar on which one indicator is still warming up."""


@reward(version="1")
class Growth:
    def __call__(self, c: RewardContext) -> NDArray[np.float64]:
        return c.equity / c.equity_prev - 1.0


STRATEGY = Strategy("test", [log_return(1)], Growth(), window=WINDOW, actions=TargetPosition(no_trade_band=0.02))
SET = STRATEGY.feature_set


class Gain:
    """A policy whose graph is a number: its action is that many times a mean of what it sees, one per instrument."""

    def __init__(self, policy: Policy) -> None:
        self._gain = float(policy.onnx)

    def act(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
        rows = observation[0, : WINDOW * 2].reshape(WINDOW, 2).astype(np.float64)
        action: NDArray[np.float64] = np.tanh(self._gain * rows.mean(axis=0) + observation[0, -1])
        return action[None]


def policy(gain: float, **changes: Any) -> Policy:
    graph = repr(gain).encode()
    fields: dict[str, Any] = {
        "strategy": "test",
        "universe": "pair",
        "instruments": 2,
        "feature_set": SET.id,
        "feature_names": SET.names,
        "window": WINDOW,
        "observation_size": STRATEGY.observation_size(2),
        "action_scheme": STRATEGY.actions.name,
        "action_size": 2,
        "reward_id": STRATEGY.reward_id,
        "algorithm": "none",
        "seed": 0,
        "steps": 0,
        "trained_from": "",
        "trained_to": "",
        "onnx_max_abs_diff": 0.0,
        "onnx_sha256": sha256(graph).hexdigest(),
    }
    return Policy(PolicyManifest(**{**fields, **changes}), graph)


class Shelf:
    """Models in a list; `away` makes the store unreachable. Counts how often it was asked."""

    def __init__(self, *policies: Policy, champion: int = 1) -> None:
        self.policies, self.champion, self.away, self.asked = list(policies), champion, False, 0

    def load(self, name: str, reference: str) -> RegisteredPolicy:
        self.asked += 1
        if self.away:
            raise ModelStoreUnavailable("out for lunch")
        version = self.champion if reference == "champion" else int(reference) if reference.isdecimal() else 0
        if name != MODEL or not 1 <= version <= len(self.policies):
            raise ModelNotFound(f"model {name} has no {reference}")
        return RegisteredPolicy(name, str(version), self.policies[version - 1])


class NoHistory:
    """Nothing was published before."""

    def features_before(
        self, first: FeaturesComputed, position: LogPosition, universe: Universe, feature_set: FeatureSet, rows: int
    ) -> Sequence[FeaturesComputed]:
        return ()

    def activations(self, universe: Universe, portfolio: str) -> Sequence[ModelActivated]:
        return ()

    def decided_us(self, universe: Universe, portfolio: str) -> int:
        return -1

    def close(self) -> None:
        """Nothing is held open."""


def portfolio(name: str = "book", **changes: Any) -> Portfolio:
    return Portfolio(name=name, universe=UNIVERSE, strategy="test", **changes)


def make(models: Shelf | MemoryModelStore, *books: Portfolio) -> Inference:
    return Inference(books or [portfolio()], lambda _: STRATEGY, models, Gain, NoHistory())


def time(t: int) -> datetime:
    return START + timedelta(minutes=t)


def values(t: int) -> tuple[tuple[float, ...], ...]:
    return ((0.1 * t,), (1.0 - 0.07 * t,))


def features(t: int, known: bool = True) -> FeaturesComputed:
    return FeaturesComputed(
        universe="pair",
        feature_set=SET.id,
        time=time(t),
        instruments=UNIVERSE.ids,
        names=SET.names,
        values=values(t) if known else UNKNOWN,
    )


def mark(t: int, book: str = "book") -> PortfolioMarked:
    positions = tuple(
        PositionMark(
            instrument=instrument,
            quantity=1.0,
            entry_price=100.0,
            mark_price=101.0,
            weight=0.01 * (t + 1) * sign,
            unrealised_return=0.01,
            holding_bars=t,
        )
        for instrument, sign in zip(UNIVERSE.ids, (1, -1), strict=True)
    )
    return PortfolioMarked(
        universe="pair",
        portfolio=book,
        time=time(t),
        cash=1e5,
        equity=1e5,
        peak_equity=1e5,
        drawdown=0.001 * t,
        state="active",
        positions=positions,
    )


def ready(version: str, **changes: Any) -> ModelReady:
    fields = {"request_id": f"r{version}", "strategy": "test", "universe": "pair", "model": MODEL}
    fields |= {"version": version, "alias": "champion", "model_id": "", "feature_set": SET.id}
    return ModelReady(**{**fields, **changes})


def at(message: Message) -> LogPosition:
    """Where a message stands: at the minute that it is about."""
    assert isinstance(message, FeaturesComputed | PortfolioMarked)
    return LogPosition(Partition(topic_of(type(message)).name, 0), int((message.time - START) / timedelta(minutes=1)))


ANYWHERE = LogPosition(Partition("training.model_ready.v1", 0), 0)


def give(inference: Inference, *messages: Message) -> list[Message]:
    out: list[Message] = []
    for message in messages:
        out += inference.handle(message, ANYWHERE if isinstance(message, ModelReady) else at(message))
    return out


def signals(messages: Sequence[Message]) -> list[SignalGenerated]:
    return [message for message in messages if isinstance(message, SignalGenerated)]


def activations(messages: Sequence[Message]) -> list[tuple[str, datetime]]:
    return [(message.version, message.time) for message in messages if isinstance(message, ModelActivated)]


def reasons(messages: Sequence[Message]) -> list[str]:
    return [signal.reason for signal in signals(messages)]


def bars(*times: int) -> list[Message]:
    return [message for t in times for message in (features(t), mark(t))]


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
    out = signals(give(make(Shelf(policy(2.0))), *bars(*range(5))))
    assert reasons(out) == ["warming_up", "warming_up", "policy", "policy", "policy"]
    last = out[-1]
    window = [x for t in (2, 3, 4) for row in values(t) for x in row]
    account = [0.05, -0.05, 0.01, 0.01, 4 / 36, 4 / 36, 0.004]
    assert last.observation == tuple(np.array([*window, *account], dtype=np.float32).tolist())
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

    def __init__(self, published: Sequence[Message], rows: Sequence[FeaturesComputed] = ()) -> None:
        self._activations = [message for message in published if isinstance(message, ModelActivated)]
        self._decided = signals(published)
        self._rows = rows

    def features_before(
        self, first: FeaturesComputed, position: LogPosition, universe: Universe, feature_set: FeatureSet, rows: int
    ) -> Sequence[FeaturesComputed]:
        assert (universe, feature_set.id) == (UNIVERSE, SET.id)
        return [one for one in self._rows if one.time < first.time][-rows:]

    def activations(self, universe: Universe, portfolio: str) -> Sequence[ModelActivated]:
        return [one for one in self._activations if one.portfolio == portfolio]

    def decided_us(self, universe: Universe, portfolio: str) -> int:
        return max((to_us(one.time) for one in self._decided if one.portfolio == portfolio), default=-1)


@pytest.mark.parametrize("again_from", range(9))
def test_after_a_crash_the_same_is_decided_by_the_same_models(again_from: int) -> None:
    """Whatever was not committed comes again; meanwhile the alias has moved on."""
    shelf = Shelf(policy(1.0), policy(-1.0), policy(5.0))
    told = [*bars(0, 1, 2, 3), ready("2"), *bars(4, 5, 6, 7)]
    before = give(make(shelf), *told)
    assert activations(before) == [("1", time(0)), ("2", time(4))]
    shelf.champion = 3
    history = Remembered(before, [features(t) for t in range(12)])
    restarted = Inference([portfolio()], lambda _: STRATEGY, shelf, Gain, history)
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
    restarted = Inference([portfolio()], lambda _: STRATEGY, shelf, Gain, history)
    assert give(restarted, mark(3)) == []
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
    assert shelf.asked == 1, "it waits to be told"
    shelf.policies.append(policy(1.0))
    out = give(inference, ready("1"), *bars(4))
    assert activations(out) == [("1", time(4))]
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
    with pytest.raises(ValueError, match=f"portfolio book has {expected}".replace("(", r"\(").replace(")", r"\)")):
        give(make(shelf), *bars(0))


def test_a_store_that_is_away_at_the_first_decision_changes_nothing() -> None:
    whole = give(make(Shelf(policy(1.0))), *bars(*range(4)))
    for first, second in ((features, mark), (mark, features)):
        shelf = Shelf(policy(1.0))
        inference = make(shelf)
        give(inference, first(0))
        shelf.away = True
        for _ in range(2):
            with pytest.raises(ModelStoreUnavailable):
                give(inference, second(0))
        assert set(inference.pending()) == {at(first(0)), at(second(0))}
        shelf.away = False
        assert give(inference, second(0), *bars(1, 2, 3)) == whole
        assert not inference.pending()


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
    class Late(Shelf):
        """Reachable the first time only, until it is back."""

        def load(self, name: str, reference: str) -> RegisteredPolicy:
            self.away = self.asked == 1
            return super().load(name, reference)

    inference = make(Late(policy(1.0)), portfolio("one"), portfolio("two"))
    give(inference, mark(0, "one"), mark(0, "two"))
    with pytest.raises(ModelStoreUnavailable):
        give(inference, features(0))
    out = give(inference, features(0))
    assert [signal.portfolio for signal in signals(out)] == ["one", "two"]


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
    inference = Inference([portfolio()], lambda _: STRATEGY, shelf, Gain, NoHistory())
    with pytest.raises(ModelStoreUnavailable):
        inference.not_ready()
    shelf.away = False
    assert inference.not_ready() == ()
    shelf.away = True
    assert inference.not_ready() == ()


@pytest.mark.parametrize("champion", [0, 1])
def test_a_portfolio_without_a_model_that_fits_is_no_hindrance(champion: int) -> None:
    """Training gives it one, and needs a running stack for that."""
    shelf = Shelf(policy(1.0), champion=champion)
    other = Strategy("test", [log_return(1)], Growth(), window=WINDOW + 1) if champion else STRATEGY
    inference = Inference([portfolio()], lambda _: other, shelf, Gain, NoHistory())
    assert inference.not_ready() == ()
