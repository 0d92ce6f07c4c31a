"""One portfolio's decisions: the join of features and mark, and the window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from tradeloop.common.bus.port import LogPosition
from tradeloop.common.clock import Clock
from tradeloop.common.errors import Unavailable
from tradeloop.common.market import from_us, to_us
from tradeloop.common.messages import (
    FeaturesComputed,
    Message,
    ModelReady,
    PortfolioMarked,
    SignalGenerated,
)
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.attempts import Attempts, Patience, words
from tradeloop.common.runtime.held import Queue, ReadOn, limit_of
from tradeloop.common.runtime.pending import Pending
from tradeloop.common.strategy import Strategy
from tradeloop.common.strategy.observations import ObservationBuilder
from tradeloop.inference.application.decision import View, decide, hold, see
from tradeloop.inference.application.drift import Drift
from tradeloop.inference.application.online import POLL_S, NotOnlineYet
from tradeloop.inference.domain import ActiveModel, ModelInForce, ModelMemory, NoModel

log = structlog.get_logger(__name__)


class Memory(ModelMemory, Protocol):
    """The past that a desk has to know. Each call may raise `Unavailable`."""

    def features_before(self, time_us: int, position: LogPosition | None) -> Sequence[FeaturesComputed]:
        """The window's features of bars before a time, in the order of time; fewer if never published.

        Those that stand before `position`, where one is given.
        """
        ...

    def features_on(self) -> ReadOn[FeaturesComputed]:
        """Reads features from a position on."""
        ...

    def decided(self) -> SignalGenerated | None:
        """The last decision that was published, or None."""
        ...

    def marked(self) -> tuple[PortfolioMarked, bool] | None:
        """The last mark that was published, and whether it still comes from the bus; or None."""
        ...


class Desk:
    """Decides for one portfolio, bar by bar: features(t) and portfolio(t) in, signal(t) out.

    What decides is a function of what was published: the window is the last features before t, the model is the
    one whose activation was recorded last. So a desk that is new, after a crash or in another process, decides
    what the old one would have.

    Messages are put in; `work` decides on what is complete. It computes first and changes after: what fails is tried
    again, and what fails for good is decided all the same, to hold, with the reason.
    """

    def __init__(
        self,
        portfolio: Portfolio,
        strategy: Strategy,
        pending: Pending,
        memory: Memory,
        clock: Clock,
        patience: Patience,
        read: Callable[[FeaturesComputed], FeaturesComputed],
        viewed: bool,
    ) -> None:
        """`read` gives the features to decide on for published ones. It may raise `Unavailable`.

        `viewed` says whether anybody looks at `view`.
        """
        self._read, self._viewed = read, viewed
        self.view: View | None = None
        """The desk after its last decision, where it is `viewed`. Replaced, never changed: any thread may read it."""
        self.portfolio, self.strategy = portfolio, strategy
        count, features = len(portfolio.universe.instruments), len(strategy.feature_set.names)
        self._features: Queue[FeaturesComputed] = Queue(pending, memory.features_on(), limit_of(count * features))
        self._marks: Queue[PortfolioMarked] = Queue(pending)
        self._pending, self._memory = pending, memory
        self._attempts = Attempts(clock, patience)
        self.drift = Drift(features)
        """The features of late, to compare with those of training."""
        self.failed = 0
        """How many decisions have failed for good."""
        self._models = ModelInForce(portfolio, pending, memory)
        self._recovered = False
        self._first: tuple[int, LogPosition] | None = None
        """Close and position of the first features that came."""
        self._window_known = False
        """Whether the window before them was read back."""
        self._seen_us = -1
        """Close of the newest features in the window."""
        self._decided_us = -1
        self._before: SignalGenerated | None = None
        """The last decision of the desk before this one."""
        self._decision: list[Message] = []
        self._again = False
        """Whether the last decision was asked for again."""
        self._builder = ObservationBuilder(strategy.window, count, len(strategy.features))

    @property
    def trouble(self) -> str:
        """The thing that keeps it from deciding now, in words; empty where nothing does."""
        return self._attempts.error

    @property
    def bar(self) -> datetime | None:
        """The close of the bar that it decides on next, or decided on last."""
        if len(self._marks):
            return self._marks[0][1].time
        return from_us(self._decided_us) if self._decided_us >= 0 else None

    @property
    def model(self) -> ActiveModel | NoModel | None:
        """The model of the last decision; None before that."""
        return self._models.in_force

    @property
    def seen_us(self) -> int:
        """Close of the newest bar whose features are in the window; -1 for none."""
        return self._seen_us

    @property
    def due(self) -> bool:
        """Whether the time of the next attempt has come."""
        return self._attempts.due

    @property
    def unfinished(self) -> bool:
        """Whether there is more to do at once: a mark waits, and features are here or on the bus.

        Both are here only behind a decision that was given up.
        """
        features = self._features.overflows or len(self._features) > 0
        return features and len(self._marks) > 0 and not self._attempts.waiting

    def on_model_ready(self, ready: ModelReady, position: LogPosition) -> None:
        """Let a model decide from the next decision on, if it is for this portfolio. As `ModelInForce.promote`."""
        self._models.promote(ready, position)

    def put_features(self, message: FeaturesComputed, position: LogPosition) -> None:
        """Take features in; those of a bar that went by are dropped."""
        time_us = to_us(message.time)
        if self._first is None:
            self._first = time_us, position
        self._features.put(time_us, message, position)

    def put_mark(self, message: PortfolioMarked, position: LogPosition) -> None:
        """Take a mark in. The one that was decided last, delivered again, gets the same decision again."""
        time_us = to_us(message.time)
        if time_us == self._decided_us:
            self._again = True
        else:
            self._marks.put(time_us, message, position)

    def work(self) -> list[Message]:
        """Decide on every bar whose mark and features are there; gives back what is to be published."""
        if not self._attempts.due:
            return []
        messages: list[Message] = []
        if self._again:
            self._again = False
            messages += self._decision
        try:
            self._recover()
            self._features.fill()
            for decision in self._join():
                messages += decision
                self._attempts.passed()
        except NotOnlineYet as error:
            self._attempts.held_up(error, POLL_S)
        except Unavailable as error:
            self._attempts.held_up(error)
        except Exception as error:  # noqa: BLE001  whatever a model or a strategy does is its own failure
            messages += self._fail(error)
        else:
            self._attempts.passed()
        return messages

    def refused(self, signal: SignalGenerated, why: str) -> list[Message]:
        """The messages to publish instead of a decision that the bus does not take."""
        hold = signal.model_copy(update={"hold": True, "reason": "error", "error": why, "features": (), "action": ()})
        self._decision = [*(message for message in self._decision if message != signal), hold]
        self.failed += 1
        return [hold]

    def _fail(self, error: Exception) -> list[Message]:
        mark = self._marks[0][1] if len(self._marks) else None
        log.error(
            "a decision failed",
            portfolio=self.portfolio.name,
            universe=self.portfolio.universe.name,
            time=mark.time.isoformat() if mark else None,
            error=words(error),
            exc_info=error,
        )
        if not self._attempts.failed(error) or mark is None:
            return []
        self.failed += 1
        self._attempts.passed()
        mark_us, features_us = to_us(mark.time), self._features.first_us
        if features_us is not None and features_us <= mark_us:
            if self._seen_us < features_us:
                self._builder.clear()  # they cannot be read, so that a bar is missing from the window
            self._features.take()
            if features_us < mark_us:
                return []
        self._marks.take()
        return self._decide_finally(mark, [hold(self.strategy, mark, "error", words(error))])

    def _join(self) -> Iterator[list[Message]]:
        while (mark_us := self._marks.first_us) is not None:
            mark, before = self._marks[0][1], self._before
            if before is not None and mark.time == before.time:
                yield self._repeat(mark, before)
                continue
            features_us = self._features.first_us
            if (features_us is None or features_us > mark_us) and before is not None and mark.time < before.time:
                # It was decided on before this desk was there, and is repeated since the ledger is older than that.
                self._marks.take()
                continue
            if features_us is None:
                return
            features = self._features[0][1]
            if features_us <= mark_us:
                self._see(features)
            if features_us < mark_us:
                # No mark comes for this bar any more: it belongs to the window, not to a decision.
                self._features.take()
                continue
            choice = self._models.choose(mark)
            if features_us > mark_us:
                signal = hold(self.strategy, mark, "no_features")
            else:
                signal = decide(
                    self.strategy,
                    self.portfolio.universe,
                    self._read(features),
                    mark,
                    choice.model,
                    self._builder,
                    _act,
                )
            self._models.use(choice)
            if features_us == mark_us:
                self._features.take()
            self._marks.take()
            yield self._decide_finally(mark, [*choice.activated, signal])

    def _repeat(self, mark: PortfolioMarked, decision: SignalGenerated) -> list[Message]:
        """Publish a decision again that stands on its topic already, as execution repeats its last mark after a crash.

        Whoever decides anew could do so with another model, where the activation of the one that decided was lost.
        """
        choice = self._models.chosen_for(decision, mark)
        self._models.use(choice)
        self._marks.take()
        return self._decide_finally(mark, [*choice.activated, decision])

    def _decide_finally(self, mark: PortfolioMarked, decision: list[Message]) -> list[Message]:
        self._decided_us, self._decision = to_us(mark.time), decision
        if self._viewed:
            self.view = View(mark, self._models.in_force, self._seen_us, self._builder.rows)
        return decision

    def _recover(self) -> None:
        """Read back what the desk before this one knew: a decision that is still open, and the window."""
        if not self._recovered:
            last, self._before = self._memory.marked(), self._memory.decided()
            mark, comes = last or (None, False)
            if mark is not None and self._before is not None and self._before.time >= mark.time:
                if self._viewed:
                    self._look_back(mark, self._before)
            elif mark is not None and not comes:
                # One that comes is decided on in its turn: taken now, it would get ahead of the bars before it.
                self._reopen(mark)
            self._recovered = True
        if self._first is not None and not self._window_known:
            self._see_all(self._memory.features_before(*self._first))

    def _reopen(self, mark: PortfolioMarked) -> None:
        """Decide on a mark that another desk read, or one that did not know its portfolio, and never answered."""
        mark_us = to_us(mark.time)
        if self._first is None:
            earlier = self._memory.features_before(mark_us + 1, None)
            whole = bool(earlier) and earlier[-1].time == mark.time
            self._see_all(earlier[:-1] if whole else earlier)
            if whole:
                self._features.put(mark_us, earlier[-1], None)
        self._marks.put(mark_us, mark, None)

    def _look_back(self, mark: PortfolioMarked, decision: SignalGenerated) -> None:
        """Show what the desk before this one showed: the next bar may be a day away."""
        window = ObservationBuilder(self.strategy.window, len(mark.positions), len(self.strategy.features))
        rows = self._memory.features_before(to_us(mark.time) + 1, None)
        for features in rows:
            see(window, self.strategy, self.portfolio.universe, features)
        model = None
        if decision.model_id:
            model = self._memory.model(decision.model, decision.model_version, decision.model_id)
        self.view = View(mark, model, to_us(rows[-1].time) if rows else -1, window.rows)

    def _see_all(self, earlier: Sequence[FeaturesComputed]) -> None:
        for features in earlier:
            self._see(features)
        self._window_known = True

    def _see(self, features: FeaturesComputed) -> None:
        """Add a row to the window, once; a row that is not known yet starts it anew."""
        time_us = to_us(features.time)
        if time_us <= self._seen_us:
            return
        values = see(self._builder, self.strategy, self.portfolio.universe, features)
        if values is not None:
            self.drift.see(values)
        self._seen_us = time_us


def _act(model: ActiveModel, observation: NDArray[np.float32]) -> NDArray[np.float64]:
    return model.actor.act(observation)
