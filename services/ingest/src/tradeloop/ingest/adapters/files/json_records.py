"""JSON of bars: a list of records or of rows, a record a line, columns, or such a thing inside of a reply."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import polars as pl

from tradeloop.ingest.adapters.files.blocks import Block, Table
from tradeloop.ingest.adapters.files.delimited import Stream
from tradeloop.ingest.domain import Refused

_PIECE = 2**18
_LONGEST_RECORD = 2**22
_WHOLE = 2**28
"""Text of one object that is not a list of records: it must be read at once."""
_SPACE = " \t\r\n"
_NO_BARS = "give a list of records, of rows, or columns, with a time, open, high, low and close each"

Record = Mapping[str, Any] | Sequence[Any]


def blocks(file: Stream, table: Table, rows: int, most_bytes: int | None = None) -> Iterator[Block]:
    """The records as columns; a row is a record, from 1. Raises `Refused`."""
    text = _Text(file, most_bytes)
    records = _listed(text) if text.peek() == "[" else _objects(text)
    place, names = 1, list[str]()
    while some := list(islice(records, rows)):
        if not names:
            names = _names(some)
            table.headless = not isinstance(some[0], Mapping)
        yield Block(_columns(names, some, table.headless, place), np.arange(place, place + len(some), dtype=np.int64))
        place += len(some)
    if place == 1:
        yield Block([], np.empty(0, np.int64))


class _Text:
    """Text that is read as far as it is needed."""

    def __init__(self, file: Stream, most_bytes: int | None) -> None:
        self._file, self._most = file, most_bytes
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._held, self._at, self._read = "", 0, 0
        self._ended = False
        self._json = json.JSONDecoder()

    def peek(self) -> str:
        """The next sign that is no space; empty at the end."""
        while True:
            while self._at < len(self._held) and self._held[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._held) or not self._more():
                return self._held[self._at : self._at + 1]

    def skip(self) -> None:
        self._at += 1

    def value(self, longest: int) -> Any:
        """The next value."""
        while True:
            self.peek()
            try:
                value, end = self._json.raw_decode(self._held, self._at)
            except json.JSONDecodeError as error:
                if len(self._held) - self._at > longest or not self._more(max(_PIECE, len(self._held) - self._at)):
                    raise Refused(f"is no JSON ({error.msg})", _NO_BARS) from error
                continue
            except RecursionError as error:
                raise Refused("is JSON that is nested too deeply", _NO_BARS) from error
            self._at = end
            return value

    def _more(self, size: int = _PIECE) -> bool:
        if self._ended:
            return False
        piece = self._file.read(size)
        self._read += len(piece)
        if self._most is not None and self._read > self._most:
            raise Refused(f"holds more than {self._most:,} bytes when it is unpacked", "split it")
        self._ended = not piece
        try:
            self._held = self._held[self._at :] + self._decode(piece, self._ended)
        except UnicodeDecodeError as error:
            raise Refused("is not text", _NO_BARS) from error
        self._at = 0
        return True


def _listed(text: _Text) -> Iterator[Record]:
    text.skip()
    while (sign := text.peek()) not in ("]", ""):
        if sign == ",":
            text.skip()
            continue
        yield _record(text.value(_LONGEST_RECORD))
    if not sign:
        raise Refused("is JSON that ends in the middle", "fetch it again")


def _objects(text: _Text) -> Iterator[Record]:
    """A record a line, or one object with all of them."""
    first = text.value(_WHOLE)
    if text.peek() == "{":
        yield _record(first)
        while text.peek():
            yield _record(text.value(_LONGEST_RECORD))
        return
    if text.peek():
        raise Refused("is no JSON: something follows it", _NO_BARS)
    found = _found(first)
    if found is None:
        raise Refused("is JSON without a list of bars", _NO_BARS)
    yield from map(_record, found)


def _record(value: Any) -> Record:
    if not isinstance(value, dict | list):
        raise Refused(f"is a list of things like {str(value)[:20]!r}", _NO_BARS)
    return value


def _found(value: Any) -> Sequence[Record] | None:
    """The records inside of an object."""
    if isinstance(value, list):
        return value if value and isinstance(value[0], dict | list) else None
    if not isinstance(value, dict) or not value:
        return None
    if {"columns", "data"} <= value.keys():  # as pandas splits a table
        index = value.get("index", [])
        names = [*value["columns"], *(["index"] if index else [])]
        rows = [[*row, *index[at : at + 1]] for at, row in enumerate(value["data"])]
        return [dict(zip(map(str, names), row, strict=False)) for row in rows]
    lists = {key: one for key, one in value.items() if isinstance(one, list)}
    longest = max(map(len, lists.values()), default=0)
    if len(lists) >= 5 and all(len(one) == longest for one in lists.values()):
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    inner = {key: one for key, one in value.items() if isinstance(one, dict)}
    if len(inner) >= 4 and len(inner) == len(value):
        return _by_key(inner)
    by_symbol = {key: one for key, one in value.items() if isinstance(one, list) and one and isinstance(one[0], dict)}
    if len(by_symbol) > 1 or (by_symbol and len(by_symbol) == len(value) and not _is_word(next(iter(by_symbol)))):
        return [{"symbol": symbol, **record} for symbol, records in by_symbol.items() for record in records]
    for one in value.values():
        if (found := _found(one)) is not None:
            return found
    return None


def _is_word(key: str) -> bool:
    return key.lower() in {"bars", "data", "results", "result", "candles", "values", "history", "prices", "items"}


def _by_key(inner: Mapping[str, Mapping[str, Any]]) -> Sequence[Record]:
    """Columns by index, or records by index: the side with few keys is that of the columns."""
    across = list(next(iter(inner.values())))
    if len(inner) > len(across):
        return [{"index": index, **record} for index, record in inner.items()]
    return [{"index": index, **{name: column.get(index) for name, column in inner.items()}} for index in across]


def _names(records: Sequence[Record]) -> list[str]:
    if isinstance(records[0], Mapping):
        return list(dict.fromkeys(str(name) for one in records if isinstance(one, Mapping) for name in one))
    return [f"column {number + 1}" for number in range(max(map(len, records)))]


def _columns(
    names: Sequence[str], records: Sequence[Record], headless: bool, place: int
) -> list[tuple[str, pl.Series]]:
    for at, one in enumerate(records):
        if isinstance(one, Mapping) == headless or (headless and len(one) > len(names)):
            raise Refused("the record is of another form than those before it", _NO_BARS, place + at, 1)
    if headless:
        rows = [list(one) for one in records]
        values = [[row[at] if at < len(row) else None for row in rows] for at in range(len(names))]
    else:
        values = [[one.get(name) for one in records] for name in names]  # type: ignore[union-attr]
    return [(name, _series(name, column)) for name, column in zip(names, values, strict=True)]


def _series(name: str, values: Sequence[Any]) -> pl.Series:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int} and all(-(2**63) <= value < 2**63 for value in values if value is not None):
        return pl.Series(name, values, pl.Int64)
    if kinds and kinds <= {int, float}:
        return pl.Series(name, [None if value is None else float(value) for value in values], pl.Float64)
    return pl.Series(name, [None if value is None else str(value) for value in values], pl.String)
