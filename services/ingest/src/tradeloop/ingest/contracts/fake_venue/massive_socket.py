"""massive's streams: https://massive.com/docs/websocket. All that comes is a list of events in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tradeloop.ingest.contracts.fake_venue.market import BOOK_US, US, Listing
from tradeloop.ingest.contracts.fake_venue.socket import Body, Connection, Event, beats

_STOCKS = {"AM": "minutes", "A": "seconds", "T": "trades", "Q": "quotes"}
_CRYPTO = {"XA": "minutes", "XAS": "seconds", "XT": "trades", "XQ": "quotes", "XL2": "books"}


class MassiveSession:
    """The subscriptions of one socket, which speaks only after `auth`."""

    def __init__(self, connection: Connection, credentials: Mapping[str, str] | None, *, crowded: bool) -> None:
        self._connection = connection
        self._market = connection.market
        self._credentials = credentials
        self._crowded = crowded
        self._crypto = connection.request.path == "/crypto"
        self._kinds = _CRYPTO if self._crypto else _STOCKS
        self._welcome = False
        self._names: list[str] = []

    async def begin(self) -> None:
        await self._status("connected", "Connected Successfully")

    async def hear(self, said: Body) -> None:
        try:
            wanted = json.loads(said)
            action, params = wanted["action"], str(wanted["params"])
        except (ValueError, KeyError, TypeError):
            await self._status("error", "Invalid JSON")
            return
        if action == "auth":
            await self._authenticate(params)
        elif not self._welcome:
            await self._status("auth_required", "Not authenticated")
        elif action in {"subscribe", "unsubscribe"}:
            self._connection.served[action] += 1
            for name in params.split(","):
                await self._change(action, name.strip())
        else:
            await self._status("error", f"unknown action {action}")

    async def _authenticate(self, key: str) -> None:
        if self._credentials is not None and key not in self._credentials:
            await self._status("auth_failed", "authentication failed")
            await self._connection.close()
        elif self._connection.faults.denied:
            await self._status("auth_failed", "Your plan doesn't include websocket access.")
            await self._connection.close()
        elif self._crowded:
            await self._status("max_connections", "Maximum number of websocket connections exceeded.")
            await self._connection.close()
        else:
            self._welcome = True
            await self._status("auth_success", "authenticated")

    async def _change(self, action: str, name: str) -> None:
        if name.split(".")[0] not in self._kinds:
            await self._status("error", f"'{name}' is not a valid subscription")
            return
        self._names = [one for one in self._names if one != name] + ([name] if action == "subscribe" else [])
        await self._status("success", f"{action}d to: {name}")

    async def _status(self, status: str, message: str) -> None:
        self._connection.served[f"status {status}"] += 1
        await self._connection.say(json.dumps([{"ev": "status", "status": status, "message": message}]))

    def events(self, start_us: int, end_us: int) -> Sequence[Event]:
        found = []
        for name in self._names:
            kind, _, wanted = name.partition(".")
            for one in self._market.listings.values():
                if one.crypto == self._crypto and wanted in {"*", self._name(one)}:
                    for time_us, body in self._of(kind, one, start_us, end_us):
                        told = [{"ev": kind, "pair" if self._crypto else "sym": self._name(one), **body}]
                        found.append(Event(time_us, kind, json.dumps(told, separators=(",", ":"))))
        return found

    def _name(self, one: Listing) -> str:
        return one.symbol.replace("/", "-")

    def _of(self, kind: str, one: Listing, start_us: int, end_us: int) -> Iterator[tuple[int, dict[str, Any]]]:
        what = self._kinds[kind]
        if what == "minutes":
            yield from self._minutes(one, start_us, end_us)
        elif what == "seconds":
            for time_us in beats(start_us, end_us, US, US):
                yield time_us, self._bar(one, "1s", time_us - US, time_us)
        elif what == "trades":
            for each in self._market.trades(one.symbol, start_us + 1, end_us + 1):
                body = {"x": 4, "i": str(each.id), "p": each.price, "s": each.size, "c": [], "t": each.time_us // 1000}
                side = {"c": [2 if each.buy else 1]} if self._crypto else {"z": 3, "q": each.id}
                yield each.time_us, {**body, **side}
        else:
            yield from self._books(what, one, start_us, end_us)

    def _minutes(self, one: Listing, start_us: int, end_us: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Minutes as they close, and again when they are corrected."""
        begins_us, ends_us = self._market.lifetime(one.symbol)
        faults = self._connection.faults
        for time_us in beats(start_us, end_us, US if faults.lying_closed else 60 * US, 60 * US):
            lies = bool(time_us % (60 * US)) and faults.happens(faults.lying_closed)
            self._connection.served["open bars that were called closed"] += lies
            if begins_us < time_us <= ends_us and (lies or time_us % (60 * US) == 0):
                yield time_us, self._bar(one, "1m", (time_us - 1) // (60 * US) * 60 * US, time_us)
        for open_us in self._market.corrected(one.symbol, start_us + 1, end_us + 1).tolist():
            time_us = open_us + 60 * US + self._market.correction_delay_us
            yield time_us, self._bar(one, "1m", open_us, time_us)

    def _bar(self, one: Listing, timeframe: str, open_us: int, until_us: int) -> dict[str, Any]:
        bars = self._market.bar(one.symbol, timeframe, open_us, until_us)
        volume, trades = float(bars.volume[0]), int(bars.trades[0])
        body = {
            **{"v": volume, "vw": round(float(bars.quote_volume[0]) / volume, 4), "z": volume / trades},
            **{"o": float(bars.open[0]), "c": float(bars.close[0])},
            **{"h": float(bars.high[0]), "l": float(bars.low[0])},
            **{"s": open_us // 1000, "e": int(bars.close_us[0]) // 1000},
        }
        if not self._crypto:
            day = self._market.bar(one.symbol, "1d", open_us // (86_400 * US) * 86_400 * US, until_us)
            total = float(day.volume[0])
            body |= {"av": total, "op": float(day.open[0]), "a": round(float(day.quote_volume[0]) / total, 4)}
        return body

    def _books(self, what: str, one: Listing, start_us: int, end_us: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for time_us in beats(start_us, end_us, BOOK_US, 60 * US):
            book = self._market.book(one.symbol, time_us // BOOK_US - 1)
            if not book.bids:
                continue
            told = {"t": time_us // 1000, "x": 4}
            if what == "books":
                yield time_us, {**told, "b": book.bids, "a": book.asks, "r": time_us // 1000}
                continue
            (bid, bid_size), (ask, ask_size) = book.bids[0], book.asks[0]
            quote = {"bp": bid, "bs": bid_size, "ap": ask, "as": ask_size}
            yield time_us, {**told, **quote} if self._crypto else {**quote, "bx": 4, "ax": 4, "t": told["t"], "z": 3}
