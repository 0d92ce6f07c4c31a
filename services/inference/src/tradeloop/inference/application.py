"""Routes messages to the desks of the portfolios they are about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import structlog

from tradeloop.common.bus.port import LogPosition
from tradeloop.common.messages import FeaturesComputed, Message, ModelActivated, ModelReady, PortfolioMarked
from tradeloop.common.model_store.port import Actor, ModelNotFound, Policy, PolicySource, model_name
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.pending import Pending
from tradeloop.common.runtime.service import ServiceDefaults
from tradeloop.common.strategy import Strategy
from tradeloop.common.strategy.fit import check_fit
from tradeloop.inference.domain import ActiveModel, Desk
from tradeloop.inference.ports import History

log = structlog.get_logger(__name__)


class DeskMemory:
    """The memory of one desk, from the history and the model store of the service."""

    def __init__(
        self,
        portfolio: Portfolio,
        strategy: Strategy,
        models: PolicySource,
        make_actor: Callable[[Policy], Actor],
        history: History,
    ) -> None:
        self._portfolio, self._strategy = portfolio, strategy
        self._models, self._make_actor, self._history = models, make_actor, history

    def features_before(self, first: FeaturesComputed, position: LogPosition) -> Sequence[FeaturesComputed]:
        strategy, universe = self._strategy, self._portfolio.universe
        rows = strategy.window - 1
        return self._history.features_before(first, position, universe, strategy.feature_set, rows)

    def activations(self) -> Sequence[ModelActivated]:
        return self._history.activations(self._portfolio.universe, self._portfolio.name)

    def decided_us(self) -> int:
        return self._history.decided_us(self._portfolio.universe, self._portfolio.name)

    def in_force(self) -> ActiveModel | None:
        """The model that decides next, as far as is recorded: the one activated last, or else the champion."""
        activated = self.activations()
        return self.model(activated[-1].model, activated[-1].version) if activated else self.champion()

    def champion(self) -> ActiveModel | None:
        name, alias = model_name(self._portfolio.strategy, self._portfolio.universe.name), self._portfolio.model_alias
        try:
            return self.model(name, alias)
        except ModelNotFound:
            log.info("no model yet", portfolio=self._portfolio.name, model=name, alias=alias)
            return None

    def model(self, name: str, reference: str) -> ActiveModel:
        """Raises `ModelUnfit` when the model does not fit the portfolio."""
        registered = self._models.load(name, reference)
        check_fit(
            registered.policy.manifest,
            self._strategy,
            len(self._portfolio.universe.instruments),
            f"model {registered.name} version {registered.version}",
            f"portfolio {self._portfolio.name}",
        )
        log.info("model loaded", portfolio=self._portfolio.name, model=registered.name, version=registered.version)
        return ActiveModel(
            registered.name, registered.version, registered.policy.model_id, self._make_actor(registered.policy)
        )


class Inference(ServiceDefaults):
    """The inference service."""

    name = "inference"
    consumes = (FeaturesComputed, PortfolioMarked, ModelReady)

    def __init__(
        self,
        portfolios: Sequence[Portfolio],
        strategies: Callable[[str], Strategy],
        models: PolicySource,
        make_actor: Callable[[Policy], Actor],
        history: History,
    ) -> None:
        """`strategies` gives a strategy by name, `make_actor` makes a policy answer."""
        self._history = history
        self._portfolios = [(portfolio, strategies(portfolio.strategy)) for portfolio in portfolios]
        self._memories = {
            portfolio.name: DeskMemory(portfolio, strategy, models, make_actor, history)
            for portfolio, strategy in self._portfolios
        }
        self._decided: list[Message] = []
        """Not yet given back: what some desks decided before another one of the same call could not."""
        self._not_loaded = list(self._memories)
        """Portfolios whose models were not yet tried; later ones are asked for by those who announce them."""
        self._begin()

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        """Raises `Unavailable` when a store cannot be reached, ValueError when a model does not fit."""
        if isinstance(message, FeaturesComputed):
            for desk in self._by_features.get((message.universe, message.feature_set), ()):
                self._decided += desk.on_features(message, position)
        elif isinstance(message, PortfolioMarked) and message.portfolio in self._desks:
            self._decided += self._desks[message.portfolio].on_mark(message, position)
        elif isinstance(message, ModelReady):
            for desk in self._desks.values():
                desk.on_model_ready(message, position)
        decided, self._decided = self._decided, []
        return decided

    def answers(self, message: Message) -> bool:
        """A model that is ready changes later decisions only."""
        return not isinstance(message, ModelReady)

    def pending(self) -> Pending:
        return self._pending

    def revoked(self) -> None:
        self._begin()

    def not_ready(self) -> Iterable[str]:
        """Loads every model once, so that the first decision does not wait for it. Raises `Unavailable`.

        A portfolio without a model that fits is no hindrance: only training, which needs a running stack, gives it one.
        """
        while self._not_loaded:
            try:
                self._memories[self._not_loaded[-1]].in_force()
            except (ValueError, ModelNotFound) as error:
                log.error("no model that fits", portfolio=self._not_loaded[-1], error=str(error))
            self._not_loaded.pop()
        return ()

    def close(self) -> None:
        self._history.close()

    def _begin(self) -> None:
        """Desks that know nothing yet."""
        self._pending = Pending()
        self._decided.clear()
        self._desks: dict[str, Desk] = {}
        self._by_features: dict[tuple[str, str], list[Desk]] = {}
        for portfolio, strategy in self._portfolios:
            desk = Desk(portfolio, strategy, self._pending, self._memories[portfolio.name])
            self._desks[portfolio.name] = desk
            self._by_features.setdefault((portfolio.universe.name, strategy.feature_set.id), []).append(desk)
