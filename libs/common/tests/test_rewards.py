"""Rewards: their identity, and the engine that runs them."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradeloop.common.arrays import Floats
from tradeloop.common.strategy.rewards import (
    Reward,
    RewardContext,
    RewardEngine,
    RewardError,
    is_scalar,
    reward,
    reward_id,
    scalar_reward,
)


def context(equity_prev: list[float], equity: list[float], instruments: int = 1) -> RewardContext:
    """Books that differ in their equity."""
    books = len(equity)
    by_book = ("traded_notional", "turnover", "fees", "slippage", "funding", "drawdown", "unrealised")
    by_instrument = ("position_prev", "position", "price_prev", "price", "holding_bars")
    arrays: dict[str, Any] = {name: np.zeros(books) for name in by_book}
    arrays |= {name: np.ones((books, instruments)) for name in by_instrument}
    return RewardContext(
        equity_prev=np.array(equity_prev),
        equity=np.array(equity),
        action=np.full((books, instruments), 0.5),
        terminated=np.zeros(books, dtype=np.bool_),
        truncated=np.zeros(books, dtype=np.bool_),
        ts_prev=np.zeros(books, dtype=np.int64),
        ts=np.zeros(books, dtype=np.int64),
        **arrays,
    )


@reward(version="1")
class Gain:
    """Gain of equity, in two parts."""

    weight: float = 1.0

    def __call__(self, c: RewardContext) -> dict[str, Floats]:
        return {"gain": c.equity - c.equity_prev, "penalty": -self.weight * c.equity}


@reward(version="1")
class Best:
    """Counts bars since the episode's best equity."""

    initial_state: ClassVar[Mapping[str, float]] = {"best": 0.0, "bars": 0.0}

    def __call__(self, c: RewardContext) -> Floats:
        better = c.equity > c.state["best"]
        c.state["best"][better] = c.equity[better]
        c.state["bars"] += 1.0
        c.state["bars"][better] = 0.0
        return -c.state["bars"]


@scalar_reward(version="3")
def growth(previous: Mapping[str, float], current: Mapping[str, float], action: float) -> float:
    return current["equity"] / previous["equity"] - action


def returning(make: Callable[[RewardContext], Any]) -> Reward:
    """A reward that answers with what `make` makes."""

    @reward(version="1")
    class Made:
        def __call__(self, c: RewardContext) -> Any:
            return make(c)

    return Made()


def test_components_are_summed_in_their_order() -> None:
    engine = RewardEngine(Gain(weight=0.1), 2)
    total = engine(context([1.0, 2.0], [3.0, 5.0]))
    assert list(engine.components) == ["gain", "penalty"]
    np.testing.assert_array_equal(engine.components["gain"], [2.0, 3.0])
    np.testing.assert_array_equal(total, [2.0 + -0.1 * 3.0, 3.0 + -0.1 * 5.0])


def test_an_array_is_one_component() -> None:
    engine = RewardEngine(returning(lambda c: c.equity * 2.0), 1)
    assert engine(context([1.0], [2.0])).tolist() == [4.0]
    assert {name: part.tolist() for name, part in engine.components.items()} == {"reward": [4.0]}


def test_a_reward_outlives_the_books_it_was_read_from() -> None:
    """A reward may return an array of the context, which the simulator's next step overwrites."""
    given = context([1.0], [2.0])
    total = RewardEngine(returning(lambda c: {"a": c.equity, "b": c.equity}), 1)(given)
    given.equity[:] = 99.0
    assert total.tolist() == [4.0]


@reward(version="1")
class Plain:
    """Parts that are arrays of the books and of the state themselves."""

    initial_state: ClassVar[Mapping[str, float]] = {"seen": 7.0}

    def __call__(self, c: RewardContext) -> dict[str, Floats]:
        return {"books": c.equity, "new": c.equity * 2.0, "state": c.state["seen"]}


def test_components_outlive_the_books_they_were_read_from() -> None:
    """An episode that ends begins anew before anybody reads what its last decision was worth."""
    books, engine = np.array([[2.0, 3.0]]), RewardEngine(Plain(), 2)
    given = context([1.0, 1.0], [0.0, 0.0])
    given.equity = books[0]
    engine(given)
    books[:] = 99.0
    engine.state["seen"][:] = 99.0
    parts = {name: part.tolist() for name, part in engine.components.items()}
    assert parts == {"books": [2.0, 3.0], "new": [4.0, 6.0], "state": [7.0, 7.0]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: c.position, r"returned float64 of shape \(2, 1\) as reward: .* float64 of shape \(2,\)"),
        (lambda c: {"pnl": c.equity, "sign": c.terminated}, r"returned bool of shape \(2,\) as sign"),
        (lambda c: 1.0, "returned float as reward"),
        (lambda c: None, "returned NoneType as reward"),
        (lambda c: {}, "returned no components"),
        (
            lambda c: {"pnl": c.equity, "drawdown": c.equity * np.nan},
            "returned a value that is not finite in drawdown: guard its",
        ),
        (
            lambda c: {"pnl": c.equity, "ratio": c.equity / 0.0},
            "returned a value that is not finite in ratio: guard its",
        ),
        (
            lambda c: {"a": c.equity * 1e308, "b": c.equity * 1e308},
            "returned a value that is not finite in the sum of its components: guard its",
        ),
        (lambda c: c.state.update(mine=c.equity) or c.equity, "changed what its state consists of: declare each name"),
    ],
)
def test_a_broken_promise_is_named(make: Callable[[RewardContext], Any], message: str) -> None:
    engine = RewardEngine(returning(make), 2)
    with np.errstate(all="ignore"), pytest.raises(RewardError, match=rf"^reward returning.<locals>.Made {message}"):
        engine(context([1.0, 1.0], [1.0, 1.5]))


def test_a_state_that_is_replaced_is_refused() -> None:
    """It would alias the simulator's own array, which a reset would then write into."""

    @reward(version="1")
    class Replaces:
        initial_state: ClassVar[Mapping[str, float]] = {"last": 0.0}

        def __call__(self, c: RewardContext) -> Floats:
            c.state["last"] = c.equity
            return c.equity - c.equity_prev

    with pytest.raises(RewardError, match=r"c\.state\[name\]\[:\] = "):
        RewardEngine(Replaces(), 1)(context([1.0], [2.0]))


def test_state_is_kept_and_reset_book_by_book() -> None:
    engine = RewardEngine(Best(), 2)
    assert engine(context([1.0, 1.0], [2.0, 2.0])).tolist() == [0.0, 0.0]
    assert engine(context([2.0, 2.0], [1.0, 1.0])).tolist() == [-1.0, -1.0]
    engine.reset(np.array([False, True]))
    assert engine(context([1.0, 1.0], [1.5, 1.5])).tolist() == [-2.0, 0.0]
    assert engine.state["best"].tolist() == [2.0, 1.5]


@given(st.lists(st.lists(st.floats(0.1, 10.0), min_size=3, max_size=3), min_size=1, max_size=8))
def test_books_together_get_what_each_gets_alone(path: list[list[float]]) -> None:
    for instance in (Gain(), Best(), growth):
        together = RewardEngine(instance, 3)
        alone = [RewardEngine(instance, 1) for _ in range(3)]
        for before, after in zip([[1.0] * 3, *path], path, strict=False):
            expected = [engine(context([b], [a]))[0] for engine, b, a in zip(alone, before, after, strict=True)]
            assert together(context(before, after)).tolist() == expected


@reward(version="1")
class RollingSharpe:
    """Mean of the last returns over their deviation."""

    bars: int = 20

    @property
    def initial_state(self) -> Mapping[str, Floats]:
        return {"returns": np.zeros(self.bars)}

    def __call__(self, c: RewardContext) -> Floats:
        returns = c.state["returns"]
        returns[:, :-1] = returns[:, 1:]
        returns[:, -1] = c.equity / c.equity_prev - 1.0
        sharpe: Floats = returns.mean(axis=1) / (returns.std(axis=1) + 1e-4)
        return sharpe


def test_a_book_may_remember_a_row() -> None:
    rng = np.random.default_rng(5)
    engine, equity = RewardEngine(RollingSharpe(bars=3), 4), np.cumprod(rng.uniform(0.9, 1.1, (9, 4)), axis=0)
    past: list[list[float]] = [[0.0] * 3 for _ in range(4)]
    for t in range(1, 9):
        if t == 5:
            engine.reset(np.array([False, True, False, True]))
            past[1], past[3] = [0.0] * 3, [0.0] * 3
        rewards = engine(context(equity[t - 1].tolist(), equity[t].tolist()))
        for n, row in enumerate(past):
            row[:] = [*row[1:], equity[t, n] / equity[t - 1, n] - 1.0]
            assert rewards[n] == np.mean(row) / (np.std(row) + 1e-4)
    assert engine.state["returns"].tolist() == past


def test_what_one_book_remembers_survives_as_json() -> None:
    engine = RewardEngine(RollingSharpe(bars=3), 2)
    for equity in ([1.1, 0.9], [1.2, 0.7]):
        engine(context([1.0, 1.0], equity))
    kept = json.loads(json.dumps(engine.snapshot(1)))
    assert kept == {"returns": [0.0, 0.9 - 1.0, 0.7 - 1.0]}
    other = RewardEngine(RollingSharpe(bars=3), 1)
    assert other.restore(kept)
    one, two = (made(context([1.0], [1.3]))[0] for made in (RewardEngine(RollingSharpe(bars=3), 1), other))
    assert two == engine(context([1.0, 1.0], [1.3, 1.3]))[1] != one


def test_a_memory_of_another_shape_is_not_taken_over() -> None:
    engine = RewardEngine(RollingSharpe(bars=3), 1)
    engine(context([1.0], [1.1]))
    for kept in ({"returns": [1.0, 2.0]}, {"returns": 1.0}, {"other": [1.0, 2.0, 3.0]}, {}):
        assert not engine.restore(kept)
        assert engine.state["returns"].tolist() == [[0.0, 0.0, 0.0]]
    assert RewardEngine(Gain(), 1).restore({})


@pytest.mark.parametrize("value", [(), np.zeros((2, 3)), "many", None, [[1.0], [1.0, 2.0]]])
def test_an_initial_state_is_a_number_or_a_row(value: Any) -> None:
    @reward(version="1")
    class Odd:
        initial_state: ClassVar[Mapping[str, Any]] = {"odd": value}

        def __call__(self, c: RewardContext) -> Floats:
            return c.equity

    with pytest.raises(RewardError, match=r"Odd declares .* as the initial state odd: give what one book remembers"):
        RewardEngine(Odd(), 2)


def test_a_reward_that_is_not_finite_says_when_and_what_the_price_did() -> None:
    engine = RewardEngine(returning(lambda c: 1.0 / (c.equity - 2.0)), 2)
    given = context([1.0, 1.0], [1.0, 2.0])
    given.ts[:] = 1_641_168_000_000_000
    at = r"\(the bar that closed 2022-01-03T00:00:00\+00:00: equity 1 to 2"
    with np.errstate(all="ignore"), pytest.raises(RewardError, match=rf"logarithms {at}\)$"):
        engine(given)
    given.price[1, 0] = 40.0
    with np.errstate(all="ignore"), pytest.raises(RewardError, match=rf"{at}, and a price jumps from 1 to 40: is the"):
        engine(given)


def test_a_scalar_reward_sees_one_book_at_a_time() -> None:
    total = RewardEngine(growth, 2)(context([1.0, 2.0], [3.0, 5.0]))
    assert total.tolist() == [3.0 - 0.5, 2.5 - 0.5]
    assert is_scalar(growth)
    assert not is_scalar(Gain())


def test_a_scalar_reward_is_for_one_instrument() -> None:
    with pytest.raises(RewardError, match="reward growth is a scalar reward, for one instrument, and got 2"):
        RewardEngine(growth, 1)(context([1.0], [1.0], instruments=2))


def test_parameters_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Gain().weight = 2.0  # type: ignore[misc]


def test_the_id_covers_definition_version_and_parameters() -> None:
    @reward(version="2")
    class Next(Gain):
        """The same under another name and version."""

    ids = [reward_id(one) for one in (Gain(), Gain(weight=2.0), Best(), growth, Next(), versioned("1"), versioned("2"))]
    assert len(set(ids)) == len(ids)
    assert reward_id(Gain()) == reward_id(Gain(weight=1.0)) == ids[0]
    assert reward_id(versioned("2")) == ids[-1]


def versioned(version: str) -> Reward:
    @reward(version=version)
    class Versioned:
        def __call__(self, c: RewardContext) -> Floats:
            return c.equity

    return Versioned()


SCRIPT = """
import pickle
from tradeloop.common.strategy.rewards import reward, reward_id, scalar_reward

@reward(version="1")
class Mine:
    weights: tuple = (0.1, 2)
    names: dict = None

@scalar_reward(version="1")
def gain(previous, current, action):
    return 0.0

print(reward_id(Mine(names={"b": True, "a": None})), reward_id(gain), pickle.loads(pickle.dumps(gain)) is gain)
"""


def test_ids_and_pickles_are_the_same_in_every_process() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert [word[:3] for word in runs[0]] == ["rw_", "rw_", "Tru"]
    assert pickle.loads(pickle.dumps(Gain(0.5))) == Gain(0.5)


def test_a_parameter_must_be_plain_data() -> None:
    @reward(version="1")
    class Odd:
        weights: frozenset[str] = frozenset({"a", "b"})

        def __call__(self, c: RewardContext) -> Floats:
            return c.equity

    with pytest.raises(RewardError, match=r"reward .*Odd has a parameter without a stable identity .*frozenset"):
        reward_id(Odd())


def test_a_reward_needs_a_version() -> None:
    def plain(c: RewardContext) -> Floats:
        return c.equity

    with pytest.raises(RewardError, match=r"plain has no version: decorate its class with @reward\(version="):
        reward_id(plain)
    with pytest.raises(RewardError, match=r'Plain: write its decorator as @reward\(version="1"\)'):

        @reward  # type: ignore[arg-type]
        class Plain:
            pass

    with pytest.raises(RewardError, match=r'write its decorator as @scalar_reward\(version="1"\)'):
        scalar_reward(growth)  # type: ignore[arg-type]
