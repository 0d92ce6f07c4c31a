"""The sources of market data by configuration: a YAML file with a section for each venue, and what works without one.

    binance-testnet:
      adapter: ccxt
      exchange: binance
      url: http://127.0.0.1:8080
    alpaca:
      feed: sip
      key: {env: APCA_API_KEY_ID}
      secret: {file: /run/secrets/alpaca}

A venue that has no section is a ccxt exchange of that name, or `alpaca`, `massive`, `simulated` with their defaults;
the two brokers' credentials then come from the variables that their own libraries read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.common.market import Name
from tradeloop.ingest.adapters.symbols import unknown
from tradeloop.ingest.ports import MarketSource


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Reference(_Part):
    """A secret by the place where it is: an environment variable or a file. It is never in the configuration itself."""

    env: str | None = None
    file: Path | None = None

    @model_validator(mode="after")
    def _one(self) -> Reference:
        if (self.env is None) == (self.file is None):
            raise ValueError("give either env: VARIABLE or file: PATH")
        return self

    def read(self, what: str) -> SecretStr:
        """Raises `UserError` where there is nothing."""
        try:
            value = os.environ.get(self.env, "") if self.env else self.file.read_text().strip() if self.file else ""
        except OSError as error:
            raise UserError(f"{what}: {self.file} cannot be read: {error.strerror}") from None
        if not value:
            where = f"set the environment variable {self.env}" if self.env else f"write it into {self.file}"
            raise UserError(f"{what} is missing: {where}")
        return SecretStr(value)


def _base_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("give a base URL such as http://127.0.0.1:8080")
    if parts.username or parts.password:
        raise ValueError("a URL holds no credentials: give them by reference")
    return url.rstrip("/")


Url = Annotated[str, AfterValidator(_base_url)]
"""The base URL of REST; that of WebSocket is the same with ws for http."""


class _Network(_Part):
    url: Url | None = None
    requests_per_s: float | None = Field(default=None, gt=0)
    """The rate limit to keep, in requests of weight 1; else the client library's own for the venue."""
    timeout_s: float = Field(default=10.0, gt=0)


class CcxtSection(_Network):
    """Any exchange that ccxt knows."""

    adapter: Literal["ccxt"] = "ccxt"
    exchange: str | None = None
    """The exchange's id in ccxt; by default the venue's name."""
    market: Literal["spot", "swap"] = "spot"
    key: Reference | None = None
    secret: Reference | None = None
    password: Reference | None = None


class AlpacaSection(_Network):
    """Alpaca: stocks, and crypto for symbols with a slash."""

    adapter: Literal["alpaca"] = "alpaca"
    feed: Literal["iex", "sip", "delayed_sip"] = "iex"
    """The feed of stocks: one exchange, or all of them."""
    key: Reference = Reference(env="APCA_API_KEY_ID")
    secret: Reference = Reference(env="APCA_API_SECRET_KEY")


class MassiveSection(_Network):
    """massive, formerly Polygon."""

    adapter: Literal["massive"] = "massive"
    key: Reference = Reference(env="MASSIVE_API_KEY")
    adjusted: bool = False
    """Whether history is adjusted for splits. As it was traded is what a live stream goes on with."""


class SimulatedSection(_Part):
    """A seeded market without a network."""

    adapter: Literal["simulated"] = "simulated"
    seed: int = Field(default=0, ge=0)
    speed: float = Field(default=1.0, gt=0)
    """Venue time per wall time."""
    start: AwareDatetime | None = None
    since: AwareDatetime | None = None
    """The venue's time is `start` when the wall's is `since`; without them, both are when the source is opened."""


Section = Annotated[CcxtSection | AlpacaSection | MassiveSection | SimulatedSection, Field(discriminator="adapter")]
Sources = Mapping[str, CcxtSection | AlpacaSection | MassiveSection | SimulatedSection]
"""The section of each venue, by the venue's name."""

_FILE = TypeAdapter(dict[Name, Section])
_OWN = ("alpaca", "massive", "simulated")


def load_sources(path: Path | None) -> Sources:
    """The sections of a file; none without one. Raises `UserError`, a line that names the file, the key, the fault."""
    if path is None:
        return {}
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: sources cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: this is no valid YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: give a section for each venue, such as `binance: {{adapter: ccxt}}`")
    try:
        return _FILE.validate_python({name: _with_adapter(str(name), section) for name, section in raw.items()})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("ccxt", *_OWN) or part == first["loc"][0])
        raise UserError(f"{path}: {where}: {first['msg']}") from None


def _with_adapter(name: str, section: Any) -> Any:
    """A section that does not name its adapter has that of its venue's name."""
    if section is None:
        section = {}
    if isinstance(section, dict) and "adapter" not in section:
        return {"adapter": name if name in _OWN else "ccxt", **section}
    return section


def open_source(venue: str, sources: Sources, clock: Clock, *, url: str | None = None) -> MarketSource:
    """The source of a venue; `url` goes before the configured one. Its libraries are imported, and nothing is asked.

    Raises `UserError` for a venue that there is not, naming those like it, and for credentials that are missing.
    """
    section = sources.get(venue)
    if section is None:
        section = _default(venue, sources)
    if url is not None:
        try:
            section = type(section).model_validate({**section.model_dump(exclude_unset=True), "url": url})
        except ValidationError as error:
            if isinstance(section, SimulatedSection):
                raise UserError(f"{venue} has no network, and so no URL: leave {url} out") from None
            raise UserError(f"{url}: {error.errors(include_input=False)[0]['msg']}") from None
    if isinstance(section, SimulatedSection):
        from tradeloop.ingest.adapters.simulated_source import SimulatedSource

        return SimulatedSource(
            clock, section.seed, section.speed, venue=venue, start=section.start, since=section.since
        )
    if isinstance(section, CcxtSection):
        from tradeloop.ingest.adapters.ccxt_source import CcxtSource

        return CcxtSource(venue, section, clock)
    raise UserError(f"{venue}: its adapter is not there")


def _default(venue: str, sources: Iterable[str]) -> CcxtSection | AlpacaSection | MassiveSection | SimulatedSection:
    if venue == "alpaca":
        return AlpacaSection()
    if venue == "massive":
        return MassiveSection()
    if venue == "simulated":
        return SimulatedSection()
    import ccxt

    if venue not in ccxt.exchanges:
        raise unknown("Tradeloop", f"source {venue}", [f"source {one}" for one in (*sources, *_OWN, *ccxt.exchanges)])
    return CcxtSection()
