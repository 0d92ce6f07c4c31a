"""The meaning of a table's columns: time, prices, volume, symbol; found once, by the first rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from tradeloop.common.market import BAR_PRICES
from tradeloop.common.messages.ingest import Reading
from tradeloop.ingest.adapters.files import headless, names, wide
from tradeloop.ingest.adapters.files.blocks import Columns
from tradeloop.ingest.adapters.files.names import FIELDS, among, plain
from tradeloop.ingest.adapters.files.numbers import Sign, decimal_sign
from tradeloop.ingest.adapters.files.timing import TimeColumns, time_columns
from tradeloop.ingest.domain import Refused

_NAMED = (*FIELDS, "clock", "symbol")


class SeveralInstruments(Refused):
    """The columns are of several instruments, and it was not said which one is meant."""

    def __init__(self, column: str, symbols: Sequence[str]) -> None:
        super().__init__(named(column, symbols), "name one by FILE#SYMBOL, or give a file for each of them")
        self.column, self.symbols = column, tuple(symbols)


def named(column: str, symbols: Sequence[str]) -> str:
    shown = ", ".join([*symbols][:5]) + (", ..." if len(symbols) > 5 else "")
    return f"{column} names {len(symbols)} instruments ({shown:.200})"


@dataclass(frozen=True)
class Layout:
    """The meaning of a table's columns."""

    names: tuple[str, ...]
    time: TimeColumns
    chosen: Mapping[str, int]
    """The column of each price, of `volume` and `funding_rate` where there is one, and of those to keep."""
    symbols: tuple[int, ...]
    """Columns that may say which instrument a row is of."""
    sign: Sign
    sparse: bool = False
    """Whether rows without any price are times at which others have a bar."""
    remarks: tuple[str, ...] = field(default=())

    @property
    def used(self) -> dict[str, str]:
        """The file's own name of each field."""
        time = " + ".join(self.names[index] or "one without a name" for index in self.time.indices)
        return {"time": time} | {name: self.names[index] for name, index in self.chosen.items()}

    def ignored(self, symbol: int | None) -> tuple[str, ...]:
        taken = {*self.chosen.values(), *self.time.indices, symbol}
        return tuple(name for index, name in enumerate(self.names) if index not in taken)


def layout(sample: Columns, reading: Reading, symbol: str, is_headless: bool) -> Layout:
    """The meaning of columns, by their names and some rows. `symbol` is the wanted one; empty where none is named.

    Raises `Refused`; `SeveralInstruments` for a wide table of several, where none is named.
    """
    spelt = [name for name, _ in sample]
    columns = [column for _, column in sample]
    remarks: list[str] = []
    chosen = _by_option(spelt, reading)
    kept = _kept(spelt, reading, chosen)
    given_time: dict[str, int] = {name: chosen.pop(name) for name in ("time", "clock") if name in chosen}
    symbols = [chosen.pop("symbol")] if "symbol" in chosen else None
    sparse = False
    if is_headless and not {"open", "high", "low", "close"} <= chosen.keys():
        found, said = headless.shape(columns)
        given_time = {**{name: found.pop(name) for name in ("time", "clock") if name in found}, **given_time}
        symbols = symbols or ([found.pop("symbol")] if "symbol" in found else None)
        chosen = found | chosen
        remarks.append(said)
    else:
        for price in BAR_PRICES:
            if price not in chosen and (index := _one(spelt, price)) is not None:
                chosen[price] = index
        if missing := [price for price in BAR_PRICES if price not in chosen]:
            wanted, said = _of_wide(spelt, symbol)
            if wanted is None:
                raise _lacks(spelt, ["time", *missing] if not _any_time(spelt) else missing, bool(chosen))
            chosen, sparse = {**wanted, **chosen}, True
            remarks.append(said)
        elif (funding := _one(spelt, "funding_rate")) is not None:
            chosen.setdefault("funding_rate", funding)
    prices = {index for name, index in chosen.items() if name != "volume"}
    for name, index in kept.items():
        _check_free(name, spelt[index], index, chosen)
    times, said_of_times = time_columns(sample, reading, given_time, prices | {*kept.values()})
    remarks += said_of_times
    spare = [index for index in range(len(sample)) if index not in prices | {*times.indices, *kept.values()}]
    if symbols is None:
        symbols = [index for index in spare if _is_symbol(spelt[index], columns[index])]
        symbols += _unnamed_symbols(sample, spare, times, reading) if not symbols else []
    if "volume" not in chosen and not sparse and not is_headless:
        remarks += _choose_volume(sample, chosen, spare, symbols)
    chosen = {name: chosen[name] for name in FIELDS if name in chosen} | kept
    if adjusted := [index for index in names.adjusted(spelt) if index not in chosen.values()]:
        remarks.append(f"prices are taken as they are: {among(spelt, adjusted)} is not used, splits are jumps in them")
    texts = [columns[index] for index in chosen.values() if columns[index].dtype == pl.String]
    sign = reading.decimal or decimal_sign(texts)
    if sign == ",":
        remarks.append("numbers have a decimal comma")
    return Layout(tuple(spelt), times, chosen, tuple(symbols), sign, sparse, tuple(remarks))


def check_names(spelt: Sequence[str]) -> None:
    """Raise `Refused` where columns without rows are none of bars."""
    missing = [price for price in BAR_PRICES if _one(spelt, price) is None]
    if missing and not wide.pairs(spelt):
        raise _lacks(spelt, ["time", *missing] if not _any_time(spelt) else missing, len(missing) < len(BAR_PRICES))


def _by_option(spelt: Sequence[str], reading: Reading) -> dict[str, int]:
    """The columns that the user named, by their names or numbers."""
    for name, column in reading.columns.items():
        if name not in _NAMED:
            raise Refused(f"--columns {name}={column}: there is no {name}", f"name one of {', '.join(_NAMED)}")
    return {name: _place(spelt, column, f"--columns {name}={column}") for name, column in reading.columns.items()}


def _kept(spelt: Sequence[str], reading: Reading, chosen: Mapping[str, int]) -> dict[str, int]:
    """The columns that the user wants to keep. Those that the user named for something are taken."""
    found: dict[str, int] = {}
    for name, column in reading.keep.items():
        index = _place(spelt, column, f"--keep {name}={column}")
        _check_free(name, spelt[index], index, {**chosen, **found})
        found[name] = index
    return found


def _check_free(name: str, column: str, index: int, taken: Mapping[str, int]) -> None:
    if used := [field for field, other in taken.items() if other == index]:
        raise Refused(f"--keep {name}: column {column!r} is taken for {used[0]}", "leave it out, or name another")


def _place(spelt: Sequence[str], column: str, option: str) -> int:
    """The place of the column that an option means."""
    found = [at for at, one in enumerate(spelt) if one == column]
    found = found or [at for at, one in enumerate(spelt) if plain(one) == plain(column)]
    if not found and column.isdigit() and 1 <= int(column) <= len(spelt):
        found = [int(column) - 1]
    if len(found) != 1:
        how_many = "several" if found else "no"
        shown = ", ".join(repr(one) for one in spelt[:12])
        raise Refused(f"{option}: it has {how_many} such columns", f"name one of {shown:.300}, or its number")
    return found[0]


def _one(spelt: Sequence[str], name: str) -> int | None:
    found = names.by_name(spelt, name)
    if len(found) > 1:
        raise Refused(f"columns {among(spelt, found)} could each be the {name}", f"say which by --columns {name}=NAME")
    return found[0] if found else None


def _any_time(spelt: Sequence[str]) -> bool:
    return any(plain(name) in names.TIMES for name in spelt)


def _lacks(spelt: Sequence[str], missing: Sequence[str], some: bool) -> Refused:
    # What does not look like a header may be anything, which is nobody's business but the file's owner's.
    plausible = all(len(name) <= 40 and name.isprintable() and "<" not in name.strip("<>") for name in spelt)
    if not plausible or not (some or _any_time(spelt)):
        return Refused("its first line is no header", "name time, open, high, low, close in it")
    shown = ", ".join(repr(name) for name in spelt[:12])
    remedy = f"name them in the header line, or by --columns {','.join(f'{one}=NAME' for one in missing)}"
    return Refused(f"no column for {', '.join(missing)} among {shown:.300}", remedy)


def _of_wide(spelt: Sequence[str], symbol: str) -> tuple[dict[str, int] | None, str]:
    """The columns of the wanted symbol of a wide table; None where the table is not wide."""
    pairs = wide.pairs(spelt)
    if not pairs:
        return None, ""
    if not symbol and len(pairs) > 1:
        raise SeveralInstruments("the header", list(pairs))
    if symbol and symbol not in pairs:
        raise Refused(named("the header", list(pairs)), f"{symbol} is none of them")
    wanted = symbol or next(iter(pairs))
    columns = {name: index for name, index in pairs[wanted].items() if name != "adj close"}
    return columns, f"the header names {wanted} in each column: these are its bars"


def _is_symbol(name: str, column: pl.Series) -> bool:
    if plain(name) in names.SYMBOLS:
        return True
    return plain(name) in names.MAYBE_SYMBOLS and _has_words(column)


def _has_words(column: pl.Series) -> bool:
    if column.dtype not in (pl.String, pl.Categorical, pl.Enum):
        return False
    text = column.cast(pl.String).drop_nulls()
    return bool(len(text)) and bool(text.str.contains(r"^\s*[A-Za-z]").all())


def _unnamed_symbols(sample: Columns, spare: Sequence[int], times: TimeColumns, reading: Reading) -> list[int]:
    """Columns of words without a known name, in a table whose times come again: they may tell its rows apart."""
    words = [index for index in spare if _has_words(sample[index][1]) and sample[index][1].n_unique() > 1]
    if not words:
        return []
    us = times.parse([column for _, column in sample], reading).us
    return words if len(set(us.tolist())) < len(us) else []


def _choose_volume(sample: Columns, chosen: dict[str, int], spare: Sequence[int], symbols: Sequence[int]) -> list[str]:
    """Find the volume among the spare columns, and say where it could be another."""
    spelt = [name for name, _ in sample]
    exact, ticks, more = ([index for index in found if index in spare] for found in names.volumes(spelt))
    every = exact + ticks + more
    if not every:
        like = [i for i in spare if any(word in plain(spelt[i]) for word in ("vol", "turnover", "amount", "qty"))]
        like = [i for i in like if "volume_ma" not in plain(spelt[i])]
        if like:
            return [f"no column is taken for the volume; say by --columns volume=NAME if it is {among(spelt, like)}"]
        return []
    base = [index for index in more if _unit_is_base(spelt[index], sample, symbols)]
    if len(base) == 1:
        index = base[0]
    elif len(exact) > 1:
        raise Refused(f"columns {among(spelt, exact)} could each be the volume", "say which by --columns volume=NAME")
    elif exact and not (ticks and _is_zero(sample[exact[0]][1]) and not _is_zero(sample[ticks[0]][1])):
        index = exact[0]
    else:
        index = ticks[0] if ticks else more[0]
    chosen["volume"] = index
    others = [other for other in every if other != index]
    if others:
        return [f"the volume is {spelt[index]}; if it is {among(spelt, others)}, say so by --columns volume=NAME"]
    return [] if index in exact else [f"the volume is {spelt[index]}"]


def _unit_is_base(name: str, sample: Columns, symbols: Sequence[int]) -> bool:
    """Whether the name of a volume names what the symbols begin with: `Volume BTC` of `BTC/USDT`."""
    unit = plain(name).removeprefix("volume_").removeprefix("vol_")
    cells = [str(sample[index][1].drop_nulls()[0]).lower() for index in symbols if len(sample[index][1].drop_nulls())]
    return any(plain(cell).startswith(unit) and plain(cell) != unit for cell in cells)


def _is_zero(column: pl.Series) -> bool:
    return bool((column.cast(pl.Float64, strict=False).fill_null(0) == 0).all())
