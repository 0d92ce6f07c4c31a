"""`tradeloop backfill` and `tradeloop instruments`: bars and terms from a source of market data."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tradeloop.cli.commands.models import DEFAULT_HOME, Home
from tradeloop.common.errors import UserError

if TYPE_CHECKING:
    from tradeloop.cli.progress import Stages
    from tradeloop.common.bar_store.sql import SqlBarStore
    from tradeloop.common.market import Instrument, Timeframe
    from tradeloop.ingest.adapters.sql_fetched import SqlFetched
    from tradeloop.ingest.ports import MarketSource

instruments = typer.Typer(help="What venues say of their instruments.", no_args_is_help=True)

Venue = Annotated[
    str,
    typer.Option("--source", help="The venue: the id of any ccxt exchange, `simulated`, or a section of --sources."),
]
Url = Annotated[str | None, typer.Option("--url", help="Another base URL of the venue, such as a testnet's.")]
Configuration = Annotated[
    Path | None,
    typer.Option("--sources", envvar="INGEST_SOURCES", help="YAML file with a section for each venue."),
]
_SHOWN = 5


def backfill(
    venue: Venue,
    symbols: Annotated[
        list[str], typer.Option("--instrument", help="The venue's symbol, such as BTC/USDT; again for each.")
    ],
    timeframe: Annotated[str, typer.Option("--timeframe", help="The length of a bar, such as 1m.")],
    start: Annotated[str, typer.Option("--from", help="Open time of the first bar, ISO 8601, UTC.")],
    end: Annotated[
        str | None, typer.Option("--to", help="Bars that open at this time or later are left out. Without it: now.")
    ] = None,
    url: Url = None,
    sources: Configuration = None,
    home: Home = DEFAULT_HOME,
    database_url: Annotated[
        str | None,
        typer.Option(
            "--bars-url",
            envvar="TRADELOOP_DATABASE_URL",
            help="The database of a running stack's bars, instead of a home: postgresql+psycopg://USER:PASSWORD@HOST/X.",
        ),
    ] = None,
) -> None:
    """Fetch closed bars from a venue into a home, or a running stack's store: only what was not fetched before.

    It may be interrupted at any moment: the next run goes on. Then use them: `--bars store:VENUE:SYMBOL@TIMEFRAME`.
    """
    from tradeloop.cli.progress import Stages, quiet_logs
    from tradeloop.cli.span import span_us
    from tradeloop.common.bar_store.sql import SqlBarStore
    from tradeloop.common.clock import SystemClock
    from tradeloop.ingest.adapters.sql_fetched import SqlFetched

    quiet_logs()
    length = _timeframe(timeframe)
    clock, stages = SystemClock(), Stages()
    with _opened(venue, sources, url) as source:
        now_us = source.time_us()
        start_us, end_us = span_us((start, end))
        end_us = min(end_us, now_us)
        terms = source.instruments(symbols)
        if database_url is None:
            home.mkdir(parents=True, exist_ok=True)
            database_url = f"sqlite:///{home / 'bars.db'}"
        name = f"{venue} {url.rstrip('/')}" if url else venue
        with (
            closing(SqlBarStore(database_url, clock)) as store,
            closing(SqlFetched(database_url, clock)) as fetched,
        ):
            typer.echo(f"Bars go into {fetched.address}")
            for instrument in terms:
                fetched.add_terms(instrument)
                _fetched(stages, source, name, store, fetched, instrument, length, start_us, end_us)


@instruments.command("show")
def show(
    symbols: Annotated[list[str], typer.Argument(help="Symbols of the venue, such as BTC/USDT.")],
    venue: Venue,
    url: Url = None,
    sources: Configuration = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: one JSON object a line.")] = False,
    home: Annotated[
        Path | None, typer.Option("--home", help="Also record the terms in this home, and show those known before.")
    ] = None,
) -> None:
    """Show the terms of instruments as the venue has them now: tick, lot, smallest order, fees, calendar."""
    from tradeloop.cli.progress import quiet_logs
    from tradeloop.common.clock import SystemClock
    from tradeloop.common.market import from_us
    from tradeloop.ingest.adapters.sql_fetched import SqlFetched

    quiet_logs()
    with _opened(venue, sources, url) as source:
        for instrument in source.instruments(symbols):
            known = []
            if home is not None:
                home.mkdir(parents=True, exist_ok=True)
                with closing(SqlFetched(f"sqlite:///{home / 'bars.db'}", SystemClock())) as fetched:
                    fetched.add_terms(instrument)
                    known = [(from_us(us).isoformat(), terms) for us, terms in fetched.terms(instrument.id)]
            if as_json:
                versions = [{"known_since": us, **terms.model_dump(mode="json")} for us, terms in known]
                typer.echo(json.dumps({**instrument.model_dump(mode="json"), "versions": versions}))
                continue
            typer.echo(_line(instrument))
            for since, terms in known:
                typer.echo(f"  known since {since}: {_line(terms)}")


def _line(one: Instrument) -> str:
    return (
        f"{one.id}  tick {one.tick_size:g}  lot {one.lot_size:g}  smallest order {one.min_notional:g}  "
        f"fees {one.maker_bps:g}/{one.taker_bps:g} bps (maker/taker)  calendar {one.calendar}"
    )


def _fetched(
    stages: Stages,
    source: MarketSource,
    name: str,
    store: SqlBarStore,
    fetched: SqlFetched,
    instrument: Instrument,
    timeframe: Timeframe,
    start_us: int,
    end_us: int,
) -> None:
    """Fetch one instrument, and say what came of it."""
    from tradeloop.common.market import from_us
    from tradeloop.common.market.calendars import gaps as gaps_in
    from tradeloop.ingest.application.fetch import fetch

    bars, pages, left_out = 0, 0, list[str]()
    with stages.stage(f"Fetching {instrument.id}", max((end_us - start_us) // timeframe.us, 1)) as report:
        progress = fetch(source, name, store, fetched, instrument, timeframe, start_us, end_us, time.sleep)
        for one in progress:
            report((one.at_us - start_us) // timeframe.us)
            if one.waits_s:
                stages.say(f"{one.reason}: trying again in {one.waits_s:.1f} s")
                continue
            bars, pages = bars + one.bars, pages + 1
            left_out += one.left_out
    stages.warn(f"{instrument.id}: left out {line}" for line in left_out[:_SHOWN])
    if len(left_out) > _SHOWN:
        stages.warn([f"{instrument.id}: and {len(left_out) - _SHOWN} more bars that are none were left out"])
    typer.echo(f"{instrument.id}: {bars:,} {timeframe} bars fetched in {pages:,} pages, {len(left_out):,} left out")
    stored = store.read([instrument.id], timeframe, start_us, end_us)
    if not len(stored):
        typer.echo(f"{instrument.id}: no bars are stored in this range: the venue has none")
        return
    gaps = len(gaps_in(stored.open_us, timeframe, instrument.calendar))
    first, last = (f"{from_us(us):%Y-%m-%d %H:%M}" for us in (stored.open_us[0], stored.open_us[-1]))
    before = sum(span.left_out for span in fetched.spans(name, instrument.id, timeframe))
    told = f", {before:,} were left out so far" if before else ""
    typer.echo(f"{instrument.id}: {len(stored):,} stored from {first} to {last} UTC, {gaps:,} gaps{told}")


def _timeframe(text: str) -> Timeframe:
    from tradeloop.common.market import Timeframe

    if text not in list(Timeframe):
        raise UserError(f"--timeframe {text}: give one of {', '.join(Timeframe)}")
    return Timeframe(text)


@contextmanager
def _opened(venue: str, sources: Path | None, url: str | None) -> Iterator[MarketSource]:
    from tradeloop.common.clock import SystemClock
    from tradeloop.ingest.adapters.sources import load_sources, open_source

    with closing(open_source(venue, load_sources(sources), SystemClock(), url=url)) as source:
        yield source
