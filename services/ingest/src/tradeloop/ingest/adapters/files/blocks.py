"""Blocks of rows, as every kind of file gives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

Columns = list[tuple[str, pl.Series]]
"""Each with its name in the file; names may repeat."""

BLOCK_BYTES = 2**19
"""The text that is parsed at once: one slice of a backfill."""
UNPACKED_BYTES = 8 * 2**30
"""The text that one packed file may hold: sixty years of minutes."""
_BYTES_A_ROW = 64


@dataclass(frozen=True)
class Block:
    """Some rows of a table."""

    columns: Columns
    places: NDArray[np.int64]
    """The number of each row in the file, from 1: of its line, where it has lines."""


@dataclass
class Table:
    """A file, or one that lies in an archive."""

    name: str
    unit: Literal["line", "row"]
    headless: bool = False
    """Whether the columns have no names but their numbers; known with the first block."""
    remarks: list[str] = field(default_factory=list)
    """Words about what could be understood otherwise."""


@dataclass(frozen=True)
class Limits:
    block_bytes: int = BLOCK_BYTES
    unpacked_bytes: int = UNPACKED_BYTES

    @property
    def rows(self) -> int:
        return max(self.block_bytes // _BYTES_A_ROW, 1)
