"""Routes messages to the desks of the portfolios they are about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from weakref import WeakValueDictionary

import structlog

from tradeloop.common.bus.port import LogPosition, MessageTooLarge, Partition
from tradeloop.common.clock import Clock
from tradeloop.common.errors import Unavailable
from tradeloop.common.feature_store.port import FeatureStore
from tradeloop.common.market import check_not_ahead
from tradeloop.common.messages import (
    FeaturesComputed,
    Message,
    ModelActivated,
    ModelReady,
    PortfolioMarked,
    SignalGenerated,
)
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
from tradeloop.common.runtime.attempts import Attempts, Patience, words
from tradeloop.common.runtime.context import working_for
from tradeloop.common.runtime.held import ReadOn
from tradeloop.common.runtime.metrics import Figure, counted
from tradeloop.common.runtime.parts import parts_of
from tradeloop.common.runtime.pending import Pending
from tradeloop.common.runtime.service import ServiceDefaults
from tradeloop.common.strategy import Strategy
from tradeloop.common.strategy.fit import check_fit
from tradeloop.inference.application.decision import View
from tradeloop.inference.application.desk import Desk
from tradeloop.inference.application.measured import of_desk
from tradeloop.inference.application.online import OnlineFeatures
from tradeloop.inference.domain import ActiveModel, NoModel, SharedActor
from tradeloop.inference.ports import History

log = structlog.get_logger(__name__)

_PREPARED_AT_ONCE = 16
"""Desks that one step prepares for their first decision."""


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

    def __init__(self, portfolio: Portfolio, strategy: Strategy, models: Shelf, history: History) -> None:
        self._portfolio, self._strategy = portfolio, strategy
        self._models, self._history = models, history
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

    def marked(self) -> PortfolioMarked | None:
        return self._history.marked(self._portfolio.universe, self._portfolio.name)

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
            memory = DeskMemory(portfolio, strategy, self._models, self._history)
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


def _another(name: str, version: str, found: str, wanted: str) -> str:
    return (
        f"version {version} of model {name} is another policy ({found[:12]}) than the one that was announced "
        f"({wanted[:12]}): the registry was made anew; train or promote again"
    )
