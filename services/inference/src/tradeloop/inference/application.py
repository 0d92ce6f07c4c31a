"""Routes messages to the desks of the portfolios they are about."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import structlog

from tradeloop.common.messages import FeaturesComputed, Message, ModelReady, PortfolioMarked
from tradeloop.common.models import ModelNotFound, ModelStore, Policy, RegisteredPolicy, model_name
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.service import Handler, Held, Position
from tradeloop.common.strategy import Strategy
from tradeloop.inference.domain import ActiveModel, Actor, Desk

log = structlog.get_logger(__name__)


class Inference(Handler):
    """The inference service."""

    name = "inference"
    consumes = (FeaturesComputed, PortfolioMarked, ModelReady)

    def __init__(
        self,
        portfolios: Sequence[Portfolio],
        strategies: Callable[[str], Strategy],
        models: ModelStore,
        make_actor: Callable[[Policy], Actor],
    ) -> None:
        """`strategies` gives a strategy by name, `make_actor` makes a policy answer."""
        self._models, self._make_actor = models, make_actor
        self._held = Held()
        self._decided: list[Message] = []
        """Not yet given back: what some desks decided before another one of the same call could not."""
        self._desks = {p.name: self._desk(p, strategies(p.strategy)) for p in portfolios}
        self._by_features: dict[tuple[str, str], list[Desk]] = {}
        for desk in self._desks.values():
            key = (desk.portfolio.universe.name, desk.strategy.feature_set.id)
            self._by_features.setdefault(key, []).append(desk)

    def handle(self, message: Message, position: Position) -> Iterable[Message]:
        """Raises `Unavailable` when a model's store cannot be reached, ValueError when a model does not fit."""
        if isinstance(message, FeaturesComputed):
            for desk in self._by_features.get((message.universe, message.feature_set), ()):
                self._decided += desk.on_features(message, position)
        elif isinstance(message, PortfolioMarked) and message.portfolio in self._desks:
            self._decided += self._desks[message.portfolio].on_mark(message, position)
        elif isinstance(message, ModelReady):
            self._on_model_ready(message)
        decided, self._decided = self._decided, []
        return decided

    def held(self) -> Collection[Position]:
        return self._held.positions()

    def _desk(self, portfolio: Portfolio, strategy: Strategy) -> Desk:
        name = model_name(portfolio.strategy, portfolio.universe.name)

        def find_model() -> ActiveModel | None:
            try:
                return self._active(self._models.load(name, portfolio.model_alias), portfolio, strategy)
            except ModelNotFound:
                log.info("no model yet", portfolio=portfolio.name, model=name, alias=portfolio.model_alias)
                return None

        return Desk(portfolio, strategy, self._held, find_model)

    def _on_model_ready(self, ready: ModelReady) -> None:
        for desk in self._desks.values():
            portfolio = desk.portfolio
            wanted = (portfolio.strategy, portfolio.universe.name, portfolio.model_alias)
            if wanted == (ready.strategy, ready.universe, ready.alias):
                registered = self._models.load(ready.model, ready.version)
                desk.activate(self._active(registered, portfolio, desk.strategy))
                log.info("model ready", portfolio=portfolio.name, model=ready.model, version=ready.version)

    def _active(self, registered: RegisteredPolicy, portfolio: Portfolio, strategy: Strategy) -> ActiveModel:
        manifest = registered.policy.manifest
        here = {
            "feature_set": strategy.feature_set.id,
            "window": strategy.window,
            "instruments": len(portfolio.universe.instruments),
            "action_scheme": strategy.actions.name,
        }
        for field, expected in here.items():
            if (trained := getattr(manifest, field)) != expected:
                raise ValueError(
                    f"model {registered.name} version {registered.version} was trained with {field} {trained}, "
                    f"portfolio {portfolio.name} has {expected}: train it again, or install the strategy it was made by"
                )
        return ActiveModel(
            registered.name, registered.version, registered.policy.model_id, self._make_actor(registered.policy)
        )
