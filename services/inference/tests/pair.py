"""A universe of two, a strategy on it, models that are a number, and the messages about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.bus.port import LogPosition, Partition
from tradeloop.common.clock import Clock, ManualClock
from tradeloop.common.features import FeatureSet
from tradeloop.common.market import Instrument, Timeframe, Universe
from tradeloop.common.messages import (
    FeaturesComputed,
    Message,
    ModelActivated,
    ModelReady,
    PortfolioMarked,
    PositionMark,
    SignalGenerated,
)
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.model_store.memory import MemoryModelStore
from tradeloop.common.model_store.port import (
    Actor,
    ModelNotFound,
    ModelStoreUnavailable,
    Policy,
    PolicyManifest,
    RegisteredPolicy,
    model_name,
)
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.attempts import Patience
from tradeloop.common.runtime.held import ReadOn
from tradeloop.common.strategy import RewardContext, Strategy, TargetPosition, log_return, reward
from tradeloop.inference.application import Inference
from tradeloop.inference.ports import History

WINDOW = 3
MODEL = model_name("test", "pair")
START = datetime(2026, 1, 5, tzinfo=UTC)
UNIVERSE = Universe(name="pair", instruments=(Instrument(id="x:A"), Instrument(id="x:B")), timeframe=Timeframe.M1)
UNKNOWN: tuple[tuple[float | None, ...], ...] = ((None,), (0.5,))
"""Features of a bar on which one indicator is still warming up."""


@reward(version="1")
class Growth:
    def __call__(self, c: RewardContext) -> NDArray[np.float64]:
        return c.equity / c.equity_prev - 1.0


STRATEGY = Strategy("test", [log_return(1)], Growth(), window=WINDOW, actions=TargetPosition(no_trade_band=0.02))
SET = STRATEGY.feature_set


class Gain:
    """A policy whose graph is a number: its action is that many times a mean of what it sees, one per instrument."""

    def __init__(self, policy: Policy) -> None:
        self._gain = float(policy.onnx)

    def act(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
        rows = observation[0, : WINDOW * 2].reshape(WINDOW, 2).astype(np.float64)
        action: NDArray[np.float64] = np.tanh(self._gain * rows.mean(axis=0) + observation[0, -1])
        return action[None]


def policy(gain: float, **changes: Any) -> Policy:
    graph = repr(gain).encode()
    fields: dict[str, Any] = {
        "strategy": "test",
        "universe": "pair",
        "instruments": 2,
        "feature_set": SET.id,
        "feature_names": SET.names,
        "window": WINDOW,
        "observation_size": STRATEGY.observation_size(2),
        "action_scheme": STRATEGY.actions.name,
        "action_size": 2,
        "reward_id": STRATEGY.reward_id,
        "algorithm": "none",
        "seed": 0,
        "steps": 0,
        "trained_from": "",
        "trained_to": "",
        "onnx_max_abs_diff": 0.0,
        "onnx_sha256": sha256(graph).hexdigest(),
    }
    return Policy(PolicyManifest(**{**fields, **changes}), graph)


class Shelf:
    """Models in a list; `away` makes the store unreachable. Counts how often it was asked."""

    def __init__(self, *policies: Policy, champion: int = 1) -> None:
        self.policies, self.champion, self.away, self.asked = list(policies), champion, False, 0

    def load(self, name: str, reference: str) -> RegisteredPolicy:
        self.asked += 1
        if self.away:
            raise ModelStoreUnavailable("out for lunch")
        version = self.champion if reference == "champion" else int(reference) if reference.isdecimal() else 0
        if name != MODEL or not 1 <= version <= len(self.policies):
            raise ModelNotFound(f"model {name} has no {reference}")
        return RegisteredPolicy(name, str(version), self.policies[version - 1])


class NoHistory:
    """Nothing was published before."""

    def features_before(
        self, time_us: int, position: LogPosition | None, universe: Universe, feature_set: FeatureSet, rows: int
    ) -> Sequence[FeaturesComputed]:
        return ()

    def features_on(self, universe: Universe, feature_set: FeatureSet) -> ReadOn[FeaturesComputed]:
        return lambda position, limit: []

    def activations(self, universe: Universe, portfolio: str) -> Sequence[ModelActivated]:
        return ()

    def decided(self, universe: Universe, portfolio: str) -> SignalGenerated | None:
        return None

    def marked(self, universe: Universe, portfolio: str) -> tuple[PortfolioMarked, LogPosition] | None:
        return None

    def forget(self) -> None:
        """Nothing was found."""

    def close(self) -> None:
        """Nothing is held open."""


def portfolio(name: str = "book", **changes: Any) -> Portfolio:
    return Portfolio(name=name, universe=UNIVERSE, strategy="test", **changes)


CLOCK = ManualClock(START + timedelta(days=300))
PATIENCE = Patience(attempts=3, delay_s=1.0)


def make(
    models: Shelf | MemoryModelStore,
    *books: Portfolio,
    history: History | None = None,
    strategy: Strategy = STRATEGY,
    make_actor: Callable[[Policy], Actor] = Gain,
    clock: Clock = CLOCK,
    viewed: bool = False,
) -> Inference:
    history = history or NoHistory()
    return Inference(
        books or [portfolio()], lambda _: strategy, models, make_actor, history, clock, PATIENCE, viewed=viewed
    )


def time(t: int) -> datetime:
    return START + timedelta(minutes=t)


def values(t: int) -> tuple[tuple[float, ...], ...]:
    return ((0.1 * t,), (1.0 - 0.07 * t,))


def features(t: int, known: bool = True) -> FeaturesComputed:
    return FeaturesComputed(
        universe="pair",
        feature_set=SET.id,
        time=time(t),
        instruments=UNIVERSE.ids,
        names=SET.names,
        values=values(t) if known else UNKNOWN,
    )


def mark(t: int, book: str = "book") -> PortfolioMarked:
    positions = tuple(
        PositionMark(
            instrument=instrument,
            quantity=1.0,
            entry_price=100.0,
            mark_price=101.0,
            weight=0.01 * (t + 1) * sign,
            unrealised_return=0.01,
            holding_bars=t,
        )
        for instrument, sign in zip(UNIVERSE.ids, (1, -1), strict=True)
    )
    return PortfolioMarked(
        universe="pair",
        portfolio=book,
        time=time(t),
        cash=1e5,
        equity=1e5,
        peak_equity=1e5,
        drawdown=0.001 * t,
        state="active",
        positions=positions,
    )


def ready(version: str, **changes: Any) -> ModelReady:
    fields = {"request_id": f"r{version}", "strategy": "test", "universe": "pair", "model": MODEL}
    fields |= {"version": version, "alias": "champion", "model_id": "", "feature_set": SET.id}
    return ModelReady(**{**fields, **changes})


def at(message: Message) -> LogPosition:
    """Where a message stands: at the minute that it is about."""
    assert isinstance(message, FeaturesComputed | PortfolioMarked)
    return LogPosition(Partition(topic_of(type(message)).name, 0), int((message.time - START) / timedelta(minutes=1)))


ANYWHERE = LogPosition(Partition("training.model_ready.v1", 0), 0)


def give(inference: Inference, *messages: Message) -> list[Message]:
    out: list[Message] = []
    for message in messages:
        where = ANYWHERE if isinstance(message, ModelReady) else at(message)
        assert not list(inference.handle(message, where)), "all work is done in turns"
        out += inference.advance()
    return out


def pass_time(inference: Inference, seconds: int = 5) -> list[Message]:
    """What comes of waiting."""
    out: list[Message] = []
    for _ in range(seconds):
        CLOCK.advance(1.0)
        out += inference.advance()
    return out


def signals(messages: Sequence[Message]) -> list[SignalGenerated]:
    return [message for message in messages if isinstance(message, SignalGenerated)]


def activations(messages: Sequence[Message]) -> list[tuple[str, datetime]]:
    return [(message.version, message.time) for message in messages if isinstance(message, ModelActivated)]


def reasons(messages: Sequence[Message]) -> list[str]:
    return [signal.reason for signal in signals(messages)]


def bars(*times: int) -> list[Message]:
    return [message for t in times for message in (features(t), mark(t))]
