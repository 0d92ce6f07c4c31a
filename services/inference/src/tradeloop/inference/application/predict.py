"""The decision on a bar for who asks beside the event path. It changes nothing: no message, no order, no state."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import isnan
from typing import Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from tradeloop.common.clock import Clock
from tradeloop.common.errors import Unavailable, UserError
from tradeloop.common.feature_store.port import FeatureSetUnknown, FeaturesTooOld, FeatureStore
from tradeloop.common.features.shown import shown
from tradeloop.common.market import check_not_ahead, from_us, iso, to_us
from tradeloop.common.messages import SignalGenerated
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.attempts import words
from tradeloop.common.runtime.headers import trace_id
from tradeloop.common.strategy import Strategy
from tradeloop.common.strategy.observations import ObservationBuilder
from tradeloop.inference.application.decision import View, decide, hold, see
from tradeloop.inference.domain import ActiveModel

log = structlog.get_logger(__name__)

_BARS_OLD = 2
"""How many bars old features may be that nobody asked for by their time."""

Books = Mapping[str, tuple[Portfolio, Strategy]]
Given = Mapping[str, Mapping[str, float]]
"""Features by instrument and name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A decision that is asked for: of a portfolio, or of the one that the other names leave."""

    portfolio: str | None = None
    strategy: str | None = None
    model: str | None = None
    model_version: str | None = None
    universe: str | None = None
    instrument: str | None = None
    time_us: int | None = None
    """Close of the bar; None for the newest features of the online store, or for given ones of the book's bar."""
    features: Given | None = None
    """Features to decide on; None for those of the online store."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A decision, and the things that it was made of."""

    portfolio: Portfolio
    signal: SignalGenerated
    """The decision as the event path would publish it; nobody does. Its time is that of the book."""
    source: Literal["online", "given"]
    time_us: int
    """Close of the bar whose features were decided on."""
    age_s: float
    trace_id: str
    """The trace of all messages about that bar."""


@dataclass(frozen=True, slots=True)
class BarFeatures:
    """The features of a bar, from wherever: as `FeaturesComputed` has them."""

    time: datetime
    feature_set: str
    instruments: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    error: str = ""


class NoPrediction(Exception):
    """A question without an answer: `kind` is a word for programs, the text one line for people."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Predictor:
    """Answers questions from any thread, from what desks show of themselves and from a store of its own."""

    def __init__(
        self,
        books: Books,
        view: Callable[[str], View | None],
        clock: Clock,
        store: FeatureStore | None = None,
        max_age_s: float | None = None,
    ) -> None:
        """`max_age_s` is how old features of the store may be where no time is asked for: two bars by default."""
        self._books, self._view, self._clock = books, view, clock
        self._store, self._max_age_s = store, max_age_s

    def answer(self, question: Question) -> Prediction:
        """Raises `NoPrediction`."""
        portfolio, strategy = self._books[self._found(question)]
        view = self._shown(portfolio.name)
        if question.features is not None:
            features = self._given(question, portfolio, strategy, view)
        else:
            features = self._stored(question, portfolio, strategy, view)
        self._check_follows(features, portfolio, view)
        return Prediction(
            portfolio,
            self._decided(features, portfolio, strategy, view),
            "online" if question.features is None else "given",
            to_us(features.time),
            (self._clock.now() - features.time).total_seconds(),
            trace_id(view.mark.model_copy(update={"time": features.time})),
        )

    def _found(self, question: Question) -> str:
        """The one portfolio that a question is about."""
        if question.portfolio is None and question.strategy is None:
            raise NoPrediction("invalid", "name a portfolio, or a strategy")
        names: Iterable[str] = self._books
        if question.portfolio is not None:
            if question.portfolio not in self._books:
                near = difflib.get_close_matches(question.portfolio, self._books, 1)
                hint = f": did you mean {near[0]}?" if near else ""
                raise NoPrediction("unknown_portfolio", f"portfolio {question.portfolio} is unknown here{hint}")
            names = [question.portfolio]
        wrong = {name: why for name in names if (why := self._mismatch(name, question))}
        found = [name for name in names if name not in wrong]
        if question.portfolio is not None and wrong:
            raise NoPrediction("mismatch", f"portfolio {question.portfolio} {wrong[question.portfolio]}")
        if not found:
            raise NoPrediction("unknown_portfolio", f"no portfolio here matches: {_some(wrong.values())}")
        if len(found) > 1:
            raise NoPrediction("ambiguous", f"{len(found)} portfolios match: name one, such as {_some(found)}")
        return found[0]

    def _mismatch(self, name: str, question: Question) -> str:
        """The first thing in which a portfolio is not the one that is asked for; empty where it is."""
        portfolio, _ = self._books[name]
        if question.strategy not in (None, portfolio.strategy):
            return f"has strategy {portfolio.strategy}, and not {question.strategy}"
        if question.universe not in (None, portfolio.universe.name):
            return f"trades universe {portfolio.universe.name}, and not {question.universe}"
        if question.instrument is not None and question.instrument not in portfolio.universe.ids:
            return f"does not trade {question.instrument}: it has {_some(portfolio.universe.ids)}"
        if question.model is None and question.model_version is None:
            return ""
        view = self._view(name)
        model = None if view is None else view.model
        if not isinstance(model, ActiveModel):
            return "has no model that decides"
        if question.model in (None, model.name) and question.model_version in (None, model.version):
            return ""
        return f"decides with version {model.version} of model {model.name}"

    def _shown(self, name: str) -> View:
        view = self._view(name)
        if view is None:
            raise NoPrediction(
                "not_ready", f"no bar of portfolio {name} was decided on here yet, or another process decides for it"
            )
        return view

    def _given(self, question: Question, portfolio: Portfolio, strategy: Strategy, view: View) -> BarFeatures:
        given, names = question.features or {}, strategy.feature_set.names
        _check_names("instrument", given, portfolio.universe.ids)
        for instrument in portfolio.universe.ids:
            _check_names(f"feature of {instrument}", given[instrument], names)
        values = [[float(given[instrument][name]) for name in names] for instrument in portfolio.universe.ids]
        if not np.isfinite(values).all():
            raise NoPrediction("invalid", "a feature is no finite number")
        time = view.mark.time if question.time_us is None else from_us(question.time_us)
        try:
            check_not_ahead(time, self._clock, "the bar that is asked for")
        except UserError as error:
            raise NoPrediction("invalid", str(error)) from None
        return _bar(portfolio, strategy, time, values)

    def _stored(self, question: Question, portfolio: Portfolio, strategy: Strategy, view: View) -> BarFeatures:
        """The features of the online store: those of the bar that is asked for, or else the newest, if new enough."""
        if self._store is None:
            raise NoPrediction(
                "no_store", "this service has no online store (INFERENCE_FEATURE_ROOT): give features in the body"
            )
        universe, asked_us = portfolio.universe, question.time_us
        since_us = to_us(view.mark.time) if asked_us is None else asked_us
        try:
            found = self._store.read_online(strategy.feature_set.id, universe.name, universe.ids, since_us)
        except (FeaturesTooOld, FeatureSetUnknown) as error:
            raise NoPrediction("features_too_old", str(error)) from None
        except Unavailable as error:
            raise NoPrediction("store_away", str(error)) from None
        time = from_us(int(found.time_us[0]))
        if found.mixed:
            raise NoPrediction(
                "half_written", f"a bar of {universe.name} after {iso(time)} is being written: ask again"
            )
        if asked_us is not None and int(found.time_us[0]) != asked_us:
            raise NoPrediction(
                "other_bar",
                f"the online store has the newest features alone, of the bar that closed {iso(time)}: give those of "
                f"{iso(from_us(asked_us))} in the body, or leave the time out",
            )
        age_s, most_s = (self._clock.now() - time).total_seconds(), self._max_age_s
        most_s = _BARS_OLD * universe.timeframe.seconds if most_s is None else most_s
        if asked_us is None and age_s > most_s:
            raise NoPrediction(
                "features_too_old",
                f"the newest features of {universe.name} in the online store are of the bar that closed {iso(time)}, "
                f"{age_s:.0f} s ago; at most {most_s:g} s are taken: name the time to decide on that bar all the same",
            )
        seen = view.rows[-1] if len(view.rows) and view.seen_us == int(found.time_us[0]) else None
        known, _ = shown(found.values[0], universe)
        if seen is not None and seen.tobytes() != strategy.observed(known).astype(np.float32).tobytes():
            raise NoPrediction(
                "features_differ",
                f"the features of {iso(time)} in the online store are not those that {portfolio.name} decided on",
            )
        return _bar(portfolio, strategy, time, found.values[0].tolist())

    def _check_follows(self, features: BarFeatures, portfolio: Portfolio, view: View) -> None:
        """The bar is that of the book, or the next one: no other goes with this book and this window."""
        time_us, mark_us = to_us(features.time), to_us(view.mark.time)
        if time_us == mark_us or mark_us < time_us <= view.seen_us + portfolio.universe.timeframe.us:
            return
        raise NoPrediction(
            "other_bar",
            f"the book of {portfolio.name} is that of {iso(view.mark.time)}: only that bar and the next one can be "
            f"decided on, and not that of {iso(features.time)}",
        )

    def _decided(self, features: BarFeatures, portfolio: Portfolio, strategy: Strategy, view: View) -> SignalGenerated:
        """The decision, as the desk would decide; what fails is to hold, with the reason."""
        count = len(features.instruments)
        window = ObservationBuilder(strategy.window, count, len(strategy.features))
        before = view.rows[:-1] if len(view.rows) and view.seen_us == to_us(features.time) else view.rows
        for row in before:
            window.append(row.astype(np.float64))
        see(window, strategy, portfolio.universe, features)
        try:
            return decide(strategy, portfolio.universe, features, view.mark, view.model, window, _act_aside)
        except Exception as error:
            log.exception("a prediction failed", portfolio=view.mark.portfolio, error=words(error))
            return hold(strategy, view.mark, "error", words(error))


def _act_aside(model: ActiveModel, observation: NDArray[np.float32]) -> NDArray[np.float64]:
    return model.actor.act_aside(observation)


def _bar(portfolio: Portfolio, strategy: Strategy, time: datetime, values: Sequence[Sequence[float]]) -> BarFeatures:
    rows = tuple(tuple(None if isnan(value) else value for value in row) for row in values)
    return BarFeatures(time, strategy.feature_set.id, portfolio.universe.ids, rows)


def _check_names(what: str, given: Iterable[str], wanted: tuple[str, ...]) -> None:
    given = list(given)
    if unknown := [name for name in given if name not in wanted]:
        raise NoPrediction("invalid", f"{what} {unknown[0][:100]} is unknown: there are {_some(wanted)}")
    if missing := [name for name in wanted if name not in given]:
        raise NoPrediction("invalid", f"{what} {missing[0]} is missing: all are needed, {_some(wanted)}")


def _some(names: Iterable[str]) -> str:
    """Some names, in words."""
    first, *rest = dict.fromkeys(names)
    shown = [first, *rest[:4]]
    return ", ".join(shown) + (f" and {len(rest) - 4} more" if len(rest) > 4 else "")
