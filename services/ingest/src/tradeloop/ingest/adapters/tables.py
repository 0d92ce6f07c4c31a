"""Tables of CSV, gzipped CSV and Parquet files, some thousand rows at a time, so that a file of any size fits."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl

from tradeloop.ingest.domain import Refused

Columns = list[tuple[str, pl.Series]]
"""Each with its name in the file; names may repeat."""

BLOCK_BYTES = 2**19
"""The text that is parsed at once: one slice of a backfill."""
_BYTES_A_ROW = 64
_LONGEST_LINE = 2**20
UNPACKED_BYTES = 8 * 2**30
"""The text that one gzipped file may hold: sixty years of minutes."""


def blocks(path: Path, block_bytes: int = BLOCK_BYTES, unpacked_bytes: int = UNPACKED_BYTES) -> Iterator[Columns]:
    """The columns of a file in their order, block by block; of a file without rows, one block without rows.

    Raises `Refused`.
    """
    name = path.name.lower()
    try:
        if path.is_dir():
            raise Refused("is a directory", "name one file")
        if name.endswith(".parquet"):
            yield from _parquet(path, max(block_bytes // _BYTES_A_ROW, 1))
        elif name.endswith(".csv.gz"):
            with gzip.open(path) as file:
                yield from _csv(_lines(file, block_bytes, unpacked_bytes))
        elif name.endswith(".csv"):
            with path.open("rb") as file:
                yield from _csv(_lines(file, block_bytes))
        else:
            raise Refused("has an unknown ending", "give a .csv, .csv.gz or .parquet file")
    except FileNotFoundError:
        raise Refused("there is no such file", "check the path") from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise Refused(f"is broken gzip ({error})", "fetch or compress it again") from error
    except OSError as error:
        raise Refused(f"cannot be read ({error.strerror})", "check its permissions") from error


def goes_on(tables: Iterator[Columns]) -> bool:
    """Whether there is another block, be it a broken one. It is taken."""
    try:
        return next(tables, None) is not None
    except Refused:
        return True


def _parquet(path: Path, rows: int) -> Iterator[Columns]:
    try:
        table = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        # Polars reads a table without columns as one without rows, and fails to count them.
        length = int(table.select(pl.len()).collect().item()) if table.collect_schema() else 0
        for start in range(0, max(length, 1), rows):
            block = table.slice(start, rows).collect()
            yield [(column.name, column) for column in block]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        # Polars panics at some damaged files, which is no `Exception` and would end the process.
        raise Refused("is not a Parquet file", "write it again, or give CSV") from error


def _lines(file: IO[bytes] | gzip.GzipFile, block_bytes: int, most_bytes: int | None = None) -> Iterator[bytes]:
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


def _csv(texts: Iterator[bytes]) -> Iterator[Columns]:
    """Every cell as text, so that what cannot be parsed can be named with its row."""
    names, body = _header(next(texts, b""))
    table = _table(names, body, 0)
    yield table
    before = len(table[0][1])
    for text in texts:
        _check_text(text)
        table = _table(names, text, before)
        yield table
        before += len(table[0][1])


def _header(text: bytes) -> tuple[list[str], bytes]:
    """The names of the columns, and the text below them."""
    line, _, body = text.partition(b"\n")
    _check_text(body)
    try:
        header = line.decode("utf-8-sig")
        names = next(csv.reader([header], strict=True), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise _no_text() from error
    if "\0" in header:
        raise _no_text()
    if not names:
        raise Refused("is empty, or its first line is", "give comma-separated values with a header line")
    return names, body


def _check_text(text: bytes) -> None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise _no_text() from error


def _no_text() -> Refused:
    return Refused("is not text", "give comma-separated values with a header line")


def _table(names: list[str], body: bytes, before: int) -> Columns:
    """The rows of a text that has so many rows before it."""
    schema = {str(index): pl.String for index in range(len(names))}
    try:
        table = pl.read_csv(body, has_header=False, schema=schema)
    except pl.exceptions.PolarsError as error:
        widths = np.array([line.count(b",") + 1 for line in body.split(b"\n")])
        wrong = np.flatnonzero(widths != len(names))
        if not len(wrong):
            raise Refused("is not CSV", "give comma-separated values with a header line") from error
        raise Refused(
            f"{widths[wrong[0]]} cells under a header of {len(names)}",
            "correct them",
            before + int(wrong[0]),
            len(wrong),
        ) from error
    return list(zip(names, table.get_columns(), strict=True))
