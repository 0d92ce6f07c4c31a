"""Everything on record about one decision of a portfolio, read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from tradeloop.cli.explain.evidence import Evidence, Found, M
from tradeloop.cli.explain.subject import Subject
from tradeloop.common.market import from_us
from tradeloop.common.messages import (
    BarFrame,
    FeaturesComputed,
    InstrumentChanged,
    ModelActivated,
    ModelReady,
    OrderFilled,
    OrderUpdated,
    PortfolioEvent,
    PortfolioMarked,
    RiskVerdict,
    ServiceStarted,
    SignalGenerated,
    TrainingRequested,
    Transition,
)
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.headers import MANIFEST
from tradeloop.common.runtime.parts import digest_of
from tradeloop.common.runtime.readback import all_records, of_kind

_FIRST = from_us(0)
_INSTANT = timedelta(microseconds=1)
_LONG = timedelta(days=366)
"""The longest time between two bars in which a kill is looked for."""


@dataclass
class Record:
    """The messages about one decision: of its bar, of the portfolio, and of what came of it."""

    evidence: Evidence
    subject: Subject
    portfolio: Portfolio | None
    """The portfolio as it is configured, where that is known: limits and lots are on no topic."""

    def mine(
        self, kind: type[M], since: datetime | None = None, until: datetime | None = None, must: bool = False
    ) -> list[Found[M]]:
        """The messages of this portfolio: at the decision, or from one time to another."""
        at = self.subject.time
        found = self.evidence.of(kind, self.subject.universe, since or at, until or at, must)
        return [one for one in found if one.message.portfolio == self.subject.portfolio]  # type: ignore[attr-defined]

    def why_none(self, kind: type[M]) -> str:
        return self.evidence.why_none(kind, self.subject.universe)

    @cached_property
    def frames(self) -> list[Found[BarFrame]]:
        """The frames that closed then, the shortest timeframe first, corrections behind what they correct."""
        found = self.evidence.of(BarFrame, self.subject.universe, self.subject.time, must=True)
        return sorted(found, key=lambda one: (one.message.timeframe.seconds, one.message.revision))

    @cached_property
    def frame(self) -> Found[BarFrame] | None:
        """The frame that was decided on, as it went out first."""
        return next((one for one in self.frames if not one.message.revision), None)

    @cached_property
    def changes(self) -> list[Found[InstrumentChanged]]:
        """The events of instruments that came into force within the bar."""
        frame = self.frame.message if self.frame else None
        since = frame.open_time if frame else self.subject.time
        found = self.evidence.of(InstrumentChanged, self.subject.universe, since, self.subject.time)
        return [one for one in found if one.message.event.time > since or frame is None]

    @cached_property
    def signal(self) -> Found[SignalGenerated] | None:
        return next(iter(self.mine(SignalGenerated, must=not self.missed)), None)

    @cached_property
    def features(self) -> Found[FeaturesComputed] | None:
        """The features that were decided on; of any set where the decision does not say."""
        found = self.evidence.of(FeaturesComputed, self.subject.universe, self.subject.time, must=True)
        wanted = self.signal.message.feature_set if self.signal else ""
        own = [one for one in found if one.message.feature_set == wanted] or ([] if wanted else found)
        return own[0] if own else None

    @cached_property
    def events(self) -> list[PortfolioEvent]:
        """All events of the portfolio up to the decision, in the order in which they were recorded."""
        return [one.message for one in self.mine(PortfolioEvent, _FIRST)]

    @cached_property
    def missed(self) -> PortfolioEvent | None:
        return next((each for each in self._now if each.kind == "decision_missed"), None)

    @cached_property
    def left_out(self) -> PortfolioEvent | None:
        return next((each for each in self._now if each.kind == "frame_failed"), None)

    @cached_property
    def unrewarded(self) -> PortfolioEvent | None:
        return next((each for each in self._now if each.kind == "transition_missing"), None)

    @property
    def _now(self) -> list[PortfolioEvent]:
        return [each for each in self.events if each.time == self.subject.time]

    @cached_property
    def quarantine(self) -> PortfolioEvent | None:
        """The event since which decisions were not taken, at this bar; None where they were."""
        open_: PortfolioEvent | None = None
        for each in self.events:
            if each.kind == "quarantined":
                open_ = open_ or each
            elif each.kind == "released":
                open_ = None
        return open_

    @cached_property
    def kill(self) -> PortfolioEvent | None:
        """The kill that was in force at the decision; None where none was."""
        found = [each for each in self.events if each.kind in ("killed", "resumed")]
        return found[-1] if found and found[-1].kind == "killed" else None

    @cached_property
    def later_kills(self) -> list[PortfolioEvent]:
        """The kills between the decision and the next bar: they cancelled its orders."""
        until = self.subject.time + _LONG if self.after is None else self.after.message.time - _INSTANT
        found = self.mine(PortfolioEvent, self.subject.time + _INSTANT, until)
        return [one.message for one in found if one.message.kind == "killed"]

    def is_of_a_kill(self, order_id: str) -> bool:
        """Whether an order is none of the decision, but closes a position after a kill."""
        named = {each for kill in self.later_kills for each in kill.orders}
        return order_id in named and all(one.message.status != "cancelled" for one in self.orders[order_id])

    @cached_property
    def activation(self) -> Found[ModelActivated] | None:
        """The model in force at the decision."""
        found = [one for one in self.mine(ModelActivated, _FIRST)]
        return max(found, key=lambda one: one.message.time, default=None)

    @cached_property
    def training(self) -> tuple[ModelReady | None, TrainingRequested | None]:
        """The end and the request of the training that made the model."""
        model_id = self.signal.message.model_id if self.signal else ""
        ready = next(
            (
                each
                for each in of_kind(all_records(self.evidence.bus, topic_of(ModelReady).name), ModelReady)
                if model_id and each.model_id == model_id
            ),
            None,
        )
        requests = of_kind(all_records(self.evidence.bus, topic_of(TrainingRequested).name), TrainingRequested)
        asked = next((each for each in requests if ready and each.request_id == ready.request_id), None)
        return ready, asked

    @cached_property
    def before(self) -> Found[PortfolioMarked] | None:
        """The book at the decision."""
        return next(iter(self.mine(PortfolioMarked, must=True)), None)

    @cached_property
    def after(self) -> Found[PortfolioMarked] | None:
        """The book at the next bar, whose open filled the orders."""
        later = self.evidence.after(PortfolioMarked, self.subject.universe, self.subject.time)
        return next((one for one in later if one.message.portfolio == self.subject.portfolio), None)

    @cached_property
    def next_frame(self) -> BarFrame | None:
        """The frame at whose open the orders filled, as it went out first."""
        if self.after is None:
            return None
        frames = self.evidence.of(BarFrame, self.subject.universe, self.after.message.time)
        base = [one.message for one in frames if not one.message.revision]
        return min(base, key=lambda each: each.timeframe.seconds, default=None)

    @cached_property
    def verdicts(self) -> list[RiskVerdict]:
        return [one.message for one in self.mine(RiskVerdict)]

    @cached_property
    def halt(self) -> RiskVerdict | None:
        """The verdict that halted the portfolio, by then."""
        halts = [one.message for one in self.mine(RiskVerdict, _FIRST) if not one.message.instrument]
        return halts[-1] if halts else None

    @cached_property
    def orders(self) -> dict[str, list[Found[OrderUpdated]]]:
        """The states of each order of the decision, by its id."""
        found: dict[str, list[Found[OrderUpdated]]] = {}
        for one in self.mine(OrderUpdated):
            found.setdefault(one.message.order_id, []).append(one)
        return found

    @cached_property
    def fills(self) -> list[Found[OrderFilled]]:
        return self.mine(OrderFilled)

    @cached_property
    def transition(self) -> Found[Transition] | None:
        return next(iter(self.mine(Transition)), None)

    @cached_property
    def manifests(self) -> dict[str, ServiceStarted]:
        """The manifests that records of this decision name, by their ids."""
        found = (self.frame, self.features, self.signal, self.before)
        named = {one.record.headers.get(MANIFEST) for one in found if one is not None} - {None}
        if not named:
            return {}
        started = of_kind(all_records(self.evidence.bus, topic_of(ServiceStarted).name), ServiceStarted)
        return {each.manifest: each for each in started if each.manifest in named}

    @property
    def configured_otherwise(self) -> str:
        """Why the given portfolio is not the one that was traded, in words; empty where it is, or nobody knows."""
        if self.portfolio is None or self.before is None:
            return ""
        ran = self.manifests.get(self.before.record.headers.get(MANIFEST, ""))
        parts: Sequence[str] = () if ran is None else ran.parts.get("portfolios", ())
        traded = next((each for each in parts if each.startswith(f"{self.subject.portfolio}=")), "")
        mine = f"{self.subject.portfolio}={digest_of(self.portfolio)}"
        if not traded or traded == mine:
            return ""
        return f"the portfolio's file is not the one that was traded: {mine} here, {traded} then"
