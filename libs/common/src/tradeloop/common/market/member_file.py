"""Files of memberships: instrument, from, to, with an empty `to` for one that lasts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tradeloop.common.errors import UserError
from tradeloop.common.market.dated import Cells, dated_rows, time_of
from tradeloop.common.market.instants import spoken
from tradeloop.common.market.members import Membership


@dataclass(frozen=True)
class MemberFile:
    """The memberships in a file, with instruments as they are named there."""

    path: Path
    members: Mapping[str, tuple[Membership, ...]]
    """Memberships by name, each name's in the order of time."""
    zones: tuple[str, ...]
    """The time zones in which dates without a time begin."""


def read_members(path: Path, option: str = "--members") -> MemberFile:
    """Read a CSV file with the columns instrument, from, to, and maybe zone.

    A date begins at midnight in the zone of its row, or in UTC. Raises `UserError`, which names the line.
    """
    zones: dict[str, None] = {}

    def stay(cells: Cells) -> tuple[str, Membership]:
        if not cells["instrument"]:
            raise ValueError("the instrument is missing")
        if not cells["from"]:
            raise ValueError("from is missing: give a date such as 2024-06-10; where it was ever so, an early one")
        zone = cells.get("zone") or "UTC"
        start = time_of("from", cells["from"], zone, zones).astimezone(UTC)
        end = time_of("to", cells["to"], zone, zones).astimezone(UTC) if cells["to"] else None
        if end is not None and end <= start:
            raise ValueError(
                f"to {cells['to']!r} is not after from {cells['from']!r}: the day of `to` is the first out"
            )
        return cells["instrument"], Membership(start=start, end=end)

    found: dict[str, list[tuple[int, Membership]]] = {}
    for line, (name, one) in dated_rows(path, option, ("instrument", "from", "to"), ("zone",), stay):
        for other_line, other in found.setdefault(name, []):
            if _overlap(one, other):
                raise UserError(
                    f"{path} line {line}: {name} is a member from {spoken(other.start)} on by line {other_line}: "
                    "memberships of an instrument do not overlap"
                )
        found[name].append((line, one))
    if not found:
        raise UserError(f"{path}: there is no membership in it")
    members = {name: tuple(sorted((one for _, one in stays), key=_start)) for name, stays in found.items()}
    return MemberFile(path, members, tuple(zones))


def _start(one: Membership) -> datetime:
    return one.start


def _overlap(one: Membership, other: Membership) -> bool:
    first, second = sorted((one, other), key=_start)
    return first.end is None or second.start < first.end
