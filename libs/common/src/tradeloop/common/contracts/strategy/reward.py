"""The promises about the reward: it is sound, and depends on its context alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.arrays import Floats
from tradeloop.common.contracts.strategy.trial import ARRAYS, BOOKS, EVERYONE, SEED, Step, Trial
from tradeloop.common.strategy.rewards import RewardEngine


def reward_is_sound(trial: Trial) -> None:
    for count, steps in trial.rollouts.items():
        engine: RewardEngine = trial.call("its reward's state", RewardEngine, trial.strategy.reward, BOOKS)
        components: list[str] = []
        for step in steps:
            for name, array in engine.state.items():
                if not np.isfinite(array).all():
                    raise trial.broken(f"has a reward whose c.state[{name!r}] is not finite, which live cannot store")
            given = step.of(EVERYONE, trial.features.names)
            trial.call(f"its reward (A = {count})", engine, given)
            kept = step.of(EVERYONE, trial.features.names)
            for name in ARRAYS:
                if not np.array_equal(getattr(given, name), getattr(kept, name), equal_nan=True):
                    raise trial.broken(f"has a reward that writes into c.{name}: let it make an array of its own")
            for name, column in kept.features.items():
                if not np.array_equal(given.features[name], column, equal_nan=True):
                    raise trial.broken(
                        f"has a reward that writes into c.features[{name!r}]: let it make an array of its own"
                    )
            components = components or list(engine.components)
            if list(engine.components) != components:
                raise trial.broken(
                    f"has a reward whose components change from {components} to {list(engine.components)}: "
                    "return the same ones always, zeros where there is nothing"
                )
            engine.reset(step.done)


def reward_knows_its_context_alone(trial: Trial) -> None:
    for steps in trial.rollouts.values():
        if not np.array_equal(rewards_of(trial, steps, EVERYONE), rewards_of(trial, steps, EVERYONE)):
            raise trial.broken(
                "has a reward that differs between two runs over the same context: let it use no random numbers and "
                "no clock, and remember things in c.state only"
            )


def reward_sees_each_book_alone(trial: Trial) -> None:
    for steps in trial.rollouts.values():
        together = rewards_of(trial, steps, EVERYONE)
        order = np.random.default_rng(SEED).permutation(BOOKS)
        shuffled = np.empty_like(together)
        shuffled[..., order] = rewards_of(trial, steps, order)
        alone = np.concatenate([rewards_of(trial, steps, EVERYONE[n : n + 1]) for n in range(BOOKS)], axis=-1)
        for found, how in ((alone, "alone"), (shuffled, "in another order")):
            if not np.array_equal(found, together):
                step, _, book = np.argwhere(found != together)[0]
                raise trial.broken(
                    f"has a reward that gives a book something else {how} than among {BOOKS}, "
                    f"{found[step, 0, book]} and not {together[step, 0, book]}: let it compute each book from its "
                    "own row, summing over axis=1 only (over axis=0 NumPy adds in another order when there is one book "
                    "only, even where that axis holds no books: keep rows of k numbers a book, of shape (N, k)), and "
                    "remember things in c.state only"
                )


def rewards_of(trial: Trial, steps: Sequence[Step], books: NDArray[np.int64]) -> Floats:
    """The sums and components of some of the books, (S, 1 + components, N)."""
    engine = RewardEngine(trial.strategy.reward, len(books))
    rewards = []
    for step in steps:
        total = trial.call("its reward", engine, step.of(books, trial.features.names))
        rewards.append([total, *(part.copy() for part in engine.components.values())])
        engine.reset(step.done[books])
    return np.array(rewards)
