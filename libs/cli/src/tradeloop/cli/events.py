"""A source whose instruments are halted, delisted and renamed, from a file of events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tradeloop.cli.adjusting import alike, matched, names_of
from tradeloop.cli.naming import NamedFile, listed
from tradeloop.cli.report.text import count
from tradeloop.cli.source import Source
from tradeloop.common.errors import UserError
from tradeloop.common.market import InstrumentEvent, Universe, from_us, to_us
from tradeloop.common.market.calendars import gaps
from tradeloop.common.market.event_file import EventFile
from tradeloop.common.market.events import resting

_WORDS = {"halt": "halt", "resume": "resume", "delisting": "delisting", "rename": "rename"}


def renamed(named: Sequence[NamedFile], file: EventFile | None, ids: Sequence[str] = ()) -> list[NamedFile]:
    """Files of bars, with those of an instrument's old and new symbols as one each, the oldest symbol first.

    It is called as one of `ids` has it, or by its last symbol. Raises `UserError`.
    """
    files = list(named)
    for last, names in () if file is None else file.names.items():
        own = [one for one in files if alike(one.name or one.called) in {alike(each) for each in names}]
        if len(own) < 2:
            continue
        place = {alike(each): at for at, each in enumerate(names)}
        own.sort(key=lambda one: place[alike(one.name or one.called)])
        known = [id_ for id_ in ids if {alike(id_), alike(id_.partition(":")[2])} & place.keys()]
        first, *rest = own
        more = (*first.more, *(path for one in rest for path in (one.path, *one.more)))
        joined = NamedFile(first.path, known[0] if known else own[-1].name or last, first.symbol, more)
        files = [joined if one is first else one for one in files if one is first or one not in own]
    return files


def with_events(source: Source, file: EventFile | None) -> Source:
    """The source with the events of a file, if one is given; its notes say what was found. Raises `UserError`."""
    universe, notes = source.universe, list(source.notes)
    if file is not None:
        if source.also:
            raise UserError("--events is of one universe, and --also adds others: leave one of them out")
        if universe.events:
            raise UserError(f"--events {file.path}: the portfolio's universe has events already: leave it out")
        names = {id_: names_of(source, id_) for id_ in universe.ids}
        events = matched(file.path, "events", file.events, file.names, names)
        if source.is_view and any(one.kind == "delisting" for ones in events.values() for one in ones):
            raise UserError(
                f"--actions adjusts prices, and the proceeds of a delisting in {file.path} are of a unit as it is "
                "traded: leave one of them out"
            )
        try:
            universe = Universe.model_validate(universe.model_dump() | {"events": events})
        except ValueError as error:
            raise UserError(f"{file.path}: {_first(error)}") from None
        if strangers := sorted(set(file.events) - {name for name in file.events if _is_used(name, file, events)}):
            notes.append(f"Events of {listed(strangers)} in {file.path.name} not used: no bars of them are here")
    if not universe.events:
        return source
    notes += _said(source, universe)
    given = source.given and source.given.model_copy(update={"universe": universe})
    reports = dict(source.reports)
    for one in universe.instruments:
        if rests := resting(universe.events.get(one.id, ())):
            own_us = source.history.open_us[source.history.present[:, universe.ids.index(one.id)]]
            found = len(gaps(own_us, universe.timeframe, one.calendar, rests))
            reports[one.id] = replace(reports[one.id], gaps=found)
    return replace(source, universe=universe, notes=tuple(notes), given=given, reports=reports)


def _is_used(name: str, file: EventFile, events: Mapping[str, Sequence[InstrumentEvent]]) -> bool:
    return any(file.events[name] is ones for ones in events.values())


def _first(error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    return str(errors()[0]["msg"]).removeprefix("Value error, ") if errors else str(error)


def _said(source: Source, universe: Universe) -> list[str]:
    """Lines for people about what of the events shows in the bars."""
    bars, force = source.bars, universe.in_force
    first_us, last_us = int(bars.open_us[0]), int(bars.close_us[-1])
    every = [(id_, one) for id_, ones in universe.events.items() for one in ones]
    kinds = Counter(one.kind for _, one in every if one.kind != "resume")
    lines = [
        f"Events of {count(len(universe.events), 'instrument')}: "
        + ", ".join(count(number, _WORDS[kind]) for kind, number in sorted(kinds.items()))
    ]
    if late := [id_ for id_, one in every if to_us(one.time) > last_us]:
        lines.append(f"{count(len(late), 'event')} after the last bar without effect: {listed(dict.fromkeys(late))}")
    for id_, one in every:
        at_us = to_us(one.time)
        if one.kind == "rename" and at_us <= last_us:
            lines.append(f"{id_}: {one.words} on {one.time:%Y-%m-%d %H:%M} UTC, and stays one instrument")
        if one.kind == "delisting" and first_us <= at_us <= last_us and not (bars.open_us >= at_us).any():
            lines.append(
                f"Warning: no bar follows the delisting of {id_} on {one.time:%Y-%m-%d %H:%M} UTC: what is held of it "
                "then stays in the book at its last price"
            )
    over = force.delisted_at(bars.open_us) & bars.present
    if over.any():
        ids = [id_ for id_, column in zip(universe.ids, over.T, strict=True) if column.any()]
        lines.append(f"Warning: {count(int(over.sum()), 'bar')} after a delisting, not traded: {listed(ids)}")
    if not (kinds["halt"] or kinds["delisting"]):
        return lines
    silent = [
        f"{id_} on {from_us(int(own_us[-1])):%Y-%m-%d}"
        for a, id_ in enumerate(universe.ids)
        if id_ not in universe.events
        and len(own_us := source.history.open_us[source.history.present[:, a]])
        and own_us[-1] < np.max(source.history.open_us) - 16 * universe.timeframe.us
    ]
    if silent and not universe.members:
        lines.append(
            f"Warning: bars of {count(len(silent), 'instrument')} end before the others ({listed(silent)}), and no "
            "event says why: what is held of it then stays in the book at its last price"
        )
    return lines
