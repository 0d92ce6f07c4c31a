"""The databases: reached, signed in to, of the version that this release needs, writable to whoever writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from tradeloop.cli.doctor.clocks import ServerTime, offset
from tradeloop.cli.doctor.finding import Finding, failed, ok, unused, warning
from tradeloop.cli.naming import listed
from tradeloop.common.clock import Clock
from tradeloop.common.sql.engine import Schema, address, cause, file_of, open_engine, version
from tradeloop.common.sql.roles import GRANTS, ON_TABLES, Right

_TESTED_FROM = 15
"""The oldest major version of PostgreSQL that the tests run on."""


def database(
    name: str, variable: str, url: str, schemas: Sequence[Schema], clock: Clock, service: str | None
) -> Iterator[Finding]:
    """A database of the platform, `bars` or `ledger`, by its URL, which a variable holds.

    `service` is who signs in with it; None for a person, who also sees the rights of the services' roles.
    """
    subject = f"database {name}" + (f" of {service}" if service else "")
    engine = open_engine(url, subject)
    where = address(engine.url)
    try:
        if engine.dialect.name == "sqlite":
            file = file_of(engine)
            if file is not None and not file.exists():
                yield warning(subject, f"{where} is not there yet", "whoever writes first makes it")
            else:
                yield ok(subject, f"{where}; SQLite needs no migration")
            return
        try:
            with engine.connect() as connection:
                yield from _postgresql(subject, name, where, connection, schemas, clock, service)
        except DBAPIError as error:
            remedy = f"start PostgreSQL, or mend {variable}; `tradeloop db roles` sets the passwords of services"
            yield failed(subject, f"{where}: {cause(error)}", remedy)
    finally:
        engine.dispose()


def _postgresql(
    subject: str,
    name: str,
    where: str,
    connection: Connection,
    schemas: Sequence[Schema],
    clock: Clock,
    service: str | None,
) -> Iterator[Finding]:
    number = int(connection.scalar(text("SHOW server_version_num")) or 0)
    told = connection.scalar(text("SHOW server_version"))
    extension = connection.scalar(text("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'"))
    said = f"{where}, PostgreSQL {told}" + (f", TimescaleDB {extension}" if extension else ", without TimescaleDB")
    if number // 10_000 < _TESTED_FROM:
        yield warning(subject, said, f"upgrade: Tradeloop is tested from PostgreSQL {_TESTED_FROM} on")
    else:
        yield ok(subject, said)
    if connection.scalar(text("SELECT current_setting('transaction_read_only')")) == "on":
        yield failed(subject, "it takes no writes", "name the primary: this is a replica, or was set to read-only")
    yield from offset(subject, clock, lambda: _time(connection))
    behind = [(one, found) for one in schemas if (found := version(connection, one)) is None or found < one.head]
    for schema, found in behind:
        has = f"has version {found}" if found else "has no tables"
        yield failed(f"migrations of {name}", f"{schema.name} {has}, {schema.head} is needed", "tradeloop db migrate")
    if not behind:
        versions = ", ".join(f"{one.name} {version(connection, one)}" for one in schemas)
        yield ok(f"migrations of {name}", versions)
    yield from _rights(name, connection, service)


def _time(connection: Connection) -> ServerTime:
    found = connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())"))
    return ServerTime(float(found or 0.0), 0.0)


def _rights(database: str, connection: Connection, service: str | None) -> Iterator[Finding]:
    grants = [one for one in GRANTS if one.database == database and service in (None, one.role)]
    if service is None:
        there = set(connection.scalars(text("SELECT rolname FROM pg_roles")))
        if not there & {one.role for one in grants}:
            yield unused(
                f"roles of {database}", "services have none of their own here; `tradeloop db roles` makes them"
            )
            return
        for role in sorted({one.role for one in grants} - there):
            yield failed(f"roles of {database}", f"there is no role {role}", "tradeloop db roles")
        grants = [one for one in grants if one.role in there]
    user = "current_user" if service else "'{}'"
    for grant in grants:
        lacking = _lacking(connection, user.format(grant.role), grant.right)
        if lacking:
            yield failed(
                f"rights of {grant.role}", f"in {database} it lacks {listed(lacking, 4)}", "tradeloop db roles"
            )
        else:
            yield ok(f"rights of {grant.role}", f"in {database}: {ON_TABLES[grant.right]} on every table")


def _lacking(connection: Connection, user: str, right: Right) -> list[str]:
    """Privileges that a role lacks on the database's own tables."""
    tables = "SELECT oid, relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
    wanted = ", ".join(f"('{privilege}')" for privilege in ON_TABLES[right].split(", "))
    found = connection.execute(
        text(
            f"SELECT privilege, relname FROM ({tables}) AS tables, (VALUES {wanted}) AS wanted (privilege) "
            f"WHERE NOT has_table_privilege({user}, oid, privilege) ORDER BY 2, 1"
        )
    )
    return [f"{privilege} ON {table}" for privilege, table in found]
