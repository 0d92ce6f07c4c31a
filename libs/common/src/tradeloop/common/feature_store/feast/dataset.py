"""The history of a universe's features: a folder of Parquet files, each of which says what it covers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from tradeloop.common.feature_store.port import Covered, uncovered_by

KEYS = ("universe", "instrument")
CLOSE = "_close_us"
"""The bar's close among the values: online stores keep event times in whole seconds, and SQLite's in local time."""
COLUMNS = (*KEYS, CLOSE, "event_timestamp", "created_timestamp")

_TIME = pl.Datetime("us", "UTC")
_LARGE_ROWS = 16_384
"""Rows of which a file is left as it is."""
_COVERS = "tradeloop.covers"
"""The name of what a file covers, among the metadata in its footer: so it goes where the rows go."""


def schema_of(names: Sequence[str], *, created: bool = True) -> pl.Schema:
    """The columns of a feature set's files."""
    columns: dict[str, Any] = dict.fromkeys(KEYS, pl.String) | dict.fromkeys(names, pl.Float64)
    columns |= {CLOSE: pl.Int64, "event_timestamp": _TIME} | ({"created_timestamp": _TIME} if created else {})
    return pl.Schema(columns)


def append(directory: Path, rows: pl.DataFrame, covers: Covered | None, now_us: int) -> None:
    """Add rows to a dataset, over older ones of the same key and time, in one file that appears at once.

    Files are named by when they were written and by the times that they cover. Of small ones, the newest are merged
    into the new file while they hold no more rows than it has so far, so that there are never more than a logarithm of
    all rows. Large ones, of a history that is written in parts, stay as they are, until a write has all of their rows:
    so memory is bounded by one part, and a history that is written again takes the place of the older one. A crash
    before older files are gone leaves duplicates, which readers resolve by `created_timestamp`.
    """
    files = sorted(directory.glob("*.parquet"))
    created_us = max(now_us, int(files[-1].stem.partition("-")[0]) + 1) if files else now_us
    created = pl.lit(created_us).cast(_TIME).alias("created_timestamp")
    gone, frame = [], rows.with_columns(created)
    covered = [] if covers is None else [covers]
    while files and pq.read_metadata(files[-1]).num_rows <= len(frame) < _LARGE_ROWS:
        gone.append(files.pop())
        frame = pl.concat([pl.read_parquet(gone[-1]), frame])
        covered = [*_covers(gone[-1]), *covered]
    identity = [*KEYS, "event_timestamp"]
    if gone or frame["instrument"].n_unique() > 1:  # else they are in order as they come, each once
        frame = frame.sort([*identity, "created_timestamp"]).unique(identity, keep="last", maintain_order=True)
    first_us, last_us = int(frame[CLOSE].min()), int(frame[CLOSE].max())  # type: ignore[arg-type]
    for path in files:
        _, *span = path.stem.split("-")
        within = len(span) == 2 and first_us <= int(span[0]) and int(span[1]) <= last_us
        if within and pl.read_parquet(path, columns=identity).join(frame, on=identity, how="anti").is_empty():
            gone.append(path)
    write(directory / f"{created_us:020d}-{first_us}-{last_us}.parquet", frame, _newest(covered))
    for path in gone:
        path.unlink()


def covered_by(directory: Path) -> Sequence[Covered]:
    """The stretches of a dataset, in order of time; of those that overlap, the one written last."""
    return _newest(one for path in sorted(directory.glob("*.parquet")) for one in _covers(path))


def write(path: Path, frame: pl.DataFrame, covers: Sequence[Covered] = ()) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        frame.write_parquet(file, metadata={_COVERS: json.dumps(covers)} if covers else None)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _covers(path: Path) -> list[Covered]:
    metadata = pq.read_metadata(path).metadata or {}
    return [Covered(*one) for one in json.loads(metadata.get(_COVERS.encode(), b"[]"))]


def _newest(covered: Iterable[Covered]) -> list[Covered]:
    """The stretches that no later one overlaps, in order of time; they come in the order in which they were written."""
    kept: list[Covered] = []
    for one in covered:
        kept = [*uncovered_by(one, kept), one]
    return sorted(kept)
