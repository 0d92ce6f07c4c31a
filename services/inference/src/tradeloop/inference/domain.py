"""The model in force, as it was recorded and then as it is promoted; and the account as a policy sees it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.bus.port import LogPosition
from tradeloop.common.messages import Message, ModelActivated, ModelReady, PortfolioMarked, SignalGenerated
from tradeloop.common.messages.topics import event_id
from tradeloop.common.model_store.port import Actor, Policy, PolicyManifest
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.pending import Pending
from tradeloop.common.strategy.observations import HOLDING_SCALE


class SharedActor:
    """A policy that answers for the desks that have it, and once more for whoever asks beside them.

    An actor belongs to one thread. The second one is made when it is first needed.
    """

    def __init__(self, policy: Policy, make_actor: Callable[[Policy], Actor]) -> None:
        self._policy, self._make_actor = policy, make_actor
        self.act = make_actor(policy).act
        """As `Actor.act`, for the thread of the desks."""
        self._aside: Actor | None = None
        self._lock = Lock()

    def act_aside(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
        """As `Actor.act`, for any other thread."""
        with self._lock:
            if self._aside is None:
                self._aside = self._make_actor(self._policy)
            return self._aside.act(observation)


@dataclass(frozen=True, slots=True)
class ActiveModel:
    """A model, how it is called, and what answers for it."""

    name: str
    version: str
    model_id: str
    actor: SharedActor
    manifest: PolicyManifest
    """Its description, and of what it has learnt from."""

    def same_as(self, other: ActiveModel | NoModel | None) -> bool:
        """Whether both are the same version of the same model, whoever answers for it."""
        mine = (self.name, self.version, self.model_id)
        return isinstance(other, ActiveModel) and mine == (other.name, other.version, other.model_id)


@dataclass(frozen=True, slots=True)
class NoModel:
    """A model that was to decide and cannot: it is gone, does not fit, or is another one than was activated."""

    why: str


class ModelMemory(Protocol):
    """Which models decided, and where they are. Each call may raise `Unavailable`."""

    def activations(self) -> Sequence[ModelActivated]:
        """Which models were activated, in the order of time."""
        ...

    def model(self, name: str, version: str, model_id: str) -> ActiveModel | NoModel:
        """A model that was activated."""
        ...

    def announced(self, ready: ModelReady) -> ActiveModel:
        """A model that was announced. Raises `ModelUnfit` where it cannot decide here, `ModelNotFound`."""
        ...

    def champion(self) -> ActiveModel | NoModel | None:
        """The model that the portfolio's alias names, or None."""
        ...


class _Promoted(NamedTuple):
    """A model that takes over at the next decision, the event that said so, and where that stands."""

    model: ActiveModel
    cause: str
    position: LogPosition


class Choice(NamedTuple):
    """The model for a decision, and what choosing it used up."""

    model: ActiveModel | NoModel | None
    activated: Sequence[Message]
    """The message that says so, where the model is another one than before."""
    recorded: int
    """How many of the recorded activations were repeated."""
    promoted: bool
    """Whether what was promoted has taken over, or will not."""


class ModelInForce:
    """Which model decides for a portfolio. To choose changes nothing; `use` makes a choice count."""

    def __init__(self, portfolio: Portfolio, pending: Pending, memory: ModelMemory) -> None:
        self._portfolio, self._pending, self._memory = portfolio, pending, memory
        self._model: ActiveModel | NoModel | None = None
        self._promoted: _Promoted | None = None
        self._recorded: deque[ModelActivated] | None = None
        """Activations that are recorded, from the first one that is not yet repeated; None before they were read."""
        self._causes: frozenset[str] = frozenset()
        """The events whose models were activated, as far as recorded."""
        self._ask_champion = False

    @property
    def in_force(self) -> ActiveModel | NoModel | None:
        """The model of the last decision."""
        return self._model

    def promote(self, ready: ModelReady, position: LogPosition) -> None:
        """Let a model take over at the next decision, if it is for this portfolio.

        The message is held until then, so that a crash brings it again. Raises what `announced` raises.
        """
        portfolio, cause = self._portfolio, event_id(ready)
        same = (ready.strategy, ready.universe) == (portfolio.strategy, portfolio.universe.name)
        if not (same and ready.moves(portfolio.model_alias)):
            return
        self._recall()
        if cause in self._causes:
            return
        promoted = _Promoted(self._memory.announced(ready), cause, position)
        self._settle_promotion()
        self._pending.hold(position)
        self._promoted = promoted

    def choose(self, mark: PortfolioMarked) -> Choice:
        """The model for a decision: as it was recorded, then what was promoted since."""
        model, used = self._as_recorded(mark)
        if used < len(self._recall()):
            return Choice(model, (), used, promoted=False)  # this decision was made before, and so was the next change
        chosen, cause = model, ""
        if self._promoted is not None:
            chosen, cause = self._promoted.model, self._promoted.cause
        elif self._ask_champion:
            chosen = self._memory.champion()
        return Choice(chosen, self._news(chosen, model, mark, cause), used, promoted=True)

    def chosen_for(self, decision: SignalGenerated, mark: PortfolioMarked) -> Choice:
        """The model of a decision that is published already."""
        model, used = self._as_recorded(mark)
        if not decision.model_id:
            return Choice(model, (), used, promoted=False)
        chosen = self._memory.model(decision.model, decision.model_version, decision.model_id)
        promoted = self._promoted
        cause = promoted.cause if promoted is not None and promoted.model.same_as(chosen) else ""
        return Choice(chosen, self._news(chosen, model, mark, cause), used, promoted=bool(cause))

    def use(self, choice: Choice) -> None:
        """Let a choice count: the decision with it is made."""
        recorded = self._recall()
        for _ in range(choice.recorded):
            recorded.popleft()
        self._model = choice.model
        if choice.promoted or choice.model is not None:
            self._ask_champion = False
        if choice.promoted:
            self._settle_promotion()

    def _as_recorded(self, mark: PortfolioMarked) -> tuple[ActiveModel | NoModel | None, int]:
        """The model that was activated last up to a mark, and how many activations that are.

        Those before the last are not looked at: a model of long ago may be gone, or fit no more.
        """
        recorded, used = self._recall(), 0
        while used < len(recorded) and recorded[used].time <= mark.time:
            used += 1
        if not used:
            return self._model, 0
        last = recorded[used - 1]
        return self._memory.model(last.model, last.version, last.model_id), used

    def _news(
        self,
        chosen: ActiveModel | NoModel | None,
        before: ActiveModel | NoModel | None,
        mark: PortfolioMarked,
        cause: str,
    ) -> Sequence[Message]:
        if not isinstance(chosen, ActiveModel) or chosen.same_as(before):
            return ()
        return (
            ModelActivated(
                universe=mark.universe,
                portfolio=mark.portfolio,
                time=mark.time,
                model=chosen.name,
                version=chosen.version,
                model_id=chosen.model_id,
                cause=cause,
            ),
        )

    def _recall(self) -> deque[ModelActivated]:
        if self._recorded is None:
            activations = self._memory.activations()
            self._causes = frozenset(activation.cause for activation in activations if activation.cause)
            self._ask_champion = not activations
            self._recorded = deque(activations)
        return self._recorded

    def _settle_promotion(self) -> None:
        if self._promoted is not None:
            self._pending.release(self._promoted.position)
            self._promoted = None


def account_of(portfolio: PortfolioMarked) -> NDArray[np.float64]:
    """The account part of the observation, from the portfolio's mark: (3A + 1,) float64."""
    positions = portfolio.positions
    return np.array(
        [p.weight for p in positions]
        + [p.unrealised_return for p in positions]
        + [p.holding_bars / (p.holding_bars + HOLDING_SCALE) for p in positions]
        + [portfolio.drawdown]
    )
