"""Addresses of venues, moved to another base: a testnet, a proxy, a server for tests."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit


def moved(addresses: Any, base: str) -> Any:
    """All addresses in a text, a mapping or a list, at another scheme and host; their paths stay.

    WebSocket addresses stay such: `ws` for a base of http, `wss` for https.
    """
    if isinstance(addresses, dict):
        return {name: moved(one, base) for name, one in addresses.items()}
    if isinstance(addresses, list):
        return [moved(one, base) for one in addresses]
    if not isinstance(addresses, str) or "://" not in addresses:
        return addresses
    scheme, _, rest = addresses.partition("://")
    path = rest[rest.find("/") :] if "/" in rest else ""
    return (websocket(base) if scheme in ("ws", "wss") else base) + path


def websocket(base: str) -> str:
    """The base URL of WebSocket that follows from one of REST."""
    parts = urlsplit(base)
    return f"{'wss' if parts.scheme == 'https' else 'ws'}://{parts.netloc}{parts.path}".rstrip("/")
