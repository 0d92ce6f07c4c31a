"""Roles of PostgreSQL: each service gets at what it works with, and at nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from deploy.native.postgres import driver_url
from tradeloop.common.bar_store.sql import SCHEMA as BARS
from tradeloop.common.bar_store.sql import SqlBarStore
from tradeloop.common.clock import SystemClock
from tradeloop.common.errors import UserError
from tradeloop.common.market import EVER_US, Timeframe, align
from tradeloop.common.sql.migrations import migrate
from tradeloop.common.sql.roles import DATABASES, GRANTS, ROLES, RolesFailed, create_roles, role_url
from tradeloop.execution.adapters.ledger_versions import SCHEMA as LEDGER
from tradeloop.execution.adapters.sql_ledger import SqlLedger

PASSWORDS = {role: f"secret-of-{role}" for role in ROLES}


@pytest.fixture
def server(postgres: str) -> Iterator[str]:
    """A server on which no role and no database of a stack is before, nor after."""
    with psycopg.connect(driver_url(postgres), autocommit=True) as admin:
        there = {row[0] for row in admin.execute("SELECT datname FROM pg_database")}
        assert not there & set(DATABASES), "this server is in use by a stack"
        try:
            yield postgres
        finally:
            for name in DATABASES:
                admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            for role in ROLES:
                admin.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


def as_role(server: str, role: str, database: str) -> psycopg.Connection:
    return psycopg.connect(driver_url(role_url(server, role, database, PASSWORDS[role])), autocommit=True)


def as_owner(server: str, database: str) -> str:
    return make_url(server).set(database=database).render_as_string(hide_password=False)


def test_M11_each_service_may_do_what_it_does_and_no_more(server: str) -> None:
    create_roles(server, PASSWORDS)
    with psycopg.connect(driver_url(as_owner(server, "bars")), autocommit=True) as owner:
        if owner.execute("SELECT FROM pg_available_extensions WHERE name = 'timescaledb'").fetchone():
            owner.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
    migrate(as_owner(server, "bars"), BARS)
    migrate(as_owner(server, "ledger"), LEDGER)
    create_roles(server, PASSWORDS)  # again, when tables are there

    hours = np.arange(4, dtype=np.int64) * Timeframe.H1.us
    prices = dict.fromkeys(("open", "high", "low", "close", "volume"), np.full(4, 100.0))
    bars = align(["x:A"], Timeframe.H1, [{"open_us": hours, **prices}])
    ingest = SqlBarStore(role_url(server, "ingest", "bars", PASSWORDS["ingest"]), SystemClock())
    ingest.write(Timeframe.H1, bars)
    ingest.close()
    for reader in ("preprocess", "training", "inference"):
        store = SqlBarStore(role_url(server, reader, "bars", PASSWORDS[reader]), SystemClock())
        assert len(store.read(["x:A"], Timeframe.H1, -EVER_US, EVER_US)) == 4
        store.close()
        with as_role(server, reader, "bars") as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM bars")
    for statement in ("DELETE FROM bars", "UPDATE bars SET close = 1", "DROP TABLE bars", "CREATE TABLE mine (i int)"):
        with as_role(server, "ingest", "bars") as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)

    ledger = SqlLedger(role_url(server, "execution", "ledger", PASSWORDS["execution"]))
    assert ledger.load(["p"])["p"].marked_us < 0
    ledger.close()
    with as_role(server, "execution", "ledger") as connection:
        connection.execute("DELETE FROM execution_books")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DROP TABLE execution_books")

    allowed = {(grant.role, grant.database) for grant in GRANTS}
    for role in ROLES:
        for database in (*DATABASES, "postgres"):
            if (role, database) not in allowed and database != "postgres":
                with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                    as_role(server, role, database)


def test_M11_tables_of_a_stack_from_before_are_handed_over(server: str) -> None:
    """Feast's and MLflow's tables belonged to the superuser. Their programs alter them."""
    with psycopg.connect(driver_url(server), autocommit=True) as admin:
        admin.execute("CREATE DATABASE features")
    with psycopg.connect(driver_url(as_owner(server, "features")), autocommit=True) as owner:
        owner.execute("CREATE TABLE projects (id serial PRIMARY KEY, name text)")
    create_roles(server, PASSWORDS)
    with as_role(server, "preprocess", "features") as connection:
        connection.execute("ALTER TABLE projects ADD COLUMN more text")
        connection.execute("INSERT INTO projects (name) VALUES ('one')")
        connection.execute("CREATE TABLE later (i int)")
    for reader in ("training", "inference"):
        with as_role(server, reader, "features") as connection:
            assert connection.execute("SELECT name FROM projects").fetchall() == [("one",)]
            assert connection.execute("SELECT i FROM later").fetchall() == []
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("INSERT INTO later VALUES (1)")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"ingest": ""}, "role ingest: give it a password"),
        ({"ingest": "with'quote"}, "role ingest: give it a password"),
        ({"stranger": "long enough"}, "role stranger is unknown"),
    ],
)
def test_passwords_that_cannot_be_are_refused(changed: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        create_roles("postgresql+psycopg://me:hunter2@127.0.0.1:9/x", {**PASSWORDS, **changed})


def test_M10_a_server_that_is_away_is_told_without_its_password() -> None:
    with pytest.raises(RolesFailed, match=r"me:\*\*\*@127\.0\.0\.1:9/x") as caught:
        create_roles("postgresql+psycopg://me:hunter2@127.0.0.1:9/x", PASSWORDS)
    assert "hunter2" not in str(caught.value)
