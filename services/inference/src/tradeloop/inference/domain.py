"""One portfolio's decisions: the join of features and mark, the window, the model in force."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.market import to_us
from tradeloop.common.messages import FeaturesComputed, Message, ModelActivated, PortfolioMarked, SignalGenerated
from tradeloop.common.observations import ObservationBuilder, account_of
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.service import Held, Position
from tradeloop.common.strategy import Strategy


class Actor(Protocol):
    """An answer to an observation."""

    def act(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
        """The action (1, m) for an observation (1, n)."""
        ...


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

    def __init__(self, held: Held) -> None:
        self._held = held
        self._waiting: deque[tuple[int, M, Position]] = deque()
        self._newest_us = -1

    def put(self, time_us: int, message: M, position: Position) -> None:
        """Add a message, unless its bar is here already or gone by."""
        if time_us > self._newest_us:
            self._newest_us = time_us
            self._waiting.append((time_us, message, position))
            self._held.hold(position)

    @property
    def time_us(self) -> int | None:
        """The bar of the first message, or None."""
        return self._waiting[0][0] if self._waiting else None

    @property
    def first(self) -> M:
        return self._waiting[0][1]

    def pop(self) -> M:
        _, message, position = self._waiting.popleft()
        self._held.release(position)
        return message


class Desk:
    """Decides for one portfolio, bar by bar: features(t) and portfolio(t) in, signal(t) out."""

    def __init__(
        self, portfolio: Portfolio, strategy: Strategy, held: Held, find_model: Callable[[], ActiveModel | None]
    ) -> None:
        """`find_model` is asked before the first decision which model is in force; it may raise `Unavailable`."""
        self.portfolio, self.strategy = portfolio, strategy
        self._features: _Side[FeaturesComputed] = _Side(held)
        self._marks: _Side[PortfolioMarked] = _Side(held)
        self._find_model: Callable[[], ActiveModel | None] | None = find_model
        self._model: ActiveModel | None = None
        self._next_model: ActiveModel | None = None
        self._decided_us = -1
        self._decision: list[Message] = []
        count = len(portfolio.universe.instruments)
        self._builder = ObservationBuilder(strategy.window, count, len(strategy.feature_set.names))

    def activate(self, model: ActiveModel) -> None:
        """Let a model decide from the next bar on. The one that decides already just goes on."""
        self._next_model = None if model.same_as(self._model) else model

    def on_features(self, message: FeaturesComputed, position: Position) -> list[Message]:
        """Take features in; those of a bar that went by are dropped."""
        self._features.put(to_us(message.time), message, position)
        return self._join()

    def on_mark(self, message: PortfolioMarked, position: Position) -> list[Message]:
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
            # Ask for the model first: when its store is unavailable, nothing has changed yet.
            activated = self._activation(self._marks.first)
            mark = self._marks.pop()
            if features_us > mark_us:
                self._builder.clear()
                self._decision = [*activated, self._hold(mark, "no_features")]
            else:
                features = self._features.pop()
                self._see(features)
                self._decision = [*activated, self._decide(features, mark)]
            self._decided_us = mark_us
            messages += self._decision
        return messages

    def _activation(self, mark: PortfolioMarked) -> list[Message]:
        """Switch to the model that is due, if any, and record from which bar on it decides."""
        if self._find_model is not None:
            if self._next_model is None:
                self._next_model = self._find_model()
            self._find_model = None
        if self._next_model is None:
            return []
        self._model, self._next_model = self._next_model, None
        return [
            ModelActivated(
                universe=mark.universe,
                portfolio=mark.portfolio,
                time=mark.time,
                model=self._model.name,
                version=self._model.version,
                model_id=self._model.model_id,
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
