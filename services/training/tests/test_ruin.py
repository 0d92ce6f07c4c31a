"""Books that lose more than they have, in training: a price that jumps against them ends their episode, no more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tradeloop.training.adapters.environment import TradingVecEnv


def test_a_jump_against_short_books_ends_their_episodes_with_a_finite_reward(make_world: Any) -> None:
    """The logarithm of a negative equity stopped the training, and the reward was blamed."""
    world = make_world()
    prices = {name: getattr(world.bars, name).copy() for name in ("open", "high", "low", "close")}
    for name, column in prices.items():
        column[101 if name == "open" else 100 :] *= 5.0
    bars = replace(world.bars, **prices)
    env = TradingVecEnv(
        world.portfolio,
        world.strategy(),
        bars,
        world.features,
        books=32,
        episode_bars=150,
        generator=np.random.default_rng(0),
    )
    env.reset()
    ruined = 0
    for _ in range(190):
        _, rewards, dones, _ = env.step(np.full((32, 1), -1.0))
        assert np.isfinite(rewards).all()
        assert dones[rewards < -1000.0].all(), "a ruin ends its episode"
        ruined += int((rewards < -1000.0).sum())
    assert ruined >= 32
