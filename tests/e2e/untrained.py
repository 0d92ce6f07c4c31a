"""Policies that nobody trained, whose graphs are what a test says: for actors of the tests' own."""

from __future__ import annotations

from hashlib import sha256

from tradeloop.common.model_store.port import Policy, PolicyManifest
from tradeloop.common.strategy import Strategy


def untrained(strategy: Strategy, universe: str, instruments: int, graph: bytes) -> Policy:
    """A policy that fits a strategy on so many instruments of a universe."""
    manifest = PolicyManifest(
        strategy=strategy.name,
        universe=universe,
        instruments=instruments,
        feature_set=strategy.feature_set.id,
        feature_names=strategy.feature_set.names,
        window=strategy.window,
        observation_size=strategy.observation_size(instruments),
        action_scheme=strategy.actions.name,
        action_size=instruments,
        reward_id=strategy.reward_id,
        algorithm="none",
        seed=0,
        steps=0,
        trained_from="",
        trained_to="",
        onnx_max_abs_diff=0.0,
        onnx_sha256=sha256(graph).hexdigest(),
    )
    return Policy(manifest, graph)
