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
from tradeloop.ingest.domain.file_names import ENDINGS, by_series, series_name, without_ending

_MAYBE_NOTES = (".txt", ".json", ".dat", ".asc")
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
    more: tuple[Path, ...] = ()
    """Further files of the same instrument."""

    @property
    def file(self) -> Path:
        """The path without the symbol."""
        return self.path if self.symbol is None else Path(str(self.path).removesuffix(f"#{self.symbol}"))

    @property
    def called(self) -> str:
        """The symbol, or the file's name as one."""
        if self.symbol is None and self.more:
            return symbol_of(Path(series_name(self.path.name)))
        return symbol_of(self.path) if self.symbol is None else symbol_of(Path(self.symbol.replace("/", "-")))


def named_files(values: Iterable[str], option: str = "--bars") -> tuple[list[NamedFile], list[str]]:
    """The files of `--bars`, or of another option: a file each, a folder of files, or `NAME=FILE`; and notes on them.

    Files of one name join, and so do files whose names differ in their dates alone. Raises `UserError` for a folder
    without files of bars, and for a file that comes twice.
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
            # Beside tables, other text is about them: a note, a licence, a setting.
            files = [one for one in files if not one.name.lower().endswith(_MAYBE_NOTES)] or files
            if not files:
                raise UserError(f"{path}: no file in this folder ends in {', '.join(ENDINGS[:10])} or the like")
            found += map(NamedFile, files)
            if others := [one.name for one in inside if one not in files]:
                notes.append(f"{path}: {len(others)} of {len(inside)} entries are no files of bars: {listed(others)}")
        else:
            found.append(NamedFile(path))
    paths = [str(one.path) for one in found]
    if twice := [one for place, one in enumerate(paths) if one in paths[:place]]:
        raise UserError(f"{option} has the file {twice[0]} twice: give each file once")
    return _joined(found), notes


def _joined(found: list[NamedFile]) -> list[NamedFile]:
    """Files that follow each other as one each: those of one name, and those of a folder that differ in dates."""
    groups: dict[tuple[str, str], list[NamedFile]] = {}
    for one in found:
        if one.name is not None:
            key = "name", one.name
        else:
            neighbours = [str(other.path) for other in found if other.path.parent == one.path.parent]
            alone = len(by_series(neighbours)[series_name(str(one.path))]) == 1
            key = "file", str(one.path) if alone else str(one.path.parent / series_name(one.path.name))
        groups.setdefault(key, []).append(one)
    return [
        NamedFile(first.path, first.name, first.symbol, tuple(one.path for one in rest))
        for first, *rest in groups.values()
    ]


def listed(names: Iterable[str], most: int = 5) -> str:
    """Some names, and how many more there are."""
    every = list(names)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def symbol_of(path: Path) -> str:
    """The name of a file, as a symbol can be written."""
    stem = without_ending(path.name)
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
