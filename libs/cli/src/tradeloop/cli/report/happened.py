"""The halts, delistings and new symbols of a run's instruments, and what each did to orders and positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from tradeloop.cli.report import text
from tradeloop.cli.report.files import Run
from tradeloop.common.market import EVER_US, InstrumentEvent, to_us
from tradeloop.common.risk import Verdict, wire_code


@dataclass(frozen=True)
class Happened:
    """An event of an instrument, and its effects on the book."""

    instrument: str
    time: str
    kind: str
    words: str
    orders_expired: int
    """Orders that met it at their open, and so did not fill."""
    denied: int
    """Targets of which nothing was ordered while it was in force."""
    closed: float
    """Units of the position that a delisting closed, signed: below 0 for a short one."""
    fill_id: str
    """The fill that did; empty where nothing was held."""


def happened(run: Run) -> list[Happened]:
    """The events of a run's instruments up to its last bar, in the order of time; ends of halts count to these."""
    universe, last_us = run.portfolio.universe, int(run.bars.close_us[-1])
    found = []
    for id_, events in universe.events.items():
        for place, one in enumerate(events):
            if one.kind != "resume" and to_us(one.time) <= last_us:
                found.append(_effects(run, id_, one, events[place + 1 :]))
    return sorted(found, key=lambda each: each.time)


def _effects(run: Run, id_: str, event: InstrumentEvent, later: Sequence[InstrumentEvent]) -> Happened:
    start_us = to_us(event.time)
    end_us = next((to_us(one.time) for one in later if one.kind in ("resume", "delisting")), EVER_US)
    reason = {"halt": "trading_halted", "delisting": "delisted"}.get(event.kind)
    code = {"halt": wire_code(Verdict.TRADING_HALTED), "delisting": wire_code(Verdict.DELISTED)}.get(event.kind)
    before_us = max(
        (
            to_us(one.time)
            for one in run.portfolio.universe.events[id_]
            if one.kind == event.kind and one.time < event.time
        ),
        default=-EVER_US,
    )
    fills = [one for one in run.fills if one.instrument == id_ and one.reason == "delisting"]
    fill = fills[0] if fills and event.kind == "delisting" else None
    return Happened(
        instrument=id_,
        time=event.time.isoformat(),
        kind=event.kind,
        words=event.words,
        # One that was decided before it: later ones were denied.
        orders_expired=sum(
            one.instrument == id_ and one.reason == reason and before_us <= to_us(one.decision_time) < start_us
            for one in run.orders
            if reason and one.status == "expired"
        ),
        denied=sum(
            one.instrument == id_ and one.code == code and start_us <= to_us(one.time) < end_us for one in run.verdicts
        ),
        closed=0.0 if fill is None else (fill.quantity if fill.side == "sell" else -fill.quantity),
        fill_id="" if fill is None else fill.fill_id,
    )


def facts(run: Run) -> list[dict[str, Any]]:
    """The events, as `summary.json` has them."""
    return [asdict(one) for one in happened(run)]


def table(run: Run) -> str:
    """The events as a table of the report (HTML); empty where there are none."""
    rows = "".join(f"<tr>{''.join(_cells(one))}</tr>" for one in happened(run))
    if not rows:
        return ""
    head = '<th>Time</th><th>Instrument</th><th>Event</th><th class="n">Orders expired</th><th class="n">Denied</th>'
    return (
        '<figure><h2>Events of instruments</h2><div class="wide"><table class="text"><thead><tr>'
        f"{head}<th>Position closed</th></tr></thead><tbody>{rows}</tbody></table></div></figure>"
    )


def _cells(one: Happened) -> Iterator[str]:
    closed = f"{one.closed:,.8g} units, fill {one.fill_id}" if one.fill_id else text.NOTHING
    yield f"<td>{escape(one.time[:16].replace('T', ' '))}</td><td>{escape(one.instrument)}</td>"
    yield f'<td>{escape(one.words)}</td><td class="n">{one.orders_expired:,}</td>'
    yield f'<td class="n">{one.denied:,}</td><td>{escape(closed)}</td>'
