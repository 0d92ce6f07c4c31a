"""The grounds of a decision, step by step: the bar, the features, the model, and what was decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tradeloop.cli.explain.evidence import Found, M
from tradeloop.cli.explain.record import Record
from tradeloop.common.messages import BarFrame, FeaturesComputed, ModelActivated, SignalGenerated
from tradeloop.common.messages.topics import derived_id, topic_of


@dataclass
class Step:
    """One step of the chain: in words, and as facts for machines."""

    name: str
    said: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)


def minute(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC" if time.second else f"{time:%Y-%m-%d %H:%M} UTC"


def number(value: float) -> str:
    """A number for people: six digits that count."""
    return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.2f}"


def bar(record: Record) -> Step:
    """The frames that closed then, with gaps, corrections, and who did not belong or rest."""
    step = Step("bar", facts={"close": record.subject.time.isoformat(), "frames": []})
    if record.frame is None:
        step.said.append(record.why_none(BarFrame))
        step.facts["absent"] = step.said[-1]
    first = record.frames[0].message.timeframe if record.frames else None
    frames: list[object] = []
    for one in record.frames:
        frame = one.message
        frames.append({**frame.model_dump(mode="json", exclude={"universe"}), "where": one.where})
        if frame.revision:
            when = f", published {minute(one.published)}" if one.published else ""
            step.said.append(
                f"{frame.timeframe}: corrected later, revision {frame.revision}{when}; a decision is never made again"
            )
            continue
        step.said.append(f"{frame.timeframe} {_how(frame)}{_published(one)}")
        if frame.timeframe is first:
            step.said += [
                f"  {each.instrument}: open {each.open!r}, high {each.high!r}, low {each.low!r}, close {each.close!r}"
                + (f", volume {each.volume!r}" if each.volume is not None else "")
                for each in frame.bars
            ]
            step.said += [f"  {words}: {', '.join(names)}" for words, names in _lacking(frame).items() if names]
    step.facts["frames"] = frames
    step.facts["changes"] = [each.message.model_dump(mode="json") for each in record.changes]
    step.said += [
        f"{each.message.instrument}: {each.message.event.words} since {minute(each.message.event.time)}"
        for each in record.changes
    ]
    return step


def _how(frame: BarFrame) -> str:
    how = "live" if frame.live else "replayed"
    if frame.catches_up:
        how += ", filling a hole: newer bars had closed, so that nothing is decided on it"
    return f"bar that opened {minute(frame.open_time)}, {how}{', the first of a run' if frame.begins else ''}"


def _lacking(frame: BarFrame) -> Mapping[str, tuple[str, ...]]:
    return {
        "no bar": frame.missing,
        "outside of the universe": frame.outside or (),
        "trading halted at the close": frame.halted,
        "trading halted at the open": frame.shut,
        "delisted": tuple(f"{each.instrument} since {minute(each.time)}" for each in frame.delisted),
    }


def _published(found: Found[M]) -> str:
    return f"; published {minute(found.published)}" if found.published else ""


def features(record: Record) -> Step:
    """The values that the policy saw, and which were not known yet."""
    step, found, signal = Step("features"), record.features, record.signal
    if found is None:
        step.said.append(record.why_none(FeaturesComputed))
        step.facts["absent"] = step.said[-1]
        if signal is not None and signal.message.features:
            told = signal.message
            step.facts |= {"feature_set": told.feature_set, "from": "signal", "values": _rows(told)}
            step.said.append(f"the decision itself carries those of set {told.feature_set}")
            step.said += _values(_rows(told))
        return step
    known = found.message
    values = {
        instrument: dict(zip(known.names, row, strict=True))
        for instrument, row in zip(known.instruments, known.values, strict=True)
    }
    unknown = {name: [key for key, value in row.items() if value is None] for name, row in values.items()}
    step.facts |= {
        "feature_set": known.feature_set,
        "values": values,
        "unknown": {name: names for name, names in unknown.items() if names},
        "error": known.error,
        "age_s": (record.subject.time - known.time).total_seconds(),
        "where": found.where,
    }
    step.said.append(f"set {known.feature_set}, as of the close{_published(found)}")
    if known.error:
        step.said.append(f"none is known, since one failed: {known.error}")
    step.said += [] if known.error else _values(values)
    return step


def _rows(signal: SignalGenerated) -> dict[str, dict[str, float | None]]:
    return {
        instrument: {str(number): value for number, value in enumerate(row)}
        for instrument, row in zip(signal.instruments, signal.features, strict=True)
    }


def _values(values: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    return [
        f"  {instrument}: "
        + ", ".join(f"{name} {'not known yet' if value is None else number(value)}" for name, value in row.items())
        for instrument, row in values.items()
    ]


def model(record: Record) -> Step:
    """The policy that decided, since when, and where it comes from."""
    step, signal, activation = Step("model"), record.signal, record.activation
    if signal is not None and signal.message.model:
        told = signal.message
        step.facts |= {"model": told.model, "version": told.model_version, "model_id": told.model_id}
        step.said.append(f"{told.model} version {told.model_version} ({told.model_id[:12]})")
    elif signal is not None:
        step.said.append("none decided" + (f": {signal.message.error}" if signal.message.error else ""))
        return step
    if activation is None:
        step.said.append(f"when it came into force: {record.why_none(ModelActivated)}")
    else:
        known = activation.message
        why = f"event {known.cause} promoted it" if known.cause else "the portfolio's alias named it"
        step.facts["activated"] = {**known.model_dump(mode="json"), "where": activation.where}
        step.said.append(f"in force since the bar of {minute(known.time)}: {why}")
        if signal is None:
            step.said[-1] = f"{known.model} version {known.version} was {step.said[-1]}"
        elif known.model_id != signal.message.model_id:
            step.said.append(f"the newest that is on record by then is another one: version {known.version}")
    step.said += _training(record, step)
    return step


def _training(record: Record, step: Step) -> list[str]:
    ready, asked = record.training
    if ready is None:
        return ["which training made it is on no topic (any more): `tradeloop models show` has its manifest"]
    step.facts["training"] = {
        **ready.model_dump(mode="json", include={"request_id", "alias", "reason", "metrics", "strategy"}),
        **({"asked": asked.model_dump(mode="json", include={"range", "seed", "steps"})} if asked else {}),
    }
    said = [f"made by training {ready.request_id}, as {ready.alias}: {ready.reason}"]
    if asked is not None:
        span, base = asked.range, asked.universe.timeframe
        said.append(
            f"on the bars that opened from {minute(span.start)} to {minute(span.end)} "
            f"({int((span.end - span.start) / base.delta):,} of {base} at most), "
            f"seed {asked.seed}, {asked.steps:,} steps"
        )
    return said


def decision(record: Record) -> Step:
    """The decision at the close: the policy's targets, to hold, or none at all, and why."""
    subject, signal = record.subject, record.signal
    signal_id = derived_id(topic_of(SignalGenerated).name, subject.portfolio, subject.time.isoformat())
    step = Step("decision", facts={"decision_id": signal_id})
    known = {
        "missed": record.missed,
        "quarantine": record.quarantine,
        "left_out": record.left_out,
        "kill": record.kill,
    }
    for name, event in known.items():
        if event is not None:
            step.facts[name] = event.model_dump(mode="json", include={"time", "reason"})
    if record.left_out is not None:
        step.said.append(f"execution could not book this bar and left it out: {record.left_out.reason}")
    if record.missed is not None:
        step.said.append(f"missed: {record.missed.reason}")
    if record.quarantine is not None:
        since = minute(record.quarantine.time)
        step.said.append(f"not taken: in quarantine since the bar of {since}: {record.quarantine.reason}")
    if record.kill is not None:
        flat = "; positions are closed" if record.kill.flatten else ""
        step.said.append(f"not taken: killed since the bar of {minute(record.kill.time)}, {record.kill.reason}{flat}")
    if signal is None:
        if record.missed is None:
            step.said.append(record.why_none(SignalGenerated))
            step.facts["absent"] = step.said[-1]
        return step
    told = signal.message
    step.facts |= told.model_dump(mode="json", exclude={"universe", "portfolio", "time", "features", "observation"})
    step.facts["where"] = signal.where
    if told.hold:
        step.said.append(f"to hold: {_HELD[told.reason]}{f': {told.error}' if told.error else ''}{_published(signal)}")
        return step
    answer = ", ".join(map(number, told.action)) or "none on record"
    step.said.append(f"the policy answered {answer}{_published(signal)}; target weights:")
    for instrument, target in zip(told.instruments, told.targets, strict=True):
        away = ", not shown to the policy" if instrument in told.hidden else ""
        step.said.append(f"  {instrument}: {number(target)}{away}")
    return step


_HELD: Mapping[str, str] = {
    "warming_up": "its window of features is not full yet",
    "no_model": "no model is in force",
    "no_features": "its features are not known",
    "error": "it failed",
    "policy": "the policy wants it",
}
