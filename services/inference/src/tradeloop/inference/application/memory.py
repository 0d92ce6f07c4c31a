"""The memory of a desk: what was published before it, and the models that were loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakValueDictionary

import structlog

from tradeloop.common.bus.port import LogPosition
from tradeloop.common.messages import FeaturesComputed, ModelActivated, ModelReady, PortfolioMarked, SignalGenerated
from tradeloop.common.model_store.port import (
    Actor,
    ModelNotFound,
    ModelUnfit,
    Policy,
    PolicySource,
    RegisteredPolicy,
    model_name,
)
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.held import ReadOn
from tradeloop.common.strategy import Strategy
from tradeloop.common.strategy.fit import check_fit
from tradeloop.inference.domain import ActiveModel, NoModel, SharedActor
from tradeloop.inference.ports import History

log = structlog.get_logger(__name__)


class Shelf:
    """The policies of a turn: desks that share a model load it once, and share what answers for it."""

    def __init__(self, models: PolicySource, make_actor: Callable[[Policy], Actor]) -> None:
        self._models, self._make_actor = models, make_actor
        self._loaded: dict[tuple[str, str], RegisteredPolicy] = {}
        self._actors: WeakValueDictionary[tuple[str, str], SharedActor] = WeakValueDictionary()

    def turn(self) -> None:
        """Ask anew from now on: an alias may have moved."""
        self._loaded.clear()

    def load(self, name: str, reference: str) -> RegisteredPolicy:
        """As `PolicySource.load`."""
        if (name, reference) not in self._loaded:
            self._loaded[name, reference] = self._models.load(name, reference)
        return self._loaded[name, reference]

    def actor(self, registered: RegisteredPolicy) -> SharedActor:
        """The actor of a policy, shared by all who have it."""
        key = registered.name, registered.policy.model_id
        actor = self._actors.get(key)
        if actor is None:
            actor = self._actors[key] = SharedActor(registered.policy, self._make_actor)
        return actor


class DeskMemory:
    """The memory of one desk, from the history and the model store of the service."""

    def __init__(
        self,
        portfolio: Portfolio,
        strategy: Strategy,
        models: Shelf,
        history: History,
        comes: Callable[[LogPosition], bool],
    ) -> None:
        """`comes` says whether the message at a position is still to come from the bus, or has come."""
        self._portfolio, self._strategy = portfolio, strategy
        self._models, self._history, self._comes = models, history, comes
        self._loaded: ActiveModel | None = None
        """The model that was loaded last."""
        self._activated: Sequence[ModelActivated] | None = None
        """The activations that were read to prepare, for the first decision; then they are let go."""

    def features_before(self, time_us: int, position: LogPosition | None) -> Sequence[FeaturesComputed]:
        strategy, universe = self._strategy, self._portfolio.universe
        # A decision that is still open needs its own row beside those before it.
        rows = strategy.window - (0 if position is None else 1)
        return self._history.features_before(time_us, position, universe, strategy.feature_set, rows)

    def features_on(self) -> ReadOn[FeaturesComputed]:
        return self._history.features_on(self._portfolio.universe, self._strategy.feature_set)

    def activations(self) -> Sequence[ModelActivated]:
        found, self._activated = self._activated, None
        return found if found is not None else self._history.activations(self._portfolio.universe, self._portfolio.name)

    def decided(self) -> SignalGenerated | None:
        return self._history.decided(self._portfolio.universe, self._portfolio.name)

    def marked(self) -> tuple[PortfolioMarked, bool] | None:
        found = self._history.marked(self._portfolio.universe, self._portfolio.name)
        return None if found is None else (found[0], self._comes(found[1]))

    def in_force(self) -> ActiveModel | NoModel | None:
        """The model that decides next, as far as is recorded: the one activated last, or else the champion."""
        activated = self._activated = self.activations()
        if not activated:
            return self.champion()
        return self.model(activated[-1].model, activated[-1].version, activated[-1].model_id)

    def champion(self) -> ActiveModel | NoModel | None:
        name, alias = model_name(self._portfolio.strategy, self._portfolio.universe.name), self._portfolio.model_alias
        try:
            return self._active(self._models.load(name, alias))
        except ModelNotFound:
            log.info("no model yet", portfolio=self._portfolio.name, model=name, alias=alias)
            return None
        except ValueError as error:
            return self._none(name, alias, str(error))

    def model(self, name: str, version: str, model_id: str) -> ActiveModel | NoModel:
        """A model that was activated; what stands in its way where it cannot decide."""
        loaded = self._loaded
        if loaded is not None and (loaded.name, loaded.version, loaded.model_id) == (name, version, model_id):
            return loaded
        try:
            active = self._active(self._models.load(name, version))
        except (ModelNotFound, ValueError) as error:
            return self._none(name, version, str(error))
        if model_id and active.model_id != model_id:
            return self._none(name, version, _another(name, version, active.model_id, model_id))
        return active

    def announced(self, ready: ModelReady) -> ActiveModel:
        """A model that was announced. Raises `ModelUnfit` where it cannot decide here, `ModelNotFound`."""
        active = self._active(self._models.load(ready.model, ready.version))
        if ready.model_id and active.model_id != ready.model_id:
            raise ModelUnfit(_another(ready.model, ready.version, active.model_id, ready.model_id))
        return active

    def _active(self, registered: RegisteredPolicy) -> ActiveModel:
        check_fit(
            registered.policy.manifest,
            self._strategy,
            len(self._portfolio.universe.instruments),
            f"model {registered.name} version {registered.version}",
            f"portfolio {self._portfolio.name}",
            self._portfolio.universe,
        )
        log.info("model loaded", portfolio=self._portfolio.name, model=registered.name, version=registered.version)
        self._loaded = ActiveModel(
            registered.name,
            registered.version,
            registered.policy.model_id,
            self._models.actor(registered),
            registered.policy.manifest,
        )
        return self._loaded

    @property
    def loaded(self) -> ActiveModel | None:
        """The model that was loaded last: before a first decision the one that is prepared for it."""
        return self._loaded

    def _none(self, name: str, reference: str, why: str) -> NoModel:
        log.error("no model that can decide", portfolio=self._portfolio.name, model=name, version=reference, error=why)
        return NoModel(why)


def _another(name: str, version: str, found: str, wanted: str) -> str:
    return (
        f"version {version} of model {name} is another policy ({found[:12]}) than the one that was announced "
        f"({wanted[:12]}): the registry was made anew; train or promote again"
    )
