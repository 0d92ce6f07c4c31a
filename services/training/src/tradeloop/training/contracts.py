"""The contract of the trainer: `check_trainer`. It raises `AssertionError` and needs no test framework."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.arrays import Floats
from tradeloop.common.contracts.steps import refused
from tradeloop.common.errors import UserError
from tradeloop.common.market import BAR_COLUMNS, Instrument, Series, Timeframe, Universe, align
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.strategy import RewardContext, Strategy, log_return, reward
from tradeloop.common.strategy.rewards import RewardError
from tradeloop.training.domain.material import segment
from tradeloop.training.ports import Point, Progress, Task, Trained, Trainer, TrainingStopped

Answer = Callable[[bytes, NDArray[np.float32]], Floats]
"""The answer (1, m) of an ONNX graph to an observation (1, n)."""

_BARS, _WARM_UP, _WINDOW = 200, 4, 3


@dataclass(frozen=True, slots=True)
class Apprentice:
    """A trainer to be checked, and what it is told to learn with."""

    make_trainer: Callable[[], Trainer]
    answer: Answer
    algorithm: str
    parameters: Mapping[str, object]
    """Hyper-parameters with which it learns from 200 bars, in an instant: small books, rollouts and networks."""
    steps: int

    def task(
        self, instruments: int = 1, seed: int = 0, bars: int = _BARS, validation: float = 0.0, **changes: Any
    ) -> Task:
        """Something to learn: random walks, and features of noise. `changes` are of the strategy."""
        features = (log_return(1), log_return(2))
        own = {"reward": _Growth(), "window": _WINDOW, "algorithm": self.algorithm, "parameters": self.parameters}
        strategy = Strategy("check", features, **{**own, **changes})
        return _task(strategy, self.steps, instruments, seed, bars, validation)

    def train(self, task: Task, progress: Progress = lambda *_: None, stop: threading.Event | None = None) -> Trained:
        """The policy that a new trainer makes of a task."""
        return self.make_trainer().train(task, progress, stop or threading.Event())


def check_trainer(
    make_trainer: Callable[[], Trainer],
    answer: Answer,
    *,
    algorithm: str,
    parameters: Mapping[str, object],
    steps: int = 512,
) -> None:
    """Run all of `TRAINER_CHECKS` with an algorithm of the trainer, for so many environment steps.

    `answer` runs a graph. `parameters` are hyper-parameters of the algorithm with which it learns from 200 bars, in
    an instant: small books, rollouts and networks.
    """
    for check in TRAINER_CHECKS:
        check(Apprentice(make_trainer, answer, algorithm, parameters, steps))


def the_same_task_gives_the_same_bytes(one: Apprentice) -> None:
    first, again = one.train(one.task(seed=3)), one.train(one.task(seed=3))
    assert first.onnx == again.onnx, "the same task gives another graph"
    assert _without_time(first) == _without_time(again), "the same task gives another policy"


def the_seed_counts(one: Apprentice) -> None:
    assert one.train(one.task(seed=3)).onnx != one.train(one.task(seed=4)).onnx, "another seed gives the same graph"


def every_action_scheme_is_learnt(one: Apprentice) -> None:
    chance = np.random.default_rng(0)
    for scheme, instruments in (("target_position", 2), ("discrete", 1), ("discrete", 2), ("portfolio_weights", 2)):
        task = one.task(instruments, actions=scheme)
        strategy, trained = task.strategy, one.train(task)
        for _ in range(8):
            observation = chance.normal(size=(1, strategy.observation_size(instruments))).astype(np.float32)
            action = one.answer(trained.onnx, observation)
            shape = (1, strategy.actions.size(instruments))
            assert action.shape == shape, f"a policy of {scheme} answers {action.shape}, and not {shape}"
            most = strategy.actions.choices - 1 if strategy.actions.kind == "discrete" else 1.0
            least = 0.0 if strategy.actions.kind == "discrete" else -1.0
            is_one = bool(np.all((action >= least) & (action <= most)))
            assert is_one, f"a policy of {scheme} answers {action.tolist()}, which is no action"
            is_whole = strategy.actions.kind == "box" or np.array_equal(action, np.rint(action))
            assert is_whole, f"a policy of {scheme} answers {action.tolist()}, which is no choice"
            again = one.answer(trained.onnx, observation)
            assert np.array_equal(action, again), f"a policy of {scheme} answers the same observation otherwise"


def a_policy_says_how_it_was_learnt(one: Apprentice) -> None:
    trained = one.train(one.task())
    assert trained.steps >= one.steps, f"{trained.steps} steps were taken, and {one.steps} were asked for"
    assert 0 < trained.best_step <= trained.steps, f"step {trained.best_step} of {trained.steps} was the best"
    assert trained.curve, "nothing is told of how it learnt"
    steps = [point.step for point in trained.curve]
    assert steps == sorted(set(steps)), f"the steps of the curve do not go up: {steps}"
    assert steps[-1] <= trained.steps, f"the curve ends at step {steps[-1]}, and the training at {trained.steps}"
    is_near = 0.0 <= trained.onnx_max_abs_diff < 1e-3
    assert is_near, f"the graph differs from its policy by {trained.onnx_max_abs_diff}"
    for name, value in one.parameters.items():
        assert trained.parameters.get(name) == str(value), f"the parameter {name} is not {value}, as it was given"
    assert all(isinstance(value, str) for value in trained.parameters.values()), "a parameter is no text"
    for point in trained.curve:
        assert all(np.isfinite(value) for value in point.metrics.values()), "a metric is not finite"


def what_is_kept_apart_is_not_learnt_from(one: Apprentice) -> None:
    """The best checkpoint may be another one; each is the same, whatever lies in the rows kept apart."""
    task = one.task(validation=0.25)
    start, split, stop = task.segments[0]
    assert split < stop
    other = one.task(validation=0.25)
    other.features[split:] *= -1.0
    curves = [[_learnt(point) for point in one.train(each).curve] for each in (task, other)]
    assert curves[0] == curves[1], "another future gives another training"
    assert all("valid_reward_mean" in point.metrics for point in one.train(task).curve), "checkpoints are not compared"
    untouched = one.task(validation=0.0)
    assert untouched.segments[0] == (start, stop, stop)
    trained = one.train(untouched)
    assert trained.best_step == trained.steps, "without rows to compare on, the last checkpoint is the one"


def progress_is_told_while_it_learns(one: Apprentice) -> None:
    told: list[tuple[int, int, Mapping[str, float]]] = []
    trained = one.train(one.task(), lambda step, total, metrics: told.append((step, total, dict(metrics))))
    steps = [step for step, _, _ in told]
    assert steps, "nothing is told of a run"
    assert steps == sorted(set(steps)), f"the steps that are told do not go up: {steps}"
    assert steps[-1] == trained.steps, f"at the end {steps[-1]} steps are told, of {trained.steps}"
    assert all(step <= total for step, total, _ in told), "more steps are told than there are in all"
    assert all(np.isfinite(value) for *_, metrics in told for value in metrics.values()), "a metric is not finite"


def a_task_is_left_as_it_is(one: Apprentice) -> None:
    task, untouched = one.task(), one.task()
    one.train(task)
    assert np.array_equal(task.features, untouched.features, equal_nan=True), "it writes into the features"
    for name in ("open_us", "close_us", *BAR_COLUMNS):
        same = np.array_equal(getattr(task.bars, name), getattr(untouched.bars, name), equal_nan=name == "volume")
        assert same, f"it writes into the bars: {name}"


def a_stopped_run_gives_no_policy(one: Apprentice) -> None:
    stop = threading.Event()
    task = replace(one.task(), steps=1000 * one.steps)
    refused(TrainingStopped, lambda: one.train(task, lambda *_: stop.set(), stop), "a run that was told to stop")
    refused(TrainingStopped, lambda: one.train(one.task(), stop=stop), "a run that was told to stop before it began")


def an_unknown_algorithm_is_named(one: Apprentice) -> None:
    task = one.task()
    object.__setattr__(task.strategy, "algorithm", "Divination")
    refused(UserError, lambda: one.train(task), "an algorithm that does not exist", "Divination")


def too_few_bars_are_refused(one: Apprentice) -> None:
    refused(UserError, lambda: one.train(one.task(bars=_WARM_UP + _WINDOW)), "training on too few bars", "bars")


def a_broken_reward_ends_the_run(one: Apprentice) -> None:
    refused(RewardError, lambda: one.train(one.task(reward=_Infinite())), "a reward that is not finite", "_Infinite")


TRAINER_CHECKS: Sequence[Callable[[Apprentice], None]] = (
    the_same_task_gives_the_same_bytes,
    the_seed_counts,
    every_action_scheme_is_learnt,
    a_policy_says_how_it_was_learnt,
    what_is_kept_apart_is_not_learnt_from,
    progress_is_told_while_it_learns,
    a_task_is_left_as_it_is,
    a_stopped_run_gives_no_policy,
    an_unknown_algorithm_is_named,
    too_few_bars_are_refused,
    a_broken_reward_ends_the_run,
)
"""The contract of a trainer, promise by promise: for test runners that want to name each one."""


@reward(version="1")
class _Growth:
    """The log return of equity in percent."""

    def __call__(self, c: RewardContext) -> Floats:
        return np.asarray(100.0 * np.log(c.equity / c.equity_prev))


@reward(version="1")
class _Infinite:
    """A reward that breaks its contract."""

    def __call__(self, c: RewardContext) -> Floats:
        return np.full_like(c.equity, np.inf)


def _without_time(trained: Trained) -> tuple[object, ...]:
    """A result, but for how fast it came."""
    return replace(trained, curve=()), [_without_speed(point) for point in trained.curve]


def _without_speed(point: Point) -> Point:
    return Point(point.step, {name: value for name, value in point.metrics.items() if name != "fps"})


def _learnt(point: Point) -> Point:
    """The metrics of what was learnt from."""
    metrics = {name: value for name, value in _without_speed(point).metrics.items() if not name.startswith("valid_")}
    return Point(point.step, metrics)


def _task(strategy: Strategy, steps: int, instruments: int, seed: int, bars: int, validation: float) -> Task:
    chance = np.random.default_rng(0)
    universe = Universe(
        name="synthetic",
        instruments=tuple(Instrument(id=f"check:{a}", taker_bps=1.0) for a in range(instruments)),
        timeframe=Timeframe.M1,
    )
    features = chance.normal(size=(bars, instruments, 2))
    features[:_WARM_UP] = np.nan
    series: list[Series] = []
    for _ in range(instruments):
        close = 100.0 * np.exp(np.cumsum(chance.normal(0.0, 0.004, bars)))
        opened = np.r_[close[:1], close[:-1]]
        prices = {"open": opened, "high": np.maximum(opened, close), "low": np.minimum(opened, close), "close": close}
        series.append({"open_us": np.arange(bars) * Timeframe.M1.us, **prices})
    portfolio = Portfolio(name="check", universe=universe, strategy="check")
    segments = (segment(features, validation),)
    return Task(strategy, portfolio, align(universe.ids, Timeframe.M1, series), features, steps, seed, segments)
