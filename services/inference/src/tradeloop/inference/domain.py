"""One portfolio's decisions: the join of features and mark, the window, the model in force."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.bus.port import LogPosition
from tradeloop.common.market import to_us
from tradeloop.common.messages import (
    FeaturesComputed,
    Message,
    ModelActivated,
    ModelReady,
    PortfolioMarked,
    SignalGenerated,
)
from tradeloop.common.messages.topics import event_id
from tradeloop.common.model_store.port import Actor
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.pending import Pending
from tradeloop.common.strategy import Strategy
from tradeloop.common.strategy.observations import HOLDING_SCALE, ObservationBuilder


@dataclass(frozen=True, slots=True)
class ActiveModel:
    """A model, how it is called, and what answers for it."""

    name: str
    version: str
    model_id: str
    actor: Actor

    def same_as(self, other: ActiveModel | None) -> bool:
        """Whether both are the same version of the same model, whoever answers for it."""
        return other is not None and (self.name, self.version) == (other.name, other.version)


M = TypeVar("M", FeaturesComputed, PortfolioMarked)


class _Side(Generic[M]):
    """One side of the join: messages in the order of their bars, each position held until it is taken."""

    def __init__(self, pending: Pending) -> None:
        self._pending = pending
        self._waiting: deque[tuple[int, M, LogPosition]] = deque()
        self._newest_us = -1

    def put(self, time_us: int, message: M, position: LogPosition) -> None:
        """Add a message, unless its bar is here already or gone by."""
        if time_us > self._newest_us:
            self._newest_us = time_us
            self._waiting.append((time_us, message, position))
            self._pending.hold(position)

    @property
    def time_us(self) -> int | None:
        """The bar of the first message, or None."""
        return self._waiting[0][0] if self._waiting else None

    @property
    def first(self) -> M:
        return self._waiting[0][1]

    def pop(self) -> M:
        _, message, position = self._waiting.popleft()
        self._pending.release(position)
        return message


class Memory(Protocol):
    """The past that a desk has to know. Each call may raise `Unavailable`."""

    def features_before(self, first: FeaturesComputed, position: LogPosition) -> Sequence[FeaturesComputed]:
        """The window's features of the bars before that of `first`, in the order of time; fewer if never published."""
        ...

    def activations(self) -> Sequence[ModelActivated]:
        """Which models were activated, in the order of time."""
        ...

    def decided_us(self) -> int:
        """The bar of the last decision that was published, by its close in microseconds; -1 for none."""
        ...

    def model(self, name: str, version: str) -> ActiveModel:
        """A model that was activated."""
        ...

    def champion(self) -> ActiveModel | None:
        """The model that the portfolio's alias names, or None."""
        ...


class _Promoted(NamedTuple):
    """A model that takes over at the next decision, the event that said so, and where that stands."""

    model: ActiveModel
    cause: str
    position: LogPosition


class Desk:
    """Decides for one portfolio, bar by bar: features(t) and portfolio(t) in, signal(t) out.

    What decides is a function of what was published: the window is the last features before t, the model is the
    one whose activation was recorded last. So a desk that is new, after a crash or in another process, decides
    what the old one would have.
    """

    def __init__(self, portfolio: Portfolio, strategy: Strategy, pending: Pending, memory: Memory) -> None:
        self.portfolio, self.strategy = portfolio, strategy
        self._features: _Side[FeaturesComputed] = _Side(pending)
        self._marks: _Side[PortfolioMarked] = _Side(pending)
        self._pending, self._memory = pending, memory
        self._model: ActiveModel | None = None
        self._promoted: _Promoted | None = None
        self._recorded: deque[ModelActivated] | None = None
        """Activations that are recorded, from the first one that is not yet repeated; None before they were read."""
        self._causes: frozenset[str] = frozenset()
        """The events whose models were activated, as far as recorded."""
        self._ask_champion = False
        self._window_known = False
        self._decided_us = -1
        self._decided_before_us: int | None = None
        """The last decision of the desk before this one; None before it was asked for."""
        self._decision: list[Message] = []
        count = len(portfolio.universe.instruments)
        self._builder = ObservationBuilder(strategy.window, count, len(strategy.feature_set.names))

    def on_model_ready(self, ready: ModelReady, position: LogPosition) -> None:
        """Let a model decide from the next decision on, if it is for this portfolio.

        The message is held until then, so that a crash brings it again.
        """
        portfolio, cause = self.portfolio, event_id(ready)
        same = (ready.strategy, ready.universe) == (portfolio.strategy, portfolio.universe.name)
        if not (same and ready.moves(portfolio.model_alias)):
            return
        self._recall()
        if cause in self._causes:
            return
        promoted = _Promoted(self._memory.model(ready.model, ready.version), cause, position)
        self._settle_promotion()
        self._pending.hold(position)
        self._promoted = promoted

    def _settle_promotion(self) -> None:
        if self._promoted is not None:
            self._pending.release(self._promoted.position)
            self._promoted = None

    def on_features(self, message: FeaturesComputed, position: LogPosition) -> list[Message]:
        """Take features in; those of a bar that went by are dropped."""
        if not self._window_known:
            for earlier in self._memory.features_before(message, position):
                self._see(earlier)
            self._window_known = True
        self._features.put(to_us(message.time), message, position)
        return self._join()

    def on_mark(self, message: PortfolioMarked, position: LogPosition) -> list[Message]:
        """Take a mark in. The one that was decided last, delivered again, gets the same decision again."""
        time_us = to_us(message.time)
        if time_us == self._decided_us:
            return self._decision
        self._marks.put(time_us, message, position)
        return self._join()

    def _join(self) -> list[Message]:
        messages: list[Message] = []
        while (features_us := self._features.time_us) is not None and (mark_us := self._marks.time_us) is not None:
            if features_us < mark_us:
                # No mark comes for this bar any more: it belongs to the window, not to a decision.
                self._see(self._features.pop())
                continue
            if features_us > mark_us and self._was_decided(mark_us):
                self._marks.pop()
                continue
            # Choose the model first: when its store is unavailable, nothing has changed yet.
            activated = self._choose_model(self._marks.first)
            mark = self._marks.pop()
            if features_us > mark_us:
                self._decision = [*activated, self._hold(mark, "no_features")]
            else:
                features = self._features.pop()
                self._see(features)
                self._decision = [*activated, self._decide(features, mark)]
            self._decided_us = mark_us
            messages += self._decision
        return messages

    def _was_decided(self, mark_us: int) -> bool:
        """Whether a mark whose features are gone repeats one that was decided on before this desk was there.

        Execution repeats its last mark after a crash, and what was decided on it may be committed by then.
        """
        if self._decided_before_us is None:
            self._decided_before_us = self._memory.decided_us()
        return mark_us <= self._decided_before_us

    def _recall(self) -> deque[ModelActivated]:
        if self._recorded is None:
            activations = self._memory.activations()
            self._causes = frozenset(activation.cause for activation in activations if activation.cause)
            self._ask_champion = not activations
            self._recorded = deque(activations)
        return self._recorded

    def _choose_model(self, mark: PortfolioMarked) -> list[Message]:
        """Bring the model in force up to a decision: as it was recorded, then what was promoted since."""
        recorded = self._recall()
        while recorded and recorded[0].time <= mark.time:
            self._model = self._memory.model(recorded[0].model, recorded[0].version)
            recorded.popleft()
        if recorded:
            return []  # this decision was made before, and so was the next change
        model, cause = self._model, ""
        if self._promoted is not None:
            model, cause = self._promoted.model, self._promoted.cause
        elif self._ask_champion:
            model = self._memory.champion()
        self._ask_champion = False
        self._settle_promotion()
        if model is None or model.same_as(self._model):
            return []
        self._model = model
        return [
            ModelActivated(
                universe=mark.universe,
                portfolio=mark.portfolio,
                time=mark.time,
                model=model.name,
                version=model.version,
                model_id=model.model_id,
                cause=cause,
            )
        ]

    def _see(self, features: FeaturesComputed) -> None:
        """Add a row to the window; a row that is not known yet starts it anew."""
        if any(value is None for row in features.values for value in row):
            self._builder.clear()
        else:
            self._builder.append(np.array(features.values, dtype=np.float64))

    def _decide(self, features: FeaturesComputed, mark: PortfolioMarked) -> SignalGenerated:
        if self._model is None:
            return self._hold(mark, "no_model")
        if not self._builder.ready:
            return self._hold(mark, "warming_up")
        observation = self._builder.build(account_of(mark))
        action = self._model.actor.act(observation)
        weights = self.strategy.actions.weights(action)
        return SignalGenerated(
            universe=mark.universe,
            portfolio=mark.portfolio,
            time=mark.time,
            instruments=features.instruments,
            targets=tuple(weights[0].tolist()),
            model=self._model.name,
            model_version=self._model.version,
            model_id=self._model.model_id,
            feature_set=features.feature_set,
            features=tuple(tuple(value for value in row if value is not None) for row in features.values),
            observation=tuple(observation[0].tolist()),
            action=tuple(action[0].tolist()),
        )

    def _hold(self, mark: PortfolioMarked, reason: Literal["warming_up", "no_model", "no_features"]) -> SignalGenerated:
        return SignalGenerated(
            universe=mark.universe,
            portfolio=mark.portfolio,
            time=mark.time,
            instruments=tuple(position.instrument for position in mark.positions),
            targets=tuple(position.weight for position in mark.positions),
            hold=True,
            reason=reason,
            feature_set=self.strategy.feature_set.id,
        )


def account_of(portfolio: PortfolioMarked) -> NDArray[np.float64]:
    """The account part of the observation, from the portfolio's mark: (3A + 1,) float64."""
    positions = portfolio.positions
    return np.array(
        [p.weight for p in positions]
        + [p.unrealised_return for p in positions]
        + [p.holding_bars / (p.holding_bars + HOLDING_SCALE) for p in positions]
        + [portfolio.drawdown]
    )
