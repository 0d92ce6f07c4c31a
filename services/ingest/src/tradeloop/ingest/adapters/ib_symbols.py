"""Instruments of Interactive Brokers as they are written: `AAPL`, `SAP.IBIS.EUR`, `EUR.USD`, `SPX.CBOE.USD.IND`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tradeloop.common.errors import UserError
from tradeloop.common.market import Instrument, from_us, to_us

_SMART, _USD, _PAIRS_AT = "SMART", "USD", "IDEALPRO"
_CURRENCY = re.compile(r"[A-Z]{3}")
_KINDS = ("BAG", "CFD", "FOP", "FUT", "IND", "OPT", "STK", "WAR")
"""Kinds of contracts, which look like currencies; most need a date, too, and are not to be had."""
_FX_ZONE, _FX_TURNS = ZoneInfo("America/New_York"), time(17)
_ZONES = {"EST": "America/New_York", "CST": "America/Chicago", "MET": "Europe/Berlin", "JST": "Asia/Tokyo"}
"""Zones that TWS calls by a name that means another one, without daylight saving, elsewhere."""
_US = ("NYSE", "NASDAQ", "ISLAND", "AMEX", "ARCA", "BATS", "BEX", "IEX", "PINK", "CBOE")
_CALENDARS = {
    **dict.fromkeys(_US, "XNYS"),
    **{"LSE": "XLON", "LSEETF": "XLON", "IBIS": "XETR", "IBIS2": "XETR", "FWB": "XFRA", "SBF": "XPAR", "AEB": "XAMS"},
    **{"BVME": "XMIL", "BM": "XMAD", "EBS": "XSWX", "VSE": "XWBO", "BVL": "XLIS", "SFB": "XSTO", "OSE": "XOSL"},
    **{"CPH": "XCSE", "HEX": "XHEL", "WSE": "XWAR", "TSE": "XTSE", "VENTURE": "XTSE", "MEXI": "XMEX", "ASX": "XASX"},
    **{"SEHK": "XHKG", "TSEJ": "XTKS", "SGX": "XSES", "KSE": "XKRX", "TASE": "XTAE", "JSE": "XJSE"},
}
"""The calendar of each exchange, by the name that Interactive Brokers has for it."""

HOW = (
    "write a stock as AAPL (routed by SMART, in USD) or SAP.IBIS.EUR, a pair of currencies as EUR.USD, an index as "
    "SPX.CBOE.USD.IND, and a space as _"
)


@dataclass(frozen=True, slots=True)
class Security:
    """The security that a symbol asks for."""

    symbol: str
    kind: Literal["STK", "CASH", "IND"]
    exchange: str
    currency: str

    @property
    def shows(self) -> Literal["TRADES", "MIDPOINT"]:
        """The data that bars are made of: pairs of currencies have no trades that anybody could see."""
        return "MIDPOINT" if self.kind == "CASH" else "TRADES"

    def fields(self) -> dict[str, Any]:
        """The fields of a contract of ib_async."""
        symbol = self.symbol.replace("_", " ")
        return {"symbol": symbol, "secType": self.kind, "exchange": self.exchange, "currency": self.currency}


def security(venue: str, text: str) -> Security:
    """The security that a symbol asks for. Raises `UserError`, with the forms that there are."""
    parts = text.split(".")
    kind: Literal["STK", "IND"] = "STK"
    if len(parts) == 4 and parts[3] == "IND":
        kind = "IND"
        parts = parts[:3]
    if len(parts) == 1 and text:
        return Security(text, kind, _SMART, _USD)
    in_currency = _CURRENCY.fullmatch(parts[-1]) and parts[-1] not in _KINDS
    if len(parts) == 2 and _CURRENCY.fullmatch(parts[0]) and in_currency:
        return Security(parts[0], "CASH", _PAIRS_AT, parts[1])
    if len(parts) > 2 and all(parts[-2:]) and any(parts[:-2]) and in_currency:
        # Symbols of some exchanges have dots themselves.
        return Security(".".join(parts[:-2]), kind, parts[-2], parts[-1])
    raise UserError(f"{venue} has no {text}: {HOW}")


def written(contract: Any) -> str:
    """The symbol of a contract of ib_async, as it is to be written."""
    symbol = str(contract.symbol).replace(" ", "_")
    if contract.secType == "CASH":
        return f"{symbol}.{contract.currency}"
    if contract.secType == "STK" and contract.currency == _USD:
        return symbol
    ending = ".IND" if contract.secType == "IND" else ""
    return f"{symbol}.{contract.primaryExchange or contract.exchange or _SMART}.{contract.currency}{ending}"


@dataclass(frozen=True)
class Listed:
    """A contract as Interactive Brokers has it."""

    security: Security
    contract: Any
    """The contract of ib_async to ask with."""
    zone: ZoneInfo
    """The exchange's."""
    instrument: Instrument

    def day_us(self, day: date) -> int:
        """When a trading day opens here: at midnight of its exchange; that of currencies at 17:00 in New York before.

        Both are as other sources have them. The session itself lies inside.
        """
        if self.security.kind == "CASH":
            opens = datetime.combine(day - timedelta(days=1), _FX_TURNS, _FX_ZONE)
        else:
            opens = datetime.combine(day, time(), self.zone)
        return to_us(opens.astimezone(UTC))

    def floor_us(self, time_us: int, length_us: int) -> int:
        """The last time at or before a time at which the exchange's clock shows a multiple of a length."""
        offset = from_us(time_us).astimezone(self.zone).utcoffset() or timedelta()
        return time_us - (time_us + offset // timedelta(microseconds=1)) % length_us


def listed(venue: str, text: str, wanted: Security, found: Sequence[Any], *, regular: bool) -> Listed:
    """The one contract among the details that were found. Raises `UserError` where there are several."""
    here = [one for one in found if one.contract.exchange == wanted.exchange] or list(found)
    if len(here) > 1:
        names = sorted({written(one.contract) for one in here})
        raise UserError(f"{venue}: {text} is several: {', '.join(names)}: name its exchange and its currency")
    [details] = here
    name = str(details.timeZoneId).split(" ")[0]
    try:
        zone = ZoneInfo(_ZONES.get(name, name) or "?")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UserError(f"{venue}: {text}: the zone {name!r} of its exchange is not known: update tzdata") from None
    primary = details.contract.primaryExchange or details.contract.exchange
    calendar = "fx" if wanted.kind == "CASH" else _CALENDARS.get(primary, "sessions") if regular else "sessions"
    instrument = Instrument(
        id=f"{venue}:{text}",
        tick_size=details.minTick,
        # Whole steps of it are then never below the smallest order.
        lot_size=max(details.sizeIncrement, details.minSize),
        calendar=calendar,
    )
    details.contract.exchange = wanted.exchange
    return Listed(wanted, details.contract, zone, instrument)
