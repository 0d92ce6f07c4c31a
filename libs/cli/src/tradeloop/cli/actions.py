"""Files of splits and dividends, read and checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from tradeloop.common.errors import UserError
from tradeloop.common.market import to_us
from tradeloop.common.market.adjustments import CorporateAction
from tradeloop.common.market.dated import Cells, dated_rows, time_of

_NEEDED = ("instrument", "ex_date", "kind", "value")
_ALSO = ("known_at", "zone")


@dataclass(frozen=True)
class ActionFile:
    """The actions of a file, with instruments as they are named there."""

    path: Path
    actions: tuple[CorporateAction, ...]
    zones: tuple[str, ...]
    """The time zones in which dates without a time begin."""


def read_actions(path: Path) -> ActionFile:
    """Read a CSV file with the columns instrument, ex_date, kind, value, and maybe known_at and zone.

    A date begins at midnight in the zone of its row, or in UTC. Raises `UserError`, which names the line.
    """
    found: dict[tuple[str, int, str, int | None], tuple[int, CorporateAction]] = {}
    zones: dict[str, None] = {}
    for line, one in dated_rows(path, "--actions", _NEEDED, _ALSO, lambda cells: _action(cells, zones)):
        before, _ = found.setdefault((one.instrument, one.ex_us, one.kind, one.known_us), (line, one))
        if before != line:
            raise UserError(
                f"{path} line {line}: line {before} has a {one.kind} of {one.instrument} of the same day: "
                "give one row with both together, or to correct it a later known_at"
            )
    if not found:
        raise UserError(f"{path}: there is no split and no dividend in it")
    return ActionFile(path, tuple(one for _, one in found.values()), tuple(zones))


def _action(cells: Cells, zones: dict[str, None]) -> CorporateAction:
    """Raises `ValueError` that says what is wrong in a row."""
    instrument, kind = cells["instrument"], cells["kind"].lower()
    if not instrument:
        raise ValueError("the instrument is missing")
    if kind not in ("split", "dividend"):
        raise ValueError(f"kind {cells['kind']!r}: give split or dividend")
    try:
        value = float(cells["value"])
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0.0 or (kind == "split" and value == 0.0):
        meant = (
            "new shares for each old one, such as 2, above 0" if kind == "split" else "an amount per share, 0 or more"
        )
        raise ValueError(f"value {cells['value']!r}: a {kind} is {meant}")
    zone = cells.get("zone") or "UTC"
    known = cells.get("known_at", "")
    return CorporateAction(
        instrument,
        to_us(time_of("ex_date", cells["ex_date"], zone, zones)),
        "split" if kind == "split" else "dividend",
        value,
        to_us(time_of("known_at", known, zone, zones)) if known else None,
    )
