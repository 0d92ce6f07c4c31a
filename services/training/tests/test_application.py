from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import BusUnavailable, LogPosition, Partition
from tradeloop.common.clock import ManualClock
from tradeloop.common.errors import UserError
from tradeloop.common.feature_store.memory import MemoryFeatureStore
from tradeloop.common.feature_store.port import FeatureRows
from tradeloop.common.market import TimeRange, Universe, from_us
from tradeloop.common.messages import Message, ModelReady, TrainingProgressed, TrainingRequested
from tradeloop.common.messages.topics import dead_letter_topic, specs, topic_of
from tradeloop.common.messages.training import MarketRange
from tradeloop.common.model_store.memory import MemoryModelStore
from tradeloop.common.model_store.onnx_policy import OnnxPolicy
from tradeloop.common.model_store.port import ModelNotFound, ModelStoreUnavailable
from tradeloop.common.portfolio import Costs
from tradeloop.common.runtime.metrics import check
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.settings import load_settings
from tradeloop.common.strategy import RewardContext, Strategy, reward
from tradeloop.common.strategy.rewards import RewardError
from tradeloop.training.adapters.onnx_graph import Layer, policy_graph
from tradeloop.training.adapters.sb3 import Sb3Trainer
from tradeloop.training.application import Training
from tradeloop.training.config import Settings
from tradeloop.training.domain.material import Segment
from tradeloop.training.domain.scaler import Scaler
from tradeloop.training.main import publisher
from tradeloop.training.ports import Point, Progress, Task, Trained, Trainer, TrainingStopped

SMALL: Mapping[str, object] = {"books": 16, "n_steps": 16, "episode_bars": 40, "net_arch": (8,)}
HERE = LogPosition(Partition("training.requested.v1", 0), 0)


class Constant:
    """A trainer whose policy always answers the same, and that learns it in no time."""

    def __init__(self, answer: float = 0.5) -> None:
        self.answer, self.tasks = answer, list[Task]()

    def train(self, task: Task, progress: Progress, stop: threading.Event) -> Trained:
        self.tasks.append(task)
        progress(task.steps // 2, task.steps, {"reward": 1.0})
        if stop.is_set():
            raise TrainingStopped("stopped")
        size = task.strategy.observation_size(1)
        ones = np.ones(size, dtype=np.float32)
        layer = Layer(np.zeros((1, size), dtype=np.float32), np.array([self.answer], dtype=np.float32), None)
        graph = policy_graph(Scaler(ones, ones), [layer], kind="box", choices=0, actions=1)
        curve = [Point(task.steps // 2, {"reward": 1.0}), Point(task.steps, {"reward": 2.0, "valid_reward_mean": 0.5})]
        return Trained(graph, 0.0, task.steps, task.steps, {"gamma": "0.9"}, curve)


@dataclass
class House:
    """The service in a house of memory, with bars and features in its stores."""

    world: Any
    strategy: Strategy
    trainer: Trainer = field(default_factory=Constant)
    bus: MemoryBus = field(default_factory=MemoryBus)
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.clock = ManualClock(datetime(2024, 1, 1, tzinfo=UTC))
        self.bars, self.features = MemoryBarStore(self.clock), MemoryFeatureStore()
        self.models = MemoryModelStore()
        world, feature_set = self.world, self.strategy.feature_set
        self.bars.write(world.portfolio.universe.timeframe, world.bars)
        self.features.define(feature_set.id, feature_set.names)
        rows = FeatureRows(world.bars.instruments, feature_set.names, world.bars.close_us, world.features)
        self.features.write_offline(feature_set.id, world.portfolio.universe.name, rows)
        self.bus.create_topics(specs({}))

    def service(self, publish: Callable[[Message], None] | None = None) -> Training:
        return Training(
            {self.strategy.name: self.strategy}.__getitem__,
            self.bars,
            self.features,
            self.models,
            self.trainer,
            OnnxPolicy,
            publish or publisher(self.bus),
            self.stop,
        )

    def request(self, **changes: Any) -> TrainingRequested:
        times = self.world.bars.open_us
        whole = TimeRange(start=from_us(times[0]), end=from_us(times[-1] + 60_000_000))
        fields = {"request_id": "r1", "strategy": "test", "universe": self.world.portfolio.universe, "range": whole}
        return TrainingRequested(**{**fields, "steps": 512, "seed": 5, **changes})

    def send(self, request: TrainingRequested) -> None:
        topic = topic_of(TrainingRequested).name
        self.bus.producer().publish(topic, request.key, request.encode(), {})

    def published(self, kind: type[Any]) -> list[Any]:
        topic = topic_of(kind).name
        with closing(self.bus.consumer("test", [topic])) as consumer:
            return [kind.model_validate_json(record.value) for record in consumer.poll()]


@pytest.fixture
def house(make_world: Any) -> House:
    world = make_world()
    return House(world, world.strategy(parameters=SMALL))


def test_a_request_becomes_a_candidate(house: House) -> None:
    house.trainer = Sb3Trainer(house.clock, threads=1)
    house.send(house.request())
    runner = Runner(house.service(), house.bus, house.clock)
    assert runner.step() > 0
    (ready,) = house.published(ModelReady)
    registered = house.models.load("test.synthetic", "candidate")
    manifest = registered.policy.manifest
    assert (ready.model, ready.version, ready.alias) == ("test.synthetic", registered.version, "candidate")
    assert (ready.request_id, ready.strategy, ready.universe) == ("r1", "test", "synthetic")
    assert ready.model_id == registered.policy.model_id == manifest.onnx_sha256
    assert ready.feature_set == manifest.feature_set == house.strategy.feature_set.id
    assert ready.metrics["in_sample_total_return"] > -1
    assert not any(name.startswith("valid_") for name in ready.metrics), "29 bars are too few to keep apart"
    assert ready.reason == "no bars were kept apart to judge it on: too few were given"
    with pytest.raises(ModelNotFound):
        house.models.load("test.synthetic", "champion")
    assert (manifest.instruments, manifest.window, manifest.action_size) == (1, 3, 1)
    assert manifest.observation_size == house.strategy.observation_size(1)
    assert (manifest.seed, manifest.steps, manifest.algorithm) == (5, 512, "PPO")
    assert (manifest.trained_from, manifest.trained_to) == ("1970-01-01T00:01:00+00:00", "1970-01-01T03:20:00+00:00")
    assert manifest.reward_id == house.strategy.reward_id
    assert manifest.onnx_max_abs_diff <= 1e-5
    assert [p.step for p in house.published(TrainingProgressed)] == [256, 512]
    OnnxPolicy(registered.policy)


def test_the_run_that_goes_on_is_measured(house: House) -> None:
    seen: list[dict[tuple[str, ...], float]] = []

    def measured(service: Training) -> dict[tuple[str, ...], float]:
        figures = list(service.figures())
        check(figures, "training")
        return {(one.family.removeprefix("tradeloop_training_"), *one.labels): float(one.value) for one in figures}  # type: ignore[arg-type]

    service = house.service(publish=lambda message: None)
    service.beat = lambda: seen.append(measured(service))
    assert measured(service)["running",] == 0
    assert ("steps", "test", "synthetic") not in measured(service), "nothing is known yet"
    list(service.handle(house.request(), HERE))
    assert [one["steps", "test", "synthetic"] for one in seen[:2]] == [0, 256]
    assert {one["running",] for one in seen} == {1}
    assert seen[1]["reward", "test", "synthetic", "learnt"] == 1.0
    with pytest.raises(ValueError, match="name"):
        list(service.handle(house.request(portfolio="{}"), HERE))
    house.stop.set()
    with pytest.raises(TrainingStopped):
        list(service.handle(house.request(request_id="r2"), HERE))
    after = measured(service)
    assert (after["running",], after["planned_steps", "test", "synthetic"]) == (0, 512)
    ended = {how: after["runs_total", how] for how in ("candidate", "champion", "failed", "interrupted")}
    assert ended == {"candidate": 1, "champion": 0, "failed": 1, "interrupted": 1}


def test_progress_is_out_before_the_run_is_over(house: House) -> None:
    order: list[str] = []
    handled = house.service(publish=lambda m: order.append(type(m).__name__)).handle(house.request(), HERE)
    assert order == ["TrainingProgressed"]
    assert [type(message) for message in handled] == [ModelReady]


def test_a_request_that_comes_again_publishes_the_same_and_registers_nothing(house: House) -> None:
    request = house.request()
    first = list(house.service().handle(request, HERE))
    again = list(house.service().handle(request, HERE))
    assert [m.encode() for m in first] == [m.encode() for m in again]
    assert house.models.load("test.synthetic", "candidate").version == "1"
    house.trainer = Constant(-0.5)
    (ready,) = house.service().handle(house.request(request_id="r2"), HERE)
    assert isinstance(ready, ModelReady)
    assert ready.version == house.models.load("test.synthetic", "candidate").version == "2"


def test_the_portfolio_of_the_request_is_what_is_trained_for(house: House) -> None:
    portfolio = house.world.portfolio.model_copy(update={"capital": 5.0, "costs": Costs(slippage_bps=77.0)})
    list(house.service().handle(house.request(portfolio=portfolio.model_dump_json()), HERE))
    list(house.service().handle(house.request(), HERE))
    given, default = [task.portfolio for task in house.trainer.tasks]  # type: ignore[attr-defined]
    assert given == portfolio
    assert (default.capital, default.costs) == (100_000.0, Costs())
    assert default.universe == portfolio.universe


def test_features_are_joined_as_of_the_closes_of_the_range(house: House) -> None:
    times = house.world.bars.open_us
    part = TimeRange(start=from_us(times[50]), end=from_us(times[150]))
    list(house.service().handle(house.request(range=part), HERE))
    (task,) = house.trainer.tasks  # type: ignore[attr-defined]
    np.testing.assert_array_equal(task.bars.open_us, times[50:150])
    np.testing.assert_array_equal(task.features, house.world.features[50:150])
    assert (task.steps, task.seed) == (512, 5)


def refusal(house: House, request: TrainingRequested) -> str:
    with pytest.raises(UserError) as raised:
        list(house.service().handle(request, HERE))
    return str(raised.value)


def test_what_is_missing_is_named(house: House) -> None:
    later = TimeRange(start=datetime(2030, 1, 1, tzinfo=UTC), end=datetime(2031, 1, 1, tzinfo=UTC))
    assert "no 1m bars" in refusal(house, house.request(range=later))
    house.features = MemoryFeatureStore()
    assert "preprocess" in refusal(house, house.request())
    other = house.world.portfolio.universe.model_copy(update={"name": "other"})
    portfolio = house.world.portfolio.model_copy(update={"universe": other})
    assert "universe other" in refusal(house, house.request(portfolio=portfolio.model_dump_json()))


def test_too_short_a_range_says_how_many_bars_it_needs(house: House) -> None:
    house.trainer = Sb3Trainer(house.clock, threads=1)
    times = house.world.bars.open_us
    short = TimeRange(start=from_us(times[0]), end=from_us(times[40]))
    message = refusal(house, house.request(range=short))
    assert message.startswith("training test on synthetic: ")
    assert "need 43 bars in a row whose features are known; the range has 40 bars, 36 with features" in message


@reward(version="1")
class Undefined:
    def __call__(self, c: RewardContext) -> NDArray[np.float64]:
        return c.equity * np.nan


def test_a_broken_reward_names_its_strategy_and_is_dead_lettered(house: House) -> None:
    house.trainer = Sb3Trainer(house.clock, threads=1)
    house.strategy = replace_reward(house.strategy, Undefined())
    with pytest.raises(RewardError, match="training test on synthetic: reward Undefined returned a value"):
        list(house.service().handle(house.request(), HERE))
    house.send(house.request())
    runner = Runner(house.service(), house.bus, house.clock, RunPolicy(attempts=1))
    runner.step()
    assert runner.counters.dead_letters == 1
    (dead,) = house.bus.consumer("t", [dead_letter_topic("training.requested.v1", "training")]).poll()
    assert dead.headers["tl_error"].startswith("training test on synthetic: reward Undefined")
    assert dead.headers["tl_kind"] == "user"


def replace_reward(strategy: Strategy, new: Any) -> Strategy:
    return Strategy(strategy.name, strategy.features, new, window=strategy.window, parameters=strategy.parameters)


def test_a_run_that_is_stopped_is_left_for_the_next_owner(house: House) -> None:
    house.send(house.request())
    house.stop.set()
    runner = Runner(house.service(), house.bus, house.clock)
    runner.step()
    runner.close()
    assert not house.published(ModelReady)
    house.stop.clear()
    Runner(house.service(), house.bus, house.clock).step()
    assert len(house.published(ModelReady)) == 1


def test_a_lost_progress_message_does_not_end_the_run(house: House) -> None:
    def publish(message: Message) -> None:
        raise BusUnavailable("away")

    assert [type(m) for m in house.service(publish).handle(house.request(), HERE)] == [ModelReady]


def test_a_model_store_that_is_away_is_tried_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> Iterator[None]:
        raise ModelStoreUnavailable("away")

    service = house.service()
    with monkeypatch.context() as patched:
        patched.setattr(house.models, "versions", away)
        with pytest.raises(ModelStoreUnavailable):
            service.handle(house.request(), HERE)
    assert list(service.handle(house.request(), HERE))


def test_it_is_ready_when_bars_and_models_can_be_reached(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    service = house.service()
    assert list(service.not_ready()) == []

    def away() -> None:
        raise ModelStoreUnavailable("away")

    monkeypatch.setattr(house.models, "check", away)
    with pytest.raises(ModelStoreUnavailable, match="away"):
        service.not_ready()


def test_a_busy_service_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "FEATURE_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(f"TRAINING_{name}", "somewhere")
    monkeypatch.setenv("TRAINING_KAFKA__BOOTSTRAP_SERVERS", "kafka:19092")
    monkeypatch.setenv("TRAINING_HTTP__PORT", "8080")
    settings = load_settings(Settings)
    assert (settings.kafka.bootstrap_servers, settings.http.port) == ("kafka:19092", 8080)
    assert (settings.kafka.longest_step_s, settings.http.live_within_s) == (86_400, 3_600)


def test_H3_a_long_training_says_that_it_goes_on(house: House) -> None:
    beats: list[str] = []
    service = house.service(publish=lambda m: beats.append(type(m).__name__))
    service.beat = lambda: beats.append("beat")
    list(service.handle(house.request(), HERE))
    expected = ["beat", "beat", "TrainingProgressed", "beat", "beat"]
    assert beats == expected, "when it begins, with each rollout, and before what follows"


FORESIGHT: Mapping[str, object] = {**SMALL, "books": 32, "n_steps": 32, "learning_rate": 5e-3, "validation": 0.4}


def foresight(make_world: Any, **changes: Any) -> House:
    """A house whose first feature says where the next bar goes: a policy that learns it must pass the gate."""
    world = make_world(length=400, features=1, signal=0.004)
    house = House(world, world.strategy(window=1, parameters=FORESIGHT), **changes)
    house.trainer = Sb3Trainer(house.clock, threads=1)
    return house


def test_what_beats_cash_and_holding_becomes_champion(make_world: Any) -> None:
    house = foresight(make_world)
    (ready,) = house.service().handle(house.request(steps=20_000), HERE)
    assert isinstance(ready, ModelReady)
    assert ready.alias == "champion"
    for alias in ("candidate", "champion"):
        assert house.models.load(ready.model, alias).version == ready.version
    assert "on the 158 bars kept apart it was" in ready.reason
    assert ready.metrics["valid_errors_above_cash"] > 3.0
    assert ready.metrics["valid_errors_above_buy_and_hold"] > 3.0
    run = house.models.runs[ready.model, ready.version]
    assert run.parameters["promoted"] == "by the gate"
    assert run.parameters["reason"] == ready.reason
    assert run.metrics == ready.metrics
    assert [step for step, _ in run.curve] == sorted({step for step, _ in run.curve})
    assert all("valid_reward_mean" in metrics for _, metrics in run.curve)
    # Only bars after those kept apart are out of sample.
    manifest = house.models.load(ready.model, "champion").policy.manifest
    last = from_us(int(house.world.bars.close_us[-1])).isoformat()
    assert manifest.trained_to < manifest.selected_to == last


def test_noise_stays_a_candidate_unless_somebody_says_otherwise(make_world: Any) -> None:
    world = make_world(length=400, features=4)
    house = House(world, world.strategy(parameters={**FORESIGHT, "patience": 0}))
    house.trainer = Sb3Trainer(house.clock, threads=1)
    (ready,) = house.service().handle(house.request(steps=10_000), HERE)
    assert isinstance(ready, ModelReady)
    assert ready.alias == "candidate"
    assert ready.metrics["in_sample_total_return"] > 2 * ready.metrics["valid_total_return"]
    with pytest.raises(ModelNotFound):
        house.models.load(ready.model, "champion")
    (promoted,) = house.service().handle(house.request(request_id="r2", steps=10_000, promote=True), HERE)
    assert isinstance(promoted, ModelReady)
    assert (promoted.alias, promoted.version) == ("champion", "2"), "another version, whose record says so"
    assert promoted.reason == f"promoted by request, although {ready.reason}"
    assert house.models.load(ready.model, "champion").version == promoted.version
    assert [house.models.runs[ready.model, one].parameters["promoted"] for one in "12"] == ["no", "by request"]
    again = house.service().handle(house.request(request_id="r2", steps=10_000, promote=True), HERE)
    assert [message.encode() for message in again] == [promoted.encode()]


def test_a_champion_stays_until_something_passes_the_gate(make_world: Any) -> None:
    house = foresight(make_world)
    (first,) = house.service().handle(house.request(steps=20_000), HERE)
    house.trainer = Constant(0.0)
    (second,) = house.service().handle(house.request(request_id="r2"), HERE)
    assert isinstance(first, ModelReady)
    assert isinstance(second, ModelReady)
    assert second.alias == "candidate"
    assert house.models.load(first.model, "champion").version == first.version
    assert house.models.load(first.model, "candidate").version == second.version == "2"


def test_it_learns_from_several_markets(make_world: Any) -> None:
    world = make_world(length=300, seed=1)
    house = House(world, world.strategy(parameters=SMALL))
    other = make_world(length=250, seed=2)
    instrument = other.portfolio.universe.instruments[0].model_copy(update={"id": "test:other"})
    universe = other.portfolio.universe.model_copy(update={"name": "other", "instruments": (instrument,)})
    bars = replace(other.bars, instruments=universe.ids)
    house.bars.write(universe.timeframe, bars)
    set_id = house.strategy.feature_set.id
    rows = FeatureRows(universe.ids, house.strategy.feature_set.names, bars.close_us, other.features)
    house.features.write_offline(set_id, "other", rows)
    also = MarketRange(universe=universe, range=house.request().range)
    (ready,) = house.service().handle(house.request(also=(also,)), HERE)
    assert isinstance(ready, ModelReady)
    (task,) = house.trainer.tasks  # type: ignore[attr-defined]
    assert task.segments == [Segment(0, 256, 300), Segment(300, 550, 550)]
    np.testing.assert_array_equal(task.bars.close[300:], other.bars.close)
    np.testing.assert_array_equal(task.features[300:], other.features)
    assert house.models.runs[ready.model, "1"].parameters["also"] == "other"
    assert "on the 44 bars kept apart" in ready.reason
    halt = {"time": house.request().range.start, "kind": "halt"}
    halted = Universe.model_validate(universe.model_dump() | {"events": {"test:other": [halt]}})
    with pytest.raises(UserError, match="members in time and events are of one universe"):
        house.service().handle(house.request(also=(also.model_copy(update={"universe": halted}),)), HERE)
