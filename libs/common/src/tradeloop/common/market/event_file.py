"""Files of instrument events: instrument, time, kind, with the proceeds of a delisting and the symbol of a rename."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from tradeloop.common.errors import UserError
from tradeloop.common.market.dated import Cells, dated_rows, time_of
from tradeloop.common.market.events import SYMBOL, EventFault, InstrumentEvent, check_sequence, symbol_of

_KINDS = ("halt", "resume", "delisting", "rename")


@dataclass(frozen=True)
class EventFile:
    """The events in a file, with instruments as they are named there."""

    path: Path
    events: Mapping[str, tuple[InstrumentEvent, ...]]
    """Events by the last name of each instrument, in the order of time."""
    names: Mapping[str, tuple[str, ...]]
    """All names that each instrument has in the file, by the last one; several where it is renamed."""


def read_events(path: Path, option: str = "--events") -> EventFile:
    """Read a CSV file with the columns instrument, time, kind, and where they are needed proceeds, symbol and zone.

    A time names its zone, or its row does. Rows of a rename name the symbol before it as the instrument and the one
    from then on as the symbol; from then on both names mean one instrument. Raises `UserError`, which names the line.
    """
    rows: list[tuple[int, str, InstrumentEvent]] = []
    seen: dict[tuple[str, datetime, str], int] = {}
    for line, (name, one) in dated_rows(path, option, ("instrument", "time", "kind"), _ALSO, _event):
        before = seen.setdefault((name, one.time, one.kind), line)
        if before != line:
            raise UserError(f"{path} line {line}: line {before} has the same {one.kind} of {name}: give each once")
        rows.append((line, name, one))
    if not rows:
        raise UserError(f"{path}: there is no event in it")
    groups = _groups(path, rows)
    events: dict[str, list[tuple[int, InstrumentEvent]]] = {}
    for line, name, one in rows:
        events.setdefault(groups[name][-1], []).append((line, one))
    for name, ones in events.items():
        ones.sort(key=lambda each: each[1].time)
        try:
            check_sequence(name, [one for _, one in ones])
        except EventFault as fault:
            raise UserError(f"{path} line {ones[fault.place][0]}: {fault}") from None
    return EventFile(
        path,
        {name: tuple(one for _, one in ones) for name, ones in events.items()},
        {name: groups[name] for name in events},
    )


_ALSO = ("proceeds", "symbol", "zone")


def _event(cells: Cells) -> tuple[str, InstrumentEvent]:
    """Raises `ValueError` that says what is wrong in a row."""
    name, kind, symbol = cells["instrument"], cells["kind"].lower(), cells.get("symbol", "")
    if not name:
        raise ValueError("the instrument is missing")
    if kind not in _KINDS:
        raise ValueError(f"kind {cells['kind']!r}: give {', '.join(_KINDS[:-1])} or {_KINDS[-1]}")
    if not cells["time"]:
        raise ValueError("the time is missing: give one such as 2024-06-10T09:30:00-04:00")
    zones: dict[str, None] = {}
    time = time_of("time", cells["time"], cells.get("zone") or "UTC", zones).astimezone(UTC)
    if zones and not cells.get("zone"):
        raise ValueError(
            f"time {cells['time']!r} names no zone: give one, as in 2024-06-10T09:30:00-04:00 or ...Z, or a column zone"
        )
    if kind == "rename" and not symbol:
        raise ValueError("symbol is missing: give the one that the instrument has from then on")
    if symbol and not re.fullmatch(SYMBOL, symbol):
        raise ValueError(f"symbol {symbol!r}: a symbol is up to 64 letters, digits, and _ . / -")
    facts: dict[str, object] = {"time": time, "kind": kind, "proceeds": _number(cells.get("proceeds", ""))}
    if symbol:
        facts |= {"symbol_before": symbol_of(name) or name, "symbol": symbol}
    try:
        return name, InstrumentEvent.model_validate(facts)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        what = str(first["msg"]).removeprefix("Value error, ")
        raise ValueError(f"{where} {cells.get(where, '')!r}: {what}" if where else what) from None


def _number(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise ValueError(f"proceeds {text!r}: give a number of at least 0, in quote currency for each unit") from None


def _groups(path: Path, rows: list[tuple[int, str, InstrumentEvent]]) -> dict[str, tuple[str, ...]]:
    """The names that mean the same instrument, in the order in which it had them, by each of them.

    Raises `UserError` for a rename onto a name that is another instrument's.
    """
    groups: dict[str, tuple[str, ...]] = {name: (name,) for _, name, _ in rows}
    first = {name: min(one.time for _, other, one in rows if other == name) for name in groups}
    renames = sorted((each for each in rows if each[2].kind == "rename"), key=lambda each: each[2].time)
    for line, name, one in renames:
        venue, colon, _ = name.rpartition(":")
        to = f"{venue}{colon}{one.symbol}"
        known = groups[name]
        if known[-1] != name:
            raise UserError(f"{path} line {line}: {name} is {known[-1]} by then: name it so")
        if to in known or (to in groups and (len(groups[to]) > 1 or first[to] < one.time)):
            raise UserError(f"{path} line {line}: {name} is renamed onto {to}, a symbol that is there already")
        for each in (*known, to):
            groups[each] = (*known, to)
    return groups
