"""The sources of market data by configuration: a YAML file with a section for each venue, and what works without one.

    binance-testnet:
      adapter: ccxt
      exchange: binance
      url: http://127.0.0.1:8080
      key: {env: TESTNET_KEY}
      secret: {file: /run/secrets/testnet}
    simulated:
      seed: 7

A venue that has no section is a ccxt exchange of that name, or `simulated`, with its defaults; `alpaca` and
`massive` take their credentials from the variables that their own libraries read; `ib` is TWS on this machine;
`massive-files` takes its own from MASSIVE_FILES_KEY and MASSIVE_FILES_SECRET.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.common.market import Name
from tradeloop.ingest.adapters.sections import (
    AlpacaSection,
    CcxtSection,
    FlatFilesSection,
    IbSection,
    MassiveSection,
    Section,
    SimulatedSection,
    Sources,
)
from tradeloop.ingest.adapters.symbols import unknown
from tradeloop.ingest.ports import MarketSource

_FILE = TypeAdapter(dict[Name, Section])
_OWN = ("alpaca", "ib", "massive", "massive-files", "simulated")


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
    if isinstance(section, AlpacaSection):
        from tradeloop.ingest.adapters.alpaca_source import AlpacaSource

        return AlpacaSource(venue, section, clock)
    if isinstance(section, FlatFilesSection):
        from tradeloop.ingest.adapters.flat_files import FlatFilesSource

        return FlatFilesSource(venue, section, clock)
    if isinstance(section, MassiveSection):
        from tradeloop.ingest.adapters.massive_source import MassiveSource

        return MassiveSource(venue, section, clock)
    if isinstance(section, IbSection):
        try:
            from tradeloop.ingest.adapters.ib_source import IbSource
        except ModuleNotFoundError as error:
            if error.name != "ib_async":
                raise
            raise UserError(f"{venue} needs the package ib_async: pip install 'tradeloop-ingest[ib]'") from None

        return IbSource(venue, section, clock)
    from tradeloop.ingest.adapters.ccxt_source import CcxtSource

    return CcxtSource(venue, section, clock)


def _default(
    venue: str, sources: Iterable[str]
) -> CcxtSection | AlpacaSection | MassiveSection | FlatFilesSection | IbSection | SimulatedSection:
    if venue == "alpaca":
        return AlpacaSection()
    if venue == "massive":
        return MassiveSection()
    if venue == "massive-files":
        return FlatFilesSection()
    if venue == "ib":
        return IbSection()
    if venue == "simulated":
        return SimulatedSection()
    import ccxt

    if venue not in ccxt.exchanges:
        raise unknown("Tradeloop", f"source {venue}", [f"source {one}" for one in (*sources, *_OWN, *ccxt.exchanges)])
    return CcxtSection()
