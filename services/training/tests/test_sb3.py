from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from tradeloop.common.clock import ManualClock
from tradeloop.common.errors import UserError
from tradeloop.common.evaluation.backtest import backtest
from tradeloop.common.portfolio import Costs, RiskLimits
from tradeloop.common.strategy import Linear, RewardContext, Strategy, reward
from tradeloop.common.strategy.algorithms import PpoParameters
from tradeloop.common.strategy.rewards import RewardError
from tradeloop.training.adapters.environment import TradingVecEnv
from tradeloop.training.adapters.onnx_graph import Layer, policy_graph
from tradeloop.training.adapters.sb3 import Sb3Trainer, parameters_of
from tradeloop.training.adapters.validation import Validation
from tradeloop.training.contracts import (
    TRAINER_CHECKS,
    Apprentice,
    a_policy_says_how_it_was_learnt,
    a_stopped_run_gives_no_policy,
    a_task_is_left_as_it_is,
    an_unknown_algorithm_is_named,
    check_trainer,
    progress_is_told_while_it_learns,
    the_same_task_gives_the_same_bytes,
    the_seed_counts,
    what_is_kept_apart_is_not_learnt_from,
)
from tradeloop.training.domain.material import Segment, segment
from tradeloop.training.domain.scaler import Scaler
from tradeloop.training.main import Sb3OnDemand
from tradeloop.training.ports import Progress, Task, Trained, Trainer, TrainingStopped

SMALL: Mapping[str, object] = {"books": 16, "n_steps": 16, "episode_bars": 40, "net_arch": (8,)}
LEARNS = {"books": 32, "n_steps": 32, "episode_bars": 100, "net_arch": (16,), "learning_rate": 5e-3, "n_epochs": 8}


def trainer() -> Sb3Trainer:
    return Sb3Trainer(ManualClock(datetime(2024, 1, 1, tzinfo=UTC)), threads=1)


def train(world: Any, steps: int = 512, seed: int = 0, **changes: Any) -> Trained:
    return trainer().train(task(world, steps, seed, **changes), lambda *_: None, threading.Event())


def task(world: Any, steps: int = 512, seed: int = 0, **changes: Any) -> Task:
    strategy = world.strategy(**{"parameters": SMALL, **changes})
    segments = (segment(world.features, strategy.hyper_parameters.validation),)
    return Task(strategy, world.portfolio, world.bars, world.features, steps, seed, segments)


def session(graph: bytes) -> ort.InferenceSession:
    return ort.InferenceSession(graph, providers=["CPUExecutionProvider"])


class Actor:
    """Lets a graph decide."""

    def __init__(self, graph: bytes) -> None:
        self.session = session(graph)

    def act(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
        answer: NDArray[np.float64] = self.session.run(None, {"observation": observation})[0].astype(np.float64)
        return answer


class AtRandom:
    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def act(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
        return self.generator.uniform(-1, 1, (1, 1))


def answer(graph: bytes, observation: NDArray[np.float32]) -> NDArray[np.float64]:
    return Actor(graph).act(observation)


def apprentice(make_trainer: Callable[[], Trainer], algorithm: str = "PPO") -> Apprentice:
    return Apprentice(make_trainer, answer, algorithm, SMALL, steps=512)


@pytest.mark.parametrize("check", TRAINER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("algorithm", ["PPO", "A2C"])
def test_contract(algorithm: str, check: Callable[[Apprentice], None]) -> None:
    check(apprentice(trainer, algorithm))


@pytest.mark.parametrize("check", TRAINER_CHECKS, ids=lambda check: check.__name__)
def test_contract_of_the_trainer_that_is_imported_on_demand(check: Callable[[Apprentice], None]) -> None:
    check(apprentice(lambda: Sb3OnDemand(ManualClock(datetime(2024, 1, 1, tzinfo=UTC)), threads=1)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_told_before_anything_is_learnt(make_world: Any) -> None:
    world = make_world()
    absent = Sb3Trainer(ManualClock(datetime(2024, 1, 1, tzinfo=UTC)), threads=1, device="cuda")
    with pytest.raises(UserError, match="no GPU that PyTorch can use: TRAINING_DEVICE=cpu or auto"):
        absent.train(task(world), lambda *_: None, threading.Event())
    anywhere = Sb3Trainer(ManualClock(datetime(2024, 1, 1, tzinfo=UTC)), threads=1, device="auto")
    found = anywhere.train(task(world), lambda *_: None, threading.Event())
    assert found.onnx == train(world).onnx


class Fickle(Sb3Trainer):
    """Never trains a task the same way twice."""

    seeds = itertools.count()

    def train(self, task: Task, progress: Progress, stop: threading.Event) -> Trained:
        return super().train(replace(task, seed=next(self.seeds)), progress, stop)


class Seedless(Sb3Trainer):
    """Has one seed for all."""

    def train(self, task: Task, progress: Progress, stop: threading.Event) -> Trained:
        return super().train(replace(task, seed=0), progress, stop)


class Hasty(Sb3Trainer):
    """Takes fewer steps than were asked for."""

    def train(self, task: Task, progress: Progress, stop: threading.Event) -> Trained:
        return super().train(replace(task, steps=1), progress, stop)


class Silent(Sb3Trainer):
    """Tells nothing."""

    def train(self, task: Task, progress: Progress, stop: threading.Event) -> Trained:
        return super().train(task, lambda *_: None, stop)


class Tidying(Sb3Trainer):
    """Fills in the features of its task."""

    def train(self, task: Task, progress: Progress, stop: threading.Event) -> Trained:
        np.nan_to_num(task.features, copy=False)
        return super().train(task, progress, stop)


class Unstoppable(Sb3Trainer):
    """Goes on, though a little faster, when it is told to stop."""

    def train(self, task: Task, progress: Progress, stop: threading.Event) -> Trained:
        return super().train(replace(task, steps=min(task.steps, 512)), progress, threading.Event())


class Lenient(Sb3Trainer):
    """Takes another algorithm for one that it does not know."""

    def train(self, task: Task, progress: Progress, stop: threading.Event) -> Trained:
        strategy = with_parameters(task.strategy, task.strategy.parameters)
        return super().train(replace(task, strategy=strategy), progress, stop)


class Peeking(Sb3Trainer):
    """Learns from all rows, and so from those kept apart."""

    def train(self, task: Task, progress: Progress, stop: threading.Event) -> Trained:
        (start, split, end), *_ = task.segments
        peeked = Segment(start, min(split + 30, end - 15), end)
        return super().train(replace(task, segments=(peeked,)), progress, stop)


def with_parameters(strategy: Strategy, parameters: Mapping[str, object]) -> Strategy:
    parts = (strategy.name, strategy.features, strategy.reward, strategy.window, strategy.actions, "PPO")
    return Strategy(*parts, parameters)


@pytest.mark.parametrize(
    ("defect", "promise"),
    [
        (Fickle, the_same_task_gives_the_same_bytes),
        (Seedless, the_seed_counts),
        (Hasty, a_policy_says_how_it_was_learnt),
        (Silent, progress_is_told_while_it_learns),
        (Tidying, a_task_is_left_as_it_is),
        (Unstoppable, a_stopped_run_gives_no_policy),
        (Lenient, an_unknown_algorithm_is_named),
        (Peeking, what_is_kept_apart_is_not_learnt_from),
    ],
)
def test_the_contract_finds_defects(defect: type[Sb3Trainer], promise: Callable[[Apprentice], None]) -> None:
    assert promise in TRAINER_CHECKS
    with pytest.raises(AssertionError):
        promise(apprentice(lambda: defect(ManualClock(datetime(2024, 1, 1, tzinfo=UTC)), threads=1)))


def test_check_trainer_runs_every_check() -> None:
    made: list[Sb3Trainer] = []

    def make_trainer() -> Sb3Trainer:
        made.append(trainer())
        return made[-1]

    check_trainer(make_trainer, answer, algorithm="PPO", parameters=SMALL)
    assert len(made) >= len(TRAINER_CHECKS)


@pytest.mark.parametrize("algorithm", ["PPO", "A2C"])
@pytest.mark.parametrize(
    ("actions", "instruments"),
    [("target_position", 2), ("discrete", 1), ("discrete", 2), ("portfolio_weights", 2)],
)
def test_the_same_task_gives_the_same_bytes(make_world: Any, algorithm: str, actions: str, instruments: int) -> None:
    world = make_world(instruments=instruments)
    changes: dict[str, Any] = {"actions": actions, "algorithm": algorithm}
    first, again = train(world, seed=3, **changes), train(world, seed=3, **changes)
    assert first.onnx == again.onnx
    assert first.onnx_max_abs_diff <= 1e-5
    assert first.steps == 512
    assert train(world, seed=4, **changes).onnx != first.onnx


def test_the_graph_is_one_self_contained_file_without_a_trace_of_the_machine(make_world: Any) -> None:
    world = make_world(instruments=2)
    trained = train(world, actions="portfolio_weights")
    model = onnx.load_from_string(trained.onnx)
    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert [node.op_type for node in model.graph.node] == ["Sub", "Mul", "Clip", "Gemm", "Tanh", "Gemm", "Clip"]
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    one = session(trained.onnx)
    size = world.strategy().observation_size(2)
    assert [(i.name, i.shape, i.type) for i in one.get_inputs()] == [("observation", [1, size], "tensor(float)")]
    assert [(o.name, o.shape, o.type) for o in one.get_outputs()] == [("action", [1, 3], "tensor(float)")]


def test_the_graph_scales_clips_and_chooses() -> None:
    scaler = Scaler(np.array([1.0, 0.0], dtype=np.float32), np.array([2.0, 100.0], dtype=np.float32))
    layer = Layer(np.array([[0.01, 0.0], [0.0, 0.01]], dtype=np.float32), np.zeros(2, dtype=np.float32), None)
    box = session(policy_graph(scaler, [layer], kind="box", choices=0, actions=2))
    given = np.array([[3.0, 5.0]], dtype=np.float32)
    np.testing.assert_allclose(box.run(None, {"observation": given})[0], [[0.04, 0.1]], rtol=1e-6)
    steep = Layer(np.eye(2, dtype=np.float32) * 9, np.zeros(2, dtype=np.float32), None)
    box = session(policy_graph(scaler, [steep], kind="box", choices=0, actions=2))
    assert box.run(None, {"observation": -given})[0].tolist() == [[-1.0, -1.0]]
    weight = np.array([[0, 0], [1, 0], [-1, 0], [0, 0], [0, -1], [0, 1]], dtype=np.float32)
    logits = Layer(weight, np.zeros(6, dtype=np.float32), None)
    discrete = session(policy_graph(scaler, [logits], kind="discrete", choices=3, actions=2))
    assert discrete.run(None, {"observation": given})[0].tolist() == [[1.0, 2.0]]
    assert discrete.run(None, {"observation": -given})[0].tolist() == [[2.0, 1.0]]


@pytest.mark.parametrize("actions", ["target_position", "discrete"])
def test_it_learns_what_there_is_to_learn(make_world: Any, actions: str) -> None:
    """The first feature says whether the next bar rises or falls by 0.4 percent."""
    free, unlimited = Costs(slippage_bps=0.0, fee_multiplier=0.0), RiskLimits()
    world = make_world(length=400, features=1, signal=0.004, costs=free, limits=unlimited)
    changes: dict[str, Any] = {"actions": actions, "window": 1, "parameters": {**LEARNS, "batch_size": 256}}
    trained = train(world, steps=20_000, **changes)
    strategy = world.strategy(**changes)

    def growth(actor: Any) -> float:
        result = backtest(world.portfolio, strategy, world.bars, world.features, actor)
        return float(np.log(result.final_equity / result.equity[0]))

    perfect = 0.004 * (400 - 4 - 1)
    random = [growth(AtRandom(seed)) for seed in range(5)] if actions == "target_position" else [0.0]
    assert max(np.abs(random)) < 0.3 * perfect
    assert growth(Actor(trained.onnx)) > 0.8 * perfect


def test_the_scaler_is_part_of_the_graph(make_world: Any) -> None:
    """Features in other units give the same decisions."""
    world = make_world(features=1, signal=0.004)
    shifted = type(world)(world.portfolio, world.bars, world.features * 512.0 + 4096.0)
    near, far = train(world), train(shifted)
    results = [
        backtest(world.portfolio, w.strategy(), w.bars, w.features, Actor(t.onnx))
        for w, t in ((world, near), (shifted, far))
    ]
    np.testing.assert_allclose(results[0].weights, results[1].weights, atol=1e-3)
    assert np.nanstd(results[0].weights) > 0


def test_progress_is_told_while_it_trains(make_world: Any) -> None:
    world, told = make_world(length=400), []
    one = task(world, 1000)
    trained = trainer().train(one, lambda step, total, metrics: told.append((step, total, metrics)), threading.Event())
    assert [(step, total) for step, total, _ in told] == [(256, 1000), (512, 1000), (768, 1000), (1024, 1024)]
    assert trained.steps == 1024, "whole rollouts"
    for _, _, metrics in told:
        assert {"reward", "reward_pnl", "reward_drawdown"} <= metrics.keys()
        assert all(np.isfinite(value) for value in metrics.values())
        assert {"train_value_loss", "valid_reward_mean", "valid_growth"} <= metrics.keys()
    assert [(point.step, point.metrics) for point in trained.curve] == [(step, metrics) for step, _, metrics in told]


def test_a_stopped_run_gives_no_policy(make_world: Any) -> None:
    world, stop, told = make_world(), threading.Event(), []

    def progress(step: int, total: int, metrics: Mapping[str, float]) -> None:
        told.append(step)
        stop.set()

    with pytest.raises(TrainingStopped, match="strategy test: stopped after"):
        trainer().train(task(world, 100_000), progress, stop)
    assert told == [1024], "one percent of the run, and no more"


def test_what_it_sets_in_pytorch_it_sets_back(make_world: Any) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(make_world())
        assert torch.get_num_threads() == 2
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_num_threads(before)


def test_a_strategy_overrides_the_defaults(make_world: Any) -> None:
    world = make_world(length=400)
    chosen = parameters_of(task(world, parameters={}))
    assert (chosen["batch_size"], chosen["episode_bars"]) == (512, (400 - 4 - 59) // 4), (
        "a quarter of what is learnt from"
    )
    assert parameters_of(task(world, parameters={"episode_bars": 7}))["episode_bars"] == 7
    chosen = parameters_of(task(world, parameters={"books": 2, "gamma": 0.9}))
    assert (chosen["books"], chosen["gamma"], chosen["batch_size"]) == (2, 0.9, 2 * 128)
    recorded = train(world).parameters
    assert recorded.keys() == {*PpoParameters.model_fields, "device"}
    assert recorded["device"] == "cpu"
    assert {key: recorded[key] for key in SMALL} == {key: str(value) for key, value in SMALL.items()}


def test_the_mean_of_a_rollout_is_told_of_each_component(make_world: Any) -> None:
    """Components are means of the rollout, as the reward is: they add up to it."""
    for point in train(make_world(), 1024).curve:
        parts = [value for name, value in point.metrics.items() if name.startswith("reward_")]
        assert len(parts) == 2
        assert point.metrics["reward"] == pytest.approx(sum(parts), rel=1e-6)


def test_the_unit_of_a_reward_does_not_matter(make_world: Any) -> None:
    """A raw log return is a hundred times smaller than one in percent, and teaches as much."""
    world = make_world(length=400, features=1, signal=0.004)
    growths = []
    for weight in (1e-4, 1.0, 1e3):
        trained = train(world, 20_000, window=1, parameters=LEARNS, reward=Scaled(weight))
        strategy = world.strategy(window=1, reward=Scaled(weight))
        result = backtest(world.portfolio, strategy, world.bars, world.features, Actor(trained.onnx))
        growths.append(math.log(result.final_equity / result.equity[0]))
        rewards = [point.metrics["reward"] for point in trained.curve]
        assert 1e-5 * weight < max(rewards) < 0.01 * weight, "what is told is the reward as it was given"
    assert min(growths) > 0.8 * max(growths) > 0.5


@reward(version="1")
class Scaled:
    weight: float = 1.0

    def __call__(self, c: RewardContext) -> NDArray[np.float64]:
        return self.weight * np.log(c.equity / c.equity_prev)


def test_the_best_checkpoint_is_kept_and_not_the_last(make_world: Any) -> None:
    """What was learnt by heart is worth nothing on the rows kept apart: noise has nothing else to teach."""
    world = make_world(length=400, features=4)
    parameters = {**LEARNS, "validation": 0.4, "patience": 0}
    one = task(world, 20_000, parameters=parameters)
    trained = trainer().train(one, lambda *_: None, threading.Event())
    by_step = {point.step: point.metrics["valid_reward_mean"] for point in trained.curve}
    assert by_step[trained.best_step] == max(by_step.values())
    assert trained.best_step < trained.steps
    # The graph is that checkpoint: measured anew on the same rows, by the graph, it earns the same.
    session = Actor(trained.onnx)
    again = Validation(one).measure(lambda seen: np.concatenate([session.act(row[None]) for row in seen]))
    assert again["reward_mean"] == pytest.approx(by_step[trained.best_step], rel=1e-4)
    short = trainer().train(
        task(world, 20_000, parameters={**parameters, "patience": 2}), lambda *_: None, threading.Event()
    )
    assert short.steps < trained.steps, "it ends when nothing gets better"
    assert len(short.curve) == [point.step for point in short.curve].index(short.best_step) + 1 + 2


def test_books_of_every_age_are_seen_at_any_time(make_world: Any) -> None:
    """If all started and ended together, a rollout would see accounts of one age."""
    world = make_world(length=400)
    ended: list[int] = []
    env = TradingVecEnv(
        world.portfolio,
        world.strategy(),
        world.bars,
        world.features,
        books=64,
        episode_bars=50,
        generator=np.random.default_rng(0),
        staggered=True,
    )
    env.reset()
    for _ in range(200):
        ended.append(int(env.step(np.zeros((64, 1)))[2].sum()))
    assert max(ended) < 16 < 64, "at no step do all end"
    assert sum(step > 0 for step in ended) > 100


def test_a_large_difference_of_the_graph_is_told_and_no_reason_to_lose_the_policy(
    make_world: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tradeloop.training.adapters.sb3.MAX_ABS_DIFF", -1.0)
    trained = train(make_world())
    assert trained.onnx
    assert "the exported graph differs from its policy" in capsys.readouterr().out


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_activation_deviation_and_schedules_are_taken(make_world: Any, activation: str) -> None:
    changes = {"activation": activation, "log_std_init": -3.0, "learning_rate": Linear(1e-3, 1e-5)}
    trained = train(make_world(), parameters={**SMALL, **changes})
    assert trained.onnx_max_abs_diff <= 1e-5
    kinds = {node.op_type for node in onnx.load_from_string(trained.onnx).graph.node}
    assert ("Relu" in kinds, "Tanh" in kinds) == (activation == "relu", activation == "tanh")
    last = trained.curve[-1].metrics
    assert last["train_std"] == pytest.approx(math.exp(-3.0), rel=0.05)
    assert last["train_learning_rate"] < 1e-3


@reward(version="1")
class Infinite:
    def __call__(self, c: RewardContext) -> NDArray[np.float64]:
        return c.equity / 0.0


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_broken_reward_ends_the_run(make_world: Any) -> None:
    with pytest.raises(RewardError, match="Infinite returned a value that is not finite"):
        train(make_world(), reward=Infinite())


def test_too_few_bars_are_refused(make_world: Any) -> None:
    with pytest.raises(UserError, match="need 52 bars in a row"):
        train(make_world(length=50), parameters={"episode_bars": 49})
