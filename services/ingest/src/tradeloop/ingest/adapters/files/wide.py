"""Wide tables: a row a time, and columns of several instruments side by side, such as `Open_AAPL`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tradeloop.common.market import BAR_PRICES
from tradeloop.ingest.adapters.files.names import plain

_WORDS = {name: name for name in (*BAR_PRICES, "volume")} | {"adj_close": "adj close", "vol": "volume"}
_LEVELS = re.compile(r"^\(\s*(['\"])(?P<one>.*?)\1\s*,\s*(['\"])(?P<other>.*?)\3\s*,?\s*\)$")
_JOINED = re.compile(r"^(?P<one>.+?)[\s_.:|/-]+(?P<other>[^\s]+)$")
_SPLIT_AT_LAST = re.compile(r"^(?P<one>.+)[\s_.:|/-]+(?P<other>[A-Za-z]+(?:[ _]close)?)$")


def pairs(names: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
    """The columns of each symbol by field, of symbols that have all four prices; empty where the table is not wide."""
    found: dict[str, dict[str, int]] = {}
    for index, name in enumerate(names):
        pair = _pair(name)
        if pair is not None:
            found.setdefault(pair[1], {}).setdefault(pair[0], index)
    return {symbol: columns for symbol, columns in found.items() if set(BAR_PRICES) <= columns.keys()}


def time_name(name: str) -> str:
    """The name of a column, without the empty levels that pandas writes about the index."""
    match = _LEVELS.match(name)
    return name if match is None else " ".join(part for part in (match["one"], match["other"]) if part)


def _pair(name: str) -> tuple[str, str] | None:
    """The field and the symbol."""
    name = name.strip()
    for pattern in (_LEVELS, _JOINED, _SPLIT_AT_LAST):
        match = pattern.match(name)
        if match is None:
            continue
        one, other = match["one"].strip(), match["other"].strip()
        for field, symbol in ((one, other), (other, one)):
            if (word := _WORDS.get(plain(field))) and symbol and plain(symbol) not in _WORDS:
                return word, symbol
    return None
