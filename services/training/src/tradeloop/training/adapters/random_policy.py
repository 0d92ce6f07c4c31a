"""A policy that nobody trained: random weights in the form that training gives, to try out what runs policies."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.model_store.port import Policy, PolicyManifest
from tradeloop.common.strategy import Strategy
from tradeloop.training.adapters.onnx_graph import Layer, policy_graph
from tradeloop.training.domain.material import whole
from tradeloop.training.domain.scaler import fit_scaler, usual_features


def random_policy(
    strategy: Strategy,
    universe: str,
    values: NDArray[np.float64],
    *,
    hidden: Sequence[int] = (64, 64),
    gain: float = 1.0,
    seed: int = 0,
) -> Policy:
    """A policy of the strategy's action scheme.

    `values` are the strategy's features (T, A, F), which the scaler is fitted to. `hidden` are the widths of the tanh
    layers; each keeps the size of what passes through, and `gain` multiplies the last one: how far actions swing, and
    so how often it trades.
    """
    count, generator = values.shape[1], np.random.default_rng(seed)
    size = strategy.observation_size(count)
    scheme, actions = strategy.actions, strategy.actions.size(count)
    widths = (size, *hidden, actions * max(scheme.choices, 1))
    layers = [_layer(generator, *sides, gain=1.0, tanh=True) for sides in pairwise(widths[:-1])]
    layers.append(_layer(generator, *widths[-2:], gain=gain, tanh=False))
    scaler = fit_scaler(strategy.observed(values), strategy.window, np.ones(count), whole(len(values)))
    onnx = policy_graph(scaler, layers, kind=scheme.kind, choices=scheme.choices, actions=actions)
    means, deviations = usual_features(values, whole(len(values)))
    manifest = PolicyManifest(
        strategy=strategy.name,
        universe=universe,
        instruments=count,
        feature_set=strategy.feature_set.id,
        feature_names=tuple(feature.name for feature in strategy.features),
        window=strategy.window,
        observation_size=size,
        action_scheme=strategy.actions.name,
        action_size=actions,
        reward_id=strategy.reward_id,
        algorithm="random",
        seed=seed,
        steps=0,
        trained_from="",
        trained_to="",
        onnx_max_abs_diff=0.0,
        onnx_sha256=hashlib.sha256(onnx).hexdigest(),
        feature_means=means,
        feature_deviations=deviations,
    )
    return Policy(manifest, onnx)


def _layer(generator: np.random.Generator, inputs: int, outputs: int, *, gain: float, tanh: bool) -> Layer:
    weight = generator.normal(0.0, gain / np.sqrt(inputs), (outputs, inputs)).astype(np.float32)
    return Layer(weight, np.zeros(outputs, dtype=np.float32), "Tanh" if tanh else None)
