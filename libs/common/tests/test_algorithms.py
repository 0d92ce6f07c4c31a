"""Hyper-parameters: what is wrong with one is said when a strategy is defined, in one line that names it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tradeloop.common.arrays import Floats
from tradeloop.common.strategy import RewardContext, Strategy, log_return, reward
from tradeloop.common.strategy.algorithms import ALGORITHMS, A2cParameters, Linear, PpoParameters
from tradeloop.common.strategy.definition import StrategyError


@reward(version="1")
class Nothing:
    def __call__(self, c: RewardContext) -> Floats:
        return np.zeros_like(c.equity)


def strategy(parameters: dict[str, Any], algorithm: str = "PPO") -> Strategy:
    return Strategy("mine", [log_return(1)], Nothing(), algorithm=algorithm, parameters=parameters)


def refused(parameters: dict[str, Any], algorithm: str = "PPO") -> str:
    """The line with which a strategy is refused."""
    with pytest.raises(StrategyError) as raised:
        strategy(parameters, algorithm)
    line = str(raised.value)
    assert line.startswith("strategy mine: ")
    assert "\n" not in line
    return line.removeprefix("strategy mine: ")


TINY = math.ulp(0.0)
ABOVE_ONE = math.nextafter(1.0, 2.0)
RANGES: dict[str, tuple[list[Any], list[Any]]] = {
    "books": ([1, 65_536], [0, -1, 65_537]),
    "episode_bars": ([None, 1, 10_000_000], [0, -5, 10_000_001]),
    "net_arch": ([(1,), [4096, 1], (64, 64, 64)], [(), (0,), (4097,), 64, "64", {"pi": [64]}, (64.0,), (True,), None]),
    "activation": (["tanh", "relu"], ["ReLU", "", None, 1]),
    "log_std_init": ([-10.0, 2.0, 0], [math.nextafter(-10.0, -11.0), math.nextafter(2.0, 3.0)]),
    "validation": ([0.0, 0.5, 0], [-TINY, math.nextafter(0.5, 1.0), 1]),
    "patience": ([0, 10**6], [-1]),
    "learning_rate": ([TINY, 1.0, 1, Linear(1e-3), Linear(0.0, 1.0)], [0.0, 0, -TINY, ABOVE_ONE, "linear", None]),
    "n_steps": ([1, 65_536], [0, -1, 65_537]),
    "gamma": ([0.0, 1.0, 0, 1], [-TINY, ABOVE_ONE, 1.5]),
    "gae_lambda": ([0.0, 1.0], [-TINY, ABOVE_ONE]),
    "normalize_advantage": ([True, False], [0, 1, "yes", None]),
    "ent_coef": ([0.0, 1e6], [-TINY]),
    "vf_coef": ([0.0, 1e6], [-TINY]),
    "max_grad_norm": ([TINY, 1e6], [0.0, -1.0]),
}
OF_PPO: dict[str, tuple[list[Any], list[Any]]] = {
    "batch_size": ([1, 4096], [0, -1, 4097]),
    "n_epochs": ([1, 1000], [0, 1001]),
    "clip_range": ([TINY, 1.0, Linear(0.3, 0.1)], [0.0, ABOVE_ONE, -0.2]),
    "clip_range_vf": ([None, TINY, 10.0], [0.0, -1.0]),
    "target_kl": ([None, TINY, 10.0], [0.0, -1.0]),
}
OF_A2C: dict[str, tuple[list[Any], list[Any]]] = {
    "use_rms_prop": ([True, False], [1, None]),
    "rms_prop_eps": ([TINY, 1.0], [0.0, -1e-5]),
}
BY_ALGORITHM = {"PPO": RANGES | OF_PPO, "A2C": RANGES | OF_A2C}
EVERY = [(algorithm, name) for algorithm, ranges in BY_ALGORITHM.items() for name in ranges]


def test_no_parameter_and_no_algorithm_is_left_out() -> None:
    assert {name: set(kind.model_fields) for name, kind in ALGORITHMS.items()} == {
        name: set(ranges) for name, ranges in BY_ALGORITHM.items()
    }


@pytest.mark.parametrize(("algorithm", "name"), EVERY)
def test_both_ends_of_a_range_are_taken_and_no_more(algorithm: str, name: str) -> None:
    good, bad = BY_ALGORITHM[algorithm][name]
    for value in good:
        assert strategy({name: value}, algorithm).parameters == {name: value}
    for value in bad:
        line = refused({name: value}, algorithm)
        assert name in line
        assert repr(value) in line
        assert "should be" in line or "should not be" in line or "is more than" in line, line


@pytest.mark.parametrize(("algorithm", "name"), EVERY)
def test_no_number_is_a_truth_and_none_is_endless(algorithm: str, name: str) -> None:
    wrong: list[Any] = [math.nan, math.inf, -math.inf, "many", [1.0], {}, object, 1j]
    if name not in {"normalize_advantage", "use_rms_prop"}:
        wrong += [True, False]
    for value in wrong:
        assert refused({name: value}, algorithm).startswith(f"{algorithm}: parameter {name} is {value!r}; it should")


@pytest.mark.parametrize("name", ["books", "episode_bars", "n_steps", "learning_rate", "gamma", "clip_range"])
def test_an_integer_that_no_float_holds_is_refused_like_another(name: str) -> None:
    assert f"parameter {name} is {10**400}; it should be" in refused({name: 10**400})


@pytest.mark.parametrize("name", ["books", "episode_bars", "patience", "n_steps", "batch_size", "n_epochs"])
def test_a_count_is_whole(name: str) -> None:
    assert "should be a valid integer" in refused({name: 2.5})
    assert "should be a valid integer" in refused({name: "2"})


@pytest.mark.parametrize("name", ["learning_rate", "clip_range"])
@pytest.mark.parametrize(
    "schedule",
    [
        Linear(0.0, 0.0),
        Linear(1.1),
        Linear(0.5, -0.1),
        Linear(math.nan),
        Linear(0.5, math.nan),
        Linear(math.inf),
        Linear(True),
        Linear("fast"),  # type: ignore[arg-type]
        Linear(None),  # type: ignore[arg-type]
    ],
    ids=repr,
)
def test_a_schedule_has_two_rates_as_its_ends(name: str, schedule: Linear) -> None:
    assert refused({name: schedule}).startswith(f"PPO: parameter {name} is {schedule!r}; it should ")


def test_a_schedule_is_a_straight_line() -> None:
    rate = Linear(4e-4, 2e-4)
    assert [rate(1.0), rate(0.5), rate(0.0)] == pytest.approx([4e-4, 3e-4, 2e-4], rel=1e-15)
    assert strategy({"learning_rate": rate}).hyper_parameters.learning_rate == rate
    assert "should be a number from 0 to 1" in refused({"learning_rate": lambda remaining: 1e-3})


@pytest.mark.parametrize(
    ("algorithm", "parameters", "line"),
    [
        ("SAC", {}, "there is no algorithm 'SAC'; take one of PPO, A2C"),
        ("DQN", {"gamma": 0.9}, "there is no algorithm 'DQN'; take one of PPO, A2C"),
        ("ppo", {}, "there is no algorithm 'ppo'; take one of PPO, A2C"),
        ("PPO", {"gama": 0.9}, "PPO has no parameter gama; did you mean gamma?"),
        ("A2C", {"n_epochs": 3}, "A2C has no parameter n_epochs; "),
        ("PPO", {"rms_prop_eps": 1e-5}, "PPO has no parameter rms_prop_eps; "),
        ("PPO", {3: 1}, "PPO has no parameter 3; "),
        ("PPO", {"books": 1, "n_steps": 1}, "PPO: books times n_steps is 1, and one step has no deviation: take at"),
        ("A2C", {"books": 1, "n_steps": 1}, "A2C: books times n_steps is 1, and one step has no deviation: take at"),
        ("A2C", {"books": 4096, "n_steps": 4096}, "A2C: books times n_steps is 16,777,216, and all steps of a rollout"),
        ("PPO", {"books": 2, "batch_size": 300}, "PPO: batch_size 300 is more than the 256 steps of books times"),
    ],
)
def test_what_does_not_exist_or_fit_is_named(algorithm: str, parameters: dict[str, Any], line: str) -> None:
    assert refused(parameters, algorithm).startswith(line)


def test_what_is_left_out_has_its_default() -> None:
    assert strategy({}).hyper_parameters == PpoParameters()
    assert strategy({"gamma": 1}, "A2C").hyper_parameters == A2cParameters(gamma=1.0)
    assert strategy({"net_arch": [32]}).hyper_parameters.net_arch == (32,)
    assert strategy({"books": 1}).hyper_parameters.books == 1
    alone = {"books": 1, "n_steps": 1, "normalize_advantage": False}
    assert strategy(alone, "A2C").hyper_parameters.normalize_advantage is False
