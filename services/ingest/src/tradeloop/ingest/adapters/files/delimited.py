"""Text with separated cells: which lines are bars, what separates their cells, and what names their columns."""

from __future__ import annotations

import codecs
import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from tradeloop.common.messages.ingest import Reading
from tradeloop.ingest.adapters.files.blocks import Block, Table
from tradeloop.ingest.domain import Refused

_LONGEST_LINE = 2**20
_LINES_SEEN = 100
"""How many lines at the beginning show the form of a file."""
_FEWEST = 5
"""A time and four prices."""
_SEPARATORS = ("\t", ";", "|", ",", " ")
"""Tried in this order, since a decimal comma looks like a separator of the same number of cells."""
_SIGNS = {"tab": "\t", "space": " "}
_NAMES = {"\t": "tabs", " ": "spaces"}
_DATUM = re.compile(r"^[\s'\"]*[-+$€£]?\d[\d.,:/' _TZ%+-]*([eE][+-]?\d+|[KMB]|[AP]M)?[\s'\"]*$|^(nan|null|none)$", re.I)
"""A number, a date or a clock, which is what bars are made of and headers are not."""
_COMMENT = re.compile(r"^\s*(#|//|%|--|;;)|https?://", re.I)


class Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class _Form:
    separator: str
    names: list[str]
    skipped: int
    """Lines before the first row."""
    headless: bool
    remarks: tuple[str, ...]


def blocks(
    file: Stream, table: Table, reading: Reading, block_bytes: int, most_bytes: int | None = None
) -> Iterator[Block]:
    """The rows, every cell as text, so that what cannot be parsed can be named with its line. Raises `Refused`."""
    texts = _lines(_utf8(file), block_bytes, most_bytes)
    ahead: list[bytes] = []
    for text in texts:
        _check_text(text)
        ahead.append(text)
        if sum(one.count(b"\n") + 1 for one in ahead) >= _LINES_SEEN:
            break
    head = b"\n".join(ahead).decode("utf-8-sig") if ahead else ""
    form = _form([line.rstrip("\r") for line in head.split("\n")[: _LINES_SEEN + 1]], reading)
    table.headless = form.headless
    table.remarks += form.remarks
    line = 1
    for number, text in enumerate(_chain(ahead, texts)):
        if number >= len(ahead):
            _check_text(text)
        body = text.removeprefix(codecs.BOM_UTF8) if number == 0 else text
        lines = body.count(b"\n") + 1
        skip = max(form.skipped + 1 - line, 0)
        rest = body.split(b"\n", skip)[skip] if skip < lines else b""
        if rest or (number == len(ahead) - 1 and line + lines - 1 <= form.skipped):
            yield _table(form, rest, line + min(skip, lines))
        line += lines


def _chain(first: list[bytes], rest: Iterator[bytes]) -> Iterator[bytes]:
    yield from first
    yield from rest


def _utf8(file: Stream) -> Stream:
    """The same text as UTF-8, where its first bytes say that it is UTF-16, as some terminals write it."""
    first = file.read(4)
    for mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        if first.startswith(mark) and not first.startswith(codecs.BOM_UTF32_LE):
            return _Utf16(first, file)
    return _Given(first, file)


class _Given:
    def __init__(self, first: bytes, rest: Stream) -> None:
        self._first, self._rest = first, rest

    def read(self, size: int, /) -> bytes:
        if not self._first:
            return self._rest.read(size)
        taken, self._first = self._first[:size], self._first[size:]
        return taken + (self._rest.read(size - len(taken)) if size > len(taken) else b"")


class _Utf16(_Given):
    def __init__(self, first: bytes, rest: Stream) -> None:
        super().__init__(first, rest)
        self._decoder = codecs.getincrementaldecoder("utf-16")()

    def read(self, size: int, /) -> bytes:
        while piece := super().read(size):
            try:
                if text := self._decoder.decode(piece):
                    return text.encode()
            except UnicodeDecodeError as error:
                raise _no_text() from error
        return b""


def _lines(file: Stream, block_bytes: int, most_bytes: int | None = None) -> Iterator[bytes]:
    """Text in blocks of whole lines, without what is blank at its end."""
    held, piece = b"", file.read(block_bytes)
    read = len(piece)
    while following := file.read(block_bytes):
        read += len(following)
        if most_bytes is not None and read > most_bytes:
            raise Refused(f"holds more than {most_bytes:,} bytes when it is unpacked", "split it")
        held, piece = held + piece, following
        text, newline, rest = held.rpartition(b"\n")
        if block := text.rstrip(b"\r\n"):
            yield block
            # Blank lines stay back: they are in the middle of the file, or its end.
            held = (text + newline)[len(block) :].removeprefix(b"\r").removeprefix(b"\n") + rest
        elif len(held) > max(_LONGEST_LINE, 2 * block_bytes):
            raise Refused(f"has {len(held):,} bytes without a line of bars", "give one bar a line")
    if last := (held + piece).rstrip():
        yield last


def _form(lines: list[str], reading: Reading) -> _Form:
    """The separator, the line where the rows begin, and the names of their columns."""
    separator = _SIGNS.get(reading.separator or "", reading.separator) or _separator(lines)
    if not any(lines):
        raise Refused("is empty", "give comma-separated values with a header line")
    cells = [_cells(line, separator) for line in lines]
    first = _first_line(cells, lines)
    remarks = []
    if separator != "," and reading.separator is None:
        remarks.append(f"cells are separated by {_NAMES.get(separator, separator)}")
    if said := [line for line in lines[:first] if line.strip()]:
        which = "line 1 is" if len(said) == 1 else f"the first {first} lines are"
        remarks.append(f"{which} taken for a comment: {said[0][:60]!r}")
    header = first
    while header < min(first + 3, len(cells)) and not any(_DATUM.match(cell) for cell in cells[header] if cell.strip()):
        header += 1
    if header == first:
        width = len(cells[first])
        if width < _FEWEST:
            raise Refused("its first line is no header", "name time, open, high, low, close in it")
        names = [f"column {number + 1}" for number in range(width)]
        return _Form(separator, names, first, True, tuple(remarks))
    if header - first > 1 and not _is_header(cells[first:header]):
        header = first + 1  # a row of text below it is for those who parse it
    names = _joined_names(cells[first:header])
    return _Form(separator, names, header, False, tuple(remarks))


def _separator(lines: list[str]) -> str:
    """The sign that gives most lines the same number of cells, enough for a bar."""
    best, share = ",", 0.0
    for separator in _SEPARATORS:
        widths = Counter(len(_cells(line, separator)) for line in lines if line.strip())
        if not widths:
            break
        width, count = widths.most_common(1)[0]
        if width >= _FEWEST and count / widths.total() > share + 0.1:
            best, share = separator, count / widths.total()
    return best


def _cells(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error as error:
        raise _no_text() from error


def _first_line(cells: list[list[str]], lines: list[str]) -> int:
    """The first line that is the table's: those before it are comments, or of another width."""
    widths = Counter(len(row) for row, line in zip(cells, lines, strict=True) if line.strip())
    width = widths.most_common(1)[0][0]
    if width < _FEWEST:
        return next(at for at, line in enumerate(lines) if line.strip() and not _COMMENT.search(line))
    first = 0
    for at, (row, line) in enumerate(zip(cells, lines, strict=True)):
        first = at
        looks_like_names = sum(bool(re.search(r"[A-Za-z]", cell)) for cell in row) >= min(_FEWEST, width)
        if line.strip() and not _COMMENT.search(line) and (len(row) == width or looks_like_names):
            break
    return first


def _is_header(rows: list[list[str]]) -> bool:
    """Whether several lines name columns together, as where prices stand above symbols: names come again in one."""
    return any(len({cell for cell in row[1:] if cell}) < len(row[1:]) for row in rows)


def _joined_names(rows: list[list[str]]) -> list[str]:
    """One name for each column; two levels are written as pandas writes them."""
    if len(rows) == 1:
        return list(rows[0])
    names = []
    for column in range(max(map(len, rows))):
        parts = [row[column] if column < len(row) else "" for row in rows]
        if column == 0:
            names.append(next(part for part in reversed(["", *parts]) if part or part is parts[0]) or "")
        else:
            given = [part for part in parts if part]
            names.append(str(tuple(given)) if len(given) == 2 else " ".join(given))
    return names


def _check_text(text: bytes) -> None:
    try:
        if b"\0" in text[:4096]:
            raise _no_text()
        text.decode()
    except UnicodeDecodeError as error:
        raise _no_text() from error


def _no_text() -> Refused:
    return Refused("is not text", "give comma-separated values with a header line")


def _table(form: _Form, body: bytes, line: int) -> Block:
    """The rows of a text whose first line has this number."""
    schema = {str(index): pl.String for index in range(len(form.names))}
    if not body:
        return Block([(name, pl.Series(name, [], pl.String)) for name in form.names], np.empty(0, np.int64))
    try:
        table = pl.read_csv(body, has_header=False, schema=schema, separator=form.separator)
    except pl.exceptions.PolarsError as error:
        widths = np.array([one.count(form.separator.encode()) + 1 for one in body.split(b"\n")])
        wrong = np.flatnonzero(widths > len(form.names))
        if not len(wrong):
            raise Refused("is not CSV", "give comma-separated values with a header line") from error
        what = f"{widths[wrong[0]]} cells under a header of {len(form.names)}"
        if form.headless:
            what = f"{widths[wrong[0]]} cells, and the first row has {len(form.names)}"
        raise Refused(what, "correct them", line + int(wrong[0]), len(wrong)) from error
    places = line + np.arange(len(table), dtype=np.int64)
    return Block(list(zip(form.names, table.get_columns(), strict=True)), places)
