"""Roles of PostgreSQL: each service may do what it does, in the databases that it uses, and no more.

A role has the name of its service. The tables belong to whoever migrates, and stay theirs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from tradeloop.common.addresses import address
from tradeloop.common.errors import Unavailable, UserError
from tradeloop.common.sql.engine import cause, open_engine

Right = Literal["reads", "appends", "writes", "owns"]


@dataclass(frozen=True, slots=True)
class Grant:
    """The right of a role in a database."""

    database: str
    role: str
    right: Right


GRANTS = (
    Grant("bars", "ingest", "appends"),
    Grant("bars", "preprocess", "reads"),
    Grant("bars", "training", "reads"),
    Grant("bars", "inference", "reads"),
    Grant("ledger", "execution", "writes"),
    Grant("features", "preprocess", "owns"),  # Feast makes its tables itself
    Grant("features", "training", "reads"),
    Grant("features", "inference", "reads"),
    Grant("mlflow", "mlflow", "owns"),  # and so does MLflow
)
DATABASES = tuple(dict.fromkeys(grant.database for grant in GRANTS))
ROLES = tuple(dict.fromkeys(grant.role for grant in GRANTS))

ON_TABLES: Mapping[Right, str] = {
    "reads": "SELECT",
    "appends": "SELECT, INSERT",
    "writes": "SELECT, INSERT, UPDATE, DELETE",
}
_PASSWORD = re.compile(r"[A-Za-z0-9_\-]{8,}")


class RolesFailed(Unavailable):
    """PostgreSQL refused, or cannot be reached. What was done is kept: trying again is safe."""


def create_roles(server: str, passwords: Mapping[str, str]) -> None:
    """Create the databases and roles that are missing, and give every role its password and its rights alone.

    `server` is the URL of any database of the server, for a superuser, who owns the tables of bars and ledger.
    `passwords` are by role. Safe to repeat. Raises `UserError` for a password that is missing or has signs that a URL
    would change, and `RolesFailed`.
    """
    for role in ROLES:
        if not _PASSWORD.fullmatch(passwords.get(role, "")):
            raise UserError(f"role {role}: give it a password of 8 or more letters and digits")
    if unknown := sorted(passwords.keys() - set(ROLES)):
        raise UserError(f"role {unknown[0]} is unknown: there are {', '.join(ROLES)}")
    open_engine(server, "PostgreSQL server").dispose()  # which says what is wrong with the URL
    try:
        _run(server, None, [*_all_roles(passwords)])
        with _connected(server, None) as connection:
            there = set(connection.scalars(text("SELECT datname FROM pg_database")))
        _run(server, None, [f"CREATE DATABASE {name}" for name in DATABASES if name not in there])
        for database in DATABASES:
            _run(server, database, [*_rights(database)])
    except DBAPIError as error:
        raise RolesFailed(f"PostgreSQL at {address(make_url(server))}: {cause(error)}") from None


def role_url(server: str, role: str, database: str, password: str) -> str:
    """The SQLAlchemy URL of a database for a role."""
    return (
        make_url(server).set(username=role, password=password, database=database).render_as_string(hide_password=False)
    )


def _all_roles(passwords: Mapping[str, str]) -> Iterator[str]:
    for role in ROLES:
        yield (
            f"DO $$ BEGIN CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE; "
            "EXCEPTION WHEN duplicate_object THEN NULL; END $$"
        )
        yield f"ALTER ROLE {role} PASSWORD '{passwords[role]}'"


def _rights(database: str) -> Iterator[str]:
    mine = [grant for grant in GRANTS if grant.database == database]
    yield f"REVOKE ALL ON DATABASE {database} FROM PUBLIC"
    yield "REVOKE CREATE ON SCHEMA public FROM PUBLIC"
    owner = next((grant.role for grant in mine if grant.right == "owns"), None)
    for grant in mine:
        yield f"GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {grant.role}"
        yield f"GRANT USAGE ON SCHEMA public TO {grant.role}"
        if grant.right == "owns":
            yield f"GRANT CREATE ON SCHEMA public TO {grant.role}"
            yield _handed_over(grant.role)
            continue
        on_tables, makers = ON_TABLES[grant.right], f"FOR ROLE {owner} " if owner else ""
        yield f"GRANT {on_tables} ON ALL TABLES IN SCHEMA public TO {grant.role}"
        yield f"ALTER DEFAULT PRIVILEGES {makers}IN SCHEMA public GRANT {on_tables} ON TABLES TO {grant.role}"
        if grant.right != "reads":
            yield f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {grant.role}"
            yield f"ALTER DEFAULT PRIVILEGES {makers}IN SCHEMA public GRANT USAGE ON SEQUENCES TO {grant.role}"


def _handed_over(role: str) -> str:
    """Tables that another role made before, which its program would want to alter."""
    return f"""
        DO $$ DECLARE one record; BEGIN
            FOR one IN SELECT c.relname, c.relkind FROM pg_class c
                WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'S', 'v')
                    AND pg_get_userbyid(c.relowner) <> '{role}'
                    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype IN ('a', 'e', 'i'))
            LOOP
                EXECUTE format('ALTER %%s public.%%I OWNER TO {role}',
                    CASE one.relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, one.relname);
            END LOOP;
        END $$"""


def _run(server: str, database: str | None, statements: list[str]) -> None:
    with _connected(server, database) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def _connected(server: str, database: str | None) -> Connection:
    url = make_url(server) if database is None else make_url(server).set(database=database)
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 5})
    return engine.connect()
