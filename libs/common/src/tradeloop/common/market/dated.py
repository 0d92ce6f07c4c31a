"""Small CSV tables of dated facts: their rows, and the times in them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tradeloop.common.errors import UserError

Fact = TypeVar("Fact")
Cells = Mapping[str, str]


def dated_rows(
    path: Path, option: str, needed: Sequence[str], also: Sequence[str], make: Callable[[Cells], Fact]
) -> Iterator[tuple[int, Fact]]:
    """The facts that `make` finds in the rows of a CSV file, with their lines; `also` are columns that may be there.

    Where `make` raises `ValueError`, and for a file that is no such table, raises `UserError`, which names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{option} {path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option} {path} cannot be read ({type(error).__name__}): give a CSV file") from error
    rows = csv.DictReader(text.splitlines(), strict=True, skipinitialspace=True)
    names = [name.strip() for name in rows.fieldnames or ()]
    rows.fieldnames = names
    every = ", ".join((*needed, *also))
    if missing := [name for name in needed if name not in names]:
        raise UserError(f"{path}: there is no column {', '.join(missing)}: give {every}")
    if unknown := [name for name in names if name not in (*needed, *also)]:
        raise UserError(f"{path}: what is column {', '.join(unknown)}? There are {every}")
    if len(set(names)) < len(names):
        raise UserError(f"{path}: a column comes twice: {', '.join(names)}")
    try:
        for row in rows:
            try:
                if None in row or None in row.values():
                    raise ValueError("it has more or fewer cells than the head of the table")
                fact = make({name: str(cell).strip() for name, cell in row.items()})
            except ValueError as error:
                raise UserError(f"{path} line {rows.line_num}: {error}") from None
            yield rows.line_num, fact
    except csv.Error as error:
        raise UserError(f"{path} line {rows.line_num}: {error}") from error


def time_of(column: str, text: str, zone: str, zones: dict[str, None]) -> datetime:
    """The time of a cell; a date begins at midnight. One that names no zone is in this one, which `zones` then gets.

    Raises `ValueError`.
    """
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
    return time
