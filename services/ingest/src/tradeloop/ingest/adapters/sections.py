"""The sections of sources in a configuration file, one class for each adapter."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, SecretStr, model_validator

from tradeloop.common.addresses import hide
from tradeloop.common.errors import UserError


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
        hide([value])
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
    timeout_s: float = Field(default=10.0, gt=0)


def _tws_url(url: str) -> str:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "tcp" or not parts.hostname or port is None or parts.path.strip("/") or parts.query:
        raise ValueError("give the address of TWS or IB Gateway such as tcp://127.0.0.1:7497")
    if parts.username or parts.password:
        raise ValueError("a URL holds no credentials: TWS is logged in by hand")
    return url.rstrip("/")


class CcxtSection(_Network):
    """Any exchange that ccxt knows."""

    adapter: Literal["ccxt"] = "ccxt"
    requests_per_s: float | None = Field(default=None, gt=0)
    """The rate limit to keep, in requests of weight 1; else the client library's own for the venue."""
    exchange: str | None = None
    """The exchange's id in ccxt; by default the venue's name."""
    market: Literal["spot", "swap"] = "spot"
    key: Reference | None = None
    secret: Reference | None = None
    password: Reference | None = None


class AlpacaSection(_Network):
    """Alpaca: stocks, and crypto for symbols with a slash."""

    adapter: Literal["alpaca"] = "alpaca"
    feed: Literal["iex", "sip"] = "iex"
    """The feed of stocks: one exchange, or all of them."""
    requests_per_s: float = Field(default=3.0, gt=0)
    """The rate limit to keep: Alpaca's own is 200 in a minute without a plan."""
    key: Reference = Reference(env="APCA_API_KEY_ID")
    secret: Reference = Reference(env="APCA_API_SECRET_KEY")


class MassiveSection(_Network):
    """massive: stocks, and crypto for symbols with a slash."""

    adapter: Literal["massive"] = "massive"
    requests_per_s: float = Field(default=10.0, gt=0)
    """The rate limit to keep; massive's free plan has 5 in a minute."""
    key: Reference = Reference(env="MASSIVE_API_KEY")


class FlatFilesSection(_Network):
    """massive's flat files of US stocks, in a store that speaks as S3 does."""

    adapter: Literal["massive-files"] = "massive-files"
    timeout_s: float = Field(default=60.0, gt=0)
    bucket: str = Field(default="flatfiles", pattern=r"^[a-z0-9][a-z0-9.-]{1,62}$")
    prefix: str = Field(default="us_stocks_sip", pattern=r"^[\w.-]+(/[\w.-]+)*$")
    """The folder of the bucket that has `minute_aggs_v1` and `day_aggs_v1`."""
    folder: Path | None = None
    """Where the files are kept, so that one is fetched once for all instruments; None keeps none."""
    check_symbols: bool = True
    """Whether a ticker is to be in the newest file: one that was delisted is not."""
    requests_per_s: float = Field(default=10.0, gt=0)
    key: Reference = Reference(env="MASSIVE_FILES_KEY")
    secret: Reference = Reference(env="MASSIVE_FILES_SECRET")


class IbSection(_Part):
    """Interactive Brokers, through TWS or IB Gateway, which is logged in by its user."""

    adapter: Literal["ib"] = "ib"
    url: Annotated[str, AfterValidator(_tws_url)] = "tcp://127.0.0.1:7497"
    """TWS listens at 7496, and at 7497 for paper accounts; IB Gateway at 4001 and 4002."""
    timeout_s: float = Field(default=60.0, gt=0)
    client_id: int = Field(default=31, ge=1)
    """The number of this client of TWS, which no other one may have at the same time."""
    hours: Literal["regular", "all"] = "regular"
    """Regular trading hours, or those before and after too."""
    pace: float = Field(default=1.0, ge=0)
    """How much of the waiting times that Interactive Brokers asks for is kept."""


class SimulatedSection(_Part):
    """A seeded market without a network."""

    adapter: Literal["simulated"] = "simulated"
    seed: int = Field(default=0, ge=0)
    speed: float = Field(default=1.0, gt=0)
    """Venue time per wall time."""
    start: AwareDatetime | None = None
    since: AwareDatetime | None = None
    """The venue's time is `start` when the wall's is `since`; without them, both are when the source is opened."""


Section = Annotated[
    CcxtSection | AlpacaSection | MassiveSection | FlatFilesSection | IbSection | SimulatedSection,
    Field(discriminator="adapter"),
]
Sources = Mapping[str, CcxtSection | AlpacaSection | MassiveSection | FlatFilesSection | IbSection | SimulatedSection]
"""The section of each venue, by the venue's name."""
