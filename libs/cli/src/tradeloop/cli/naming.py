"""Names for bars that nobody named: valid whatever a file is called, and the same for the same bars alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from tradeloop.common.errors import UserError
from tradeloop.common.market import BAR_COLUMNS, BarArrays, Timeframe

ENDINGS = (".csv", ".csv.gz", ".parquet")
"""The endings of files of bars."""
_DIGEST = 6
_SYMBOL = 40
_UNIVERSE = 25


@dataclass(frozen=True)
class NamedFile:
    """A file of bars, and the name that its user gave to what it holds."""

    path: Path
    name: str | None = None
    symbol: str | None = None
    """The name of one instrument of several in the file; the path then ends in `#SYMBOL`."""

    @property
    def file(self) -> Path:
        """The path without the symbol."""
        return self.path if self.symbol is None else Path(str(self.path).removesuffix(f"#{self.symbol}"))

    @property
    def called(self) -> str:
        """The symbol, or the file's name as one."""
        return symbol_of(self.path) if self.symbol is None else symbol_of(Path(self.symbol.replace("/", "-")))


def named_files(values: Iterable[str], option: str = "--bars") -> tuple[list[NamedFile], list[str]]:
    """The files of `--bars`, or of another option: a file each, a folder of files, or `NAME=FILE`; and notes on them.

    Raises `UserError` for a folder without files of bars, and for a file or a name that comes twice.
    """
    found: list[NamedFile] = []
    notes: list[str] = []
    for value in values:
        path, (name, given, rest) = Path(value), value.partition("=")
        if given and not os.path.exists(value):  # unlike Path's, it takes any text
            if not re.fullmatch(r"[A-Za-z0-9_.:/\-]{1,97}", name) or not rest:
                raise UserError(f"{option} {value}: give FILE, a folder of files, or NAME=FILE")
            if os.path.isdir(rest):
                raise UserError(f"{option} {value}: {rest} is a folder, whose files name themselves: leave {name}= out")
            found.append(NamedFile(Path(rest), name))
        elif os.path.isdir(value):
            inside = sorted(one for one in path.iterdir() if not one.name.startswith("."))
            files = [one for one in inside if one.is_file() and one.name.lower().endswith(ENDINGS)]
            if not files:
                raise UserError(f"{path}: no file in this folder ends in {', '.join(ENDINGS)}")
            found += map(NamedFile, files)
            if others := [one.name for one in inside if one not in files]:
                notes.append(f"{path}: {len(others)} of {len(inside)} entries are no files of bars: {listed(others)}")
        else:
            found.append(NamedFile(path))
    for what, each in (("file", [str(one.path) for one in found]), ("name", [one.name for one in found if one.name])):
        if twice := [one for place, one in enumerate(each) if one in each[:place]]:
            raise UserError(f"{option} has the {what} {twice[0]} twice: give each instrument once")
    return found, notes


def listed(names: Iterable[str], most: int = 5) -> str:
    """Some names, and how many more there are."""
    every = list(names)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def symbol_of(path: Path) -> str:
    """The name of a file, as a symbol can be written."""
    stem = re.sub(r"\.(csv|csv\.gz|parquet)$", "", path.name, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9_.\-]+", "-", stem)[:_SYMBOL].strip("-.") or "bars"


def name_of(text: str, longest: int = _UNIVERSE) -> str:
    """A text as a name can be written: lower case, digits, `-` and `_`."""
    return re.sub(r"[^a-z0-9_\-]+", "-", text.lower()).strip("-_")[:longest].rstrip("-_") or "bars"


def digest(bars: BarArrays, timeframe: Timeframe) -> str:
    """A few letters that another content changes: times and all numbers of all bars."""
    whole = blake2b(timeframe.encode(), digest_size=16)
    for array in (bars.open_us, bars.present, *(getattr(bars, name) for name in BAR_COLUMNS)):
        whole.update(array.tobytes())
    for name in sorted(bars.extra):
        whole.update(name.encode() + bars.extra[name].tobytes())
    return whole.hexdigest()[:_DIGEST]


def digest_of_all(digests: Iterable[str]) -> str:
    """The digest of several contents together."""
    return blake2b("".join(digests).encode(), digest_size=16).hexdigest()[:_DIGEST]


def check_name(name: str) -> str:
    """A name that a user gave to a universe. Raises `UserError` for one that it cannot have."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_\-]{0,62}", name):
        raise UserError(f"--name {name}: a name is lower-case letters, digits, - and _, at most 63 of them")
    return name
