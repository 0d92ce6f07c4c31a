"""Files of bars as blocks of columns, some thousand rows at a time, so that a file of any size fits: the containers.

Text is in `delimited` and `json_records`; here are Parquet and Arrow, and what holds them: gzip, zstd, zip.
"""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Literal, cast

import numpy as np
import polars as pl

from tradeloop.common.messages.ingest import Reading
from tradeloop.ingest.adapters.files import delimited, json_records
from tradeloop.ingest.adapters.files.blocks import Block, Limits, Table
from tradeloop.ingest.domain import Refused
from tradeloop.ingest.domain.file_names import (
    ARROW_ENDINGS,
    JSON_ENDINGS,
    PACKED_ENDINGS,
    PARQUET_ENDINGS,
    TEXT_ENDINGS,
)

_WHOLE_BYTES = 2**28
"""A file that must be read at once, such as a Parquet file in an archive, is refused where it is longer."""

Kind = Literal["text", "json", "parquet", "arrow"]
_KINDS: dict[str, Kind] = {ending: "text" for ending in TEXT_ENDINGS}
_KINDS |= {ending: "json" for ending in JSON_ENDINGS}
_KINDS |= {ending: "parquet" for ending in PARQUET_ENDINGS}
_KINDS |= {ending: "arrow" for ending in ARROW_ENDINGS}


def members(path: Path) -> list[str]:
    """The tables in an archive; none where the file is no archive. Raises `Refused`."""
    if path.suffix.lower() != ".zip":
        return []
    with _readable(path), zipfile.ZipFile(path) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
    names = [one for one in names if not PurePosixPath(one).name.startswith((".", "_")) and "__MACOSX" not in one]
    known = [name for name in names if kind_of(name) is not None]
    if not known:
        raise Refused("is an archive without files of bars", f"put files into it that end in {', '.join(_KINDS)}")
    return sorted(known)


def kind_of(name: str) -> Kind | None:
    """The kind of table that an ending stands for."""
    path = PurePosixPath(name.lower())
    if path.suffix in PACKED_ENDINGS:
        path = path.with_suffix("")
        return _KINDS.get(path.suffix, "text" if not path.suffix else None)
    return _KINDS.get(path.suffix)


def open_table(path: Path, member: str | None, reading: Reading, limits: Limits) -> tuple[Table, Iterator[Block]]:
    """A table and its blocks; of one without rows, one block without rows. Raises `Refused`, as its blocks do."""
    kind = kind_of(member or path.name)
    if path.is_dir():
        raise Refused("is a directory", "name one file")
    if not path.exists():
        raise Refused("there is no such file", "check the path")
    if kind is None:
        endings = f"{', '.join(_KINDS)}, .zip, or text with {', '.join(PACKED_ENDINGS)} behind it"
        raise Refused("has an unknown ending", f"give one of {endings}; save sheets as CSV")
    table = Table(member or str(path), "row" if kind in ("parquet", "arrow") else "line")
    return table, _blocks(path, member, kind, table, reading, limits)


def _blocks(
    path: Path, member: str | None, kind: Kind, table: Table, reading: Reading, limits: Limits
) -> Iterator[Block]:
    with _readable(path):
        if kind in ("parquet", "arrow"):
            yield from _frame(path if member is None else _whole(path, member), kind, limits.rows)
            return
        with _open(path, member) as file:
            packed = member is not None or path.suffix.lower() in PACKED_ENDINGS
            most = limits.unpacked_bytes if packed else None
            first = file.read(min(limits.block_bytes, 4096))
            stream = _Again(first, file)
            if kind == "json" or first.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
                table.unit = "row"
                yield from json_records.blocks(stream, table, limits.rows, most)
            else:
                yield from delimited.blocks(stream, table, reading, limits.block_bytes, most)


def goes_on(blocks: Iterator[Block]) -> bool:
    """Whether there is another block, be it a broken one. It is taken."""
    try:
        return next(blocks, None) is not None
    except Refused:
        return True


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise Refused("there is no such file", "check the path") from None
    except (gzip.BadGzipFile, zlib.error, EOFError, zipfile.BadZipFile) as error:
        kind = "zip" if path.suffix.lower() == ".zip" else "gzip"
        raise Refused(f"is broken {kind} ({error})", "fetch or compress it again") from error
    except (RuntimeError, NotImplementedError) as error:
        if path.suffix.lower() != ".zip":
            raise
        raise Refused(f"cannot be unpacked ({str(error)[:80]})", "unpack it yourself") from error
    except OSError as error:
        raise Refused(f"cannot be read ({error.strerror})", "check its permissions") from error


class _Again:
    """A stream whose beginning was read already."""

    def __init__(self, first: bytes, rest: IO[bytes]) -> None:
        self._first, self._rest = first, rest

    def read(self, size: int) -> bytes:
        if self._first:
            taken, self._first = self._first[:size], self._first[size:]
            return taken + self._rest.read(size - len(taken))
        return self._rest.read(size)


class _Zstd:
    """The text of a zstd file; polars unpacks it piece by piece."""

    def __init__(self, path: Path) -> None:
        self._pieces = pl.scan_lines(path, name="line").collect_batches(chunk_size=8192)
        self._held = b""

    def read(self, size: int) -> bytes:
        while len(self._held) < size:
            try:
                piece = next(self._pieces, None)
            except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
                raise Refused("is broken zstd, or no text", "fetch or compress it again") from error
            if piece is None:
                break
            lines = piece.to_series()
            if len(lines):
                self._held += "\n".join(lines.to_list()).encode() + b"\n"
        taken, self._held = self._held[:size], self._held[size:]
        return taken


@contextmanager
def _open(path: Path, member: str | None) -> Iterator[IO[bytes]]:
    if member is not None:
        with zipfile.ZipFile(path) as archive, archive.open(member) as inside:
            if member.lower().endswith(".gz"):
                with gzip.open(inside) as text:
                    yield cast(IO[bytes], text)
            else:
                yield inside
    elif path.suffix.lower() == ".gz":
        with gzip.open(path) as text:
            yield cast(IO[bytes], text)
    elif path.suffix.lower() in PACKED_ENDINGS:
        path.open("rb").close()  # who may not read it hears so
        yield cast(IO[bytes], _Zstd(path))
    else:
        with path.open("rb") as file:
            yield file


def _whole(path: Path, member: str) -> io.BytesIO:
    with zipfile.ZipFile(path) as archive:
        if archive.getinfo(member).file_size > _WHOLE_BYTES:
            raise Refused(f"holds {member}, which is too large to be read inside of it", "unpack it")
        return io.BytesIO(archive.read(member))


def _frame(source: Path | io.BytesIO, kind: Kind, rows: int) -> Iterator[Block]:
    name = "Parquet" if kind == "parquet" else "Feather or Arrow"
    try:
        parquet = kind == "parquet"
        table = pl.scan_parquet(source, glob=False, hive_partitioning=False) if parquet else _arrow(source)
        # Polars reads a table without columns as one without rows, and fails to count them.
        length = int(table.select(pl.len()).collect().item()) if table.collect_schema() else 0
        for start in range(0, max(length, 1), rows):
            block = table.slice(start, rows).collect()
            yield Block([(column.name, column) for column in block], np.arange(start, start + len(block)) + 1)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        # Polars panics at some damaged files, which is no `Exception` and would end the process.
        raise Refused(f"is not a {name} file", "write it again, or give CSV") from error


def _arrow(source: Path | io.BytesIO) -> pl.LazyFrame:
    head = source.getvalue()[:6] if isinstance(source, io.BytesIO) else _head(source)
    if head == b"ARROW1":
        return pl.scan_ipc(source)
    return pl.read_ipc_stream(source).lazy()


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(6)
