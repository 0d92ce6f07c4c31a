"""A decision's whole chain in order, its outcome in a line, and both as text or JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tradeloop.cli.explain import grounds, outcome
from tradeloop.cli.explain.evidence import Evidence
from tradeloop.cli.explain.grounds import Step, minute, number
from tradeloop.cli.explain.record import Record
from tradeloop.cli.explain.subject import Subject
from tradeloop.common.messages import PortfolioMarked, SignalGenerated
from tradeloop.common.messages.base import bar_trace
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.headers import trace_id_of


class Explained:
    """A decision of a portfolio, explained."""

    def __init__(self, evidence: Evidence, subject: Subject, portfolio: Portfolio | None) -> None:
        """`portfolio` is the portfolio as it is configured, where that is known."""
        self.subject = subject
        self._record = Record(evidence, subject, portfolio)
        record = self._record
        self.steps: Sequence[Step] = [
            *(step(record) for step in (grounds.bar, grounds.features, grounds.model, grounds.decision)),
            *(step(record) for step in (outcome.risk, outcome.orders, outcome.fills, outcome.book, outcome.reward)),
        ]

    @property
    def outcome(self) -> str:
        """The outcome of the decision in a line; where nothing was ordered, why."""
        record = self._record
        done = [
            f"{states[0].message.side} {number(states[0].message.quantity)} {states[0].message.instrument}: "
            f"{states[-1].message.status.replace('_', ' ')}"
            for states in record.orders.values()
        ]
        closed = [f"{one.message.instrument} closed by its delisting" for one in record.fills if one.message.reason]
        return "; ".join([*done, *closed]) or f"nothing was ordered: {self._why_nothing()}"

    def _why_nothing(self) -> str:
        record, signal = self._record, self._record.signal
        if record.left_out is not None:
            return f"execution could not book the bar: {record.left_out.reason}"
        if record.kill is not None:
            return f"the portfolio is killed since the bar of {minute(record.kill.time)}, {record.kill.reason}"
        if record.quarantine is not None:
            return f"the portfolio is in quarantine since the bar of {minute(record.quarantine.time)}: " + (
                record.quarantine.reason
            )
        if record.missed is not None:
            return f"the decision was missed: {record.missed.reason}"
        if record.before is None:
            if record.after is not None or record.frame is None:
                return f"the book at this bar is unknown, {record.why_none(PortfolioMarked)}"
            return "execution has not booked this bar: `tradeloop status` says how far it is"
        if record.before.message.state == "halted":
            why = f" by {record.halt.code}: {record.halt.text}" if record.halt else ""
            return f"the portfolio is halted{why}"
        if signal is None:
            return f"there is no decision, {record.why_none(SignalGenerated)}"
        if signal.message.hold:
            return f"the decision is to hold, {signal.message.reason.replace('_', ' ')} {signal.message.error}".strip()
        rows = self.facts("risk").get("sizing")
        if isinstance(rows, list):
            return "; ".join(f"{row['instrument']}: {row['why']}" for row in rows)
        denied = [f"{each.code} {each.instrument}" for each in record.verdicts]
        return f"denied: {', '.join(denied)}" if denied else "no target was far enough from what is held"

    def facts(self, name: str) -> dict[str, object]:
        """The facts of a step."""
        return next(step.facts for step in self.steps if step.name == name)

    @property
    def described(self) -> dict[str, object]:
        """Everything for machines."""
        subject = self.subject
        return {
            "asked": subject.asked,
            "remark": subject.remark or None,
            "universe": subject.universe,
            "portfolio": subject.portfolio,
            "time": subject.time.isoformat(),
            "trace_id": self._trace,
            "instrument": subject.instrument or None,
            "outcome": self.outcome,
            "services": [each.model_dump(mode="json") for each in self._record.manifests.values()],
            **{step.name: step.facts for step in self.steps},
        }

    @property
    def words(self) -> Iterator[str]:
        """Everything for people, line by line."""
        subject = self.subject
        yield f"{subject.asked}: the decision of {subject.portfolio} on the bar of {subject.universe} that closed " + (
            minute(subject.time)
        )
        if subject.remark:
            yield subject.remark
        yield self.outcome
        yield f"trace {self._trace}"
        for each in self._record.manifests.values():
            yield f"{each.service} {each.version}, commit {each.commit}, settings {each.settings} ({each.manifest})"
        for step in self.steps:
            yield ""
            yield step.name
            yield from (f"  {line}" for line in step.said)

    @property
    def _trace(self) -> str:
        return trace_id_of(bar_trace(self.subject.universe, self.subject.time))
