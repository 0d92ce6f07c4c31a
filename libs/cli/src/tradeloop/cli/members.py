"""A source whose universe has members in time, from a file of memberships."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from tradeloop.cli.adjusting import matched, names_of
from tradeloop.cli.naming import listed
from tradeloop.cli.report.text import count
from tradeloop.cli.source import Source
from tradeloop.common.errors import UserError
from tradeloop.common.market import Membership, Universe, from_us, to_us
from tradeloop.common.market.member_file import MemberFile, read_members


def with_members(source: Source, path: Path | None) -> Source:
    """The source with the memberships of a file, if one is given; its notes say what was found.

    Raises `UserError` for what is wrong, and where no bar has a member.
    """
    universe, notes = source.universe, list(source.notes)
    if path is not None:
        if source.also:
            raise UserError("--members is of one universe, and --also adds others: leave one of them out")
        if universe.members:
            raise UserError(f"--members {path}: the portfolio's universe has members already: leave it out")
        file = read_members(path)
        names = {id_: names_of(source, id_) for id_ in universe.ids}
        members = matched(file.path, "members", file.members, {name: (name,) for name in file.members}, names)
        notes += _said(file, members, universe)
        universe = Universe.model_validate(universe.model_dump() | {"members": members})
    if not universe.members:
        return source
    bars = source.bars
    belongs = universe.roster.inside(bars.close_us) & bars.present
    if not belongs.any():
        raise UserError(
            f"{path or universe.name}: no instrument is a member at any of the bars: its times are of others"
        )
    whole = source.history
    without = [
        id_
        for a, id_ in enumerate(universe.ids)
        for one in universe.members.get(id_, ())
        if _has_times(one, whole.close_us) and not (_within(one, whole.close_us) & whole.present[:, a]).any()
    ]
    if without:
        notes.append(
            f"Warning: {count(len(without), 'membership')} without a single bar: {listed(dict.fromkeys(without))}; "
            "nobody could trade them here"
        )
    ended = []
    for a, id_ in enumerate(universe.ids):
        own_us = whole.open_us[whole.present[:, a]]
        if id_ not in universe.members or not len(own_us) or own_us[-1] == whole.open_us[-1]:
            continue
        last = universe.members[id_][-1]
        if to_us(last.start) <= own_us[-1] and (last.end is None or own_us[-1] < to_us(last.end)):
            ended.append(f"{id_} on {from_us(own_us[-1]):%Y-%m-%d}")
    if ended:
        notes.append(
            f"Warning: bars of {count(len(ended), 'instrument')} end while it is a member ({listed(ended)}): what is "
            "held of it then stays in the book at its last price; let its membership end by its last bar"
        )
    given = source.given and source.given.model_copy(update={"universe": universe})
    return replace(source, universe=universe, notes=tuple(notes), given=given)


def _within(one: Membership, close_us: np.typing.NDArray[np.int64]) -> np.typing.NDArray[np.bool_]:
    until = True if one.end is None else close_us < to_us(one.end)
    return np.asarray((to_us(one.start) <= close_us) & until)


def _has_times(one: Membership, close_us: np.typing.NDArray[np.int64]) -> bool:
    return bool(_within(one, close_us).any())


def _said(file: MemberFile, members: Mapping[str, tuple[Membership, ...]], universe: Universe) -> list[str]:
    """Lines for people about what of the file is used, and what is not."""
    lines = []
    if file.zones:
        lines.append(f"Dates in {file.path.name} begin at 00:00 {' or '.join(file.zones)}")
    if strangers := len(file.members) - len(members):
        lines.append(
            f"Warning: {strangers:,} of {count(len(file.members), 'instrument')} in {file.path.name} have no bars "
            "here: what is learnt and measured is of the others, who may be those that survived"
        )
    if never := [id_ for id_ in universe.ids if id_ not in members]:
        verb = "is never a member" if len(never) == 1 else "are never members"
        lines.append(f"{listed(never)} {verb}: seen by features of(...), and never traded")
    return lines
