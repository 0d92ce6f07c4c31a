"""The page `docs/failures.md`."""

from __future__ import annotations

from collections.abc import Sequence

from tests.e2e.faults.matrix import Case
from tests.e2e.taps import OUTAGE_S, Fault
from tradeloop.common.messages.topics import SERVICE_TOPICS

_COLUMNS = (
    "raises, once",
    "raises, for good",
    "answers NaN",
    "is away",
    "is too large",
    "the process is killed",
    "is slow",
)
_HEAD = """# What fails, and what happens

This page is written by `python -m tests.e2e.faults --markdown`, and a test holds it equal to what it measures. Five
services trade four portfolios, three of one universe and one of another in the same partition, with a quarantine, its
release and new models on the way. Each call that a service makes to a port or to somebody's code, and each call that
is made to the service, fails in each of these ways, once, and for good where it is about one portfolio. Afterwards:

- Every portfolio that the failing calls are not about has the messages and the book of a run without faults.
- One that they are about has them too, or what happened to it is recorded, counted and shown.
- What is away or slow, and a process that is killed, changes nothing at all.

A row is a call, by the name of what the service was given and of its method; `bus` is the messaging port, `service`
the handlers themselves. "is away" is for %d seconds, or an answer that is lost; "is slow" is for an hour. An empty
cell is a way in which that call does not fail, or that another row shows. Some things are not in the table. A killed
process may let a new model that has decided nothing yet take over a bar later; the progress of a training is not told
again. No service starts without what it reads at its start, such as the code of every strategy that its portfolios
name: that stops all of them.
"""
_FEEDS = """## Live feeds

The same services, but for training, trade two universes that are fed live by simulated venues, while the clock goes
on. One feed has trades beside bars, and one portfolio a feature of them; its venue tells the bars of one minute too
late. Each call of ingest that is about a universe, and each call that replays do not make, fails as above. Afterwards
the bars that are stored and that went out are the venue's, to the bit; those of a feed that is given up end there,
which `/ready` says until somebody starts it again. Every portfolio has the orders, fills and marks of a run without
faults, or the table names what is missing. Trades that were missed do not come again: the portfolio whose feature
needs them holds, and the other one of its universe trades as if nothing had been. An hour is missed by all.
"""


def _column(fault: Fault) -> str:
    if fault.kind == "exception":
        return _COLUMNS[1 if fault.lasts == "good" else 0]
    columns = {"nan": 2, "unavailable": 3, "unanswered": 3, "too large": 4, "killed": 5, "killed after": 5, "slow": 6}
    return _COLUMNS[columns[fault.kind]]


def markdown(cases: Sequence[Case], of_feeds: Sequence[Case]) -> str:
    """The page `docs/failures.md`."""
    text = [_HEAD % OUTAGE_S]
    for service in SERVICE_TOPICS:
        text += [f"## {service.capitalize()}", "", *_table(cases, service), ""]
    text += [_FEEDS]
    for service in SERVICE_TOPICS:
        if rows := _table(of_feeds, service):
            text += [f"### {service.capitalize()}, live", "", *rows, ""]
    return "\n".join(text)


def _table(cases: Sequence[Case], service: str) -> list[str]:
    """The calls of a service and their outcomes; calls with the same ones share a row."""
    rows: dict[str, dict[str, list[str]]] = {}
    for case in cases:
        if case.fault.point.service == service:
            found = rows.setdefault(case.fault.point.call, {}).setdefault(_column(case.fault), [])
            found += [outcome for outcome in case.outcome if outcome not in found]
    if not rows:
        return []
    alike: dict[tuple[str, ...], list[str]] = {}
    for call, cells in sorted(rows.items()):
        alike.setdefault(tuple("; ".join(cells.get(column, ())) for column in _COLUMNS), []).append(call)
    head = [f"| call | {' | '.join(_COLUMNS)} |", "|---" * (len(_COLUMNS) + 1) + "|"]
    named = {outcomes: ", ".join(f"`{call}`" for call in calls) for outcomes, calls in alike.items()}
    return [*head, *(f"| {calls} | {' | '.join(outcomes)} |" for outcomes, calls in named.items())]
