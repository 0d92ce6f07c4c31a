"""One decision, from a row of features to a target weight, against Stable-Baselines3's `model.predict` alone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import scenario
from benchmarks.learning import parameters_of, ppo, scaler, trading
from benchmarks.measure import Row, report
from tradeloop.common.model_store.onnx_policy import OnnxPolicy
from tradeloop.common.model_store.port import Policy
from tradeloop.common.strategy.observations import ObservationBuilder
from tradeloop.training.adapters.random_policy import random_policy
from tradeloop.training.adapters.sb3 import export

BARS, ROUNDS, BLOCK = 4_000, 30, 300


def each_us(block: Callable[[int], object], numbers: range) -> list[float]:
    """How long each call takes, in microseconds."""
    taken, clock = [], time.perf_counter_ns
    for number in numbers:
        started = clock()
        block(number)
        taken.append((clock() - started) / 1e3)
    return taken


def measure() -> None:
    torch.set_num_threads(1)
    strategy, values = scenario.example(), scenario.features(BARS, seed=0)
    parameters = parameters_of(strategy)
    model = ppo(trading(parameters, values), parameters, values)
    onnx = export(model, scaler(values))
    manifest = random_policy(scenario.example(), "bench", values).manifest
    policy = OnnxPolicy(Policy(manifest.model_copy(update={"onnx_sha256": hashlib.sha256(onnx).hexdigest()}), onnx))
    builder = ObservationBuilder(strategy.window, 1, len(strategy.feature_set.names))
    account = np.array([0.5, 0.01, 0.2, 0.02])
    for row in values[: strategy.window]:
        builder.append(row)
    observations = np.random.default_rng(1).normal(size=(BLOCK, manifest.observation_size)).astype(np.float32)

    def decide(number: int) -> NDArray[np.float64]:
        builder.append(values[number])
        return strategy.actions.weights(policy.act(builder.build(account)))

    def predict(number: int) -> object:
        return model.predict(observations[number], deterministic=True)

    ours: list[float] = []
    theirs: list[float] = []
    ratios: list[float] = []
    for turn in range(ROUNDS + 1):
        block, other = each_us(decide, range(BLOCK)), each_us(predict, range(BLOCK))
        if turn:  # the first warms up
            ours += block
            theirs += other
            ratios.append(float(np.median(other) / np.median(block)))
    p50, p99 = np.percentile(ours, (50, 99))
    predict_p50, predict_p99 = np.percentile(theirs, (50, 99))
    what = "one decision: observation, ONNX, action scheme"
    report(
        [
            Row(
                f"{what}, p50",
                float(p50),
                "us",
                8.0,
                "at least",
                "model.predict alone",
                float(predict_p50),
                float(np.median(ratios)),
            ),
            Row(
                f"{what}, p99",
                float(p99),
                "us",
                None,
                "at least",
                "model.predict alone",
                float(predict_p99),
                float(predict_p99 / p99),
            ),
        ],
        [
            f"The same PPO policy (64 x 64) in both: ours appends a row of features, builds the observation of "
            f"{manifest.observation_size}, runs the exported graph and applies the action scheme; SB3 gets a finished "
            f"observation. Each call timed by itself, {ROUNDS} rounds of {BLOCK} calls in turns; "
            "torch.set_num_threads(1), one thread of ONNX Runtime.",
            "Decoding the messages before it and writing the signal after it are in the figures of the loop.",
        ],
    )


if __name__ == "__main__":
    measure()
