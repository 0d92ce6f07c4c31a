"""`tradeloop db`: the tables of bars and ledger, and who may do what with them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from tradeloop.common.errors import UserError

if TYPE_CHECKING:
    from tradeloop.common.sql.engine import Schema
    from tradeloop.common.sql.migrations import State

app = typer.Typer(
    help="Bring the databases to the version that this release needs, and keep them small.", no_args_is_help=True
)

Bars = Annotated[
    str | None,
    typer.Option(
        "--bars-url",
        envvar="TRADELOOP_DATABASE_URL",
        help="The database of bars, postgresql+psycopg://USER:PASSWORD@HOST/NAME.",
    ),
]
Ledger = Annotated[
    str | None, typer.Option("--ledger-url", envvar="TRADELOOP_LEDGER_URL", help="The database of orders and fills.")
]


@app.command("roles")
def roles() -> None:
    """Create the databases, and a role of PostgreSQL for each service with the rights that it needs.

    TRADELOOP_ADMIN_URL is a superuser's URL, TRADELOOP_ROLES__INGEST and so on are the passwords. Does what is missing,
    and sets the passwords anew; run it before `migrate`, by the same user.
    """
    from tradeloop.cli.client.settings import load_settings
    from tradeloop.common.sql.roles import DATABASES, create_roles

    settings = load_settings()
    if settings.admin_url is None:
        raise UserError("say where PostgreSQL is: set TRADELOOP_ADMIN_URL to a superuser's URL")
    passwords = {role.lower(): password.get_secret_value() for role, password in settings.roles.items()}
    create_roles(settings.admin_url.get_secret_value(), passwords)
    typer.echo(f"databases {', '.join(DATABASES)}; roles {', '.join(passwords)}")


@app.command("migrate")
def migrate(bars_url: Bars = None, ledger_url: Ledger = None) -> None:
    """Create or update the tables, and say which storage tier holds the bars. Does what is missing, once, whoever asks.

    There is no way back but a backup: make one before (pg_dump).
    """
    from tradeloop.common.sql.migrations import migrate

    for url, schema in _databases(bars_url, ledger_url):
        before, after = migrate(url, schema)
        change = "as it was" if before == after else f"was {_described(before)}" if before.version else "new"
        typer.echo(f"{schema.name}: {_described(after)}, {change}")


@app.command("status")
def status(bars_url: Bars = None, ledger_url: Ledger = None) -> None:
    """Show the version of each database: exit 1 where one is behind this release."""
    from tradeloop.common.sql.migrations import current

    behind = False
    for url, schema in _databases(bars_url, ledger_url):
        found = current(url, schema)
        lacking = found.version is None or found.version < schema.head
        behind |= lacking
        remedy = f"; {schema.head} is needed, run: tradeloop db migrate" if lacking else ""
        typer.echo(f"{schema.name}: {_described(found)}{remedy}")
    if behind:
        raise typer.Exit(1)


@app.command("prune")
def prune(
    ledger_url: Annotated[
        str | None,
        typer.Option(
            "--ledger-url",
            envvar="TRADELOOP_LEDGER_URL",
            help="The database of orders and fills, in SQLite or PostgreSQL.",
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            help="Age of orders and fills at the last bar of the portfolio's own book, in days: 400d.",
        ),
    ] = None,
    bars_url: Annotated[
        str | None,
        typer.Option(
            "--bars-url",
            envvar="TRADELOOP_DATABASE_URL",
            help="The database of bars, with the trades, order books and news, in SQLite or PostgreSQL.",
        ),
    ] = None,
    events_older_than: Annotated[
        str | None, typer.Option("--events-older-than", help="Age of trades, order books and news, in days: 30d.")
    ] = None,
) -> None:
    """Delete old orders and fills of the ledger, or old trades, order books and news, for good.

    Positions, cash and open orders stay as they are: a book is kept, and never made from its fills again. Bars stay,
    with their columns. Services may run meanwhile. Whoever needs the orders for the tax office makes a backup before.
    """
    if older_than is None and events_older_than is None:
        raise UserError("nothing is named: give --older-than for orders and fills, --events-older-than for the others")
    ages_us = {
        option: _age_us(option, age)
        for option, age in (("--older-than", older_than), ("--events-older-than", events_older_than))
        if age is not None
    }
    if older_than is not None and not ledger_url:
        raise UserError("--older-than needs the ledger: give --ledger-url or TRADELOOP_LEDGER_URL")
    if events_older_than is not None and not bars_url:
        raise UserError("--events-older-than needs the bars' database: give --bars-url or TRADELOOP_DATABASE_URL")
    if ledger_url and older_than is not None:
        _prune_ledger(ledger_url, ages_us["--older-than"])
    if bars_url and events_older_than is not None:
        _prune_events(bars_url, ages_us["--events-older-than"])


def _age_us(option: str, age: str) -> int:
    if not (days := re.fullmatch(r"([1-9][0-9]{0,4})d", age)):
        raise UserError(f"{option} {age}: give a number of days, from 1d to 99999d")
    return int(days[1]) * 86_400_000_000


def _prune_ledger(url: str, age_us: int) -> None:
    from tradeloop.common.market import from_us
    from tradeloop.execution.adapters.sql_ledger import SqlLedger

    with closing(SqlLedger(url)) as ledger:
        if (file := ledger.file) is not None and not file.exists():
            raise UserError(f"--ledger-url: there is no file {file}")
        pruned = ledger.prune(age_us)
    for each in pruned:
        before = f"{from_us(max(each.before_us, 0)):%Y-%m-%d %H:%M} UTC"
        typer.echo(f"{each.portfolio}: {each.orders} orders and {each.fills} fills from before {before} deleted")
    if not pruned:
        typer.echo("the ledger has no books: nothing was deleted")


def _prune_events(url: str, age_us: int) -> None:
    from tradeloop.common.clock import SystemClock
    from tradeloop.common.event_store.sql import SqlEventStore
    from tradeloop.common.market import from_us, to_us

    before_us = to_us(SystemClock().now()) - age_us
    with closing(SqlEventStore(url)) as store:
        if (file := store.file) is not None and not file.exists():
            raise UserError(f"--bars-url: there is no file {file}")
        found = store.prune(before_us)
    before = f"{from_us(before_us):%Y-%m-%d %H:%M} UTC"
    typer.echo(
        f"{found.trades:,} trades, {found.books:,} states of order books and {found.news:,} pieces of news from before "
        f"{before} deleted"
    )


def _databases(bars_url: str | None, ledger_url: str | None) -> Iterator[tuple[str, Schema]]:
    from tradeloop.cli.client.settings import load_settings
    from tradeloop.common.bar_store.sql import SCHEMA as BARS
    from tradeloop.common.event_store.sql import SCHEMA as EVENTS
    from tradeloop.execution.adapters.ledger_versions import SCHEMA as LEDGER
    from tradeloop.ingest.adapters.fetched_versions import SCHEMA as FETCHED

    load_settings()  # a misspelt variable would leave out a database
    if not bars_url and not ledger_url:
        raise UserError(
            "no database is named: give --bars-url or TRADELOOP_DATABASE_URL, --ledger-url or TRADELOOP_LEDGER_URL"
        )
    if bars_url:
        yield bars_url, BARS
        yield bars_url, FETCHED
        yield bars_url, EVENTS
    if ledger_url:
        yield ledger_url, LEDGER


def _described(state: State) -> str:
    return f"version {state.version or 'none'} on {state.tier}"
