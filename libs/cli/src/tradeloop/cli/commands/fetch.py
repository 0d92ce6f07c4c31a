"""`tradeloop backfill` and `tradeloop instruments`: bars and terms from a source of market data."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tradeloop.cli.commands.models import DEFAULT_HOME, Home, Which
from tradeloop.common.errors import UserError

if TYPE_CHECKING:
    from tradeloop.cli.client.client import Client
    from tradeloop.cli.progress import Stages
    from tradeloop.common.bar_store.sql import SqlBarStore
    from tradeloop.common.market import Instrument, Timeframe, Universe
    from tradeloop.ingest.adapters.sql_fetched import SqlFetched
    from tradeloop.ingest.ports import MarketSource

instruments = typer.Typer(help="What venues say of their instruments.", no_args_is_help=True)

_VENUE = "The venue: the id of any ccxt exchange, `alpaca`, `massive`, `ib`, `simulated`, or a section of --sources."
Venue = Annotated[str, typer.Option("--source", help=_VENUE)]
Url = Annotated[str | None, typer.Option("--url", help="Another base URL of the venue, such as a testnet's.")]
Configuration = Annotated[
    Path | None,
    typer.Option("--sources", envvar="INGEST_SOURCES", help="YAML file with a section for each venue."),
]
_SHOWN = 5
_LATEST = datetime(9999, 1, 1, tzinfo=UTC)
"""The end of a range that has none: ingest fetches up to the venue's own time."""


def backfill(
    start: Annotated[str, typer.Option("--from", help="Open time of the first bar, ISO 8601, UTC.")],
    venue: Annotated[str | None, typer.Option("--source", help=_VENUE)] = None,
    symbols: Annotated[
        list[str] | None, typer.Option("--instrument", help="The venue's symbol, such as BTC/USDT; again for each.")
    ] = None,
    timeframe: Annotated[str | None, typer.Option("--timeframe", help="The length of a bar, such as 1m.")] = None,
    end: Annotated[
        str | None, typer.Option("--to", help="Bars that open at this time or later are left out. Without it: now.")
    ] = None,
    url: Url = None,
    sources: Configuration = None,
    home: Home = DEFAULT_HOME,
    stack: Annotated[
        Which | None,
        typer.Option(
            "--stack",
            help="Fetch into the home, or let ingest of the running stack fetch. Without it: the running one where "
            "TRADELOOP_KAFKA__BOOTSTRAP_SERVERS says where Kafka is.",
        ),
    ] = None,
    portfolio_file: Annotated[
        Path | None,
        typer.Option("--portfolio", help="Of a running stack: the universe of this portfolio, for --source and so on."),
    ] = None,
    universe: Annotated[
        str | None, typer.Option("--universe", help="Of a running stack: a universe of the --portfolios folder.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--portfolios", envvar="TRADELOOP_PORTFOLIO_FOLDER", help="Folder of the stack's portfolios."),
    ] = None,
) -> None:
    """Fetch closed bars from venues into a home, or a running stack's store: only what was not fetched before.

    It may be interrupted at any moment: the next run goes on. Then use them: `--bars store:VENUE:SYMBOL@TIMEFRAME`. On
    a running stack name a universe: its longer bars are made too, and bars that went out otherwise go out corrected.
    """
    from tradeloop.cli.client.settings import load_settings
    from tradeloop.cli.progress import Stages, quiet_logs
    from tradeloop.cli.span import span_us

    quiet_logs()
    named, span = portfolio_file is not None or universe is not None, span_us((start, end))
    on_running = "bootstrap_servers" in load_settings().kafka.model_fields_set if stack is None else stack == "running"
    if named and (venue or symbols or timeframe):
        raise UserError("a universe has its venues, instruments and timeframe: leave --source and so on out")
    if not named and not (venue and symbols and timeframe):
        raise UserError("say what to fetch: --source, --instrument and --timeframe, or on a running stack --universe")
    if on_running:
        from tradeloop.cli.client.client import running

        if url is not None:
            raise UserError("ingest of the running stack has the URLs of its venues in INGEST_SOURCES: leave --url out")
        wanted = _universe(portfolio_file, universe, folder, venue or "", symbols or (), timeframe or "")
        stages = Stages()
        with running(stages.say) as client:
            fetch_on_stack(client, stages, wanted, span)
        return
    if named:
        raise UserError("--portfolio and --universe are for a running stack: give --source, --instrument, --timeframe")
    _into_home(Stages(), home, venue or "", symbols or [], _timeframe(timeframe or ""), span, url, sources)


def _universe(
    portfolio_file: Path | None,
    universe: str | None,
    folder: Path | None,
    venue: str,
    symbols: Sequence[str],
    timeframe: str,
) -> Universe:
    """The universe to fetch: that of a portfolio, or one of these instruments."""
    from pydantic import ValidationError

    from tradeloop.cli.commands.replay import chosen
    from tradeloop.common.market import Instrument, Universe
    from tradeloop.common.messages.topics import derived_id

    if not symbols:
        return chosen(portfolio_file, universe, folder)[0].universe
    length, ids = _timeframe(timeframe), [f"{venue}:{symbol}" for symbol in symbols]
    try:
        instruments = tuple(Instrument(id=one) for one in ids)
        return Universe(name=f"fetched-{derived_id('', *ids)[:8]}", instruments=instruments, timeframe=length)
    except ValidationError as error:
        raise UserError(f"{', '.join(ids)}: {error.errors(include_url=False)[0]['msg']}") from None


def fetch_on_stack(client: Client, stages: Stages, universe: Universe, span: tuple[int, int]) -> None:
    """Let ingest fetch a range, and say what came of it. Raises as `Client.ask`."""
    from tradeloop.common.market import TimeRange, from_us, iso, to_us
    from tradeloop.common.messages import BackfillCompleted, BackfillRequested
    from tradeloop.common.messages.topics import derived_id

    start_us, end_us = span
    asked = TimeRange(start=from_us(start_us), end=from_us(min(end_us, to_us(_LATEST))))
    # Asked at another time it is another request: meanwhile more has closed.
    identity = derived_id("fetch", universe.name, asked.start, asked.end, iso(client.clock.now()))
    with stages.stage(f"Ingest fetches {', '.join(universe.ids)}"):
        request = BackfillRequested(request_id=identity, universe=universe, range=asked)
        done = client.ask(request, BackfillCompleted)
    stages.warn(done.remarks)
    if done.left_out > len(done.remarks):
        stages.warn(
            [f"and {done.left_out - len(done.remarks)} more bars that are none were left out: see ingest's log"]
        )
    if not done.bars:
        typer.echo(f"{', '.join(universe.ids)}: no bars are stored in this range: the venue has none")
        return
    first, end = (f"{time:%Y-%m-%d %H:%M}" for time in (done.range.start, done.range.end))
    typer.echo(
        f"{', '.join(universe.ids)}: the running stack has {done.bars:,} {universe.timeframe} bars from {first} to "
        f"{end} UTC, {done.gaps:,} gaps, {done.left_out:,} left out now"
    )


def _into_home(
    stages: Stages,
    home: Path,
    venue: str,
    symbols: Sequence[str],
    timeframe: Timeframe,
    span: tuple[int, int],
    url: str | None,
    sources: Path | None,
) -> None:
    from tradeloop.common.bar_store.sql import SqlBarStore
    from tradeloop.common.clock import SystemClock
    from tradeloop.ingest.adapters.sql_fetched import SqlFetched
    from tradeloop.ingest.application.fetch import Progress, patiently

    clock, (start_us, end_us) = SystemClock(), span
    with open_venue(venue, sources, url) as source:

        def waiting(one: Progress) -> None:
            stages.say(f"{one.reason}: trying again in {one.waits_s:.1f} s")

        end_us = min(end_us, patiently(source.time_us, time.sleep, waiting))
        terms = patiently(lambda: source.instruments(symbols), time.sleep, waiting)
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
                _fetched(stages, source, name, store, fetched, instrument, timeframe, start_us, end_us)


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
    with open_venue(venue, sources, url) as source:
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
def open_venue(venue: str, sources: Path | None, url: str | None) -> Iterator[MarketSource]:
    from tradeloop.common.clock import SystemClock
    from tradeloop.ingest.adapters.sources import load_sources, open_source

    with closing(open_source(venue, load_sources(sources), SystemClock(), url=url)) as source:
        yield source
