"""A policy of the size that training gives, made from random weights: what it costs to ask does not depend on them."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from benchmarks import setting
from tradeloop.common.models import Policy, PolicyManifest
from tradeloop.common.observations import account_size
from tradeloop.training.adapters.onnx_graph import Layer, policy_graph
from tradeloop.training.domain import fit_scaler

HIDDEN = 64


def dense(generator: np.random.Generator, inputs: int, outputs: int, *, gain: float, tanh: bool) -> Layer:
    """Weights that keep the size of what passes through, times a gain."""
    weight = generator.normal(0.0, gain / np.sqrt(inputs), (outputs, inputs)).astype(np.float32)
    return Layer(weight, np.zeros(outputs, dtype=np.float32), "Tanh" if tanh else None)


def random_policy(universe: str, values: NDArray[np.float64], gain: float, seed: int) -> Policy:
    """Two hidden layers; the gain of the last decides how far its actions swing, and so how often it trades."""
    strategy, generator = setting.example(), np.random.default_rng(seed)
    size = strategy.observation_size(1)
    layers = [
        dense(generator, size, HIDDEN, gain=1.0, tanh=True),
        dense(generator, HIDDEN, HIDDEN, gain=1.0, tanh=True),
        dense(generator, HIDDEN, 1, gain=gain, tanh=False),
    ]
    scaler = fit_scaler(values, strategy.window, account_size(1))
    onnx = policy_graph(scaler, layers, kind="box", choices=0, actions=1)
    manifest = PolicyManifest(
        strategy=strategy.name,
        universe=universe,
        instruments=1,
        feature_set=strategy.feature_set.id,
        feature_names=strategy.feature_set.names,
        window=strategy.window,
        observation_size=size,
        action_scheme=strategy.actions.name,
        action_size=1,
        reward_id=strategy.reward_id,
        algorithm="random",
        seed=seed,
        steps=0,
        trained_from="",
        trained_to="",
        onnx_max_abs_diff=0.0,
        onnx_sha256=hashlib.sha256(onnx).hexdigest(),
    )
    return Policy(manifest, onnx)
