"""The adjusted view of files of bars: splits and dividends taken out, under ids of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from tradeloop.cli.actions import ActionFile, read_actions
from tradeloop.cli.naming import check_name, listed, name_of, symbol_of
from tradeloop.cli.report.text import count
from tradeloop.cli.source import Source
from tradeloop.cli.span import time_us
from tradeloop.cli.stored import file_of, write_bars
from tradeloop.common.clock import SystemClock
from tradeloop.common.errors import UserError
from tradeloop.common.market import Instrument, from_us, to_us
from tradeloop.common.market.adjustments import Adjustments, CorporateAction, adjustments, as_known, scaled
from tradeloop.common.messages.ingest import Reading

T = TypeVar("T")

_VIEW = ".adjusted"
_FOLDER = "adjusted"


def adjusted_view(source: Source, actions: Path, as_known_at: str | None, named: bool) -> Source:
    """All markets of a source, adjusted; their notes say what was done. `named` universes keep their name.

    Prices are those of the share that was held at the first bar, so that no bar tells of a later action. Ids end in
    `.adjusted`: a store never holds two prices for one instrument. Raises `UserError` for what is wrong.
    """
    if source.given is not None:
        raise UserError(
            "--actions does not go with --portfolio: a portfolio's instruments are those of its venue, whose prices "
            "are as they are traded: leave one of them out"
        )
    file = read_actions(actions)
    now_us = to_us(SystemClock().now())
    as_known_us = now_us if as_known_at is None else time_us("--as-known", as_known_at)
    if as_known_us > now_us:
        raise UserError(f"--as-known {as_known_at} is in the future: give a time that has been")
    names = {id_: names_of(market, id_) for market in source.markets for id_ in market.universe.ids}
    known = as_known(_matched(file, names), as_known_us)
    found = [adjustments(market.history, known, as_known_us) for market in source.markets]
    views = [_view(market, one, named and market is source) for market, one in zip(source.markets, found, strict=True)]
    own, *also = views
    return replace(own, also=tuple(also), notes=(*source.notes, *_said(file, names, known, found, as_known_us)))


def stored_view(source: Source, home: Path) -> tuple[dict[str, str], dict[str, Reading]]:
    """The files from which ingest loads a source's bars, and how it reads them; those of a view are written first."""
    if not source.is_view:
        readings = {id_: reading for id_, reading in source.readings.items() if reading != Reading()}
        return {id_: str(path) for id_, path in source.files.items()}, readings
    files = {}
    for a, id_ in enumerate(source.universe.ids):
        path = file_of(home.absolute() / _FOLDER, id_, source.universe.timeframe)
        write_bars(path, source.history.series(a))
        files[id_] = str(path)
    return files, {}


def names_of(source: Source, id_: str) -> set[str]:
    """The names by which a file of facts may call an instrument, as `alike` makes them equal."""
    symbol = str(source.files[id_]).partition("#")[2]
    called = symbol_of(Path(symbol.replace("/", "-"))) if symbol else symbol_of(source.files[id_])
    plain = id_.removesuffix(_VIEW)
    return {alike(one) for one in (id_, id_.partition(":")[2], plain, plain.partition(":")[2], called)}


def alike(name: str) -> str:
    """A name as it is compared: without case and signs."""
    return name_of(name, max(len(name), 1))


def matched(
    path: Path, what: str, given: Mapping[str, T], called: Mapping[str, Sequence[str]], names: Mapping[str, set[str]]
) -> dict[str, T]:
    """Each thing that a file gives of an instrument that is here, under its id, in the order of `names`.

    `called` has all names of each instrument of the file, `names` those of each id that is here. Raises `UserError`
    where the file has none of these instruments, and where a name may mean two, or two names one.
    """
    found: dict[str, str] = {}
    for name in given:
        for id_ in ids_of(path, called[name], names):
            if id_ in found:
                raise UserError(f"{path}: {found[id_]} and {name} are both {id_}: give it one name")
            found[id_] = name
    if not found:
        raise UserError(
            f"{path} has {what} of {listed(given)}, and the bars are of {listed(names)}: name the bars by "
            f"--bars NAME=FILE, as the file of {what} does"
        )
    return {id_: given[found[id_]] for id_ in names if id_ in found}


def ids_of(path: Path, called: Sequence[str], names: Mapping[str, set[str]]) -> list[str]:
    """The id that an instrument of a file has here: one, or none. Raises `UserError` where it may be several."""
    ids = [id_ for id_ in names if id_ in called]
    ids = ids or [id_ for id_, known in names.items() if any(alike(each) in known for each in called)]
    if len(ids) > 1:
        raise UserError(f"{path}: {' or '.join(called)} may be {' or '.join(ids)}: give the id")
    return ids


def _matched(file: ActionFile, names: Mapping[str, set[str]]) -> list[CorporateAction]:
    """The actions of instruments that are here, under their ids. Raises `UserError` where none is, or one is of two."""
    found = []
    for one in file.actions:
        ids = ids_of(file.path, (one.instrument,), names)
        found += [replace(one, instrument=id_) for id_ in ids]
    if not found:
        there = listed(sorted({one.instrument for one in file.actions}))
        raise UserError(
            f"{file.path} has actions of {there}, and the bars are of {listed(names)}: name the bars by --bars "
            "NAME=FILE, as the file of actions does"
        )
    return found


def _view(source: Source, factors: Adjustments, named: bool) -> Source:
    universe = source.universe
    ids = {id_: f"{id_}{_VIEW}" for id_ in universe.ids}
    try:
        instruments = tuple(
            Instrument.model_validate(one.model_dump() | {"id": ids[one.id]}) for one in universe.instruments
        )
    except ValueError:
        raise UserError(f"{listed(universe.ids)}: too long for {_VIEW} behind it: give a shorter name") from None
    name = universe.name if named else check_name(f"{universe.name}-adjusted")
    history = replace(scaled(source.history, factors, "first"), instruments=tuple(ids.values()))
    return replace(
        source,
        files={ids[id_]: path for id_, path in source.files.items()},
        name=f"{source.name}, adjusted",
        history=history,
        reports={ids[id_]: report for id_, report in source.reports.items()},
        universe=universe.model_copy(update={"instruments": instruments, "name": name}),
        readings={},
        is_view=True,
    )


def _said(
    file: ActionFile,
    names: Mapping[str, set[str]],
    known: Sequence[CorporateAction],
    found: Sequence[Adjustments],
    as_known_us: int,
) -> list[str]:
    """Lines for people about what was adjusted, and what was not."""
    applied = [action for one in found for action in one.applied]
    splits = sum(one.kind == "split" for one in applied)
    lines = [
        f"{count(splits, 'split')} and {count(len(applied) - splits, 'dividend')} adjusted, as known on "
        f"{from_us(as_known_us):%Y-%m-%d %H:%M} UTC, from {file.path}; prices are those of the share that was held at "
        "the first bar, and so are fills; volumes are adjusted by splits"
    ]
    if file.zones:
        lines.append(f"Dates in {file.path.name} begin at 00:00 {' or '.join(file.zones)}")
    every = [known_names for known_names in names.values()]
    strangers = [one for one in file.actions if not any(alike(one.instrument) in here for here in every)]
    if strangers:
        lines.append(
            f"{count(len(strangers), 'action')} of other instruments not used: "
            f"{listed(sorted({one.instrument for one in strangers}))}"
        )
    if others := len(file.actions) - len(strangers) - len(known):
        lines.append(f"{count(others, 'row')} not used: not known then, taken back, or replaced by a later version")
    if outside := [action for one in found for action in one.outside]:
        lines.append(f"{count(len(outside), 'action')} without effect: before the second bar or after the last one")
    if late := [action for one in found for action in one.late]:
        lines.append(
            f"Warning: {count(len(late), 'action')} became known after the ex date, first of "
            f"{late[0].instrument} on {from_us(late[0].ex_us):%Y-%m-%d}: who traded then saw jumps "
            "that these bars lack"
        )
    if unknown := sum(one.known_us is None for one in applied):
        lines.append(f"{count(unknown, 'action')} without known_at taken as known by the ex date")
    return lines
