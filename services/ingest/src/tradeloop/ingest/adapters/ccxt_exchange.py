"""Exchanges of ccxt by configuration, and the port's errors for theirs: what history and streams share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ccxt

from tradeloop.common.errors import UserError
from tradeloop.ingest.adapters.http import retry_after
from tradeloop.ingest.adapters.sections import CcxtSection
from tradeloop.ingest.adapters.symbols import unknown
from tradeloop.ingest.adapters.urls import moved
from tradeloop.ingest.ports import SourceUnavailable


def opened(module: Any, venue: str, section: CcxtSection, kind: Callable[[Any], Any] = lambda found: found) -> Any:
    """An exchange of `ccxt` or `ccxt.pro` by configuration. `kind` makes another class of the exchange's."""
    name = section.exchange or venue
    if name not in ccxt.exchanges:
        raise unknown("ccxt", name, ccxt.exchanges)
    if not hasattr(module, name):
        raise UserError(f"{venue}: ccxt has no live streams of {name}")
    secrets = {"apiKey": section.key, "secret": section.secret, "password": section.password}
    given: dict[str, Any] = {
        name: reference.read(f"{venue}: its {name}").get_secret_value()
        for name, reference in secrets.items()
        if reference is not None
    }
    if section.requests_per_s is not None:
        given["rateLimit"] = 1000.0 / section.requests_per_s
    exchange = kind(getattr(module, name))(
        {**given, "enableRateLimit": True, "timeout": round(section.timeout_s * 1000), "newUpdates": True}
    )
    exchange.options["defaultType"] = section.market
    exchange.options["fetchCurrencies"] = False
    if isinstance(exchange.options.get("fetchMarkets"), dict) and "types" in exchange.options["fetchMarkets"]:
        # The markets of Binance come from one address for each type.
        exchange.options["fetchMarkets"]["types"] = ["spot"] if section.market == "spot" else ["linear", "inverse"]
    if section.url is not None:
        exchange.urls["api"] = moved(exchange.urls["api"], section.url)
    return exchange


def strict(kind: Any) -> Any:
    """An exchange's class that refuses answers which are no JSON: ccxt takes one that was cut off for no bars."""

    class Strict(kind):  # type: ignore[misc]
        def handle_errors(self, *answer: Any) -> Any:
            code, body, response = answer[0], answer[5], answer[6]
            if 200 <= code < 300 and response is None and body:
                raise ccxt.BadResponse(f"the answer is no JSON: {str(body)[-60:]}")
            return super().handle_errors(*answer)

    return Strict


def translated(venue: str, error: Exception, headers: Any = None) -> SourceUnavailable | UserError:
    """The port's error for one of ccxt's."""
    told = " ".join(str(error).split())[:300]
    if isinstance(error, (SourceUnavailable, UserError)):
        return error
    if isinstance(error, ccxt.AuthenticationError):
        # A PermissionDenied is one of these.
        return UserError(f"{venue} refuses the credentials: {told}: correct its key and secret, or their permissions")
    if isinstance(error, ccxt.BadSymbol):
        return UserError(f"{venue} does not know the symbol: {told}")
    if isinstance(error, ccxt.OnMaintenance):
        return SourceUnavailable(f"{venue} is under maintenance: {told}", retry_after(headers))
    if isinstance(error, (ccxt.RateLimitExceeded, ccxt.DDoSProtection)):
        return SourceUnavailable(f"{venue} says that it is asked too often: {told}", retry_after(headers))
    if isinstance(error, ccxt.OperationFailed):
        return SourceUnavailable(f"{venue} does not answer: {told}", retry_after(headers))
    if isinstance(error, (ccxt.NotSupported, ccxt.BadRequest, ccxt.RestrictedLocation)):
        return UserError(f"{venue} refuses the request: {told}")
    if isinstance(error, ccxt.BaseError):
        return SourceUnavailable(f"{venue} answers with an error: {told}")
    # The libraries take whatever came for granted: a malformed answer is an error of Python's.
    return SourceUnavailable(f"{venue}: its answer cannot be read: {type(error).__name__}: {told}")
