"""The score for a second of CPU: toy markets with known optima, beside Stable-Baselines3 on gym-trading-env."""

from __future__ import annotations

import statistics
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib as mpl
import numpy as np
import onnxruntime as ort
import pandas as pd
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.measure import Row, report
from tradeloop.common.arrays import Floats
from tradeloop.common.clock import SystemClock
from tradeloop.common.evaluation.backtest import backtest
from tradeloop.common.evaluation.toys import BARS, COST, TOYS, TRAIN_BARS, Toy
from tradeloop.common.market import BAR_PRICES
from tradeloop.common.strategy import RewardContext, Strategy, log_return, relative, reward, talib, windowed
from tradeloop.training.adapters.sb3 import Sb3Trainer
from tradeloop.training.domain.material import Market, join
from tradeloop.training.ports import Task

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from gym_trading_env.environments import TradingEnv as GymTradingEnv

MARKETS = ("sine", "autoregressive", "regimes", "rising")
SEEDS = (0, 1)
STEPS, EPISODE_BARS, WINDOW = 100_000, 512, 4
CHEAPER = 8.0
FIGURE = Path(__file__).parents[1] / "docs" / "toy-markets.png"
_COLOURS = {"tradeloop": "#0072b2", "SB3, tuned": "#c77700", "SB3, defaults": "#7c8591"}


@reward(version="1")
class Percent:
    """Log return of equity in percent: the reward of gym-trading-env, in another unit."""

    def __call__(self, c: RewardContext) -> Floats:
        return np.asarray(100.0 * np.log(c.equity / c.equity_prev))


def last_volume(volume: Floats) -> float:
    return float(volume[-1])


def strategy() -> Strategy:
    """The defaults, with features that both platforms get."""
    features = [
        log_return(1),
        log_return(5),
        log_return(20),
        relative(talib("SMA", timeperiod=40)),
        relative(talib("EMA", timeperiod=120)),
        windowed("last_volume", last_volume, 1, ("volume",)),
    ]
    return Strategy("toys", features, Percent(), window=WINDOW)


@dataclass(frozen=True)
class Score:
    """One training: the share of the optimum's growth on bars that were never seen, and what it cost."""

    share: float
    cpu_s: float


class Graph:
    """An exported policy that acts."""

    def __init__(self, onnx: bytes) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])

    def act(self, observation: NDArray[np.float32]) -> Floats:
        answer: Floats = self._session.run(None, {"observation": observation})[0].astype(np.float64)
        return answer


def ours(toy: Toy, features: Floats, seed: int) -> Score:
    """The platform's trainer with its defaults."""
    own = strategy()
    material = join([Market(toy.bars.slice(0, TRAIN_BARS), features[:TRAIN_BARS])], own.hyper_parameters.validation)
    task = Task(own, toy.portfolio, material.bars, material.features, STEPS, seed, material.segments)
    began_s = time.process_time()
    trained = Sb3Trainer(SystemClock(), threads=1).train(task, lambda *_: None, threading.Event())
    cpu_s = time.process_time() - began_s
    rest = toy.bars.slice(TRAIN_BARS, BARS)
    result = backtest(toy.portfolio, own, rest, features[TRAIN_BARS:], Graph(trained.onnx))
    growth = float(np.log(result.final_equity / result.equity[0]))
    return Score(growth / toy.optimum(own), cpu_s)


def peer(toy: Toy, features: Floats, seed: int, *, tuned: bool) -> Score:
    """Stable-Baselines3's PPO on gym-trading-env: as both come, or `tuned` by reward in percent, gamma and entropy.

    It gets the same features, scaled alike, the same window and costs, and positions of -1, 0 and 1.
    """
    first = int(np.flatnonzero(np.isfinite(features).all(axis=(1, 2)))[0])
    learnt = features[first:TRAIN_BARS, 0]
    deviation = learnt.std(axis=0)
    scaled = np.clip((features[:, 0] - learnt.mean(axis=0)) / np.where(deviation > 1e-9, deviation, 1.0), -10.0, 10.0)
    np.random.seed(seed)  # noqa: NPY002  gym-trading-env draws from it
    env = DummyVecEnv([lambda: _environment(toy, scaled, first, TRAIN_BARS, EPISODE_BARS, percent=tuned)])
    settings: dict[str, Any] = {"gamma": 0.95, "ent_coef": 0.003} if tuned else {}
    model = PPO("MlpPolicy", env, seed=seed, device="cpu", **settings)
    model.set_logger(Logger(folder=None, output_formats=[]))
    began_s = time.process_time()
    model.learn(STEPS, log_interval=None)  # type: ignore[arg-type]
    cpu_s = time.process_time() - began_s
    test = _environment(toy, scaled, TRAIN_BARS, BARS, "max", percent=tuned)
    observation, info = test.reset(seed=0)
    start, over = info["portfolio_valuation"], False
    while not over:
        action, _ = model.predict(observation, deterministic=True)
        observation, _, terminated, truncated, info = test.step(int(action))
        over = terminated or truncated
    return Score(float(np.log(info["portfolio_valuation"] / start)) / toy.optimum(strategy()), cpu_s)


def _environment(
    toy: Toy, scaled: Floats, start: int, stop: int, episode_bars: int | str, *, percent: bool
) -> gym.Env[Any, Any]:
    unit = 100.0 if percent else 1.0

    def log_growth(history: Any) -> float:
        return float(unit * np.log(history["portfolio_valuation", -1] / history["portfolio_valuation", -2]))

    frame = pd.DataFrame(
        {name: getattr(toy.bars, name)[:, 0] for name in BAR_PRICES}
        | {f"feature_{i}": scaled[:, i] for i in range(scaled.shape[1])},
        index=pd.to_datetime(toy.bars.open_us, unit="us"),
    ).iloc[start:stop]
    env = GymTradingEnv(
        frame,
        positions=[-1, 0, 1],
        windows=WINDOW,
        trading_fees=COST,
        reward_function=log_growth,
        initial_position=0,
        max_episode_duration=episode_bars,
        verbose=0,
    )
    return gym.wrappers.FlattenObservation(env)


def draw(scores: Mapping[str, Mapping[str, Sequence[Score]]]) -> None:
    """Write the figure of the shares by market: one dot a seed, a bar for their mean."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({"font.size": 10})
        figure = Figure(figsize=(8, 3.6), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        width = 0.8 / len(scores)
        for i, (who, markets) in enumerate(scores.items()):
            places = np.arange(len(MARKETS)) + (i - (len(scores) - 1) / 2) * width
            means = [statistics.mean(score.share for score in markets[market]) for market in MARKETS]
            cpu_s = statistics.mean(score.cpu_s for market in MARKETS for score in markets[market])
            axes.bar(places, means, 0.9 * width, color=_COLOURS[who], alpha=0.8, label=f"{who}: {cpu_s:.0f} CPU s each")
            for place, market in zip(places, MARKETS, strict=True):
                shares = [score.share for score in markets[market]]
                axes.plot([place] * len(shares), shares, "o", color="black", markersize=3)
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set_xticks(range(len(MARKETS)), MARKETS)
        axes.set_ylabel("growth, as a share of the best policy's")
        axes.set_title(f"Toy markets after {STEPS:,} steps, on bars that were never seen", fontsize=10)
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(scores))
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(FIGURE, metadata={"Software": None})


def measure() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    scores: dict[str, dict[str, list[Score]]] = {who: {market: [] for market in MARKETS} for who in _COLOURS}
    for market in MARKETS:
        for seed in SEEDS:  # in turns, so that all meet the same load
            toy = TOYS[market](seed)
            features = toy.features(strategy())
            scores["tradeloop"][market].append(ours(toy, features, seed))
            scores["SB3, tuned"][market].append(peer(toy, features, seed, tuned=True))
            scores["SB3, defaults"][market].append(peer(toy, features, seed, tuned=False))
    draw(scores)
    rows, told = [], []
    flat = {who: [score for market in MARKETS for score in markets[market]] for who, markets in scores.items()}
    cpu_s = {who: statistics.mean(score.cpu_s for score in each) for who, each in flat.items()}
    share = {who: statistics.mean(score.share for score in each) for who, each in flat.items()}
    for who in ("SB3, tuned", "SB3, defaults"):
        ratios = [one.cpu_s / mine.cpu_s for one, mine in zip(flat[who], flat["tradeloop"], strict=True)]
        rows += [
            Row(
                "CPU of a training on a toy market",
                cpu_s["tradeloop"],
                "CPU s",
                CHEAPER,
                "at least",
                who,
                cpu_s[who],
                statistics.median(ratios),
            ),
            Row(
                "growth on unseen bars, share of the optimum",
                share["tradeloop"],
                "",
                1.0,
                "at least",
                who,
                share[who],
                share["tradeloop"] / share[who],
            ),
        ]
    for market in MARKETS:
        each = (
            f"{who} {', '.join(f'{score.share:.2f}' for score in markets[market])}" for who, markets in scores.items()
        )
        told.append(f"Shares of the optimum on {market}, one for each of {len(SEEDS)} seeds: {'; '.join(each)}.")
    report(
        rows,
        [
            f"{STEPS:,} steps of PPO on {TRAIN_BARS:,} of {BARS:,} hourly bars, measured on the rest; fee 2 bp and "
            f"slippage 1 bp (gym-trading-env: fee 3 bp); window {WINDOW}, {len(strategy().features)} features; short, "
            "flat or long. Ours learns with the platform's defaults and may end early; SB3's PPO with its own, or "
            "tuned by a reward in percent, gamma 0.95 and an entropy bonus of 0.003. One thread, CPU time of the "
            "process, in turns.",
            *told,
            "The figure is `docs/toy-markets.png`. The best policy of sine knows the future, that of autoregressive is "
            "by value iteration with costs, those of regimes and rising are their law.",
        ],
    )


if __name__ == "__main__":
    measure()
