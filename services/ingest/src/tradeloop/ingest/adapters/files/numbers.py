"""Numbers as people write them: decimal points and commas, thousands in groups, millions as M."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tradeloop.common.market.columns import is_extra
from tradeloop.ingest.domain import Refused

Sign = Literal[".", ","]

NOTHING = ("", "nan", "null", "none", "n/a")
"""Cells without a number, in any case of letters."""
_BLANKS = r"[\s'\u2019_\u00a0\u202f]"
_MONEY = r"^[$€£¥]|[$€£¥]$"
_GROUPED = {".": r"^[-+]?\d{1,3}(,\d{3})+(\.\d+)?$", ",": r"^[-+]?\d{1,3}(\.\d{3})+(,\d+)?$"}
_SHOWS = {
    ",": r",\d{1,2}$|,\d{4,}$|^[-+]?0,\d|\.\d{3},|\.\d{3}\.|^[-+]?\d{4,},\d",
    ".": r"\.\d{1,2}$|\.\d{4,}([eE]|$)|^[-+]?0?\.\d|,\d{3}\.|,\d{3},|^[-+]?\d{4,}\.\d|[eE]-?\d",
}
"""Cells that can be read by one decimal sign alone."""
_MULTIPLES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def decimal_sign(columns: Iterable[pl.Series]) -> Sign:
    """The decimal sign that these columns show. Raises `Refused` where two readings are possible."""
    texts = [column.str.strip_chars() for column in columns if column.dtype == pl.String]
    commas = [text.filter(text.str.contains(",").fill_null(False)) for text in texts]
    if not any(map(len, commas)):
        return "."
    shows = {sign: any(bool(text.str.contains(pattern).any()) for text in texts) for sign, pattern in _SHOWS.items()}
    if shows[","] != shows["."]:
        return "," if shows[","] else "."
    cell = next(str(one[0]) for one in commas if len(one))
    if shows[","]:
        dots = next(str(one.filter(one.str.contains(r"\.").fill_null(False))[0]) for one in texts if _has_dot(one))
        raise Refused(f"has decimal points ({dots[:20]}) and decimal commas ({cell[:20]})", "say which by --decimal")
    raise Refused(
        f"numbers such as {cell[:20]!r} may have a decimal comma, or thousands in groups", "say which by --decimal"
    )


def _has_dot(text: pl.Series) -> bool:
    return bool(text.str.contains(r"\.").any())


def parsed(field: str, column: pl.Series, sign: Sign) -> NDArray[np.float64]:
    """The numbers of a column. Raises `Refused` with the first that is none."""
    if not (column.dtype == pl.String or column.dtype.is_numeric()):
        raise Refused(f"{field} is a column of {column.dtype}", "give numbers")
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    if field == "funding_rate":  # there is none at most bars
        column = column.replace("", None).fill_null("0") if column.dtype == pl.String else column.fill_null(0)
    elif is_extra(field):  # what is not known stays so
        if column.dtype == pl.String:
            column = column.set(column.str.to_lowercase().is_in(NOTHING).fill_null(False), None).fill_null("nan")
        else:
            column = column.cast(pl.Float64).fill_null(float("nan"))
    values = column.cast(pl.Float64, strict=False) if sign == "." or column.dtype != pl.String else None
    if values is None or values.has_nulls():
        if column.dtype == pl.String:
            values = _as_written(field, column, sign)
        assert values is not None
        refuse_nulls(field, column, values, "give a number")
    return values.to_numpy()


def _as_written(field: str, column: pl.Series, sign: Sign) -> pl.Series:
    text = column.str.replace_all(_BLANKS, "").str.replace_all(_MONEY, "")
    other = "," if sign == "." else "."
    grouped = text.str.contains(_GROUPED[sign]).fill_null(False)
    text = text.zip_with(~grouped, text.str.replace_all(other, "", literal=True))
    if sign == ",":
        # A point that groups nothing is no decimal sign here.
        text = text.set(text.str.contains(r"\.").fill_null(False), None).str.replace(",", ".", literal=True)
    if field != "volume":
        return text.cast(pl.Float64, strict=False)
    scale = text.str.extract(r"(?i)\d([KMBT])$", 1).str.to_uppercase()
    factor = scale.replace_strict(_MULTIPLES, default=1.0, return_dtype=pl.Float64)
    return text.str.replace(r"(?i)([KMBT])$", "").cast(pl.Float64, strict=False) * factor


def refuse_nulls(field: str, given: pl.Series, parsed: pl.Series, remedy: str) -> None:
    """Name the first cell that could not be parsed."""
    rows = parsed.is_null().arg_true()
    if len(rows):
        cell = given[int(rows[0])]
        what = f"{field} is empty" if cell in (None, "") else f"{field} {str(cell)[:40]!r} cannot be parsed"
        raise Refused(what, remedy, int(rows[0]), len(rows))
