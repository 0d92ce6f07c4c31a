"""Rows without a header: dumps of venues and terminals, known by their shape."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tradeloop.common.market import BAR_PRICES
from tradeloop.ingest.adapters.files.times import CLOCK_ALONE
from tradeloop.ingest.domain import Refused

_ORDERS = {
    "open, high, low, close": (0, 1, 2, 3),
    "open, close, high, low": (0, 2, 3, 1),
    "low, high, open, close": (2, 1, 0, 3),
}
"""How venues order the prices, and the column of open, high, low and close in each."""
_REMEDY = "add a header line, or say by --columns time=1,open=2,high=3,low=4,close=5,volume=6 which columns they are"


def shape(columns: Sequence[pl.Series]) -> tuple[dict[str, int], str]:
    """The columns of the time, the clock, the prices and the volume, by number from 0, and words for it.

    Raises `Refused` where no reading fits, or more than one does.
    """
    start = 1
    found = {"time": 0}
    if _all(columns[1], lambda cell: CLOCK_ALONE.match(cell) is not None) and ":" in str(columns[1].drop_nulls()[0]):
        found["clock"], start = 1, 2
    if not _is_number(columns[0]) and len(columns) > start + 5 and _is_symbol(columns[0]):
        # A symbol stands before the time, as in files of several instruments.
        found = {"symbol": 0, **{field: at + 1 for field, at in found.items()}}
        start += 1
    if len(columns) < start + 4:
        raise Refused("its first line is no header, and has too few columns for bars", _REMEDY)
    prices = [_numbers(column) for column in columns[start : start + 4]]
    fits = {}
    for name, order in _ORDERS.items():
        opened, high, low, close = (prices[at] for at in order)
        inside = (low <= np.minimum(opened, close)) & (high >= np.maximum(opened, close))
        if inside.mean() > 0.98:
            fits[name] = order
    if len(fits) > 1 and "open, high, low, close" in fits and not _differ(prices):
        fits = {"open, high, low, close": fits["open, high, low, close"]}
    if len(fits) != 1:
        many = "several orders of prices fit" if fits else "no order of prices fits"
        raise Refused(f"its first line is no header, and {many} to its columns", _REMEDY)
    name, order = next(iter(fits.items()))
    found |= {field: start + at for field, at in zip(BAR_PRICES, order, strict=True)}
    if len(columns) > start + 4 and bool((_numbers(columns[start + 4]) >= 0).all()):
        found["volume"] = start + 4
        name += ", volume"
    before = [field for field in ("symbol", "time", "clock") if field in found]
    return found, f"it has no header; its columns are taken for {', '.join(before)}, {name}"


def _differ(prices: Sequence[NDArray[np.float64]]) -> bool:
    """Whether the prices of enough rows differ, so that two orders can be told apart."""
    return any(bool((one != other).any()) for one, other in pairwise(prices))


def _is_number(column: pl.Series) -> bool:
    return not column.cast(pl.Float64, strict=False).has_nulls()


def _is_symbol(column: pl.Series) -> bool:
    return bool(column.cast(pl.String).str.contains(r"^[A-Za-z]").all())


def _all(column: pl.Series, holds: object) -> bool:
    cells = [str(cell).strip() for cell in column.drop_nulls().to_list()]
    return bool(cells) and all(holds(cell) for cell in cells)  # type: ignore[operator]


def _numbers(column: pl.Series) -> NDArray[np.float64]:
    if column.dtype == pl.String:
        column = column.str.strip_chars().str.replace(",", ".", literal=True)
    return column.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
