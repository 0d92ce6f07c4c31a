"""The fault matrix: every call of every service, failing in every way, and what comes of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from structlog.testing import capture_logs

from tests.e2e.faults.house import House, Left
from tests.e2e.taps import Fault, Kind, Point, Seen

USERS_CODE = ("strategy", "make_actor", "venues", "trainer", "open_source")
"""Calls that answer with numbers of somebody else's making, which may be NaN."""
IN_MEMORY = {
    "service.standings",
    "service.tallies",
    "service.busy",
    "service.waiting",
    "service.pending",
    "service.answers",
}
"""Calls to a service that only look at what it has in memory."""


@dataclass
class Case:
    """A fault and what came of it."""

    fault: Fault
    outcome: list[str]
    """In words, for the table."""
    complaints: list[str]
    """What must not be."""


@dataclass
class Matrix:
    """Every case, and the undisturbed run."""

    seen: Mapping[Point, Seen]
    cases: list[Case]


def undisturbed(stage: type[House] = House) -> tuple[Left, dict[Point, Seen]]:
    """What a run leaves into which no fault is put, and the calls that it makes."""
    with capture_logs():
        house = stage()
        left = house.run()
    return left, house.probe.seen


def faults(seen: Mapping[Point, Seen]) -> Iterator[Fault]:
    """The faults to try at each point, in the middle of its calls."""
    for point, what in seen.items():
        if not what.count or point.call in IN_MEMORY or point.call.endswith("standings() next"):
            continue
        first = what.count // 3
        if re.fullmatch(r"bus\.(partitions|(begin|end)_offsets|read)( .*)?", point.call):
            yield Fault(point, "unavailable", "long", first=first)  # the rest fails in the calls of what reads there
            continue
        users = point.call.startswith(("strategy", "make_actor"))  # code that is called, and no port
        if ".publish " not in point.call:
            yield Fault(point, "exception", first=first)
        yield Fault(point, "killed", first=first)
        if not users and not point.call.startswith("service."):  # whose ports are, and not it
            yield Fault(point, "unavailable", "long", first=first)
        if not what.victims:
            continue
        if not point.call.startswith("bus"):
            yield Fault(point, "exception", "good", first=first)
        if not users:
            yield Fault(point, "unanswered", first=first)
            yield Fault(point, "killed after", first=first)
        if not point.call.startswith("bus"):
            yield Fault(point, "slow", first=first)
        if what.numbers and point.call.startswith(USERS_CODE):
            yield Fault(point, "nan", first=first)
            yield Fault(point, "nan", "good", first=first)
        if ".publish " in point.call:
            yield Fault(point, "too large", first=first)
            yield Fault(point, "too large", "good", first=first)


SURVIVED: tuple[Kind, ...] = ("unavailable", "unanswered", "killed", "killed after", "slow")
"""Faults that must change nothing at all."""


AT_START = ("strategies", "history.features_on", "strategy.feature.state", "strategy.feature.chosen")
"""Calls that a service makes when it starts, before it knows anybody's portfolio: it does not start without them."""
FOR_ALL = ("ledger.acknowledge",)
"""Calls that are about many portfolios at once, and whose failure is none of theirs."""


def judge(fault: Fault, seen: Seen, expected: Left, stage: type[House] = House) -> Case:
    """Run with a fault, and compare."""
    with capture_logs():
        house = stage(fault, seen)
        left = house.run()
    probe = house.probe
    for_all = fault.lasts == "good" and fault.kind == "exception" and fault.point.call in AT_START + FOR_ALL
    names = [one.name for one in stage.portfolios]
    missed_by_all = fault.kind == "slow" and stage.market_goes_on
    hit = set(names) if for_all or missed_by_all or not probe.hit else probe.hit
    other = [name for name in names if not _same(name, left, expected)]
    behind = {name for name in names if left.marked[name] < stage.last_us}
    outcome = _outcome(fault, left, expected, other, behind)
    complaints = [*left.wrong, *(f"two versions: {one}" for one in sorted(set(left.contradictions)))]
    if not probe.fired:
        complaints.append("it never came to that")
    complaints += [f"{name} is another than undisturbed" for name in other if name not in hit]
    complaints += [f"{name} stands still" for name in names if name in behind and name not in hit]
    if fault.kind in SURVIVED:
        steady = () if missed_by_all else hit & stage.steady
        complaints += [f"{name} is another than undisturbed" for name in other if name in steady]
        if left.dead_letters:
            complaints.append("it is no message's fault, and was dead-lettered")
    if fault.kind == "exception" and fault.lasts == "once" and left.dead_letters and not other:
        complaints.append("it was done, and was dead-lettered")
    if other and outcome == [NOTHING]:
        complaints.append(f"{', '.join(other)} differs, and nobody says so")
    behind &= hit
    stale = _count(left, "feed_stale") > _count(expected, "feed_stale")
    known = left.dead_letters or left.dropped or left.ended or stale
    if behind and not (known or behind <= left.troubled | left.given_up):
        complaints.append(f"{', '.join(sorted(behind))} stands still, and nobody says so")
    if fault.lasts != "good" and not behind and not left.dead_letters:
        complaints += left.stuck
    return Case(fault, outcome, complaints)


def _same(portfolio: str, left: Left, expected: Left) -> bool:
    return (
        left.messages[portfolio] == expected.messages[portfolio] and left.books[portfolio] == expected.books[portfolio]
    )


NOTHING = "nothing is said"
_EVENTS = {
    "quarantined": "quarantined",
    "decision_missed": "decision missed, recorded",
    "frame_failed": "bar left out, recorded",
    "transition_missing": "transition left out, recorded",
}
_TALLIES = {
    "features_failed": "features unknown, with the reason, counted",
    "online_refused": "not written online, counted",
    "late_frame": "bar left out, counted",
}
_FEEDS = {
    "history_unavailable": "the history was away, counted",
    "history_unsound": "the history had what cannot be, counted",
    "stream_malformed": "the stream brought what cannot be, counted",
    "flow_late": "trades came late, counted",
    "flow_refused": "trades refused, counted",
    "flow_incomplete": "columns of a bar left out, counted",
    "flow_unstored": "trades not stored, counted",
    "bar_missing": "a bar was missing, counted",
    "feed_stale": "no bar closed in time, counted",
}


def _outcome(fault: Fault, left: Left, expected: Left, other: Sequence[str], behind: Collection[str]) -> list[str]:
    words = []
    if left.ended:
        words.append("the process ends and is started again")
    if left.dead_letters:
        words.append("dead-lettered")
    kinds = {kind for _, kind, _ in left.events - expected.events}
    words += [text for kind, text in _EVENTS.items() if kind in kinds]
    tallied = {event for event, _ in left.tallies.keys() - expected.tallies.keys()}
    words += [text for event, text in _TALLIES.items() if event in tallied]
    words += [text for event, text in _FEEDS.items() if _count(left, event) > _count(expected, event)]
    if left.holds - expected.holds:
        words.append("decided to hold, with the reason")
    if left.dropped:
        words.append("dropped, counted")
    if left.given_up:
        words.append("the feed is given up and says so")
    if not left.troubled.isdisjoint(behind):
        words.append("stands still and says so")
    if other and not words and fault.kind == "nan" and fault.point.call.startswith("strategy.feature"):
        words.append("taken as not known yet, which is no error")
    if fault.lasts == "long" and left.said:
        words.append("waits and says so")
    if not other:
        words.append("nothing changes" if fault.kind in ("slow", "nan") else "tried again, nothing changes")
    return words or [NOTHING]


def _count(left: Left, event: str) -> int:
    return sum(number for (counted, _), number in left.tallies.items() if counted == event)


def tried(expected: Left, seen: Mapping[Point, Seen], stage: type[House] = House, only: str = "") -> Iterator[Case]:
    """Every case, or those with that text in their names."""
    for fault in faults(seen):
        if only in str(fault):
            yield judge(fault, seen[fault.point], expected, stage)


def matrix() -> Matrix:
    """Run every case. It takes a minute or two."""
    expected, seen = undisturbed()
    return Matrix(seen, list(tried(expected, seen)))
