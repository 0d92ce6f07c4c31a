"""Files of splits and dividends, read and checked."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tradeloop.cli.naming import listed
from tradeloop.common.errors import UserError
from tradeloop.common.market import to_us
from tradeloop.common.market.adjustments import CorporateAction

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
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"--actions {path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--actions {path} cannot be read ({type(error).__name__}): give a CSV file") from error
    rows = csv.DictReader(text.splitlines(), strict=True, skipinitialspace=True)
    names = [name.strip() for name in rows.fieldnames or ()]
    rows.fieldnames = names
    if missing := [name for name in _NEEDED if name not in names]:
        raise UserError(f"{path}: there is no column {listed(missing)}: give {', '.join((*_NEEDED, *_ALSO))}")
    if unknown := [name for name in names if name not in (*_NEEDED, *_ALSO)]:
        raise UserError(f"{path}: what is column {listed(unknown)}? There are {', '.join((*_NEEDED, *_ALSO))}")
    if len(set(names)) < len(names):
        raise UserError(f"{path}: a column comes twice: {', '.join(names)}")
    found: dict[tuple[str, int, str, int | None], tuple[int, CorporateAction]] = {}
    zones: dict[str, None] = {}
    try:
        for row in rows:
            try:
                one = _action(row, zones)
            except ValueError as error:
                raise UserError(f"{path} line {rows.line_num}: {error}") from None
            line, _ = found.setdefault((one.instrument, one.ex_us, one.kind, one.known_us), (rows.line_num, one))
            if line != rows.line_num:
                raise UserError(
                    f"{path} line {rows.line_num}: line {line} has a {one.kind} of {one.instrument} of the same day: "
                    "give one row with both together, or to correct it a later known_at"
                )
    except csv.Error as error:
        raise UserError(f"{path} line {rows.line_num}: {error}") from error
    if not found:
        raise UserError(f"{path}: there is no split and no dividend in it")
    return ActionFile(path, tuple(one for _, one in found.values()), tuple(zones))


def _action(row: Mapping[str | None, str | Sequence[str] | None], zones: dict[str, None]) -> CorporateAction:
    """Raises `ValueError` that says what is wrong in a row."""
    if None in row or None in row.values():
        raise ValueError("it has more or fewer cells than the head of the table")
    cells = {name: str(cell).strip() for name, cell in row.items()}
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
        _time_us("ex_date", cells["ex_date"], zone, zones),
        "split" if kind == "split" else "dividend",
        value,
        _time_us("known_at", known, zone, zones) if known else None,
    )


def _time_us(column: str, text: str, zone: str, zones: dict[str, None]) -> int:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{column} {text!r}: give a date such as 2024-06-10, or a time by ISO 8601") from None
    if time.tzinfo is None:
        try:
            time = time.replace(tzinfo=ZoneInfo(zone))
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"zone {zone!r}: there is no such time zone, give one such as America/New_York") from None
        zones.setdefault(zone)
    return to_us(time)
