"""Routes messages to the desks of the portfolios they are about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import structlog

from tradeloop.common.bus.port import LogPosition, MessageTooLarge, Partition
from tradeloop.common.clock import Clock
from tradeloop.common.errors import Unavailable
from tradeloop.common.feature_store.port import FeatureStore
from tradeloop.common.market import check_not_ahead
from tradeloop.common.messages import (
    FeaturesComputed,
    Message,
    ModelReady,
    PortfolioMarked,
    SignalGenerated,
)
from tradeloop.common.model_store.port import Actor, ModelNotFound, Policy, PolicySource
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.attempts import Attempts, Patience, words
from tradeloop.common.runtime.context import working_for
from tradeloop.common.runtime.metrics import Figure, counted
from tradeloop.common.runtime.parts import parts_of
from tradeloop.common.runtime.pending import Pending
from tradeloop.common.runtime.service import ServiceDefaults
from tradeloop.common.strategy import Strategy
from tradeloop.inference.application.decision import View
from tradeloop.inference.application.desk import Desk
from tradeloop.inference.application.measured import of_desk
from tradeloop.inference.application.memory import DeskMemory, Shelf
from tradeloop.inference.application.online import OnlineFeatures
from tradeloop.inference.ports import History

log = structlog.get_logger(__name__)

_PREPARED_AT_ONCE = 16
"""Desks that one step prepares for their first decision."""


class Inference(ServiceDefaults):
    """The inference service.

    `handle` only takes messages in; `advance` lets the desks decide. So what fails is the failure of a portfolio, never
    that of the message that happened to complete its join.
    """

    name = "inference"
    consumes = (FeaturesComputed, PortfolioMarked, ModelReady)

    def __init__(
        self,
        portfolios: Sequence[Portfolio],
        strategies: Callable[[str], Strategy],
        models: PolicySource,
        make_actor: Callable[[Policy], Actor],
        history: History,
        clock: Clock,
        patience: Patience | None = None,
        online: FeatureStore | None = None,
        online_wait_s: float = 5.0,
        viewed: bool = False,
    ) -> None:
        """`strategies` gives a strategy by name, `make_actor` makes a policy answer.

        With `online`, the features of a bar are read from that store, and waited for as long as `online_wait_s`.
        `viewed` says whether anybody looks at desks (`view`).
        """
        self._viewed = viewed
        self._online, self._online_wait_s = online, online_wait_s
        self._history, self._clock, self._patience = history, clock, patience or Patience()
        self._models = Shelf(models, make_actor)
        self._strategies = {portfolio.strategy: strategies(portfolio.strategy) for portfolio in portfolios}
        self._portfolios = {portfolio.name: portfolio for portfolio in portfolios}
        self._by_universe: dict[str, list[Portfolio]] = {}
        for portfolio in portfolios:
            self._by_universe.setdefault(portfolio.universe.name, []).append(portfolio)
        self._reads_from: Mapping[Partition, int] = {}
        """Where each partition is read from; one that is not here, from its beginning."""
        self._tallies: Counter[tuple[str, str]] = Counter()
        self._signals: Counter[tuple[str, ...]] = Counter()
        """How many were published, by universe, portfolio and reason."""
        self._begin()

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        """Raises `Unavailable` when an announced model cannot be loaded now, `ModelUnfit` when it does not fit, and
        `UserError` for what is about a time that has not come yet."""
        if message.occurred is not None:
            check_not_ahead(message.occurred, self._clock, f"the {type(message).__name__} of {message.key}")
        if isinstance(message, FeaturesComputed):
            for portfolio in self._by_universe.get(message.universe, ()):
                if self._strategies[portfolio.strategy].feature_set.id == message.feature_set:
                    self._desk(portfolio.name).put_features(message, position)
        elif isinstance(message, PortfolioMarked) and message.portfolio in self._portfolios:
            self._desk(message.portfolio).put_mark(message, position)
        elif isinstance(message, ModelReady):
            self._promote(message, position)
        return ()

    def answers(self, message: Message) -> bool:
        return False  # whatever comes is taken in, unless it came before

    def advance(self) -> Iterator[Message]:
        """Let every desk decide that has something to decide on."""
        self._models.turn()
        if self._preparing.due:
            self._prepare([*self._unprepared][:_PREPARED_AT_ONCE])
        for name in [name for name in self._later if self._desks[name].due]:
            del self._later[name]
            self._ready[name] = None
        for name in list(self._ready):
            desk, failed = self._desks[name], self._desks[name].failed
            with working_for(desk):
                messages = desk.work()
            self._tallies["decision_failed", name] += desk.failed - failed
            del self._ready[name]
            if desk.trouble:
                self._later[name] = None
            elif desk.unfinished:
                self._ready[name] = None
            for message in messages:
                if isinstance(message, SignalGenerated):
                    self._signals[desk.portfolio.universe.name, name, message.reason] += 1
            yield from messages

    def waiting(self) -> bool:
        return bool(self._later or self._unprepared)

    def substitutes(self, refused: Message, error: MessageTooLarge) -> Iterable[Message] | None:
        """A decision that the bus does not take is one to hold, with the reason."""
        if not isinstance(refused, SignalGenerated) or refused.portfolio not in self._desks:
            return None
        self._tallies["decision_failed", refused.portfolio] += 1
        return self._desks[refused.portfolio].refused(refused, words(error))

    def parts(self) -> Mapping[str, Sequence[str]]:
        return parts_of(self._portfolios.values(), self._strategies)

    def tallies(self) -> Mapping[tuple[str, str], int]:
        return {key: count for key, count in self._tallies.items() if count}

    def figures(self) -> Iterable[Figure]:
        yield from counted("tradeloop_signals_total", self._signals)
        for name, desk in self._desks.items():
            yield from of_desk(desk, self._memories[name].loaded)

    def pending(self) -> Pending:
        return self._pending

    def assigned(self, committed: Mapping[Partition, int], owns: Callable[[str], bool]) -> Mapping[Partition, int]:
        self._reads_from = committed
        for portfolio in self._portfolios.values():
            if owns(portfolio.universe.name):
                self._desk(portfolio.name)
        return {}

    def revoked(self) -> None:
        self._begin()

    def not_ready(self) -> Iterable[str]:
        """The desks that wait for something outside, such as the model store.

        A portfolio without a model that fits is no hindrance: only training, which needs a running stack, gives it one.
        """
        if self._online is not None:
            self._online.check()
        models = (self._preparing.error,) if self._preparing.error else ()
        return [*models, *(f"portfolio {name}: {self._desks[name].trouble}" for name in self._later)]

    def close(self) -> None:
        self._history.close()
        if self._online is not None:
            self._online.close()

    @property
    def books(self) -> Mapping[str, tuple[Portfolio, Strategy]]:
        """All portfolios that are known here, with their strategies, by name."""
        return {name: (each, self._strategies[each.strategy]) for name, each in self._portfolios.items()}

    def view(self, portfolio: str) -> View | None:
        """The desk of a portfolio after its last decision, where this process decides for it. From any thread."""
        desk = self._desks.get(portfolio)
        return None if desk is None else desk.view

    def _begin(self) -> None:
        """Desks that know nothing yet."""
        self._history.forget()
        self._pending = Pending()
        self._reads_from = {}
        self._desks: dict[str, Desk] = {}
        self._memories: dict[str, DeskMemory] = {}
        self._preparing = Attempts(self._clock, self._patience)
        self._unprepared: dict[str, None] = {}
        """Desks whose models were not yet loaded: so that the first decision does not wait for that."""
        self._ready: dict[str, None] = {}
        """Desks that may have something to decide."""
        self._later: dict[str, None] = {}
        """Desks of which something failed that is tried again in time."""

    def _desk(self, name: str) -> Desk:
        """The desk of a portfolio that this process decides for now; it has something to do."""
        desk = self._desks.get(name)
        if desk is None:
            portfolio = self._portfolios[name]
            strategy = self._strategies[portfolio.strategy]
            memory = DeskMemory(portfolio, strategy, self._models, self._history, self._comes)
            self._memories[name] = memory
            desk = self._desks[name] = Desk(
                portfolio,
                strategy,
                self._pending,
                memory,
                self._clock,
                self._patience,
                self._read(name),
                self._viewed,
            )
            self._unprepared[name] = None
        self._ready[name] = None
        return desk

    def _comes(self, position: LogPosition) -> bool:
        return position.offset >= self._reads_from.get(position.partition, 0)

    def _read(self, name: str) -> Callable[[FeaturesComputed], FeaturesComputed]:
        """How the desk of a portfolio reads features that were published."""
        if self._online is None:
            return lambda published: published
        return OnlineFeatures(self._online, self._clock, name, self._tallies, self._online_wait_s).of

    def _prepare(self, names: Sequence[str]) -> None:
        """Load the models of some desks; what is wrong with one is met again, and said, when it has to decide."""
        try:
            for name in names:
                try:
                    self._memories[name].in_force()
                except Unavailable:
                    raise
                except Exception as error:
                    log.exception("a desk is not prepared", portfolio=name, error=words(error))
                del self._unprepared[name]
                self._ready[name] = None
        except Unavailable as error:
            self._preparing.held_up(error)
        else:
            self._preparing.passed()

    def _promote(self, ready: ModelReady, position: LogPosition) -> None:
        """Announce a model to all desks that it is for; what is wrong with it for one is no matter of others."""
        self._models.turn()
        wrong: Exception | None = None
        for portfolio in self._by_universe.get(ready.universe, ()):
            try:
                self._desk(portfolio.name).on_model_ready(ready, position)
            except (ValueError, ModelNotFound) as error:
                wrong = error
        if wrong is not None:
            raise wrong
