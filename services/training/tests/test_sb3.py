from __future__ import annotations

import itertools
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
from tradeloop.common.strategy import RewardContext, Strategy, reward
from tradeloop.common.strategy.rewards import RewardError
from tradeloop.training.adapters.onnx_graph import Layer, policy_graph
from tradeloop.training.adapters.sb3 import Sb3Trainer, hyper_parameters
from tradeloop.training.contracts import (
    TRAINER_CHECKS,
    Apprentice,
    a_policy_says_how_it_was_learnt,
    a_stopped_run_gives_no_policy,
    a_task_is_left_as_it_is,
    check_trainer,
    progress_is_told_while_it_learns,
    the_same_task_gives_the_same_bytes,
    the_seed_counts,
    what_does_not_exist_is_named,
)
from tradeloop.training.domain import Scaler
from tradeloop.training.main import Sb3OnDemand
from tradeloop.training.ports import Progress, Task, Trained, Trainer, TrainingStopped

SMALL: Mapping[str, object] = {"books": 16, "n_steps": 16, "episode_bars": 40, "net_arch": (8,)}


def trainer() -> Sb3Trainer:
    return Sb3Trainer(ManualClock(datetime(2024, 1, 1, tzinfo=UTC)), threads=1)


def train(world: Any, steps: int = 512, seed: int = 0, **changes: Any) -> Trained:
    strategy = world.strategy(**{"parameters": SMALL, **changes})
    task = Task(strategy, world.portfolio, world.bars, world.features, steps, seed)
    return trainer().train(task, lambda *_: None, threading.Event())


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
    """Leaves out the parameters that it does not know."""

    def train(self, task: Task, progress: Progress, stop: threading.Event) -> Trained:
        known = {name: value for name, value in task.strategy.parameters.items() if name in SMALL}
        return super().train(replace(task, strategy=with_parameters(task.strategy, known)), progress, stop)


def with_parameters(strategy: Strategy, parameters: Mapping[str, object]) -> Strategy:
    parts = (strategy.name, strategy.features, strategy.reward, strategy.window, strategy.actions, strategy.algorithm)
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
        (Lenient, what_does_not_exist_is_named),
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
    assert first == again
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
    parameters = {"books": 32, "n_steps": 32, "episode_bars": 100, "net_arch": (16,), "learning_rate": 5e-3}
    changes: dict[str, Any] = {
        "actions": actions,
        "window": 1,
        "parameters": {**parameters, "batch_size": 256, "n_epochs": 8},
    }
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
    world, told = make_world(), []
    strategy = world.strategy(parameters=SMALL)
    task = Task(strategy, world.portfolio, world.bars, world.features, 1000, 0)
    trained = trainer().train(task, lambda step, total, metrics: told.append((step, total, metrics)), threading.Event())
    assert [(step, total) for step, total, _ in told] == [(256, 1000), (512, 1000), (768, 1000), (1024, 1024)]
    assert trained.steps == 1024, "whole rollouts"
    for _, _, metrics in told:
        assert {"reward", "reward_pnl", "reward_drawdown"} <= metrics.keys()
        assert all(np.isfinite(value) for value in metrics.values())
    assert "train_value_loss" in told[-1][2]
    assert trained.metrics == told[-1][2]


def test_a_stopped_run_gives_no_policy(make_world: Any) -> None:
    world, stop, told = make_world(), threading.Event(), []

    def progress(step: int, total: int, metrics: Mapping[str, float]) -> None:
        told.append(step)
        stop.set()

    task = Task(world.strategy(parameters=SMALL), world.portfolio, world.bars, world.features, 100_000, 0)
    with pytest.raises(TrainingStopped, match="strategy test: stopped after"):
        trainer().train(task, progress, stop)
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "SAC"}, "there is no algorithm SAC; take one of PPO, A2C"),
        ({"parameters": {"learning_rat": 1}}, "PPO has no parameter learning_rat; did you mean learning_rate?"),
        ({"parameters": {"zzz": 1}}, "PPO has no parameter zzz; there are batch_size, books,"),
        ({"algorithm": "A2C", "parameters": {"batch_size": 64}}, "A2C has no parameter batch_size"),
        ({"parameters": {"device": "cuda"}}, "has no parameter device"),
        ({"parameters": {"use_sde": True}}, "has no parameter use_sde"),
    ],
)
def test_unknown_algorithms_and_parameters_are_named(make_world: Any, changes: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        hyper_parameters(make_world().strategy(**changes))
    assert message in str(raised.value)
    assert str(raised.value).startswith("strategy test: ")


def test_a_strategy_overrides_the_defaults(make_world: Any) -> None:
    world = make_world()
    assert hyper_parameters(world.strategy())["batch_size"] == 4096
    chosen = hyper_parameters(world.strategy(parameters={"books": 8, "gamma": 0.9}))
    assert (chosen["books"], chosen["gamma"], chosen["batch_size"]) == (8, 0.9, 8 * 64)
    assert train(world).parameters == {
        **{"books": "16", "n_steps": "16", "episode_bars": "40", "net_arch": "(8,)"},
        **{"batch_size": "256", "n_epochs": "4"},
    }


@reward(version="1")
class Infinite:
    def __call__(self, c: RewardContext) -> NDArray[np.float64]:
        return c.equity / 0.0


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_broken_reward_ends_the_run(make_world: Any) -> None:
    with pytest.raises(RewardError, match="Infinite returned a value that is not finite"):
        train(make_world(), reward=Infinite())


def test_too_few_bars_are_refused(make_world: Any) -> None:
    with pytest.raises(UserError, match="need 515 bars in a row"):
        train(make_world(), parameters={})
