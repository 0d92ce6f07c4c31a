"""Names that people give to columns of bars, the most certain ones first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from tradeloop.common.market import BAR_PRICES

FIELDS = ("time", *BAR_PRICES, "volume", "funding_rate")

TIMES = (
    "timestamp", "time", "date", "datetime", "open_time", "opentime", "ts", "t", "date_time", "gmt_time", "utc_time",
    "time_utc", "timestamp_utc", "datetime_utc", "date_utc", "local_time", "unix", "unix_time", "unix_timestamp",
    "unixtime", "epoch", "timestamp_ms", "window_start", "start", "start_time", "begin", "period_start", "time_open",
    "bar_time", "candle_begin_time", "dtyyyymmdd", "yyyymmdd", "day", "trade_date", "trading_date", "datum", "zeit",
    "fecha", "data", "clock", "hhmm", "hhmmss", "time_of_day", "index", "index_level_0", "level_0", "unnamed_0", "",
)  # fmt: skip
"""Columns that may hold times; what they hold decides."""

_PRICES: Mapping[str, Sequence[frozenset[str]]] = {
    "open": (frozenset({"open", "o"}), frozenset({"open_price", "price_open", "opening_price", "first", "eroeffnung",
             "eröffnung", "erster", "apertura", "ouverture", "bidopen", "open_bid", "bid_open", "askopen", "open_ask",
             "ask_open"})),
    "high": (frozenset({"high", "h"}), frozenset({"high_price", "price_high", "highest", "max", "hoch", "tageshoch",
             "hoechst", "máximo", "bidhigh", "high_bid", "bid_high", "askhigh", "high_ask", "ask_high"})),
    "low": (frozenset({"low", "l"}), frozenset({"low_price", "price_low", "lowest", "min", "tief", "tagestief",
            "tiefst", "mínimo", "bidlow", "low_bid", "bid_low", "asklow", "low_ask", "ask_low"})),
    "close": (frozenset({"close", "c"}), frozenset({"close_price", "price_close", "closing_price", "last",
              "last_price", "close_last", "price", "schluss", "schlusskurs", "zuletzt", "cierre", "clôture", "settle",
              "bidclose", "close_bid", "bid_close", "askclose", "close_ask", "ask_close"})),
    "funding_rate": (frozenset({"funding_rate", "fundingrate"}),),
}  # fmt: skip

VOLUMES = frozenset({"volume", "vol", "v", "volumen", "base_volume", "share_volume"})
TICKS = frozenset({"tick_volume", "tickvol", "tickvolume", "tickqty"})
_MORE_VOLUME = re.compile(r"^(?:vol|volume)_(?!ma)\w+$|^(?!quote|taker|avg|average|mean|real)\w+_(?:vol|volume)$")

SYMBOLS = frozenset(
    {"symbol", "sym", "ticker", "tic", "instrument", "instrument_id", "asset", "pair", "coin", "currency_pair"}
    | {"product_id", "isin", "cusip", "sedol", "ric", "figi", "permno", "gvkey", "secid", "ts_code", "stock_code"}
    | {"security", "contract", "underlying", "market", "symbols", "tickers", "crypto", "currency", "inst_id"}
)
"""Columns that say which instrument a row is of."""
MAYBE_SYMBOLS = frozenset({"name", "stock", "code", "index", "company", "exchange_symbol", "level_1", "s", "unique_id"})
"""Columns that say it where they hold words."""


def plain(name: str) -> str:
    """A name without the signs that people write around and inside of it."""
    text = re.sub(r"^\d+[.:)]\s*", "", name.strip().lower())
    return re.sub(r"[^\w]+", "_", text).strip("_")


def by_name(names: Sequence[str], field: str) -> list[int]:
    """The columns that may be this price or the funding rate: those of the most certain name."""
    for synonyms in _PRICES[field]:
        if found := [index for index, name in enumerate(names) if plain(name) in synonyms]:
            return found
    return []


def adjusted(names: Sequence[str]) -> list[int]:
    """The columns of prices that were adjusted for splits and dividends."""
    return [index for index, name in enumerate(names) if re.match(r"^(adj|adjusted)(_|close)", plain(name))]


def volumes(names: Sequence[str]) -> tuple[list[int], list[int], list[int]]:
    """The columns that may be the volume: by their whole name, as a number of ticks, by a part of their name."""
    spelt = [plain(name) for name in names]
    exact = [index for index, name in enumerate(spelt) if name in VOLUMES]
    ticks = [index for index, name in enumerate(spelt) if name in TICKS]
    more = [
        index
        for index, name in enumerate(spelt)
        if _MORE_VOLUME.match(name) and index not in exact and index not in ticks
    ]
    return exact, ticks, more


def among(names: Iterable[str], indices: Iterable[int]) -> str:
    every = list(names)
    return " and ".join(every[index] or "one without a name" for index in indices)
